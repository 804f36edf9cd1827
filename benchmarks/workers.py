"""Worker processes for peers with another runtime, and the timing function of all peers.

Parent and worker exchange pickles over the worker's standard streams. A worker keeps one prepared
computation with its inputs and returns only durations. Between samples it blocks on its input, and
uses no processor.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Numbers = np.ndarray[Any, Any]


def seconds_per_call(
    run: Callable[[], Any],
    calls: int,
    settle: bool = True,
    wait: Callable[[Any], Any] = lambda result: result,
    wait_each: bool = True,
) -> float:
    """The mean duration of `calls` calls, after an untimed one if `settle`.

    `wait` is applied to each result, or only to the last one if not `wait_each`.
    """
    if settle:
        wait(run())  # other peers have changed the caches and the allocator
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
        if wait_each:
            wait(result)
    wait(result)
    return (time.perf_counter() - start) / calls


def processors() -> int:
    """The number of processors available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Failed(NamedTuple):
    message: str


# --- the parent's side ----------------------------------------------------------------------------


# By default OpenMP's threads spin at every barrier; if another process needs the processor, a call
# then takes until the scheduler preempts them. PyTorch's loss of 64 x 1000 took 31 ms by default
# and 0.1 ms with this setting (PyTorch 2.13, two processors, load average 1.5).
_PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class Worker:
    """A process that prepares and times computations for one peer."""

    def __init__(self, module: str) -> None:
        path = [str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workers", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_PATIENT, **os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )

    def prepare(self, function: str, direction: str, arrays: Sequence[Numbers]) -> list[Numbers]:
        """Send the inputs, compute once, and return the outputs."""
        return self._ask("prepare", function, direction, list(arrays))

    def seconds_per_call(self, calls: int, settle: bool = True) -> float:
        """Time the prepared computation."""
        return self._ask("time", calls, settle)

    def close(self) -> None:
        """Close the worker's input, which ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(request, self._process.stdin, protocol=5)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, _Failed):
            raise RuntimeError(answer.message)
        return answer


class Workers:
    """The workers of a run, started on demand: `with Workers() as workers`."""

    def __init__(self) -> None:
        self._workers: dict[tuple[str, str], Worker] = {}

    def get(self, peer: str, module: str) -> Worker:
        """The worker of a peer."""
        if (peer, module) not in self._workers:
            self._workers[peer, module] = Worker(module)
        return self._workers[peer, module]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.close()


# --- the worker's side ----------------------------------------------------------------------------


def serve(module: str) -> None:
    """Answer requests until the input ends.

    The module's `prepare(function, direction, arrays)` returns a function without arguments that
    computes and waits for the result, and a function that converts the result to NumPy arrays.
    """
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that libraries that print do not corrupt the stream of pickles
    prepare = importlib.import_module(module).prepare
    run: Callable[[], Any] | None = None
    while True:
        try:
            kind, *arguments = pickle.load(requests)
        except EOFError:
            return
        answer: Any
        try:
            if kind == "prepare":
                run = None  # releases the previous inputs
                run, to_numpy = prepare(*arguments)
                answer = to_numpy(run())
            else:
                assert run is not None
                answer = seconds_per_call(run, *arguments)
        except Exception as error:
            answer = _Failed(f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers, protocol=5)
        answers.flush()
        del arguments, answer


if __name__ == "__main__":
    # Imported by name, because pickles refer to classes of benchmarks.workers, not of __main__.
    importlib.import_module("benchmarks.workers").serve(sys.argv[1])
