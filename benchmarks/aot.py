"""Ahead-of-time compilation for accelerators: memory, bytes accessed and XLA's time estimates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import compiling
from benchmarks.report import Table, digits, mebibytes

TARGETS = ("tpu v5e:2x2", "tpu v5p:2x2x1", "tpu v6e:2x2", "cuda h200")
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Part:
    """One program for one target."""

    target: str
    number: int  # of the program in the suite
    peer: str
    computed: str
    sizes: tuple[int, ...]
    quick: bool

    def __str__(self) -> str:
        return f"aot, {self.target}, {self.computed}, {'x'.join(map(str, self.sizes))}, {self.peer}"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's report on one program."""

    target: str
    computed: str
    sizes: tuple[int, ...]
    peer: str
    status: str
    note: str = ""
    compile_s: float | None = None
    temp_bytes: int | None = None
    output_bytes: int | None = None
    bytes_accessed: float | None = None
    flops: float | None = None
    optimal_s: float | None = None
    cycles: int | None = None
    collectives: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it did not fail; a missing compiler and "too large" are results."""
        return self.status != "failed"

    def __str__(self) -> str:
        return f"{self.status}: {self.peer}, {self.computed} for {self.target}: {self.note}"


def parts(*, quick: bool) -> list[Part]:
    """Every program for every target."""
    known = compiling.programs("aot", quick)
    return [
        Part(target, number, program.peer, program.computed, program.sizes, quick)
        for target in TARGETS
        for number, program in enumerate(known)
    ]


def measure(chosen: Sequence[Part], advance: Callable[[], None]) -> list[Compiled]:
    """Compile all programs of a target in one process."""
    rows = []
    for part, found in compiling.by_target("aot", chosen):
        rows.append(Compiled(part.target, part.computed, part.sizes, part.peer, **found))
        advance()
    return rows


def tables(rows: Sequence[Compiled]) -> list[Table]:
    """One line per program and target, and one per target that is not available."""
    lines, absent = [], set()
    for row in rows:
        if row.status.startswith("needs"):
            if row.target not in absent:
                lines.append([row.target, row.status, *["–"] * 7])
            absent.add(row.target)
            continue
        moved = "–" if row.bytes_accessed is None else digits(row.bytes_accessed / _GIB)
        sizes = "x".join(map(str, row.sizes))
        cells = [
            mebibytes(row.temp_bytes),
            mebibytes(row.output_bytes),
            moved,
            *_estimates(row, rows),
        ]
        if row.status != "ok":
            cells = [row.status, *["–"] * 4]
        lines.append([row.target, row.computed, sizes, row.peer, *cells])
    columns = ["target", "computed", "sizes (bfloat16)", "peer", "temporaries, MiB"]
    columns += ["outputs, MiB", "accessed, GiB", "million cycles", "of optax's or jax.nn's"]
    note = (
        "Reported by the compiler; nothing ran. Cycles are XLA:TPU's own estimate, loops by their "
        "trips; its sum of the bytes accessed counts the body of a loop once. – is a number that "
        "this compiler does not report."
    )
    return [Table("aot: compiled without the hardware", columns, lines, note)]


def _estimates(row: Compiled, rows: Sequence[Compiled]) -> list[str]:
    """The cycles, and their ratio to those of the peer in the same case."""
    if row.cycles is None:
        return ["–", "–"]
    same = (row.target, row.computed, row.sizes)
    peers = [
        other.cycles
        for other in rows
        if (other.target, other.computed, other.sizes) == same
        and other.peer in ("optax", "jax.nn")
        and other.cycles
    ]
    ratio = f"{row.cycles / peers[0]:.2f}" if peers else "–"
    return [digits(row.cycles / 1e6), ratio]
