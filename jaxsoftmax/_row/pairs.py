"""Two rows of logits, class by class: their probabilities p and q, and d = log q − log p.

Of rows that are close d is small, and none of its digits is lost: it is formed from differences of
the two rows. With δ_c = (x_c − y_c) − b, where b is about logsumexp(x) − logsumexp(y),

    d_c = δ_c − log Σ_j p_j e^δ_j = δ_c − log(1 + Σ_j p_j (e^δ_j − 1))

so that b may be rounded, and the sum is about 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool

from jaxsoftmax._row import row as _row
from jaxsoftmax._row.row import Temperature, over
from jaxsoftmax._row.state import entry, largest_class
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import PerClass, PerRow, finite, largest, two_difference, widen
from jaxsoftmax._xla.masks import keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes
from jaxsoftmax._xla.shardings import ones_of_rows

NEAR = 1.0  # |d| for which `above_tangent` is made
# The last power of d in the series of `above_tangent`: its first two derivatives, too, are then off
# by a few roundings.
_LAST_POWER = {np.dtype(np.float32): 12, np.dtype(np.float64): 20}


class _Side(NamedTuple):
    """What is known of one of two rows."""

    top: PerRow  # its largest logit, finite
    loss: PerRow  # −log of that class's probability
    exists: Bool[Array, "..."]  # whether it has a class


_Base = tuple[PerRow, PerRow]  # b as two numbers


class _Rows(NamedTuple):
    """What is known of both."""

    x: _Side
    y: _Side
    base: _Base
    offset: PerRow  # log Σ_j p_j e^δ_j


class Pair(NamedTuple):
    """Two rows, class by class; what does not exist is excluded, or −inf."""

    p: PerClass  # of the target; 0 where it does not exist
    q: PerClass
    log_ratio: PerClass  # d = log q − log p; 0 where either does not exist
    only_p: Bool[Array, "... C"]
    only_q: Bool[Array, "... C"]
    any_p: Bool[Array, "..."]  # whether the row has a class
    any_q: Bool[Array, "..."]

    def exchanged(self) -> Pair:
        """The target in place of the logits: at β = 0 its divergence is this one's at 1."""
        p, q, d, only_p, only_q, any_p, any_q = self
        return Pair(q, p, -d, only_q, only_p, any_q, any_p)


def bounded(logits: PerClass) -> PerClass:
    """+inf as the largest number, whose probability is the same."""
    x = widen(logits)
    return keep(x, x != jnp.inf, float(largest(x)))


def _apart(logits: PerClass, target: PerClass) -> tuple[PerClass, PerClass]:
    """The same bounded, for a pass of its own over the classes.

    Without the barrier XLA computes what several passes have in common once, and keeps the arrays.
    """
    x, y = lax.optimization_barrier((logits, target))
    return bounded(x), bounded(y)


def _rows(
    x: PerClass, y: PerClass, temperature: Temperature | None, mesh_axis: AxisName, moves: bool
) -> _Rows:
    def side(z: PerClass) -> _Side:
        if moves:  # exact derivatives of a likely class are relative to it
            here = largest_class(z, mesh_axis)
            row = _row.of_pivot(z, here, mesh_axis, temperature).row
            top = entry(keep(z, z != -jnp.inf), here, mesh_axis)
            return _Side(finite(top), keep(row.loss, row.loss < jnp.inf), row.top != -jnp.inf)
        # Of a value any class may be the pivot: class 0, for which no pass has to look.
        first = mesh.to_shard(0 * ones_of_rows(z, np.dtype(np.int32)), z.shape[-1], mesh_axis)
        row = _row.of_pivot(z, first, mesh_axis, temperature).row
        return _Side(finite(row.top), row.excess, row.top != -jnp.inf)

    of_x, of_y = side(x), side(y)
    top_x, top_y, shift = map(lax.stop_gradient, (of_x.top, of_y.top, of_x.loss - of_y.loss))
    if temperature is not None:
        shift *= lax.stop_gradient(temperature.value)
    if moves:
        motion_x, motion_y = _motion(x, y, mesh_axis)
        top_x, top_y = top_x + motion_x, top_y + motion_y
    # b = (max x − max y) + t (loss of x − loss of y), a constant but for the motion.
    base, low = two_difference(top_x, top_y)
    base, lower = two_difference(base, -shift)
    # The barriers keep XLA from computing these again at every class. (One barrier over all of them
    # would make each vary over every mesh axis over which one does.)
    of_x, of_y, of_base, shift = jax.tree.map(
        lax.optimization_barrier, (of_x, of_y, (base, low + lower), shift)
    )
    x, y = _apart(x, y)
    delta, p = _delta(x, y, of_base, temperature), _probabilities(y, of_y, temperature)
    seen = _Side(top_x + (of_y.top - top_y), of_y.loss + over(shift, temperature), of_x.exists)
    moved = _probabilities(x, seen, temperature)  # p_j e^δ_j
    near = (jnp.abs(delta) < NEAR) & (x != -jnp.inf) & (y != -jnp.inf)
    terms = lax.select(near, p * expm1(keep(delta, near)), moved - p)
    rest = keep(over_classes(terms, mesh_axis), of_x.exists)
    return _Rows(of_x, of_y, of_base, jnp.log1p(rest))


def _motion(x: PerClass, y: PerClass, mesh_axis: AxisName) -> list[PerRow]:
    """0 with the derivatives of x_a and y_a, a being likely in both: so δ_a does not move."""
    exist = (x != -jnp.inf) & (y != -jnp.inf)
    likely = largest_class(keep(y, exist, -jnp.inf), mesh_axis)
    at_a = [entry(keep(bounded(z), exist), likely, mesh_axis) for z in (x, y)]
    return [z_a - lax.stop_gradient(z_a) for z_a in at_a]


def pair_of(
    x: PerClass,
    y: PerClass,
    temperature: Temperature | None,
    mesh_axis: AxisName,
    *,
    moves: bool,
) -> Pair:
    """Of the logits x and the target's y; `moves` where they are differentiated."""
    rows = _rows(x, y, temperature, mesh_axis, moves)
    x, y = _apart(x, y)
    p_exists, q_exists = y != -jnp.inf, x != -jnp.inf
    p, q = _probabilities(y, rows.y, temperature), _probabilities(x, rows.x, temperature)
    delta = _delta(x, y, rows.base, temperature)
    d = keep(finite(delta - spread(rows.offset, x)), p_exists & q_exists)
    only_p, only_q = p_exists & ~q_exists, q_exists & ~p_exists
    return Pair(p, q, d, only_p, only_q, rows.y.exists, rows.x.exists)


def _probabilities(x: PerClass, side: _Side, temperature: Temperature | None) -> PerClass:
    exists = x != -jnp.inf
    below = over(keep(x - spread(side.top, x), exists), temperature)
    return keep(jnp.exp(below - spread(side.loss, x)), exists)


def _delta(x: PerClass, y: PerClass, of_base: _Base, temperature: Temperature | None) -> PerClass:
    """δ; 0 where either class does not exist."""
    p_exists, q_exists = y != -jnp.inf, x != -jnp.inf
    high, low = two_difference(keep(x, q_exists), keep(y, p_exists))
    base, below = (spread(z, x) for z in of_base)
    return keep(over((high - base) + (low - below), temperature), p_exists & q_exists)


def above_tangent(d: Array) -> Array:
    """e^d − 1 − d by its series, where d is near 0."""
    last = _LAST_POWER[d.dtype]
    series = lax.full_like(d, 1.0 / math.factorial(last))
    for k in range(last - 1, 1, -1):
        series = 1.0 / math.factorial(k) + d * series
    return d * d * series


def expm1(d: Array) -> Array:
    """e^d − 1, there."""
    return d + above_tangent(d)
