"""Softmax, its tangent and multiples, as XLA:CPU runs them fastest.

In float32 it runs the textbook's formulas in one loop over many rows, or in one for maximum and
exponentials, but nothing that treats a row with +inf or one without a class (JAX 0.12, 8192 x 1000:
2.1 ms, treated 3.3). In such rows, as in those with a NaN, the formulas give NaN everywhere. So all
rows are computed plainly, and these, if there are any, once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla import portable
from jaxsoftmax._xla.cpu_blocks import is_small
from jaxsoftmax._xla.dtypes import accumulator, finite, widen
from jaxsoftmax._xla.masks import at_least

_IN_ONE_LOOP = 4096  # rows: with fewer XLA:CPU writes the exponentials before it sums them
_REPAIRED = 1 << 16  # numbers at a time

_Results = TypeVar("_Results", Array, tuple[Array, Array])


def softmax(logits: Array) -> Array:
    """As `portable.softmax`."""
    if not _is_plain(logits):
        return _treated_softmax(logits)
    if _is_one_loop(logits):
        p = _plain_softmax(logits)
        return _repaired(p, p[..., 0], _treated_softmax, logits)
    terms, scale = _repaired_terms(logits, False)
    return terms * scale[..., None]


def softmax_tangent(logits: Array, tangent: Array) -> Array:
    """As `portable.softmax_tangent`."""
    if not _is_plain(logits):
        return _treated_tangent(logits, tangent)
    if _is_one_loop(logits):
        p = _plain_softmax(logits)
        moved = p * tangent
        found = moved - p * jnp.sum(moved, axis=-1)[..., None]
        return _repaired(found, found[..., 0], _treated_tangent, logits, tangent)
    terms, scale = _repaired_terms(logits, True)
    return _tangent_of_terms(terms, scale, tangent, logits)


def softmax_times(logits: Array, values: Array) -> Array:
    """As `portable.softmax_times`."""
    if not _is_plain(logits):
        return _treated_times(logits, values)
    if _is_one_loop(logits):
        found = _plain_softmax(logits) * values[..., None]
        return _repaired(found, found[..., 0], _treated_times, logits, values)
    terms, scale = _repaired_terms(logits, True)
    return terms * (scale * values)[..., None]


def softmax_mean(logits: Array, v: Array) -> Array:
    """As `portable.softmax_mean`."""
    return portable.mean_of_exponentials(*_exponentials(logits), v)


def _is_plain(logits: Array) -> bool:
    sized = all(isinstance(size, int) for size in logits.shape)  # no symbolic dimension
    return sized and logits.dtype == jnp.float32 and not is_small(logits)


def _is_one_loop(logits: Array) -> bool:
    return bool(logits.size >= _IN_ONE_LOOP * logits.shape[-1])


# --- NaN in a row with an infinite maximum or a NaN -----------------------------------------------


def _plain_softmax(logits: Array) -> Array:
    terms, total = _plain_terms(logits)
    return terms / total[..., None]


def _plain_terms(logits: Array) -> tuple[Array, Array]:
    terms = jnp.exp(logits - jnp.max(logits, axis=-1)[..., None])
    return terms, jnp.sum(terms, axis=-1)


def _repaired_terms(logits: Array, moves: bool) -> tuple[Array, Array]:
    """As `_treated_terms`; p itself, if it were repaired, would take an array beside its terms."""
    terms, total = _plain_terms(logits)
    treated = partial(_treated_terms, moves=moves)
    return _repaired((terms, 1.0 / total), total, treated, logits)


def _repaired(
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
        start = jnp.minimum(start, rows - step)
        new = form(*(lax.dynamic_slice_in_dim(of_rows(x), start, step) for x in operands))
        update = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return first_bad(start + step), jax.tree.map(update, found, new)

    first = first_bad(0), jax.tree.map(of_rows, results)
    _, found = lax.while_loop(lambda state: state[0] < rows, repair, first)
    return jax.tree.map(lambda x, like: x.reshape(like.shape), found, results)


# --- with +inf, and rows without a class, treated -------------------------------------------------


def _treated_softmax(logits: Array) -> Array:
    return portable.probabilities(*_exponentials(logits))


def _treated_tangent(logits: Array, tangent: Array) -> Array:
    terms, scale = _treated_terms(logits, True)
    return _tangent_of_terms(terms, scale, tangent, logits)


def _treated_times(logits: Array, values: Array) -> Array:
    return portable.exponentials_times(*_exponentials(logits), values)


def _treated_terms(logits: Array, moves: bool) -> tuple[Array, Array]:
    """exp(x_j − m) and 1 / Σ exp(x_j − m); if `moves`, 0 for a row that does not."""
    maximum, terms, total = _exponentials(logits)
    return terms, portable.scale_of(maximum, total) if moves else 1.0 / at_least(total, 1.0)


def _exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """As `portable.row_exponentials`: the sum is that of the terms."""
    maximum = widen(jnp.max(logits, axis=-1))
    terms = portable.exponentials(widen(logits), finite(maximum))
    return maximum, terms, jnp.sum(terms, axis=-1)


def _tangent_of_terms(terms: Array, scale: Array, tangent: Array, logits: Array) -> Array:
    """Of terms e and the scale r: e (r v − r² Σ e v), written in the place of e.

    (JAX 0.12, 1024 x 32000 float32: 75 ms, as p (v − ⟨p, v⟩) 125 and a second array.) What is
    broadcast twice XLA:CPU would write to memory, and without the barrier the result of short rows;
    but it converts a result of half precision only in a loop that goes on from such a reduction.
    """
    if logits.dtype == accumulator(logits.dtype):
        mean = lax.optimization_barrier(jnp.sum(terms * tangent, axis=-1) * (scale * scale))
        return terms * (scale[..., None] * tangent - mean[..., None])
    mean = jnp.sum(terms * (scale * scale)[..., None] * tangent, axis=-1)
    return terms * scale[..., None] * tangent - terms * mean[..., None]
