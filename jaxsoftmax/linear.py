"""Cross entropy of a linear layer whose logits never exist all at once."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Num, Real

from jaxsoftmax import _arguments, _batch, _logits, _loss, _mesh, _reduction
from jaxsoftmax._batch import Batch
from jaxsoftmax._fused import derivative, forward, orientation, select
from jaxsoftmax._fused.chunked import Fixed, Moving
from jaxsoftmax._fused.plan import make_plan
from jaxsoftmax._fused.select import Call, Choice
from jaxsoftmax._loss import RowLosses
from jaxsoftmax._mesh import vary_alike
from jaxsoftmax._options import LossOptions, chunk_size_of
from jaxsoftmax._precision import accumulator, product

_Array = Array | np.ndarray


def linear_cross_entropy(
    hidden: Float[_Array, "..."],
    kernel: Float[_Array, "D V"],
    labels: Num[_Array, "..."],
    bias: Float[_Array, "V"] | None = None,
    *,
    where: Bool[_Array, "..."] | None = None,
    class_weights: Float[_Array, "V"] | None = None,
    example_weights: Real[_Array, "..."] | Bool[_Array, "..."] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: float | Array | None = None,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    implementation: str = "auto",
    axis_name: str | tuple[str, ...] | None = None,
    return_statistics: bool = False,
) -> Float[Array, "..."] | Any:  # with return_statistics: tuple[loss, LossStatistics]
    r"""Cross entropy of the logits hidden @ kernel + bias, which are never held.

        ℓ = −log softmax(h W + b)_y

    equal to `cross_entropy(hidden @ kernel + bias, labels, ...)` in value and in every gradient,
    to the accuracy of the dtype, with all of its options. Of the logits only a chunk of tokens
    exists at a time, forward and backward, also in forward mode and Hessian-vector products.

    Args:
        hidden: `[..., D]`, floating point: what the last layer sees.
        kernel: `[D, V]`, floating point; a tied embedding `[V, D]` is passed as `embedding.T`.
        labels: integers `[...]`, or one distribution per example, `[..., V]`.
        bias: `[V]`, floating point.
        where: boolean, broadcastable to `[..., V]`; excluded classes do not exist.
        class_weights: `[V]`; as in `cross_entropy`.
        example_weights: `[...]`: a mask (False is ignored) or real weights.
        ignore_index: examples with this integer label have loss 0 and gradient 0, whatever their
            hidden state holds.
        label_smoothing: ε in [0, 1), as in `cross_entropy`.
        reduction: "mean" (Σ ℓ over the sum of the effective weights), "sum", or "none".
        denominator: replaces the divisor of the mean.
        z_loss: λ adds λ·logsumexp² to each example.
        soft_cap: c replaces a logit x by c·tanh(x/c).
        temperature: divides the logits, after `soft_cap`.
        chunk_size: tokens at a time; None chooses it from the shapes. A chunk needs room for its
            logits in float32 and for their gradient in the operands' dtype. (A program exported
            for any number of tokens takes a sixteenth of them at a time.)
        implementation: "auto"; "chunked" (XLA, any device); "mosaic_tpu" (a TPU kernel for what
            is not differentiated: the gradients are those of "chunked"); or "reference", which
            has all logits at once: the definition. `jaxsoftmax.tuning` says what "auto" takes.
        axis_name: inside `jax.shard_map`, the mesh axis that splits the classes in equal shards:
            `kernel`, `bias`, `where`, `class_weights` and distributions are this device's,
            integer labels are global. Three numbers an example are sent, and for the gradient of
            `hidden` one sum of its size.
        return_statistics: return `(loss, LossStatistics)`.

    Returns:
        The loss, float32 (float64 where hidden or kernel is): a scalar, or `[...]` for
        reduction="none". A label outside [0, V) makes its example NaN.

    Gradients: products run in the promoted dtype of `hidden` and `kernel` and accumulate in
        float32; each gradient comes back in its own input's dtype. They flow to `hidden`,
        `kernel`, `bias`, soft `labels`, `class_weights`, real `example_weights` and
        `denominator`. The sum and the mean take them in one pass with the loss (three products);
        "none" and statistics compute the logits again.

    Raises:
        TypeError: an array of the wrong kind, an option that is an array or tracer.
        ValueError: a wrong shape or option value; `chunk_size` with implementation="reference";
            an implementation that the device or the arguments cannot be served by.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear_cross_entropy
        >>> hidden, kernel = jnp.eye(2, 3), jnp.eye(3, 4) * 20.0
        >>> print(linear_cross_entropy(hidden, kernel, jnp.array([0, 1]), reduction="none"))
        [6.183461e-09 6.183461e-09]

    Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models (2024), for never
        holding the logits; Hsu et al., Liger Kernel (2024), for the gradient in the forward pass.
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
        in_chunks=True,
    )
    tokens = chunk_size_of(chunk_size)
    shards = _mesh.shards(options.axis_name)
    hidden, kernel, bias = _arguments.as_linear(hidden, kernel, bias)
    shape = (*hidden.shape[:-1], kernel.shape[1])
    labels = _arguments.as_labels("labels", labels, "hidden @ kernel", shape, len(shape) - 1)
    _arguments.check_ignore_index(options.ignore_index, labels, hidden)
    where = _arguments.as_class_mask(where, shape)
    call = Call(
        tokens=math.prod(shape[:-1]),
        features=hidden.shape[-1],
        classes=shape[-1],
        hidden=hidden.dtype.name,
        kernel=kernel.dtype.name,
        soft_labels=labels.ndim == len(shape),
        where_by_row=where is not None and where.ndim > 1,
        axis_name=axis_name,
    )
    choice = select.choose(implementation, tokens, call)
    return _linear_cross_entropy(
        hidden,
        kernel,
        None if choice.implementation == "reference" else orientation.lies_turned(kernel),
        bias,
        labels,
        where,
        _arguments.as_class_weights(class_weights, shape[-1], shards),
        _arguments.as_example_weights(example_weights, shape[:-1]),
        _arguments.as_denominator(denominator, options.reduction),
        options=options,
        choice=choice,
        tokens=tokens,
    )


# Inline, so that which way round the kernel lies is a constant of the program that asks: as an
# argument of a program within it, GSPMD has both ways partitioned, and XLA keeps both.
@partial(jax.jit, static_argnames=("options", "choice", "tokens"), inline=True)
def _linear_cross_entropy(
    hidden: Array,
    kernel: Array,
    lies_turned: Array | None,
    bias: Array | None,
    labels: Array,
    where: Array | None,
    class_weights: Array | None,
    example_weights: Array | None,
    denominator: Array | None,
    *,
    options: LossOptions,
    choice: Choice,
    tokens: int | None,
) -> Any:
    hidden = vary_alike(hidden, (labels, example_weights))
    shape = hidden.shape[:-1]
    dtype = accumulator(hidden.dtype, kernel.dtype)
    batch = _batch.rows_in_one_form(
        hidden,
        labels,
        example_weights,
        classes=kernel.shape[1],
        dtype=dtype,
        options=options,
    )
    moving = Moving(batch.inputs, kernel, bias, class_weights, batch.distribution)
    fixed = _fixed(batch, where, kernel.shape[1])
    compute = partial(_losses_of_logits, options)
    fused = choice.implementation != "reference"
    by = forward.of(choice, options)
    plan = make_plan(math.prod(shape), tokens, choice.chunk)
    if fused and options.reduction != "none" and not options.return_statistics:
        weights = _reduction.weights_of(batch.weights, batch.inputs.shape[:1], dtype)
        total = derivative.total(
            by, compute, plan, options.axis_name, lies_turned, moving, fixed, weights
        )
        divisor = _loss.divisor_of(batch, class_weights, weights.shape, dtype, options)
        return _reduction.divided(total, divisor, denominator, options)
    if fused:
        rows = derivative.rows(by, compute, plan, lies_turned, moving, fixed)
    else:
        logits = product(batch.inputs, kernel, (1, 0))
        logits = logits if bias is None else logits + bias.astype(dtype)[None, :]
        rows = compute(logits, class_weights, batch.distribution, fixed)
    result = _loss.reduced(rows, batch, class_weights, denominator, options)
    # [N] -> [...]; what is a scalar stays one.
    return jax.tree.map(lambda x: x.reshape(shape) if x.ndim else x, result)


def _fixed(batch: Batch, where: Array | None, classes: int) -> Fixed:
    """A mask that is the same for all rows stays one row."""
    alike = where is not None and where.ndim == 1
    per_row = None if where is None or alike else where.reshape(-1, classes)
    return Fixed(batch.label, batch.ignored, per_row, where if alike else None)


def _losses_of_logits(
    options: LossOptions,
    logits: Array,
    class_weights: Array | None,
    distribution: Array | None,
    fixed: Fixed,
) -> RowLosses:
    """The loss of each row of a chunk: the same as of logits that the user gave."""
    if fixed.where_classes is not None:
        logits = _logits.exclude(logits, fixed.where_classes[None, :])
    logits = _logits.exclude(logits, fixed.where_rows)
    if distribution is not None:
        distribution = distribution.astype(logits.dtype)
        if fixed.ignored is not None:
            distribution = jax.numpy.where(fixed.ignored[:, None], 0.0, distribution)
    return _loss.of_rows(logits, fixed.label, distribution, class_weights, options)
