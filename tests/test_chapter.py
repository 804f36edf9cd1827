"""The chapter's formulas and worked examples, one after the other, and the derivatives it derives.

Dive into Deep Learning, sections 4.1 (softmax regression) and 4.5 (its concise implementation).
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

import jaxsoftmax as js

# Rounding of float32 and float64 in expressions of a few terms of size 1.
CLOSE32 = {"rtol": 1e-6, "atol": 4e-7}
CLOSE64 = {"rtol": 1e-14, "atol": 4e-16}

ROWS, CLASSES = 6, 5


def batch(dtype=jnp.float32):
    """Logits and labels of a small batch, and the labels one-hot."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3.0 * rng.standard_normal((ROWS, CLASSES)), dtype)
    labels = jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32)
    return logits, labels, jax.nn.one_hot(labels, CLASSES, dtype=dtype)


# --- values ---------------------------------------------------------------------------------------


def test_softmax_of_the_worked_example():
    got = js.softmax(jnp.array([-7.0, 5.0, 10.0]))
    expected = np.array([4.11222956e-08, 6.69285065e-03, 9.93307108e-01])
    np.testing.assert_allclose(got, expected, rtol=5e-7)


def test_cross_entropy_of_the_worked_example():
    """ŷ = [.2, .1, .65, .05] and y = e₂: minus the logarithm of the probability of class 2."""
    log_probs = jnp.log(jnp.array([0.2, 0.1, 0.65, 0.05]))
    one_hot = jnp.array([0.0, 0.0, 1.0, 0.0])
    for labels in (jnp.array(2), one_hot):
        np.testing.assert_allclose(js.nll_loss(log_probs, labels), 0.4307829, rtol=3e-7)
        # These log-probabilities are already normalised: softmax gives them back.
        np.testing.assert_allclose(js.cross_entropy(log_probs, labels), 0.4307829, rtol=3e-7)


def test_large_logits_do_not_overflow():
    """The chapter's warning: exp of 100 overflows float32, exp of the difference does not."""
    logits = jnp.array([-100.0, 0.0, 100.0])
    np.testing.assert_array_equal(js.softmax(logits)[2], 1.0)
    np.testing.assert_allclose(js.log_softmax(logits), [-200.0, -100.0, 0.0], atol=4e-44)
    np.testing.assert_allclose(js.logsumexp(logits), 100.0, rtol=1e-7)


def test_three_forms_of_one_loss():
    """−1/N Σ yᵀ log ŷ of softmax = NLL of log-softmax = cross entropy of the logits."""
    logits, labels, one_hot = batch()
    of_probabilities = -jnp.sum(one_hot * jnp.log(js.softmax(logits))) / ROWS
    of_log_probabilities = js.nll_loss(js.log_softmax(logits), labels)
    of_logits = js.cross_entropy(logits, labels)
    expected = oracles.cross_entropy(logits, labels)
    for got in (of_probabilities, of_log_probabilities, of_logits):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(js.cross_entropy(logits, one_hot), expected, rtol=1e-6)
    np.testing.assert_allclose(js.nll_loss(js.log_softmax(logits), one_hot), expected, rtol=1e-6)


def test_reductions_are_one_sum():
    logits, labels, _ = batch()
    each = js.cross_entropy(logits, labels, reduction="none")
    chex.assert_shape(each, (ROWS,))
    total = js.cross_entropy(logits, labels, reduction="sum")
    np.testing.assert_allclose(each, oracles.cross_entropy(logits, labels, reduction="none"), 1e-6)
    np.testing.assert_allclose(total, np.asarray(each).sum(dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(js.cross_entropy(logits, labels), total / ROWS, rtol=1e-6)


def test_the_mean_of_a_uniform_prediction_is_log_of_the_number_of_classes():
    logits = jnp.zeros((3, CLASSES))
    np.testing.assert_allclose(js.cross_entropy(logits, jnp.arange(3)), np.log(CLASSES), rtol=2e-7)


def test_binary_cross_entropy_is_cross_entropy_of_two_classes():
    x = jnp.array([-3.0, -0.5, 0.0, 2.0, 9.0])
    y = jnp.array([0, 1, 1, 0, 1])
    two = jnp.stack([jnp.zeros_like(x), x], axis=-1)
    np.testing.assert_allclose(js.binary_cross_entropy(x, y), js.cross_entropy(two, y), rtol=4e-7)
    # −y log σ − (1 − y) log(1 − σ), with probabilities from float64.
    sigma = 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))
    formula = -np.asarray(y) * np.log(sigma) - (1 - np.asarray(y)) * np.log1p(-sigma)
    each = js.binary_cross_entropy(x, y, reduction="none")
    np.testing.assert_allclose(each, formula, rtol=1e-6)


def test_softmax_of_two_classes_is_the_logistic_function():
    x = jnp.array([-2.0, 0.0, 4.0])
    two = jnp.stack([jnp.zeros_like(x), x], axis=-1)
    np.testing.assert_allclose(js.softmax(two)[:, 1], jax.nn.sigmoid(x), rtol=4e-7)


def test_rows_of_softmax_are_distributions():
    logits, _, _ = batch()
    p = js.softmax(logits)
    assert bool(jnp.all((p >= 0) & (p <= 1)))
    np.testing.assert_allclose(jnp.sum(p, axis=-1), np.ones(ROWS), rtol=3e-7)


def test_softmax_keeps_the_order_of_the_logits():
    logits, _, _ = batch()
    order = jnp.argsort(logits, axis=-1)
    np.testing.assert_array_equal(jnp.argsort(js.softmax(logits), axis=-1), order)
    np.testing.assert_array_equal(jnp.argsort(js.log_softmax(logits), axis=-1), order)


def test_a_common_shift_changes_nothing():
    """Shifts by powers of two that keep these logits exact: equal to the last bit."""
    logits, labels, _ = batch()
    logits = jnp.round(logits * 64) / 64
    for shift in (-64.0, 8.0, 1024.0):
        np.testing.assert_array_equal(js.softmax(logits + shift), js.softmax(logits))
        np.testing.assert_array_equal(js.log_softmax(logits + shift), js.log_softmax(logits))
        np.testing.assert_array_equal(
            js.cross_entropy(logits + shift, labels), js.cross_entropy(logits, labels)
        )


# --- the gradient is softmax − y ------------------------------------------------------------------


class GradientTest(chex.TestCase):
    """jax.grad against the chapter's softmax − y, eager and jitted."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_of_the_mean(self):
        logits, labels, one_hot = batch()
        expected = js.closed_form.cross_entropy_gradient(logits, labels)
        chex.assert_trees_all_close(
            expected * ROWS, np.asarray(js.softmax(logits)) - np.asarray(one_hot), **CLOSE32
        )
        for y in (labels, one_hot):
            got = self.variant(jax.grad(js.cross_entropy))(logits, y)
            chex.assert_trees_all_close(got, expected, **CLOSE32)

    @chex.variants(with_jit=True, without_jit=True)
    def test_of_the_sum(self):
        logits, labels, _ = batch()
        gradient = jax.grad(lambda x: js.cross_entropy(x, labels, reduction="sum"))
        expected = js.closed_form.cross_entropy_gradient(logits, labels, reduction="sum")
        chex.assert_trees_all_close(self.variant(gradient)(logits), expected, **CLOSE32)

    @chex.variants(with_jit=True, without_jit=True)
    def test_vmapped_over_examples(self):
        logits, labels, _ = batch()
        expected = js.closed_form.cross_entropy_gradient(logits, labels, reduction="none")
        got = self.variant(jax.vmap(jax.grad(js.cross_entropy)))(logits, labels)
        chex.assert_trees_all_close(got, expected, **CLOSE32)

    @chex.variants(with_jit=True, without_jit=True)
    def test_vmapped_over_batches(self):
        logits, labels, _ = batch()
        stacked = jnp.stack([logits, 2.0 * logits, -logits])
        gradient = jax.vmap(jax.grad(js.cross_entropy), in_axes=(0, None))
        got = self.variant(gradient)(stacked, labels)
        for one, x in zip(got, stacked, strict=True):
            expected = js.closed_form.cross_entropy_gradient(x, labels)
            chex.assert_trees_all_close(one, expected, **CLOSE32)

    @chex.variants(with_jit=True, without_jit=True)
    def test_of_negative_log_likelihood_of_log_softmax(self):
        logits, labels, _ = batch()
        gradient = jax.grad(lambda x: js.nll_loss(js.log_softmax(x), labels))
        expected = js.closed_form.cross_entropy_gradient(logits, labels)
        chex.assert_trees_all_close(self.variant(gradient)(logits), expected, **CLOSE32)

    @chex.variants(with_jit=True, without_jit=True)
    def test_of_binary_cross_entropy(self):
        x = jnp.array([-3.0, -0.5, 0.0, 2.0])
        y = jnp.array([0, 1, 1, 0])
        gradient = self.variant(jax.grad(lambda x: js.binary_cross_entropy(x, y, reduction="sum")))
        expected = jax.nn.sigmoid(x) - y.astype(jnp.float32)
        chex.assert_trees_all_close(gradient(x), expected, **CLOSE32)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "one-hot"])
def test_gradient_in_float64(soft):
    logits, labels, one_hot = batch(jnp.float64)
    gradient = jax.grad(js.cross_entropy)
    y = one_hot if soft else labels
    expected = js.closed_form.cross_entropy_gradient(logits, labels)
    assert expected.dtype == jnp.float64
    chex.assert_trees_all_close(gradient(logits, y), expected, **CLOSE64)
    chex.assert_trees_all_close(jax.jit(gradient)(logits, y), expected, **CLOSE64)
    singly = jax.vmap(gradient)(logits, y) / ROWS
    chex.assert_trees_all_close(singly, expected, **CLOSE64)
    oracle = oracles.cross_entropy_gradient(logits, labels) / ROWS
    chex.assert_trees_all_close(np.asarray(expected), oracle, **CLOSE64)


@pytest.mark.usefixtures("x64")
def test_gradient_against_finite_differences_of_the_formula():
    """Nothing of the package on the other side, not even the closed form."""
    logits, labels, _ = batch(jnp.float64)
    difference = oracles.numerical_gradient(lambda x: oracles.cross_entropy(x, labels), logits)
    chex.assert_trees_all_close(
        np.asarray(jax.grad(js.cross_entropy)(logits, labels)), difference, rtol=1e-7, atol=1e-10
    )


@pytest.mark.exhaustive(every=7, cover=False)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", ["softmax", "log_softmax", "logsumexp", "classes", "soft", "nll", "binary"]
)
def test_derivatives_to_second_order(name):
    """Forward and reverse mode against finite differences, and those of each other."""
    logits, labels, one_hot = batch(jnp.float64)
    soft = js.softmax(logits[::-1])
    function = {
        "softmax": js.softmax,
        "log_softmax": js.log_softmax,
        "logsumexp": js.logsumexp,
        "classes": lambda x: js.cross_entropy(x, labels),
        "soft": lambda x: js.cross_entropy(x, soft),
        "nll": lambda x: js.nll_loss(js.log_softmax(x), labels),
        "binary": lambda x: js.binary_cross_entropy(x, one_hot),
    }[name]
    # Central differences of float64 are good to about 1e-9 of the second derivative.
    check_grads(jax.jit(function), (logits,), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


# --- Jacobian and Hessian -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev], ids=["forward", "reverse"])
def test_jacobian_of_softmax(mode):
    logits, _, _ = batch()
    got = jax.vmap(mode(js.softmax))(logits)
    p = oracles.softmax(logits)
    expected = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    chex.assert_trees_all_close(got, js.closed_form.softmax_jacobian(logits), **CLOSE32)
    np.testing.assert_allclose(got, expected, **CLOSE32)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev], ids=["forward", "reverse"])
def test_jacobian_of_log_softmax(mode):
    """∂ log ŷ_i / ∂x_j = 1[i=j] − ŷ_j."""
    logits, _, _ = batch()
    got = jax.vmap(mode(js.log_softmax))(logits)
    expected = np.eye(CLASSES) - oracles.softmax(logits)[:, None, :]
    np.testing.assert_allclose(got, expected, **CLOSE32)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "one-hot"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_hessian_of_cross_entropy(dtype, soft):
    """The exercise: the second derivative is the variance of softmax, whatever the label."""
    with jax.enable_x64(dtype == jnp.float64):
        logits, labels, one_hot = batch(dtype)
        y = one_hot if soft else labels
        got = jax.jit(jax.vmap(jax.hessian(js.cross_entropy)))(logits, y)
        expected = js.closed_form.cross_entropy_hessian(logits)
        tolerance = CLOSE64 if dtype == jnp.float64 else CLOSE32
        chex.assert_trees_all_close(got, expected, **tolerance)
        p = oracles.softmax(logits)
        variance = np.stack([np.diag(row) - np.outer(row, row) for row in p])
        chex.assert_trees_all_close(np.asarray(got), variance.astype(got.dtype), **tolerance)


def test_hessian_of_logsumexp_is_the_jacobian_of_softmax():
    logits, _, _ = batch()
    got = jax.vmap(jax.hessian(js.logsumexp))(logits)
    chex.assert_trees_all_close(got, js.closed_form.softmax_jacobian(logits), **CLOSE32)


def test_gradient_of_a_mixture_of_labels_is_the_mixture_of_gradients():
    """Soft labels: softmax − y for any distribution y, as the chapter says of [0.1, 0.2, 0.7]."""
    logits = jnp.array([0.3, -1.0, 2.0])
    y = jnp.array([0.1, 0.2, 0.7])
    got = jax.grad(js.cross_entropy)(logits, y)
    chex.assert_trees_all_close(got, js.closed_form.cross_entropy_gradient(logits, y), **CLOSE32)
    np.testing.assert_allclose(got, oracles.softmax(logits) - np.asarray(y), **CLOSE32)


def test_the_gradient_vanishes_where_the_prediction_is_the_label():
    y = jnp.array([0.25, 0.125, 0.625])
    gradient = jax.grad(js.cross_entropy)(jnp.log(y), y)
    np.testing.assert_allclose(gradient, np.zeros(3), atol=1.2e-7)


def test_closed_form_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match=r"reduction must be one of .*got 'average'"):
        js.closed_form.cross_entropy_gradient(
            jnp.zeros((1, 2)), jnp.array([0]), reduction="average"
        )
