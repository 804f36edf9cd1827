"""The losses of logits. What each computes is in its docstring, how in `_batch` and `_row`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, Unpack, overload

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Num, Real

from jaxsoftmax import _arguments, _arrays
from jaxsoftmax._arguments import Arrays
from jaxsoftmax._batch import examples as _examples
from jaxsoftmax._batch import reduction as _reduction
from jaxsoftmax._batch.labels import check_log_probs
from jaxsoftmax._batch.reduction import Loss, LossStatistics
from jaxsoftmax._options import CrossEntropyKeywords, LossKeywords, LossOptions, Reduction
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import losses as _losses
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.options import RowOptions, row_options
from jaxsoftmax._row.targets import Labels, SparseLabels
from jaxsoftmax._xla.dtypes import accumulator, roomy
from jaxsoftmax._xla.shardings import by_rows

_Array = Array | np.ndarray
_Weights = Real[_Array, "..."] | Bool[_Array, "..."] | None
_Loss = Float[Array, "..."]


@overload
def cross_entropy(
    logits: Float[_Array, "..."],
    labels: Num[_Array, "..."] | SparseLabels,
    *,
    axis: int | tuple[int, ...] = ...,
    return_statistics: Literal[False] = ...,
    **options: Unpack[CrossEntropyKeywords],
) -> _Loss: ...
@overload
def cross_entropy(
    logits: Float[_Array, "..."],
    labels: Num[_Array, "..."] | SparseLabels,
    *,
    axis: int | tuple[int, ...] = ...,
    return_statistics: Literal[True],
    **options: Unpack[CrossEntropyKeywords],
) -> tuple[_Loss, LossStatistics]: ...
def cross_entropy(
    logits: Float[_Array, "..."],
    labels: Num[_Array, "..."] | SparseLabels,
    *,
    axis: int | tuple[int, ...] = -1,
    where: Bool[_Array, "..."] | None = None,
    class_weights: Float[_Array, "C"] | None = None,
    example_weights: _Weights = None,
    ignore_index: int | tuple[int, ...] | None = None,
    label_smoothing: float | Array = 0.0,
    reduction: Reduction = "mean",
    denominator: float | Array | None = None,
    return_statistics: bool = False,
    z_loss: float | Array = 0.0,
    soft_cap: float | Array | None = None,
    temperature: float | Array = 1.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
    axis_name: str | tuple[str, ...] | None = None,
) -> _Loss | tuple[_Loss, LossStatistics]:
    r"""Cross entropy between labels and softmax(logits), computed from the logits.

    With p = softmax(soft_cap(logits) / temperature), the loss of one example is

        ℓ = −log p_y                     for an integer label y
        ℓ = −Σ_c y_c log p_c             for soft labels y (or one-hot ones)

    and the result is −1/N Σ yᵀ log ŷ, the mean over the examples. A confident, correct prediction
    has a small loss and a small gradient that are not rounded to zero.

    Args:
        logits: `[..., C, ...]`, floating point, C classes along `axis`. A logit of -inf is a
            class that does not exist.
        labels: integers in the shape of the batch (the logits' without `axis`), or an array of
            the logits' shape with one distribution per example, any real dtype (the rank tells
            which), or `SparseLabels`, distributions that name a few classes each.
        axis: the class axis, or several where labels have the logits' shape.
        where: boolean, broadcastable to `logits`; excluded classes do not exist.
        class_weights: `[C]`, of several axes their shape; every class's term carries its weight,
            and for integer labels the mean divides by the weights of the labels, as in PyTorch.
        example_weights: broadcastable to the batch: a mask (False is ignored) or real weights. The
            mean divides by their sum: for weights of both signs (advantages) give `denominator`.
        ignore_index: examples with this integer label, or one of these, have loss 0 and gradient
            0, whatever their logits hold; it need not be a class.
        label_smoothing: ε in [0, 1]: the target becomes (1−ε)·y + ε/C over the C classes that
            exist.
        reduction: "mean" (Σ ℓ over the sum of the effective weights), "sum", or "none".
        denominator: replaces the divisor of the mean, for one global count across micro-batches
            or devices. A divisor of 0 gives loss 0 and gradient 0.
        return_statistics: return `(loss, LossStatistics)`.
        z_loss: λ adds λ·logsumexp² to each example.
        soft_cap: c replaces a logit x by c·tanh(x/c).
        temperature: divides the (capped) logits. It, `z_loss`, `soft_cap` and `label_smoothing` may
            be scalar arrays, traced or not: a schedule without recompilation, or learned.
        focal_gamma: γ multiplies the label's term by (1 − p_y)^γ; integer labels without smoothing.
        poly_epsilon: ε adds ε·(1 − Σ_c y_c p_c).
        axis_name: inside `jax.shard_map`, the mesh axis that splits the classes in equal shards:
            `logits`, `where`, `class_weights` and soft labels are this device's, integer
            labels are global. Three numbers per example are communicated, none for the gradient.

    Returns:
        The loss, float32 (float64 for float64 logits): a scalar, or with reduction="none" one
        number per example, 0 on ignored ones. A label outside [0, C) makes its example NaN; see
        `debug_checks` to make it an error.

    Gradients: softmax − y for each example, at an integer label −Σ_{j≠y} p_j rather than p_y − 1;
        exactly 0 for excluded classes and ignored examples. They flow to `logits`, soft `labels`,
        `class_weights`, real `example_weights`, `denominator` and options that are arrays, in each
        one's dtype, in forward and reverse mode, to any order. An integer label on a class that
        does not exist has loss +inf and the gradient softmax on the classes that do.

    Raises:
        TypeError: an array of the wrong dtype or a Python list for one; another option that is an
            array or tracer.
        ValueError: a wrong shape, axis or option value (an array's value only where it is known:
            under jit the loss is NaN); `ignore_index` or `focal_gamma` with soft labels;
            `denominator` without reduction="mean".

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsoftmax import cross_entropy
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> print(cross_entropy(logits, jnp.array([0, 2]), reduction="none"))
        [4.1223073e-09 1.5514446e+00]
        >>> print(jax.grad(cross_entropy)(logits, jnp.array([0, 2]))[0])
        [-2.0611537e-09  1.0305768e-09  1.0305768e-09]

    Source: Dive into Deep Learning, section 4.1 (softmax regression); the form without absorption
        after Blanchard, Higham and Higham, IMA J. Numer. Anal. 41(4), 2021.
    """
    static, numbers = _arrays.split_numbers(
        label_smoothing=label_smoothing, z_loss=z_loss, soft_cap=soft_cap, temperature=temperature
    )
    options = LossOptions(
        reduction=reduction,
        ignore_index=ignore_index,
        return_statistics=return_statistics,
        focal_gamma=focal_gamma,
        poly_epsilon=poly_epsilon,
        axis_name=axis_name,
        **static,
    )
    given = (labels, where, class_weights, example_weights, denominator, numbers)
    checked, axes, arrays = _arguments.checked("logits", logits, axis, given, options)
    return _compute(checked, arrays, rows_of=_losses.of_logits, axes=axes, options=options)


@overload
def nll_loss(
    log_probs: Float[_Array, "..."],
    labels: Num[_Array, "..."] | SparseLabels,
    *,
    axis: int | tuple[int, ...] = ...,
    return_statistics: Literal[False] = ...,
    **options: Unpack[LossKeywords],
) -> _Loss: ...
@overload
def nll_loss(
    log_probs: Float[_Array, "..."],
    labels: Num[_Array, "..."] | SparseLabels,
    *,
    axis: int | tuple[int, ...] = ...,
    return_statistics: Literal[True],
    **options: Unpack[LossKeywords],
) -> tuple[_Loss, LossStatistics]: ...
def nll_loss(
    log_probs: Float[_Array, "..."],
    labels: Num[_Array, "..."] | SparseLabels,
    *,
    axis: int | tuple[int, ...] = -1,
    class_weights: Float[_Array, "C"] | None = None,
    example_weights: _Weights = None,
    ignore_index: int | tuple[int, ...] | None = None,
    label_smoothing: float | Array = 0.0,
    reduction: Reduction = "mean",
    denominator: float | Array | None = None,
    return_statistics: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> _Loss | tuple[_Loss, LossStatistics]:
    r"""Negative log-likelihood of labels under log-probabilities.

        ℓ = −log_probs_y     for an integer label y
        ℓ = −Σ_c y_c log_probs_c     for soft labels y, with 0·log 0 = 0

    so that `nll_loss(log_softmax(x), y)` is `cross_entropy(x, y)`.

    Args:
        log_probs: `[..., C, ...]`, floating point, log-probabilities along `axis`.
        labels: as in `cross_entropy`, with the shape of `log_probs` in place of the logits'.
        axis: as in `cross_entropy`.
        class_weights, example_weights, ignore_index: as in `cross_entropy`.
        label_smoothing: as in `cross_entropy`; a class of log-probability -inf does not exist.
        reduction, denominator, axis_name: as in `cross_entropy`.
        return_statistics: as in `cross_entropy`; the statistics treat `log_probs` as logits.

    Returns:
        The loss, float32 (float64 for float64 log-probabilities): a scalar, or one number per
        example with reduction="none". A label outside [0, C) makes its example NaN.

    Gradients: −1 at the label times its weights; 0 for ignored examples. They flow to
        `log_probs`, soft `labels`, the real weights and `denominator`.

    Raises:
        TypeError: as `cross_entropy`.
        ValueError: as `cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import nll_loss
        >>> log_probs = jnp.log(jnp.array([0.2, 0.1, 0.65, 0.05]))
        >>> print(nll_loss(log_probs, jnp.array(2)))  # −log 0.65
        0.43078288

    Source: Dive into Deep Learning, section 4.1.2 (the negative log-likelihood of softmax
        regression).
    """
    static, numbers = _arrays.split_numbers(label_smoothing=label_smoothing)
    options = LossOptions(
        reduction=reduction,
        ignore_index=ignore_index,
        return_statistics=return_statistics,
        axis_name=axis_name,
        **static,
    )
    given = (labels, None, class_weights, example_weights, denominator, numbers)
    checked, axes, arrays = _arguments.checked("log_probs", log_probs, axis, given, options)
    return _compute(checked, arrays, rows_of=_losses.of_log_probs, axes=axes, options=options)


@partial(jax.jit, static_argnames=("rows_of", "axes", "options"))
@partial(by_rows, class_axes=lambda axes, **_: axes)
def _compute(
    logits: Array,
    arrays: Arrays,
    *,
    rows_of: Callable[[Array, Labels, Array | None, RowOptions], RowLosses],
    axes: tuple[int, ...],
    options: LossOptions,
) -> Loss:
    logits = _logits.exclude(roomy(logits), arrays.where)
    examples = _examples.of_logits((logits,), arrays, axes, options)
    (x,), labels = examples.inputs, examples.labels
    assert labels is not None
    if rows_of is _losses.of_log_probs:
        check_log_probs(x)
    of_rows = row_options(options, arrays.numbers, accumulator(logits.dtype))
    rows = rows_of(x, labels, arrays.class_weights, of_rows)
    return _reduction.reduced(rows, examples, arrays, options)
