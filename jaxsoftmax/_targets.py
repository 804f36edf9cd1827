"""What each row is compared with: a class, or a coefficient for every class.

The loss of a row is  share · (−log p_label) + Σ_c coefficients_c · (−log p_c),  with

    integer label y:   share = (1−ε) w_y     coefficients_c = ε w_c / C    (None where ε = 0)
    distribution y:    share = None          coefficients_c = w_c ((1−ε) y_c + ε / C)

where w are the class weights (1 if None), ε the label smoothing and C the number of classes that
exist in the row. Smoothing gives nothing to a class that does not exist.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxsoftmax import _extremes, _mesh
from jaxsoftmax._mesh import AxisName
from jaxsoftmax._precision import accumulator


class Targets(NamedTuple):
    """Both kinds of label, smoothed and weighted, in the form that the loss reads."""

    label: Int[Array, "..."]  # of this shard, see _mesh; for distributions the largest logit
    share: Float[Array, "..."] | float | None  # None for distributions
    coefficients: Float[Array, "... C"] | None


def make(
    logits: Float[Array, "... C"],
    label: Int[Array, "..."] | None,
    distribution: Float[Array, "... C"] | None,
    class_weights: Float[Array, "C"] | None,
    smoothing: float,
    axis_name: AxisName = None,
) -> Targets:
    """Targets of whichever kind of label there is."""
    if class_weights is not None:
        class_weights = class_weights.astype(accumulator(logits.dtype))
    if label is not None:
        return from_classes(logits, label, class_weights, smoothing, axis_name)
    assert distribution is not None
    return from_distributions(logits, distribution, class_weights, smoothing, axis_name)


def from_classes(
    logits: Float[Array, "... C"],
    label: Int[Array, "..."],
    class_weights: Float[Array, "C"] | None,
    smoothing: float,
    axis_name: AxisName = None,
) -> Targets:
    """Targets of integer labels; no one-hot array is built."""
    share: Array | float = 1.0 - smoothing
    if class_weights is not None:
        share = share * weight_of_label(class_weights, label, axis_name)
    if not smoothing:
        return Targets(label, share, None)
    return Targets(label, share, _weighted(_uniform(logits, smoothing, axis_name), class_weights))


def from_distributions(
    logits: Float[Array, "... C"],
    distribution: Float[Array, "... C"],
    class_weights: Float[Array, "C"] | None,
    smoothing: float,
    axis_name: AxisName = None,
) -> Targets:
    """Targets of one-hot or soft labels."""
    coefficients = distribution
    if smoothing:
        coefficients = (1.0 - smoothing) * distribution + _uniform(logits, smoothing, axis_name)
    label = _extremes.argmax(logits, axis_name)
    return Targets(label, None, _weighted(coefficients, class_weights))


def from_binary(
    label: Float[Array, "..."], pos_weight: Array | None, smoothing: float
) -> tuple[Array, Array]:
    """The coefficients of −log σ(x) and of −log σ(−x)."""
    positive = (1.0 - smoothing) * label + smoothing / 2 if smoothing else label
    negative = 1.0 - positive
    if pos_weight is not None:
        positive = positive * pos_weight.astype(label.dtype)
    return positive, negative


def weight_of_label(
    class_weights: Float[Array, "C"], label: Int[Array, "..."], axis_name: AxisName = None
) -> Float[Array, "..."]:
    """w_y of each example, NaN for a label that is none of the classes."""
    classes = class_weights.shape[0]
    weights = jnp.take(class_weights, jnp.minimum(label, classes - 1), axis=0)
    return _mesh.from_owner(weights, label, classes, axis_name)


def _uniform(logits: Array, smoothing: float, axis_name: AxisName) -> Array:
    """ε/C on the classes that exist, 0 on the others."""
    exists = logits != -jnp.inf
    dtype = accumulator(logits.dtype)
    count = _mesh.total(jnp.sum(exists, axis=-1, keepdims=True, dtype=dtype), axis_name)
    return jnp.where(exists, smoothing / jnp.maximum(count, 1.0), 0.0).astype(dtype)


def _weighted(coefficients: Array, class_weights: Array | None) -> Array:
    if class_weights is None:
        return coefficients
    shape = (1,) * (coefficients.ndim - 1) + class_weights.shape
    return coefficients * class_weights.reshape(shape)
