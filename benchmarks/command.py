"""Measure, print the tables, write JSON, Markdown and figures."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    accelerator,
    comparison,
    documents,
    environment,
    limits,
    report,
    runner,
    workers,
)
from benchmarks.arguments import FILTERED_JSON, QUICK_ACCELERATOR_JSON, QUICK_JSON
from benchmarks.cases import TIMED_SUITES
from benchmarks.suites import SUITES, Run

RESULTS = pathlib.Path(__file__).parent / "results"
WIDTH = 190  # of the tables if the output is not a terminal


def run(arguments: argparse.Namespace) -> int:
    """Run the suites; the exit status is 1 if a result was wrong or a peer failed, else 0."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if arguments.compare:
        for table in comparison.tables(*arguments.compare):
            console.print(report.to_rich(table))
        return 0
    if arguments.show:
        _show(arguments, console)
        return 0
    if arguments.accelerator:
        device = report.file_name(environment.environment())
        path = RESULTS / f"{accelerator.SUITE}-{device}.json"
        path = arguments.json or (QUICK_ACCELERATOR_JSON if arguments.quick else path)
        return accelerator.run(arguments, path, _settings(arguments), console)
    head: dict[str, Any] = {"environment": environment.environment()}
    settings = _settings(arguments)
    head["settings"] = dataclasses.asdict(settings)
    timed = [name for name in arguments.suites if name in TIMED_SUITES]
    measured = limits.measure(quick=arguments.quick) if timed else None
    head["limits"] = dataclasses.asdict(measured) if measured else None
    with workers.Workers() as pool:
        shared = Run(arguments.quick, settings, pool, arguments.filter, measured)
        results = _measure(arguments.suites, shared, console)
    tables = [table for name in results for table in SUITES[name].tables(results[name])]
    tables += [limits.table(measured)] if measured else []
    for table in tables:
        console.print(report.to_rich(table))
    _write(arguments, head, results, tables, console)
    failures = [row for rows in results.values() for row in rows if not row.passed]
    for row in failures:
        console.print(str(row), style="red", markup=False, highlight=False)
    return 1 if failures else 0


def _show(arguments: argparse.Namespace, console: Console) -> None:
    """Tables and figures of existing documents."""
    runs, tables = [], []
    for path in arguments.show:
        document = documents.read(path)
        runs.append((path.stem, document["environment"]))
        for name, rows in document["suites"].items():
            tables += SUITES[name].tables(documents.as_rows(SUITES[name].row, rows))
        _plot(arguments, path, console)
    for table in tables:
        console.print(report.to_rich(table))
    _write_page(arguments, runs, tables, console)


def _settings(arguments: argparse.Namespace) -> runner.Settings:
    settings = runner.QUICK if arguments.quick else runner.Settings()
    if arguments.repeats is None:
        return settings
    return dataclasses.replace(settings, rounds=arguments.repeats, fewest_rounds=arguments.repeats)


def _measure(names: Sequence[str], run: Run, console: Console) -> dict[str, list[Any]]:
    """Run every suite that has a part left after filtering."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    results: dict[str, list[Any]] = {}
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for name in names:
            parts = SUITES[name].parts(run)
            if not parts:
                continue
            task = progress.add_task(name, total=len(parts))
            here = dataclasses.replace(run, advance=partial(progress.advance, task))
            results[name] = SUITES[name].measure(here, parts)
            progress.stop_task(task)
    return results


def _write(
    arguments: argparse.Namespace,
    head: dict[str, Any],
    results: dict[str, list[Any]],
    tables: Sequence[report.Table],
    console: Console,
) -> None:
    device = report.file_name(head["environment"])
    if arguments.json or arguments.quick or (arguments.filter and not arguments.update):
        path = arguments.json or (QUICK_JSON if arguments.quick else FILTERED_JSON)
        files = {path: results}
    else:
        files = {RESULTS / f"{name}-{device}.json": {name: results[name]} for name in results}
    for path, suites in files.items():
        documents.write(path, head, suites, update=arguments.update)
        console.print(f"wrote {path}", highlight=False)
        _plot(arguments, path, console)
    _write_page(arguments, [(name, head["environment"]) for name in results], tables, console)


def _plot(arguments: argparse.Namespace, path: pathlib.Path, console: Console) -> None:
    if arguments.plot:
        from benchmarks import figures

        for figure in figures.draw(path):
            console.print(f"wrote {figure}", highlight=False)


def _write_page(
    arguments: argparse.Namespace,
    runs: Sequence[tuple[str, dict[str, Any]]],
    tables: Sequence[report.Table],
    console: Console,
) -> None:
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        page = report.to_markdown(_command(arguments), runs, tables)
        arguments.markdown.write_text(page, encoding="utf-8")
        console.print(f"wrote {arguments.markdown}", highlight=False)


def _command(arguments: argparse.Namespace) -> str:
    """The command line that reproduces this run."""
    words = ["python -m benchmarks"]
    if arguments.show:
        words += ["--show", *map(str, arguments.show)]
    if arguments.suites != list(SUITES):
        words += ["--suite", *arguments.suites]
    words += ["--filter", *map(repr, arguments.filter)] if arguments.filter else []
    words += ["--quick"] if arguments.quick else []
    words += [f"--repeats {arguments.repeats}"] if arguments.repeats else []
    words += [f"--markdown {arguments.markdown}"] if arguments.markdown else []
    return " ".join(words)
