"""Communication: the collectives of losses compiled for several devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import compiling, targets
from benchmarks.report import Table, mebibytes

# TPU targets need libtpu.
_CPU_DEVICES = (8, 64)
_TPU_DEVICES = (2, 4, 8, 16, 64, 256)
_QUICK_DEVICES = (4,)


@dataclasses.dataclass(frozen=True)
class Part:
    """One program for a number of devices."""

    target: str
    devices: int
    number: int  # of the program in the suite
    peer: str
    computed: str
    sizes: tuple[int, ...]
    quick: bool

    def __str__(self) -> str:
        return f"sharded, {self.target}, {self.devices} devices, {self.computed}, {self.peer}"


@dataclasses.dataclass(frozen=True)
class Communication:
    """The collectives of one program, and its temporaries per device."""

    target: str
    devices: int
    computed: str
    sizes: tuple[int, ...]
    peer: str
    status: str
    note: str = ""
    temp_bytes: int | None = None
    collectives: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it did not fail; a missing compiler and "too large" are results."""
        return self.status != "failed"

    def __str__(self) -> str:
        return f"{self.status}: {self.peer}, {self.computed} for {self.target}: {self.note}"


def parts(*, quick: bool) -> list[Part]:
    """Every program for every number of devices."""
    known = compiling.programs("sharded", quick)
    counts = [(f"cpu:{n}", n) for n in (_QUICK_DEVICES if quick else _CPU_DEVICES)]
    if not quick:
        counts += [(f"tpu {targets.TPU_OF_DEVICES[n]}", n) for n in _TPU_DEVICES]
    return [
        Part(target, devices, number, program.peer, program.computed, program.sizes, quick)
        for target, devices in counts
        for number, program in enumerate(known)
    ]


def measure(chosen: Sequence[Part], advance: Callable[[], None]) -> list[Communication]:
    """Compile all programs of a target in one process."""
    rows = []
    for part, found in compiling.by_target("sharded", chosen):
        kept = {k: found[k] for k in ("status", "note", "temp_bytes", "collectives") if k in found}
        what = (part.target, part.devices, part.computed, part.sizes, part.peer)
        rows.append(Communication(*what, **kept))
        advance()
    return rows


def tables(rows: Sequence[Communication]) -> list[Table]:
    """One line per program, and one per target that is not available."""
    lines, absent = [], set()
    for row in rows:
        if row.status.startswith("needs"):
            if row.target not in absent:
                lines.append([row.target, str(row.devices), row.status, *["–"] * 5])
            absent.add(row.target)
            continue
        head = [row.target, str(row.devices), row.computed, row.peer]
        if row.status != "ok":
            lines.append([*head, row.status, "–", "–", "–"])
            continue
        found = row.collectives
        counts = ", ".join(f"{total['count']} {kind}" for kind, total in found.items()) or "none"
        sent = sum(total["sent_bytes"] for total in found.values())
        largest = max((total["largest_bytes"] for total in found.values()), default=0)
        cells = [mebibytes(sent), mebibytes(largest), mebibytes(row.temp_bytes)]
        lines.append([*head, counts, *cells])
    columns = ["target", "devices", "computed", "peer", "collectives of one step"]
    columns += ["sent by a device, MiB", "largest, MiB", "temporaries, MiB"]
    sizes = "x".join(map(str, rows[0].sizes)) if rows else ""
    note = (
        f"Value and gradients, bfloat16, tokens x features x classes {sizes}. Counted in the "
        "optimised program, loops by their trip counts. Sent: with ring algorithms. Largest: the "
        "largest array, on one device, that a collective reduces or gathers."
    )
    return [Table("sharded: collectives and bytes communicated", columns, lines, note)]
