"""Writing, updating and reading the JSON documents."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cases import Case

# The fields that identify a row of any suite; all others are results.
_NAMES = ("case", "target", "devices", "operation", "computed", "sizes", "dtype", "dtypes")
_NAMES += ("quantity", "peer")

Rows = list[dict[str, Any]]


def name(row: Mapping[str, Any]) -> str:
    """The identity of a row as text."""
    words = []
    for field in _NAMES:
        value = row.get(field)
        for part in value.values() if isinstance(value, dict) else [value]:
            if part is not None:
                words.append("x".join(map(str, part)) if isinstance(part, list) else str(part))
    return ", ".join(words)


def write(
    path: pathlib.Path,
    head: Mapping[str, Any],
    suites: Mapping[str, Sequence[Any]],
    *,
    update: bool = False,
) -> None:
    """Write the head and all rows; with `update`, keep existing rows that are not in `suites`."""
    new = json.loads(json.dumps({key: list(map(_plain, rows)) for key, rows in suites.items()}))
    if update and path.exists():
        before = read(path)
        old = before["suites"]
        merged = {key: _updated(old.get(key, []), new.get(key, [])) for key in {**old, **new}}
        kept = sum(map(len, merged.values())) > sum(map(len, new.values()))
        if kept and before["environment"].get("source") != head["environment"].get("source"):
            # Some rows are of other code: the document as a whole is of none.
            head = {**head, "environment": {**head["environment"], "source": None}}
        new = merged
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {**head, "suites": new}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(path: pathlib.Path) -> dict[str, Any]:
    """Read a document."""
    return json.loads(path.read_text(encoding="utf-8"))


def as_rows(row_type: type, rows: Rows) -> list[Any]:
    """Convert rows back to dataclasses."""
    made = []
    for row in rows:
        fields = {key: _tuples(value) for key, value in row.items()}
        if "case" in fields:
            case = {key: _tuples(value) for key, value in row["case"].items()}
            fields["case"] = Case(**case)
        made.append(row_type(**fields))
    return made


def _plain(row: Any) -> dict[str, Any]:
    return dataclasses.asdict(row)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _updated(old: Rows, new: Rows) -> Rows:
    """Existing rows in their order, then the new ones."""
    rows = {name(row): row for row in old}
    rows.update((name(row), row) for row in new)
    return list(rows.values())
