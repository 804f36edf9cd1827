"""The gradients of a linear loss with no array of D·V numbers beside the kernel and its gradient.

Two passes: the losses and the gradients of rows a chunk of tokens at a time, as in `chunked`, and
then the kernel's gradient a block of classes at a time, from all tokens at once. The blocks make
the logits again: four products for three, 8·N·D·V operations.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxsoftmax._fused import chunked
from jaxsoftmax._fused.chunks import gather, labels_of_shard, with_indices
from jaxsoftmax._fused.given import Differentiable, Given, Layer, Wanted
from jaxsoftmax._fused.part import Inputs, logits_of, rows_of_part
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._fused.products import add_product, in_the_loop
from jaxsoftmax._options import Numbers
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.targets import SoftLabels
from jaxsoftmax._xla.blocks import Record, replayed
from jaxsoftmax._xla.dtypes import of_gradients
from jaxsoftmax._xla.mesh import Blocks, to_part
from jaxsoftmax._xla.shardings import vary_alike


def rows_and_gradients(
    given: Given, wanted: Wanted, plan: Plan
) -> tuple[RowLosses, Differentiable]:
    """The rows, and the gradients of Σ weights · loss, in as many passes as the plan says.

    Sums over rows come in the accumulator's dtype, gradients of rows in their own: the caller
    divides afterwards, so that a small 1/N costs a narrow dtype no digits. (The kernel's as
    `Plan.sum_dtype` says.)
    """
    return pulled_back(given, RowLosses(given.rows.weights), wanted, plan)


def pulled_back(
    given: Given, cotangents: RowLosses, wanted: Wanted, plan: Plan
) -> tuple[RowLosses, Differentiable]:
    """The rows, and what their cotangents are pulled back to."""
    if not plan.streams or "kernel" not in wanted:
        return chunked.pulled_back(given, cotangents, wanted, plan)[:2]
    rest = wanted - {"kernel"}
    found, gradients, record = chunked.pulled_back(given, cotangents, rest, plan, record=True)
    assert record is not None
    return found, gradients._replace(kernel=_of_kernel(given, record, plan))


def _of_kernel(
    given: Given, record: Record, plan: Plan
) -> Float[Array, "D V"] | Float[Array, "V D"]:
    """The kernel's gradient."""
    kernel, class_axis = given.layer.kernel, plan.class_axis
    classes, batch = kernel.shape[class_axis], given.rows.hidden.ndim - 1
    wide = given.rows.weights.dtype
    count = math.prod(given.rows.weights.shape)
    flat = jax.tree.map(lambda x: x.reshape(count, *x.shape[batch:]), (given.rows, record))
    rows, record = gather(flat, plan, "invarying")
    rows = labels_of_shard(rows, given.layer, plan)
    all_classes = Given(rows, given.layer)
    size, steps = plan.blocks(rows.hidden.shape[0], classes)
    shape = (kernel.shape[0], size) if class_axis else (size, kernel.shape[1])

    def step(gradient: Array, i: Array) -> tuple[Array, None]:
        # The last block may reach back into the one before it, and says the same there.
        first = jnp.minimum(i * size, classes - size)
        delta = in_the_loop(i, partial(_delta, size=size, plan=plan), all_classes, record, first)
        of_block = vary_alike(jnp.zeros(shape, wide), (rows.hidden, delta))
        of_block = add_product(of_block, rows.hidden, delta, feature_axis=plan.feature_axis)
        of_block = of_block.astype(gradient.dtype)
        return lax.dynamic_update_slice_in_dim(gradient, of_block, first, class_axis), None

    start = jnp.zeros(kernel.shape, plan.sum_dtype(kernel.dtype, wide))
    start = vary_alike(start, (given, record))
    return lax.scan(jax.checkpoint(step), start, jnp.arange(steps, dtype=jnp.int32))[0]


def _block(given: Given, first: Int[Array, ""], size: int, plan: Plan) -> Given:
    """So many classes from the first."""
    rows, layer = given

    def some(x: Array, axis: int) -> Array:
        return lax.dynamic_slice_in_dim(x, first, size, axis)

    labels = with_indices(rows.labels, lambda index: to_part(index, first, size))
    if isinstance(labels, SoftLabels):
        labels = SoftLabels(some(labels.weights, 1))
    where = jax.tree.map(lambda x: some(x, 1), rows.where)
    kernel = some(layer.kernel, plan.class_axis)
    bias, weights, mask = jax.tree.map(
        lambda x: some(x, 0), (layer.bias, layer.class_weights, layer.where)
    )
    rows = rows._replace(labels=labels, where=where)
    return Given(rows, Layer(kernel, bias, weights, mask, layer.numbers))


def _delta(
    given: Given, record: Record, first: Int[Array, ""], *, size: int, plan: Plan
) -> Float[Array, "n B"]:
    """The gradient of the logits of so many classes from the first, in the operands' dtype."""
    block = _block(given, first, size, plan)

    def rows_of(logits: Array, blocks: Blocks) -> object:
        return rows_of_part(Inputs([logits], None, None, Numbers()), blocks, part=block, plan=plan)

    (logits,) = logits_of(block, plan)
    gradient = replayed(rows_of, logits, record, first)
    return gradient.astype(of_gradients(block.rows.hidden.dtype, block.layer.kernel.dtype))
