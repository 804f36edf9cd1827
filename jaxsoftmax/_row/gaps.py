"""Sums over the classes of a row whose terms have one sign: soft labels, and the entropy.

Every term is the distance below the largest logit, so that a common offset of the logits costs no
digits. With it, Σ_c a_c (−log p_c) = (Σ_c a_c)·excess + Σ_c a_c (top − x_c).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._row.row import Observed, over
from jaxsoftmax._row.state import entries, entry
from jaxsoftmax._row.targets import SparseLabels
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import Index, PerClass, PerNamed, PerRow, largest
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
    terms = _weighted_gaps(logits, coefficients, top, origin, pivot is not None)
    if pivot is not None:
        terms = keep(terms, ~is_class(logits, pivot))
    return over_classes(terms, mesh_axis)


def named_gaps(seen: Observed, named: SparseLabels) -> PerNamed:
    """a_k (top − x_k) of the classes that each row names, [..., K]; 0 where a_k is."""
    logits, row, pivot, _, mesh_axis = seen
    values = entries(logits, named.indices, mesh_axis)
    origin = entry(logits, pivot, mesh_axis)
    here = (named.indices == spread(pivot, named.indices)) & (named.indices < logits.shape[-1])
    is_pivot = mesh.total(here.astype(values.dtype), mesh_axis) > 0.0
    terms = _weighted_gaps(values, named.weights, row.top, origin, True)
    return keep(terms, ~is_pivot & (named.weights != 0.0))


def fixed_gaps(values: PerNamed, named: SparseLabels, top: PerRow) -> PerNamed:
    """a_k (top − x_k) of values that are at hand, the top being a constant."""
    return keep(_weighted_gaps(values, named.weights, top, top, False), named.weights != 0.0)


def _weighted_gaps(x: Array, weights: Array, top: Array, origin: Array, moving: bool) -> Array:
    """a (top − x), the top being the origin, which moves or not."""
    moves = _moves(x, top)
    terms = weights * _gap(x, origin, moves)
    # An infinite gap is a constant: nothing at a class without a coefficient, of which it is no
    # function either. Only x_pivot moves.
    fixed = lax.stop_gradient(weights)
    infinite = fixed * keep(_constant_gap(x, top), fixed != 0.0)
    if moving:
        movable = keep(origin, lax.is_finite(origin))
        infinite += fixed * spread(movable - lax.stop_gradient(movable), x)
    return lax.select(moves, terms, infinite)


def entropy(seen: Observed) -> PerRow:
    """−Σ_j p_j log p_j = excess + Σ_j p_j (top − x_j)/t: two terms of one sign."""
    logits, row, _, temperature, mesh_axis = seen
    moves = _moves(logits, row.top)
    gap = over(_gap(logits, row.top, moves), temperature)
    terms = keep(jnp.exp(-gap), moves) * gap
    return row.excess + jnp.exp(-row.excess) * over_classes(terms, mesh_axis)


def unlikely(seen: Observed, mass: PerClass) -> PerRow:
    """Σ_c y_c (1 − p_c), the pivot being the largest class: there 1 − p is that of the others."""
    logits, row, pivot, temperature, mesh_axis = seen
    moves = _moves(logits, row.top)
    gap = over(_gap(logits, row.top, moves), temperature)
    p = keep(jnp.exp(-(gap + spread(row.excess, gap))), moves)
    at_pivot = spread(row.others, p)
    return over_classes(mass * lax.select(is_class(logits, pivot), at_pivot, 1.0 - p), mesh_axis)


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
