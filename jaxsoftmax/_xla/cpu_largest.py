"""The two largest numbers of a row, and where the first of them is, as XLA:CPU finds them fastest.

A sum over the other classes is taken relative to the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla.cpu_blocks import (
    divisor_near,
    in_blocks,
    is_small,
    maxima_of_blocks,
    take_block,
)
from jaxsoftmax._xla.dtypes import widen

_UNROLLED = 20  # numbers that XLA:CPU's own reductions take at once


def two_largest(logits: Array) -> tuple[Array, Array, Array]:
    """The largest and the second largest number of each row, and the class of the former."""
    levels = 2 if is_small(logits) else 3
    top, second, label = _by_levels(logits, levels)
    # Computed once, not in each loop that reads it.
    return top, lax.optimization_barrier(second), label


def _by_levels(x: Array, levels: int) -> tuple[Array, Array, Array]:
    """Of the maxima of blocks, then of the block that holds the largest.

    XLA:CPU has a fast loop for the maxima. Its own loop for the other reduction takes 0.5 ns for
    each of up to 20 numbers, of more 3 ns (JAX 0.12), so the blocks are short.
    """
    classes = x.shape[-1]
    length = None
    if isinstance(classes, int) and classes > _UNROLLED:
        levels = min(levels, math.ceil(math.log(classes, _UNROLLED)))
        length = divisor_near(classes, classes ** (1 / levels)) if levels > 1 else None
    if length is None:
        return _in_one_loop(x)
    blocks = in_blocks(x, length)
    top, elsewhere, home = _by_levels(maxima_of_blocks(blocks), levels - 1)
    _, at_home, place = _in_one_loop(take_block(blocks, home))
    return top, lax.max(elsewhere, at_home), home * length + place


def _in_one_loop(x: Array) -> tuple[Array, Array, Array]:
    """As `two_largest`, in one loop."""

    def merge(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, Array, Array]:
        of_a = (a[0] > b[0]) | ((a[0] == b[0]) & (a[2] < b[2]))
        second = lax.max(lax.min(a[0], b[0]), lax.max(a[1], b[1]))
        return lax.max(a[0], b[0]), second, lax.select(of_a, a[2], b[2])

    x = widen(x)
    none = jnp.asarray(-jnp.inf, x.dtype)
    places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    operands = x, lax.full_like(x, -jnp.inf), places
    return tuple(lax.reduce(operands, (none, none, jnp.int32(0)), merge, (x.ndim - 1,)))
