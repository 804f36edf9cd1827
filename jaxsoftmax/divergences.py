"""Divergences between two rows of logits, or of two linear layers without them: distillation."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Real

from jaxsoftmax import _arguments, _arrays, tuning
from jaxsoftmax._arguments import Arrays
from jaxsoftmax._batch import examples as _examples
from jaxsoftmax._batch import reduction as _reduction
from jaxsoftmax._batch.reduction import Loss
from jaxsoftmax._fused.loss import loss
from jaxsoftmax._options import KernelLayout, LinearOptions, LossOptions, Reduction
from jaxsoftmax._row import divergence as _divergence
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row.options import row_options
from jaxsoftmax._xla.dtypes import accumulator, roomy
from jaxsoftmax._xla.shardings import by_rows

_Array = Array | np.ndarray


def kl_divergence(
    logits: Float[_Array, "..."],
    target_logits: Float[_Array, "..."],
    *,
    beta: float = 0.0,
    axis: int | tuple[int, ...] = -1,
    where: Bool[_Array, "..."] | None = None,
    temperature: float | Array = 1.0,
    example_weights: Real[_Array, "..."] | Bool[_Array, "..."] | None = None,
    reduction: Reduction = "mean",
    denominator: float | Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "..."]:
    r"""Kullback-Leibler divergence between the distributions of two rows of logits.

    With p = softmax(target_logits / temperature) of the teacher, q = softmax(logits / temperature),
    the divergence of one example is

        KL(p‖q) = Σ_c p_c (log p_c − log q_c)                 for beta = 0
        KL(q‖p)                                               for beta = 1
        β KL(p‖m) + (1−β) KL(q‖m),  m = β p + (1−β) q         between them

    the last being the generalised Jensen-Shannon divergence. Computed as a sum of terms that are
    never negative, it is exactly 0 for equal logits and accurate however close the two are, where
    the difference of two log-probabilities keeps no digit.

    Args:
        logits: `[..., C, ...]`, floating point: the student's.
        target_logits: the same shape: the teacher's. Gradients flow to it, too; where it is fixed,
            pass `jax.lax.stop_gradient(target_logits)`.
        beta: in [0, 1], a Python number.
        axis: the class axis, or several.
        where: boolean, broadcastable to `logits`; excluded classes exist for neither.
        temperature: divides both; it may be a scalar array. No factor temperature² is applied:
            multiply the result by it to keep the size of the gradient.
        example_weights: broadcastable to the batch: a mask (False is ignored) or real weights.
        reduction, denominator: as in `cross_entropy`; the mean divides by Σ `example_weights`.
        axis_name: inside `jax.shard_map`, the mesh axis that splits the classes in equal shards.

    Returns:
        The divergence, float32 (float64 where either is): a scalar, or one number per example for
        reduction="none". A class with target logit -inf adds nothing; one that exists for the
        target alone makes KL(p‖q) +inf.

    Gradients: (q − p) / temperature for `logits` where beta is 0, formed without subtracting two
        numbers that are nearly equal. Those of either side keep their digits at a confidently
        predicted class. Exactly 0 for excluded classes and ignored examples.

    Raises:
        TypeError: as `cross_entropy`.
        ValueError: as `cross_entropy`; `beta` outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import kl_divergence
        >>> teacher = jnp.array([[1.0, 2.0, 3.0]])
        >>> print(kl_divergence(teacher, teacher))
        0.0
        >>> print(kl_divergence(teacher + jnp.array([[0.0, 1e-4, 0.0]]), teacher))
        9.223023e-10

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015); Agarwal
        et al., On-Policy Distillation of Language Models (2024), for beta.
    """
    static, numbers = _arrays.split_numbers(temperature=temperature)
    options = LossOptions(reduction=reduction, beta=beta, axis_name=axis_name, **static)
    given = (None, where, None, example_weights, denominator, numbers)
    x, y, axes, arrays = _arguments.checked_pair(logits, target_logits, axis, given, options)
    return _compute(x, y, arrays, axes=axes, options=options)


def linear_kl_divergence(
    hidden: Float[_Array, "..."],
    kernel: Float[_Array, "D V"] | Float[_Array, "V D"],
    target_hidden: Float[_Array, "..."],
    target_kernel: Float[_Array, "E V"] | Float[_Array, "V E"],
    bias: Float[_Array, "V"] | None = None,
    target_bias: Float[_Array, "V"] | None = None,
    *,
    beta: float = 0.0,
    where: Bool[_Array, "..."] | None = None,
    soft_cap: float | Array | None = None,
    temperature: float | Array = 1.0,
    example_weights: Real[_Array, "..."] | Bool[_Array, "..."] | None = None,
    reduction: Reduction = "mean",
    denominator: float | Array | None = None,
    kernel_layout: KernelLayout = "DV",
    target_kernel_layout: KernelLayout = "DV",
    chunk_size: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "..."]:
    r"""`kl_divergence` of the logits of two linear layers, which are never all in memory.

        x = h W + b of the student,  y = h' W' + b' of the teacher,
        KL(softmax(y)‖softmax(x))  for beta = 0, otherwise as in `kl_divergence`

    equal to `kl_divergence(hidden @ kernel + bias, target_hidden @ target_kernel + target_bias)`
    in value and in every gradient, to the accuracy of the dtype. Of both layers' logits only those
    of a chunk of tokens exist at a time, forward and backward, also in forward mode and
    Hessian-vector products.

    Args:
        hidden, kernel, bias: `[..., D]`, `[D, V]` and `[V]`, floating point: the student's, as in
            `linear_cross_entropy`.
        target_hidden, target_kernel, target_bias: `[..., E]`, `[E, V]` and `[V]`: the teacher's. E
            may be another number than D. Gradients flow to them, too; where the teacher is fixed,
            pass them through `jax.lax.stop_gradient`, and its backward pass is not computed.
        beta, temperature, example_weights, reduction, denominator: as in `kl_divergence`.
        where: boolean, broadcastable to `[..., V]`; excluded classes exist for neither.
        soft_cap: caps both layers' logits at c tanh(x / c) before the temperature.
        kernel_layout, target_kernel_layout: "DV" or "VD", as in `linear_cross_entropy`.
        chunk_size: tokens at a time; None chooses it from the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis that splits the classes in equal shards:
            both kernels and biases, and `where`, are this device's. Under `jit`, sharded arrays
            need no name.

    Returns:
        The divergence, float32 (float64 where an input is): a scalar, or `[...]` for
        reduction="none". It is never negative, exactly 0 for equal logits, and as accurate as
        these are: the rounding of the two products is what remains.

    Gradients: as in `linear_cross_entropy`: the sum and the mean take them in one pass with the
        divergence, three products for each layer (the fixed teacher's is one).

    Raises:
        TypeError, ValueError: as `linear_cross_entropy` and `kl_divergence`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear_kl_divergence
        >>> hidden, kernel = jnp.eye(2, 3), jnp.eye(3, 4)
        >>> teacher, its_kernel = jnp.eye(2, 5), 2.0 * jnp.eye(5, 4)
        >>> print(linear_kl_divergence(hidden, kernel, teacher, its_kernel))
        0.114150025
        >>> print(linear_kl_divergence(hidden, kernel, hidden, kernel))
        0.0

    Source: as `kl_divergence`; Hsu et al., Liger Kernel (2024), for distillation a chunk of tokens
        at a time.
    """
    static, numbers = _arrays.split_numbers(soft_cap=soft_cap, temperature=temperature)
    options = LinearOptions(
        reduction=reduction,
        axis_name=axis_name,
        kernel_layout=kernel_layout,
        target_kernel_layout=target_kernel_layout,
        chunk_size=chunk_size,
        beta=beta,
        **static,
    )
    given = (None, where, None, example_weights, denominator, numbers)
    target = (target_hidden, target_kernel, target_bias)
    heads, arrays = _arguments.checked_linear((hidden, kernel, bias), given, options, target)
    chunk = tuning.chunk_for_pair(heads[0].hidden, heads[0].kernel)
    return loss(heads, arrays, options=options, chunk=chunk)


@partial(jax.jit, static_argnames=("axes", "options"))
@partial(by_rows, class_axes=lambda axes, **_: axes)
def _compute(
    logits: Array, target: Array, arrays: Arrays, *, axes: tuple[int, ...], options: LossOptions
) -> Loss:
    x, y = (_logits.exclude(roomy(z), arrays.where) for z in (logits, target))
    dtype = accumulator(x.dtype, y.dtype)
    # Half precision is widened in each pass over the classes, and not in memory.
    both = tuple(z if accumulator(z.dtype) == dtype else z.astype(dtype) for z in (x, y))
    examples = _examples.of_logits(both, arrays, axes, options)
    x, y = examples.inputs
    rows = _divergence.of_logits(x, y, options.beta, row_options(options, arrays.numbers, dtype))
    return _reduction.reduced(rows, examples, arrays, options)
