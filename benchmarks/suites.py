"""The suites: their parts, how a part is measured, and their tables."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from benchmarks import (
    accuracy,
    aot,
    cases,
    compile_times,
    implementations,
    memory,
    runner,
    sharded,
    timing_tables,
    workers,
)
from benchmarks.limits import Limits
from benchmarks.report import Table


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings that all suites of a run share."""

    quick: bool
    settings: runner.Settings
    pool: workers.Workers
    filters: Sequence[str] = ()
    limits: Limits | None = None
    advance: Callable[[], None] = lambda: None

    def chosen(self, things: Sequence[Any]) -> list[Any]:
        """Those whose text matches every filter (regular expressions)."""
        return [t for t in things if all(re.search(f, str(t)) for f in self.filters)]


class Suite(NamedTuple):
    """`measure` calls `Run.advance` once per part, which moves the progress bar."""

    parts: Callable[[Run], list[Any]]
    measure: Callable[[Run, list[Any]], list[Any]]  # rows: dataclasses with `passed`
    tables: Callable[[Sequence[Any]], list[Table]]
    row: type  # of its rows


def _cases(name: str, run: Run) -> list[Any]:
    return run.chosen(cases.suite(name, quick=run.quick, platform=jax.default_backend()))


def _measure_cases(run: Run, chosen: Sequence[cases.Case]) -> list[Any]:
    rows: list[Any] = []
    platform = jax.default_backend()
    for case in chosen:
        peers = [i for i in implementations.of(case.operation) if i.serves(platform)]
        rows += runner.measure(case, peers, run.settings, run.pool, run.limits)
        run.advance()
    return rows


def _each(measure: Callable[..., list[Any]]) -> Callable[[Run, list[Any]], list[Any]]:
    """Measure the parts of a suite one by one."""

    def measure_all(run: Run, parts: list[Any]) -> list[Any]:
        rows: list[Any] = []
        for part in parts:
            rows += measure(part, run)
            run.advance()
        return rows

    return measure_all


SUITES: dict[str, Suite] = {
    **{
        name: Suite(
            partial(_cases, name),
            _measure_cases,
            partial(timing_tables.tables, name),
            runner.Measurement,
        )
        for name in cases.TIMED_SUITES
    },
    "memory": Suite(
        lambda run: run.chosen(memory.programs(quick=run.quick)),
        _each(lambda part, run: memory.measure(part)),
        memory.tables,
        memory.Memory,
    ),
    "accuracy": Suite(
        lambda run: run.chosen(accuracy.parts()),
        _each(lambda part, run: accuracy.measure(part, quick=run.quick, pool=run.pool)),
        accuracy.tables,
        accuracy.Accuracy,
    ),
    "compile": Suite(
        lambda run: run.chosen(compile_times.parts()),
        _each(lambda part, run: compile_times.measure(part, quick=run.quick)),
        compile_times.tables,
        compile_times.Compilation,
    ),
    "aot": Suite(
        lambda run: run.chosen(aot.parts(quick=run.quick)),
        lambda run, parts: aot.measure(parts, run.advance),
        aot.tables,
        aot.Compiled,
    ),
    "sharded": Suite(
        lambda run: run.chosen(sharded.parts(quick=run.quick)),
        lambda run, parts: sharded.measure(parts, run.advance),
        sharded.tables,
        sharded.Communication,
    ),
}
