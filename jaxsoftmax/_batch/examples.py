"""The examples of a batch: brought to one form before any logit is looked at.

One form is: classes last, labels apart by kind, ignored rows zeroed. Nothing further down knows of
`ignore_index` or of a mask over examples. What only values can tell is decided here, too: which
examples count, and labels outside [0, C) with their `debug_checks`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxsoftmax._arguments import Arrays
from jaxsoftmax._batch.labels import check_counts, checked_index, comparable, is_ignored, is_valid
from jaxsoftmax._options import LossOptions
from jaxsoftmax._row.targets import (
    ClassLabels,
    Labels,
    SoftLabels,
    SparseLabels,
)
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import PerClass, PerRow, Size, accumulator
from jaxsoftmax._xla.masks import keep, nan_where, spread

ROUNDING = 1e-5  # how far beyond [0, 1] the label of a binary loss may lie


class Examples(NamedTuple):
    """A batch in the one form."""

    # Logits or hidden, and a target's beside them; ignored rows are 0: no NaN goes further.
    inputs: tuple[Float[Array, "... K"], ...]
    labels: Labels | None  # indices are int32, of this shard; None beside a target
    weights: PerRow | None  # 0 on ignored examples
    ignored: Bool[Array, "..."] | None


def of_logits(
    logits: tuple[PerRow, ...], arrays: Arrays, axes: tuple[int, ...], options: LossOptions
) -> Examples:
    """Classes to one last axis, both kinds of labels apart, ignored rows zeroed."""
    dtype = accumulator(logits[0].dtype)
    labels = _labels_apart(arrays.labels, logits[0].ndim)
    if isinstance(labels, SoftLabels):
        as_given = classes_last(labels.weights, axes)
        labels = SoftLabels(as_given.astype(dtype))
    logits = tuple(classes_last(x, axes) for x in logits)
    given = Examples(logits, labels, arrays.example_weights, None)
    examples = _settle(given, _broken_logits, dtype, logits[0].shape[-1], options)
    if isinstance(labels, SoftLabels):
        check_counts(as_given, examples.ignored)
        soft = zeroed(labels.weights, examples.ignored)
        examples = examples._replace(labels=SoftLabels(soft))
    return examples


def _labels_apart(labels: Array | SparseLabels | None, ndim: int) -> Labels | None:
    """By kind, of logits of this rank."""
    if labels is None:
        return None
    if isinstance(labels, SparseLabels):
        return SparseLabels(comparable(labels.indices), labels.weights)
    return SoftLabels(labels) if labels.ndim == ndim else ClassLabels(comparable(labels))


def classes_last(x: Array, axes: tuple[int, ...]) -> Array:
    """The axes of the classes as one, the last."""
    if len(axes) == 1:
        return jnp.moveaxis(x, axes[0], -1)
    batch = x.ndim - len(axes)
    moved = jnp.moveaxis(x, axes, range(batch, x.ndim))
    return moved.reshape(*moved.shape[:batch], math.prod(moved.shape[batch:]))


def of_hidden(
    hidden: tuple[PerRow, ...], arrays: Arrays, classes: Size, dtype: np.dtype, options: LossOptions
) -> Examples:
    """The same where the logits do not exist: hidden in place of logits.

    Soft labels keep their dtype and their ignored rows: a copy of them would be as large as the
    logits.
    """
    labels = _labels_apart(arrays.labels, hidden[0].ndim)
    given = Examples(hidden, labels, arrays.example_weights, None)
    examples = _settle(given, _broken_hidden, dtype, classes, options)
    if isinstance(labels, SoftLabels):
        check_counts(labels.weights, examples.ignored)
    return examples


def of_entries(
    logits: Array, labels: Array, example_weights: Array | None, options: LossOptions
) -> Examples:
    """The same for losses that have no class axis: every entry is an example."""
    dtype = accumulator(logits.dtype)
    ignored = is_ignored(labels, options)
    y = zeroed(labels.astype(dtype), ignored)
    # A sum of probabilities, or a resized mask, may round to a little more than 1.
    near = (y >= -ROUNDING) & (y <= 1.0 + ROUNDING)
    y = keep(keep(y, y >= 0.0, 0.0), y <= 1.0, 1.0)
    y = nan_where(~near, y)

    def broken() -> Array:
        return ~jnp.isfinite(logits) | jnp.isnan(y)

    weights, ignored = _effective(example_weights, ignored, broken, dtype)
    logits, y = zeroed(logits, ignored), zeroed(y, ignored)
    return Examples((logits,), SoftLabels(y), weights, ignored)


def zeroed(x: Array, ignored: Array | None, otherwise: float = 0.0) -> Array:
    """0, or another number, in place of what belongs to ignored examples."""
    if ignored is None:
        return x
    counts = spread(~ignored, x) if x.ndim > ignored.ndim else ~ignored
    return keep(x, counts, otherwise)


def _settle(
    given: Examples,
    broken_inputs: Callable[[Array], Array],
    dtype: np.dtype,
    classes: Size,
    options: LossOptions,
) -> Examples:
    """Which examples count and how much; the inputs and labels of the others zeroed."""
    inputs, labels, weights, ignored = given

    def broken() -> Array:
        """Which examples hold something that no loss can be computed from."""
        found = functools.reduce(operator.or_, map(broken_inputs, inputs))
        everywhere = classes * mesh.shards(options.axis_name)
        if isinstance(labels, ClassLabels):
            found |= ~is_valid(labels.classes, everywhere)
        elif isinstance(labels, SparseLabels):
            named = ~is_valid(labels.indices, everywhere) & (labels.weights != 0)
            found |= jnp.any(named | ~jnp.isfinite(labels.weights.astype(dtype)), axis=-1)
        elif labels is not None and jnp.issubdtype(labels.weights.dtype, jnp.floating):
            found |= ~jnp.all(jnp.isfinite(labels.weights), axis=-1)
        return mesh.anywhere(found, options.axis_name)

    if isinstance(labels, ClassLabels):
        ignored = is_ignored(labels.classes, options)
    weights, ignored = _effective(weights, ignored, broken, dtype)
    inputs = tuple(zeroed(x, ignored) for x in inputs)
    if isinstance(labels, ClassLabels):
        index = zeroed(labels.classes, ignored)
        labels = ClassLabels(checked_index(index, classes, options))
    elif isinstance(labels, SparseLabels):
        named = zeroed(labels.weights.astype(dtype), ignored)
        index = keep(labels.indices, named != 0.0)  # that of padding is not looked at
        labels = SparseLabels(checked_index(index, classes, options), named)
    return Examples(inputs, labels, weights, ignored)


def _broken_logits(logits: PerClass) -> Bool[Array, "..."]:
    """A NaN or +inf in the row; -inf is a class that does not exist."""
    return jnp.any(~(logits < jnp.inf), axis=-1)


def _broken_hidden(hidden: Float[Array, "... D"]) -> Bool[Array, "..."]:
    return ~jnp.all(jnp.isfinite(hidden), axis=-1)


def _effective(
    weights: Array | None, ignored: Array | None, broken: Callable[[], Array], dtype: np.dtype
) -> tuple[Array | None, Array | None]:
    """Weights that are 0 on every ignored example, and which those are.

    A real weight of 0 does not make an example ignored, since the gradient of the weight is the
    example's loss; where that loss is no number, it does.
    """
    if weights is not None:
        off = ~weights if weights.dtype == jnp.bool_ else (weights == 0) & broken()
        ignored = off if ignored is None else ignored | off
        weights = weights.astype(dtype)
    if ignored is not None:
        weights = lax.full_like(ignored, 1, dtype) if weights is None else weights
        weights = keep(weights, ~ignored)
    return weights, ignored
