"""Rows in blocks, for the forms of a CPU."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax

_SMALL = 1 << 17  # numbers: of fewer, kernels to compile count for more than passes over them


def is_small(x: Array, limit: int = _SMALL) -> bool:
    """Whether it stays in the cache, or is below another limit."""
    return all(isinstance(size, int) for size in x.shape) and x.size < limit


def in_blocks(x: Array, length: int) -> Array:
    """The row as blocks [..., B, C/B]."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // length, length)


def maxima_of_blocks(blocks: Array) -> Array:
    """Without the barrier XLA makes of their maximum another pass over the row."""
    return lax.optimization_barrier(jnp.max(blocks, axis=-1))


def take_block(blocks: Array, home: Array) -> Array:
    """One block of each row."""
    *batch, count, length = blocks.shape
    rows = lax.broadcasted_iota(jnp.int32, (math.prod(batch),), 0)
    which = rows * count + home.reshape(-1)
    found = blocks.reshape(-1, length).at[which].get(mode="promise_in_bounds")
    return found.reshape(*batch, length)


def divisor_near(classes: int, wanted: float) -> int | None:
    """The divisor, at least 8, that is nearest to what is wanted; None without one."""
    divisors = [b for b in range(8, classes // 2 + 1) if classes % b == 0]
    return min(divisors, key=lambda b: abs(math.log(b / wanted)), default=None)
