"""Options that act on the target: what each row is compared with.

The loss of a row is  share · (−log p_pivot) + Σ_c coefficients_c · (−log p_c),  with

    integer label y: pivot = y          share = (1−ε) w_y   coefficients_c = ε w_c / C
    soft labels y:   pivot = argmax x   share = None        coefficients_c = w_c ((1−ε) y_c + ε/C)
    sparse labels:   the same, with ε w_c / C for the coefficients, and the others named

where w are the class weights (1 if None), ε the label smoothing and C the number of classes that
exist in the row; for integer labels without smoothing the coefficients are None. Smoothing gives
nothing to a class that does not exist.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxsoftmax._row.options import RowOptions, is_on
from jaxsoftmax._row.state import largest_class
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import ClassWeights, Index, PerClass, PerNamed, PerRow, accumulator
from jaxsoftmax._xla.masks import counted, keep, spread, spread_over, take
from jaxsoftmax._xla.mesh import AxisName


class ClassLabels(NamedTuple):
    """One class for each row."""

    classes: Index  # indices into this shard, see `_xla.mesh`


class SoftLabels(NamedTuple):
    """One distribution over the classes for each row, one-hot or soft."""

    weights: PerClass


class SparseLabels(NamedTuple):
    """One distribution for each example that names few classes (a pytree).

    It has `weights[..., k]` at class `indices[..., k]` and 0 elsewhere: a teacher's top k, the two
    labels of mixup, several hot classes. Both arrays have the shape of the batch and a last axis K.
    A class that is named twice adds up. An entry of weight exactly 0 is padding, whatever its
    index; another entry with an index that is no class makes its example NaN. The weights need not
    sum to 1.
    """

    indices: Index  # integers [..., K]
    weights: PerNamed  # real numbers [..., K]


Labels = ClassLabels | SoftLabels | SparseLabels


class Targets(NamedTuple):
    """Both kinds of labels, smoothed and weighted."""

    pivot: Index
    share: PerRow | float | None
    coefficients: PerClass | None
    named: SparseLabels | None = None  # coefficients of a few classes beside these


def make(
    logits: PerClass, labels: Labels, class_weights: ClassWeights, options: RowOptions
) -> Targets:
    """Targets of whichever kind of label there is; no one-hot array is built."""
    mesh_axis, smoothing = options.axis_name, options.label_smoothing
    if class_weights is not None:
        class_weights = class_weights.astype(accumulator(logits.dtype))
    uniform = _uniform(logits, smoothing, mesh_axis) if is_on(smoothing) else None
    if isinstance(labels, SoftLabels):
        coefficients = _rest_of(smoothing, labels.weights)
        if uniform is not None:
            coefficients = coefficients + uniform
        pivot = largest_class(logits, mesh_axis)
        return Targets(pivot, None, _weighted(coefficients, class_weights))
    if uniform is not None:
        uniform = _weighted(uniform, class_weights)
    if isinstance(labels, SparseLabels):
        masses = _rest_of(smoothing, labels.weights)
        if class_weights is not None:
            of_named = weight_of_label(class_weights, labels.indices, mesh_axis)
            masses = _times(masses, of_named)
        pivot = largest_class(logits, mesh_axis)
        return Targets(pivot, None, uniform, SparseLabels(labels.indices, masses))
    share: Array | float = 1.0 - smoothing
    if class_weights is not None:
        share = share * weight_of_label(class_weights, labels.classes, mesh_axis)
    return Targets(labels.classes, share, uniform)


def of_binary(
    label: Array, pos_weight: Array | None, smoothing: float | Array
) -> tuple[Array, Array]:
    """The coefficients of −log σ(x) and of −log σ(−x)."""
    positive = _rest_of(smoothing, label)
    if is_on(smoothing):
        positive = positive + smoothing / 2
    negative = 1.0 - positive
    if pos_weight is not None:
        positive = _times(positive, pos_weight.astype(label.dtype))
    return positive, negative


def weight_of_label(class_weights: Float[Array, "C"], label: Index, mesh_axis: AxisName) -> PerRow:
    """w_y of each row, NaN for a label that is none of the classes."""
    classes = class_weights.shape[0]
    weights = take(class_weights, jnp.minimum(label, classes - 1))
    return mesh.from_owner(weights, label, classes, mesh_axis)


def _rest_of(smoothing: float | Array, labels: Array) -> Array:
    """(1−ε) y; a smoothing of 1 knows no labels, whatever they hold."""
    if not is_on(smoothing):
        return labels
    rest = jnp.asarray(1.0 - smoothing, labels.dtype)
    return rest * counted(labels, rest)


def _uniform(logits: Array, smoothing: float | Array, mesh_axis: AxisName) -> Array:
    """ε/C on the classes that exist, 0 on the others."""
    exists = logits != -jnp.inf
    count = mesh.over_classes(exists.astype(accumulator(logits.dtype)), mesh_axis)
    return keep(spread(smoothing / jnp.maximum(count, 1.0), logits), exists)


def _weighted(coefficients: Array, class_weights: Array | None) -> Array:
    if class_weights is None:
        return coefficients
    return _times(coefficients, spread_over(class_weights, coefficients))


def _times(mass: Array, weights: Array) -> Array:
    """mass · weights, 0 where either is 0, whatever the other is."""
    return counted(mass, weights) * counted(weights, mass)
