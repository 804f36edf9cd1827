"""Log-softmax and its derivatives, as XLA:CPU runs them fastest.

In float32 it runs the textbook's gradient in one loop, or two (see `cpu_plain`). That rounds away
the gradient of a confidently predicted class, and takes classes at −inf for others. So all rows are
computed plainly. Rows with infinite logits are computed once more, and if any row is confident, so
is the largest class of every row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax._xla import log_probs, portable
from jaxsoftmax._xla.cpu_blocks import in_blocks, is_small, take_block
from jaxsoftmax._xla.cpu_plain import (
    exponentials,
    is_plain,
    plain_terms,
    repaired,
    treated_terms,
)
from jaxsoftmax._xla.cpu_rows import (
    block_length,
    entry,
    home_of,
    largest_and_odds,
    largest_class_and_odds,
    log1p,
)
from jaxsoftmax._xla.dtypes import Index, PerRow
from jaxsoftmax._xla.masks import is_class, keep, nan_where, spread

_CONFIDENT = 0.75  # of a larger p_a, 1 − p_a by subtraction is more than four roundings off


def log_softmax(logits: Array) -> Array:
    """As `portable.log_softmax`."""
    top, odds = largest_and_odds(logits)
    return log_probs.log_probs(top, log1p(odds), logits)


def log_softmax_tangent(logits: Array, v: Array) -> Array:
    """As `portable.log_softmax_tangent`."""
    if is_small(logits):
        return _small_tangent(logits, v)
    row = _row(logits)
    of_label, sure = entry(v, row.label), row.p > log_probs.SURE
    w = v - spread(keep(of_label, sure), v)
    terms = portable.row_terms(logits, row.label, row.top)
    mean = row.p * (jnp.sum(terms * w, axis=-1) + keep(of_label, ~sure))
    return keep(w - spread(mean, w), log_probs.movable(logits, row.p != 0.0))


def log_softmax_gradient(logits: Array, g: Array) -> Array:
    """As `portable.log_softmax_gradient`."""
    if is_plain(logits):
        found = _plain_gradient(logits, g)
        found = repaired(found, found[..., 0], _treated_gradient, logits, g)
        return _with_confident(found, logits, g)
    if is_small(logits):
        return _small_gradient(logits, g)
    row = _row(logits)
    return _gradient(row, _sums(row, logits, g), logits, g)


# --- small arrays ---------------------------------------------------------------------------------

# ⟨p, v − ⟨p, v⟩⟩ and Σ_c (g_c − p_c Σ_j g_j) are 0, but for what the subtractions round away, which
# at a confident class may be all: they are subtracted once more. XLA:CPU runs both times in one
# kernel, where the masked sums of `portable` are four to compile (JAX 0.12, first call 64 x 1000:
# 74 ms for 106, jax.nn 58). On an accelerator it would be another pass.


def _small_tangent(logits: Array, v: Array) -> Array:
    """v_c − ⟨p, v⟩, twice."""
    p, moves = portable.moving_probabilities(logits, of=exponentials)
    v = keep(v, moves)
    for _ in range(2):
        v = v - spread(log_probs.over_last(p * v), v)
    return keep(v, moves)


def _small_gradient(logits: Array, g: Array) -> Array:
    """g_c − p_c Σ_j g_j, twice."""
    p, moves = portable.moving_probabilities(logits, of=exponentials)
    g = keep(g, moves)
    for _ in range(2):
        g = g - p * spread(log_probs.over_last(g), g)
    return g


# --- the largest class, and the others apart ------------------------------------------------------


class _Row(NamedTuple):
    """A row and its largest class a."""

    label: Index  # a
    top: PerRow  # x_a
    p: PerRow  # p_a, 0 in a row that does not move
    p_others: PerRow  # 1 − p_a with nothing rounded away


def _row(logits: Array) -> _Row:
    label, top, odds = largest_class_and_odds(logits)
    top = nan_where(jnp.isnan(odds), top)  # a row with +inf and a NaN is not saturated
    p = keep(1.0 / (1.0 + odds), jnp.abs(top) != jnp.inf)
    return _Row(label, top, p, keep(odds * p, p != 0.0))


class _Sums(NamedTuple):
    """Of the classes of a row that exist; 0 in one that does not move."""

    of_all: PerRow  # Σ_j g_j
    here: PerRow  # the gradient at a


def _sums(row: _Row, logits: Array, g: Array) -> _Sums:
    of_label, of_others = entry(g, row.label), sum_of_others(g, logits, row.label)
    of_all = of_label + of_others
    sure, moves = row.p > log_probs.SURE, row.p != 0.0
    here = lax.select(sure, row.p_others * of_all - of_others, of_label - row.p * of_all)
    return _Sums(keep(of_all, moves), keep(here, moves))


def _gradient(row: _Row, sums: _Sums, logits: Array, g: Array) -> Array:
    """Of some classes of the rows, from the first."""
    terms = portable.row_terms(logits, row.label, row.top)
    each, moves = spread(row.p * sums.of_all, g), log_probs.movable(logits, row.p != 0.0)
    elsewhere = keep(g, moves) - terms * each
    return lax.select(is_class(logits, row.label), spread(sums.here, g), elsewhere)


# --- plainly, and what that leaves ----------------------------------------------------------------


def _plain_gradient(logits: Array, g: Array) -> Array:
    """g_c − p_c Σ_j g_j, marked in a confident row; NaN in one with an infinite logit or a NaN."""
    terms, total = plain_terms(logits)
    of_all = jnp.sum(g, axis=-1) + 0.0 * jnp.min(logits, axis=-1)  # NaN where one is −inf
    return g - terms * (of_all / total)[..., None] + _marks(1.0 / _CONFIDENT - total, logits)


def _treated_gradient(logits: Array, g: Array) -> Array:
    """The same of rows with infinite logits; NaN where one is NaN."""
    terms, scale = treated_terms(logits, True)
    g = keep(g, log_probs.movable(logits, scale != 0.0))
    each = scale * jnp.sum(g, axis=-1)
    return g - terms * each[..., None] + _marks(scale - _CONFIDENT, logits)


def _marks(confident: Array, logits: Array) -> Array:
    """+inf at the first class of each row of which the number is positive, elsewhere 0."""
    root = np.float32(1e30)  # its square is infinite
    first = np.zeros(logits.shape[-1:], np.float32)
    first[0] = root
    mark = root * jnp.sign(jnp.maximum(confident, 0.0))
    return mark[..., None] * jnp.broadcast_to(first, logits.shape)


def _with_confident(found: Array, logits: Array, g: Array) -> Array:
    """The gradients of plain rows, with what a marked row lacks: its largest and its first class.

    Of all rows at once, in a loop that takes one step or none: under a condition of another kind
    XLA:CPU copies the result.
    """
    classes = logits.shape[-1]
    logits, g = logits.reshape(-1, classes), g.reshape(-1, classes)

    def correct(state: tuple[Array, Array]) -> tuple[Array, Array]:
        row = _row(logits)
        sums = _sums(row, logits, g)
        found = state[1].at[:, :1].set(_gradient(row, sums, logits[:, :1], g[:, :1]))
        at_label = lax.iota(jnp.int32, len(row.label)), row.label
        found = found.at[at_label].set(sums.here, mode="promise_in_bounds", unique_indices=True)
        return state[0] & False, found  # which varies over a mesh as the rows do

    rows = found.reshape(-1, classes)
    marked = jnp.any(jnp.isinf(rows[:, 0]))
    _, rows = lax.while_loop(lambda state: state[0], correct, (marked, rows))
    return rows.reshape(found.shape)


# --- the sum of the others' gradients -------------------------------------------------------------


def sum_of_others(values: Array, logits: Array, label: Array) -> Array:
    """Σ of the values of the classes that exist but the label.

    Of blocks: at once where all classes exist, else in turn.
    """
    length = block_length(logits.shape[-1])
    if length is None:
        return _masked_sum(values, logits, label)

    def at_once() -> Array:
        blocks = in_blocks(values, length)
        sums, home = lax.optimization_barrier(jnp.sum(blocks, axis=-1)), home_of(label, blocks)
        of_home = take_block(blocks, home)
        elsewhere = jnp.sum(keep(sums, ~is_class(sums, home)), axis=-1)
        beside = keep(of_home, ~is_class(of_home, label - home * length))
        return elsewhere + jnp.sum(beside, axis=-1)

    def in_turn() -> Array:
        """One block in memory at a time."""

        def add(k: Array, total: Array) -> Array:
            start = k * length
            of_values, of_logits = (
                lax.dynamic_slice_in_dim(x, start, length, -1) for x in (values, logits)
            )
            return total + _masked_sum(of_values, of_logits, label - start)

        steps = logits.shape[-1] // length
        return lax.fori_loop(0, steps, add, lax.full_like(label, 0, values.dtype))

    return lax.cond(jnp.min(logits) > -jnp.inf, at_once, in_turn)


def _masked_sum(values: Array, logits: Array, label: Array) -> Array:
    others = (logits != -jnp.inf) & ~is_class(logits, label)
    return jnp.sum(keep(values, others), axis=-1)
