"""Inputs that users of this and other libraries have reported, and what they should give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax as js
from jaxsoftmax import closed_form


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
    found, expected = (jax.jit(jax.value_and_grad(loss))(x, w) for w in (weights, whole))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    if weights.dtype != bool:
        of_weights = jax.grad(loss, 1)(x, weights)
        assert of_weights.shape == weights.shape


# --- extremes of options --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("temperature", 1e-39), ("soft_cap", 1e39)])
def test_options_that_float32_does_not_hold(name, value):
    """A temperature of 1e-39 gave 0.6931 for [1, 2], a cap of 1e39 NaN: both are refused."""
    with pytest.raises(ValueError, match=rf"{name} must be a finite number > 0, normal in float32"):
        js.cross_entropy(jnp.array([[1.0, 2.0]]), np.array([1]), **{name: value})


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
