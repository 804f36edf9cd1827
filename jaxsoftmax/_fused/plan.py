"""How many tokens at a time, and of a kernel's tile how many classes: shapes in, numbers out.

Testable without a device: what differs between devices comes in as numbers, from `tuning`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxsoftmax.tuning import Chunk

# A program that is exported for any number of rows has a loop of so many steps, not knowing how
# many rows a step then takes.
SYMBOLIC_STEPS = 16

# The vector of a TPU has 128 lanes, and its matrix unit is 128 or 256 columns wide.
LANES = 128
PIECE = 256


class Plan(NamedTuple):
    """`steps` chunks of `tokens` rows each cover all of them, the last padded where needed."""

    tokens: Any  # an int, or a symbolic dimension
    steps: int

    @property
    def rows(self) -> Any:
        """All rows, the padding included."""
        return self.tokens * self.steps


def make_plan(rows: Any, chunk_size: int | None, chunk: Chunk) -> Plan:
    """Chunks of at most `chunk_size` tokens: without padding where that costs few tokens a chunk.

    Padding copies the hidden states and the distributions; chunks down to three quarters of the
    asked size are tried for one that divides the rows.
    """
    if not isinstance(rows, int):
        return Plan(-(-rows // SYMBOLIC_STEPS), SYMBOLIC_STEPS)
    usual = max(chunk.least, min(chunk.most, rows // chunk.share))
    largest = max(1, min(chunk_size or usual, rows))
    for tokens in range(largest, 3 * largest // 4, -1):
        if rows % tokens == 0:
            return Plan(tokens, max(1, rows // tokens))
    steps = -(-rows // largest)
    return Plan(-(-rows // steps), steps)


class Blocks(NamedTuple):
    """The tile of logits of a TPU kernel, and how the kernel [D, V] lies in memory."""

    tokens: int
    classes: int
    class_major: bool  # as [V, D]: then a tile of it is whole rows
    vmem_bytes: int


# Tokens of a tile, best first: the kernel is read once for each block of them, and a matrix unit
# waits for it where there are few.
TOKENS = (1024, 512, 256, 128)
CLASSES = (1024, 768, 512, 256)

# A tile is straight-line code, whose length is what compiling it takes: 10 to 30 s for so many
# multiplications (libtpu 0.0.52). Honest float32 takes six for one.
MOST_WORK = 1 << 32
FLOAT32_PRODUCTS = 6

# What a tile costs besides its classes, in classes: the last look at it, which no product hides,
# and a step of the grid (read off the schedule of libtpu 0.0.52 for the v6e).
OVERHEAD = 64


def make_blocks(
    features: int,
    classes: int,
    sizes: tuple[int, int],
    vmem_bytes: int,
    tile: tuple[int, int] | None = None,
) -> Blocks | None:
    """The best tile that fits into VMEM, None where none does; `sizes` are bytes a number."""
    # XLA:TPU lays a matrix whose last axis is no multiple of the lanes out by columns, if that
    # pads less (libtpu 0.0.52, [4096, 50257]). Read as it lies, it is not copied.
    class_major = classes % LANES != 0
    if tile is not None:
        if tile[0] % LANES or tile[1] % PIECE:
            raise ValueError(
                f"a tile must be a multiple of {LANES} tokens by {PIECE} classes, got {tile}"
            )
        return Blocks(*tile, class_major, vmem_bytes)
    products = FLOAT32_PRODUCTS if max(sizes) == 4 else 1
    for tokens in TOKENS:
        fitting = [
            c
            for c in CLASSES
            if vmem_needed(features, tokens, c, sizes) <= vmem_bytes
            and products * features * tokens * c <= MOST_WORK
        ]
        if fitting:
            best = min(fitting, key=lambda c: -(-classes // c) * (c + OVERHEAD))
            return Blocks(tokens, best, class_major, vmem_bytes)
    return None


def vmem_needed(features: int, tokens: int, classes: int, sizes: tuple[int, int]) -> int:
    """Bytes of a tile: both operands twice, since the next is fetched meanwhile, and scratch."""
    of_hidden, of_kernel = sizes
    operands = 2 * features * (tokens * of_hidden + classes * of_kernel)
    # The compiler keeps the left operand for all pieces: as it is, or as what honest float32
    # multiplies (libtpu 0.0.52; for [512, 7168] float32 56 MiB of spill slots).
    kept = features * tokens * (16 if max(sizes) == 4 else 2)
    logits = 2 * 4 * tokens * PIECE
    carry = 2 * 9 * 4 * tokens * LANES  # nine parts at most, and as much in passing
    return operands + kept + logits + carry
