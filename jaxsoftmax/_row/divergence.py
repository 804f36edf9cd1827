"""How far two rows of logits lie apart: a sum of terms of one sign, however close they are.

With p of the target y, q of the logits x and d = log q − log p,

    KL(p‖q) = −Σ p d = Σ p (e^d − 1 − d)

since Σ p e^d = Σ q = 1. Each term is formed without a cancellation, and d from differences of the
two rows, class by class: with δ_c = (x_c − y_c) − (max x − max y), small where the rows are close,

    d_c = δ_c − log Σ_j p_j e^δ_j = δ_c − log(1 + Σ_j p_j (e^δ_j − 1))
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool

from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import row as _row
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.options import RowOptions
from jaxsoftmax._row.row import Temperature, over
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import (
    PerClass,
    PerRow,
    finite,
    largest,
    two_difference,
    widen,
)
from jaxsoftmax._xla.forms import Arrays, Operation, Tangents, is_zero, jvp_of
from jaxsoftmax._xla.masks import at_least, at_most, keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes
from jaxsoftmax._xla.shardings import ones_of_rows

_LARGEST_EXPONENT = 80.0  # e^80 is a float32
_FEWEST_TERMS, _MOST_TERMS = 3, 11  # x^11/11! is 1e-12 of x²/2 at 1/2
_SERIES_BELOW = 0.5
_CLOSE = 0.4  # of the logarithm of a sum near 1


class _Side(NamedTuple):
    """What is known of one of two rows."""

    top: PerRow  # its largest logit, finite; a constant under differentiation
    excess: PerRow  # what its logsumexp lies above
    exists: Bool[Array, "..."]  # whether it has a class


class _Rows(NamedTuple):
    """Of both."""

    x: _Side
    y: _Side
    base: tuple[PerRow, PerRow]  # max x − max y, and its rounding error
    offset: PerRow  # log Σ_j p_j e^δ_j


class _Pair(NamedTuple):
    """Two rows, class by class."""

    p: PerClass  # of the target; 0 where it does not exist
    q: PerClass
    log_ratio: PerClass  # d = log q − log p; 0 where either does not exist
    only_p: Bool[Array, "... C"]
    only_q: Bool[Array, "... C"]
    any_p: Bool[Array, "..."]  # whether the row has a class
    any_q: Bool[Array, "..."]

    def exchanged(self) -> _Pair:
        """The target in place of the logits: at β = 0 its divergence is this one's at 1."""
        p, q, d, only_p, only_q, any_p, any_q = self
        return _Pair(q, p, -d, only_q, only_p, any_q, any_p)


class _Static(NamedTuple):
    """What is static about it."""

    beta: float
    low: float  # of the temperature, of which each row has its own
    mesh_axis: AxisName
    wanted: tuple[bool, ...] = (False, False)  # gradients of the logits, and of the target


def of_logits(logits: PerClass, target: PerClass, beta: float, options: RowOptions) -> RowLosses:
    """Every option but the weights of the examples and the reduction."""
    x, y = (_logits.capped(z, options) for z in (logits, target))
    temperature, of_rows = _logits.temperature_of(x, options), []
    if temperature is not None:
        of_rows.append(ones_of_rows(x, temperature.value.dtype) * temperature.value)
    low = 0.0 if temperature is None else temperature.low
    return RowLosses(_divergence(x, y, *of_rows, static=_Static(beta, low, options.axis_name)))


def _rows_alone(
    x: PerClass, y: PerClass, *temperature: PerRow, static: _Static
) -> tuple[Array, ...]:
    """KL(p‖q) for beta 0, KL(q‖p) for 1, between them β KL(p‖m) + (1−β) KL(q‖m).

    And those gradients that are wanted.
    """
    beta, _, mesh_axis, wanted = static
    pair = _pair(x, y, temperature, static)
    gradients = zip(_gradients(pair, beta, mesh_axis), wanted, strict=True)
    p, q, d, only_p, only_q, any_p, _ = pair.exchanged() if beta == 1.0 else pair
    if beta in (0.0, 1.0):
        terms = keep(_term(p, q, d), ~only_p, jnp.inf)
    else:
        m = beta * p + (1.0 - beta) * q
        to_p = _log_mixed(d, 1.0 - beta, only_p)  # log m − log p
        to_q = _log_mixed(-d, beta, only_q)
        terms = beta * _term(p, m, to_p) + (1.0 - beta) * _term(q, m, to_q)
    value = keep(over_classes(terms, mesh_axis), any_p)
    return value, *(g for g, is_wanted in gradients if is_wanted)


def _like(x: PerClass, y: PerClass, *_: PerRow, static: _Static) -> tuple[Array, ...]:
    gradient = widen(x) + widen(y)
    value = over_classes(gradient, static.mesh_axis)
    return value, *(gradient for is_wanted in static.wanted if is_wanted)


_divergence = Operation("divergence", _like, _rows_alone)


@_divergence.defjvp
def _jvp(primals: Arrays, tangents: Tangents, *, static: _Static) -> tuple[Arrays, Tangents]:
    """Σ_c g_c ẋ_c + Σ_c g'_c ẏ_c, with the gradients g of the logits and g' of the target.

        β = 0:  g = q − p,                               g' = −p (d − Σ p d)
        β = 1:  g = q (d − Σ q d),                       g' = p − q
        else:   g = −(1−β) q (log m/q − Σ q log m/q),    g' = −β p (log m/p − Σ p log m/p)

    all over t, and −Σ_c (g_c x_c + g'_c y_c) ṫ/t²: the gradients sum to 0, so that x and y may be
    counted from any class.
    """
    (x, y, *t), (x_dot, y_dot, *t_dot) = primals, tangents
    temperature, warms = _temperature(t, static), bool(t) and not is_zero(t_dot[0])
    sides = list(zip((x, y), (x_dot, y_dot), static.wanted, strict=True))
    needed = [warms or asked or not is_zero(dot) for _, dot, asked in sides]
    value, *found = _divergence(*primals, static=static._replace(wanted=tuple(needed)))
    terms, results = [], []
    for (z, dot, asked), g in zip(itertools.compress(sides, needed), found, strict=True):
        if not is_zero(dot):
            terms.append(over(g * keep(widen(dot), z != jnp.inf), temperature))
        if warms:
            step = spread(-t_dot[0] / t[0], g)
            terms.append(g * over(_below_largest(z, static.mesh_axis), temperature) * step)
        if asked:
            results.append(g)
    value_dot = over_classes(sum(terms[1:], terms[0]), static.mesh_axis)
    moved = []
    if results:
        _, (_, *moved) = jvp_of(partial(_rows_alone, static=static), primals, tangents)
    return (value, *results), (value_dot, *moved)


def _below_largest(x: PerClass, mesh_axis: AxisName) -> PerClass:
    """x_c − max x, any finite number for a class that does not exist."""
    x = _bounded(x)
    top = mesh.maximum(jnp.max(lax.stop_gradient(x), axis=-1), mesh_axis)
    return finite(keep(x, x != -jnp.inf) - spread(finite(top), x))


def _temperature(of_rows: Sequence[PerRow], static: _Static) -> Temperature | None:
    return Temperature(of_rows[0], static.low) if of_rows else None


def _gradients(pair: _Pair, beta: float, mesh_axis: AxisName) -> tuple[PerClass, PerClass]:
    """Those of the logits and of the target, over t; 0 for what does not exist."""
    if beta == 1.0:
        of_y, of_x = _gradients(pair.exchanged(), 0.0, mesh_axis)
        return of_x, of_y
    p, q, d, only_p, only_q, any_p, _ = pair

    def about_mean(p: PerClass, d: PerClass) -> PerClass:
        # Of a likely class d − Σ p d is small, to which what Σ p rounds adds.
        total = at_least(over_classes(p, mesh_axis), 0.5)
        mean = finite(over_classes(p * d, mesh_axis) / total)
        return p * finite(d - spread(mean, d))

    if beta == 0.0:
        near = _are_near(p, d)
        of_x = keep(lax.select(near, p * jnp.expm1(keep(d, near)), q - p), ~only_p)
        of_y = -about_mean(p, d)
    else:
        of_x = -(1.0 - beta) * about_mean(q, _log_mixed(-d, beta, only_q))
        of_y = -beta * about_mean(p, _log_mixed(d, 1.0 - beta, only_p))
    weighs = spread(any_p, p)
    return keep(of_x, weighs), keep(of_y, weighs)


def _term(p: PerClass, q: PerClass, d: PerClass) -> PerClass:
    """p (e^d − 1 − d), of which p e^d is q: where d is not small, or p is 0, as q − p − p d."""
    near = _are_near(p, d)
    return lax.select(near, p * _above_tangent(keep(d, near)), (q - p) - p * d)


def _are_near(p: PerClass, d: PerClass) -> Bool[Array, "... C"]:
    """Where a function of q is best had from p and d."""
    return (jnp.abs(d) < 1.0) & (p != 0.0)


def _log_mixed(d: PerClass, share: float, alone: Bool[Array, "... C"]) -> PerClass:
    """log(1 + share (e^d − 1)); where the other has no class, only what is left of this one."""
    mixed = jnp.log1p(share * jnp.expm1(at_most(d, _LARGEST_EXPONENT)))
    return keep(mixed, ~alone, math.log1p(-share))


def _bounded(logits: PerClass) -> PerClass:
    """+inf as the largest number, whose probability is the same."""
    x = widen(logits)
    return keep(x, x != jnp.inf, float(largest(x)))


def _apart(logits: PerClass, target: PerClass) -> tuple[PerClass, PerClass]:
    """The same bounded, for a pass of its own over the classes.

    Without the barrier XLA computes what several passes have in common once, and keeps the arrays.
    """
    x, y = lax.optimization_barrier((logits, target))
    return _bounded(x), _bounded(y)


def _rows(x: PerClass, y: PerClass, temperature: Temperature | None, mesh_axis: AxisName) -> _Rows:
    def side(z: PerClass) -> _Side:
        first = mesh.to_shard(0 * ones_of_rows(z, np.dtype(np.int32)), z.shape[-1], mesh_axis)
        row = _row.of_pivot(z, first, mesh_axis, temperature).row
        return _Side(finite(row.top), row.excess, row.top != -jnp.inf)

    of_x, of_y = side(x), side(y)
    offset = of_x.excess - of_y.excess
    rows = _Rows(of_x, of_y, two_difference(of_x.top, of_y.top), offset)
    # Rounded, that is as good as δ is of rows far apart. Of close ones it is the sum's logarithm.
    x, y = _apart(x, y)
    delta, p = _delta(x, y, rows, temperature), _probabilities(y, of_y, temperature)
    moved = _probabilities(x, of_x._replace(excess=of_y.excess), temperature)  # p_j e^δ_j
    small = (jnp.abs(delta) < _SERIES_BELOW) & (x != -jnp.inf) & (y != -jnp.inf)
    terms = lax.select(small, p * jnp.expm1(keep(delta, small)), moved - p)
    close = jnp.abs(offset) < _CLOSE
    rest = keep(over_classes(terms, mesh_axis), close)
    return rows._replace(offset=lax.select(close, jnp.log1p(rest), offset))


def _pair(x: PerClass, y: PerClass, of_rows: Sequence[PerRow], static: _Static) -> _Pair:
    temperature = _temperature(of_rows, static)
    rows = _rows(x, y, temperature, static.mesh_axis)
    x, y = _apart(x, y)
    p_exists, q_exists = y != -jnp.inf, x != -jnp.inf
    p, q = _probabilities(y, rows.y, temperature), _probabilities(x, rows.x, temperature)
    delta = _delta(x, y, rows, temperature)
    d = keep(finite(delta - spread(rows.offset, x)), p_exists & q_exists)
    only_p, only_q = p_exists & ~q_exists, q_exists & ~p_exists
    return _Pair(p, q, d, only_p, only_q, rows.y.exists, rows.x.exists)


def _probabilities(x: PerClass, side: _Side, temperature: Temperature | None) -> PerClass:
    exists = x != -jnp.inf
    below = over(keep(x, exists) - spread(side.top, x), temperature)
    return keep(jnp.exp(below - spread(side.excess, x)), exists)


def _delta(x: PerClass, y: PerClass, rows: _Rows, temperature: Temperature | None) -> PerClass:
    """δ; 0 where either class does not exist."""
    p_exists, q_exists = y != -jnp.inf, x != -jnp.inf
    high, low = two_difference(keep(x, q_exists), keep(y, p_exists))
    base, below = (spread(z, x) for z in rows.base)
    return keep(over((high - base) + (low - below), temperature), p_exists & q_exists)


def _above_tangent(d: Array) -> Array:
    """e^d − 1 − d, by its series near 0."""
    small = jnp.abs(d) < _SERIES_BELOW
    x = keep(d, small)
    series = lax.full_like(x, 1.0)
    for k in range(_MOST_TERMS, _FEWEST_TERMS - 1, -1):
        series = 1.0 + x / k * series
    return lax.select(small, 0.5 * x * x * series, jnp.expm1(d) - d)
