"""The rows of a linear loss in one kernel: logits never leave the chip. Pallas, for TPUs.

A block of tokens meets the vocabulary a tile at a time. A tile of logits [tokens, classes] is one
matrix product, with the whole feature axis in VMEM, and is looked at where it lies: each of the
128 lanes of a vector carries what it knows of the classes it has seen (`_tiles`), and when all
tiles are through, the lanes merge. Out go a few numbers a token.

Forward only. The gradients of a scalar loss come with the loss from `chunked`, which needs three
products where any kernel that recomputes needs four; those of single rows from there, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float, Int

from jaxsoftmax import _tiles
from jaxsoftmax._fused.plan import LANES, PIECE, Blocks
from jaxsoftmax._precision import product
from jaxsoftmax._tiles import Carry


class Operands(NamedTuple):
    """What the kernel reads, None for what a loss has not got; or what is said of each."""

    label: Int[Array, "1 N"] | Any
    hidden: Float[Array, "N D"] | Any
    kernel: Float[Array, "D V"] | Float[Array, "V D"] | Any
    bias: Float[Array, "1 V"] | Any
    where: Int[Array, "1 V"] | Any
    weights: Float[Array, "1 V"] | Any


class Scratch(NamedTuple):
    """What stays in VMEM from one tile to the next."""

    carry: Any  # Carry of [tokens, 128]
    label_in_lane: Any  # [tokens, 128]: the label, counted from the lane
    logits: Any  # [2, tokens, PIECE]


class Asked(NamedTuple):
    """Which sums the loss is made of, besides those of the label against the others."""

    statistics: bool
    smoothing: bool


def rows(
    transform: Callable[[Array], Array],
    label: Int[Array, "N"],
    hidden: Float[Array, "N D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, "V"] | None,
    where: Bool[Array, "V"] | None,
    weights: Float[Array, "V"] | None,
    asked: Asked,
    blocks: Blocks,
) -> Carry:
    """All classes of each row, seen from its label: a carry of [N]."""

    def row(x: Array | None, dtype: Any) -> Array | None:
        return None if x is None else x.astype(dtype)[None, :]

    operands = Operands(
        label[None, :],
        hidden,
        kernel.T if blocks.class_major else kernel,
        row(bias, jnp.float32),
        row(where, jnp.int32),
        row(weights, jnp.float32),
    )
    carry = _call(transform, asked, blocks)(operands)
    return jax.tree.map(lambda x: x[0], carry)


def _call(
    transform: Callable[[Array], Array], asked: Asked, blocks: Blocks
) -> Callable[[Operands], Carry]:
    """The kernel as a function of its operands, which knows what vmap should make of it."""

    @jax.custom_batching.custom_vmap
    def call(operands: Operands) -> Carry:
        return _pallas_call(transform, asked, blocks, operands)

    @call.def_vmap
    def _(size: int, arguments: list[Operands], operands: Operands) -> tuple[Carry, Carry]:
        (batched,) = arguments  # True or False in place of each array
        if any(jax.tree.leaves(batched[2:])):
            shared, moving = (
                jax.tree.map(lambda is_, x, of=of: x if is_ is of else None, batched, operands)
                for of in (False, True)
            )

            def one(part: Operands) -> Carry:
                whole = (p if s is None else s for p, s in zip(part, shared, strict=True))
                return call(Operands(*whole))

            carry = lax.map(one, moving)
        else:
            # The same classes for all: more rows, in one pass over the kernel.
            label, hidden = (
                x if is_ else jnp.broadcast_to(x, (size, *x.shape))
                for is_, x in zip(batched[:2], operands[:2], strict=True)
            )
            rows = hidden.reshape(-1, hidden.shape[-1])
            carry = call(operands._replace(label=label.reshape(1, -1), hidden=rows))
            carry = jax.tree.map(lambda x: x.reshape(size, 1, -1), carry)
        return carry, jax.tree.map(lambda _: True, carry)

    return call


def _pallas_call(
    transform: Callable[[Array], Array], asked: Asked, blocks: Blocks, operands: Operands
) -> Carry:
    """All tiles of all blocks of tokens."""
    count = operands.hidden.shape[0]
    classes = operands.kernel.shape[0 if blocks.class_major else 1]
    tokens = min(blocks.tokens, -(-count // LANES) * LANES)
    grid = (pl.cdiv(count, tokens), pl.cdiv(classes, blocks.classes))
    kept, found = (
        jax.eval_shape(partial(_tiles.empty, shape, **asked._asdict()))
        for shape in ((tokens, LANES), (1, count))
    )
    (carry,) = pl.pallas_call(
        partial(_kernel, transform, classes, blocks),
        grid=grid,
        in_specs=_input_specs(operands, tokens, blocks),
        out_specs=[jax.tree.map(lambda _: pl.BlockSpec((1, tokens), lambda i, j: (0, i)), found)],
        out_shape=[jax.tree.map(partial(_shaped_like, operands), found)],
        scratch_shapes=[
            Scratch(
                jax.tree.map(lambda x: pltpu.VMEM(x.shape, x.dtype), kept),
                pltpu.VMEM((tokens, LANES), jnp.int32),
                pltpu.VMEM((2, tokens, PIECE), jnp.float32),
            )
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=blocks.vmem_bytes
        ),
        cost_estimate=_cost(operands, classes, grid[0]),
        name="jaxsoftmax_rows",
    )(operands)
    return carry


def _kernel(
    transform: Callable[[Array], Array],
    classes: int,
    blocks: Blocks,
    operands: Operands,
    out: Carry,
    scratch: Scratch,
) -> None:
    """One tile: the product of each piece of it, and a look at the piece before meanwhile."""
    tile = pl.program_id(1)

    @pl.when(tile == 0)
    def _() -> None:
        shape = scratch.label_in_lane.shape
        by_lane = jnp.broadcast_to(operands.label[...], shape[::-1])  # [128, tokens]
        scratch.label_in_lane[...] = by_lane.T - lax.broadcasted_iota(jnp.int32, shape, 1)
        _write(scratch.carry, _like(scratch.carry))

    pieces = blocks.classes // PIECE
    for piece in range(pieces + 1):
        # Two rooms for logits, and no loop: the compiler then runs the vector units, which look
        # at one piece, beside the matrix units, which make the next.
        if piece < pieces:
            scratch.logits[piece % 2] = _logits(operands, piece, blocks)
        if piece > 0:
            start = tile * blocks.classes + (piece - 1) * PIECE
            tail = bool(classes % blocks.classes)
            strips = [
                _strip(transform, operands, scratch, piece - 1, k, start, classes if tail else None)
                for k in range(PIECE // LANES)
            ]
            _write(scratch.carry, _tiles.observe(_read(scratch.carry), strips))

    @pl.when(tile == pl.num_programs(1) - 1)
    def _() -> None:
        by_lane = jax.tree.map(lambda x: x[...].T, scratch.carry)  # [128, tokens]
        whole = _tiles.merge(by_lane, axis=0)
        exists = operands.label[...] < classes
        label_logit = jnp.where(exists, whole.label_logit, jnp.nan)
        _write(out, whole._replace(label_logit=label_logit))


def _logits(operands: Operands, piece: int, blocks: Blocks) -> Float[Array, "tokens PIECE"]:
    hidden, columns = operands.hidden[...], pl.ds(piece * PIECE, PIECE)
    kernel = operands.kernel[columns, :] if blocks.class_major else operands.kernel[:, columns]
    axes = (1, 1 if blocks.class_major else 0)
    if hidden.dtype == kernel.dtype == jnp.bfloat16:
        # Exact as they are; asked for more, Mosaic does not compile them (libtpu 0.0.52).
        with jax.default_matmul_precision("default"):
            return product(hidden, kernel, axes)
    return product(hidden, kernel, axes)


def _strip(
    transform: Callable[[Array], Array],
    operands: Operands,
    scratch: Scratch,
    piece: int,
    k: int,
    start: Array,
    classes: int | None,
) -> _tiles.Strip:
    """128 columns of a piece that starts at a class; with `classes`, where the vocabulary ends."""
    within = pl.ds(piece * PIECE + k * LANES, LANES)
    first = start + k * LANES
    ids = first + lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    logits = scratch.logits[piece % 2, :, k * LANES : (k + 1) * LANES]
    if operands.bias is not None:
        logits = logits + operands.bias[:, within]
    if operands.where is not None:
        logits = jnp.where(operands.where[:, within] != 0, logits, -jnp.inf)
    logits = transform(logits)
    if classes is not None:
        # What lies behind the last class is any number, or none.
        logits = jnp.where(ids < classes, logits, -jnp.inf)
    weights = None if operands.weights is None else operands.weights[:, within]
    return _tiles.Strip(logits, scratch.label_in_lane[...] == first, ids, weights)


def _input_specs(operands: Operands, tokens: int, blocks: Blocks) -> list[Operands]:
    features = operands.hidden.shape[1]
    by_class = pl.BlockSpec((1, blocks.classes), lambda i, j: (0, j))
    kernel = pl.BlockSpec((features, blocks.classes), lambda i, j: (0, j))
    if blocks.class_major:
        kernel = pl.BlockSpec((blocks.classes, features), lambda i, j: (j, 0))
    return [
        Operands(
            pl.BlockSpec((1, tokens), lambda i, j: (0, i)),
            pl.BlockSpec((tokens, features), lambda i, j: (i, 0)),
            kernel,
            *(None if x is None else by_class for x in operands[3:]),
        )
    ]


def _shaped_like(operands: Operands, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Under shard_map a result varies over the mesh axes that any operand varies over."""
    types = [jax.typeof(operand).mat for operand in jax.tree.leaves(operands)]
    axes = frozenset[Any]().union(*(known.varying for known in types))
    varying = jax.sharding.ManualAxisType(varying=axes)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying)


def _cost(operands: Operands, classes: int, passes: int) -> pl.CostEstimate:
    """For XLA's scheduler: the kernel is read again for every block of tokens."""
    count, features = operands.hidden.shape
    read = operands.hidden.nbytes + passes * operands.kernel.nbytes
    return pl.CostEstimate(
        flops=2 * count * features * classes,
        transcendentals=count * classes,
        bytes_accessed=read,
    )


def _read(refs: Any) -> Any:
    return jax.tree.map(lambda ref: ref[...], refs)


def _write(refs: Any, values: Any) -> None:
    jax.tree.map(lambda ref, value: ref.__setitem__(..., value), refs, values)


def _like(refs: Carry) -> Carry:
    shape = refs.maximum.shape
    return _tiles.empty(shape, refs.statistics is not None, refs.smoothing is not None)
