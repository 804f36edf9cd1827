"""Inputs that users of this and other libraries have reported, and what they should give."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify, sparse
from jax.experimental.jet import jet
from loss_cases import compiled

import jaxsoftmax as js
from jaxsoftmax import closed_form

ROW_OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-3},
    "temperature": {"temperature": 0.5},
}


@pytest.mark.exhaustive(every=4, cover=False)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(12, 700), (16, 32000)], ids=str)
def test_a_nan_in_a_long_row_stays_one(shape, dtype):
    """In loops over such rows XLA:CPU's max and min drop it (JAX 0.12: jnp.max(x) is a number)."""
    rows, classes = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(3.0 * rng.normal(size=shape), dtype)
    y = jnp.asarray(rng.integers(0, classes, rows), jnp.int32)
    position = rng.integers(0, classes, 4)
    broken = np.array([3, 5, 6, 9])
    x = x.at[broken, position].set(jnp.nan)
    y = y.at[5].set(position[1])  # once the label itself
    x = x.at[9, (position[3] + 1) % classes].set(jnp.inf)  # once beside an infinite one
    # There, a loss is +inf as beside any infinite logit.
    sound = np.setdiff1d(np.arange(rows), broken)

    def check(rows_of):
        found = [np.asarray(z, np.float64) for z in jax.tree.leaves(jax.jit(rows_of)(x))]
        for z in found:
            axes = tuple(range(1, z.ndim))
            assert np.isnan(z[broken[:3]]).any(axis=axes).all()
            assert not np.isfinite(z[broken[3]]).all()
            assert np.isfinite(z[sound]).all()

    losses = {
        name: partial(js.cross_entropy, labels=y, reduction="none", **options)
        for name, options in ROW_OPTIONS.items()
    }
    soft = jax.nn.one_hot(y, classes, dtype=dtype)
    losses["soft"] = partial(js.cross_entropy, labels=soft, reduction="none")
    target = jnp.zeros(shape, dtype)
    losses["kl"] = lambda x: js.kl_divergence(x, target, reduction="none")
    losses["js"] = lambda x: js.kl_divergence(target, x, beta=0.5, reduction="none")
    for f in (js.softmax, js.log_softmax, js.logsumexp, *losses.values()):
        check(f)
        check(jax.grad(lambda x, f=f: f(x).astype(jnp.float32).sum()))
    statistics = js.cross_entropy(x, y, return_statistics=True)[1]
    for field in ("log_prob", "logsumexp", "entropy", "predicted_log_prob"):
        check(lambda x, field=field: getattr(statistics, field))


@pytest.mark.parametrize("classes", [700, 32000])
def test_infinite_logits_in_a_long_row_share_it(classes):
    x = np.asarray(3.0 * np.random.default_rng(0).normal(size=(64, classes)), np.float32)
    x[0, [3, 600, 17]] = np.inf
    x[1, 5] = np.inf
    p = jax.jit(js.softmax)(x)
    np.testing.assert_allclose(np.sort(p[0])[-4:], [0.0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(js.log_softmax)(x)[0, 17], -np.log(3.0), rtol=1e-6)
    loss = partial(js.cross_entropy, reduction="none")
    y = jnp.zeros(64, jnp.int32).at[0].set(600).at[1].set(5)
    np.testing.assert_allclose(jax.jit(loss)(x, y)[:2], [np.log(3.0), 0.0], rtol=1e-6)
    for f in (js.softmax, js.log_softmax, js.logsumexp, partial(loss, labels=y)):
        gradient = jax.jit(jax.grad(lambda x, f=f: f(x)[:2].reshape(2, -1)[:, 0].sum()))(x)
        np.testing.assert_array_equal(gradient[:2], 0.0)


@pytest.mark.parametrize("label", [7, -1, 3])
def test_the_closed_form_of_a_label_that_is_no_class_is_nan(label):
    x = jnp.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    labels = jnp.array([label, 2])
    gradient = closed_form.cross_entropy_gradient(x, labels)
    assert np.isnan(gradient[0]).all()
    expected = jax.grad(lambda x: js.cross_entropy(x, labels, reduction="sum"))(x)[1] / 2
    np.testing.assert_allclose(gradient[1], expected, rtol=1e-6)


@pytest.mark.parametrize("excess", [2.0**-23, 1e-5])
def test_a_binary_label_one_rounding_beyond_1(excess):
    """A sum of class probabilities, a cubic resize: at logit 2, log(1 + exp(-2))."""
    x = jnp.array([2.0])
    for y, expected in ((1.0 + 0.9 * excess, 0.126928), (-0.9 * excess, 2.126928)):
        loss, gradient = jax.value_and_grad(js.binary_cross_entropy)(x, jnp.array([y]))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("label", [1.0001, -0.0001, 2.0, np.nan])
def test_a_binary_label_further_beyond_is_nan(label):
    assert np.isnan(js.binary_cross_entropy(jnp.array([2.0]), jnp.array([label])))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_the_gradient_of_a_binary_label_at_the_ends(label):
    """-x, also at 0 and 1 themselves."""
    gradient = jax.grad(lambda y: js.binary_cross_entropy(jnp.array([2.0]), y))
    np.testing.assert_allclose(gradient(jnp.array([label])), [-2.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_no_axis_is_all_axes(name):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    f = getattr(js, name)
    np.testing.assert_array_equal(f(x, axis=None), f(x, axis=(0, 1, 2)))
    expected = {"softmax": jax.nn.softmax, "log_softmax": jax.nn.log_softmax}
    peer = expected.get(name, jax.nn.logsumexp)(x, axis=(0, 1, 2))
    np.testing.assert_allclose(f(x, axis=None), peer, rtol=2e-6)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(f(x, axis=None))))(x)
    assert gradient.shape == x.shape
    assert np.isfinite(gradient).all()


# --- counts beyond int32 --------------------------------------------------------------------------

BILLIONS = np.int64(3_000_000_000)


def test_numpy_s_64_bit_integers_are_quantities():
    """3e9 as a divisor, as a weight and as a soft label is not what 32 bits hold of it."""
    x, y = jnp.array([[3e9, 0.0]]), np.array([1])
    loss = js.cross_entropy(x, y, denominator=BILLIONS)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-6)
    two = jnp.zeros((2, 2))
    weights = np.array([BILLIONS, 1])
    losses = js.cross_entropy(two, np.array([0, 1]), example_weights=weights, reduction="none")
    np.testing.assert_allclose(losses, np.log(2) * np.array([3e9, 1.0]), rtol=1e-6)
    soft = js.cross_entropy(jnp.zeros((1, 2)), np.array([[BILLIONS, 0]]), reduction="sum")
    np.testing.assert_allclose(soft, 3e9 * np.log(2), rtol=1e-6)
    entries = js.binary_cross_entropy(
        jnp.zeros(2), jnp.zeros(2), example_weights=weights, reduction="sum"
    )
    np.testing.assert_allclose(entries, (3e9 + 1) * np.log(2), rtol=1e-6)


# --- smoothing of 1, weights that broadcast -------------------------------------------------------


@pytest.mark.parametrize("linear", [False, True])
def test_smoothing_of_one_knows_no_label(linear):
    """As in PyTorch: 1.4076 for [1, 2, 3], whatever the label, an impossible one included."""
    x = jnp.array([[1.0, 2.0, 3.0]])

    def loss(x, label, **options):
        if linear:
            return js.linear_cross_entropy(x, jnp.eye(3), label, label_smoothing=1.0, **options)
        return js.cross_entropy(x, label, label_smoothing=1.0, **options)

    p = np.exp(x[0]) / np.exp(x[0]).sum()
    for label in (0, 2):
        value, gradient = jax.value_and_grad(loss)(x, jnp.array([label]))
        np.testing.assert_allclose(value, 1.4076059, rtol=1e-6)
        np.testing.assert_allclose(gradient[0], p - 1 / 3, rtol=1e-5, atol=1e-7)
    where = jnp.array([True, True, False])
    value, gradient = jax.value_and_grad(loss)(x, jnp.array([2]), where=where)
    np.testing.assert_allclose(value, np.log1p(np.exp(-1.0)) + 0.5, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_smoothing_of_one_of_a_binary_label():
    value = js.binary_cross_entropy(jnp.array([2.0]), jnp.array([1.0]), label_smoothing=1.0)
    np.testing.assert_allclose(value, np.log1p(np.exp(-2.0)) + 1.0, rtol=1e-6)


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("weights", [[[1.0], [0.0]], [[0.5, 0.0, 2.0]], 2.0, [[True], [False]]])
def test_example_weights_broadcast_to_the_batch(weights, linear):
    """[B, 1] to [B, T]: what whole weights give, value and gradients."""
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(2, 3, 4)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 4, (2, 3)))
    weights = jnp.asarray(weights)

    def loss(x, weights):
        if linear:
            return js.linear_cross_entropy(x, jnp.eye(4), labels, example_weights=weights)
        return js.cross_entropy(x, labels, example_weights=weights)

    whole = jnp.broadcast_to(weights, (2, 3))
    f = compiled(jax.value_and_grad(loss))
    found, expected = f(x, weights), f(x, whole)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    if weights.dtype != bool:
        of_weights = compiled(jax.grad(loss, 1))(x, weights)
        assert of_weights.shape == weights.shape


# --- extremes of options --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("temperature", 1e-39), ("soft_cap", 1e39)])
def test_options_that_float32_does_not_hold(name, value):
    """A temperature of 1e-39 gave 0.6931 for [1, 2], a cap of 1e39 NaN: both are refused."""
    with pytest.raises(ValueError, match=rf"{name} must be a finite number > 0, normal in float32"):
        js.cross_entropy(jnp.array([[1.0, 2.0]]), np.array([1]), **{name: value})


TEMPERED = [([1e6 + 2, 1e6 - 1], 0.0136699), ([1000.3, 997.1, 998.0], 0.04665216)]


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("implementation", [None, "chunked", "streamed", "reference"])
@pytest.mark.parametrize(("row", "expected"), TEMPERED)
def test_a_temperature_divides_differences(row, expected, implementation):
    """1e6 + 2 divided by 0.7 is rounded to 0.06."""
    x, y = jnp.array([row], jnp.float32), jnp.array([0])

    def loss(x):
        if implementation is None:
            return js.cross_entropy(x, y, temperature=0.7)
        options = {"implementation": implementation, "temperature": 0.7}
        return js.linear_cross_entropy(jnp.ones((1, 1)), x, y, **options)

    value, gradient = jax.value_and_grad(loss)(x)
    np.testing.assert_allclose(value, expected, rtol=5e-6)
    np.testing.assert_allclose(gradient[0, 0], np.expm1(-expected) / 0.7, rtol=5e-6)
    one_hot = jnp.eye(len(row))[:1]
    np.testing.assert_allclose(js.cross_entropy(x, one_hot, temperature=0.7), value, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.3, 30.0])
@pytest.mark.parametrize("margin", [20.0, 40.0, 60.0, 75.0])
def test_a_small_loss_at_a_temperature(margin, temperature):
    """Full relative accuracy, the rounding of the temperature itself included."""
    x = np.array([[margin * temperature, 0.3, -0.2]], np.float32)
    at = [mpmath.mpf(float(v)) / mpmath.mpf(temperature) for v in x[0]]
    expected = mpmath.log1p(sum(mpmath.exp(v - at[0]) for v in at[1:]))
    value, gradient = jax.value_and_grad(js.cross_entropy)(
        x, np.array([0]), temperature=temperature
    )
    assert abs(float(value) / expected - 1) < 3e-7
    assert abs(float(gradient[0, 0]) * temperature / mpmath.expm1(-expected) - 1) < 4e-7


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_an_infinite_weight_of_a_class_without_mass(soft, linear):
    """[1, 0, 2] without its last class, smoothed: what any finite weight of that class gives."""
    x, where = jnp.array([[1.0, 0.0, 2.0]]), jnp.array([True, True, False])
    labels = jnp.array([[1.0, 0.0, 0.0]]) if soft else jnp.array([0])

    def loss(x, weights):
        options = {"where": where, "label_smoothing": 0.1, "class_weights": weights}
        if linear:
            return js.linear_cross_entropy(x, jnp.eye(3), labels, reduction="sum", **options)
        return js.cross_entropy(x, labels, reduction="sum", **options)

    found = jax.value_and_grad(loss)(x, jnp.array([0.5, 0.5, np.inf]))
    expected = jax.value_and_grad(loss)(x, jnp.array([0.5, 0.5, 1.0]))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[0], 0.5 * 0.363262, rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


# --- formats of 8 bits and 4 ----------------------------------------------------------------------

NARROW = [
    "float8_e4m3fn",
    "float8_e4m3b11fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float4_e2m1fn",
]


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("name", NARROW)
def test_formats_without_infinities(name):
    """[1, 2, 3]: widened before a class is excluded by -inf, and before anything is rounded."""
    dtype = getattr(jnp, name)
    x = jnp.array([[1.0, 2.0, 3.0]]).astype(dtype)
    where = jnp.array([True, True, False])
    loss, gradient = jax.value_and_grad(js.cross_entropy)(x, np.array([1]))
    np.testing.assert_allclose(loss, 1.4076059, rtol=1e-6)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(js.logsumexp(x), [3.4076059], rtol=1e-6)
    masked = js.cross_entropy(x, np.array([1]), where=where)
    np.testing.assert_allclose(masked, 0.3132617, rtol=1e-6)
    for f, options in ((js.log_softmax, {}), (js.softmax, {"where": where})):
        expected = f(x.astype(jnp.float32), **options).astype(dtype)
        found = f(x, **options)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.astype(jnp.float32), expected.astype(jnp.float32))
    entries = js.binary_cross_entropy(x, jnp.array([[1, 0, 1]]))
    np.testing.assert_allclose(entries, 0.8295924, rtol=1e-6)
    log_probs = js.nll_loss(-x, np.array([1]))
    np.testing.assert_allclose(log_probs, 2.0, rtol=1e-6)


@pytest.mark.exhaustive(every=9, cover=False)
@pytest.mark.parametrize("implementation", ["chunked", "streamed", "reference"])
@pytest.mark.parametrize("kernel_dtype", ["same", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_hidden_states_of_8_bits(name, kernel_dtype, implementation):
    """2 on the diagonal, each label its own class; gradients in each argument's dtype."""
    dtype = getattr(jnp, name)
    hidden = jnp.eye(3).astype(dtype)
    kernel = (2 * jnp.eye(3)).astype(dtype if kernel_dtype == "same" else kernel_dtype)

    def loss(hidden, kernel):
        return js.linear_cross_entropy(
            hidden, kernel, np.arange(3), implementation=implementation, reduction="sum"
        )

    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, kernel)
    np.testing.assert_allclose(value, 3 * 0.2395448, rtol=1e-6)
    p = np.exp(2) / (np.exp(2) + 2)
    delta = (1 - p) / 2 * np.ones((3, 3)) - 1.5 * (1 - p) * np.eye(3)
    for x, gradient, scale in zip((hidden, kernel), gradients, (2.0, 1.0), strict=True):
        assert gradient.dtype == x.dtype
        expected = jnp.asarray(scale * delta).astype(jnp.bfloat16).astype(x.dtype)
        found = gradient.astype(jnp.float32)
        np.testing.assert_allclose(found, expected.astype(jnp.float32), rtol=1e-2, atol=1e-6)


# --- export ---------------------------------------------------------------------------------------


def exported(f, *arguments):
    """Through bytes, with its derivative."""
    made = export.export(jax.jit(f))(*arguments)
    return export.deserialize(made.serialize(vjp_order=1))


def test_a_symbolic_batch_with_statistics():
    (n,) = export.symbolic_shape("n")
    shapes = (
        jax.ShapeDtypeStruct((n, 5), jnp.float32),
        jax.ShapeDtypeStruct((5, 7), jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.int32),
    )

    def loss(h, w, y):
        loss, found = js.linear_cross_entropy(h, w, y, return_statistics=True)
        return loss + jnp.sum(found.entropy)

    def of_logits(h, w, y):
        loss, found = js.cross_entropy(h @ w, y, return_statistics=True)
        return loss + jnp.sum(found.entropy)

    random = np.random.default_rng(0)
    h = random.normal(size=(6, 5)).astype(np.float32)
    w = random.normal(size=(5, 7)).astype(np.float32)
    y = np.arange(6, dtype=np.int32)

    logits = np.float64(h) @ w
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p, entropy = np.exp(log_p), -np.sum(np.exp(log_p) * log_p, axis=-1)
    delta = (p - np.eye(6, 7)) / 6 - p * (log_p + entropy[:, None])
    expected = (entropy.sum() - np.trace(log_p) / 6, delta @ w.T, h.T @ delta)
    for f in map(partial(jax.value_and_grad, argnums=(0, 1)), (loss, of_logits)):
        for of in (exported(f, *shapes).call, jax.jit(f)):
            for x, value in zip(jax.tree.leaves(of(h, w, y)), expected, strict=True):
                np.testing.assert_allclose(x, value, rtol=1e-6, atol=1e-6)


def test_a_symbolic_number_of_classes():
    """A contrastive loss over a batch of n, and reductions over time."""
    (n,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n, 5), jnp.float32)
    q = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)

    def contrastive(q):
        return js.cross_entropy(q @ q.T, jnp.arange(q.shape[0]), temperature=0.1)

    def fused(q):
        return js.linear_cross_entropy(q, q.T, jnp.arange(q.shape[0]))

    def over_time(q):
        return [f(q, axis=0) for f in (js.logsumexp, js.softmax, js.log_softmax)]

    for f in (jax.value_and_grad(contrastive), jax.value_and_grad(fused), over_time):
        for found, expected in zip(exported(f, shape).call(q), jax.jit(f)(q), strict=True):
            np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-7)


# --- arguments that are no arrays -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "cross_entropy", "linear", "class_weights", "labels"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((2, 3), ">f4"), "dtype >f4"),
        (np.zeros((2, 3), object), r"dtype \|O"),
        (np.zeros((2, 3), np.longdouble), "dtype <f16"),
        (np.full((2, 3), "a"), "dtype <U1"),
        (sparse.BCOO.fromdense(jnp.zeros((2, 3))), "a BCOO"),
    ],
    ids=["big-endian", "object", "long double", "string", "sparse"],
)
def test_arrays_that_jax_cannot_hold(name, value, said):
    x, y = jnp.zeros((2, 3)), np.array([0, 1])
    calls = {
        "softmax": ("logits", lambda: js.softmax(value)),
        "cross_entropy": ("logits", lambda: js.cross_entropy(value, y)),
        "linear": ("hidden", lambda: js.linear_cross_entropy(value, jnp.eye(3), y)),
        "class_weights": ("class_weights", lambda: js.cross_entropy(x, y, class_weights=value)),
        "labels": ("labels", lambda: js.cross_entropy(x, value)),
    }
    argument, call = calls[name]
    with pytest.raises(
        TypeError, match=f"{argument} must be an array that JAX can hold, got {said}"
    ):
        call()


def test_a_dictionary_of_weights():
    with pytest.raises(TypeError, match="class_weights must be an array, got a dict"):
        js.cross_entropy(jnp.eye(2), np.array([0, 1]), class_weights={0: 1.0, 1: 2.0})


@pytest.mark.parametrize("f", [js.softmax, js.log_softmax, js.logsumexp])
def test_taylor_mode_says_what_to_do(f):
    x = jnp.ones((1, 3))
    with pytest.raises(TypeError, match=r"jax\.experimental\.jet.*nest jax\.jvp"):
        jet(f, (x,), ((x, x),))


@pytest.mark.parametrize("implementation", ["chunked", "streamed", "reference"])
def test_no_features(implementation):
    """The logits are 0, or the bias."""
    h, w, y = jnp.zeros((3, 0)), jnp.zeros((0, 5)), np.arange(3)

    def loss(h, w, b):
        return js.linear_cross_entropy(h, w, y, b, implementation=implementation)

    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(h, w, jnp.zeros(5))
    np.testing.assert_allclose(value, np.log(5), rtol=1e-6)
    assert [g.shape for g in gradients] == [(3, 0), (0, 5), (5,)]
    np.testing.assert_allclose(gradients[2], [-2 / 15] * 3 + [1 / 5] * 2, rtol=1e-5)


def test_the_package_can_be_imported_again():
    script = (
        "import sys, jaxsoftmax\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'jaxsoftmax']:\n"
        "    del sys.modules[name]\n"
        "import jaxsoftmax, numpy\n"
        "print(jaxsoftmax.cross_entropy(numpy.zeros((1, 2), 'f4'), numpy.array([0])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("0.6931")


# --- several axes, several ignored labels, an axis without classes --------------------------------


def test_two_class_axes_with_a_distribution():
    """Zeros [2, 3, 4] over the last two: log 12. As one axis of 12 otherwise."""
    uniform = jnp.full((2, 3, 4), 1 / 12)
    loss = js.cross_entropy(jnp.zeros((2, 3, 4)), uniform, axis=(1, 2))
    np.testing.assert_allclose(loss, 2.4849066, rtol=1e-6)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 3, 4)), jnp.float32)
    y = jnp.asarray(random.dirichlet(np.ones(8), size=3).reshape(3, 4, 2).transpose(2, 0, 1))
    y, where = y.astype(jnp.float32), jnp.asarray(random.random((2, 3, 4)) < 0.9)
    weights = jnp.asarray(random.random((4, 2)), jnp.float32)
    y = jnp.where(where, y, 0.0)

    def several(x):
        return js.cross_entropy(
            x, y, axis=(2, 0), where=where, class_weights=weights, label_smoothing=0.1
        )

    def flat(x):
        x, labels, mask = (a.transpose(1, 2, 0).reshape(3, 8) for a in (x, y, where))
        return js.cross_entropy(
            x, labels, where=mask, class_weights=weights.reshape(8), label_smoothing=0.1
        )

    found, expected = (jax.value_and_grad(f)(x) for f in (several, flat))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6, atol=1e-8)
    log_probs = js.log_softmax(x, axis=(2, 0))
    of_log_probs = js.nll_loss(log_probs, y, axis=(2, 0))
    np.testing.assert_allclose(of_log_probs, js.cross_entropy(x, y, axis=(2, 0)), rtol=1e-6)


@pytest.mark.parametrize("linear", [False, True])
def test_several_ignored_labels(linear):
    x, labels = jnp.eye(4), np.array([1, -100, 3, -1])

    def losses(x, **options):
        if linear:
            return js.linear_cross_entropy(x, jnp.eye(4), labels, **options)
        return js.cross_entropy(x, labels, **options)

    found = losses(x, ignore_index=(-100, -1), reduction="none")
    kept = np.array([True, False, True, False])
    assert (found[~kept] == 0.0).all()
    expected = losses(x, example_weights=kept, reduction="none")
    np.testing.assert_array_equal(found, expected)
    gradient = jax.grad(lambda x: losses(x, ignore_index=(-1, -100)))(x)
    assert (gradient[~kept] == 0.0).all()
    np.testing.assert_allclose(losses(x, ignore_index=(-1, -100)), np.sum(expected) / 2, rtol=1e-6)


@pytest.mark.parametrize("labels", [[[1, 0, 255]], [[1.0, 0.0, 255.0]]])
def test_ignored_entries_of_a_binary_loss(labels):
    x = jnp.array([[2.0, -1.0, 0.3]])
    y = jnp.array(labels)
    loss, gradient = jax.value_and_grad(js.binary_cross_entropy)(x, y, ignore_index=255)
    np.testing.assert_allclose(loss, 0.2200949, rtol=1e-6)
    assert gradient[0, 2] == 0.0
    x = x.at[0, 2].set(np.nan)
    loss, gradient = jax.value_and_grad(js.binary_cross_entropy)(x, y, ignore_index=(255, -1))
    np.testing.assert_allclose(loss, 0.2200949, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_an_axis_without_classes_is_an_empty_slice():
    """As in jax.nn."""
    x = jnp.zeros((5, 0))
    for f in (js.softmax, js.log_softmax):
        assert f(x).shape == (5, 0)
        assert jax.grad(lambda x, f=f: jnp.sum(f(x)))(x).shape == (5, 0)
    np.testing.assert_array_equal(js.logsumexp(x), [-np.inf] * 5)
    np.testing.assert_array_equal(js.logsumexp(jnp.zeros((3, 0, 2)), axis=(0, 1)), [-np.inf] * 2)
    assert js.softmax(jnp.zeros((3, 0, 2)), axis=1).shape == (3, 0, 2)


# --- 0 against infinity and NaN -------------------------------------------------------------------


@pytest.mark.parametrize("partner", [np.inf, np.nan])
def test_a_weight_of_zero_adds_nothing(partner):
    """Of a class, a label or a positive term, whatever stands beside it."""
    x = jnp.array([[1.0, 0.0, 2.0]])
    two = js.cross_entropy(x, jnp.array([[0.5, 0.5, 0.0]]), reduction="sum")
    labels = jnp.array([[0.5, 0.5, partner]])
    found = js.cross_entropy(x, labels, class_weights=jnp.array([1.0, 1.0, 0.0]), reduction="sum")
    np.testing.assert_allclose(found, two, rtol=1e-6)
    labels, weights = jnp.array([[0.5, 0.5, 0.0]]), jnp.array([1.0, 1.0, partner])
    found = js.cross_entropy(x, labels, class_weights=weights, reduction="sum")
    np.testing.assert_allclose(found, two, rtol=1e-6)
    found = js.cross_entropy(x, labels * partner, label_smoothing=1.0)
    np.testing.assert_allclose(found, js.logsumexp(x)[0] - 1.0, rtol=1e-6)
    found = js.binary_cross_entropy(x, jnp.zeros((1, 3)), pos_weight=jnp.full(3, partner))
    np.testing.assert_allclose(found, jnp.mean(jnp.log1p(jnp.exp(x))), rtol=1e-6)
    weights = jnp.array([1.0, partner, 1.0])
    mask = jnp.array([1.0, 0.0])
    found = js.cross_entropy(
        jnp.concatenate([x, x]), np.array([0, 1]), class_weights=weights, example_weights=mask
    )
    np.testing.assert_allclose(found, js.cross_entropy(x, np.array([0])), rtol=1e-6)


# --- what debug_checks reports --------------------------------------------------------------------


def reported(f, *arrays):
    with js.debug_checks(True):
        error, _ = checkify.checkify(f)(*arrays)
    return error.get()


@pytest.mark.parametrize("linear", [False, True])
def test_class_ids_in_the_shape_of_the_logits(linear):
    """They would count as a distribution of mass 12."""

    def loss(y, **options):
        if linear:
            return js.linear_cross_entropy(jnp.zeros((2, 3)), jnp.eye(3), y, **options)
        return js.cross_entropy(jnp.zeros((2, 3)), y, **options)

    ids = jnp.array([[0, 5, 7], [1, 1, 1]])
    assert "must be 0 or 1, got 5" in reported(loss, ids)
    assert "must be 0 or 1, got 5" in reported(jax.jit(loss), ids)
    assert reported(loss, jnp.array([[0, 1, 0], [1, 1, 1]])) is None
    masked = partial(loss, example_weights=jnp.array([False, True]))
    assert reported(masked, ids) is None


def test_probabilities_for_log_probabilities():
    p = jnp.array([[0.2, 0.8], [0.5, 0.5]])
    y = np.array([0, 1])
    loss = partial(js.nll_loss, labels=y)
    assert "log_probs are all in [0, 1]" in reported(loss, p)
    assert "log_probs are all in [0, 1]" in reported(jax.grad(loss), p)
    assert reported(loss, jnp.log(p)) is None
    assert reported(lambda x: js.nll_loss(x, np.array([0])), jnp.zeros((1, 1))) is None
