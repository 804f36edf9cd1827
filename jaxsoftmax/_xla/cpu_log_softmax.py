"""Log-softmax and its derivatives, as XLA:CPU runs them fastest.

In float32 it runs the textbook's gradient in one loop, or two (see `cpu_plain`). That rounds away
the gradient of a confidently predicted class, and takes classes at −inf for others. So all rows are
computed plainly, and these, if there are any, are marked and computed once more: the whole row
where logits are infinite, one class where it is confident.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax._xla import log_probs, portable
from jaxsoftmax._xla.cpu_blocks import in_blocks, is_small, take_block
from jaxsoftmax._xla.cpu_plain import is_plain, plain_terms, repaired, treated_terms
from jaxsoftmax._xla.cpu_rows import (
    block_length,
    entry,
    home_of,
    largest_state,
    row_state_of_largest,
)
from jaxsoftmax._xla.masks import is_class, keep, spread

_CONFIDENT = 0.75  # of a larger p_a, 1 − p_a by subtraction is more than four roundings off


def log_softmax(logits: Array) -> Array:
    """As `portable.log_softmax`."""
    return portable.log_softmax_of(row_state_of_largest(logits), logits)


def log_softmax_tangent(logits: Array, v: Array) -> Array:
    """As `portable.log_softmax_tangent`."""
    return portable.log_softmax_tangent_of(largest_state(logits), logits, v)


def log_softmax_gradient(logits: Array, g: Array) -> Array:
    """As `portable.log_softmax_gradient`."""
    if is_plain(logits):
        found = _plain_gradient(logits, g)
        found = repaired(found, found[..., 0], _treated_gradient, logits, g)
        return _with_confident(found, logits, g)
    if is_small(logits):
        return portable.log_softmax_gradient_of(largest_state(logits), logits, g)
    of, sums, maximum, label = _shares_and_sums(logits, g)
    terms = portable.row_terms(logits, label, maximum)
    return log_probs.gradient(of, *sums, terms, logits, label, g)


def _shares_and_sums(
    logits: Array, g: Array
) -> tuple[log_probs.Shares, tuple[Array, Array], Array, Array]:
    """How a row is divided; g of the largest class, Σ g of the others; their maximum; the class."""
    top, maximum, others, label = largest_state(logits)
    sums = keep(entry(g, label), top != -jnp.inf), sum_of_others(g, logits, label)
    return log_probs.shares(top, maximum, others), sums, maximum, label


# --- plainly, and what that leaves ----------------------------------------------------------------


def _plain_gradient(logits: Array, g: Array) -> Array:
    """g_c − p_c Σ_j g_j, marked in a confident row; NaN in one with an infinite logit or a NaN."""
    terms, total = plain_terms(logits)
    of_all = jnp.sum(g, axis=-1) + 0.0 * jnp.min(logits, axis=-1)  # NaN where one is −inf
    return g - terms * (of_all / total)[..., None] + _marks(1.0 / _CONFIDENT - total, logits)


def _treated_gradient(logits: Array, g: Array) -> Array:
    """The same of rows with infinite logits; NaN where one is NaN."""
    terms, scale = treated_terms(logits, True)
    counts = (logits != -jnp.inf) & spread(scale != 0.0, logits)
    g = keep(g, counts)
    of_all = jnp.sum(g, axis=-1)
    return g - terms * (scale * of_all)[..., None] + _marks(scale - _CONFIDENT, logits)


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
        of, sums, maximum, label = _shares_and_sums(logits, g)
        x = logits[:, :1]
        terms = portable.row_terms(x, label, maximum)
        found = state[1].at[:, :1].set(log_probs.gradient(of, *sums, terms, x, label, g[:, :1]))
        at_label = lax.iota(jnp.int32, len(label)), label
        of_label = log_probs.gradient_of_largest(of, *sums)
        found = found.at[at_label].set(of_label, mode="promise_in_bounds", unique_indices=True)
        return jnp.bool_(False), found

    rows = found.reshape(-1, classes)
    marked = jnp.any(jnp.isinf(rows[:, 0]))
    _, rows = lax.while_loop(lambda state: state[0], correct, (marked, rows))
    return rows.reshape(found.shape)


# --- the sum of the others' gradients -------------------------------------------------------------


def sum_of_others(values: Array, logits: Array, label: Array) -> Array:
    """As `portable.sum_of_others`, of blocks: at once where all classes exist, else in turn."""
    length = block_length(logits.shape[-1])
    if length is None:
        return portable.sum_of_others(values, logits, label)

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
            return total + portable.sum_of_others(of_values, of_logits, label - start)

        steps = logits.shape[-1] // length
        return lax.fori_loop(0, steps, add, lax.full_like(label, 0, values.dtype))

    return lax.cond(jnp.min(logits) > -jnp.inf, at_once, in_turn)
