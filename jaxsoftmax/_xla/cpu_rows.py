"""Rows of logits as XLA:CPU runs them fastest, in a program that it runs by itself.

XLA:CPU fuses no index mask into a reduction: it writes the masked logits to memory first. So the
label's entry is gathered, maxima and sums of the others are of blocks of which only the label's is
read again, and the label's term is subtracted from a sum over all classes. Each form names what it
saves.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla import cpu_library, portable
from jaxsoftmax._xla.cpu_blocks import (
    divisor_near,
    in_blocks,
    is_small,
    is_stored,
    maxima_of_blocks,
    take_block,
)
from jaxsoftmax._xla.cpu_largest import two_largest
from jaxsoftmax._xla.dtypes import Size, finite, largest, widen
from jaxsoftmax._xla.log_probs import odds_of_others
from jaxsoftmax._xla.masks import is_class, keep, nan_where

_FEWEST_CLASSES = 64  # below this a mask costs nothing
_BLOCK = 50.0  # numbers: maxima and sums of such blocks are as fast to find as that of the row
_LONGEST_ROW = 32768


def row_state(logits: Array, label: Array, *scale: Array) -> tuple[Array, Array, Array]:
    """As `portable.row_state`."""
    if is_small(logits):
        return row_state_and_terms(logits, label, *scale)[:3]
    label_logit, maximum = entry(logits, label), _maximum_of_others(logits, label)
    own = keep(label_logit, label < logits.shape[-1], -jnp.inf)
    return label_logit, maximum, _others(logits, own, maximum, *scale)


def row_state_and_terms(
    logits: Array, label: Array, *scale: Array
) -> tuple[Array, Array, Array, Array]:
    """As `portable.row_state_and_terms`: the sum is that of the terms.

    Beside a gradient XLA:CPU writes the terms to memory, to overwrite them with the gradient. Many
    are summed before the label is masked (JAX 0.12, 1024 x 32000: 104 ms, masked first 145).
    """
    if not is_stored(logits):
        return portable.row_state_and_terms(logits, label, *scale, of=row_state)
    label_logit = entry(logits, label)
    if is_small(logits):
        maximum, others, terms = _others_and_terms(logits, label, *scale)
        return label_logit, maximum, nan_where(jnp.isnan(label_logit), others), terms
    maximum = _maximum_of_others(logits, label)
    terms = portable.exponentials(logits, finite(maximum), *scale)
    total = jnp.sum(terms, axis=-1)
    of_label = portable.term(label_logit, finite(maximum), *scale)
    others = portable.without_label(total, of_label, label, logits.shape[-1])
    return label_logit, maximum, others, keep(terms, ~is_class(logits, label))


def largest_and_odds(logits: Array) -> tuple[Array, Array]:
    """As `portable.largest_and_odds`."""
    if is_small(logits):
        in_library = cpu_library.is_in_library(logits)
        return (cpu_library if in_library else portable).largest_and_odds(logits)
    top, second, _ = two_largest(logits)
    return top, odds_of_others(top, second, _others(logits, top, second))


def exponentials_in_passes(logits: Array) -> tuple[Array, Array, Array]:
    """As `portable.row_exponentials`, without an array of them."""
    maximum = lax.optimization_barrier(widen(jnp.max(logits, axis=-1)))
    total = _others(logits, lax.full_like(maximum, -jnp.inf), maximum)
    return maximum, portable.exponentials_again(logits, maximum), total


def largest_class_and_odds(logits: Array) -> tuple[Array, Array, Array]:
    """The class, too; of classes at +inf the odds may leave out others."""
    top, second, label = two_largest(logits)
    others = _others_below_infinity(logits, top, second)
    return label, top, odds_of_others(top, second, others)


def largest_class(logits: Array) -> Array:
    """As `portable.largest_class`, in the block that holds it."""
    return two_largest(logits)[-1]


def log1p(odds: Array) -> Array:
    """log(1 + odds) of finite odds, by a logarithm and what the sum rounded away.

    (JAX 0.12, float32: at most 1.6 ulps off, XLA's own log1p 2.5; 27 ms to compile for 38.)
    """
    one = lax.full_like(odds, 1.0)
    total = lax.max(lax.add(odds, one), one)  # so that no compiler makes odds of total − 1
    return lax.add(lax.log(total), lax.div(lax.sub(odds, lax.sub(total, one)), total))


def entry(logits: Array, label: Array) -> Array:
    """As `portable.entry`, by index; among few classes a mask fuses with what follows."""
    if _is_short(logits.shape[-1]):
        return portable.entry(logits, label)
    place = jnp.minimum(label, logits.shape[-1] - 1)[..., None]
    found = jnp.take_along_axis(logits, place, axis=-1, mode="promise_in_bounds")[..., 0]
    return keep(widen(found), label < logits.shape[-1])


# --- parts of these -------------------------------------------------------------------------------


def _others_and_terms(logits: Array, label: Array, *scale: Array) -> tuple[Array, Array, Array]:
    """m, S and its terms, of few logits."""
    if cpu_library.is_in_library(logits):
        return cpu_library.others_and_terms(logits, label, *scale)
    maximum = _maximum_of_others(logits, label)
    terms = portable.shared_terms(logits, label, maximum, *scale)
    return maximum, jnp.sum(terms, axis=-1), terms


def _maximum_of_others(logits: Array, label: Array) -> Array:
    """Of the maxima of blocks, and the label's block (a mask would cost a copy of the logits).

    A small copy takes less than the blocks, whose kernels take longer to compile.
    """
    length = block_length(logits.shape[-1])
    if length is None or is_small(logits):
        found = portable.maximum_of_others(logits, label)
    else:
        blocks = in_blocks(logits, length)
        maxima, home = maxima_of_blocks(blocks), home_of(label, blocks)
        elsewhere = portable.maximum_of_others(maxima, home)
        at_home = portable.maximum_of_others(take_block(blocks, home), label - home * length)
        found = lax.max(elsewhere, at_home)
    # Computed once, not in each loop that reads it.
    return lax.optimization_barrier(widen(found))


def _others(logits: Array, own: Array, maximum: Array, *scale: Array) -> Array:
    """S: the sum over all classes less the term of the label's own logit, −inf if it has none."""
    others = _others_below_infinity(logits, own, maximum, *scale)
    if _is_short(logits.shape[-1]):
        return others
    return _with_infinite(others, logits, own, maximum)


def _others_below_infinity(logits: Array, own: Array, maximum: Array, *scale: Array) -> Array:
    """The same, of which another class at +inf may be left out."""
    m = finite(maximum)
    if _is_short(logits.shape[-1]):
        total = portable.sum_of_exponentials(logits, m, *scale)
        return total - portable.term(own, m, *scale)
    return _sum_of_exponentials(logits, m, *scale) - _decay(own - m, *scale)


def _is_short(classes: Size) -> bool:
    return isinstance(classes, int) and classes < _FEWEST_CLASSES  # or a symbolic dimension


def block_length(classes: Size) -> int | None:
    """A divisor of C; None without one."""
    if not isinstance(classes, int) or _is_short(classes):
        return None
    return divisor_near(classes, _BLOCK)


def home_of(label: Array, blocks: Array) -> Array:
    """The block of the label, the last one for a label that is beyond."""
    count, length = blocks.shape[-2:]
    return jnp.minimum(lax.div(label, jnp.int32(length)), count - 1)


def _sum_of_exponentials(logits: Array, maximum: Array, *scale: Array) -> Array:
    """Σ_j exp(−|x_j − m|), of long rows by shorter ones whose sums are added.

    So a label above the maximum adds no more than 1, and a NaN stays one. (XLA:CPU has a loop of
    its own for such a sum: JAX 0.12, 1024 x 32000 float32: 8 ms. In it min(exp(·), 1) of a NaN is
    1, and a select keeps the sum out of it.)

    XLA:CPU's exp-sum falls off a cliff beyond 32768 classes (JAX 0.10.2, 512 x 131072 float32:
    230 ms, as 2048 rows of 32768 thirty); only rows of a two-dimensional array help. The barrier
    keeps the reshape before the upcast: after it, it costs a copy (bfloat16: 98 ms, not 20).
    """
    pieces = _pieces(logits.shape[-1])
    if pieces > 1:
        of_pieces = (*maximum.shape, pieces)
        repeated = (jnp.broadcast_to(x[..., None], of_pieces) for x in (maximum, *scale))
        rows = lax.optimization_barrier(logits.reshape(-1, logits.shape[-1] // pieces))
        sums = _sum_of_exponentials(rows, *(x.reshape(-1) for x in repeated))
        return jnp.sum(sums.reshape(of_pieces), axis=-1)
    return jnp.sum(_decay(widen(logits) - maximum[..., None], *scale), axis=-1)


def _decay(distance: Array, *scale: Array) -> Array:
    """exp(−|distance| · scale)."""
    return jnp.exp(-jnp.abs(portable.scaled(distance, *scale)))


def _with_infinite(others: Array, logits: Array, own: Array, maximum: Array) -> Array:
    """The sum of the others, to which each at +inf has added 0, and now adds 1.

    They are counted where there are any, by arithmetic that XLA:CPU runs as one loop: a mask would
    be written to memory.
    """

    def is_infinite(x: Array) -> Array:
        most = lax.full_like(x, largest(logits))
        return lax.min(lax.max(x, most) - most, lax.full_like(x, 1.0))

    def counted() -> Array:
        return others + (jnp.sum(is_infinite(widen(logits)), axis=-1) - is_infinite(own))

    none = jnp.max(maximum) < jnp.inf  # False where one is NaN
    return lax.cond(none, lambda: others, counted)


def _pieces(classes: Size) -> int:
    """Into how many rows of at most `_LONGEST_ROW` a row is cut; 1 where no number divides it."""
    if not isinstance(classes, int):  # a symbolic dimension
        return 1
    fewest = -(-classes // _LONGEST_ROW)
    return next((n for n in range(fewest, 4 * fewest) if classes % n == 0), 1)
