"""Softmax and its logarithm over the last axis, each with its derivative right under it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax._row.state import largest_and_odds, like_row, log1p
from jaxsoftmax._xla import log_probs, mesh
from jaxsoftmax._xla.dtypes import PerClass, finite, widen
from jaxsoftmax._xla.forms import Arrays, Operation, Tangents, is_zero
from jaxsoftmax._xla.masks import at_least, keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes

# --- softmax --------------------------------------------------------------------------------------

_softmax_here = Operation("softmax", lambda x: x)
softmax_tangent = Operation("softmax_tangent", lambda x, tangent: widen(x) + tangent)
_exponentials_here = Operation("row_exponentials", lambda x: (like_row(x), widen(x), like_row(x)))


def softmax(logits: PerClass, mesh_axis: AxisName) -> PerClass:
    """exp(x_c − m) / Σ_j exp(x_j − m) in the logits' dtype; all 0 where no class exists."""
    if mesh_axis is None:
        return _softmax_here(logits)
    return over_mesh(logits, mesh_axis).astype(logits.dtype)


@_softmax_here.defjvp
def _softmax_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """ṗ = p (ẋ − ⟨p, ẋ⟩); 0 in a saturated row."""
    p_dot = softmax_tangent(*primals, widen(tangents[0]))
    return (_softmax_here(*primals),), (p_dot.astype(primals[0].dtype),)


@softmax_tangent.defjvp
def _tangent_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """Of p (v − ⟨p, v⟩): p (v̇ − ⟨p, v̇⟩) + ṗ (v − ⟨p, v⟩) − p ⟨ṗ, v⟩."""
    logits, v = primals

    def of_probabilities(p_dot: Array) -> Array:
        p = _softmax_here(widen(logits))
        mean, mean_dot = (spread(jnp.sum(x * v, axis=-1), v) for x in (p, p_dot))
        return p_dot * (v - mean) - p * mean_dot

    return product_rule(softmax_tangent, primals, tangents, of_probabilities)


def product_rule(
    f: Operation,
    primals: Arrays,
    tangents: Tangents,
    of_probabilities: Callable[[Array], Array],
    tangent: Callable[[Array, Array], Array] = softmax_tangent,
) -> tuple[Arrays, Tangents]:
    """Of f(logits, v), linear in v: f(logits, v̇), and what ṗ adds for a fixed v."""
    (logits, _), (logits_dot, v_dot) = primals, tangents
    moved = [] if is_zero(v_dot) else [f(logits, v_dot)]
    if not is_zero(logits_dot):
        moved.append(of_probabilities(tangent(logits, widen(logits_dot))))
    return (f(*primals),), (sum(moved[1:], moved[0]),)


def transpose_each_other(f: Operation, g: Operation) -> None:
    """The rules of two functions of logits and v that are linear in v."""
    for of, transpose in ((f, g), (g, f)):
        of.deftranspose(lambda v_bar, x, _, transpose=transpose: (None, transpose(x, v_bar[0])))


transpose_each_other(softmax_tangent, softmax_tangent)  # diag(p) − p pᵀ is symmetric


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def over_mesh(logits: PerClass, mesh_axis: AxisName) -> PerClass:
    """The same in the accumulator's dtype, the classes being split over the devices."""
    here, terms, total = _exponentials_here(logits)
    rebase = jnp.exp(finite(here) - finite(mesh.maximum(here, mesh_axis)))
    total = mesh.total(total * rebase, mesh_axis)
    return terms * (rebase / at_least(total, 1.0))[..., None]


@over_mesh.defjvp
def _over_mesh_jvp(mesh_axis: AxisName, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    p, v = over_mesh(*primals, mesh_axis), widen(tangents[0])
    mean = spread(over_classes(p * v, mesh_axis), v)
    moves = mesh.maximum(jnp.max(primals[0], axis=-1), mesh_axis) != jnp.inf
    return p, keep(p * (v - mean), spread(moves, v))


# --- its logarithm --------------------------------------------------------------------------------

_log_softmax_here = Operation("log_softmax", widen)
log_softmax_tangent = Operation("log_softmax_tangent", lambda x, tangent: widen(x) + tangent)
log_softmax_gradient = Operation("log_softmax_gradient", lambda x, g: widen(x) + g)


def log_softmax(logits: PerClass, mesh_axis: AxisName) -> PerClass:
    """−(top − x_c) − log(Σ_j exp(x_j − top))."""
    return _log_softmax_here(logits) if mesh_axis is None else _log_over_mesh(logits, mesh_axis)


@_log_softmax_here.defjvp
def _log_softmax_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """∂ log p_c = ẋ_c − ⟨p, ẋ⟩; 0 for a class that does not exist, and in a saturated row."""
    return (_log_softmax_here(*primals),), (log_softmax_tangent(*primals, widen(tangents[0])),)


@log_softmax_tangent.defjvp
def _log_tangent_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """Of v_c − ⟨p, v⟩: v̇_c − ⟨p, v̇⟩ − ⟨ṗ, v⟩."""
    logits, v = primals

    def of_probabilities(p_dot: Array) -> Array:
        return keep(spread(-jnp.sum(p_dot * v, axis=-1), v), logits != -jnp.inf)

    return product_rule(log_softmax_tangent, primals, tangents, of_probabilities, _exact_tangent)


@log_softmax_gradient.defjvp
def _log_gradient_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """Of g_c − p_c Σ_j g_j: ġ_c − p_c Σ_j ġ_j − ṗ_c Σ_j g_j."""
    logits, g = primals

    def of_probabilities(p_dot: Array) -> Array:
        return p_dot * spread(-jnp.sum(keep(g, logits != -jnp.inf), axis=-1), g)

    return product_rule(log_softmax_gradient, primals, tangents, of_probabilities, _exact_tangent)


def _exact_tangent(logits: Array, logits_dot: Array) -> Array:
    """ṗ = p (log p)˙, which keeps its digits at the largest class as softmax's own does not."""
    return _softmax_here(widen(logits)) * log_softmax_tangent(logits, logits_dot)


transpose_each_other(log_softmax_tangent, log_softmax_gradient)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _log_over_mesh(logits: PerClass, mesh_axis: AxisName) -> PerClass:
    """The classes being split over the devices."""
    top, odds = largest_and_odds(logits, mesh_axis)
    return log_probs.log_probs(top, log1p(odds), logits)


@_log_over_mesh.defjvp
def _log_over_mesh_jvp(
    mesh_axis: AxisName, primals: Arrays, tangents: Arrays
) -> tuple[Array, Array]:
    (logits,), (v,) = primals, tangents
    p, top = over_mesh(logits, mesh_axis), mesh.maximum(jnp.max(logits, axis=-1), mesh_axis)
    moves = (top != jnp.inf) | jnp.isnan(jnp.sum(p, axis=-1))  # a NaN stays one
    total = partial(over_classes, axis_name=mesh_axis)
    tangent = log_probs.tangent(p, log_probs.movable(logits, moves), widen(v), total)
    return _log_over_mesh(logits, mesh_axis), tangent
