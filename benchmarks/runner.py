"""Check every peer of a case against float64, then time those that are right, taking turns.

A result that is off is reported as wrong and never timed. The others are sampled in turns, one
sample of each peer a round, each round beginning with another peer, so that a slow moment of the
machine falls on all of them; what is reported is the median over the rounds and the quartiles.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from benchmarks import references, workers
from benchmarks.cases import Case
from benchmarks.implementations import Implementation

Numbers = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int = 21  # samples of each peer
    fewest_rounds: int = 7  # as many even where the budget of a case is spent
    budget_s: float = 12.0  # for all samples of a case
    sample_s: float = 0.02  # a sample is as many calls as fill this time, at most `most_calls`
    most_calls: int = 1000


_WARM_UPS = 3
QUICK = Settings(rounds=3, fewest_rounds=3, budget_s=1.0, sample_s=0.002, most_calls=100)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One peer in one case. Times are seconds per call."""

    case: Case
    peer: str
    status: str  # "ok", "wrong", "failed", or why it cannot run here
    note: str = ""
    error: float | None = None
    tolerance: float | None = None
    median_s: float | None = None
    lower_quartile_s: float | None = None
    upper_quartile_s: float | None = None
    rounds: int = 0
    calls_per_sample: int = 0
    temp_bytes: int | None = None  # what the compiled program allocates beside inputs and outputs

    @property
    def passed(self) -> bool:
        """Nothing is wrong with it (it may be absent)."""
        return self.status not in ("wrong", "failed")

    def __str__(self) -> str:
        shape = "x".join(map(str, self.case.shape))
        what = f"{self.case.operation}, {self.case.direction}, {shape} {self.case.dtype}"
        why = self.note or f"error {self.error:.1e}, allowed {self.tolerance:.0e}"
        return f"{self.status}: {self.peer} in {what}: {why}"


# --- programs: something that computes once, and that can be timed --------------------------------


def _forward(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _vjp(function: Callable[..., Any]) -> Callable[..., Any]:
    def pull_back(*arrays: Array) -> Array:
        *primals, cotangent = arrays
        value, pull = jax.vjp(function, *primals)
        return pull(cotangent.astype(value.dtype))[0]

    return pull_back


def _losses_and_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    def losses_and_gradient(logits: Array, labels: Array) -> tuple[Array, Array]:
        losses, pull = jax.vjp(lambda x: function(x, labels), logits)
        return losses, pull(jax.numpy.ones_like(losses))[0]

    return losses_and_gradient


# What is computed of an operation's function: its value, value and gradient of a scalar, the
# pullback of a cotangent (the last input), a loss for each example and the gradient of their sum.
DIRECTIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "forward": _forward,
    "value_and_grad": jax.value_and_grad,
    "vjp": _vjp,
    "losses_and_gradient": _losses_and_gradient,
}


class Program(Protocol):
    """A computation with its inputs in place."""

    temp_bytes: int | None
    outputs: list[Numbers]

    def seconds_per_call(self, calls: int) -> float:
        """The mean duration of so many calls, after one that is not counted."""


class _JaxProgram:
    def __init__(
        self, function: Callable[..., Any], direction: str, arrays: Sequence[Array]
    ) -> None:
        # The inputs are arguments: XLA would compute with constants while compiling.
        self._arrays = arrays
        self._function = jax.jit(DIRECTIONS[direction](function))
        memory = self._function.lower(*arrays).compile().memory_analysis()
        self.temp_bytes = None if memory is None else memory.temp_size_in_bytes
        self.outputs = [np.asarray(leaf) for leaf in jax.tree.leaves(self._run())]

    def _run(self) -> Any:
        return jax.block_until_ready(self._function(*self._arrays))

    def seconds_per_call(self, calls: int) -> float:
        return workers.seconds_per_call(self._run, calls)


class _WorkerProgram:
    temp_bytes: int | None = None

    def __init__(
        self, worker: workers.Worker, operation: str, direction: str, arrays: Sequence[Numbers]
    ) -> None:
        self._worker = worker
        self.outputs = worker.prepare(operation, direction, arrays)

    def seconds_per_call(self, calls: int) -> float:
        return self._worker.seconds_per_call(calls)


class Inputs:
    """The inputs of a case, on the host and on the device."""

    def __init__(self, arrays: Sequence[Numbers]) -> None:
        self.host = tuple(arrays)
        self.device = tuple(jax.device_put(array) for array in arrays)


def build(
    implementation: Implementation, direction: str, inputs: Inputs, pool: workers.Workers
) -> Program:
    """Compile, or hand to the worker, and compute once."""
    if implementation.worker is not None:
        worker = pool.get(implementation.peer, implementation.worker)
        return _WorkerProgram(worker, implementation.operation, direction, inputs.host)
    assert implementation.function is not None
    return _JaxProgram(implementation.function, direction, inputs.device)


# --- measuring ------------------------------------------------------------------------------------


def measure(
    case: Case,
    implementations: Sequence[Implementation],
    settings: Settings,
    pool: workers.Workers,
) -> list[Measurement]:
    """One case, all peers: first right, then fast."""
    inputs = Inputs(references.inputs(case))
    measurements, programs = [], {}
    for implementation in implementations:
        measurement, program = _check(case, implementation, inputs, pool)
        measurements.append(measurement)
        if program is not None:
            programs[implementation.peer] = program
    times = take_turns(programs, settings)
    return [dataclasses.replace(m, **times[m.peer]) if m.peer in times else m for m in measurements]


def _check(
    case: Case, implementation: Implementation, inputs: Inputs, pool: workers.Workers
) -> tuple[Measurement, Program | None]:
    """The error of a peer's outputs, and its program if they are right."""
    unavailable = implementation.unavailable(jax.default_backend())
    if unavailable:
        return Measurement(case, implementation.peer, unavailable), None
    try:
        program = build(implementation, case.direction, inputs, pool)
    except Exception as problem:  # a peer that cannot do this case does not end the run
        note = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
        return Measurement(case, implementation.peer, "failed", note), None
    error = references.error(case, inputs.host, program.outputs)
    program.outputs = []  # as large as the logits, and no longer needed
    tolerance = references.TOLERANCE[case.dtype]
    right = error <= tolerance
    measurement = Measurement(
        case,
        implementation.peer,
        "ok" if right else "wrong",
        note="" if math.isfinite(error) else "not finite, or of another shape",
        error=error if math.isfinite(error) else None,
        tolerance=tolerance,
        temp_bytes=program.temp_bytes if right else None,
    )
    return measurement, program if right else None


def take_turns(programs: dict[str, Program], settings: Settings) -> dict[str, dict[str, Any]]:
    """Samples in turns until the rounds or the budget are used up."""
    calls = {peer: _calls_per_sample(program, settings) for peer, program in programs.items()}
    samples: dict[str, list[float]] = {peer: [] for peer in programs}
    peers = list(programs)
    start = time.perf_counter()
    for round_ in range(settings.rounds):
        spent = time.perf_counter() - start > settings.budget_s
        if spent and round_ >= settings.fewest_rounds:
            break
        first = round_ % max(1, len(peers))
        for peer in peers[first:] + peers[:first]:
            samples[peer].append(programs[peer].seconds_per_call(calls[peer]))
    return {peer: _summary(samples[peer], calls[peer]) for peer in programs}


def _calls_per_sample(program: Program, settings: Settings) -> int:
    """As many as fill a sample. Finding out is the warm-up: the first calls are slow ones."""
    calls = 1
    for _ in range(_WARM_UPS):
        once = max(program.seconds_per_call(calls), 1e-9)
        calls = max(1, min(settings.most_calls, math.ceil(settings.sample_s / once)))
    return calls


def _summary(samples: list[float], calls: int) -> dict[str, Any]:
    lower, median, upper = np.quantile(samples, [0.25, 0.5, 0.75])
    return {
        "median_s": float(median),
        "lower_quartile_s": float(lower),
        "upper_quartile_s": float(upper),
        "rounds": len(samples),
        "calls_per_sample": calls,
    }
