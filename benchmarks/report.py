"""What was measured, as tables for the terminal and for Markdown, and as JSON."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jax
import rich.table
from rich.markup import escape

import jaxsoftmax
from benchmarks import accuracy, workers
from benchmarks.implementations import OURS
from benchmarks.runner import Measurement

_MIB = 2**20
_DIRECTIONS = {"forward": "forward", "value_and_grad": "value and gradient", "vjp": "vjp"}


@dataclasses.dataclass(frozen=True)
class Table:
    """Strings in rows and columns, and a line below them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


# --- the environment ------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """What a number depends on beside the code; taken before the first measurement."""
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "jaxsoftmax": jaxsoftmax.__version__,
        **{name: _version(name) for name in ("jax", "jaxlib", "numpy", "optax", "torch")},
        "python": platform.python_version(),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "processor": _processor(),
        "cpu_count": workers.processors(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- tables ---------------------------------------------------------------------------------------


def timing_tables(suite: str, measurements: Sequence[Measurement]) -> list[Table]:
    """Times and temporary memory: a line for each case, a column for each peer."""
    peers = list(dict.fromkeys(m.peer for m in measurements))
    compared = OURS in peers and len(peers) > 1
    times: list[list[str]] = []
    memory: list[list[str]] = []
    for group in _by_case(measurements).values():
        case = group[0].case
        found = {m.peer: m for m in group}
        label = [case.operation] if suite == "distributions" else []
        label += ["x".join(map(str, case.shape)), case.dtype, _DIRECTIONS[case.direction]]
        ratio = [_ratio(found)] if compared else []
        times.append([*label, *(_time(found[peer]) for peer in peers), *ratio])
        size = math.prod(case.shape) * jax.numpy.dtype(case.dtype).itemsize
        temporaries = (_mebibytes(found[peer].temp_bytes) for peer in peers)
        memory.append([*label, _mebibytes(size), *temporaries])
    columns = ["operation"] if suite == "distributions" else []
    columns += ["shape", "logits", "computed"]
    last = [f"{OURS} ÷ fastest other"] if compared else []
    return [
        Table(
            f"{suite}: milliseconds a call", [*columns, *peers, *last], times, _note(measurements)
        ),
        Table(
            f"{suite}: temporary memory in MiB",
            [*columns, "the logits themselves", *peers],
            memory,
            "What the compiled program allocates beside its inputs and outputs; – is not known.",
        ),
    ]


def accuracy_tables(rows: Sequence[accuracy.Accuracy]) -> list[Table]:
    """The largest relative error in each band of the margin."""
    lines: list[list[str]] = []
    counts: dict[str, tuple[int, ...]] = {}
    # The quantities apart, so that peers stand below each other.
    order = list(dict.fromkeys((row.dtype, row.quantity) for row in rows))
    for row in sorted(rows, key=lambda row: order.index((row.dtype, row.quantity))):
        cells = [_error(e) for e in row.worst] or [row.status] * len(accuracy.BANDS)
        lines.append([row.dtype, row.quantity, row.peer, row.result_dtype, *cells])
        counts[row.dtype] = row.counts or counts.get(row.dtype, ())
    columns = [f"{low} to {high}" for low, high in accuracy.BANDS]
    in_words = "; ".join(f"{d}: {', '.join(map(str, c))}" for d, c in counts.items())
    note = (
        "Largest relative error against 50-digit arithmetic at the same logits, where the label "
        "leads by a margin of so many nats; 1 means that nothing is left of the result, which is "
        "then 0. The gradient is that at the label. Rounding a result to bfloat16 costs up to "
        f"2^-8 = 3.9e-03. Rows of logits in each band: {in_words}."
    )
    head = ["logits", "quantity", "computed by", "result in", *columns]
    return [Table("accuracy of the loss of a confident, correct prediction", head, lines, note)]


def _by_case(measurements: Iterable[Measurement]) -> dict[Any, list[Measurement]]:
    groups: dict[Any, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.case, []).append(measurement)
    return groups


def _time(measurement: Measurement) -> str:
    if measurement.median_s is None:
        return measurement.status
    lower, upper = measurement.lower_quartile_s, measurement.upper_quartile_s
    assert lower is not None
    assert upper is not None
    spread = (upper - lower) / 2
    return f"{_digits(1e3 * measurement.median_s)} ± {_digits(1e3 * spread, 2)}"


def _ratio(found: dict[str, Measurement]) -> str:
    """Our time over that of the fastest other peer."""
    times = {peer: m.median_s for peer, m in found.items() if m.median_s is not None}
    others = {peer: t for peer, t in times.items() if peer != OURS}
    if OURS not in times or not others:
        return "–"
    fastest = min(others, key=lambda peer: others[peer])
    return f"{times[OURS] / others[fastest]:.2f} ({fastest})"


def _note(measurements: Sequence[Measurement]) -> str:
    """How far the results were from float64: what a reader trusts the times by."""
    parts = []
    for dtype in dict.fromkeys(m.case.dtype for m in measurements):
        checked = [m for m in measurements if m.case.dtype == dtype and m.error is not None]
        if checked:
            worst = max(checked, key=lambda m: m.error or 0.0)
            parts.append(f"{dtype} {worst.error:.1e} ({worst.peer}), allowed {worst.tolerance:.0e}")
    return "Median ± half the interquartile range. Largest error against float64: " + (
        "; ".join(parts) + "."
    )


def _mebibytes(size: int | None) -> str:
    if size is None:
        return "–"
    return _digits(size / _MIB) if size >= 0.01 * _MIB else "< 0.01"


def _error(error: float | None) -> str:
    if error is None:
        return "not finite"
    return "1" if error == 1.0 else f"{error:.1e}"


def _digits(number: float, digits: int = 3) -> str:
    """So many significant digits, never an exponent."""
    if number == 0.0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(number)))
    return f"{number:.{max(0, min(places, 6))}f}"


# --- output ---------------------------------------------------------------------------------------


def to_rich(table: Table) -> rich.table.Table:
    """For the terminal."""
    # Escaped: rich reads [y] as markup.
    out = rich.table.Table(
        title=escape(table.title),
        caption=escape(table.note),
        title_justify="left",
        caption_justify="left",
    )
    for column in table.columns:
        out.add_column(escape(column))
    previous: Sequence[str] | None = None
    for row in table.rows:
        if previous is not None and row[:2] != previous[:2]:
            out.add_section()
        out.add_row(*map(escape, row))
        previous = row
    return out


def to_markdown(command: str, environment: dict[str, Any], tables: Sequence[Table]) -> str:
    """A page: the command that made it, where, and the tables."""
    versions = ", ".join(
        f"{name} {environment[name]}"
        for name in ("jax", "jaxlib", "numpy", "optax", "torch")
        if environment[name]
    )
    lines = [
        f"Written by `{command}`; what is measured and how is in benchmarks/README.md.",
        "",
        f"{environment['date']}, jaxsoftmax {environment['jaxsoftmax']}, {versions}, "
        f"Python {environment['python']}; {environment['device_count']} x "
        f"{environment['device_kind']} ({environment['processor']}, {environment['cpu_count']} "
        f"processors, load average {environment['load_average']} before the run).",
    ]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        lines += [_markdown_row(table.columns), _markdown_row(["---"] * len(table.columns))]
        lines += [_markdown_row(row) for row in table.rows]
        lines += ["", table.note] if table.note else []
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_json(
    path: pathlib.Path,
    environment: dict[str, Any],
    settings: dict[str, Any],
    suites: Mapping[str, Sequence[Any]],
) -> None:
    """One document with every row of these suites, as the dataclasses are."""
    document = {
        "environment": environment,
        "settings": settings,
        "suites": {
            name: [dataclasses.asdict(row) for row in rows] for name, rows in suites.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
