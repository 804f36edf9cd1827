"""Binary cross entropy: the two-class case."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Num, Real

from jaxsoftmax import _arrays
from jaxsoftmax._arguments import Arrays
from jaxsoftmax._batch import examples as _examples
from jaxsoftmax._batch import reduction as _reduction
from jaxsoftmax._batch.reduction import Loss
from jaxsoftmax._options import LossOptions, Reduction
from jaxsoftmax._row import losses as _losses
from jaxsoftmax._row.options import row_options
from jaxsoftmax._row.targets import SoftLabels
from jaxsoftmax._xla.shardings import by_rows

_Array = Array | np.ndarray
_Weights = Real[_Array, "..."] | Bool[_Array, "..."] | None
_Loss = Float[Array, "..."]


def binary_cross_entropy(
    logits: Float[_Array, "..."],
    labels: Num[_Array, "..."] | Bool[_Array, "..."],
    *,
    pos_weight: Float[_Array, "..."] | float | None = None,
    example_weights: _Weights = None,
    ignore_index: int | tuple[int, ...] | None = None,
    label_smoothing: float | Array = 0.0,
    focal_gamma: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | Array | None = None,
) -> _Loss:
    r"""Binary cross entropy from logits: the two-class case, one entry at a time.

        ℓ = −pos_weight · y · log σ(x) − (1 − y) · log σ(−x),     σ(x) = 1/(1 + exp(−x))

    which is `cross_entropy` of the logits [0, x] with the label y.

    Args:
        logits: `[...]`, floating point.
        labels: the logits' shape; integers 0 and 1, booleans, or real numbers in [0, 1].
        pos_weight: broadcastable to the logits; the weight of the positive term. May be traced.
        example_weights: broadcastable to the logits; a mask (False is ignored) or real weights.
        ignore_index: entries with this label, or one of these, have loss 0 and gradient 0; it may
            lie outside of [0, 1], as 255 often does.
        label_smoothing: ε in [0, 1]: the label becomes (1−ε)·y + ε/2. It may be a scalar array.
        focal_gamma: γ multiplies −log σ(x) by σ(−x)^γ and −log σ(−x) by σ(x)^γ; without smoothing.
        reduction: "mean" (over Σ `example_weights`, or the number of entries that are not ignored),
            "sum" or "none".
        denominator: replaces the divisor of the mean. A divisor of 0 gives 0 and gradient 0.

    Returns:
        The loss, float32 (float64 for float64 logits); full relative accuracy for hard labels,
        however confident the logit. A label outside [0, 1] makes its entry NaN; up
        to 1e-5 beyond counts as 0 or 1, being rounding.

    Gradients: σ(x) − y without `pos_weight`, formed as −σ(−x) at y = 1; 0 for ignored entries.
        They flow to `logits`, real `labels`, `pos_weight`, real `example_weights` and
        `denominator`.

    Raises:
        TypeError: integer logits, a Python list, an option that is an array or tracer.
        ValueError: a wrong shape or option value; `denominator` without reduction="mean".

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import binary_cross_entropy
        >>> print(binary_cross_entropy(jnp.array([30.0, -2.0]), jnp.array([1, 0]),
        ...                            reduction="none"))
        [9.357623e-14 1.269280e-01]

    Source: Dive into Deep Learning, section 4.1; PyTorch's binary_cross_entropy_with_logits for
        the meaning of `pos_weight`.
    """
    static, numbers = _arrays.split_numbers(label_smoothing=label_smoothing)
    options = LossOptions(
        reduction=reduction, ignore_index=ignore_index, focal_gamma=focal_gamma, **static
    )
    if focal_gamma and options.label_smoothing != 0.0:
        raise ValueError(
            f"focal_gamma is for labels without smoothing, got focal_gamma={focal_gamma} with "
            f"label_smoothing={options.label_smoothing}"
        )
    x = _arrays.as_real("logits", logits)
    y = _arrays.as_real_or_bool("labels", labels)
    y = _arrays.of_shape("labels", y, x.shape, "the shape of logits")
    positive = _arrays.as_broadcastable("pos_weight", pos_weight, x.shape, "logits")
    weights = _arrays.as_broadcastable("example_weights", example_weights, x.shape, "logits")
    arrays = Arrays(
        y,
        example_weights=weights,
        denominator=_arrays.as_denominator(denominator, options.reduction),
        numbers=numbers,
    )
    return _binary(x, positive, arrays, options=options)


@partial(jax.jit, static_argnames=("options",))
@partial(by_rows, class_axes=lambda **_: ())
def _binary(
    logits: Array, pos_weight: Array | None, arrays: Arrays, *, options: LossOptions
) -> Loss:
    assert isinstance(arrays.labels, Array)
    examples = _examples.of_entries(logits, arrays.labels, arrays.example_weights, options)
    assert isinstance(examples.labels, SoftLabels)
    (x,), label = examples.inputs, examples.labels.weights
    of_rows = row_options(options, arrays.numbers, label.dtype)
    rows = _losses.of_binary_logits(x, label, pos_weight, of_rows)
    return _reduction.reduced(rows, examples, arrays, options)
