"""Comparison of two JSON documents: `python -m benchmarks --compare OLD NEW`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from benchmarks import documents
from benchmarks.report import Table, digits, mebibytes

# (field, heading, format)
_NUMBERS = (
    ("median_s", "ms", lambda s: digits(1e3 * s)),
    ("temp_bytes", "temporaries, MiB", mebibytes),
    ("optimal_s", "optimal, ms", lambda s: digits(1e3 * s)),
    ("sent_bytes", "sent, MiB", mebibytes),
)


def tables(old: pathlib.Path, new: pathlib.Path) -> list[Table]:
    """One table per number of each suite in both documents, one line per row in both."""
    before, after = documents.read(old), documents.read(new)
    made = []
    for suite in before["suites"]:
        if suite in after["suites"]:
            made += _suite_tables(suite, before["suites"][suite], after["suites"][suite])
    if not made:
        made.append(
            Table(
                "nothing to compare",
                ["suites of OLD", "suites of NEW"],
                [[", ".join(before["suites"]), ", ".join(after["suites"])]],
            )
        )
    return made


def _suite_tables(suite: str, old: list[Any], new: list[Any]) -> Iterator[Table]:
    before = {documents.name(row): row for row in old}
    for field, heading, write in _NUMBERS:
        lines = []
        for row in new:
            was, now = _number(before.get(documents.name(row), {}), field), _number(row, field)
            if was is not None and now is not None:
                ratio = f"{now / was:.2f}" if was else "–"
                lines.append([documents.name(row), write(was), write(now), ratio])
        if lines:
            columns = ["row", f"old {heading}", f"new {heading}", "new ÷ old"]
            yield Table(f"{suite}: {heading}", columns, lines)


def _number(row: dict[str, Any], field: str) -> float | None:
    if field == "sent_bytes" and row.get("collectives"):
        return sum(total["sent_bytes"] for total in row["collectives"].values())
    return row.get(field)
