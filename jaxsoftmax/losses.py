"""The losses: what each computes is in its docstring, how is in the files that it calls."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Num, Real

from jaxsoftmax import _arguments, _batch, _logits, _loss, _mesh, _rows, _targets
from jaxsoftmax._options import LossOptions
from jaxsoftmax._precision import widen

_Array = Array | np.ndarray
_Loss = Float[Array, "..."]


def cross_entropy(
    logits: Float[_Array, "..."],
    labels: Num[_Array, "..."],
    *,
    axis: int = -1,
    where: Bool[_Array, "..."] | None = None,
    class_weights: Float[_Array, "C"] | None = None,
    example_weights: Real[_Array, "..."] | Bool[_Array, "..."] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: float | Array | None = None,
    return_statistics: bool = False,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    axis_name: str | tuple[str, ...] | None = None,
) -> _Loss | Any:  # with return_statistics: tuple[_Loss, LossStatistics]
    r"""Cross entropy between labels and softmax(logits), computed from the logits.

    With p = softmax(soft_cap(logits) / temperature), the loss of one example is

        ℓ = −log p_y                     for an integer label y
        ℓ = −Σ_c y_c log p_c             for a distribution y (one-hot or soft)

    and the result is −1/N Σ yᵀ log ŷ, the mean over the examples. Nothing is absorbed: a
    confident, correct prediction has a small loss and a small gradient, never a rounded 0.

    Args:
        logits: `[..., C, ...]`, floating point, C classes along `axis`. A logit of -inf is a
            class that does not exist.
        labels: integers in the shape of the batch (the logits' without `axis`), or an array of
            the logits' shape with one distribution per example, any real dtype. The rank tells
            which.
        axis: the class axis.
        where: boolean, broadcastable to `logits`; excluded classes do not exist.
        class_weights: `[C]`; every class's term carries its weight, and for integer labels the
            mean divides by the weights of the labels, as in PyTorch.
        example_weights: in the shape of the batch: a mask (False is ignored) or real weights.
        ignore_index: examples with this integer label have loss 0 and gradient 0, whatever their
            logits hold; it need not be a class.
        label_smoothing: ε in [0, 1): the target becomes (1−ε)·y + ε/C over the C classes that
            exist.
        reduction: "mean" (Σ ℓ over the sum of the effective weights), "sum", or "none".
        denominator: replaces the divisor of the mean, for one global count across micro-batches
            or devices. A divisor of 0 gives loss 0 and gradient 0.
        return_statistics: return `(loss, LossStatistics)`.
        z_loss: λ adds λ·logsumexp² to each example.
        soft_cap: c replaces a logit x by c·tanh(x/c).
        temperature: divides the (capped) logits.
        axis_name: inside `jax.shard_map`, the mesh axis that splits the classes in equal shards:
            `logits`, `where`, `class_weights` and distributions are this device's, integer
            labels are global. Three numbers an example are sent, and nothing for the gradient.

    Returns:
        The loss, float32 (float64 for float64 logits): a scalar, or with reduction="none" one
        number per example, 0 on ignored ones. A label outside [0, C) makes its example NaN; see
        `debug_checks` to make it an error.

    Gradients: softmax − y for each example, at an integer label −Σ_{j≠y} p_j rather than p_y − 1;
        exactly 0 for excluded classes and ignored examples. They flow to `logits`, soft `labels`,
        `class_weights`, real `example_weights` and `denominator`, in each one's dtype, in forward
        and reverse mode, to any order. An integer label on a class that does not exist has loss
        +inf and the gradient softmax on the classes that do.

    Raises:
        TypeError: an array of the wrong dtype or a Python list for one; an option that is an
            array or tracer.
        ValueError: a wrong shape, axis or option value; `ignore_index` with distributions;
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
    options = LossOptions(
        reduction=reduction,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        return_statistics=return_statistics,
        z_loss=z_loss,
        soft_cap=soft_cap,
        temperature=temperature,
        axis_name=axis_name,
    )
    return _check_and_call(
        _cross_entropy,
        "logits",
        logits,
        labels,
        options,
        axis=axis,
        where=where,
        class_weights=class_weights,
        example_weights=example_weights,
        denominator=denominator,
    )


def nll_loss(
    log_probs: Float[_Array, "..."],
    labels: Num[_Array, "..."],
    *,
    axis: int = -1,
    class_weights: Float[_Array, "C"] | None = None,
    example_weights: Real[_Array, "..."] | Bool[_Array, "..."] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: float | Array | None = None,
    return_statistics: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> _Loss | Any:  # with return_statistics: tuple[_Loss, LossStatistics]
    r"""Negative log-likelihood of labels under log-probabilities.

        ℓ = −log_probs_y     for an integer label y
        ℓ = −Σ_c y_c log_probs_c     for a distribution y, with 0·log 0 = 0

    so that `nll_loss(log_softmax(x), y)` is `cross_entropy(x, y)`.

    Args:
        log_probs: `[..., C, ...]`, floating point, log-probabilities along `axis`.
        labels: as in `cross_entropy`, with the shape of `log_probs` in place of the logits'.
        axis: the class axis.
        class_weights: as in `cross_entropy`.
        example_weights: as in `cross_entropy`.
        ignore_index: as in `cross_entropy`.
        label_smoothing: as in `cross_entropy`; a class of log-probability -inf does not exist.
        reduction: as in `cross_entropy`.
        denominator: as in `cross_entropy`.
        return_statistics: as in `cross_entropy`; the statistics treat `log_probs` as logits.
        axis_name: as in `cross_entropy`.

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
    options = LossOptions(
        reduction=reduction,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        return_statistics=return_statistics,
        axis_name=axis_name,
    )
    return _check_and_call(
        _nll_loss,
        "log_probs",
        log_probs,
        labels,
        options,
        axis=axis,
        where=None,
        class_weights=class_weights,
        example_weights=example_weights,
        denominator=denominator,
    )


def binary_cross_entropy(
    logits: Float[_Array, "..."],
    labels: Num[_Array, "..."] | Bool[_Array, "..."],
    *,
    pos_weight: Float[_Array, "..."] | float | None = None,
    example_weights: Real[_Array, "..."] | Bool[_Array, "..."] | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
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
        label_smoothing: ε in [0, 1): the label becomes (1−ε)·y + ε/2.
        reduction: "mean" (over Σ `example_weights`, or the number of entries), "sum" or "none".
        denominator: replaces the divisor of the mean. A divisor of 0 gives 0 and gradient 0.

    Returns:
        The loss, float32 (float64 for float64 logits); full relative accuracy for hard labels,
        however confident the logit. A label outside [0, 1] makes its entry NaN.

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
    options = LossOptions(reduction=reduction, label_smoothing=label_smoothing)
    logits = _arguments.as_real("logits", logits)
    labels = _arguments.as_entries("labels", labels, logits.shape)
    if pos_weight is not None:
        pos_weight = _arguments.as_broadcastable("pos_weight", pos_weight, logits.shape)
    if example_weights is not None:
        example_weights = _arguments.as_broadcastable(
            "example_weights", example_weights, logits.shape
        )
    denominator = _arguments.as_denominator(denominator, options.reduction)
    return _binary_cross_entropy(
        logits, labels, pos_weight, example_weights, denominator, options=options
    )


def _check_and_call(
    compute: Any,
    name: str,
    logits: Any,
    labels: Any,
    options: LossOptions,
    *,
    axis: Any,
    where: Any,
    class_weights: Any,
    example_weights: Any,
    denominator: Any,
) -> Any:
    """Check the arrays of a loss over classes, then compute it."""
    logits = _arguments.as_real(name, logits)
    axis = _arguments.class_axis(name, logits, axis)
    shards = _mesh.shards(options.axis_name)
    labels = _arguments.as_labels("labels", labels, name, logits.shape, axis)
    _arguments.check_ignore_index(options.ignore_index, labels, logits)
    batch = logits.shape[:axis] + logits.shape[axis + 1 :]
    return compute(
        logits,
        labels,
        _arguments.as_mask("where", where, logits.shape, name),
        _arguments.as_class_weights(class_weights, logits.shape[axis], shards),
        _arguments.as_example_weights(example_weights, batch),
        _arguments.as_denominator(denominator, options.reduction),
        axis=axis,
        options=options,
    )


@partial(jax.jit, static_argnames=("axis", "options"))
def _cross_entropy(
    logits: Array,
    labels: Array,
    where: Array | None,
    class_weights: Array | None,
    example_weights: Array | None,
    denominator: Array | None,
    *,
    axis: int,
    options: LossOptions,
) -> Any:
    batch = _batch.one_form(
        _logits.exclude(logits, where),
        labels,
        example_weights,
        axis=axis,
        options=options,
    )
    rows = _loss.of_rows(batch.inputs, batch.label, batch.distribution, class_weights, options)
    return _loss.reduced(rows, batch, class_weights, denominator, options)


@partial(jax.jit, static_argnames=("axis", "options"))
def _nll_loss(
    log_probs: Array,
    labels: Array,
    where: None,
    class_weights: Array | None,
    example_weights: Array | None,
    denominator: Array | None,
    *,
    axis: int,
    options: LossOptions,
) -> Any:
    batch = _batch.one_form(log_probs, labels, example_weights, axis=axis, options=options)
    rows = _loss.of_log_probs(batch.inputs, batch.label, batch.distribution, class_weights, options)
    return _loss.reduced(rows, batch, class_weights, denominator, options)


@partial(jax.jit, static_argnames=("options",))
def _binary_cross_entropy(
    logits: Array,
    labels: Array,
    pos_weight: Array | None,
    example_weights: Array | None,
    denominator: Array | None,
    *,
    options: LossOptions,
) -> Array:
    batch = _batch.entries_in_one_form(logits, labels, example_weights)
    assert batch.distribution is not None
    x = widen(batch.inputs)
    positive, negative = _targets.from_binary(
        batch.distribution, pos_weight, options.label_smoothing
    )
    losses = _loss.times(positive, _rows.against_zero(x))
    losses = losses + _loss.times(negative, _rows.against_zero(-x))
    return _loss.reduced(_loss.RowLosses(losses), batch, None, denominator, options)
