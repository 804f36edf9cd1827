"""softmax, log_softmax, logsumexp: any axes, any mask, any dtype, and what is no finite number."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.special

import jaxsoftmax as js

INF = jnp.inf

FUNCTIONS = {
    "softmax": (js.softmax, jax.nn.softmax, scipy.special.softmax, oracles.softmax),
    "log_softmax": (
        js.log_softmax,
        jax.nn.log_softmax,
        scipy.special.log_softmax,
        oracles.log_softmax,
    ),
    "logsumexp": (
        js.logsumexp,
        jax.nn.logsumexp,
        scipy.special.logsumexp,
        oracles.logsumexp,
    ),
}
OURS = [pytest.param(ours, id=name) for name, (ours, *_) in FUNCTIONS.items()]
OURS_AND_ORACLE = [
    pytest.param(ours, oracle, id=name) for name, (ours, _, _, oracle) in FUNCTIONS.items()
]
ALL = [pytest.param(*functions, id=name) for name, functions in FUNCTIONS.items()]

# Logits lie within ±10, where their differences are rounded by at most 2^-21 (gaps up to 16) and
# exp turns that into as much of its result; the rest is a few roundings of float32.
VALUES = {"rtol": 1.5e-6, "atol": 1e-6}


def random(shape, seed=0, dtype=jnp.float32):
    numbers = np.random.default_rng(seed).uniform(-8.0, 8.0, shape)
    return jnp.asarray(numbers, dtype)


def to_last(x, axes):
    """The axes of a NumPy array moved to the end and made one."""
    x = np.asarray(x)
    axes = axes if isinstance(axes, tuple) else (axes,)
    moved = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    return moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)


# --- any axis -------------------------------------------------------------------------------------

AXES = [-1, 0, 1, -3, np.int64(1), (1,), (0, 2), (2, 0), (-1, 1), (0, 1, 2)]


@pytest.mark.exhaustive(every=7, cover=False)
@pytest.mark.parametrize("axis", AXES, ids=repr)
@pytest.mark.parametrize(("ours", "jaxs", "scipys", "oracle"), ALL)
def test_axes(ours, jaxs, scipys, oracle, axis):
    x = random((2, 3, 4))
    got = np.asarray(ours(x, axis))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, jaxs(x, axis=axis), **VALUES)
    np.testing.assert_allclose(got, scipys(np.asarray(x, np.float64), axis=axis), **VALUES)
    expected = oracle(to_last(x, axis))
    got = to_last(got, axis) if got.ndim == 3 else got
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, **VALUES)


@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (2, 0), (0, 1, 2)], ids=repr)
def test_keepdims(axis):
    x = random((2, 3, 4))
    got = js.logsumexp(x, axis, keepdims=True)
    expected = scipy.special.logsumexp(np.asarray(x, np.float64), axis=axis, keepdims=True)
    chex.assert_shape(got, expected.shape)
    np.testing.assert_allclose(got, expected, **VALUES)
    flat = js.logsumexp(x, axis, keepdims=False)
    np.testing.assert_array_equal(np.squeeze(got, axis), flat)


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("axis", [0, (0, 2), (2, 0)], ids=repr)
@pytest.mark.parametrize(("ours", "jaxs", "scipys", "oracle"), ALL)
def test_gradient_along_any_axes(ours, jaxs, scipys, oracle, axis):
    del scipys, oracle
    x = random((2, 3, 4))
    cotangent = random(jax.eval_shape(lambda x: ours(x, axis), x).shape, seed=1)
    got = jax.vjp(lambda x: ours(x, axis), x)[1](cotangent)
    expected = jax.vjp(lambda x: jaxs(x, axis=axis), x)[1](cotangent)
    # Sums of terms of size 8, added in another order.
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-5)


# --- where ----------------------------------------------------------------------------------------

MASK = jnp.array([[True, False, True, True, False], [False, True, True, False, True]])
MASKED = [[0, 2, 3], [1, 2, 4]]  # the classes that exist, row by row


@pytest.mark.parametrize(("ours", "oracle"), OURS_AND_ORACLE)
@pytest.mark.parametrize(
    ("where", "shape"),
    [
        (MASK, (2, 5)),
        (MASK[0], (2, 5)),  # one mask for all rows
        (MASK[:, :1], (2, 5)),  # one flag a row: the second row has no class
        (jnp.array(True), (2, 5)),
        (MASK[:, None, :], (2, 3, 5)),
        (np.asarray(MASK), (2, 5)),
    ],
    ids=["full", "row", "column", "scalar", "inner", "numpy"],
)
def test_where(ours, oracle, where, shape):
    x = random(shape)
    np.testing.assert_allclose(ours(x, where=where), oracle(x, where), **VALUES)


@pytest.mark.parametrize("axis", [0, (0, 2)], ids=repr)
@pytest.mark.parametrize(("ours", "oracle"), OURS_AND_ORACLE)
def test_where_along_any_axes(ours, oracle, axis):
    x = random((2, 3, 5))
    mask = np.broadcast_to(MASK[:, None, :], x.shape)
    got = np.asarray(ours(x, axis, where=jnp.asarray(mask)))
    got = to_last(got, axis) if got.ndim == 3 else got
    np.testing.assert_allclose(got, oracle(to_last(x, axis), to_last(mask, axis)), **VALUES)


@functools.cache
def derivatives(ours):
    """Value, tangent, gradient and Hessian of one function, weighted: compiled once a shape."""

    def scalar(x, mask, weights):
        out = ours(x, where=mask)
        return jnp.sum(weights * jnp.where(jnp.isfinite(out), out, 0.0)) if out.ndim else out

    def tangent(x, mask, weights):
        return jax.jvp(lambda x: scalar(x, mask, weights), (x,), (jnp.ones_like(x),))[1]

    functions = (ours, tangent, jax.grad(scalar), jax.hessian(scalar))

    @jax.jit
    def together(x, mask, weights):
        value, *rest = functions
        return value(x, where=mask), *(f(x, mask, weights) for f in rest)

    return together


@pytest.mark.exhaustive(every=5, cover=False)
@pytest.mark.parametrize("garbage", [0.0, 100.0, INF, -INF, jnp.nan], ids=str)
@pytest.mark.parametrize("ours", OURS)
def test_excluded_classes_reach_nothing(ours, garbage):
    """Values, gradients and Hessians are those of the classes that are in, whatever the rest is."""
    x = jnp.where(MASK, random((2, 5)), garbage)
    weights = jnp.arange(1.0, 6.0)
    for row, classes in enumerate(MASKED):
        kept = jnp.asarray(classes)
        got = derivatives(ours)(x[row], MASK[row], weights)
        alone = derivatives(ours)(x[row][kept], jnp.ones(3, jnp.bool_), weights[kept])
        value, tangent, gradient, hessian = (np.asarray(a) for a in got)
        out = [c for c in range(5) if c not in classes]
        if value.ndim:
            np.testing.assert_allclose(value[classes], alone[0], rtol=1e-6)
            np.testing.assert_array_equal(value[out], 0.0 if ours is js.softmax else -INF)
        else:
            np.testing.assert_allclose(value, alone[0], rtol=1e-6)
        np.testing.assert_allclose(tangent, alone[1], rtol=1e-5, atol=2e-6)
        np.testing.assert_array_equal(gradient[out], 0.0)
        np.testing.assert_allclose(gradient[classes], alone[2], rtol=1e-5, atol=2e-6)
        np.testing.assert_array_equal(hessian[out], 0.0)
        np.testing.assert_array_equal(hessian[:, out], 0.0)
        np.testing.assert_allclose(hessian[np.ix_(classes, classes)], alone[3], atol=4e-6)


@pytest.mark.parametrize("ours", OURS)
def test_where_may_be_traced(ours):
    x = random((2, 5))
    got = jax.jit(lambda x, mask: ours(x, where=mask))(x, MASK)
    np.testing.assert_array_equal(got, ours(x, where=MASK))


# --- what is no finite number ---------------------------------------------------------------------

MAX = float(jnp.finfo(jnp.float32).max)
LOG2, LOG3 = np.log(2), np.log(3)

# logits, softmax, log_softmax, logsumexp
EXTREMES = {
    "one class excluded": ([-INF, 0.0, 0.0], [0, 0.5, 0.5], [-INF, -LOG2, -LOG2], LOG2),
    "all but one excluded": ([-INF, 3.0, -INF], [0, 1, 0], [-INF, 0, -INF], 3.0),
    "all excluded": ([-INF, -INF, -INF], [0, 0, 0], [-INF, -INF, -INF], -INF),
    "one infinite": ([0.0, INF, 5.0], [0, 1, 0], [-INF, 0, -INF], INF),
    "two infinite": ([INF, 0.0, INF], [0.5, 0, 0.5], [-LOG2, -INF, -LOG2], INF),
    "all infinite": ([INF] * 3, [1 / 3] * 3, [-LOG3] * 3, INF),
    "both infinities": ([INF, -INF, 0.0], [1, 0, 0], [0, -INF, -INF], INF),
    "one class": ([-7.0], [1], [0], -7.0),
    "one excluded class": ([-INF], [0], [-INF], -INF),
    "one infinite class": ([INF], [1], [0], INF),
    "huge": ([1e30, -1e30, 1e30], [0.5, 0, 0.5], [-LOG2, -2e30, -LOG2], 1e30),
    "largest": ([3.4e38, 0.0, -3.4e38], [1, 0, 0], [0, -3.4e38, -INF], 3.4e38),
    # The usual stand-in for -inf in attention masks is a finite number, and so a class that exists.
    "lowest numbers": ([-MAX] * 3, [1 / 3] * 3, [-LOG3] * 3, -MAX),
    "lowest and zeros": ([-MAX, 0.0, 0.0], [0, 0.5, 0.5], [-MAX, -LOG2, -LOG2], LOG2),
    "largest number": ([MAX, 0.0, 0.0], [1, 0, 0], [0, -MAX, -MAX], MAX),
    "tiny": ([1e-30, -1e-30, 0.0], [1 / 3] * 3, [-LOG3] * 3, LOG3),
    "subnormal": ([1e-40, 0.0, -1e-40], [1 / 3] * 3, [-LOG3] * 3, LOG3),
}
ROWS = [pytest.param(*row, id=name) for name, row in EXTREMES.items()]


@pytest.mark.parametrize(("logits", "p", "log_p", "log_z"), ROWS)
def test_extreme_values(logits, p, log_p, log_z):
    x = jnp.array(logits)
    np.testing.assert_allclose(js.softmax(x), p, rtol=1e-6)
    np.testing.assert_allclose(js.log_softmax(x), np.float32(log_p), rtol=1e-6)
    np.testing.assert_allclose(js.logsumexp(x), log_z, rtol=1e-4)
    np.testing.assert_allclose(oracles.softmax(x), p, rtol=1e-6)  # the oracle knows them, too


@pytest.mark.exhaustive(every=6)
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize(
    "logits", [pytest.param(row[0], id=name) for name, row in EXTREMES.items()]
)
def test_extreme_derivatives(ours, logits):
    """Finite to second order; 0 for classes that do not exist and in a slice that holds +inf."""
    x = jnp.array(logits)
    mask = jnp.ones(x.shape, jnp.bool_)
    weights = jnp.arange(1.0, 1.0 + x.size)
    _, tangent, gradient, hessian = derivatives(ours)(x, mask, weights)
    chex.assert_tree_all_finite((tangent, gradient, hessian))
    movable = (np.asarray(logits) != -INF) & (np.max(logits) != INF)
    np.testing.assert_array_equal(gradient[~movable], 0.0)
    np.testing.assert_array_equal(hessian[~movable], 0.0)
    np.testing.assert_array_equal(hessian[:, ~movable], 0.0)
    if movable.any() and ours is js.logsumexp:
        p = oracles.softmax(x)
        np.testing.assert_allclose(gradient, p, rtol=1e-6)
        np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), atol=1e-7)


@pytest.mark.parametrize("ours", OURS)
def test_nan_stays_nan(ours):
    """In its own row only: no clamp and no mask swallows it."""
    x = random((3, 4)).at[1, 2].set(jnp.nan)
    got = np.asarray(ours(x)).reshape(3, -1)
    np.testing.assert_array_equal(
        np.isnan(got), np.repeat([[False], [True], [False]], got.shape[1], 1)
    )
    gradient = jax.grad(lambda x: jnp.sum(ours(x)[1]))(x)
    assert bool(jnp.all(jnp.isnan(gradient[1])))
    assert not bool(jnp.any(jnp.isnan(gradient[jnp.array([0, 2])])))


@pytest.mark.parametrize("beside", [INF, -INF], ids=str)
@pytest.mark.parametrize("ours", OURS)
def test_nan_stays_nan_beside_an_infinity(ours, beside):
    assert bool(jnp.all(jnp.isnan(ours(jnp.array([beside, jnp.nan, 0.0])))))


@pytest.mark.parametrize("ours", OURS)
def test_a_nan_that_is_excluded_is_not_there(ours):
    x = jnp.array([1.0, jnp.nan, 2.0])
    mask = jnp.array([True, False, True])
    assert not bool(jnp.any(jnp.isnan(ours(x, where=mask))))


@pytest.mark.parametrize(("ours", "jaxs", "scipys", "oracle"), ALL)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)], ids=str)
def test_zero_rows(ours, jaxs, scipys, oracle, shape):
    del scipys, oracle
    x = jnp.zeros(shape)
    chex.assert_equal_shape((ours(x), jaxs(x, axis=-1)))
    chex.assert_equal_shape((jax.grad(lambda x: jnp.sum(ours(x)))(x), x))


# --- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("ours", "oracle"), OURS_AND_ORACLE)
def test_half_precision_is_computed_in_float32(ours, oracle, dtype):
    """One rounding at the end, and for logsumexp none: it stays float32."""
    x = random((4, 300), dtype=dtype)
    got = ours(x)
    expected = oracle(x)
    if ours is js.logsumexp:
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=5e-7)
        return
    assert got.dtype == dtype
    # The nearest number of the dtype, or its neighbour where float32's error decides a tie; below
    # its smallest normal number the spacing is absolute.
    half_ulp = 0.5 * float(jnp.finfo(dtype).eps)
    spacing = float(jnp.finfo(dtype).smallest_subnormal)
    got = np.asarray(got, np.float64)
    np.testing.assert_allclose(got, expected, rtol=1.01 * half_ulp, atol=spacing)


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("ours", OURS)
def test_gradients_come_back_in_the_dtype_of_the_logits(ours, dtype):
    x = random((4, 8), dtype=dtype)
    gradient = jax.grad(lambda x: jnp.sum(ours(x)[..., 0].astype(jnp.float32)))(x)
    assert gradient.dtype == dtype
    wide = jax.grad(lambda x: jnp.sum(ours(x)[..., 0]))(x.astype(jnp.float32))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(gradient, np.float32), wide, rtol=eps, atol=float(jnp.finfo(dtype).tiny)
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("ours", "jaxs", "scipys", "oracle"), ALL)
def test_float64(ours, jaxs, scipys, oracle):
    del jaxs
    x = random((4, 300), dtype=jnp.float64)
    got = ours(x)
    assert got.dtype == jnp.float64
    # Gaps up to 16 are rounded by 2^-50, 9e-16; log-probabilities near 0 lose nothing.
    np.testing.assert_allclose(got, oracle(x), rtol=4e-15)
    np.testing.assert_allclose(got, scipys(np.asarray(x), axis=-1), rtol=4e-15)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_x64_does_not_widen_what_is_narrow(ours, dtype):
    x = random((2, 3), dtype=dtype)
    wide = jnp.float32 if ours is js.logsumexp else dtype
    assert ours(x).dtype == wide
    assert ours(x, where=x > 0).dtype == wide


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64], ids=str)
@pytest.mark.parametrize("ours", OURS)
def test_what_is_not_real_is_an_error(ours, dtype):
    with pytest.raises(TypeError, match=rf"logits must be .*float.*{jnp.dtype(dtype).name}"):
        ours(jnp.zeros(3, dtype))


@pytest.mark.parametrize(("ours", "oracle"), OURS_AND_ORACLE)
def test_numpy_arrays(ours, oracle):
    x = np.asarray(random((2, 3)))
    assert isinstance(ours(x), jax.Array)
    np.testing.assert_allclose(ours(x), oracle(x), **VALUES)


# --- small losses are not rounded to zero ---------------------------------------------------------


@pytest.mark.parametrize("margin", [1.0, 10.0, 20.0, 40.0, 80.0])
def test_the_maximum_is_left_out_of_the_sum(margin):
    """log(1 + e^-40) is 4.2e-18, which 1 + e^-40 in float32 does not know of."""
    expected = np.log1p(np.exp(-margin))
    for x in (jnp.array([0.0, -margin]), jnp.array([-margin, 0.0])):
        np.testing.assert_allclose(js.logsumexp(x), expected, rtol=1e-6)
        np.testing.assert_allclose(np.max(js.log_softmax(x)), -expected, rtol=1e-6)
    # Shifted by the margin: the log-probability of the largest class stays what it is.
    shifted = js.log_softmax(jnp.array([margin, 0.0, 0.0]))
    np.testing.assert_allclose(shifted[0], -np.log1p(2 * np.exp(-margin)), rtol=1e-6)


@pytest.mark.parametrize("margin", [10.0, 20.0, 40.0, 80.0])
def test_the_gradient_at_a_confident_label_is_accurate(margin):
    """1 − p_a through log_softmax, too: −Σ_{j≠a} p_j and not p_a − 1 = 0."""
    x = jnp.array([[margin, 0.0, -1.0]])
    label = jnp.array([0])
    gradient = jax.grad(lambda x: js.nll_loss(js.log_softmax(x), label))(x)
    expected = oracles.cross_entropy_gradient(x, label)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    loss = js.nll_loss(js.log_softmax(x), label)
    np.testing.assert_allclose(loss, oracles.cross_entropy(x, label), rtol=1e-6)
    tangent = jax.jvp(lambda x: js.log_softmax(x)[0, 0], (x,), (jnp.array([[1.0, 0.0, 0.0]]),))[1]
    np.testing.assert_allclose(tangent, -expected[0, 0], rtol=1e-6)


def test_the_derivative_of_a_confident_probability_rounds_as_the_probability_does():
    """p (g − ⟨p, g⟩): at a margin of 40 the derivative, 4e-18, lies below the rounding of p."""
    x = jnp.array([40.0, 0.0])
    jacobian = jax.jacrev(js.softmax)(x)
    q = np.exp(-40.0)
    np.testing.assert_allclose(jacobian, [[q, -q], [-q, q]], rtol=0, atol=2.0**-23)
    np.testing.assert_allclose(jacobian[1], [-q, q], rtol=1e-6)  # of the class that is small
    np.testing.assert_allclose(jax.jacfwd(js.softmax)(x), jacobian, rtol=1e-6)


@pytest.mark.parametrize("margin", [5.0, 20.0, 40.0])
def test_second_derivatives_of_confident_log_probabilities_keep_their_digits(margin):
    """−p_a (1 − p_a) at the largest class: 1 − p_a is the sum of the others."""
    x = np.array([margin, 0.0, -1.0])
    p = oracles.softmax(x)
    expected = np.outer(p, p) - np.diag(p)
    expected[0, 0] = -p[0] * (p[1] + p[2])
    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        found = hessian(lambda x: js.log_softmax(x)[1])(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- ties -----------------------------------------------------------------------------------------


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("logits", [[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [0.0, 3.0, 3.0]], ids=str)
def test_second_derivatives_at_ties(logits):
    """A maximum read back through jnp.max would split its derivative between the tied classes."""
    x = jnp.array(logits)
    p = oracles.softmax(x)
    variance = np.diag(p) - np.outer(p, p)
    np.testing.assert_allclose(jax.grad(js.logsumexp)(x), p, rtol=1e-6)
    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        np.testing.assert_allclose(hessian(js.logsumexp)(x), variance, atol=1e-7)
        for c in range(3):
            got = hessian(lambda x, c=c: js.log_softmax(x)[c])(x)
            np.testing.assert_allclose(got, -variance, atol=1e-7)
    # ∂²p_c/∂x_i∂x_j = p_c ((δ_ci − p_i)(δ_cj − p_j) − V_ij)
    centred = np.eye(3) - p
    expected = p[:, None, None] * (centred[:, :, None] * centred[:, None, :] - variance)
    np.testing.assert_allclose(jax.hessian(js.softmax)(x), expected, atol=1e-7)


def test_many_ties_in_a_long_row():
    """64 classes and more take another way to the maximum."""
    x = jnp.tile(jnp.array([0.0, 1.0, 1.0, -2.0]), 64)
    np.testing.assert_allclose(js.softmax(x), oracles.softmax(x), rtol=1e-6)
    np.testing.assert_allclose(js.log_softmax(x), oracles.log_softmax(x), rtol=1e-6)
    np.testing.assert_allclose(js.logsumexp(x), oracles.logsumexp(x), rtol=1e-6)
    p = oracles.softmax(x)
    direction = np.asarray(random((256,), seed=3))
    hvp = jax.jvp(jax.grad(js.logsumexp), (x,), (jnp.asarray(direction),))[1]
    np.testing.assert_allclose(hvp, p * (direction - p @ direction), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("position", [0, 63, 64, 127, 128, 255])
def test_a_lone_class_in_a_long_row(position):
    """The blocks that a long row is searched in: every boundary, all others excluded."""
    x = jnp.full((256,), -INF).at[position].set(-5.0)
    one_hot = np.arange(256) == position
    np.testing.assert_array_equal(js.softmax(x), one_hot.astype(np.float32))
    np.testing.assert_array_equal(js.log_softmax(x), np.where(one_hot, 0.0, -np.inf))
    np.testing.assert_array_equal(js.logsumexp(x), -5.0)
    np.testing.assert_array_equal(jax.grad(js.logsumexp)(x), one_hot.astype(np.float32))
