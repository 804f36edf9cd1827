"""Rows that are computed plainly, and once more where that gives NaN.

XLA:CPU runs the textbook's formulas in one loop over many rows, or in float32 in one for maximum
and exponentials, but nothing that treats a row with +inf or one without a class (JAX 0.12, softmax
of 8192 x 1000: 2.1 ms, treated 3.3). In such rows, as in those with a NaN, the formulas give NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla import cpu_library, portable
from jaxsoftmax._xla.cpu_blocks import is_sized, is_small, with_rows
from jaxsoftmax._xla.dtypes import finite, widen
from jaxsoftmax._xla.masks import at_least

_IN_ONE_LOOP = 4096  # rows: with fewer XLA:CPU writes the exponentials before it sums them
_REPAIRED = 1 << 17  # numbers at a time
# Of a program that repairs rows of bfloat16 JAX 0.10 makes all logits float32 first (8192 x 1000:
# 31 MiB); 0.11.2 and 0.12 do not.
_IN_HALF = ["bfloat16"] if jax.__version_info__ >= (0, 11) else []
_ONE_LOOP_DTYPES = ["float32", "float64", *_IN_HALF]

_Results = TypeVar("_Results", Array, tuple[Array, Array])


def is_plain(logits: Array) -> bool:
    """Whether the textbook's formulas are faster: many float32 numbers."""
    return logits.dtype == jnp.float32 and _is_large(logits)


def is_one_loop(logits: Array) -> bool:
    """Whether XLA:CPU runs the whole formula in one loop: for many rows, which it may widen there.

    (JAX 0.12, softmax of 65536 x 128 bfloat16: 3.3 ms, treated 14; of float64 29 and 35; of
    float16 27 and 14.)
    """
    of_dtype = logits.dtype.name in _ONE_LOOP_DTYPES
    return of_dtype and _is_large(logits) and logits.size >= _IN_ONE_LOOP * logits.shape[-1]


def _is_large(logits: Array) -> bool:
    return is_sized(logits) and not is_small(logits)


def plain_terms(logits: Array) -> tuple[Array, Array]:
    """exp(x_j − m) and Σ exp(x_j − m)."""
    terms = jnp.exp(widen(logits) - widen(jnp.max(logits, axis=-1))[..., None])
    return terms, jnp.sum(terms, axis=-1)


def treated_terms(logits: Array, moves: bool) -> tuple[Array, Array]:
    """exp(x_j − m) and 1 / Σ exp(x_j − m); if `moves`, 0 for a row that does not."""
    maximum, terms, total = exponentials(logits)
    return terms, portable.scale_of(maximum, total) if moves else 1.0 / at_least(total, 1.0)


def exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """As `portable.row_exponentials`: the sum is that of the terms."""
    if cpu_library.is_in_library(logits):
        return cpu_library.exponentials(logits)
    maximum = widen(jnp.max(logits, axis=-1))
    terms = portable.exponentials(logits, finite(maximum))
    return maximum, terms, jnp.sum(terms, axis=-1)


def repaired(
    results: _Results, probe: Array, form: Callable[..., _Results], *operands: Array
) -> _Results:
    """The results, and those of `form` in the rows of which the probe is NaN.

    Some rows at a time, in a loop that takes no step where there are none: under a condition of
    another kind XLA:CPU copies the results.
    """
    batch, rows = probe.ndim, probe.size
    step = max(1, min(rows, _REPAIRED // operands[0].shape[-1]))
    bad, place = jnp.isnan(probe).reshape(rows), lax.iota(jnp.int32, rows)

    def of_rows(x: Array) -> Array:
        return x.reshape(rows, *x.shape[batch:])

    def first_bad(start: Array | int) -> Array:
        return jnp.min(jnp.where(bad & (place >= start), place, rows))

    def repair(state: tuple[Array, _Results]) -> tuple[Array, _Results]:
        start, found = state
        found = with_rows(found, form, list(map(of_rows, operands)), start, step)
        return first_bad(start + step), found

    first = first_bad(0), jax.tree.map(of_rows, results)
    _, found = lax.while_loop(lambda state: state[0] < rows, repair, first)
    return jax.tree.map(lambda x, like: x.reshape(like.shape), found, results)
