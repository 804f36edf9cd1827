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
class Gathered:
    """Of a program that is divided over a mesh: whose tokens make a chunk."""

    axes: tuple[str, ...]  # mesh axes that split the tokens, not the chunk; () for none
    devices: int  # along them
    shards: tuple[str, ...]  # mesh axes that split the classes


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static about a call."""

    options: LinearOptions
    chunk: Chunk
    gathered: Gathered | None = None

    @property
    def feature_axis(self) -> int:
        """The axis of the kernel that a row of hidden is multiplied with."""
        return self.options.kernel_layout.index("D")

    @property
    def shared_by(self) -> tuple[str, ...]:
        """Mesh axes whose devices share a chunk of tokens."""
        return self.gathered.axes if self.gathered else ()

    def chunks(self, rows: Size) -> tuple[Size, int]:
        """Tokens in a chunk, of this device's rows, and the number of chunks; the last is padded.

        At most `chunk_size` tokens: without padding where that costs few tokens a chunk. Padding
        copies the hidden states and soft labels; chunks down to three quarters of the asked size
        are tried for one that divides the rows.
        """
        if not isinstance(rows, int):
            return -(-rows // SYMBOLIC_STEPS), SYMBOLIC_STEPS
        devices = 1 if self.gathered is None else self.gathered.devices
        usual = max(self.chunk.least, min(self.chunk.most, rows * devices // self.chunk.share))
        largest = max(1, min((self.options.chunk_size or usual) // devices, rows))
        for tokens in range(largest, 3 * largest // 4, -1):
            if rows % tokens == 0:
                return tokens, max(1, rows // tokens)
        steps = -(-rows // largest)
        return -(-rows // steps), steps
