"""Rates at which this device copies, reads and multiplies, measured in the same run.

The rates are those of XLA's simplest programs on this device, not those of a data sheet. Arrays
that fit in a cache can exceed the measured memory rate, which gives shares above 100 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import workers
from benchmarks.cases import DTYPES
from benchmarks.report import Table, digits

_SAMPLES = 7
_MIB = 2**20
_GIGA = 1e9
_NOTE = "Reached by XLA's simplest program in this run; the best of several samples."


@dataclasses.dataclass(frozen=True)
class Limits:
    """The rates of one device."""

    copy_bytes_per_s: float  # bytes read and written, into a new array, as for results
    in_place_bytes_per_s: float  # the same into the donated array: the rate of the memory
    read_bytes_per_s: float
    matmul_flops_per_s: dict[str, float]  # by dtype of the operands; sums in float32


def measure(*, quick: bool) -> Limits:
    """Measure the rates, each the best of several samples."""
    on_cpu = jax.default_backend() == "cpu"
    array_bytes = (64 if quick else 256) * _MIB if on_cpu else 1024 * _MIB
    side = (1024 if quick else 2048) if on_cpu else 8192
    in_place = 2 * array_bytes / _copy_s(array_bytes, in_place=True)
    return Limits(
        copy_bytes_per_s=2 * array_bytes / _copy_s(array_bytes, in_place=False),
        in_place_bytes_per_s=in_place,
        # Reading is at least as fast as copying, even if the reduction is slower.
        read_bytes_per_s=max(in_place, array_bytes / _read_s(array_bytes)),
        matmul_flops_per_s={dtype: 2 * side**3 / _matmul_s(side, dtype) for dtype in DTYPES},
    )


def table(limits: Limits) -> Table:
    """The table of the rates."""
    rates = [
        ["copy into a new array, GB/s", digits(limits.copy_bytes_per_s / _GIGA)],
        ["copy in place, GB/s", digits(limits.in_place_bytes_per_s / _GIGA)],
        ["read, GB/s", digits(limits.read_bytes_per_s / _GIGA)],
        *(
            [f"matrix product of {dtype}, GFLOP/s", digits(rate / _GIGA)]
            for dtype, rate in limits.matmul_flops_per_s.items()
        ),
    ]
    return Table("limits of this device", ["limit", "reached"], rates, _NOTE)


def _best(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    return min(
        workers.seconds_per_call(run, 1, False, jax.block_until_ready) for _ in range(_SAMPLES)
    )


def _copy_s(size: int, *, in_place: bool) -> float:
    """On a CPU, the pages of a new array take several times as long as the copy."""
    array = jnp.zeros(size // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1.0, donate_argnums=(0,) if in_place else ())

    def run() -> Any:
        nonlocal array
        array = add(array)
        return array

    return _best(run)


def _read_s(size: int) -> float:
    array = jnp.zeros((size // 4 // 1024, 1024), jnp.float32)
    largest = jax.jit(lambda x: jnp.max(x, axis=1))
    return _best(lambda: largest(array))


def _matmul_s(side: int, dtype: str) -> float:
    left = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return _best(lambda: product(left, left))
