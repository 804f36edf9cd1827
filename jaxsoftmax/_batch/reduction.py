"""Losses of rows to one number, the chapter's 1/N Σ, and what is known of the rows beside it."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxsoftmax._arguments import Arrays
from jaxsoftmax._batch.examples import Examples, zeroed
from jaxsoftmax._options import LossOptions
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.targets import ClassLabels, SparseLabels, weight_of_label
from jaxsoftmax._xla.dtypes import Index, PerRow, Size
from jaxsoftmax._xla.masks import counted, keep


class LossStatistics(NamedTuple):
    """What a loss knows besides its value (a pytree; `return_statistics=True` returns it).

    All are of p = softmax(soft_cap(logits) / temperature), without smoothing or weights, and 0 on
    ignored examples (`rank` −1). Those that are real numbers are float32 (float64 for float64
    logits) and differentiable; beside a scalar loss they cost no further matrix product unless they
    are differentiated. `(rank == 0).sum()` counts the examples that are right,
    `((0 <= rank) & (rank < k)).sum()` those whose label is among the k largest.
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

Loss = Array | tuple[Array, LossStatistics]
Divisor = Float[Array | np.ndarray, ""]


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


def statistics_of(rows: RowLosses, examples: Examples, divisor: Divisor) -> LossStatistics:
    """What is known of the rows, those that do not count aside."""
    known: dict[str, Any] = {
        name: x if x is None else zeroed(x, examples.ignored, -1.0 if name == "rank" else 0.0)
        for name, x in rows._asdict().items()
        if name in LossStatistics._fields
    }
    return LossStatistics(**known, weight_sum=jnp.asarray(divisor))


def divisor_of(
    examples: Examples,
    arrays: Arrays,
    shape: tuple[Size, ...],
    dtype: np.dtype,
    options: LossOptions,
) -> Divisor:
    """What the mean divides by, known before any logit is.

    Σ label_weights · weights; the number of examples without them.
    """
    weights = examples.weights
    if arrays.class_weights is not None and isinstance(examples.labels, ClassLabels):
        wide = arrays.class_weights.astype(dtype)
        of_label = weight_of_label(wide, examples.labels.classes, options.axis_name)
        weights = of_label if weights is None else weights * counted(of_label, weights)
    if weights is not None:
        return jnp.sum(weights)
    count = math.prod(shape)
    return np.asarray(count, dtype) if isinstance(count, int) else jnp.asarray(count, dtype)


def divided(
    total: Float[Array, ""], divisor: Divisor, arrays: Arrays, options: LossOptions
) -> Float[Array, ""]:
    """The sum, or the chapter's 1/N Σ; a divisor of 0 gives 0 and gradient 0."""
    if options.reduction == "sum":
        return total
    if arrays.denominator is not None:
        divisor = arrays.denominator.astype(total.dtype)
    if isinstance(divisor, np.ndarray) and divisor:  # a number that is known
        return total / divisor
    divisor = jnp.asarray(divisor)
    counts = divisor != 0.0
    return keep(total / keep(divisor, counts, 1.0), counts)
