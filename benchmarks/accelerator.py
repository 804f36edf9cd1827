"""Ten minutes on an accelerator that has just been lent: `python -m benchmarks --accelerator`.

The self-check first, then the device's rates, then the cases that are worth most. Each row is saved
as soon as it is measured; a run that is cut off is continued by the same command, which leaves out
what is already there. At the end come the best published figures for this kind of device, and the
rows of `jaxsoftmax.tuning` that the measurements imply.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from benchmarks import documents, environment, implementations, limits, report, runner, workers
from benchmarks.cases import Case
from benchmarks.report import Table, digits
from benchmarks.suites import Run
from jaxsoftmax import _selfcheck

SUITE = "accelerator"
DTYPES = ("float32", "bfloat16")  # of the self-check
# Tokens, features, classes: Llama 3's head and Gemma 2's; the most telling first.
HEADS = (
    (8192, 4096, 128256),
    (8192, 2304, 256000),
    *((tokens, 4096, 128256) for tokens in (4096, 16384, 1024, 2048)),
)
COLUMNS = (32768, 131072, 4096, 262144, 65536, 16384, 1024, 256)
ROWS = tuple((8192 if columns > 65536 else 32768, columns) for columns in COLUMNS)
QUICK_HEADS, QUICK_ROWS = ((128, 32, 2048),), ((64, 1000),)


class Published(NamedTuple):
    """A figure of another project."""

    kind: str  # the device's kind in JAX's words, a regular expression
    shape: tuple[int, ...]
    milliseconds: float  # of loss and both gradients, in bfloat16
    who: str
    source: str


PUBLISHED = (
    *(
        Published(".*H200.*", (tokens, 4096, 128256), ms, who, "Liger-Kernel, pull request 1356")
        for tokens, ms, who in (
            (1024, 4.113, "QuACK"),
            (2048, 7.955, "QuACK"),
            (4096, 16.712, "Liger CuTe"),
            (8192, 34.350, "Liger CuTe"),
            (16384, 73.709, "QuACK"),
        )
    ),
    Published(".*H100.*", (16384, 4096, 128256), 104.1, "XLA", "tokamax, autotuning cache"),
    Published("TPU v6 lite", (16384, 4096, 128256), 106.83, "tokamax", "tokamax, autotuning cache"),
    Published(
        "TPU v5p?", (16384, 4096, 128256), 162.83, "tokamax, XLA", "tokamax, autotuning cache"
    ),
    Published(".*A100.*", (8192, 2304, 256000), 134.8, "Cut Cross-Entropy", "its README"),
)


def plan(*, quick: bool) -> Iterator[Case]:
    """The cases, the most valuable first."""
    heads, rows = (QUICK_HEADS, QUICK_ROWS) if quick else (HEADS, ROWS)
    for shape in heads:
        yield Case("linear_chunks", "value_and_grads", shape, "bfloat16")
        yield Case("linear_cross_entropy", "value_and_grads", shape, "bfloat16")
        yield Case("linear_cross_entropy", "forward", shape, "bfloat16")
    for shape in rows:
        yield Case("cross_entropy", "value_and_grad", shape, "bfloat16")
        yield Case("cross_entropy", "forward", shape, "bfloat16")
        yield Case("softmax", "forward", shape, "bfloat16")


def run(
    arguments: argparse.Namespace, path: Path, settings: runner.Settings, console: Console
) -> int:
    """Measure until the minutes are over; 1 if the self-check or a result failed."""
    until = time.monotonic() + 60 * arguments.minutes
    if not _checked(console):
        return 1
    measured = limits.measure(quick=arguments.quick)
    console.print(report.to_rich(limits.table(measured)))
    head = {"environment": environment.environment(), "limits": dataclasses.asdict(measured)}
    known = _known(path)
    failures = 0
    with workers.Workers() as pool:
        shared = Run(arguments.quick, settings, pool, arguments.filter, measured)
        for case in shared.chosen(list(plan(quick=arguments.quick))):
            if any(row.case == case for row in known):
                console.print(f"already measured: {case}", highlight=False)
                continue
            if time.monotonic() > until:
                console.print(f"{arguments.minutes} minutes are over: the next case is {case}")
                break
            platform = jax.default_backend()
            peers = [i for i in implementations.of(case.operation) if i.serves(platform)]
            rows = runner.measure(case, peers, settings, pool, measured)
            known += rows
            failures += sum(not row.passed for row in rows)
            documents.write(path, head, {SUITE: rows}, update=True)
            console.print(report.to_rich(_table(case, rows)))
    for table in (_beside_published(known), _tuning(known)):
        console.print(report.to_rich(table))
    console.print(f"wrote {path}", highlight=False)
    return 1 if failures else 0


def _checked(console: Console) -> bool:
    failed = [outcome for outcome in _selfcheck.run(DTYPES) if not outcome.passed]
    for outcome in failed:
        console.print(str(outcome), style="red", markup=False)
    console.print(f"self-check: {'passed' if not failed else 'FAILED, nothing was measured'}")
    return not failed


def _known(path: Path) -> list[runner.Measurement]:
    """What an earlier run has saved."""
    if not path.exists():
        return []
    rows = documents.read(path)["suites"].get(SUITE, [])
    return documents.as_rows(runner.Measurement, rows)


def _milliseconds(row: runner.Measurement) -> str:
    return row.status if row.median_s is None else digits(1e3 * row.median_s)


def _table(case: Case, rows: Sequence[runner.Measurement]) -> Table:
    lines = [
        [
            row.peer,
            _milliseconds(row),
            "" if row.share is None else f"{row.share:.0%}",
            "" if row.temp_bytes is None else report.mebibytes(row.temp_bytes),
        ]
        for row in rows
    ]
    return Table(str(case), ["peer", "ms", "share of the limit", "temporaries, MiB"], lines, "")


def _beside_published(rows: Sequence[runner.Measurement]) -> Table:
    kind = jax.devices()[0].device_kind
    lines = []
    for row in rows:
        of_case = (row.case.operation, row.case.direction) == (
            "linear_cross_entropy",
            "value_and_grads",
        )
        for known in PUBLISHED if of_case and row.peer == implementations.OURS else ():
            if re.fullmatch(known.kind, kind) and known.shape == row.case.shape:
                name = f"{known.who} ({known.source})"
                lines.append([str(row.case), _milliseconds(row), digits(known.milliseconds), name])
    columns = ["case", "here, ms", "published, ms", "by"]
    note = "" if lines else f"No published figure of these cases for {kind} is known here."
    return Table("beside published figures", columns, lines, note)


def _tuning(rows: Sequence[runner.Measurement]) -> Table:
    """The fastest chunk of each number of tokens, ready to paste into `tuning.ROWS`."""
    device = jax.devices()[0]
    found: dict[int, list[Any]] = {}
    for row in rows:
        sized = row.case.operation == "linear_chunks" and row.peer.isdigit()
        if sized and row.median_s is not None:
            found.setdefault(row.case.shape[0], []).append((row.median_s, int(row.peer), row.case))
    lines = []
    for tokens in sorted(found, reverse=True):
        seconds, size, case = min(found[tokens], key=lambda each: each[0])
        shape = "x".join(map(str, case.shape))
        lines.append(
            [
                f'Row("{device.platform}", ("{device.device_kind}",), Chunk(1, {size}, {size}), '
                f'least_tokens={tokens}, why="measured, {shape}: {digits(1e3 * seconds)} ms"),'
            ]
        )
    return Table("rows for jaxsoftmax.tuning.ROWS", ["the first that fits decides"], lines, "")
