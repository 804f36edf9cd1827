"""Programs that can be timed: a compiled function, or a computation in a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from benchmarks import workers
from benchmarks.registry import Implementation

Numbers = np.ndarray[Any, Any]


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


# What is computed from an operation's function: its value; the value and the gradient of a scalar
# with respect to the first input, or to the first two; the pullback of a cotangent, which is the
# last input; the loss of each example and the gradient of their sum.
DIRECTIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "forward": _forward,
    "value_and_grad": jax.value_and_grad,
    "value_and_grads": partial(jax.value_and_grad, argnums=(0, 1)),
    "vjp": _vjp,
    "losses_and_gradient": _losses_and_gradient,
}


class Program(Protocol):
    """A computation with its inputs."""

    temp_bytes: int | None
    outputs: list[Numbers]

    def seconds_per_call(self, calls: int, settle: bool = True) -> float:
        """The mean duration of `calls` calls, after an untimed one if `settle`."""


class _JaxProgram:
    def __init__(
        self, function: Callable[..., Any], direction: str, arrays: Sequence[Array]
    ) -> None:
        # The inputs are arguments, because XLA folds constants while compiling.
        self._arrays = arrays
        self._run = jax.jit(DIRECTIONS[direction](function)).lower(*arrays).compile()
        memory = self._run.memory_analysis()
        self.temp_bytes = None if memory is None else memory.temp_size_in_bytes
        outputs = jax.block_until_ready(self._run(*arrays))
        self.outputs = [np.asarray(leaf) for leaf in jax.tree.leaves(outputs)]

    def seconds_per_call(self, calls: int, settle: bool = True) -> float:
        # A GPU runs its queue in order: waiting once excludes the time of the host.
        wait_each = jax.default_backend() == "cpu"
        return workers.seconds_per_call(
            lambda: self._run(*self._arrays), calls, settle, jax.block_until_ready, wait_each
        )


class _WorkerProgram:
    temp_bytes: int | None = None

    def __init__(
        self, worker: workers.Worker, function: str, direction: str, arrays: Sequence[Numbers]
    ) -> None:
        self._worker = worker
        self.outputs = worker.prepare(function, direction, arrays)

    def seconds_per_call(self, calls: int, settle: bool = True) -> float:
        return self._worker.seconds_per_call(calls, settle)


class Inputs:
    """The inputs of a case, on the host and on the device."""

    def __init__(self, arrays: Sequence[Numbers]) -> None:
        self.host = tuple(arrays)
        self.device = tuple(jax.device_put(array) for array in arrays)


def build(
    implementation: Implementation, direction: str, inputs: Inputs, pool: workers.Workers
) -> Program:
    """Compile the program or send it to its worker, and compute once."""
    if implementation.worker is not None:
        worker = pool.get(implementation.peer, implementation.worker)
        return _WorkerProgram(worker, implementation.name_in_worker, direction, inputs.host)
    assert implementation.function is not None
    return _JaxProgram(implementation.function, direction, inputs.device)
