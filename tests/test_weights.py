"""Smoothing, weights and the divisor of the mean."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import (
    CLASS_WEIGHTS,
    EXIST,
    INF,
    KEPT,
    LABELS,
    LOGITS,
    LOSSES,
    MISSING,
    NAN,
    ON_EXISTING,
    SOFT,
    SOME_OPTIONS,
    assert_close,
    compiled,
    each_loss,
    value_and_gradients,
)

import jaxsoftmax as js

# --- label smoothing ------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["", "class weights"])
@pytest.mark.parametrize("kind", ["classes", "nll classes"])
def test_smoothing_counts_only_the_examples_that_are_kept(kind, weighted):
    """PyTorch's rule, term by term: Σ over the kept of (1−ε) w_y ℓ_y + ε/C Σ_c w_c ℓ_c, by Σ w_y.

    A mean over all examples for the smooth term (tinygrad #3570) or its weights left out (pytorch
    #73205) are the ways to get it wrong.
    """
    loss, _, logits, _ = LOSSES[kind]
    labels = np.array([2, -100, 3], np.int32)
    w = CLASS_WEIGHTS if weighted else np.ones(4, np.float32)

    def definition(x):
        log_p = oracles.log_softmax(x) if kind == "classes" else x
        terms = [0.9 * w[y] * -log_p[i, y] + 0.1 / 4 * (w @ -log_p[i]) for i, y in ((0, 2), (2, 3))]
        return sum(terms) / (w[2] + w[3])

    options = {"label_smoothing": 0.1, "ignore_index": -100}
    if weighted:
        options["class_weights"] = w
    value, gradients = value_and_gradients(loss, {"logits": logits, "labels": labels}, **options)
    assert_close(value, definition(oracles.f64(logits)))
    assert_close(gradients["logits"], oracles.numerical_gradient(definition, logits))


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", ON_EXISTING)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_smoothing_at_a_logit_of_minus_infinity(name, labels, smoothing):
    """ε = 0 is no term 0·inf, and ε > 0 gives nothing to a class that does not exist."""
    loss, oracle = getattr(js, name), getattr(oracles, name)
    labels = ON_EXISTING[labels]
    f = partial(loss, labels=labels, label_smoothing=smoothing)
    x = jnp.asarray(MISSING)

    @compiled
    def derivatives(x):
        return jax.jvp(f, (x,), (jnp.ones_like(x),)), jax.grad(f)(x), jax.hessian(f)(x)

    (value, tangent), gradient, hessian = derivatives(x)
    assert_close(value, oracle(MISSING, labels, label_smoothing=smoothing))
    chex.assert_tree_all_finite((gradient, hessian, tangent))
    np.testing.assert_array_equal(np.asarray(gradient)[~EXIST], 0.0)

    def of_existing(numbers):
        moved = MISSING.astype(np.float64)
        moved[EXIST] = numbers
        return oracle(moved, labels, label_smoothing=smoothing)

    expected = oracles.numerical_gradient(of_existing, MISSING[EXIST])
    assert_close(np.asarray(gradient)[EXIST], expected)
    assert_close(tangent, expected.sum())


# --- weights and the mean -------------------------------------------------------------------------


def test_the_mean_divides_by_the_weights_that_count():
    losses = oracles.cross_entropy(LOGITS, LABELS, reduction="none")
    soft = oracles.cross_entropy(LOGITS, SOFT, reduction="none", class_weights=CLASS_WEIGHTS)
    w, v = CLASS_WEIGHTS[LABELS], np.array([2.0, 0.0, 0.5], np.float32)
    f = partial(js.cross_entropy, LOGITS)
    assert_close(f(LABELS, class_weights=CLASS_WEIGHTS), w @ losses / w.sum())
    assert_close(f(LABELS, example_weights=v), v @ losses / v.sum())
    both = f(LABELS, class_weights=CLASS_WEIGHTS, example_weights=v)
    assert_close(both, (w * v) @ losses / (w * v).sum())
    assert_close(f(SOFT, class_weights=CLASS_WEIGHTS), soft.mean())
    assert_close(f(SOFT, class_weights=CLASS_WEIGHTS, example_weights=v), v @ soft / v.sum())
    ignored = f(LABELS, class_weights=CLASS_WEIGHTS, ignore_index=0)
    assert_close(ignored, (w * losses)[[0, 2]].sum() / w[[0, 2]].sum())
    x, y = LOGITS[0], np.array([1, 0, 1, 0])
    entries = oracles.binary_cross_entropy(x, y, reduction="none")
    weights = np.array([2.0, 0.0, 0.5, 1.0], np.float32)
    assert_close(
        js.binary_cross_entropy(x, y, example_weights=weights), weights @ entries / weights.sum()
    )


def test_microbatches_of_unequal_length_with_one_denominator():
    """A mean of means is not the mean over tokens (transformers #34191)."""
    labels = np.array([2, -100, 3, 0, 1, -100, -100, 2], np.int32)
    x = np.random.default_rng(5).normal(size=(8, 4)).astype(np.float32)

    def accumulated(x):
        parts = [slice(0, 2), slice(2, 5), slice(5, 8)]
        return sum(
            js.cross_entropy(x[p], labels[p], ignore_index=-100, denominator=5) for p in parts
        )

    expected = oracles.cross_entropy(x, labels, ignore_index=-100)
    assert_close(accumulated(x), expected)
    slope = oracles.numerical_gradient(
        lambda x: oracles.cross_entropy(x, labels, ignore_index=-100), x
    )
    assert_close(jax.grad(accumulated)(jnp.asarray(x)), slope)


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize(("kind", "options"), SOME_OPTIONS)
def test_the_gradient_without_reduction_takes_the_cotangent(kind, options):
    """A gradient made in the forward pass forgets it (liger #678, #968, #1298)."""
    loss, oracle, logits, labels = LOSSES[kind]

    @compiled
    def pulled_back(x, cotangent):
        losses, pull = jax.vjp(lambda x: loss(x, labels, reduction="none", **options), x)
        return losses, pull(cotangent)[0]

    expected = oracle(logits, labels, reduction="none", **options)
    cotangent = np.linspace(-1.0, 3.0, expected.size).reshape(expected.shape).astype(np.float32)
    cotangent.flat[1] = 0.0

    def weighed(x):
        return np.sum(cotangent * oracle(x, labels, reduction="none", **options))

    losses, gradient = pulled_back(logits, cotangent)
    assert_close(losses, expected)
    assert_close(gradient, oracles.numerical_gradient(weighed, logits))


@each_loss
def test_an_example_of_weight_zero_has_a_gradient_in_its_weight(kind):
    """Learning to reweight starts there: ∂Σwℓ/∂w = ℓ, and (ℓ − mean)/Σw under the mean."""
    loss, oracle, logits, labels = LOSSES[kind]
    losses = oracle(logits, labels, reduction="none")
    weights = np.linspace(0.0, 2.0, losses.size, dtype=np.float32).reshape(losses.shape)
    f = partial(value_and_gradients, loss, {"example_weights": weights}, logits=logits)
    _, gradients = f(labels=labels, reduction="sum")
    assert_close(gradients["example_weights"], losses)
    mean, gradients = f(labels=labels)
    expected = np.sum(weights * losses) / weights.sum()
    assert_close(mean, expected)
    assert_close(gradients["example_weights"], (losses - expected) / weights.sum())


TROUBLES = ["NaN", "+inf", "class that does not exist", "no class"]


@each_loss
def test_an_example_of_weight_zero_and_no_finite_loss_has_no_gradient(kind):
    loss, oracle, logits, labels = LOSSES[kind]
    weights = np.array([1.0, 0.0, 2.0], np.float32)
    if kind == "entries":
        weights = np.tile(weights[:, None], (1, 4))
    losses = oracle(logits[KEPT], labels[KEPT], reduction="none")
    f = compiled(
        jax.value_and_grad(lambda x, w, y: loss(x, y, example_weights=w, reduction="sum"), (0, 1))
    )
    for trouble in TROUBLES:
        value, gradients = f(*with_a_broken_example(kind, trouble, weights))
        assert_close(value, np.sum(weights[KEPT] * losses))
        for gradient in gradients:
            np.testing.assert_array_equal(gradient[1], 0.0, err_msg=trouble)
        assert np.isfinite(gradients[0]).all()
        assert_close(gradients[1][KEPT], losses)


def with_a_broken_example(kind, trouble, weights):
    """Logits, weights and labels, the example in the middle without a finite loss."""
    logits, labels = LOSSES[kind][2].copy(), LOSSES[kind][3].copy()
    if kind == "entries":
        logits[1], labels[1] = {"NaN": NAN, "no class": 0.0}.get(trouble, INF), 0.0
        labels[1] = 2.0 if trouble == "no class" else 0.0
    elif trouble == "no class":
        labels[1] = 9 if labels.ndim == 1 else NAN
    else:
        # The label is class 0: an infinity on another is as far from it as can be.
        at = 1 if trouble == "+inf" else 0
        logits[1, at] = {"NaN": NAN, "+inf": INF}.get(trouble, -INF)
    return logits, weights, labels


ZERO_DIVISORS = {
    "denominator": {"denominator": np.float32(0.0)},
    "weights that cancel": {"example_weights": np.array([1.0, -1.0, 0.0], np.float32)},
    "class weights": {"class_weights": np.zeros(4, np.float32)},
    "weights of the labels": {"class_weights": np.array([0.0, 1.0, 0.0, 0.0], np.float32)},
}


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("how", ZERO_DIVISORS)
def test_a_divisor_of_zero(how, smoothing):
    """Loss 0 and all gradients 0, the divisor's own among them."""
    arrays = {"logits": LOGITS, "labels": LABELS} | ZERO_DIVISORS[how]
    value, gradients = value_and_gradients(js.cross_entropy, arrays, label_smoothing=smoothing)
    assert value == 0.0
    assert set(gradients) >= set(ZERO_DIVISORS[how])
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, 0.0, err_msg=name)


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("how", ["denominator", "weights that cancel"])
@pytest.mark.parametrize("kind", ["nll classes", "distributions", "nll distributions", "entries"])
def test_a_divisor_of_zero_of_the_other_losses(kind, how):
    loss, _, logits, labels = LOSSES[kind]
    arrays = {"logits": logits, "labels": labels} | ZERO_DIVISORS[how]
    if kind == "entries" and how != "denominator":
        arrays["example_weights"] = arrays["example_weights"][:, None]
    value, gradients = value_and_gradients(loss, arrays)
    assert value == 0.0
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, 0.0, err_msg=name)
