"""Tables of times and temporary memory: a line per case, a column per peer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from benchmarks.cases import LINEAR
from benchmarks.registry import OURS
from benchmarks.report import Table, digits, mebibytes
from benchmarks.runner import Measurement

_DIRECTIONS = {
    "forward": "forward",
    "value_and_grad": "value and gradient",
    "value_and_grads": "value and both gradients",
    "vjp": "vjp",
}
_TITLES = {"linear_chunks": "linear_cross_entropy over chunk_size"}


def tables(suite: str, measurements: Sequence[Measurement]) -> list[Table]:
    """Two tables for each group of cases with the same peers."""
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for group in _by_case(measurements).values():
        groups.setdefault(tuple(m.peer for m in group), []).extend(group)
    return [table for rows in groups.values() for table in _two_tables(suite, rows)]


def _two_tables(suite: str, measurements: Sequence[Measurement]) -> list[Table]:
    peers = list(dict.fromkeys(m.peer for m in measurements))
    compared = OURS in peers and len(peers) > 1
    several = len({m.case.operation for m in measurements}) > 1
    times: list[list[str]] = []
    memory: list[list[str]] = []
    for group in _by_case(measurements).values():
        case = group[0].case
        found = {m.peer: m for m in group}
        label = [case.operation] if several else []
        label += ["x".join(map(str, case.shape)), case.dtype, _DIRECTIONS[case.direction]]
        ratio = [_ratio(found)] if compared else []
        cells = (_time(found[peer]) for peer in peers)
        times.append([*label, _limit(group[0]), *cells, *ratio])
        size = math.prod(case.logits_shape) * jax.numpy.dtype(case.dtype).itemsize
        temporaries = (mebibytes(found[peer].temp_bytes) for peer in peers)
        memory.append([*label, mebibytes(size), *temporaries])
    first = measurements[0].case
    what = "inputs" if first.operation in LINEAR else "logits"
    columns = [*(["operation"] if several else []), "shape", what, "computed"]
    last = [f"{OURS} ÷ fastest other"] if compared else []
    title = _TITLES.get(first.operation, suite)
    return [
        Table(
            f"{title}: milliseconds per call, and share of the limit",
            [*columns, "limit", *peers, *last],
            times,
            _note(measurements),
        ),
        Table(
            f"{title}: temporary memory in MiB",
            [*columns, "size of the logits", *peers],
            memory,
            "Allocated by the compiled program in addition to inputs and outputs; – is unknown.",
        ),
    ]


def _by_case(measurements: Iterable[Measurement]) -> dict[Any, list[Measurement]]:
    groups: dict[Any, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.case, []).append(measurement)
    return groups


def _limit(measurement: Measurement) -> str:
    if measurement.limit_s is None:
        return "–"
    return f"{measurement.limit} {digits(1e3 * measurement.limit_s, 2)}"


def _time(measurement: Measurement) -> str:
    if measurement.median_s is None:
        return measurement.status
    lower, upper = measurement.lower_quartile_s, measurement.upper_quartile_s
    assert lower is not None
    assert upper is not None
    spread = (upper - lower) / 2
    time = f"{digits(1e3 * measurement.median_s)} ± {digits(1e3 * spread, 2)}"
    share = measurement.share
    return time if share is None else f"{time} ({100 * share:.0f} %)"


def _ratio(found: dict[str, Measurement]) -> str:
    """Our time divided by that of the fastest other peer."""
    times = {peer: m.median_s for peer, m in found.items() if m.median_s is not None}
    others = {peer: t for peer, t in times.items() if not peer.startswith(OURS)}
    if OURS not in times or not others:
        return "–"
    fastest = min(others, key=lambda peer: others[peer])
    return f"{times[OURS] / others[fastest]:.2f} ({fastest})"


def _note(measurements: Sequence[Measurement]) -> str:
    """What the cells contain, and the largest error against float64."""
    parts = []
    for dtype in dict.fromkeys(m.case.dtype for m in measurements):
        checked = [m for m in measurements if m.case.dtype == dtype and m.error is not None]
        if checked:
            worst = max(checked, key=lambda m: m.error or 0.0)
            parts.append(f"{dtype} {worst.error:.1e} ({worst.peer}), allowed {worst.tolerance:.0e}")
    return (
        "Median ± half the interquartile range (share of the limit). Limit: the resource that "
        "limits the case, and the milliseconds that it needs at the device's rate. Largest error "
        f"against float64: {'; '.join(parts)}."
    )
