"""How far two rows of logits lie apart: a sum of terms of one sign, however close they are.

With p of the target y, q of the logits x and d = log q − log p,

    KL(p‖q) = −Σ p d = Σ p (e^d − 1 − d)

since Σ p e^d = Σ q = 1. Each term is formed without a cancellation; d is that of `pairs`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool

from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.options import RowOptions
from jaxsoftmax._row.pairs import NEAR, Pair, above_tangent, bounded, expm1, pair_of
from jaxsoftmax._row.row import Temperature, over
from jaxsoftmax._xla import log_probs, mesh
from jaxsoftmax._xla.dtypes import PerClass, PerRow, finite, widen
from jaxsoftmax._xla.forms import Arrays, Operation, Tangents, is_zero, jvp_of
from jaxsoftmax._xla.masks import at_least, at_most, keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes
from jaxsoftmax._xla.shardings import ones_of_rows

_LARGEST_EXPONENT = 80.0  # e^80 is a float32


class _Static(NamedTuple):
    """The parameters that are no arrays."""

    beta: float
    low: float  # `Temperature.low`; t itself is an operand, one number for each row
    mesh_axis: AxisName
    wanted: tuple[bool, ...] = (False, False)  # gradients of the logits, and of the target
    moves: bool = False  # whether these are differentiated


def of_logits(logits: PerClass, target: PerClass, beta: float, options: RowOptions) -> RowLosses:
    """Every option but the weights of the examples and the reduction."""
    x, y = (_logits.capped(z, options) for z in (logits, target))
    temperature, of_rows = _logits.temperature_of(x, options), []
    if temperature is not None:
        of_rows.append(ones_of_rows(x, temperature.value.dtype) * temperature.value)
    low = 0.0 if temperature is None else temperature.low
    return RowLosses(_divergence((x, y, *of_rows), _Static(beta, low, options.axis_name))[0])


def _divergence(operands: Arrays, static: _Static) -> Arrays:
    """KL(p‖q) for beta 0, KL(q‖p) for 1, between them β KL(p‖m) + (1−β) KL(q‖m).

    Then the gradients that are wanted.
    """
    if static.mesh_axis is not None:  # perhaps an axis of vmap, which only JAX's own functions know
        return _over_mesh(operands, static)
    found = _divergence_here(*operands, static=static)
    return (found,) if isinstance(found, Array) else found


def _value_and_gradients(
    x: PerClass, y: PerClass, *temperature: PerRow, static: _Static
) -> tuple[Array, ...]:
    beta, _, mesh_axis, wanted, moves = static
    pair = pair_of(x, y, _temperature(temperature, static), mesh_axis, moves=moves)
    gradients = _gradients(pair, beta, mesh_axis) if any(wanted) else ()
    p, q, d, only_p, only_q, any_p, _ = pair.exchanged() if beta == 1.0 else pair
    if beta in (0.0, 1.0):
        terms = keep(_term(p, q, d), ~only_p, jnp.inf)
    else:
        m = beta * p + (1.0 - beta) * q
        to_p = _log_mixed(d, 1.0 - beta, only_p)  # log m − log p
        to_q = _log_mixed(-d, beta, only_q)
        terms = beta * _term(p, m, to_p) + (1.0 - beta) * _term(q, m, to_q)
    value = keep(over_classes(terms, mesh_axis), any_p)
    return value, *itertools.compress(gradients, wanted)


def _like(x: PerClass, y: PerClass, *_: PerRow, static: _Static) -> tuple[Array, ...]:
    gradient = widen(x) + widen(y)
    return jnp.sum(gradient, axis=-1), *(gradient,) * sum(static.wanted)


_divergence_here = Operation("divergence", _like, _value_and_gradients)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _over_mesh(operands: Arrays, static: _Static) -> Arrays:
    """The classes being split over the devices."""
    return _value_and_gradients(*operands, static=static)


@_divergence_here.defjvp
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
    value, *found = _divergence(primals, static._replace(wanted=tuple(needed)))
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
        f = partial(_value_and_gradients, static=static._replace(moves=True))
        _, (_, *moved) = jvp_of(f, primals, tangents)
    return (value, *results), (value_dot, *moved)


def _over_mesh_jvp(static: _Static, primals: tuple[Arrays], tangents: tuple[Tangents]) -> Any:
    return _jvp(*primals, *tangents, static=static)


_over_mesh.defjvp(_over_mesh_jvp, symbolic_zeros=True)


def _below_largest(x: PerClass, mesh_axis: AxisName) -> PerClass:
    """x_c − max x, any finite number for a class that does not exist."""
    x = bounded(x)
    top = mesh.maximum(jnp.max(lax.stop_gradient(x), axis=-1), mesh_axis)
    return finite(keep(x, x != -jnp.inf) - spread(finite(top), x))


def _temperature(of_rows: Sequence[PerRow], static: _Static) -> Temperature | None:
    return Temperature(of_rows[0], static.low) if of_rows else None


def _gradients(pair: Pair, beta: float, mesh_axis: AxisName) -> tuple[PerClass, PerClass]:
    """Those of the logits and of the target, over t; 0 for what does not exist."""
    if beta == 1.0:
        of_y, of_x = _gradients(pair.exchanged(), 0.0, mesh_axis)
        return of_x, of_y
    p, q, d, only_p, only_q, any_p, _ = pair

    def about_mean(p: PerClass, d: PerClass) -> PerClass:
        # Σ p is 1 but for rounding, which times d would be added to d − Σ p d.
        total = at_least(over_classes(p, mesh_axis), 0.5)

        def mean_of(terms: PerClass) -> PerRow:
            return over_classes(terms, mesh_axis) / total

        return p * finite(log_probs.tangent(p, p != 0.0, d, mean_of))

    if beta == 0.0:
        near = _are_near(p, d)
        of_x = keep(lax.select(near, p * expm1(keep(d, near)), q - p), ~only_p)
        of_y = -about_mean(p, d)
    else:
        of_x = -(1.0 - beta) * about_mean(q, _log_mixed(-d, beta, only_q))
        of_y = -beta * about_mean(p, _log_mixed(d, 1.0 - beta, only_p))
    weighs = spread(any_p, p)
    return keep(of_x, weighs), keep(of_y, weighs)


def _term(p: PerClass, q: PerClass, d: PerClass) -> PerClass:
    """p (e^d − 1 − d), of which p e^d is q: where d is not small, or p is 0, as q − p − p d."""
    near = _are_near(p, d)
    return lax.select(near, p * above_tangent(keep(d, near)), (q - p) - p * d)


def _are_near(p: PerClass, d: PerClass) -> Bool[Array, "... C"]:
    """Where a function of q is best had from p and d."""
    return (jnp.abs(d) < NEAR) & (p != 0.0)


def _log_mixed(d: PerClass, share: float, alone: Bool[Array, "... C"]) -> PerClass:
    """log(1 + share (e^d − 1)); where the other has no class, only what is left of this one."""
    mixed = jnp.log1p(share * jnp.expm1(at_most(d, _LARGEST_EXPONENT)))
    return keep(mixed, ~alone, math.log1p(-share))
