"""Sums over the classes of a row whose terms have one sign: soft labels, and the entropy.

Every term is the distance below the largest logit, so that a common offset of the logits costs no
digits. With it, Σ_c a_c (−log p_c) = (Σ_c a_c)·excess + Σ_c a_c (top − x_c).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._row.row import Row, Temperature
from jaxsoftmax._row.state import entry
from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, largest
from jaxsoftmax._xla.masks import is_class, keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes


def weighted_gap(
    logits: PerClass, coefficients: PerClass, top: PerRow, pivot: Index | None, mesh_axis: AxisName
) -> PerRow:
    """Σ_c a_c (top − x_c), with 0·inf = 0; top is max(x), or x_pivot where it is that.

    Without a pivot, top is a constant under differentiation; with one, it moves with x_pivot. Then
    the pivot itself is in no sum, so that its gradient is that of the others together and not the
    difference of two large numbers.
    """
    origin = top if pivot is None else entry(logits, pivot, mesh_axis)
    moves = _moves(logits, top)
    terms = coefficients * _gap(logits, origin, moves)
    # An infinite gap is a constant: nothing at a class without a coefficient, of which it is no
    # function either. Only x_pivot moves.
    fixed = lax.stop_gradient(coefficients)
    infinite = fixed * keep(_constant_gap(logits, top), fixed != 0.0)
    if pivot is not None:
        movable = keep(origin, lax.is_finite(origin))
        infinite += fixed * spread(movable - lax.stop_gradient(movable), logits)
    terms = lax.select(moves, terms, infinite)
    if pivot is not None:
        terms = keep(terms, ~is_class(logits, pivot))
    return over_classes(terms, mesh_axis)


def entropy(
    logits: PerClass, row: Row, mesh_axis: AxisName, temperature: Temperature | None
) -> PerRow:
    """−Σ_j p_j log p_j = excess + Σ_j p_j (top − x_j)/t: two terms of one sign."""
    moves = _moves(logits, row.top)
    gap = _gap(logits, row.top, moves)
    if temperature is not None:
        gap = gap / temperature.value
    terms = keep(jnp.exp(-gap), moves) * gap
    return row.excess + jnp.exp(-row.excess) * over_classes(terms, mesh_axis)


def _moves(logits: Array, top: Array) -> Array:
    """Where the gap is a number, and not infinite or between infinite logits."""
    return lax.is_finite(logits) & spread(lax.is_finite(top), logits)


def _gap(logits: Array, origin: Array, moves: Array) -> Array:
    gap = spread(origin, logits) - keep(logits, moves)
    # Not clamped: at its ends a clamp has no derivative, and the largest number is a gap, too.
    return keep(keep(gap, gap < jnp.inf, float(largest(gap))), moves)


def _constant_gap(logits: Array, top: Array) -> Array:
    """+inf for a class that does not exist, 0 at the top even where it is inf."""
    x, top = lax.stop_gradient(logits), spread(lax.stop_gradient(top), logits)
    apart = x != top
    return keep(keep(top, apart) - keep(x, apart), x != -jnp.inf, jnp.inf)
