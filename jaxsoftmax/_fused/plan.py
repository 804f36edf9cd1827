"""How many tokens at a time: shapes in, numbers out. What depends on the device is in `tuning`."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxsoftmax._options import KernelLayout, LinearOptions
from jaxsoftmax._xla.dtypes import Size
from jaxsoftmax._xla.mesh import Blocks
from jaxsoftmax.tuning import Chunk

# A program that is exported for any number of rows has a loop of so many steps, not knowing how
# many rows a step then takes.
SYMBOLIC_STEPS = 16

STREAMED = 1 << 25  # logits at a time where memory is what counts: 128 MiB in float32
LANES = 128  # a block of classes is a multiple of what a TPU's registers and an H100's tiles hold


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
    def layouts(self) -> list[KernelLayout]:
        """Of the kernel, and of that of the target where there is one."""
        target = self.options.target_kernel_layout
        return [self.options.kernel_layout] + ([] if target is None else [target])

    @property
    def feature_axis(self) -> int:
        """The axis of the kernel that a row of hidden is multiplied with."""
        return self.options.kernel_layout.index("D")

    @property
    def class_axis(self) -> int:
        """The other axis of the kernel."""
        return self.options.kernel_layout.index("V")

    @property
    def streams(self) -> bool:
        """Whether the kernel's gradient comes a block of classes at a time."""
        return self.options.implementation == "streamed"

    def among(self, blocks: Blocks) -> Plan:
        """The plan of all classes here, or some, of which `blocks` knows the others."""
        options = dataclasses.replace(self.options, axis_name=blocks)
        return dataclasses.replace(self, options=options)

    def sum_dtype(self, kernel: np.dtype, wide: np.dtype) -> np.dtype:
        """In which the kernel's gradient is summed over the rows.

        A block of classes is complete at once, and rounded like any result. (The sum before it is
        divided may leave the range of float16.)
        """
        return kernel if self.streams and kernel != np.float16 else wide

    def divides_first(self, hidden: np.dtype, kernel: np.dtype) -> bool:
        """Whether the mean divides the weights, and not the gradients.

        These would be two arrays, with and without. (A small 1/N leaves the range of float16.)
        """
        return self.streams and np.float16 not in (hidden, kernel)

    @property
    def shared_by(self) -> tuple[str, ...]:
        """Mesh axes whose devices share a chunk of tokens."""
        return self.gathered.axes if self.gathered else ()

    def blocks(self, rows: Size, classes: Size) -> tuple[Size, int]:
        """Classes in a block of all rows, and the number of blocks.

        Half as many logits as in a chunk: a block of the kernel's gradient is in memory beside it.
        """
        if not (isinstance(rows, int) and isinstance(classes, int)):
            return classes, 1
        size = self.chunks(rows, classes)[0] * classes // max(2 * rows, 1)
        least = 1 if self.options.chunk_size else LANES
        size = min(classes, max(least, size // LANES * LANES or size))
        return size, -(-classes // size)

    def chunks(self, rows: Size, classes: Size) -> tuple[Size, int]:
        """Tokens in a chunk, of this device's rows, and the number of chunks; the last is padded.

        At most `chunk_size` tokens: without padding where that costs few tokens a chunk. Padding
        copies the hidden states and soft labels; chunks down to three quarters of the asked size
        are tried for one that divides the rows.
        """
        if not isinstance(rows, int):
            return -(-rows // SYMBOLIC_STEPS), SYMBOLIC_STEPS
        devices = 1 if self.gathered is None else self.gathered.devices
        usual = max(self.chunk.least, min(self.chunk.most, rows * devices // self.chunk.share))
        if self.streams and isinstance(classes, int):
            usual = STREAMED // classes * devices
        largest = max(1, min((self.options.chunk_size or usual) // devices, rows))
        for tokens in range(largest, 3 * largest // 4, -1):
            if rows % tokens == 0:
                return tokens, max(1, rows // tokens)
        steps = -(-rows // largest)
        return -(-rows // steps), steps
