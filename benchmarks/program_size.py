"""Size and compile time of programs: `python -m benchmarks.program_size OPERATION REPEATS`.

Prints a line of JSON for the value and for the gradient of each peer: the number of equations in
the jaxpr, and the median seconds to trace, lower and compile it. The peers alternate in one
process; caches are cleared before each program, and the first repeat is discarded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr

from benchmarks import implementations, programs, references
from benchmarks.cases import LINEAR, Case
from benchmarks.registry import OURS

STAGES = ("trace", "lower", "compile")
PEERS = {
    "softmax": (OURS, "jax.nn"),
    "log_softmax": (OURS, "jax.nn"),
    "logsumexp": (OURS, "jax.nn"),
    "cross_entropy": (OURS, "optax"),
    "linear_cross_entropy": (OURS, "optax"),
}
SHAPE, LINEAR_SHAPE = (64, 1000), (64, 32, 1000)


def count_equations(jaxpr: Any) -> int:
    """Number of equations of a jaxpr, including those of every jaxpr in their parameters."""
    return sum(1 + _in_parameter(eqn.params) for eqn in jaxpr.eqns)


def _in_parameter(value: Any) -> int:
    if isinstance(value, Jaxpr | ClosedJaxpr):
        return count_equations(value)
    if isinstance(value, dict):
        return _in_parameter(tuple(value.values()))
    return sum(map(_in_parameter, value)) if isinstance(value, tuple | list) else 0


def measure(operation: str, repeats: int) -> Iterator[dict[str, Any]]:
    """One document per peer and function: `peer`, `computed`, `equations` and `seconds`."""
    functions = {
        (known.peer, computed): function
        for known in implementations.of(operation)
        if known.peer in PEERS[operation] and not known.unavailable(jax.default_backend())
        for computed, function in _functions(operation, known.function).items()
    }
    equations: dict[tuple[str, str], int] = {}
    samples: dict[tuple[str, str], list[list[float]]] = {key: [] for key in functions}
    for _ in range(repeats + 1):
        for key, (function, arrays) in functions.items():
            equations[key], seconds = _compile(function, arrays)
            samples[key].append(seconds)
    for (peer, computed), count in equations.items():
        medians = np.median(samples[peer, computed][1:], axis=0)
        seconds = dict(zip(STAGES, map(float, medians), strict=True))
        yield {"peer": peer, "computed": computed, "equations": count, "seconds": seconds}


def _functions(operation: str, function: Any) -> dict[str, tuple[Callable[..., Any], Any]]:
    """The function and the gradient of its scalar, each with its arguments."""
    linear, weighted = operation in LINEAR, operation in ("softmax", "log_softmax")
    # The inputs of a pullback are the logits and an array of weights in the same shape.
    direction = "vjp" if weighted else "forward"
    case = Case(operation, direction, LINEAR_SHAPE if linear else SHAPE, "float32")
    arrays = programs.Inputs(references.inputs(case)).device
    scalar = _SCALARS.get(operation, lambda function: function)(function)
    gradient = jax.grad(scalar, argnums=(0, 1) if linear else 0)
    return {"value": (function, arrays[:1] if weighted else arrays), "gradient": (gradient, arrays)}


def _weighted_sum(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda logits, weights: (function(logits) * weights).sum()


# The scalars whose gradients are taken; the losses are already scalars.
_SCALARS: dict[str, Callable[..., Any]] = {
    "softmax": _weighted_sum,
    "log_softmax": _weighted_sum,
    "logsumexp": lambda function: lambda logits: function(logits).sum(),
}


def _compile(function: Callable[..., Any], arrays: Any) -> tuple[int, list[float]]:
    jax.clear_caches()
    times = [time.perf_counter()]
    traced = jax.jit(function).trace(*arrays)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
    return count_equations(traced.jaxpr), np.diff(times).tolist()


if __name__ == "__main__":
    for document in measure(sys.argv[1], int(sys.argv[2])):
        print(json.dumps(document))
