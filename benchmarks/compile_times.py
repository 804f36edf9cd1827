"""What the first call costs: import, trace, lower, compile; each repeat in a fresh process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks import children, first_call
from benchmarks.registry import OURS
from benchmarks.report import Table, digits

_REPEATS = 5
_TIMEOUT_S = 120.0
_STAGES = first_call.STAGES
_OPERATIONS = {
    "softmax": (OURS, "jax.nn"),
    "cross_entropy": (OURS, "optax", "jax.nn"),
    "linear_cross_entropy": (OURS, "optax", "jax.nn"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One peer's operation."""

    operation: str
    peer: str

    def __str__(self) -> str:
        return f"compile, {self.operation}, {self.peer}"


@dataclasses.dataclass(frozen=True)
class FirstCall:
    """Median seconds of each stage, over fresh processes."""

    operation: str
    peer: str
    status: str
    note: str = ""
    repeats: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """It ran, or the peer is absent."""
        return self.status != "failed"

    def __str__(self) -> str:
        return f"{self.status}: {self.peer}, {self.operation}: {self.note}"


def parts() -> list[Part]:
    """Every operation by every peer that has it."""
    return [Part(operation, peer) for operation, peers in _OPERATIONS.items() for peer in peers]


def measure(part: Part, *, quick: bool) -> list[FirstCall]:
    """The stages of one peer's operation."""
    what = (part.operation, part.peer)
    arguments = ["-m", "benchmarks.first_call", *what]
    repeats = 1 if quick else _REPEATS
    try:
        samples = [children.run(arguments, {}, _TIMEOUT_S) for _ in range(repeats)]
    except children.ChildFailed as problem:
        absent = "No module named" in str(problem)
        return [FirstCall(*what, "not installed" if absent else "failed", str(problem))]
    medians = {stage: float(np.median([s[stage] for s in samples])) for stage in _STAGES}
    return [FirstCall(*what, "ok", "", repeats, medians)]


def tables(rows: Sequence[FirstCall]) -> list[Table]:
    """Milliseconds of each stage."""
    columns = ["operation", "peer", *(stage.replace("_", " ") for stage in _STAGES)]
    lines = []
    for row in rows:
        cells = [digits(1e3 * row.seconds[s]) for s in _STAGES] if row.seconds else [row.status]
        cells += ["–"] * (len(_STAGES) - len(cells))
        lines.append([row.operation, row.peer, *cells])
    note = (
        "Milliseconds; the losses with their gradients. Import is that of the peer's module after "
        "jax and jax.numpy are in; first call is all of trace, lower, compile and run, of a second "
        "jitted function in the same process; second call runs it again."
    )
    return [Table("compile: what the first call costs", columns, lines, note)]
