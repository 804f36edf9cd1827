"""kl_divergence against 50 digits, its derivatives against float64, and its edges."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from loss_cases import compiled
from test_debugging import checked

import jaxsoftmax as js

INF = float("inf")
BETAS = (0.0, 0.25, 0.5, 1.0)
each_beta = pytest.mark.parametrize(
    "beta", [0.0, 0.25, pytest.param(0.5, marks=pytest.mark.exhaustive), 1.0]
)
_random = np.random.default_rng(5)
X, Y = _random.normal(size=(2, 4, 6))


def distribution(row, temperature=1.0):
    """Softmax with as many digits as mpmath has."""
    e = [mpmath.exp(mpmath.mpf(float(v)) / temperature) if v > -INF else 0 for v in row]
    return [v / sum(e) for v in e]


def exact(x, y, beta=0.0, temperature=1.0):
    """With 50 digits, of one row each."""
    with mpmath.workdps(50):

        def divergence(a, b):
            if any(u > 0 and v == 0 for u, v in zip(a, b, strict=True)):
                return mpmath.inf
            return sum(u * mpmath.log(u / v) for u, v in zip(a, b, strict=True) if u > 0)

        p, q = distribution(y, temperature), distribution(x, temperature)
        if beta == 0.0:
            return divergence(p, q)
        if beta == 1.0:
            return divergence(q, p)
        b = mpmath.mpf(beta)
        m = [b * u + (1 - b) * v for u, v in zip(p, q, strict=True)]
        return b * divergence(p, m) + (1 - b) * divergence(q, m)


def definition(x, y, beta, temperature):
    """As a textbook writes it, in float64."""
    log_p, log_q = jax.nn.log_softmax(y / temperature), jax.nn.log_softmax(x / temperature)

    def divergence(log_a, log_b):
        return jnp.sum(jnp.exp(log_a) * (log_a - log_b), axis=-1)

    if beta in (0.0, 1.0):
        return jnp.mean(divergence(*((log_p, log_q) if beta == 0.0 else (log_q, log_p))))
    log_m = jnp.log(beta * jnp.exp(log_p) + (1 - beta) * jnp.exp(log_q))
    return jnp.mean(beta * divergence(log_p, log_m) + (1 - beta) * divergence(log_q, log_m))


@pytest.mark.exhaustive(every=7, cover=False)
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("noise", [3.0, 0.3, 1e-2, 1e-4, 1e-6])
@each_beta
def test_relative_accuracy(beta, noise, offset):
    """However close the rows are: the divergences go down to 1e-13."""
    y = (3 * _random.normal(size=(1, 200))).astype(np.float32)
    x = (y + offset + noise * _random.normal(size=y.shape)).astype(np.float32)
    found, expected = float(js.kl_divergence(x, y, beta=beta)), exact(x[0], y[0], beta)
    assert abs(found / expected - 1) < 2e-6


def test_equal_logits_are_exactly_0():
    x = jnp.asarray(X, jnp.float32)
    for beta in BETAS:
        f = jax.value_and_grad(partial(js.kl_divergence, beta=beta), (0, 1))
        value, gradients = jax.jit(f)(x, x)
        assert value == 0.0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0.0)


@cache
def everything_of(f, beta):
    """Value, gradients of both and of the temperature, and a product with the Hessian."""
    arguments = (0, 1, 2)

    def everything(at, dots):
        g = lambda x, y, t: f(x, y, beta=beta, temperature=t)  # noqa: E731
        return jax.value_and_grad(g, arguments)(*at), jax.jvp(jax.grad(g, arguments), at, dots)[1]

    return compiled(everything)


@pytest.mark.exhaustive(every=7, cover=False)
@each_beta
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("close", [1.0, 1e-3])
def test_derivatives(close, temperature, beta):
    with jax.enable_x64(True):
        y, t = jnp.asarray(Y), jnp.asarray(temperature)
        x = y + close * jnp.asarray(X)
        at, dots = (x, y, t), (jnp.cos(x), jnp.sin(y), jnp.asarray(0.3))
        ours, theirs = (everything_of(f, beta)(at, dots) for f in (js.kl_divergence, definition))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def test_the_gradient_of_close_logits_keeps_its_digits():
    y = (3 * _random.normal(size=50)).astype(np.float32)
    x = (y + 1e-5 * _random.normal(size=50)).astype(np.float32)
    found = jax.grad(lambda x: js.kl_divergence(x, y))(x)
    with mpmath.workdps(50):
        p, q = ([mpmath.exp(mpmath.mpf(float(v))) for v in row] for row in (y, x))
        expected = [b / sum(q) - a / sum(p) for a, b in zip(p, q, strict=True)]
    scale = float(max(map(abs, expected)))
    np.testing.assert_allclose(found, [float(v) for v in expected], rtol=0, atol=2e-6 * scale)


EDGES = [
    ([0, 1, 2.0], [0, 1, -INF]),  # a class that the target does not have adds nothing
    ([0, 1, -INF], [0, 1, 2.0]),
    ([0, -INF, -INF], [-INF, 1, 2.0]),  # no class in common
    ([100.0, 0, 0], [0, 0, 100.0]),
    ([3e38, 0, 0], [0, 0, 3e38]),
]


@cache
def checked_for_nan(beta):
    return checked(jax.value_and_grad(partial(js.kl_divergence, beta=beta), (0, 1)))


@pytest.mark.exhaustive(every=3, cover=False)
@each_beta
@pytest.mark.parametrize(("x", "y"), EDGES)
def test_edges(x, y, beta):
    x, y = jnp.array([x], jnp.float32), jnp.array([y], jnp.float32)
    expected = min(float(exact(x[0], y[0], beta)), np.inf)
    error, (value, gradients) = checked_for_nan(beta)(x, y)
    assert error.get() is None
    np.testing.assert_allclose(value, expected, rtol=0.2 if expected > 1e30 else 1e-6)
    assert all(np.isfinite(g).all() for g in gradients)


MASKED = [
    ([-1e9, 1, 0], [0, 0, 0]),  # a class that is likely for the target alone
    ([0, 0, 0], [-1e9, 1, 0]),
    ([1e30, 0, 0], [0, 5, 0]),
    ([1e30, -1e30, 0], [0, 5, 0]),
    ([90, 1, 0], [0, 90, 0.5]),
]


@each_beta
@pytest.mark.parametrize(("x", "y"), MASKED)
def test_rows_whose_largest_classes_are_far_apart(x, y, beta):
    """The classes that both have keep their digits, in value and gradients."""
    x, y = jnp.array([x], jnp.float32), jnp.array([y], jnp.float32)
    f = jax.value_and_grad(partial(js.kl_divergence, beta=beta), (0, 1))
    value, gradients = f(x, y)
    np.testing.assert_allclose(value, float(exact(x[0], y[0], beta)), rtol=3e-7)
    with jax.enable_x64(True):
        wide = (x.astype(jnp.float64), y.astype(jnp.float64))
        expected = jax.grad(definition, (0, 1))(*wide, beta, 1.0)
    of_x, of_y = zip(gradients, expected, strict=True)
    about_mean = {0.0: of_y, 1.0: of_x}.get(beta)  # p (d − Σ p d): relative to d
    for pair in (of_x, of_y):
        scale = max(1.0, float(jnp.abs(x - y).max())) if pair is about_mean else 1.0
        np.testing.assert_allclose(*pair, rtol=0, atol=2e-7 * scale)


@each_beta
def test_rows_without_a_class(beta):
    """Nothing weighs where the distribution that weighs has no class."""
    nothing, some = jnp.full((1, 3), -INF), jnp.array([[1.0, 2.0, 3.0]])
    assert js.kl_divergence(nothing, nothing, beta=beta) == 0.0
    assert js.kl_divergence(some, nothing, beta=0.0) == 0.0
    assert js.kl_divergence(some, nothing, beta=1.0) == np.inf


def test_options():
    """Masks, weights, classes left out, several axes, dtypes."""
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    each = js.kl_divergence(x, y, reduction="none")
    assert each.shape == (4,)
    weights = jnp.array([1.0, 0.0, 2.0, 0.5])
    mean = js.kl_divergence(x, y, example_weights=weights)
    np.testing.assert_allclose(mean, jnp.sum(weights * each) / 3.5, rtol=1e-6)
    total = js.kl_divergence(x, y, reduction="sum")
    np.testing.assert_allclose(js.kl_divergence(x, y, denominator=2.0), total / 2, rtol=1e-6)
    mask = jnp.array([True, False, True, True])
    poisoned = x.at[1].set(jnp.nan)
    value, gradient = jax.value_and_grad(js.kl_divergence)(poisoned, y, example_weights=mask)
    np.testing.assert_allclose(value, jnp.sum(each[mask]) / 3, rtol=1e-6)
    assert (gradient[1] == 0.0).all()
    where = jnp.arange(6) < 4
    found = js.kl_divergence(x, y, where=where)
    np.testing.assert_allclose(found, js.kl_divergence(x[:, :4], y[:, :4]), rtol=1e-6)
    block = js.kl_divergence(x.reshape(4, 2, 3), y.reshape(4, 2, 3), axis=(1, 2))
    np.testing.assert_allclose(block, jnp.mean(each), rtol=1e-6)
    narrow = x.astype(jnp.bfloat16)
    found, gradient = jax.value_and_grad(js.kl_divergence)(narrow, y)
    assert (found.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(found, js.kl_divergence(narrow.astype(jnp.float32), y), rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("raised", [0.5, 3.0])
def test_a_flat_row_of_which_one_class_rises(raised, beta):
    """The other classes' gradients are small, of one sign, and keep their digits."""
    y = (1e-3 * _random.normal(size=(1, 32000))).astype(np.float32)
    x = y.copy()
    x[0, 0] += np.float32(raised)
    q, p = (np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum() for z in (x, y))
    log_ratio = np.log(q / p)
    expected = q - p if beta == 0.0 else q * (log_ratio - (q * log_ratio).sum())
    found = jax.grad(partial(js.kl_divergence, beta=beta))(x, y)
    assert np.abs(found - expected).sum() < 2e-6 * np.abs(expected).sum()


def exact_gradients(x, y, beta):
    """Of the logits and of the target, with 50 digits, of one row each."""
    with mpmath.workdps(50):
        p, q, b = distribution(y), distribution(x), mpmath.mpf(beta)
        m = [b * u + (1 - b) * v for u, v in zip(p, q, strict=True)]

        def about_mean(u, v):
            ratio = [mpmath.log(s / t) for s, t in zip(u, v, strict=True)]
            mean = sum(s * r for s, r in zip(u, ratio, strict=True))
            return [s * (r - mean) for s, r in zip(u, ratio, strict=True)]

        if beta == 0.0:
            found = [v - u for u, v in zip(p, q, strict=True)], about_mean(p, q)
        elif beta == 1.0:
            found = about_mean(q, p), [u - v for u, v in zip(p, q, strict=True)]
        else:
            of_x, of_y = about_mean(q, m), about_mean(p, m)
            found = [(1 - b) * v for v in of_x], [b * v for v in of_y]
        return [np.array(list(map(float, g))) for g in found]


CONFIDENT = {
    "the target": ([0.0, 0.0, 0.0], [25.0, 0.0, 1.0]),
    "the logits": ([0.0, 30.0, 1.0], [2.0, 0.0, 1.0]),
    "both": ([25.0, 0.0, 1.0], [25.0, 1.0, 0.5]),
    "both of two classes": ([0.0, 22.0, 1.0], [25.0, 1.0, 0.5]),
    "hardly": ([2.0, 0.0, 1.0], [1.2, 0.0, 2.0]),
}


@pytest.mark.parametrize("rows", CONFIDENT.values(), ids=CONFIDENT.keys())
@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_the_gradients_of_confident_rows(beta, rows):
    """At the likely class they are those of the others, however small these are."""
    x, y = (jnp.array(row) for row in rows)
    f = compiled(jax.grad(partial(js.kl_divergence, beta=beta), (0, 1)))
    for found, expected in zip(f(x, y), exact_gradients(x, y, beta), strict=True):
        np.testing.assert_allclose(found, expected, rtol=4e-6)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_second_derivative_of_what_weighs_the_divergence(beta):
    """Of the row whose classes weigh it, the target or the logits, beside a flat one."""
    flat, weighs = [0.0, 0.0, 0.0], [25.0, 0.0, 1.0]
    dots = [0.3, -1.1, 0.7], [-0.4, 0.2, 0.9]
    argument = 1 if beta == 0.0 else 0
    order = slice(None, None, 1 if beta == 0.0 else -1)

    def found(f, dtype):
        at, tangents = (
            tuple(jnp.array(z, dtype) for z in of[order]) for of in ((flat, weighs), dots)
        )
        return jax.jvp(jax.grad(f, argument), at, tangents)[1]

    with jax.enable_x64(True):
        textbook = partial(definition, beta=beta, temperature=1.0)
        expected = np.asarray(found(textbook, jnp.float64))
    ours = partial(js.kl_divergence, beta=beta)
    np.testing.assert_allclose(found(ours, jnp.float32), expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_second_derivative_of_a_confident_row(beta):
    """At the likely class it is that of the others, however small these are."""
    x, y = jnp.array([0.0, 50.0, 0.0]), jnp.array([0.0, 50.0, 1.0])
    arg = 0 if beta == 0.0 else 1
    dots = (jnp.array([0.3, -1.1, 0.7]), jnp.array([-0.4, 0.2, 0.9]))
    f = jax.grad(partial(js.kl_divergence, beta=beta), arg)
    found = jax.jvp(f, (x, y), dots)[1]
    # Of q − p, or its negative: q (ẋ − Σ q ẋ) − p (ẏ − Σ p ẏ).
    with mpmath.workdps(50):
        parts = []
        for z, dot in zip((x, y), dots, strict=True):
            p = distribution(z)
            mean = sum(a * mpmath.mpf(float(b)) for a, b in zip(p, dot, strict=True))
            parts.append([a * (mpmath.mpf(float(b)) - mean) for a, b in zip(p, dot, strict=True)])
        expected = [float(a - b) for a, b in zip(*parts, strict=True)]
    np.testing.assert_allclose(found if beta == 0.0 else -found, expected, rtol=1e-5)


@pytest.mark.exhaustive(every=8, cover=False)
@pytest.mark.parametrize("beta", [0.25, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("argument", [1, 0], ids=["temperature", "logits"])
def test_second_derivatives_beside_classes_that_do_not_exist(argument, beta):
    """Reverse mode twice, where a row has no class or all that exist are low."""
    x = jnp.array([[-200.0, -201.0, 0.0], [1.0, 2.0, 3.0]])
    y = jnp.array([[-200.0, -202.0, 0.0], [0.0, 2.0, 3.0]])
    where = jnp.array([[True, True, False], [False] * 3])

    def f(x, t):
        return js.kl_divergence(x, y, beta=beta, where=where, temperature=t)

    gradient = jax.grad(f, argument)
    twice = [
        compiled(outer(gradient, argument))(x, jnp.float32(1.5))
        for outer in (jax.jacrev, jax.jacfwd)
    ]
    assert np.isfinite(twice).all()
    np.testing.assert_allclose(*twice, rtol=1e-4, atol=1e-7)


def test_an_axis_of_vmap_splits_the_classes():
    x, y = (jnp.asarray(z, jnp.float32) for z in (X, Y))
    parts = [z.reshape(4, 3, 2).swapaxes(0, 1) for z in (x, y)]
    f = partial(js.kl_divergence, beta=0.25, axis_name="i", temperature=jnp.float32(1.3))
    found = jax.vmap(f, axis_name="i")(*parts)
    whole = partial(js.kl_divergence, beta=0.25, temperature=jnp.float32(1.3))
    np.testing.assert_allclose(found, jnp.full(3, whole(x, y)), rtol=1e-6)
    mapped = jax.grad(lambda *at: jnp.mean(jax.vmap(f, axis_name="i")(*at)), (0, 1))(*parts)
    for part, expected in zip(mapped, jax.grad(whole, (0, 1))(x, y), strict=True):
        together = part.swapaxes(0, 1).reshape(4, 6)
        np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_rows(dtype):
    """Taken some at a time on a CPU, in no more memory: the same as each by itself."""
    rows, classes = 1501, 1000
    x, y = _random.normal(size=(2, rows, classes))
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, jnp.float32)
    f = partial(js.kl_divergence, beta=0.25, temperature=jnp.float32(1.5), reduction="sum")
    program = jax.jit(jax.value_and_grad(f, (0, 1))).lower(x, y).compile()
    assert program.memory_analysis().temp_size_in_bytes < 3 * y.nbytes
    value, gradients = program(x, y)
    each = jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1))))
    for start in (0, 700, rows - 100):
        some = slice(start, start + 100)
        _, expected = each(x[some, None], y[some, None])
        for found, wanted in zip(gradients, expected, strict=True):
            unit = float(jnp.finfo(found.dtype).eps)  # half precision may round the other way
            np.testing.assert_allclose(found[some], wanted[:, 0], rtol=max(1e-5, unit), atol=1e-8)
    wide = [z.astype(jnp.float32) for z in (x, y)]
    total = sum(f(*(z[k : k + 79] for z in wide)) for k in range(0, rows, 79))
    np.testing.assert_allclose(value, total, rtol=1e-6)


def test_vmap():
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    f = jax.grad(partial(js.kl_divergence, beta=0.25, reduction="sum"))

    def all_of(x, y):
        return jax.vmap(f)(x, y), f(x, y), jax.vmap(f, (0, None))(x, y[0])[0], f(x[0], y[0])

    mapped, together, of_one, alone = compiled(all_of)(x, y)
    np.testing.assert_allclose(mapped, together, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(of_one, alone, rtol=2e-6, atol=1e-7)


@cache
def of_whole_rows(beta):
    f = partial(js.kl_divergence, beta=beta, temperature=0.8)
    return compiled(jax.value_and_grad(f, (0, 1)))(X, Y)


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("beta", BETAS)
def test_across_shards(beta, check_vma):
    mesh = Mesh(np.array(jax.devices()[:2]), ("m",))
    f = partial(js.kl_divergence, beta=beta, temperature=0.8)
    specs = (P(None, "m"), P(None, "m"))
    sharded = jax.shard_map(
        partial(f, axis_name="m"), mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma
    )
    with jax.enable_x64(True):
        found = compiled(jax.value_and_grad(sharded, (0, 1)))(X, Y)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(of_whole_rows(beta)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"beta": 1.5}, ValueError, r"beta must be in \[0, 1\], got 1.5"),
        ({"beta": "js"}, TypeError, "beta must be a Python number, got 'js'"),
        ({"beta": jnp.array(0.5)}, TypeError, "beta must be a Python number, known"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number > 0"),
        ({"example_weights": np.ones(3)}, ValueError, "example_weights must broadcast"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be one of"),
        ({"axis": 2}, ValueError, "axis 2 is out of range for logits"),
        ({"denominator": 1.0, "reduction": "sum"}, ValueError, "denominator replaces"),
    ],
)
def test_errors_name_the_argument(options, error, said):
    with pytest.raises(error, match=said):
        js.kl_divergence(jnp.zeros((4, 6)), jnp.zeros((4, 6)), **options)


def test_errors_of_the_two_arrays():
    with pytest.raises(ValueError, match=r"target_logits must have the shape of logits, \[4, 6\]"):
        js.kl_divergence(jnp.zeros((4, 6)), jnp.zeros((4, 5)))
    with pytest.raises(TypeError, match="target_logits must be a floating point array"):
        js.kl_divergence(jnp.zeros((4, 6)), jnp.zeros((4, 6), int))
