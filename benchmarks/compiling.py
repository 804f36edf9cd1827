"""The process that compiles for a target: `python -m benchmarks.compiling TARGET SUITE QUICK I...`.

It prints a line of JSON with the compiler's report, or with the reason why compilation failed, for
each of the programs with these numbers. Nothing is run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from benchmarks import children, targets

_TIMEOUT_S = 1200.0  # for all programs of a target
_NOTE = 200  # characters of an error message to keep


def compile_in_child(
    target: str, suite: str, quick: bool, numbers: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield `status`, `note` and the compiler's report for each program."""
    lacking = targets.unavailable(target)
    if lacking:
        yield from [{"status": lacking}] * len(numbers)
        return
    arguments = ["-m", "benchmarks.compiling", target, suite, str(int(quick))]
    arguments += [str(number) for number in numbers]
    done = 0
    try:
        for found in children.stream(arguments, targets.environment(target), _TIMEOUT_S):
            yield found
            done += 1
    except children.ChildFailed as problem:
        yield from [{"status": "failed", "note": str(problem)}] * (len(numbers) - done)


def by_target(suite: str, parts: Sequence[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each part with its report; all parts of a target are compiled in one process."""
    for target, group in groupby(parts, lambda part: part.target):
        of_target = list(group)
        numbers = [part.number for part in of_target]
        yield from zip(
            of_target,
            compile_in_child(target, suite, of_target[0].quick, numbers),
            strict=True,
        )


def programs(suite: str, quick: bool) -> list[Any]:
    """The programs of a suite: each has `lowered(devices, platform)`."""
    from benchmarks import abstract, sharded_programs

    made = {"aot": abstract.aot_programs, "sharded": sharded_programs.programs}
    return list(made[suite](quick=quick))


def _describe(program: Any, devices: Any, platform: str) -> dict[str, Any]:
    from benchmarks import collectives
    from jaxsoftmax import tuning

    target = devices.flat[0]
    start = time.perf_counter()
    try:
        with tuning.compiling_for(tuning.Device(target.platform, target.device_kind)):
            compiled = program.lowered(devices, platform).compile()
    except ModuleNotFoundError:
        return {"status": "not installed"}
    except Exception as problem:  # for instance too large for the device: also a result
        note = f"{type(problem).__name__}: {problem}"
        status = "too large" if "RESOURCE_EXHAUSTED" in note else "failed"
        return {"status": status, "note": " ".join(note.split())[:_NOTE]}
    seconds = time.perf_counter() - start
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    cost = compiled.cost_analysis() or {}
    totals = collectives.totals(hlo, devices.size)
    return {
        "status": "ok",
        "compile_s": seconds,
        "temp_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "bytes_accessed": cost.get("bytes accessed"),
        "flops": cost.get("flops"),
        "optimal_s": cost.get("optimal_seconds"),
        "cycles": collectives.cycles(hlo),
        "collectives": {kind: total._asdict() for kind, total in totals.items()},
    }


def main(arguments: Sequence[str]) -> None:
    """Compile the programs one by one, and print each report."""
    target, suite, quick, *numbers = arguments
    known = programs(suite, quick == "1")
    devices = targets.devices(target)
    for number in numbers:
        print(json.dumps(_describe(known[int(number)], devices, targets.platform(target))))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
