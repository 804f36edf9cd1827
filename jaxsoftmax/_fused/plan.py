"""How many tokens at a time: shapes in, numbers out. What depends on the device is in `tuning`."""

from __future__ import annotations

import dataclasses

from jaxsoftmax._options import LinearOptions
from jaxsoftmax._xla.dtypes import Size
from jaxsoftmax.tuning import Chunk

# A program that is exported for any number of rows has a loop of so many steps, not knowing how
# many rows a step then takes.
SYMBOLIC_STEPS = 16


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static about a call: `steps` chunks of `tokens` rows each, the last one padded."""

    options: LinearOptions
    tokens: Size
    steps: int

    @property
    def feature_axis(self) -> int:
        """The axis of the kernel that a row of hidden is multiplied with."""
        return self.options.kernel_layout.index("D")


def make_plan(rows: Size, options: LinearOptions, chunk: Chunk) -> Plan:
    """Chunks of at most `chunk_size` tokens: without padding where that costs few tokens a chunk.

    Padding copies the hidden states and soft labels; chunks down to three quarters of the asked
    size are tried for one that divides the rows.
    """
    if not isinstance(rows, int):
        return Plan(options, -(-rows // SYMBOLIC_STEPS), SYMBOLIC_STEPS)
    usual = max(chunk.least, min(chunk.most, rows // chunk.share))
    largest = max(1, min(options.chunk_size or usual, rows))
    for tokens in range(largest, 3 * largest // 4, -1):
        if rows % tokens == 0:
            return Plan(options, tokens, max(1, rows // tokens))
    steps = -(-rows // largest)
    return Plan(options, -(-rows // steps), steps)
