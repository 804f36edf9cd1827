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
    loop_trips: int = 1
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
                lines.append([row.target, row.status, *["–"] * 8])
            absent.add(row.target)
            continue
        moved = "–" if row.bytes_accessed is None else digits(row.bytes_accessed / _GIB)
        # XLA:TPU reports a negative sum for some programs.
        known = row.optimal_s is not None and row.optimal_s > 0.0
        optimal = digits(1e3 * row.optimal_s) if known else "–"
        at_most = digits(1e3 * row.optimal_s * row.loop_trips) if known else "–"
        sizes = "x".join(map(str, row.sizes))
        cells = [mebibytes(row.temp_bytes), mebibytes(row.output_bytes), moved, optimal, at_most]
        if row.status != "ok":
            cells = [row.status, *["–"] * 4]
        lines.append([row.target, row.computed, sizes, row.peer, *cells, str(row.loop_trips)])
    columns = ["target", "computed", "sizes (bfloat16)", "peer", "temporaries, MiB"]
    columns += ["outputs, MiB", "accessed, GiB", "optimal, ms", "at most, ms", "loop trips"]
    note = (
        "Reported by the compiler; nothing ran. XLA's estimates (bytes accessed, optimal time) "
        "count the body of a loop once. At most is the optimal time multiplied by the trip count "
        "of the longest loop: close to the total if the loop is nearly all of the program. – is a "
        "number that this compiler does not report."
    )
    return [Table("aot: compiled without the hardware", columns, lines, note)]
