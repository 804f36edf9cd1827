"""Float64 references for values and gradients, written from the formulas and not from the package.

NumPy for whole batches, mpmath with 50 digits where float64 itself would be the limit. Everything
takes and returns NumPy arrays or floats; inputs are first converted to float64, which is exact for
every dtype that the package takes, so that a reference sees the very numbers that the device saw.

The one formula that all of them stand on: with a the largest class,

    log p_c = (x_c − x_a) − log1p(Σ_{j≠a} exp(x_j − x_a)),

two terms of one sign, so that float64 gives every log-probability to about 1e-16 of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

Numbers = np.ndarray[Any, Any]


def f64(x: Any) -> Numbers:
    """The same numbers as float64."""
    return np.asarray(x).astype(np.float64)


# --- distributions, over the last axis ------------------------------------------------------------


def _exclude(x: Any, where: Any) -> Numbers:
    x = f64(x)
    return x if where is None else np.where(np.broadcast_to(where, x.shape), x, -np.inf)


def _log_parts(x: Numbers) -> tuple[Numbers, Numbers]:
    """max(x) as [..., 1] and the logsumexp above it, [..., 1]; NaN for a row that holds NaN."""
    top = x.max(-1, keepdims=True)
    a = x.argmax(-1)
    with np.errstate(invalid="ignore"):
        terms = np.exp(x - top)
    # Several classes at +inf share the probability, and nothing finite has any.
    terms = np.where(top == np.inf, (x == np.inf).astype(np.float64), terms)
    terms = np.where(top == -np.inf, 0.0, terms)
    np.put_along_axis(terms, a[..., None], 0.0, -1)
    above = np.log1p(terms.sum(-1, keepdims=True))
    return top, np.where(np.isnan(top), np.nan, above)


def logsumexp(x: Any, where: Any = None) -> Numbers:
    """log Σ exp(x)."""
    top, above = _log_parts(_exclude(x, where))
    return (top + above)[..., 0]


def log_softmax(x: Any, where: Any = None) -> Numbers:
    """log p; −inf for a class that does not exist."""
    x = _exclude(x, where)
    top, above = _log_parts(x)
    with np.errstate(invalid="ignore"):
        below = np.where(x == top, 0.0, x - top)
    exists = x != -np.inf
    return np.where(exists, below - above, np.where(np.isnan(top), np.nan, -np.inf))


def softmax(x: Any, where: Any = None) -> Numbers:
    """p; all 0 where no class exists."""
    return np.exp(log_softmax(x, where))


# --- losses ---------------------------------------------------------------------------------------


def cross_entropy(
    logits: Any,
    labels: Any,
    *,
    axis: int = -1,
    where: Any = None,
    class_weights: Any = None,
    example_weights: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: Any = None,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    temperature: float = 1.0,
) -> Numbers:
    """Cross entropy of softmax(soft_cap(logits) / temperature), with every option."""
    x = np.moveaxis(_exclude(logits, where), axis, -1)
    x = np.where(x == -np.inf, x, transform(x, soft_cap, temperature))
    losses = _label_terms(log_softmax(x), labels, axis, class_weights, label_smoothing)
    if z_loss:
        log_z = logsumexp(x)
        losses = losses + np.where(log_z == -np.inf, 0.0, z_loss * log_z**2)
    return _reduced(
        losses, labels, class_weights, example_weights, ignore_index, reduction, denominator
    )


def nll_loss(
    log_probs: Any,
    labels: Any,
    *,
    axis: int = -1,
    class_weights: Any = None,
    example_weights: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: Any = None,
) -> Numbers:
    """Negative log-likelihood of labels under log-probabilities."""
    log_p = np.moveaxis(f64(log_probs), axis, -1)
    losses = _label_terms(log_p, labels, axis, class_weights, label_smoothing)
    return _reduced(
        losses, labels, class_weights, example_weights, ignore_index, reduction, denominator
    )


def binary_cross_entropy(
    logits: Any,
    labels: Any,
    *,
    pos_weight: Any = None,
    example_weights: Any = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: Any = None,
) -> Numbers:
    """−pos_weight·y·log σ(x) − (1−y)·log σ(−x), entry by entry."""
    x, y = f64(logits), f64(labels)
    y = np.where((y >= 0) & (y <= 1), y, np.nan)
    y = (1.0 - label_smoothing) * y + label_smoothing / 2
    weight = 1.0 if pos_weight is None else np.broadcast_to(f64(pos_weight), x.shape)
    losses = _product(weight * y, softplus(-x)) + _product(1.0 - y, softplus(x))
    weights = np.ones(x.shape)
    if example_weights is not None:
        weights = np.broadcast_to(f64(example_weights), x.shape)
    return _divide(_weighted(losses, weights), weights.sum(), reduction, denominator)


def softplus(x: Any) -> Numbers:
    """log(1 + exp(x)), to about 1e-16 of itself wherever that is a normal number."""
    return np.maximum(f64(x), 0.0) + np.log1p(np.exp(-np.abs(f64(x))))


def transform(x: Any, soft_cap: float | None = None, temperature: float = 1.0) -> Numbers:
    """c·tanh(x/c) / T."""
    x = f64(x)
    return (x if soft_cap is None else soft_cap * np.tanh(x / soft_cap)) / temperature


def _label_terms(
    log_p: Numbers, labels: Any, axis: int, class_weights: Any, smoothing: float
) -> Numbers:
    """Σ_c target_c · w_c · (−log p_c), classes last; no example weights yet."""
    classes = log_p.shape[-1]
    labels = np.asarray(labels)
    if labels.ndim == log_p.ndim:
        target = np.moveaxis(f64(labels), axis, -1)
        invalid = np.zeros(target.shape[:-1], bool)
    else:
        invalid = (labels < 0) | (labels >= classes)
        target = (labels[..., None] == np.arange(classes)).astype(np.float64)
    exists = log_p != -np.inf
    count = np.maximum(exists.sum(-1, keepdims=True), 1)
    if smoothing:
        target = (1.0 - smoothing) * target + np.where(exists, smoothing / count, 0.0)
    if class_weights is not None:
        target = target * f64(class_weights)
    return np.where(invalid, np.nan, _product(target, -log_p).sum(-1))


def _reduced(
    losses: Numbers,
    labels: Any,
    class_weights: Any,
    example_weights: Any,
    ignore_index: int | None,
    reduction: str,
    denominator: Any,
) -> Numbers:
    labels = np.asarray(labels)
    weights = np.ones(losses.shape) if example_weights is None else f64(example_weights)
    integer = labels.ndim == losses.ndim
    if integer and ignore_index is not None:
        weights = np.where(labels == ignore_index, 0.0, weights)
    divisor = weights.sum()
    if integer and class_weights is not None:
        w = f64(class_weights)
        valid = (labels >= 0) & (labels < len(w))
        of_label = np.where(valid, w[np.where(valid, labels, 0)], np.nan)
        divisor = np.where(weights == 0, 0.0, weights * of_label).sum()
    return _divide(_weighted(losses, weights), divisor, reduction, denominator)


def _weighted(losses: Numbers, weights: Numbers) -> Numbers:
    """Weight · loss; what has weight 0 adds nothing, NaN and inf included."""
    return np.where(weights == 0, 0.0, weights * np.where(weights == 0, 0.0, losses))


def _divide(losses: Numbers, divisor: Any, reduction: str, denominator: Any) -> Numbers:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    assert reduction == "mean"
    divisor = f64(divisor if denominator is None else denominator)
    return np.zeros(()) if divisor == 0 else losses.sum() / divisor


def _product(coefficients: Numbers, values: Numbers) -> Numbers:
    """A product with 0·inf = 0."""
    none = (coefficients == 0) & np.isinf(values)
    return coefficients * np.where(none, 0.0, values)


# --- gradients ------------------------------------------------------------------------------------


def target_gradient(logits: Any, labels: Any) -> Numbers:
    """−Σ_{j≠y} p_j, the gradient of each example's loss at its integer label; classes last."""
    p = softmax(logits)
    np.put_along_axis(p, np.asarray(labels)[..., None], 0.0, -1)
    return -p.sum(-1)


def cross_entropy_gradient(logits: Any, labels: Any) -> Numbers:
    """The gradient of each example's loss, softmax − y without cancellation; classes last."""
    p = softmax(logits)
    index = np.asarray(labels)[..., None]
    np.put_along_axis(p, index, target_gradient(logits, labels)[..., None], -1)
    return p


def numerical_gradient(function: Callable[[Numbers], Any], x: Any, step: float = 1e-5) -> Numbers:
    """Central differences of a scalar function of one array: good to about 1e-9 of its size."""
    x = f64(x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


# --- 50 digits ------------------------------------------------------------------------------------

DIGITS = 50


def mp_loss_and_target_gradient(logits_row: Any, label: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    """−log p_y and −Σ_{j≠y} p_j of one row, for the exact values of its logits.

    Equal logits are exponentiated once, so that a row of 10^5 classes with few distinct values is
    as cheap as a short one.
    """
    with mpmath.workdps(DIGITS):
        others, counts = np.unique(np.delete(f64(logits_row), label), return_counts=True)
        at_label = mpmath.mpf(float(f64(logits_row)[label]))
        odds = mpmath.fsum(
            int(n) * mpmath.exp(mpmath.mpf(float(x)) - at_label)
            for x, n in zip(others, counts, strict=True)
        )
        return mpmath.log1p(odds), -odds / (1 + odds)


def relative_error(got: Any, expected: mpmath.mpf) -> float:
    """|got − expected| / |expected|, in 50 digits; got is taken exactly."""
    with mpmath.workdps(DIGITS):
        return float(abs(mpmath.mpf(float(got)) - expected) / abs(expected))
