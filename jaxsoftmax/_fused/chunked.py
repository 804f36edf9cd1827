"""The rows of a linear loss, a chunk of tokens at a time: portable XLA, any device.

Of the logits only one chunk [n, V] exists. Chunk i holds the tokens i, i + steps, i + 2·steps, ...:
where a partitioner splits the tokens over devices, each of them has its own part of every chunk,
and nothing is gathered. In the program of one device of a mesh (`per_device`) that device has its
own tokens, and may have to gather a chunk from several.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxsoftmax._fused.chunks import Chunks, chunk_of, gather, own, put, summed, take, zeros_of
from jaxsoftmax._fused.given import Differentiable, Given, Rows, Wanted
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._fused.products import add_product, in_the_loop
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import losses as _losses
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.targets import SoftLabels
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import accumulator, promoted
from jaxsoftmax._xla.masks import keep, spread, spread_over
from jaxsoftmax._xla.products import product
from jaxsoftmax._xla.shardings import vary_alike


class _Inputs(NamedTuple):
    """What the losses of a chunk are differentiated by; None for what they are not."""

    logits: Float[Array, "*n V"]
    class_weights: Float[Array, "V"] | None
    soft_labels: Float[Array, "*n V"] | None


def rows_at_once(given: Given, plan: Plan) -> RowLosses:
    """The loss of each row, and its statistics, from all logits: the definition."""
    return _row_losses(_Inputs(_logits_of(given, plan), None, None), given, plan)


def rows(given: Given, plan: Plan) -> RowLosses:
    """The same, a chunk at a time."""
    chunks = Chunks.of(given, plan)
    split = chunks.split(given.rows)

    def step(_: None, i: Array) -> tuple[None, RowLosses]:
        part = Given(chunk_of(split, i, given.layer, plan), given.layer)
        return None, own(rows_at_once(part, plan), plan)

    return chunks.join(lax.scan(jax.checkpoint(step), None, jnp.arange(chunks.steps))[1])


def rows_and_gradients(
    given: Given, wanted: Wanted, plan: Plan
) -> tuple[Float[Array, "*batch"], Differentiable]:
    """The losses, and the gradients of Σ weights · loss in one pass, three products a chunk.

    Sums over rows come in the accumulator's dtype, gradients of rows in their own: the caller
    divides afterwards, so that a small 1/N costs a narrow dtype no digits.
    """
    chunks, kernel, features = Chunks.of(given, plan), given.layer.kernel, plan.feature_axis
    split = chunks.split(given.rows)
    narrow = promoted(given.rows.hidden.dtype, kernel.dtype)
    copies = mesh.transposed_copies(plan.options.axis_name)

    def differentiate(chunk: Rows) -> tuple[Array, _Inputs, Array | None]:
        """The losses of a chunk, and what their weights are pulled back to."""
        part = Given(chunk, given.layer)
        inputs = _inputs(_logits_of(part, plan), Differentiable.of(part), wanted)
        losses, pull = jax.vjp(lambda inputs: _row_losses(inputs, part, plan).loss, inputs)
        # Give the cotangent the losses' sharding, over a mesh.
        (pulled,) = pull((chunk.weights + jnp.zeros_like(losses)) / copies)
        of_bias = jnp.sum(pulled.logits, axis=0) if "bias" in wanted else None
        return losses, pulled._replace(logits=pulled.logits.astype(narrow)), of_bias

    def step(sums: Differentiable, i: Array) -> tuple[Differentiable, Array]:
        chunk = chunk_of(split, i, given.layer, plan)
        losses, (delta, of_weights, of_soft), of_bias = in_the_loop(i, differentiate, chunk)
        of_hidden = of_kernel = None
        if sums.hidden is not None:
            part = product(delta, kernel, (1, 1 - features)).astype(sums.hidden.dtype)
            of_hidden = put(sums.hidden, summed(part, plan), i)
        if sums.kernel is not None:
            of_kernel = add_product(sums.kernel, chunk.hidden, delta, feature_axis=features)
        if sums.soft_labels is not None:
            of_soft = put(sums.soft_labels, of_soft, i)
        added = jax.tree.map(jnp.add, sums[3:], (of_bias, of_weights))
        return Differentiable(of_hidden, of_soft, of_kernel, *added), own(losses, plan)

    # Over a mesh, each gradient is this device's part of a sum: it varies wherever an input does.
    zeros = zeros_of(given, wanted, chunks)
    start = vary_alike(zeros, given)
    if plan.gathered is not None:  # where that of hidden is complete
        start = start._replace(hidden=vary_alike(zeros.hidden, given.rows.weights))
    sums, losses = lax.scan(jax.checkpoint(step), start, jnp.arange(chunks.steps))
    return chunks.join(losses), Differentiable(*chunks.unsplit(sums[:2]), *sums[2:])


def tangents_of_rows(given: Given, tangents: Differentiable, plan: Plan) -> RowLosses:
    """The tangents of `rows`; the transpose recomputes each chunk of logits."""
    wanted = tangents.names()
    dtypes = (given.rows.hidden.dtype, given.layer.kernel.dtype)
    wide, narrow = accumulator(*dtypes), promoted(*dtypes)
    of_rows, of_layer = tangents[:2], tangents[2:]
    chunks = Chunks.of(given, plan)
    split, moved_split = chunks.split((given.rows, of_rows))
    # Cast here, so that the transpose sums over the chunks in the accumulator's dtype, and then
    # over the devices in the argument's.
    of_layer = vary_alike(of_layer, given.rows.hidden)
    of_layer = jax.tree.map(lambda x: x.astype(wide), of_layer)
    layer = given.layer
    if layer.class_weights is not None:
        layer = layer._replace(class_weights=layer.class_weights.astype(wide))

    def step(_: None, i: Array) -> tuple[None, RowLosses]:
        part = Given(chunk_of(split, i, layer, plan), layer)
        moved = Differentiable(*gather(take(moved_split, i), plan, "varying"), *of_layer)
        logits = _logits_of(part, plan)
        logits_dot = jnp.zeros_like(logits)
        if moved.hidden is not None:
            # In the operands' dtype: so its transpose multiplies in that dtype, too.
            moved_logits = product(moved.hidden, layer.kernel, (1, plan.feature_axis))
            logits_dot += moved_logits.astype(narrow).astype(wide)
        if moved.kernel is not None:
            hidden = part.rows.hidden.astype(wide)
            logits_dot += product(hidden, moved.kernel, (1, plan.feature_axis))
        if moved.bias is not None:
            logits_dot += moved.bias[None, :]
        inputs = _inputs(logits, Differentiable.of(part), wanted)
        inputs_dot = _inputs(logits_dot, moved, wanted)

        def rows_of(inputs: _Inputs) -> RowLosses:  # without `predicted`, which has no tangent
            return _row_losses(inputs, part, plan)._replace(predicted=None)

        return None, own(jax.jvp(rows_of, (inputs,), (inputs_dot,))[1], plan)

    return chunks.join(lax.scan(jax.checkpoint(step), None, jnp.arange(chunks.steps))[1])


# --- one chunk ------------------------------------------------------------------------------------


def _row_losses(inputs: _Inputs, part: Given, plan: Plan) -> RowLosses:
    """The loss of each row of a part, as of logits that the user gave."""
    (_, labels, ignored, where, _), layer = part
    logits, class_weights, soft = inputs
    if layer.where is not None:
        logits = _logits.exclude(logits, spread_over(layer.where, logits))
    logits = _logits.exclude(logits, where)
    if isinstance(labels, SoftLabels):
        soft = (labels.weights if soft is None else soft).astype(logits.dtype)
        if ignored is not None:
            soft = keep(soft, spread(~ignored, soft))
        labels = SoftLabels(soft)
    if class_weights is None:
        class_weights = layer.class_weights
    return _losses.of_logits(logits, labels, class_weights, plan.options)


def _logits_of(part: Given, plan: Plan) -> Float[Array, "*n V"]:
    """hidden · kernel + bias in the accumulator's dtype."""
    hidden = part.rows.hidden
    logits = product(hidden, part.layer.kernel, (hidden.ndim - 1, plan.feature_axis))
    bias = part.layer.bias
    return logits if bias is None else logits + spread_over(bias.astype(logits.dtype), logits)


def _inputs(logits: Array, of: Differentiable, wanted: Wanted) -> _Inputs:
    """The logits, and what else is wanted."""
    return _Inputs(
        logits,
        of.class_weights if "class_weights" in wanted else None,
        of.soft_labels if "soft_labels" in wanted else None,
    )
