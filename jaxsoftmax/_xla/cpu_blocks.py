"""Rows in blocks, for the forms of a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla.dtypes import accumulator
from jaxsoftmax._xla.shardings import vary_alike

Results = TypeVar("Results")  # an array or several, of the same rows

_SMALL = 1 << 17  # numbers: of fewer, kernels to compile count for more than passes over them
_STORED = 1 << 24  # numbers of half precision whose exponentials are stored


def is_small(x: Array, limit: int = _SMALL) -> bool:
    """Whether it stays in the cache, or is below another limit."""
    return is_sized(x) and x.size < limit


def is_stored(logits: Array) -> bool:
    """Whether exponentials are an array: many of half precision are computed in each pass instead.

    (JAX 0.12, bfloat16: `cross_entropy` and gradient of 8192 x 1000 4.6 ms, in passes 7.2; of
    1024 x 32000 56 and 55, `softmax` 63 and 48, in passes without an array of 125 MiB.)
    """
    return logits.dtype == accumulator(logits.dtype) or is_small(logits, _STORED)


def is_sized(x: Array) -> bool:
    """Whether no dimension is symbolic."""
    return all(isinstance(size, int) for size in x.shape)


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


def some_at_a_time(
    form: Callable[..., Array | Sequence[Array]], *arrays: Array, **static: object
) -> Array | Sequence[Array]:
    """form(*arrays), some rows at a time, so that what it computes stays in the cache.

    Of whole arrays XLA:CPU writes what is read twice to memory (JAX 0.12, a divergence of
    1024 x 32000 float32: 300 ms and 406 MiB, some rows at a time 112 ms and 3 MiB).
    """
    *batch, classes = arrays[0].shape
    if is_small(arrays[0]) or not is_sized(arrays[0]):
        return form(*arrays, **static)
    rows, step = math.prod(batch), max(1, _SMALL // classes)
    flat = [x.reshape(rows, *x.shape[len(batch) :]) for x in arrays]
    of_rows = partial(form, **static)
    like = jax.eval_shape(lambda: of_rows(*(x[:step] for x in flat)))
    found = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), like)

    def put(k: Array, found: Any) -> Any:
        return with_rows(found, of_rows, flat, k * step, step)

    found = lax.fori_loop(0, -(-rows // step), put, vary_alike(found, arrays))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), found)


def with_rows(
    found: Results,
    form: Callable[..., Results],
    arrays: Sequence[Array],
    start: Array,
    step: int,
) -> Results:
    """What was found, with form(*arrays) in so many rows from the start, or in the last ones."""
    start = jnp.minimum(start, arrays[0].shape[0] - step)
    new = form(*(lax.dynamic_slice_in_dim(x, start, step) for x in arrays))
    update = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
    return jax.tree.map(update, found, new)
