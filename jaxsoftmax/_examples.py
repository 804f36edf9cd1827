"""The examples of a batch: brought to one form before any logit is looked at, reduced at the end.

One form is: classes last, labels apart by kind, ignored rows zeroed. Nothing further down knows of
`ignore_index` or of a mask over examples. What only values can tell is decided here, too: which
examples count, and labels outside [0, C) with their `debug_checks`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxsoftmax._arguments import Arrays
from jaxsoftmax._labels import check_counts, checked_index, comparable, is_ignored, is_valid
from jaxsoftmax._options import LossOptions
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.targets import (
    ClassLabels,
    Labels,
    SoftLabels,
    SparseLabels,
    weight_of_label,
)
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, Size, accumulator
from jaxsoftmax._xla.masks import keep, nan_where, spread


class LossStatistics(NamedTuple):
    """What a loss knows besides its value (a pytree; `return_statistics=True` returns it).

    All are of p = softmax(soft_cap(logits) / temperature), without smoothing or weights, and 0 on
    ignored examples (`rank` −1). Those that are real numbers are float32 (float64 for float64
    logits) and differentiable; beside a scalar loss they cost no further matrix product unless they
    are differentiated. `(rank == 0).sum()` counts the examples that are right, `rank < k` those
    whose label is among the k largest.
    """

    log_prob: PerRow  # log p_y of the label y; Σ_c y_c log p_c for soft labels
    logsumexp: PerRow  # log Σ_c exp(x_c)
    entropy: PerRow  # −Σ_c p_c log p_c
    predicted: Index  # argmax_c x_c, the first of several, int32
    predicted_log_prob: PerRow  # log p of it: the confidence
    rank: Index | None  # how many classes lie strictly above the label; None for soft labels
    weight_sum: Float[Array, ""]  # the divisor of the mean that labels and weights imply


# Of a package that is imported a second time (its modules gone from `sys.modules`) the first stays.
for _public in (LossStatistics, SparseLabels):
    with contextlib.suppress(ValueError):
        jax.export.register_namedtuple_serialization(
            _public, serialized_name=f"jaxsoftmax.{_public.__name__}"
        )

ROUNDING = 1e-5  # how far beyond [0, 1] the label of a binary loss may lie

Loss = Array | tuple[Array, LossStatistics]


class Examples(NamedTuple):
    """A batch in the one form."""

    inputs: Float[Array, "... K"]  # logits or hidden; ignored rows are 0: no NaN goes further
    labels: Labels  # indices are int32, of this shard
    weights: PerRow | None  # 0 on ignored examples
    ignored: Bool[Array, "..."] | None


def of_logits(
    logits: PerRow, arrays: Arrays, axes: tuple[int, ...], options: LossOptions
) -> Examples:
    """Classes to one last axis, both kinds of labels apart, ignored rows zeroed."""
    dtype = accumulator(logits.dtype)
    labels = _labels_apart(arrays.labels, logits.ndim)
    if isinstance(labels, SoftLabels):
        as_given = classes_last(labels.weights, axes)
        labels = SoftLabels(as_given.astype(dtype))
    logits = classes_last(logits, axes)

    def broken() -> Array:
        """A NaN or +inf in the row; -inf is a class that does not exist."""
        return ~(jnp.max(logits, axis=-1) < jnp.inf)

    given = Examples(logits, labels, arrays.example_weights, None)
    examples = _settle(given, broken, dtype, logits.shape[-1], options)
    if not isinstance(examples.labels, SoftLabels):
        return examples
    check_counts(as_given, examples.ignored)
    if examples.ignored is None:
        return examples
    soft = examples.labels.weights
    return examples._replace(labels=SoftLabels(keep(soft, spread(~examples.ignored, soft))))


def of_pair(
    logits: PerRow, target: PerRow, arrays: Arrays, axes: tuple[int, ...], options: LossOptions
) -> tuple[PerClass, PerClass, Examples]:
    """The same for two rows of logits that are compared, the second in place of labels."""
    x, y = classes_last(logits, axes), classes_last(target, axes)

    def broken() -> Array:
        found = ~(jnp.max(x, axis=-1) < jnp.inf) | ~(jnp.max(y, axis=-1) < jnp.inf)
        return mesh.anywhere(found, options.axis_name)

    weights, ignored = _effective(arrays.example_weights, None, broken, x.dtype)
    if ignored is not None:
        x, y = (keep(z, spread(~ignored, z)) for z in (x, y))
    return x, y, Examples(x, SoftLabels(y), weights, ignored)


def _labels_apart(labels: Array | SparseLabels, ndim: int) -> Labels:
    """By kind, of logits of this rank."""
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
    hidden: Float[Array, "... D"],
    arrays: Arrays,
    classes: Size,
    dtype: np.dtype,
    options: LossOptions,
) -> Examples:
    """The same where the logits do not exist: hidden in place of logits.

    Soft labels keep their dtype and their ignored rows: a copy of them would be as large as the
    logits.
    """
    labels = _labels_apart(arrays.labels, hidden.ndim)

    def broken() -> Array:
        return ~jnp.all(jnp.isfinite(hidden), axis=-1)

    given = Examples(hidden, labels, arrays.example_weights, None)
    examples = _settle(given, broken, dtype, classes, options)
    if isinstance(labels, SoftLabels):
        check_counts(labels.weights, examples.ignored)
    return examples


def of_entries(
    logits: Array, labels: Array, example_weights: Array | None, options: LossOptions
) -> Examples:
    """The same for losses that have no class axis: every entry is an example."""
    dtype = accumulator(logits.dtype)
    ignored = is_ignored(labels, options)
    y = labels.astype(dtype)
    if ignored is not None:
        y = keep(y, ~ignored)
    # A sum of probabilities, or a resized mask, may round to a little more than 1.
    near = (y >= -ROUNDING) & (y <= 1.0 + ROUNDING)
    y = keep(keep(y, y >= 0.0, 0.0), y <= 1.0, 1.0)
    y = nan_where(~near, y)

    def broken() -> Array:
        return ~jnp.isfinite(logits) | jnp.isnan(y)

    weights, ignored = _effective(example_weights, ignored, broken, dtype)
    if ignored is not None:
        logits, y = keep(logits, ~ignored), keep(y, ~ignored)
    return Examples(logits, SoftLabels(y), weights, ignored)


def _settle(
    given: Examples,
    broken_inputs: Callable[[], Array],
    dtype: np.dtype,
    classes: Size,
    options: LossOptions,
) -> Examples:
    """Which examples count and how much; the inputs and labels of the others zeroed."""
    inputs, labels, weights, ignored = given

    def broken() -> Array:
        """Which examples hold something that no loss can be computed from."""
        found = broken_inputs()
        everywhere = classes * mesh.shards(options.axis_name)
        if isinstance(labels, ClassLabels):
            found |= ~is_valid(labels.classes, everywhere)
        elif isinstance(labels, SparseLabels):
            named = ~is_valid(labels.indices, everywhere) & (labels.weights != 0)
            found |= jnp.any(named | ~jnp.isfinite(labels.weights.astype(dtype)), axis=-1)
        elif jnp.issubdtype(labels.weights.dtype, jnp.floating):
            found |= ~jnp.all(jnp.isfinite(labels.weights), axis=-1)
        return mesh.anywhere(found, options.axis_name)

    if isinstance(labels, ClassLabels):
        ignored = is_ignored(labels.classes, options)
    weights, ignored = _effective(weights, ignored, broken, dtype)
    if ignored is not None:
        inputs = keep(inputs, spread(~ignored, inputs))
    if isinstance(labels, ClassLabels):
        index = labels.classes if ignored is None else keep(labels.classes, ~ignored)
        labels = ClassLabels(checked_index(index, classes, options))
    elif isinstance(labels, SparseLabels):
        named = labels.weights.astype(dtype)
        if ignored is not None:
            named = keep(named, spread(~ignored, named))
        index = keep(labels.indices, named != 0.0)  # that of padding is not looked at
        labels = SparseLabels(checked_index(index, classes, options), named)
    return Examples(inputs, labels, weights, ignored)


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


# --- reduction ------------------------------------------------------------------------------------


def reduced(rows: RowLosses, examples: Examples, arrays: Arrays, options: LossOptions) -> Loss:
    """The losses of the rows as one number, with the statistics where they are asked for."""
    losses = rows.loss
    divisor = divisor_of(examples, arrays, losses.shape, losses.dtype, options)
    if examples.weights is not None:
        losses = examples.weights * counted(losses, examples.weights)
    if options.reduction != "none":
        losses = divided(jnp.sum(losses), divisor, arrays, options)
    if not options.return_statistics:
        return losses
    return losses, statistics_of(rows, examples, divisor)


def statistics_of(rows: RowLosses, examples: Examples, divisor: Array) -> LossStatistics:
    """What is known of the rows, those that do not count aside."""

    def counting(values: Array | None, otherwise: int = 0) -> Array:
        assert values is not None
        if examples.ignored is None:
            return values
        ignored = examples.ignored
        if values.ndim > ignored.ndim:
            ignored = spread(ignored, values)
        return lax.select(ignored, lax.full_like(values, otherwise), values)

    return LossStatistics(
        log_prob=counting(rows.log_prob),
        logsumexp=counting(rows.logsumexp),
        entropy=counting(rows.entropy),
        predicted=counting(rows.predicted),
        predicted_log_prob=counting(rows.predicted_log_prob),
        rank=None if rows.rank is None else counting(rows.rank, -1),
        weight_sum=divisor,
    )


def counted(losses: PerRow, weights: PerRow) -> PerRow:
    """The losses with 0 for what a weight of 0 cannot hide: infinity, and NaN."""
    return keep(losses, (weights != 0.0) | lax.is_finite(losses))


def divisor_of(
    examples: Examples,
    arrays: Arrays,
    shape: tuple[Size, ...],
    dtype: np.dtype,
    options: LossOptions,
) -> Float[Array, ""]:
    """What the mean divides by, known before any logit is.

    Σ label_weights · weights; the number of examples without them.
    """
    weights = examples.weights
    if arrays.class_weights is not None and isinstance(examples.labels, ClassLabels):
        wide = arrays.class_weights.astype(dtype)
        of_label = weight_of_label(wide, examples.labels.classes, options.axis_name)
        if weights is None:
            weights = of_label
        else:
            weights = weights * keep(of_label, (weights != 0.0) | lax.is_finite(of_label))
    if weights is None:
        return jnp.asarray(math.prod(shape), dtype)
    return jnp.sum(weights)


def divided(
    total: Float[Array, ""], divisor: Float[Array, ""], arrays: Arrays, options: LossOptions
) -> Float[Array, ""]:
    """The sum, or the chapter's 1/N Σ; a divisor of 0 gives 0 and gradient 0."""
    if options.reduction == "sum":
        return total
    if arrays.denominator is not None:
        divisor = arrays.denominator.astype(total.dtype)
    counts = divisor != 0.0
    return keep(total / keep(divisor, counts, 1.0), counts)
