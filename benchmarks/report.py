"""Tables for the terminal and for Markdown."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import rich.table
from rich.markup import escape

from benchmarks import environment

_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of strings, with a title and a note."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


# --- numbers as text ------------------------------------------------------------------------------


def mebibytes(size: int | None) -> str:
    """A number of bytes in MiB, as text."""
    if size is None:
        return "–"
    return digits(size / _MIB) if size >= 0.01 * _MIB else "< 0.01"


def digits(number: float, significant: int = 3) -> str:
    """A number with the given significant digits, without an exponent."""
    if number == 0.0:
        return "0"
    places = significant - 1 - math.floor(math.log10(abs(number)))
    return f"{number:.{max(0, min(places, 6))}f}"


def file_name(run: dict[str, Any]) -> str:
    """The kind of device in the names of result files, such as cpu or nvidia-h200."""
    kind = run["device_kind"] if run["platform"] != "cpu" else "cpu"
    return "-".join(re.findall(r"[a-z0-9]+", kind.lower()))


# --- output ---------------------------------------------------------------------------------------


def to_rich(table: Table) -> rich.table.Table:
    """The table for the terminal."""
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


def to_markdown(
    command: str, runs: Sequence[tuple[str, dict[str, Any]]], tables: Sequence[Table]
) -> str:
    """A page with the command that wrote it, the tables, and where and when each suite ran."""
    lines = [
        f"Written by `{command}`; benchmarks/README.md describes the measurements, and the end of "
        "this page where and when each suite ran."
    ]
    suites: dict[str, list[str]] = {}
    for suite, known in runs:
        suites.setdefault(environment.in_words(known), []).append(suite)
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        lines += [_markdown_row(table.columns), _markdown_row(["---"] * len(table.columns))]
        lines += [_markdown_row(row) for row in table.rows]
        lines += ["", table.note] if table.note else []
    lines += ["", "## Runs", ""]
    lines += [f"- {', '.join(names)}: {words}" for words, names in suites.items()]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
