"""What is measured: operations, directions, shapes and dtypes. Data only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import product

DTYPES = ("float32", "bfloat16")
CHAPTER_SHAPES = ((128, 10), (8192, 1000), (1024, 32000))
VOCABULARY_SHAPES = ((8192, 1000), (1024, 32000), (512, 131072))
QUICK_SHAPES = ((64, 1000),)


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of a table, in which every peer computes the same thing."""

    operation: str  # what `implementations` and `references` know it by
    direction: str  # a key of `runner.DIRECTIONS`
    shape: tuple[int, ...]  # of the logits
    dtype: str  # of the logits


def _chapter(shapes: Sequence[tuple[int, ...]]) -> Iterator[Case]:
    for shape, dtype, direction in product(shapes, DTYPES, ("forward", "value_and_grad")):
        yield Case("chapter", direction, shape, dtype)


def _distributions(shapes: Sequence[tuple[int, ...]]) -> Iterator[Case]:
    operations = ("softmax", "log_softmax", "logsumexp")
    for operation, shape, dtype in product(operations, shapes, DTYPES):
        for direction in ("forward", "vjp"):
            yield Case(operation, direction, shape, dtype)


def _cross_entropy(shapes: Sequence[tuple[int, ...]]) -> Iterator[Case]:
    for shape, dtype, direction in product(shapes, DTYPES, ("forward", "value_and_grad")):
        yield Case("cross_entropy", direction, shape, dtype)


# A suite: the cases for given shapes, and the shapes of a full run.
_SUITES: dict[str, tuple[Callable[..., Iterator[Case]], tuple[tuple[int, ...], ...]]] = {
    "chapter": (_chapter, CHAPTER_SHAPES),
    "distributions": (_distributions, CHAPTER_SHAPES),
    "cross_entropy": (_cross_entropy, VOCABULARY_SHAPES),
}
TIMED_SUITES = tuple(_SUITES)


def suite(name: str, *, quick: bool = False) -> list[Case]:
    """The cases of a suite, at its own shapes or at the small one of a quick run."""
    make, shapes = _SUITES[name]
    return list(make(QUICK_SHAPES if quick else shapes))
