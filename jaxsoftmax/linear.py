"""Cross entropy of a linear layer whose logits never exist all at once."""

from __future__ import annotations

from typing import Literal, Unpack, overload

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Num, Real

from jaxsoftmax import _arguments, _arrays, tuning
from jaxsoftmax._batch.reduction import LossStatistics
from jaxsoftmax._fused.loss import loss
from jaxsoftmax._options import (
    Implementation,
    KernelLayout,
    LinearKeywords,
    LinearOptions,
    Reduction,
)
from jaxsoftmax._row.targets import SparseLabels

_Array = Array | np.ndarray
_Weights = Real[_Array, "..."] | Bool[_Array, "..."] | None
_Loss = Float[Array, "..."]


@overload
def linear_cross_entropy(
    hidden: Float[_Array, "..."],
    kernel: Float[_Array, "D V"] | Float[_Array, "V D"],
    labels: Num[_Array, "..."] | SparseLabels,
    bias: Float[_Array, "V"] | None = ...,
    *,
    return_statistics: Literal[False] = ...,
    **options: Unpack[LinearKeywords],
) -> _Loss: ...
@overload
def linear_cross_entropy(
    hidden: Float[_Array, "..."],
    kernel: Float[_Array, "D V"] | Float[_Array, "V D"],
    labels: Num[_Array, "..."] | SparseLabels,
    bias: Float[_Array, "V"] | None = ...,
    *,
    return_statistics: Literal[True],
    **options: Unpack[LinearKeywords],
) -> tuple[_Loss, LossStatistics]: ...
def linear_cross_entropy(
    hidden: Float[_Array, "..."],
    kernel: Float[_Array, "D V"] | Float[_Array, "V D"],
    labels: Num[_Array, "..."] | SparseLabels,
    bias: Float[_Array, "V"] | None = None,
    *,
    where: Bool[_Array, "..."] | None = None,
    class_weights: Float[_Array, "V"] | None = None,
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
    kernel_layout: KernelLayout = "DV",
    chunk_size: int | None = None,
    implementation: Implementation = "auto",
    axis_name: str | tuple[str, ...] | None = None,
) -> _Loss | tuple[_Loss, LossStatistics]:
    r"""Cross entropy of the logits hidden @ kernel + bias, which are never all in memory.

        ℓ = −log softmax(h W + b)_y

    equal to `cross_entropy(hidden @ kernel + bias, labels, ...)` in value and in every gradient,
    to the accuracy of the dtype, with all of its options. Of the logits only a chunk of tokens
    exists at a time, forward and backward, also in forward mode and Hessian-vector products.

    Args:
        hidden: `[..., D]`, floating point: what the last layer sees.
        kernel: `[D, V]`, or with kernel_layout="VD" `[V, D]`, floating point.
        labels: integers `[...]`, soft labels `[..., V]`, one distribution per example, or
            `SparseLabels`.
        bias: `[V]`, floating point.
        where: boolean, broadcastable to `[..., V]`; excluded classes do not exist.
        class_weights: `[V]`; as in `cross_entropy`.
        example_weights: broadcastable to `[...]`: a mask (False is ignored) or real weights.
        ignore_index: examples with this integer label, or one of these, have loss 0 and gradient
            0, whatever their hidden state holds.
        label_smoothing, reduction, denominator: as in `cross_entropy`.
        return_statistics: as in `cross_entropy`. Beside a scalar loss they cost no matrix product
            unless they are differentiated; then reduction="none" has one backward pass for both.
        z_loss, soft_cap, temperature: as in `cross_entropy`, arrays included.
        focal_gamma, poly_epsilon: as in `cross_entropy`.
        kernel_layout: "DV" (Flax), or "VD" for a tied embedding or a PyTorch weight, which is read
            as it is stored, without a copy, its gradient in the same layout. (`embedding.T` with
            "DV" gives the same numbers, but XLA may copy it and its gradient.)
        chunk_size: tokens at a time; None chooses it from the shapes. A chunk needs memory for its
            logits in float32 and for their gradient in the operands' dtype. (A program exported
            for any number of tokens takes a sixteenth of them at a time.)
        implementation: "auto" or "chunked" (a chunk of tokens at a time, gradients in the same
            pass, a float32 sum of the kernel's gradient); "streamed" (least memory: the kernel's
            gradient a block of classes at a time, each complete at once and so in the kernel's
            dtype, for a fourth product); or "reference", which has all logits at once: the
            definition.
        axis_name: inside `jax.shard_map`, the mesh axis that splits the classes in equal shards:
            `kernel`, `bias`, `where`, `class_weights` and soft labels are this device's, integer
            labels are global. Three numbers per example are communicated, and for the gradient
            of `hidden` one sum of its size. Under `jit`, sharded arrays need no name: the work
            is divided over their mesh, in the way that sends less.

    Returns:
        The loss, float32 (float64 where hidden or kernel is): a scalar, or `[...]` for
        reduction="none". A label outside [0, V) makes its example NaN.

    Gradients: products run in the promoted dtype of `hidden` and `kernel` and accumulate in
        float32; each gradient comes back in its own input's dtype. They flow to `hidden`,
        `kernel`, `bias`, soft `labels`, `class_weights`, real `example_weights`, `denominator` and
        options that are arrays. The sum and the mean take them in one pass with the loss (three
        products, "streamed" four in two passes); "none" and statistics compute the logits again.

    Raises:
        TypeError: an array of the wrong kind, an option that is an array or tracer.
        ValueError: a wrong shape or option value; `chunk_size` with implementation="reference";
            an `axis_name` that types show not to be the axis of the classes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear_cross_entropy
        >>> hidden, kernel = jnp.eye(2, 3), jnp.eye(3, 4) * 20.0
        >>> print(linear_cross_entropy(hidden, kernel, jnp.array([0, 1]), reduction="none"))
        [6.183461e-09 6.183461e-09]

    Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models (2024), for never
        holding the logits; Hsu et al., Liger Kernel (2024), for the gradient in the forward pass.
    """
    static, numbers = _arrays.split_numbers(
        label_smoothing=label_smoothing, z_loss=z_loss, soft_cap=soft_cap, temperature=temperature
    )
    options = LinearOptions(
        reduction=reduction,
        ignore_index=ignore_index,
        return_statistics=return_statistics,
        focal_gamma=focal_gamma,
        poly_epsilon=poly_epsilon,
        axis_name=axis_name,
        kernel_layout=kernel_layout,
        chunk_size=chunk_size,
        implementation=implementation,
        **static,
    )
    given = (labels, where, class_weights, example_weights, denominator, numbers)
    heads, arrays = _arguments.checked_linear((hidden, kernel, bias), given, options)
    chunk = tuning.chunk_for(heads[0].hidden, heads[0].kernel)
    return loss(heads, arrays, options=options, chunk=chunk)
