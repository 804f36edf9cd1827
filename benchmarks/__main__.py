"""`python -m benchmarks [suite ...]`: measure, print the tables, write JSON and Markdown."""

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

from benchmarks import accuracy, cases, implementations, report, runner, workers

SUITES = (*cases.TIMED_SUITES, "accuracy")
RESULTS = pathlib.Path(__file__).parent / "results"
WIDTH = 132  # of the tables where there is no terminal to ask
QUICK_JSON = pathlib.Path("benchmark-results-quick.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites; 0 unless some result was wrong or some peer failed."""
    arguments = _parse(argv)
    names = arguments.suites or list(SUITES)
    settings = _settings(arguments)
    environment = report.environment()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    results = _measure(names, settings, arguments.quick, console)
    tables = [table for name in names for table in _tables(name, results[name])]
    for table in tables:
        console.print(report.to_rich(table))
    _write(arguments, environment, settings, results, tables, console)
    failures = [row for rows in results.values() for row in rows if not row.passed]
    for row in failures:
        console.print(str(row), style="red", markup=False, highlight=False)
    return 1 if failures else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Times and accuracy of jaxsoftmax and its peers."
    )
    # Without `choices`: with them, argparse (to 3.13) rejects the empty list of no suites at all.
    parser.add_argument("suites", nargs="*", help=f"any of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one small shape, few repetitions")
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        metavar="PATH",
        help="one file for all suites of the run (default: a file for each suite, "
        f"benchmarks/results/<suite>-<platform>.json; with --quick ./{QUICK_JSON})",
    )
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the tables")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help="exactly N samples of each peer"
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.suites if name not in SUITES]
    if unknown:
        parser.error(f"unknown suite {unknown[0]!r}; choose from {', '.join(SUITES)}")
    arguments.suites = list(dict.fromkeys(arguments.suites))
    return arguments


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _settings(arguments: argparse.Namespace) -> runner.Settings:
    settings = runner.QUICK if arguments.quick else runner.Settings()
    if arguments.repeats is None:
        return settings
    return dataclasses.replace(settings, rounds=arguments.repeats, fewest_rounds=arguments.repeats)


def _measure(
    names: Sequence[str], settings: runner.Settings, quick: bool, console: Console
) -> dict[str, list[Any]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    results: dict[str, list[Any]] = {}
    with (
        workers.Workers() as pool,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        for name in names:
            if name == "accuracy":
                task = progress.add_task(name, total=accuracy.steps())
                advance = partial(progress.advance, task)
                results[name] = accuracy.measure(quick=quick, pool=pool, advance=advance)
                continue
            measurements: list[Any] = []
            for case in progress.track(cases.suite(name, quick=quick), description=name):
                peers = implementations.of(case.operation)
                measurements += runner.measure(case, peers, settings, pool)
            results[name] = measurements
    return results


def _tables(name: str, rows: Sequence[Any]) -> list[report.Table]:
    if name == "accuracy":
        return report.accuracy_tables(rows)
    return report.timing_tables(name, rows)


def _write(
    arguments: argparse.Namespace,
    environment: dict[str, Any],
    settings: runner.Settings,
    results: dict[str, list[Any]],
    tables: Sequence[report.Table],
    console: Console,
) -> None:
    if arguments.json or arguments.quick:
        files = {arguments.json or QUICK_JSON: results}
    else:
        platform = environment["platform"]
        files = {RESULTS / f"{name}-{platform}.json": {name: results[name]} for name in results}
    for path, suites in files.items():
        report.write_json(path, environment, dataclasses.asdict(settings), suites)
        console.print(f"wrote {path}", highlight=False)
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(
            report.to_markdown(_command(arguments), environment, tables), encoding="utf-8"
        )
        console.print(f"wrote {arguments.markdown}", highlight=False)


def _command(arguments: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    words = ["python -m benchmarks", *arguments.suites]
    words += ["--quick"] if arguments.quick else []
    words += [f"--repeats {arguments.repeats}"] if arguments.repeats else []
    words += [f"--markdown {arguments.markdown}"] if arguments.markdown else []
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
