"""Communication: the collectives of losses compiled for several devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import compiling
from benchmarks.report import Table, mebibytes

# TPU targets need libtpu, an H200 the CUDA plugin.
_TARGETS = (
    ("cpu:8", 8),
    ("tpu v5e:2x4", 8),
    ("tpu v6e:4x4", 16),
    ("tpu v5e:8x8", 64),
    ("cuda h200:8", 8),
)
_QUICK_TARGETS = (("cpu:8", 8),)


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
    counts = _QUICK_TARGETS if quick else _TARGETS
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
    of_optax = {
        (row.target, row.computed, row.sizes): _sent(row) for row in rows if row.peer == "optax"
    }
    for row in rows:
        if row.status.startswith("needs"):
            if row.target not in absent:
                lines.append([row.target, str(row.devices), row.status, *["–"] * 6])
            absent.add(row.target)
            continue
        head = [row.target, str(row.devices), row.computed, row.peer]
        if row.status != "ok":
            lines.append([*head, row.status, *["–"] * 4])
            continue
        found = row.collectives
        counts = ", ".join(f"{total['count']} {kind}" for kind, total in found.items()) or "none"
        largest = max((total["largest_bytes"] for total in found.values()), default=0)
        computed = row.computed.replace("explicit", "jit")
        peer = of_optax.get((row.target, computed, row.sizes))
        ratio = "–" if not peer else f"{_sent(row) / peer:.2f}"
        cells = [mebibytes(_sent(row)), ratio, mebibytes(largest), mebibytes(row.temp_bytes)]
        lines.append([*head, counts, *cells])
    columns = ["target", "devices", "computed", "peer", "collectives of one step"]
    columns += ["sent by a device, MiB", "of optax's", "largest, MiB", "temporaries, MiB"]
    sizes = "x".join(map(str, rows[0].sizes)) if rows else ""
    note = (
        f"Value and gradients, bfloat16, tokens x features x classes {sizes}; many tokens are so "
        "many on each device. jit: automatic axes; explicit: those of `jax.make_mesh`. Counted in "
        "the optimised program, loops by their trip counts. Sent: with ring algorithms. Largest: "
        "the largest array, on one device, that a collective reduces or gathers."
    )
    return [Table("sharded: collectives and bytes communicated", columns, lines, note)]


def _sent(row: Communication) -> int:
    return sum(total["sent_bytes"] for total in row.collectives.values())
