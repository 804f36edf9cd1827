"""The rows of a linear loss, a chunk of tokens at a time: portable XLA, any device.

Of the logits only one chunk [n, V] exists. Chunk i holds the tokens i, i + steps, i + 2·steps, ...:
where a partitioner splits the tokens over devices, each of them has its own part of every chunk,
and nothing is gathered. In the program of one device of a mesh (`per_device`) that device has its
own tokens, and may have to gather a chunk from several.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxsoftmax._arguments import Head
from jaxsoftmax._fused.chunks import Chunks, chunk_of, gather, own, put, summed, take, zeros_of
from jaxsoftmax._fused.given import Differentiable, Given, OfHead, Rows, Wanted
from jaxsoftmax._fused.part import (
    Inputs,
    differentiated,
    inputs_of,
    logits_of,
    rows_at_once,
    rows_of_part,
)
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._fused.products import add_product, in_the_loop
from jaxsoftmax._options import KernelLayout
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.blocks import Record
from jaxsoftmax._xla.dtypes import of_gradients
from jaxsoftmax._xla.products import product
from jaxsoftmax._xla.shardings import vary_alike


def rows(given: Given, plan: Plan) -> RowLosses:
    """The loss of each row, and its statistics, a chunk at a time."""
    chunks = Chunks.of(given, plan)
    split = chunks.split(given.rows)

    def step(_: None, i: Array) -> tuple[None, RowLosses]:
        part = Given(chunk_of(split, i, given.layer, plan), given.layer)
        return None, own(rows_at_once(part, plan), plan)

    return chunks.join(lax.scan(jax.checkpoint(step), None, jnp.arange(chunks.steps))[1])


def pulled_back(
    given: Given, cotangents: RowLosses, wanted: Wanted, plan: Plan, *, record: bool = False
) -> tuple[RowLosses, Differentiable, Record | None]:
    """The rows, and what their cotangents are pulled back to, in one pass.

    Three products a chunk. With `record` also what `_xla.blocks` reads of each row.
    """
    chunks = Chunks.of(given, plan)
    split, split_cotangents = chunks.split((given.rows, cotangents))
    narrow = [of_gradients(head.hidden.dtype, head.kernel.dtype) for head in given.heads()]
    with_bias = bool(wanted & {"bias", "target_bias"})
    copies = mesh.transposed_copies(plan.options.axis_name)

    def differentiate(
        chunk: Rows, cotangents: RowLosses
    ) -> tuple[RowLosses, Inputs, list[Array | None], Record | None]:
        """The rows of a chunk, and what their cotangents are pulled back to."""
        found, pull = differentiated(Given(chunk, given.layer), wanted, plan, record=record)
        # 0 for what is not pulled back; the others get the rows' sharding, over a mesh.
        zeros = jax.tree.map(jnp.zeros_like, found.movable())
        named = {name: ct for name, ct in cotangents._asdict().items() if ct is not None}
        scaled = {name: (ct + getattr(zeros, name)) / copies for name, ct in named.items()}
        pulled, of_rows = pull(zeros._replace(**scaled))
        biases = [jnp.sum(x, axis=0) if with_bias else None for x in pulled.logits]
        deltas = [x.astype(dtype) for x, dtype in zip(pulled.logits, narrow, strict=False)]
        return found, pulled._replace(logits=deltas), biases, of_rows

    def step(
        sums: Differentiable, i: Array
    ) -> tuple[Differentiable, tuple[RowLosses, Record | None]]:
        chunk = chunk_of(split, i, given.layer, plan)
        of_chunk = gather(take(split_cotangents, i), plan, "invarying")
        found, pulled, biases, of_rows = in_the_loop(i, differentiate, chunk, of_chunk)
        deltas, of_weights, of_soft, of_numbers = pulled
        heads = Given(chunk, given.layer).heads()
        for k, pair in enumerate(zip(deltas, biases, strict=True)):
            of_head = _with_chunk(sums.head(k), heads[k], i, pair, plan.layouts[k], plan)
            sums = sums.with_head(k, of_head)
        if sums.soft_labels is not None and of_soft is not None:
            sums = sums._replace(soft_labels=put(sums.soft_labels, own(of_soft, plan), i))
        sums = sums.plus(class_weights=of_weights, **of_numbers._asdict())
        return sums, own((found, of_rows), plan)

    # Over a mesh, each gradient is this device's part of a sum: it varies wherever an input does.
    zeros = zeros_of(given, wanted, chunks)
    start = vary_alike(zeros, (given, cotangents))
    if plan.gathered is not None:  # where those of hidden are complete
        for name in ("hidden", "target_hidden"):
            of_rows = vary_alike(getattr(zeros, name), given.rows.weights)
            start = start._replace(**{name: of_rows})
    # Of these a transpose has the whole sum.
    whole = {name: getattr(zeros, name) for name in Differentiable.whole(given)}
    start = start._replace(**whole)
    sums, (found, recorded) = lax.scan(jax.checkpoint(step), start, jnp.arange(chunks.steps))
    gradients = Differentiable(*chunks.unsplit(sums.of_rows()), *sums.of_layer())
    return chunks.join(found), gradients, chunks.join(recorded)


def _with_chunk(
    sums: OfHead,
    head: Head,
    i: Array,
    pulled: tuple[Float[Array, "n V"], Float[Array, "V"] | None],
    layout: KernelLayout,
    plan: Plan,
) -> OfHead:
    """The gradients of a head with those of chunk i, pulled back to its logits and the bias."""
    delta, of_bias = pulled
    if sums.hidden is not None:
        part = product(delta, head.kernel, (1, layout.index("V"))).astype(sums.hidden.dtype)
        sums = sums._replace(hidden=put(sums.hidden, summed(part, plan), i))
    if sums.kernel is not None:
        total = add_product(sums.kernel, head.hidden, delta, feature_axis=layout.index("D"))
        sums = sums._replace(kernel=total)
    if sums.bias is not None and of_bias is not None:
        sums = sums._replace(bias=sums.bias + of_bias)
    return sums


def tangents_of_rows(given: Given, tangents: Differentiable, plan: Plan) -> RowLosses:
    """The tangents of `rows`; the transpose recomputes each chunk of logits."""
    wanted, wide = tangents.names(), given.rows.weights.dtype
    of_rows, of_layer = tangents.of_rows(), tangents.of_layer()
    chunks = Chunks.of(given, plan)
    split, moved_split = chunks.split((given.rows, of_rows))
    # Cast here, so that the transpose sums over the chunks in the accumulator's dtype, and then
    # over the devices in the argument's.
    of_layer = vary_alike(of_layer, given.rows.hidden)
    of_layer = jax.tree.map(lambda x: x.astype(wide), of_layer)
    layer = given.layer
    if layer.class_weights is not None:
        layer = layer._replace(class_weights=layer.class_weights.astype(wide))
    layer = layer._replace(numbers=jax.tree.map(lambda x: x.astype(wide), layer.numbers))

    def step(_: None, i: Array) -> tuple[None, RowLosses]:
        part = Given(chunk_of(split, i, layer, plan), layer)
        moved = Differentiable(*gather(take(moved_split, i), plan, "varying"), *of_layer)
        logits = logits_of(part, plan)
        triples = enumerate(zip(part.heads(), plan.layouts, strict=True))
        logits_dot = [
            _moved_logits(head, moved.head(k), layout, logits[k]) for k, (head, layout) in triples
        ]
        inputs = inputs_of(logits, Differentiable.of(part), wanted)
        inputs_dot = inputs_of(logits_dot, moved, wanted)
        rows_of = partial(rows_of_part, part=part, plan=plan)
        _, moved_rows, _ = jax.jvp(rows_of, (inputs,), (inputs_dot,), has_aux=True)
        return None, own(moved_rows, plan)

    return chunks.join(lax.scan(jax.checkpoint(step), None, jnp.arange(chunks.steps))[1])


def _moved_logits(
    head: Head, moved: OfHead, layout: KernelLayout, logits: Float[Array, "n V"]
) -> Float[Array, "n V"]:
    """The tangent of a head's logits."""
    logits_dot, features = jnp.zeros_like(logits), layout.index("D")
    if moved.hidden is not None:
        # In the operands' dtype: so its transpose multiplies in that dtype, too.
        narrow = of_gradients(head.hidden.dtype, head.kernel.dtype)
        part = product(moved.hidden, head.kernel, (1, features))
        logits_dot += part.astype(narrow).astype(logits.dtype)
    if moved.kernel is not None:
        logits_dot += product(head.hidden.astype(logits.dtype), moved.kernel, (1, features))
    if moved.bias is not None:
        logits_dot += moved.bias[None, :]
    return logits_dot
