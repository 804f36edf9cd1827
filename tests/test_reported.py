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
