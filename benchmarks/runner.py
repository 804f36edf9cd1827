"""Check the results of every peer against float64, then time the peers whose results are correct.

A peer with a wrong result is reported as wrong and is not timed. In each round, every other peer is
sampled once, in a random order, so that a temporary slowdown of the machine affects all of them.
The median and the quartiles over the rounds are reported.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import references, work, workers
from benchmarks.cases import Case
from benchmarks.limits import Limits
from benchmarks.programs import Inputs, Program, build
from benchmarks.registry import Implementation


@dataclasses.dataclass(frozen=True)
class Settings:
    """The number and the length of the samples."""

    rounds: int = 21  # samples of each peer
    fewest_rounds: int = 5  # even if the budget is exhausted
    budget_s: float = 10.0  # for all samples of a case
    sample_s: float = 0.02  # a sample is as many calls as take this time, at most `most_calls`
    most_calls: int = 1000
    seed: int = 0  # of the order of the peers


_WARM_UPS = 3
# A call of this length needs no warm-up before each sample, because the caches that other peers
# have evicted are refilled in milliseconds.
_LONG_S = 0.1
QUICK = Settings(rounds=3, fewest_rounds=3, budget_s=1.0, sample_s=0.002, most_calls=100)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One peer in one case. Times are seconds per call."""

    case: Case
    peer: str
    status: str  # "ok", "wrong", "failed", or why it cannot run on this machine
    note: str = ""
    error: float | None = None
    tolerance: float | None = None
    median_s: float | None = None
    lower_quartile_s: float | None = None
    upper_quartile_s: float | None = None
    rounds: int = 0
    calls_per_sample: int = 0
    temp_bytes: int | None = None  # of the compiled program, without inputs and outputs
    limit: str = ""  # the limiting resource: "memory" or "matmul"
    limit_s: float | None = None  # the time of the case at that limit

    @property
    def share(self) -> float | None:
        """The share of the device's limit that was reached."""
        if self.median_s is None or self.limit_s is None:
            return None
        return self.limit_s / self.median_s

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; a peer that is not installed counts as passed."""
        return self.status not in ("wrong", "failed")

    def __str__(self) -> str:
        why = self.note or f"error {self.error:.1e}, allowed {self.tolerance:.0e}"
        return f"{self.status}: {self.peer} in {self.case}: {why}"


def measure(
    case: Case,
    implementations: Sequence[Implementation],
    settings: Settings,
    pool: workers.Workers,
    limits: Limits | None = None,
) -> list[Measurement]:
    """Measure one case: check all peers, then time those that are correct."""
    inputs = Inputs(references.inputs(case))
    exact = references.Exact(case, inputs.host)
    measurements, programs = [], {}
    for implementation in implementations:
        measurement, program = _check(case, implementation, inputs, exact, pool)
        measurements.append(measurement)
        if program is not None:
            programs[implementation.peer] = program
    times = take_turns(programs, settings)
    limit, limit_s = work.limit(case, limits) if limits is not None else ("", None)
    return [
        dataclasses.replace(m, **times.get(m.peer, {}), limit=limit, limit_s=limit_s)
        for m in measurements
    ]


def _check(
    case: Case,
    implementation: Implementation,
    inputs: Inputs,
    exact: references.Exact,
    pool: workers.Workers,
) -> tuple[Measurement, Program | None]:
    """The error of a peer's outputs, and its program if they are correct."""
    unavailable = implementation.unavailable(jax.default_backend())
    if implementation.known_wrong is not None:
        unavailable = unavailable or implementation.known_wrong(case.shape)
    if unavailable:
        return Measurement(case, implementation.peer, unavailable), None
    try:
        program = build(implementation, case.direction, inputs, pool)
    except Exception as problem:  # the other peers are measured nevertheless
        note = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
        return Measurement(case, implementation.peer, "failed", note), None
    error = exact.error(program.outputs)
    program.outputs = []  # as large as the logits, and no longer needed
    tolerance = references.TOLERANCE[case.dtype]
    right = error <= tolerance
    measurement = Measurement(
        case,
        implementation.peer,
        "ok" if right else "wrong",
        note="" if math.isfinite(error) else "not finite, or a wrong shape",
        error=error if math.isfinite(error) else None,
        tolerance=tolerance,
        temp_bytes=program.temp_bytes if right else None,
    )
    return measurement, program if right else None


def take_turns(programs: dict[str, Program], settings: Settings) -> dict[str, dict[str, Any]]:
    """Sample the peers alternately until the rounds or the budget are exhausted."""
    calls, settle = {}, {}
    for peer, program in programs.items():
        calls[peer], settle[peer] = _calls_per_sample(program, settings)
    samples: dict[str, list[float]] = {peer: [] for peer in programs}
    order, peers = random.Random(settings.seed), list(programs)
    start = time.perf_counter()
    for round_ in range(settings.rounds):
        spent = time.perf_counter() - start > settings.budget_s
        if spent and round_ >= settings.fewest_rounds:
            break
        order.shuffle(peers)
        for peer in peers:
            samples[peer].append(programs[peer].seconds_per_call(calls[peer], settle[peer]))
    return {peer: _summary(samples[peer], calls[peer]) for peer in programs}


def _calls_per_sample(program: Program, settings: Settings) -> tuple[int, bool]:
    """The calls that fill a sample, and whether to warm up before each; this is a warm-up too."""
    calls, once = 1, 0.0
    for _ in range(_WARM_UPS):
        was_long = once > _LONG_S
        once = max(program.seconds_per_call(calls, not was_long), 1e-9)
        if was_long and once > _LONG_S:
            return 1, False
        calls = max(1, min(settings.most_calls, math.ceil(settings.sample_s / once)))
    return calls, True


def _summary(samples: list[float], calls: int) -> dict[str, Any]:
    lower, median, upper = np.quantile(samples, [0.25, 0.5, 0.75])
    return {
        "median_s": float(median),
        "lower_quartile_s": float(lower),
        "upper_quartile_s": float(upper),
        "rounds": len(samples),
        "calls_per_sample": calls,
    }
