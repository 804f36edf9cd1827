"""No examples, one class, ties, and numbers at the end of the range."""

from __future__ import annotations

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import (
    EXIST,
    INF,
    MISSING,
    OF_LOGITS,
    ON_EXISTING,
    assert_close,
    compiled,
    each_option_of_logits,
    hessian_of,
    losses_and_gradient,
    nll_loss,
    value_and_gradient,
    value_and_gradients,
)

import jaxsoftmax as js

# --- no examples, one class -----------------------------------------------------------------------

EMPTY = {"[0, 3]": ((0, 3), -1), "[2, 0, 3]": ((2, 0, 3), -1), "[0, 3, 2]": ((0, 3, 2), 1)}


@pytest.mark.exhaustive(every=6)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_an_empty_batch(name, case, soft, reduction):
    """Loss 0; gradients of the right shape, and 0 where they have entries."""
    shape, axis = EMPTY[case]
    batch = tuple(np.delete(shape, axis).tolist())
    labels = np.zeros(shape, np.float32) if soft else np.zeros(batch, np.int32)
    loss = partial(nll_loss if name == "nll_loss" else js.cross_entropy, axis=axis)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    arrays = {"logits": np.zeros(shape, np.float32), "class_weights": np.ones(3, np.float32)}
    arrays |= {"labels": labels, "example_weights": np.zeros(batch, np.float32)}
    value = loss(**arrays, **options)
    assert value.shape == (batch if reduction == "none" else ())
    assert value.dtype == jnp.float32
    assert jnp.sum(value) == 0.0
    total, gradients = value_and_gradients(lambda **k: jnp.sum(loss(**k, **options)), arrays)
    assert total == 0.0
    for argument, gradient in gradients.items():
        assert gradient.shape == arrays[argument].shape
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_no_entries(shape):
    x = jnp.zeros(shape)
    value, gradient = jax.value_and_grad(js.binary_cross_entropy)(x, x)
    assert value == 0.0
    assert gradient.shape == shape
    assert js.binary_cross_entropy(x, x, reduction="none").shape == shape


def test_statistics_of_an_empty_batch():
    loss, statistics = js.cross_entropy(
        jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32), return_statistics=True
    )
    assert loss == 0.0
    assert [s.shape for s in statistics] == [(0,)] * 6 + [()]
    assert statistics.weight_sum == 0.0


ONE = np.array([[3.0], [-1e30], [0.0]], np.float32)


def test_one_class_is_certain():
    np.testing.assert_array_equal(js.softmax(ONE), np.ones((3, 1)))
    np.testing.assert_array_equal(js.log_softmax(ONE), np.zeros((3, 1)))
    np.testing.assert_array_equal(js.logsumexp(ONE), ONE[:, 0])
    assert not np.any(jax.jacobian(js.softmax)(ONE))
    assert not np.any(jax.jacobian(js.log_softmax)(ONE))
    np.testing.assert_array_equal(jax.jacobian(js.logsumexp)(jnp.asarray(ONE))[..., 0], np.eye(3))


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"soft_cap": 5.0, "temperature": 0.5}], ids=str
)
def test_one_class_has_nothing_to_learn(options, soft):
    labels = np.ones((3, 1), np.float32) if soft else np.zeros(3, np.int32)
    f = partial(js.cross_entropy, labels=labels, **options)
    value, gradient = value_and_gradient(f, ONE)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_array_equal(hessian_of(f, ONE), 0.0)


def test_one_class_in_nll_loss_and_its_z_loss():
    labels = np.zeros(3, np.int32)
    value, gradient = jax.value_and_grad(partial(js.nll_loss, reduction="sum"))(ONE, labels)
    assert value == -ONE.sum()
    np.testing.assert_array_equal(gradient, -1.0)
    x = ONE[[0, 2]]
    f = partial(js.cross_entropy, labels=labels[:2], z_loss=0.5, reduction="sum")
    assert f(x) == 4.5
    np.testing.assert_array_equal(jax.grad(f)(x), x)  # ∂ ½x² = x
    statistics = js.cross_entropy(ONE, labels, return_statistics=True)[1]
    np.testing.assert_array_equal(statistics.entropy, 0.0)
    np.testing.assert_array_equal(statistics.predicted, 0)


# --- ties of the maximum --------------------------------------------------------------------------


def covariance(x, z_loss=0.0):
    """The Hessian of −log p_y + λ log²Z: (diag(p) − p pᵀ)(1 + 2λ log Z) + 2λ p pᵀ."""
    p = oracles.softmax(x)
    scale = 1.0 + 2.0 * z_loss * oracles.logsumexp(x)
    return scale * (np.diag(p) - np.outer(p, p)) + 2.0 * z_loss * np.outer(p, p)


TIES = {
    "two": [1.0, 3.0, 3.0, 0.0],
    "two at the ends": [3.0, 1.0, 0.0, 3.0],
    "all": [2.0] * 4,
    "all but one": [2.0, 2.0, -1.0, 2.0],
    "below the label": [0.0, 0.0, 5.0, 0.0],
}


@pytest.mark.exhaustive(every=4, cover=False)
@pytest.mark.parametrize("z_loss", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["classes", "distributions"])
@pytest.mark.parametrize("copies", [1, 32], ids=["4 classes", "128 classes"])
def test_second_derivatives_where_classes_tie(copies, kind, z_loss):
    """max splits its derivative over ties: read back through it, the HVP is a third wrong."""
    gradient = jax.grad(partial(js.cross_entropy, z_loss=z_loss))

    @compiled
    def second_order(x, y, v):
        forward = jax.jvp(lambda x: gradient(x, y), (x,), (v,))[1]
        reverse = jax.grad(lambda x: jnp.vdot(gradient(x, y), v))(x)
        return jax.jacfwd(gradient)(x, y), forward, reverse

    v = np.random.default_rng(2).normal(size=4 * copies).astype(np.float32)
    for ties in TIES.values():
        x = np.array(ties * copies, np.float32)
        for label in (0, 1, 2, x.size - 1):
            y = np.eye(x.size, dtype=np.float32)[label] if kind == "distributions" else label
            expected = covariance(x, z_loss)
            hessian, forward, reverse = second_order(x, y, v)
            assert_close(hessian, expected)
            assert_close(forward, expected @ v)
            assert_close(reverse, expected @ v)


def test_second_derivatives_of_distributions_where_classes_tie():
    functions = (js.logsumexp, js.log_softmax, js.softmax)
    hessians = compiled(lambda x: [jax.hessian(f)(x) for f in functions])
    for ties in TIES.values():
        x = np.array(ties, np.float32)
        p, h = oracles.softmax(x), covariance(x)
        of_logsumexp, of_log_softmax, of_softmax = hessians(x)
        assert_close(of_logsumexp, h)
        assert_close(of_log_softmax, np.tile(-h, (4, 1, 1)))  # the same for every class
        d = np.eye(4) - p  # [c, i]: ∂p_c/∂x_i = p_c (1[c=i] − p_i)
        assert_close(of_softmax, p[:, None, None] * (d[:, :, None] * d[:, None, :] - h))


# --- numbers at and beyond the end of the range ---------------------------------------------------

# logits, label, loss, gradient
ENDS = {
    "1e30, label on it": ([1e30, 0.0, -1e30], 0, 0.0, [0, 0, 0]),
    "1e30, label below": ([1e30, 0.0, -1e30], 1, 1e30, [1, -1, 0]),
    "1e30, label far below": ([1e30, 0.0, -1e30], 2, 2e30, [1, 0, -1]),
    "1e30 twice": ([1e30, 1e30, 0.0], 0, np.log(2), [-0.5, 0.5, 0]),
    "-1e30 everywhere": ([-1e30] * 3, 1, np.log(3), [1 / 3, -2 / 3, 1 / 3]),
    "+inf, label on it": ([INF, 0.0, 1.0], 0, 0.0, [0, 0, 0]),
    "+inf, label below": ([INF, 0.0, 1.0], 1, INF, [0, 0, 0]),
    "+inf twice, label on one": ([INF, INF, 1.0], 1, np.log(2), [0, 0, 0]),
    "+inf everywhere": ([INF] * 3, 2, np.log(3), [0, 0, 0]),
    "+inf, label on -inf": ([INF, -INF, 0.0], 1, INF, [0, 0, 0]),
    "-inf elsewhere": ([0.0, -INF, 0.0], 0, np.log(2), [-0.5, 0, 0.5]),
    "-inf but for the label": ([-INF, 7.0, -INF], 1, 0.0, [0, 0, 0]),
    "-inf everywhere": ([-INF] * 3, 1, INF, [0, 0, 0]),
    "-inf and 1e30": ([1e30, -INF, 1e30], 2, np.log(2), [0.5, 0, -0.5]),
}


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "one-hot"])
@pytest.mark.parametrize("case", ENDS)
def test_huge_and_infinite_logits(case, soft):
    x, label, expected, slope = ENDS[case]
    y = np.eye(3, dtype=np.float32)[label] if soft else label
    value, gradient, hessian = derivatives_of_one_row()(np.array(x, np.float32), y)
    assert_close(value, expected)
    assert_close(gradient, slope)
    assert np.isfinite(hessian).all()


@functools.cache
def derivatives_of_one_row():
    f = js.cross_entropy
    return compiled(lambda x, y: (*jax.value_and_grad(f)(x, y), jax.hessian(f)(x, y)))


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "one-hot"])
def test_huge_and_infinite_logits_stay_in_their_rows(soft):
    rows = list(ENDS.values())
    x = np.array([row[0] for row in rows], np.float32)
    labels = np.array([row[1] for row in rows])
    y = np.eye(3, dtype=np.float32)[labels] if soft else labels
    losses, gradient = losses_and_gradient(partial(js.cross_entropy, labels=y, reduction="none"), x)
    for i, (_, _, expected, slope) in enumerate(rows):
        assert_close(losses[i], expected)
        assert_close(gradient[i], slope)


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
@pytest.mark.parametrize("options", ["plain", "smoothing", "everything"])
def test_the_hessian_beside_logits_of_minus_infinity(options, soft):
    """No NaN to second order, exact zeros for the classes that do not exist (optax #1762)."""
    labels, options = ON_EXISTING["distributions" if soft else "classes"], OF_LOGITS[options]

    def of_existing(numbers):
        moved = MISSING.astype(np.float64)
        moved[EXIST] = numbers
        return oracles.cross_entropy(moved, labels, **options)

    # Differences of differences: 1e-6 of truncation and 1e-9 of rounding.
    expected = hessian_by_differences(of_existing, MISSING[EXIST])
    f = partial(js.cross_entropy, labels=labels, **options)
    for hessian in (
        hessian_of(f, MISSING),
        hessian_of(partial(f, where=EXIST), np.where(EXIST, MISSING, 0.0)),
    ):
        np.testing.assert_array_equal(hessian[~EXIST], 0.0)
        np.testing.assert_array_equal(hessian[:, :, ~EXIST], 0.0)
        assert_close(hessian[EXIST][:, EXIST], expected, 1e-5)


def hessian_by_differences(function, at, step=1e-3):
    """Central differences of central differences."""

    def slope(x):
        return oracles.numerical_gradient(function, x, step)

    at = oracles.f64(at)
    shifts = step * np.eye(at.size)
    return np.array([(slope(at + s) - slope(at - s)) / (2 * step) for s in shifts])


ON_MISSING = np.array([1, 3], np.int32)  # in the first row a class that does not exist


@pytest.mark.parametrize("excluded_by", ["where", "-inf"])
def test_a_label_on_a_class_that_does_not_exist(excluded_by):
    """Loss +inf, and the gradient softmax on the classes that do; the other row as ever."""
    x = MISSING if excluded_by == "-inf" else np.where(EXIST, MISSING, 3.0)
    f = partial(js.cross_entropy, labels=ON_MISSING, reduction="none")
    if excluded_by == "where":
        f = partial(f, where=EXIST)
    losses, gradient = losses_and_gradient(f, x)
    p = oracles.softmax(MISSING)
    assert_close(losses, [INF, -oracles.log_softmax(MISSING)[1, 3]])
    expected = np.stack([p[0], p[1] - np.eye(4)[3]])
    assert_close(gradient, expected)
    np.testing.assert_array_equal(gradient[~EXIST], 0.0)
    mean, gradient = value_and_gradient(partial(f, reduction="mean"), x)
    assert mean == INF
    assert_close(gradient, expected / 2)
    hessian = hessian_of(partial(f, reduction="sum"), x)
    for i in range(2):
        assert_close(hessian[i, :, i], covariance(MISSING[i]))


@pytest.mark.exhaustive(every=3, cover=False)
@each_option_of_logits
def test_a_label_on_a_class_that_does_not_exist_with_options(options):
    f = partial(js.cross_entropy, reduction="sum", **options)
    value, gradient = value_and_gradient(f, MISSING, ON_MISSING)
    assert value == INF
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[~EXIST], 0.0)


MASS_ON_MISSING = {
    "one-hot": np.eye(4, dtype=np.float32)[ON_MISSING],
    "soft": np.array([[0.3, 0.4, 0.3, 0.0], [0.0, 0.5, 0.0, 0.5]], np.float32),
}


@pytest.mark.parametrize("labels", MASS_ON_MISSING.values(), ids=MASS_ON_MISSING)
def test_a_distribution_with_mass_on_a_class_that_does_not_exist(labels):
    """Loss +inf, and 0 for a class without mass; no NaN in the gradient."""
    f = partial(js.cross_entropy, labels=labels, reduction="none")
    losses, gradient = losses_and_gradient(f, MISSING)
    existing = labels[1, EXIST[1]] @ oracles.log_softmax(MISSING)[1, EXIST[1]]
    assert_close(losses, [INF, -existing])
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~EXIST], 0.0)
    assert_close(gradient[1], np.where(EXIST, oracles.softmax(MISSING) - labels, 0.0)[1])


@pytest.mark.parametrize("labels", MASS_ON_MISSING.values(), ids=MASS_ON_MISSING)
def test_the_gradient_of_a_distribution_with_mass_on_a_class_that_does_not_exist(labels):
    """softmax − y on the classes that exist, for one-hot labels what it is for class indices."""
    gradient = jax.grad(partial(js.cross_entropy, reduction="sum"))(MISSING, labels)
    assert_close(gradient, np.where(EXIST, oracles.softmax(MISSING) - labels, 0.0))


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
@pytest.mark.parametrize("options", ["plain", "smoothing", "everything"])
def test_no_class_exists(options, soft):
    """Loss +inf for a label, 0 for a distribution without mass; gradient 0 and no NaN."""
    y = np.zeros((2, 4), np.float32) if soft else np.array([0, 3])
    f = partial(js.cross_entropy, labels=y, reduction="sum", **OF_LOGITS[options])
    for value, gradient in (
        value_and_gradient(f, np.full((2, 4), -INF, np.float32)),
        value_and_gradient(partial(f, where=np.zeros(4, bool)), np.ones((2, 4), np.float32)),
    ):
        assert value == (0.0 if soft else INF)
        np.testing.assert_array_equal(gradient, 0.0)


def test_a_class_weight_of_zero_on_a_class_that_does_not_exist():
    """0 · log 0 = 0: what has no weight is not infinitely wrong."""
    w = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    losses = js.cross_entropy(MISSING, ON_MISSING, class_weights=w, reduction="none")
    assert_close(losses, [0.0, -oracles.log_softmax(MISSING)[1, 3]])
    gradient = jax.grad(partial(js.cross_entropy, class_weights=w))(MISSING, ON_MISSING)
    assert_close(gradient[1], oracles.softmax(MISSING)[1] - np.eye(4)[3])
    np.testing.assert_array_equal(gradient[0], 0.0)
