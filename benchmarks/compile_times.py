"""Cost of compiling: the stages of a first call in fresh processes, and the size of programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks import children, first_call, program_size
from benchmarks.registry import OURS
from benchmarks.report import Table, digits

_REPEATS = 5
_TIMEOUT_S = 300.0
_FIRST_CALLS = {
    "softmax": (OURS, "jax.nn"),
    "log_softmax": (OURS, "jax.nn"),
    "logsumexp": (OURS, "jax.nn"),
    "cross_entropy": (OURS, "optax", "jax.nn"),
    "linear_cross_entropy": (OURS, "optax", "jax.nn"),
}
_COMPUTED = ("value", "gradient")


@dataclasses.dataclass(frozen=True)
class Part:
    """The first call of one peer's operation, or the programs of all peers of an operation."""

    operation: str
    peer: str | None  # None: the programs of all peers

    def __str__(self) -> str:
        return f"compile, {self.operation}, {self.peer or 'programs'}"


@dataclasses.dataclass(frozen=True)
class Compilation:
    """Median seconds of each stage, of a first call or of one program."""

    operation: str
    peer: str
    status: str
    note: str = ""
    repeats: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    computed: str | None = None  # "value" or "gradient" of a program; None: a first call
    equations: int | None = None  # of the program's jaxpr, with those of its sub-jaxprs

    @property
    def passed(self) -> bool:
        """Whether it ran; a peer that is not installed counts as passed."""
        return self.status != "failed"

    def __str__(self) -> str:
        return f"{self.status}: {self.peer}, {self.operation}: {self.note}"


def parts() -> list[Part]:
    """Every first call, then the programs of every operation."""
    first_calls = [Part(name, peer) for name, peers in _FIRST_CALLS.items() for peer in peers]
    return first_calls + [Part(name, None) for name in program_size.PEERS]


def measure(part: Part, *, quick: bool) -> list[Compilation]:
    """The rows of a part."""
    repeats = 1 if quick else _REPEATS
    if part.peer is None:
        return _measure_programs(part.operation, repeats)
    return [_measure_first_call(part.operation, part.peer, repeats)]


def _measure_first_call(operation: str, peer: str, repeats: int) -> Compilation:
    arguments = ["-m", "benchmarks.first_call", operation, peer]
    try:
        samples = [children.run(arguments, {}, _TIMEOUT_S) for _ in range(repeats)]
    except children.ChildFailed as problem:
        absent = "No module named" in str(problem)
        return Compilation(operation, peer, "not installed" if absent else "failed", str(problem))
    seconds = {s: float(np.median([sample[s] for sample in samples])) for s in first_call.STAGES}
    return Compilation(operation, peer, "ok", "", repeats, seconds)


def _measure_programs(operation: str, repeats: int) -> list[Compilation]:
    """All peers in one process, because they alternate."""
    arguments = ["-m", "benchmarks.program_size", operation, str(repeats)]
    what = [(peer, computed) for computed in _COMPUTED for peer in program_size.PEERS[operation]]
    try:
        documents = list(children.stream(arguments, {}, _TIMEOUT_S))
    except children.ChildFailed as problem:
        return [Compilation(operation, p, "failed", str(problem), computed=c) for p, c in what]
    measured = {"status": "ok", "repeats": repeats}
    found = {(d["peer"], d["computed"]): {**measured, **d} for d in documents}
    absent = {"status": "not installed"}
    return [
        Compilation(operation, **{"peer": p, "computed": c, **found.get((p, c), absent)})
        for p, c in what
    ]


def tables(rows: Sequence[Compilation]) -> list[Table]:
    """Milliseconds of each stage: of first calls, and of programs with their sizes."""
    first_calls = [row for row in rows if row.computed is None]
    sizes = [row for row in rows if row.computed is not None]
    made = [_first_call_table(first_calls)] if first_calls else []
    return made + ([_program_table(sizes)] if sizes else [])


def _first_call_table(rows: Sequence[Compilation]) -> Table:
    columns = [stage.replace("_", " ") for stage in first_call.STAGES]
    lines = [[row.operation, row.peer, *_times(row, first_call.STAGES)] for row in rows]
    note = (
        "Milliseconds; the losses with their gradients. Import is the import of the peer's module "
        "after jax and jax.numpy. First call is tracing, lowering, compiling and running a second "
        "jitted function in the same process; second call runs it again."
    )
    return Table("compile: cost of the first call", ["operation", "peer", *columns], lines, note)


def _program_table(rows: Sequence[Compilation]) -> Table:
    lines = []
    for row in rows:
        equations = "–" if row.equations is None else str(row.equations)
        times = _times(row, program_size.STAGES)
        lines.append([row.operation, row.computed or "", row.peer, equations, *times])
    columns = ["operation", "computed", "peer", "equations", *program_size.STAGES]
    shape, linear = ("x".join(map(str, s)) for s in (program_size.SHAPE, program_size.LINEAR_SHAPE))
    note = (
        f"float32 logits {shape}; tokens x features x classes {linear} for linear_cross_entropy, "
        "whose gradient is that of hidden states and kernel. Equations of the jaxpr, with those of "
        "all sub-jaxprs; medians in milliseconds, caches cleared before each program."
    )
    return Table("compile: size of the programs", columns, lines, note)


def _times(row: Compilation, stages: Sequence[str]) -> list[str]:
    if not row.seconds:
        return [row.status, *["–"] * (len(stages) - 1)]
    return [digits(1e3 * row.seconds[stage]) for stage in stages]
