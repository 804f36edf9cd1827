"""Figures of a JSON document, written to its folder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from benchmarks import documents
from benchmarks.accuracy import BANDS

_MILLI, _MIB = 1e3, 2**20
_DPI = 110
_SIZE = (4.2, 3.2)  # inches of one panel

Rows = list[dict[str, Any]]


def draw(document: pathlib.Path) -> list[pathlib.Path]:
    """Draw every figure for which the document has rows."""
    suites = documents.read(document)["suites"]
    made = []
    for name, rows in suites.items():
        for kind, figure in _figures(name, rows):
            path = document.with_name(f"{document.stem}-{kind}.png")
            figure.savefig(path, dpi=_DPI, bbox_inches="tight")
            plt.close(figure)
            made.append(path)
    return made


def _figures(name: str, rows: Rows) -> Iterator[tuple[str, Any]]:
    if name == "accuracy":
        yield "error", _panels(rows, ("dtype", "quantity"), _errors, "margin", "relative error")
        return
    if name == "aot":
        linear = "linear, value and both gradients"
        found = [row for row in rows if row["computed"] == linear and row["cycles"]]
        if found:
            panels = [{**row, "shape": "x".join(map(str, row["sizes"]))} for row in found]
            names = ("temporary memory, MiB", "million cycles, by the compiler")
            yield "frontier", _panels(panels, ("target", "shape"), _frontier, *names)
        return
    if name not in ("distributions", "cross_entropy", "kl_divergence", "linear_cross_entropy"):
        return
    timed = [_flat(row) for row in rows if row["median_s"] is not None]
    over = [row for row in timed if row["operation"] == "linear_chunks"]
    if over:
        yield "chunk-time", _bars(over, "ms", "milliseconds a call")
        yield "chunk-memory", _bars(over, "mib", "temporary memory, MiB")
    plain = [row for row in timed if row["operation"] != "linear_chunks"]
    if not plain:
        return
    keys = ("operation", "direction", "dtype")
    if len({row["classes"] for row in plain}) > 1:
        yield "time", _panels(plain, keys, _over_classes("ms"), "classes", "milliseconds a call")
        with_memory = [row for row in plain if row["mib"]]
        memory = _over_classes("mib")
        yield "memory", _panels(with_memory, keys, memory, "classes", "temporary memory, MiB")
    if any(row["share"] for row in plain):
        yield "share", _bars(plain, "share", "share of the limit, %")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    case = row["case"]
    limit = row.get("limit_s")  # missing in old documents
    return {
        "operation": case["operation"],
        "direction": case["direction"],
        "dtype": case["dtype"],
        "shape": "x".join(map(str, case["shape"])),
        "classes": case["shape"][-1],
        "peer": row["peer"],
        "ms": _MILLI * row["median_s"],
        "mib": (row["temp_bytes"] or 0) / _MIB,
        "share": 100 * limit / row["median_s"] if limit else None,
    }


def _panels(
    rows: Rows, keys: tuple[str, ...], fill: Callable[[Any, Rows], None], x: str, y: str
) -> Any:
    groups: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    columns = min(4, len(groups))
    lines = -(-len(groups) // columns)
    size = (_SIZE[0] * columns, _SIZE[1] * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, (title, group) in zip(axes.flat, groups.items(), strict=False):
        fill(axis, group)
        axis.set(title=", ".join(title), xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _over_classes(value: str) -> Callable[[Any, Rows], None]:
    def fill(axis: Any, rows: Rows) -> None:
        for peer in dict.fromkeys(row["peer"] for row in rows):
            of_peer = sorted((r["classes"], r[value]) for r in rows if r["peer"] == peer)
            axis.loglog(*zip(*of_peer, strict=True), marker="o", label=peer)

    return fill


def _errors(axis: Any, rows: Rows) -> None:
    places = range(len(BANDS))
    for row in rows:
        if row["worst"]:
            axis.semilogy(
                places, [w or float("nan") for w in row["worst"]], "o-", label=row["peer"]
            )
    axis.set_xticks(list(places), [f"{low}–{high}" for low, high in BANDS])


def _frontier(axis: Any, rows: Rows) -> None:
    """Every way to the gradients by what it needs: the lower left is best."""
    for row in rows:
        mib, cycles = row["temp_bytes"] / _MIB, row["cycles"] / 1e6
        axis.plot(mib, cycles, "o", label=row["peer"])
    axis.set_ylim(bottom=0)


def _bars(rows: Rows, value: str, label: str) -> Any:
    def fill(axis: Any, group: Rows) -> None:
        peers = list(dict.fromkeys(row["peer"] for row in group))
        shapes = list(dict.fromkeys(row["shape"] for row in group))
        width = 0.8 / len(peers)
        for number, peer in enumerate(peers):
            found = {row["shape"]: row[value] or 0.0 for row in group if row["peer"] == peer}
            places = [i + number * width for i in range(len(shapes))]
            axis.bar(places, [found.get(shape, 0.0) for shape in shapes], width, label=peer)
        axis.set_xticks([i + 0.4 for i in range(len(shapes))], shapes, fontsize="x-small")

    return _panels(rows, ("operation", "direction", "dtype"), fill, "", label)
