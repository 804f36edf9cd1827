"""The timed cases: operations, directions, shapes and dtypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

DTYPES = ("float32", "bfloat16")
CHAPTER_SHAPES = ((128, 10), (8192, 1000), (1024, 32000))
VOCABULARY_SHAPES = ((128, 10), (8192, 1000), (1024, 32000), (512, 131072))
QUICK_SHAPES = ((64, 1000),)

LINEAR = ("linear_cross_entropy", "linear_chunks")  # their shapes are tokens x features x classes
LINEAR_SHAPES = ((2048, 512, 32000), (512, 256, 16384))
QUICK_LINEAR_SHAPES = ((128, 32, 2048),)
CHUNK_SIZES = (None, 64, 128, 256, 512, 1024, 2048)
LARGE_CHUNK_SIZES = (4096, 8192)  # on accelerators

# On a GPU: the models measured in the papers on fused losses, and rows of every length.
GPU_ROWS = ((32768, 256), (32768, 4096), (32768, 32768), (32768, 65536), (8192, 262144))
GPU_LINEAR_SHAPES = (
    *((tokens, 4096, 128256) for tokens in (1024, 2048, 4096, 8192, 16384)),
    (8192, 2304, 256000),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of a table: what every peer computes."""

    operation: str  # its name in `implementations` and `references`
    direction: str  # a key of `programs.DIRECTIONS`
    shape: tuple[int, ...]  # of the logits, or tokens x features x classes
    dtype: str  # of the logits, or of hidden states and kernel

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """Rows and classes."""
        return (self.shape[0], self.shape[-1])

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.operation}, {self.direction}, {shape} {self.dtype}"


Shapes = Sequence[tuple[int, ...]]


def _mean(operation: str, shapes: Shapes) -> Iterator[Case]:
    for shape, dtype, direction in product(shapes, DTYPES, ("forward", "value_and_grad")):
        yield Case(operation, direction, shape, dtype)


def _distributions(shapes: Shapes) -> Iterator[Case]:
    operations = ("softmax", "log_softmax", "logsumexp")
    for operation, shape, dtype in product(operations, shapes, DTYPES):
        for direction in ("forward", "vjp"):
            yield Case(operation, direction, shape, dtype)


def _linear(shapes: Shapes) -> Iterator[Case]:
    for shape, dtype in product(shapes, DTYPES):
        for direction in ("forward", "value_and_grads"):
            yield Case("linear_cross_entropy", direction, shape, dtype)
    for dtype, direction in product(DTYPES, ("forward", "value_and_grads")):
        yield Case("linear_chunks", direction, shapes[0], dtype)


class _Suite:
    """The cases for given shapes, and the shapes of a full, a GPU and a quick run."""

    def __init__(
        self, make: Callable[[Shapes], Iterator[Case]], full: Shapes, gpu: Shapes, quick: Shapes
    ) -> None:
        self.make, self.full, self.gpu, self.quick = make, full, gpu, quick


_SUITES = {
    "chapter": _Suite(partial(_mean, "chapter"), CHAPTER_SHAPES, CHAPTER_SHAPES, QUICK_SHAPES),
    "distributions": _Suite(_distributions, VOCABULARY_SHAPES, GPU_ROWS, QUICK_SHAPES),
    "cross_entropy": _Suite(
        partial(_mean, "cross_entropy"), VOCABULARY_SHAPES, GPU_ROWS, QUICK_SHAPES
    ),
    "kl_divergence": _Suite(
        partial(_mean, "kl_divergence"), CHAPTER_SHAPES, GPU_ROWS, QUICK_SHAPES
    ),
    "linear_cross_entropy": _Suite(_linear, LINEAR_SHAPES, GPU_LINEAR_SHAPES, QUICK_LINEAR_SHAPES),
}
TIMED_SUITES = tuple(_SUITES)


def suite(name: str, *, quick: bool = False, platform: str = "cpu") -> list[Case]:
    """The cases of a suite, at the platform's shapes or at those of a quick run."""
    known = _SUITES[name]
    shapes = known.quick if quick else known.gpu if platform == "gpu" else known.full
    return list(known.make(shapes))
