"""How far two rows of logits lie apart: a sum of terms of one sign, however close they are.

With p of the target y, q of the logits x and d = log q − log p,

    KL(p‖q) = −Σ p d = Σ p (e^d − 1 − d)

since Σ p e^d = Σ q = 1. Each term is formed without a cancellation, and d from differences of the
two rows, class by class: with δ_c = (x_c − y_c) − (x_a − y_a), a being the target's largest class,

    d_c = δ_c − log Σ_j p_j e^δ_j = δ_c − log(1 + Σ_j p_j (e^δ_j − 1))
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool

from jaxsoftmax._row import row as _row
from jaxsoftmax._row.row import Temperature
from jaxsoftmax._row.state import entry, largest_class
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import PerClass, PerRow, finite, largest, two_difference, widen
from jaxsoftmax._xla.masks import keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes

_LARGEST_EXPONENT = 80.0  # e^80 is a float32
_FEWEST_TERMS, _MOST_TERMS = 3, 11  # x^11/11! is 1e-12 of x²/2 at 1/2
_SERIES_BELOW = 0.5


class _Pair(NamedTuple):
    """Two rows, class by class."""

    p: PerClass  # of the target; 0 where it does not exist
    q: PerClass
    log_ratio: PerClass  # d = log q − log p; 0 where either does not exist
    only_p: Bool[Array, "... C"]
    only_q: Bool[Array, "... C"]


def of_rows(
    logits: PerClass,
    target: PerClass,
    beta: float,
    temperature: Temperature | None,
    mesh_axis: AxisName,
) -> PerRow:
    """KL(p‖q) for beta 0, KL(q‖p) for 1, between them β KL(p‖m) + (1−β) KL(q‖m)."""
    p, q, d, only_p, only_q = _pair(_bounded(logits), _bounded(target), temperature, mesh_axis)
    if beta in (0.0, 1.0):
        if beta == 1.0:
            p, q, d, only_p, only_q = q, p, -d, only_q, only_p
        return _counted(keep(_term(p, q, d), ~only_p, jnp.inf), p, mesh_axis)
    m = beta * p + (1.0 - beta) * q
    to_p = _log_mixed(d, 1.0 - beta, only_p)  # log m − log p
    to_q = _log_mixed(-d, beta, only_q)
    return _counted(beta * _term(p, m, to_p) + (1.0 - beta) * _term(q, m, to_q), p, mesh_axis)


def _term(p: PerClass, q: PerClass, d: PerClass) -> PerClass:
    """p (e^d − 1 − d), of which p e^d is q: where d is not small, or p is 0, as q − p − p d."""
    near = (jnp.abs(d) < 1.0) & (p != 0.0)
    return lax.select(near, p * above_tangent(keep(d, near)), (q - p) - p * d)


def _log_mixed(d: PerClass, share: float, alone: Bool[Array, "... C"]) -> PerClass:
    """log(1 + share (e^d − 1)); where the other has no class, only what is left of this one."""
    mixed = jnp.log1p(share * jnp.expm1(jnp.minimum(d, _LARGEST_EXPONENT)))
    return keep(mixed, ~alone, math.log1p(-share))


def _counted(terms: PerClass, p: PerClass, mesh_axis: AxisName) -> PerRow:
    """The sum; 0 where the distribution that weighs has no class."""
    total = over_classes(terms, mesh_axis)
    return keep(total, over_classes(p, mesh_axis) != 0.0)


def _bounded(logits: Array) -> PerClass:
    """+inf as the largest number, whose probability is the same."""
    x = widen(logits)
    return keep(x, x != jnp.inf, float(largest(x)))


def _pair(x: PerClass, y: PerClass, temperature: Temperature | None, mesh_axis: AxisName) -> _Pair:
    p_exists, q_exists = y != -jnp.inf, x != -jnp.inf
    both = p_exists & q_exists
    over = partial(_row.over, temperature=temperature)
    pivot = largest_class(keep(y, both, -jnp.inf), mesh_axis)  # a

    def distribution(x: Array, exists: Array) -> tuple[Array, Array, Array, Array]:
        """The logits as finite numbers, x_a, −log p_a, and p."""
        largest_here = largest_class(x, mesh_axis)
        loss = _row.of_pivot(x, largest_here, mesh_axis, temperature).loss
        x = keep(x, exists)
        top, x_a = entry(x, largest_here, mesh_axis), entry(x, pivot, mesh_axis)
        p = keep(jnp.exp(over(x - spread(top, x)) - spread(keep(loss, loss < jnp.inf), x)), exists)
        return x, x_a, over(top - x_a) + loss, p

    x, x_a, of_q, q = distribution(x, q_exists)
    y, y_a, of_p, p = distribution(y, p_exists)
    high, low = two_difference(x, y)
    high_a, low_a = two_difference(x_a, y_a)
    delta = keep(over((high - spread(high_a, x)) + (low - spread(low_a, x))), both)
    # q of a class that p does not have, in units of p_a / q_a.
    beyond = over(x - spread(x_a, x))
    exponents = keep(keep(delta, both, -jnp.inf), p_exists, 0.0)
    exponents = lax.select(p_exists, exponents, keep(beyond, q_exists, -jnp.inf))
    top = mesh.maximum(jnp.max(exponents, axis=-1), mesh_axis)
    bounded = jnp.minimum(exponents, _LARGEST_EXPONENT)
    p_a = spread(jnp.exp(-of_p), x)
    rest = over_classes(
        lax.select(p_exists, p * jnp.expm1(bounded), p_a * keep(jnp.exp(bounded), q_exists)),
        mesh_axis,
    )
    near = (jnp.abs(rest) < 0.5) & (top < _LARGEST_EXPONENT)
    offset = lax.select(near, jnp.log1p(keep(rest, near)), of_q - of_p)
    d = keep(finite(delta - spread(offset, x)), both)
    return _Pair(p, q, d, p_exists & ~q_exists, q_exists & ~p_exists)


@jax.custom_jvp
def above_tangent(d: Array) -> Array:
    """e^d − 1 − d, by its series near 0."""
    small = jnp.abs(d) < _SERIES_BELOW
    x = keep(d, small)
    series = lax.full_like(x, 1.0)
    for k in range(_MOST_TERMS, _FEWEST_TERMS - 1, -1):
        series = 1.0 + x / k * series
    return lax.select(small, 0.5 * x * x * series, jnp.expm1(d) - d)


@above_tangent.defjvp
def _above_tangent_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (d,), (d_dot,) = primals, tangents
    return above_tangent(d), jnp.expm1(d) * d_dot
