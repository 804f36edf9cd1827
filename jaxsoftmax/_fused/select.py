"""Which implementation serves a call, and the sentence why another one cannot."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxsoftmax import tuning
from jaxsoftmax._fused.plan import LANES, Blocks, make_blocks
from jaxsoftmax._precision import promoted
from jaxsoftmax.tuning import Chunk, Device, Row

IMPLEMENTATIONS = ("auto", "reference", "chunked", "mosaic_tpu")


class Call(NamedTuple):
    """What of a call decides which implementation can serve it."""

    tokens: Any  # an int, or a symbolic dimension
    features: Any
    classes: Any
    hidden: str  # dtypes
    kernel: str
    soft_labels: bool = False
    where_by_row: bool = False
    axis_name: Any = None

    @property
    def dtype(self) -> str:
        """That of the matrix product."""
        return promoted(self.hidden, self.kernel).name


class Choice(NamedTuple):
    """What was chosen, with everything that the device decides; hashable, static under jit."""

    implementation: str
    chunk: Chunk
    blocks: Blocks | None = None  # of the kernel
    portable: bool = False  # chunked where the program turns out to be lowered for another platform
    why: str = ""


def choose(implementation: object, chunk_size: int | None, call: Call) -> Choice:
    """The implementation for a call; an error where what was asked for is not to be had."""
    if not isinstance(implementation, str) or implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, "
            f"got {implementation!r}"
        )
    if implementation == "reference":
        if chunk_size is not None:
            raise ValueError(
                f'chunk_size={chunk_size} is for implementation="chunked", got '
                'implementation="reference", which has all logits at once'
            )
        return Choice("reference", Chunk(1, 1, 1), why="asked for")
    device = tuning.device()
    tokens = call.tokens if isinstance(call.tokens, int) else None
    rows = tuning.rows_for(device, call.dtype, tokens)
    portable = [row for row in rows if row.implementation == "chunked"]
    chunk = (portable or tuning.ROWS[-1:])[0].chunk
    if implementation == "mosaic_tpu":
        sentence = why_not_mosaic_tpu(call, device, rows)
        if sentence is not None:
            raise ValueError(f'implementation="mosaic_tpu" {sentence}; "auto" serves this call')
        return Choice("mosaic_tpu", chunk, blocks_for(call, rows), why="asked for")
    if implementation == "chunked":
        return Choice("chunked", chunk, why="asked for")
    return _automatic(rows, chunk, chunk_size, call, device)


def _automatic(
    rows: list[Row], chunk: Chunk, chunk_size: int | None, call: Call, device: Device
) -> Choice:
    """The first row that can serve the call."""
    passed_over = ""
    for row in rows:
        if not row.by_auto:
            passed_over += f"; {row.implementation} only by name: {row.why}"
            continue
        if row.implementation == "chunked":
            return Choice("chunked", row.chunk, why=row.why + passed_over)
        if row.implementation != "mosaic_tpu":
            raise ValueError(
                "a row of jaxsoftmax.tuning.table must name the implementation 'chunked' or "
                f"'mosaic_tpu', got {row.implementation!r}"
            )
        sentence = why_not_mosaic_tpu(call, device, [row]) or _why_not_unasked(chunk_size)
        if sentence is None:
            blocks = blocks_for(call, [row])
            return Choice("mosaic_tpu", chunk, blocks, portable=True, why=row.why)
        passed_over += f"; mosaic_tpu {sentence}"
    return Choice("chunked", chunk, why="no row of the table fits" + passed_over)


def why_not_mosaic_tpu(call: Call, device: Device, rows: list[Row]) -> str | None:
    """The end of a sentence that begins with the kernel's name; None where it serves the call."""
    if device.platform != "tpu":
        return (
            f"runs on TPUs, and this program is traced for {device.kind!r} ({device.platform}); "
            "to compile for a TPU elsewhere, trace under jaxsoftmax.tuning.compiling_for"
        )
    for cannot, sentence in (
        (call.axis_name is not None, f"has no mesh axis, got axis_name={call.axis_name!r}"),
        (call.soft_labels, "takes integer labels, got one distribution per example"),
        (call.where_by_row, "takes a mask over classes that is the same for all rows"),
        (
            not {call.hidden, call.kernel} <= {"bfloat16", "float32"},
            f"takes bfloat16 and float32, got hidden {call.hidden} and kernel {call.kernel}",
        ),
        (
            not all(isinstance(n, int) for n in (call.tokens, call.features, call.classes)),
            "needs shapes that are known when it is traced",
        ),
    ):
        if cannot:
            return sentence
    if call.tokens == 0:
        return "needs at least one token"
    if call.features % LANES or call.classes < LANES:
        return (
            f"needs features in multiples of {LANES} and as many classes, "
            f"got D = {call.features}, V = {call.classes}"
        )
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if precision not in (None, "default", "highest"):
        return f"knows no jax_default_matmul_precision={precision!r}"
    if blocks_for(call, rows) is None:
        return (
            f"has no tile for D = {call.features} in {call.dtype} in the VMEM that "
            f"jaxsoftmax.tuning knows of {device.kind!r}"
        )
    return None


def blocks_for(call: Call, rows: list[Row]) -> Blocks | None:
    """The tile of the first of these rows that is the kernel's, or the best that fits its VMEM."""
    for row in rows:
        if row.implementation == "mosaic_tpu":
            sizes = (_bytes(call.hidden), _bytes(call.kernel))
            return make_blocks(call.features, call.classes, sizes, row.vmem_bytes, row.tile)
    return None


def _why_not_unasked(chunk_size: int | None) -> str | None:
    """What speaks against the kernel where nobody asked for it."""
    if chunk_size is not None:
        return f"has no chunks, got chunk_size={chunk_size}"
    mesh = jax.sharding.get_abstract_mesh()
    alone = jax.device_count() == 1 if mesh.empty else mesh.are_all_axes_manual
    if not alone:
        return "cannot be partitioned by jit over several devices; shard_map can"
    return None


def _bytes(dtype: str) -> int:
    return jax.numpy.dtype(dtype).itemsize
