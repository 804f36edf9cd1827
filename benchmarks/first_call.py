"""The process that measures one first call: `python -m benchmarks.first_call OPERATION PEER`.

Peers are imported inside the functions, because their imports are timed.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

STAGES = ("import", "trace", "lower", "compile", "first_call", "second_call")
_MODULES = {"jaxsoftmax": "jaxsoftmax", "optax": "optax", "jax.nn": "jax.nn"}
_DIRECTIONS = {
    "softmax": "forward",
    "log_softmax": "vjp",
    "logsumexp": "vjp",
    "cross_entropy": "value_and_grad",
}
_SHAPE, _LINEAR_SHAPE = (128, 1000), (128, 64, 1000)


def stages(operation: str, peer: str) -> dict[str, float]:
    """Measure the seconds of each stage."""
    import jax
    import jax.numpy as jnp

    jax.block_until_ready(jnp.zeros(8) + 1.0)  # initialises the device
    seconds = {}

    def clock(stage: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        seconds[stage] = time.perf_counter() - start
        return result

    clock("import", lambda: importlib.import_module(_MODULES[peer]))
    function, arrays = _function_and_arrays(operation, peer)
    traced = clock("trace", lambda: jax.jit(function).trace(*arrays))
    lowered = clock("lower", traced.lower)
    clock("compile", lowered.compile)
    jax.clear_caches()
    again = jax.jit(lambda *x: function(*x))
    clock("first_call", lambda: jax.block_until_ready(again(*arrays)))
    clock("second_call", lambda: jax.block_until_ready(again(*arrays)))
    return seconds


def _function_and_arrays(operation: str, peer: str) -> tuple[Callable[..., Any], Any]:
    from benchmarks import implementations, programs, references
    from benchmarks.cases import Case

    (known,) = (i for i in implementations.of(operation) if i.peer == peer)
    direction = _DIRECTIONS.get(operation, "value_and_grads")
    shape = _SHAPE if operation in _DIRECTIONS else _LINEAR_SHAPE
    arrays = programs.Inputs(references.inputs(Case(operation, direction, shape, "float32")))
    assert known.function is not None
    return programs.DIRECTIONS[direction](known.function), arrays.device


if __name__ == "__main__":
    print(json.dumps(stages(sys.argv[1], sys.argv[2])))
