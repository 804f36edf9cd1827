"""Relative accuracy: losses and gradients against 50-digit arithmetic at the very same numbers.

A confident, correct prediction has a loss and a gradient that are small, not 0; both are compared
relative to themselves. `python -c "import test_accuracy; test_accuracy.check_extremes()"` runs the
extremes alone, which one test here does under a compiler that optimises nothing.
"""

import os
import pathlib
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import oracles
import pytest

import jaxsoftmax as js

# The contract: a few ulps of the float32 result, of which one is 1.2e-7 at most.
FLOAT32 = 1e-6
FLOAT64 = 1e-14
SMALLEST = float(jnp.finfo(jnp.float32).tiny)  # below it float32 loses digits, and XLA flushes to 0

losses_of = jax.jit(partial(js.cross_entropy, reduction="none"))
losses_and_gradients = jax.jit(jax.vmap(jax.value_and_grad(js.cross_entropy)))


def rows(margins, classes, label=0, dtype=jnp.float32, grid=None):
    """A row for each margin: the label's logit, and the others between -3 and 0."""
    x = np.random.default_rng(classes).uniform(-3.0, 0.0, (len(margins), classes))
    if grid is not None:
        x = np.round(x / grid) * grid
    x[:, label] = margins
    return jnp.asarray(x, dtype)


def labels_of(x, label=0):
    return jnp.full(x.shape[:-1], label, jnp.int32)


def assert_accurate(x, label, tolerance, smallest=SMALLEST):
    """Loss and label's gradient, each with the program that a caller would run."""
    labels = labels_of(x, label)
    losses, gradients = losses_and_gradients(x, labels)
    forward = losses_of(x, labels)
    checked = 0
    for i in range(len(x)):
        loss, gradient = oracles.mp_loss_and_target_gradient(np.asarray(x[i], np.float64), label)
        if loss < smallest:
            continue
        checked += 1
        assert oracles.relative_error(losses[i], loss) < tolerance, (i, losses[i], loss)
        assert oracles.relative_error(forward[i], loss) < tolerance, (i, forward[i], loss)
        got = gradients[i, label]
        assert oracles.relative_error(got, gradient) < tolerance, (i, got, gradient)
    assert checked > 0.9 * len(x)
    return gradients


# --- over margins ---------------------------------------------------------------------------------

MARGINS = np.concatenate([np.linspace(0.0, 80.0, 121), np.linspace(1e-3, 1.0, 20), [84.0, 86.0]])


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("classes", [2, 3, 10, 64, 1000])
def test_confident_labels(classes):
    """Margins from 0 to 80, whose own rounding, half an ulp of 64, would cost 4e-6 by itself."""
    margins = MARGINS if classes < 1000 else MARGINS[::6]
    assert_accurate(rows(margins, classes), 0, FLOAT32)


@pytest.mark.parametrize("classes", [3, 64])
def test_labels_at_any_position(classes):
    for label in (1, classes - 1):
        assert_accurate(rows(MARGINS[::4], classes, label), label, FLOAT32)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_labels_below_the_maximum(classes):
    """Just below it up to far below, where the loss is about the gap and the gradient about −1."""
    below = np.concatenate([-np.logspace(-6, 0, 25), -np.linspace(1.0, 200.0, 25), [-1e4, -1e30]])
    assert_accurate(rows(below, classes), 0, FLOAT32)


@pytest.mark.parametrize("classes", [2, 10])
def test_labels_within_a_rounding_error_of_the_maximum(classes):
    x = rows(np.zeros(9), classes).at[:, 1].set(1.0)
    steps = 1.0 + np.arange(-4, 5) * float(jnp.finfo(jnp.float32).eps)
    assert_accurate(x.at[:, 0].set(jnp.asarray(steps, jnp.float32)), 0, FLOAT32)


@pytest.mark.parametrize("offset", [1e3, -1e3, 1e6, -1e6, 1e8])
def test_large_offsets(offset):
    """The logits that float32 holds at this offset; only their differences matter."""
    x = jnp.asarray(np.asarray(rows(np.linspace(-8.0, 64.0, 25), 5), np.float64) + offset)
    assert_accurate(x.astype(jnp.float32), 0, FLOAT32)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_half_precision(dtype):
    """The loss is float32's; the gradient is rounded once, to the dtype of the logits."""
    x = rows(MARGINS[::3], 10, dtype=dtype)
    labels = labels_of(x)
    losses, gradients = losses_and_gradients(x, labels)
    assert losses.dtype == jnp.float32
    assert gradients.dtype == dtype
    half_ulp = 0.5 * float(jnp.finfo(dtype).eps)
    spacing = float(jnp.finfo(dtype).smallest_subnormal)
    for i in range(len(x)):
        loss, gradient = oracles.mp_loss_and_target_gradient(np.asarray(x[i], np.float64), 0)
        if loss < SMALLEST:
            continue
        assert oracles.relative_error(losses[i], loss) < FLOAT32
        distance = abs(float(gradients[i, 0]) - float(gradient))
        assert distance <= abs(float(gradient)) * (half_ulp + FLOAT32) + 0.5 * spacing


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_float64(classes):
    margins = np.concatenate([np.linspace(0.0, 700.0, 60), np.linspace(-700.0, 0.0, 20)])
    margins = margins if classes < 1000 else margins[::6]
    x = rows(margins, classes, dtype=jnp.float64)
    gradients = assert_accurate(x, 0, FLOAT64, smallest=float(jnp.finfo(jnp.float64).tiny))
    assert gradients.dtype == jnp.float64


# --- many classes ---------------------------------------------------------------------------------


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize(
    "classes",
    [
        pytest.param(10007, id="a prime"),
        pytest.param(50257, id="29 x 1733"),
        pytest.param(131071, id="a large prime"),
        pytest.param(131072, id="a power of two"),
    ],
)
def test_many_classes(classes):
    """Vocabularies that split into blocks and ones that do not; sums of 10^5 terms in float32."""
    margins = np.linspace(-20.0, 80.0, 11) + 0.3
    for label in (0, classes // 2, classes - 1):
        # Logits on a grid have few distinct values, so that 50 digits stay cheap.
        assert_accurate(rows(margins, classes, label, grid=1 / 64), label, FLOAT32)


# --- the other classes ----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_every_entry_of_the_gradient(classes):
    """softmax of the others: exact but for the rounding of each difference of logits."""
    x = rows(np.linspace(-10.0, 80.0, 19), classes)
    _, gradients = losses_and_gradients(x, labels_of(x))
    expected = oracles.cross_entropy_gradient(x, labels_of(x))
    exact = np.asarray(x, np.float64)
    distances = np.abs(exact - exact[:, 1:].max(-1, keepdims=True))
    half_ulps = distances * 0.5 * float(jnp.finfo(jnp.float32).eps)
    error = np.abs(np.asarray(gradients, np.float64) / expected - 1.0)
    assert np.all(error < FLOAT32 + half_ulps), error.max()


@pytest.mark.parametrize("classes", [2, 10, 1000, 10007])
def test_the_gradient_sums_to_zero(classes):
    """To rounding, relative to what is summed, however small that is."""
    x = rows(np.linspace(-20.0, 80.0, 21), classes)
    _, gradients = losses_and_gradients(x, labels_of(x))
    gradients = np.asarray(gradients, np.float64)
    sizes = np.abs(gradients).sum(-1)
    assert np.all(sizes > 0.0)
    assert np.all(np.abs(gradients.sum(-1)) < FLOAT32 * sizes)


def test_the_hessian_of_a_confident_row():
    """diag(p) − p pᵀ, whose row at the label is p_y (1 − p_y) and −p_y p_j, both tiny.

    Between the others, where p_i p_j is a product of tiny numbers, the diagonals are the scale.
    """
    x = jnp.array([20.0, 0.0, -1.0])
    with mpmath.workdps(oracles.DIGITS):
        terms = [mpmath.exp(mpmath.mpf(float(v)) - 20) for v in x]
        p = [t / mpmath.fsum(terms) for t in terms]
        expected = [[p[i] * ((i == j) - p[j]) for j in range(3)] for i in range(3)]
    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        got = hessian(js.cross_entropy)(x, jnp.array(0))
        for i in range(3):
            for j in range(3):
                scale = expected[i][j] if 0 in (i, j) else (p[i] * p[j]) ** 0.5
                assert abs(float(got[i, j]) - expected[i][j]) < FLOAT32 * abs(scale), (i, j)


# --- options keep the promise ---------------------------------------------------------------------


@pytest.mark.exhaustive(every=3)
@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"reduction": "none"}, 1.0),
        ({"reduction": "sum"}, 1.0),
        ({"class_weights": np.float32([0.5, 2.0, 1.0]), "reduction": "sum"}, 0.5),
        ({"example_weights": np.float32([0.25]), "reduction": "sum"}, 0.25),
        ({"example_weights": np.array([True])}, 1.0),
        ({"ignore_index": -100}, 1.0),
        ({"denominator": 4}, 0.25),
        ({"return_statistics": True}, 1.0),
        ({"where": np.array([True, True, True])}, 1.0),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("margin", [20.0, 70.3])
def test_options_keep_the_accuracy(options, factor, margin):
    x = jnp.array([[margin, 0.0, -0.3]])

    def loss(x):
        out = js.cross_entropy(x, jnp.array([0]), **options)
        return jnp.sum(out[0] if isinstance(out, tuple) else out)

    value, gradient = jax.value_and_grad(loss)(x)
    expected, target = oracles.mp_loss_and_target_gradient(np.asarray(x[0], np.float64), 0)
    assert oracles.relative_error(value, factor * expected) < FLOAT32
    assert oracles.relative_error(gradient[0, 0], factor * target) < FLOAT32


def test_the_class_axis_first_keeps_the_accuracy():
    def columns(x):
        return js.cross_entropy(x, labels_of(x.T), axis=0, reduction="none")

    x = rows(MARGINS[::10], 5)
    np.testing.assert_array_equal(columns(x.T), losses_of(x, labels_of(x)))
    values, pull = jax.vjp(columns, x.T)
    losses, gradients = losses_and_gradients(x, labels_of(x))
    np.testing.assert_array_equal(values, losses)
    np.testing.assert_array_equal(pull(jnp.ones_like(values))[0].T, gradients)


# --- binary ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [0, 1])
def test_binary_hard_labels(label):
    """−log σ(±x) relative to itself, for logits that agree with the label and that do not."""
    x = np.concatenate([np.linspace(-86.0, 86.0, 87) + 0.013, [-1e4, -1e30, 1e-6, -1e-30]])
    agree = 2 * label - 1
    x = jnp.asarray(agree * x, jnp.float32)
    y = jnp.full(x.shape, label)
    losses = js.binary_cross_entropy(x, y, reduction="none")
    gradients = jax.grad(lambda x: js.binary_cross_entropy(x, y, reduction="sum"))(x)
    for i in range(len(x)):
        two = [agree * float(x[i]), 0.0]
        loss, gradient = oracles.mp_loss_and_target_gradient(two, 0)
        assert oracles.relative_error(losses[i], loss) < FLOAT32, (i, x[i])
        assert oracles.relative_error(gradients[i], agree * gradient) < FLOAT32, (i, x[i])


@pytest.mark.usefixtures("x64")
def test_binary_in_float64():
    x = jnp.linspace(-700.0, 700.0, 41)
    losses = js.binary_cross_entropy(x, jnp.ones(41, jnp.int32), reduction="none")
    assert losses.dtype == jnp.float64
    for i in range(len(x)):
        loss, _ = oracles.mp_loss_and_target_gradient([float(x[i]), 0.0], 0)
        assert oracles.relative_error(losses[i], loss) < FLOAT64


# --- extremes -------------------------------------------------------------------------------------


def check_extremes():
    """Plain assertions on the ends of the range, each of them under jit."""
    _check_named_rows()
    _check_scaled_rows()
    _check_infinite_rows()
    _check_binary_extremes()


def _loss_and_gradient(x, label):
    x = jnp.asarray(x, jnp.float32)[None]
    loss, gradient = losses_and_gradients(x, jnp.array([label]))
    return float(loss[0]), np.asarray(gradient[0], np.float64)


def _check_named_rows():
    loss, gradient = _loss_and_gradient([20.0, 0.0, 0.0], 0)
    np.testing.assert_allclose(loss, 4.1223072e-09, rtol=FLOAT32)
    np.testing.assert_allclose(gradient, [-4.1223072e-09, 2.0611536e-09, 2.0611536e-09], FLOAT32)
    loss, gradient = _loss_and_gradient([1e6 + 2, 1e6 - 1], 0)
    np.testing.assert_allclose(loss, 0.04858735, rtol=FLOAT32)  # and not 0.0625
    np.testing.assert_allclose(gradient, [-0.04742587, 0.04742587], rtol=FLOAT32)
    loss, gradient = _loss_and_gradient([1e8, 1e8], 0)
    np.testing.assert_allclose(loss, np.log(2.0), rtol=FLOAT32)
    np.testing.assert_allclose(gradient, [-0.5, 0.5], rtol=FLOAT32)
    loss, gradient = _loss_and_gradient([0.0, 100.0], 0)
    np.testing.assert_allclose(loss, 100.0, rtol=FLOAT32)
    np.testing.assert_allclose(gradient, [-1.0, 1.0], rtol=FLOAT32)
    # One class: certain, with nothing to be learnt.
    loss, gradient = _loss_and_gradient([-3.0], 0)
    assert loss == 0.0
    assert gradient[0] == 0.0
    # One-hot labels are as accurate.
    hot = jax.jit(jax.value_and_grad(js.cross_entropy))(
        jnp.array([20.0, 0.0, 0.0]), jnp.array([1.0, 0.0, 0.0])
    )
    np.testing.assert_allclose(hot[0], 4.1223072e-09, rtol=FLOAT32)
    np.testing.assert_allclose(hot[1], [-4.1223072e-09, 2.0611536e-09, 2.0611536e-09], FLOAT32)
    np.testing.assert_allclose(
        jax.jit(js.log_softmax)(jnp.array([40.0, 0.0])), [-4.248354e-18, -40.0], rtol=FLOAT32
    )


def _check_scaled_rows():
    """Differences of 1e30 leave one class; differences of 1e-30 none that stands out."""
    a = np.random.default_rng(0).standard_normal((4, 6))
    for scale in (1e4, 1e30, 1e38):
        x = jnp.asarray(a * scale, jnp.float32)
        exact = np.asarray(x, np.float64)
        best = exact.argmax(-1)
        one_hot = np.eye(6)[best]
        np.testing.assert_array_equal(jax.jit(js.softmax)(x), one_hot)
        np.testing.assert_array_equal(jax.jit(js.logsumexp)(x), x.max(-1))
        np.testing.assert_allclose(
            jax.jit(js.log_softmax)(x), oracles.log_softmax(x), rtol=FLOAT32, atol=0.0
        )
        for label in range(6):
            losses, gradients = losses_and_gradients(x, labels_of(x, label))
            np.testing.assert_allclose(losses, exact.max(-1) - exact[:, label], rtol=FLOAT32)
            np.testing.assert_array_equal(gradients, one_hot - np.eye(6)[label])
    for scale in (1e-4, 1e-30, 1e-40):
        x = jnp.asarray(a * scale, jnp.float32)
        np.testing.assert_allclose(jax.jit(js.softmax)(x), oracles.softmax(x), rtol=FLOAT32)
        losses, gradients = losses_and_gradients(x, labels_of(x))
        expected = oracles.cross_entropy(x, labels_of(x), reduction="none")
        np.testing.assert_allclose(losses, expected, rtol=FLOAT32)
        expected = oracles.cross_entropy_gradient(x, labels_of(x))
        np.testing.assert_allclose(gradients, expected, rtol=FLOAT32)


def _check_infinite_rows():
    inf = np.inf
    # logits, label, loss, gradient
    cases = [
        ([20.0, -inf, 0.0], 0, 2.0611536e-09, [-2.0611536e-09, 0.0, 2.0611536e-09]),
        ([0.0, -inf, 0.0], 1, inf, [0.5, 0.0, 0.5]),
        ([-inf, -inf, -inf], 0, inf, [0.0, 0.0, 0.0]),
        ([-inf, 5.0, -inf], 1, 0.0, [0.0, 0.0, 0.0]),
        ([0.0, inf, 0.0], 1, 0.0, [0.0, 0.0, 0.0]),
        ([0.0, inf, 0.0], 0, inf, [0.0, 0.0, 0.0]),
        ([inf, inf, 0.0], 0, np.log(2.0), [0.0, 0.0, 0.0]),
    ]
    for x, label, expected, slope in cases:
        loss, gradient = _loss_and_gradient(x, label)
        np.testing.assert_allclose(loss, expected, rtol=FLOAT32, err_msg=str((x, label)))
        np.testing.assert_allclose(gradient, slope, rtol=FLOAT32, err_msg=str((x, label)))


LARGEST = float(jnp.finfo(jnp.float32).max)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "one-hot"])
@pytest.mark.parametrize(
    ("logits", "label", "expected", "slope"),
    [
        ([-LARGEST] * 3, 1, np.log(3.0), [1 / 3, -2 / 3, 1 / 3]),
        ([-LARGEST, 0.0, 0.0], 1, np.log(2.0), [0.0, -0.5, 0.5]),
        ([-LARGEST, 0.0, 0.0], 0, LARGEST, [-1.0, 0.5, 0.5]),
        ([LARGEST, 0.0, 0.0], 0, 0.0, [0.0, 0.0, 0.0]),
        ([LARGEST, 0.0, 0.0], 1, LARGEST, [1.0, -1.0, 0.0]),
        ([LARGEST, LARGEST, 0.0], 0, np.log(2.0), [-0.5, 0.5, 0.0]),
    ],
    ids=["lowest", "lowest elsewhere", "lowest at y", "largest at y", "largest", "two largest"],
)
def test_the_ends_of_float32_are_numbers(logits, label, expected, slope, soft):
    """The lowest number is what masks are often filled with; a row of it is uniform, not empty."""
    y = jnp.eye(3)[label] if soft else jnp.array(label)
    loss, gradient = jax.value_and_grad(js.cross_entropy)(jnp.array(logits), y)
    np.testing.assert_allclose(loss, expected, rtol=FLOAT32)
    np.testing.assert_allclose(gradient, slope, rtol=FLOAT32)


def _check_binary_extremes():
    x = jnp.array([30.0, -30.0, 1e30, -1e30, 1e30, -1e30, 0.0, jnp.inf, -jnp.inf])
    y = jnp.array([1, 0, 1, 0, 0, 1, 1, 1, 0])
    losses = jax.jit(partial(js.binary_cross_entropy, reduction="none"))(x, y)
    tiny = 9.357623e-14
    np.testing.assert_allclose(losses, [tiny, tiny, 0, 0, 1e30, 1e30, np.log(2), 0, 0], FLOAT32)
    sums = jax.jit(jax.grad(partial(js.binary_cross_entropy, reduction="sum")))
    slopes = [-tiny, tiny, 0, 0, 1, -1, -0.5, 0, 0]
    np.testing.assert_allclose(sums(x, y), slopes, rtol=FLOAT32)


def test_extremes():
    check_extremes()


@pytest.mark.exhaustive  # the default run does so in `test_extremes`
def test_extremes_without_compiler_optimisation():
    """The same numbers from a backend that rewrites nothing: no result rests on a rewrite."""
    here = pathlib.Path(__file__).parent
    paths = [str(here), str(pathlib.Path(js.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [sys.executable, "-c", "import test_accuracy; test_accuracy.check_extremes()"],
        env=environment,
        cwd=here,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
