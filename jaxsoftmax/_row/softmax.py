"""Softmax and its logarithm over the last axis, each with its derivative right under it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._row.row import Row, finish, of_largest, per_term, pivot_probability
from jaxsoftmax._row.state import (
    RowState,
    largest_class,
    like_row,
    merge,
    place,
    row_state,
    row_terms,
)
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import PerClass, finite, largest, widen, widen_apart
from jaxsoftmax._xla.forms import Arrays, Operation
from jaxsoftmax._xla.masks import is_class, keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes

row_exponentials = Operation("row_exponentials", lambda x: (like_row(x), widen(x), like_row(x)))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(logits: PerClass, mesh_axis: AxisName) -> PerClass:
    """exp(x_c − m) / Σ_j exp(x_j − m); all 0 where no class exists."""
    _, terms, total = _exponentials(logits, mesh_axis)
    return _normalized(logits, terms, total, mesh_axis)


@softmax.defjvp
def _softmax_jvp(mesh_axis: AxisName, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    """ṗ = p (ẋ − ⟨p, ẋ⟩); 0 in a saturated row."""
    (logits,), (logits_dot,) = primals, tangents
    logits_dot = widen(logits_dot)
    maximum, terms, total = _exponentials(lax.stop_gradient(logits), mesh_axis)
    p = _normalized(logits, terms, total, mesh_axis)
    mean = over_classes(p * logits_dot, mesh_axis)
    moves = keep(lax.full_like(maximum, 1.0), maximum != jnp.inf)
    return p, p * (logits_dot - mean[..., None]) * moves[..., None]


def _exponentials(logits: Array, mesh_axis: AxisName) -> tuple[Array, Array, Array]:
    """m, exp(x_c − m) and Σ_j exp(x_j − m) with m the maximum over all shards."""
    here, terms, total = row_exponentials(logits)
    if mesh_axis is None:
        return here, terms, total
    maximum = mesh.maximum(here, mesh_axis)
    rebase = jnp.exp(finite(here) - finite(maximum))
    return maximum, terms * rebase[..., None], mesh.total(total * rebase, mesh_axis)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalized(logits: Array, terms: Array, total: Array, mesh_axis: AxisName) -> Array:
    """Softmax of logits whose exponentials are known."""
    # A row without a class has terms 0 and total 0; where a class exists the total is at least 1.
    return terms / jnp.maximum(total, 1.0)[..., None]


@_normalized.defjvp
def _normalized_jvp(mesh_axis: AxisName, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    return _softmax_jvp(mesh_axis, primals[:1], tangents[:1])


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax(logits: PerClass, mesh_axis: AxisName) -> PerClass:
    """−(top − x_c) − log(Σ_j exp(x_j − top))."""
    return _relative_to(of_largest(logits, mesh_axis), logits, mesh_axis)


@log_softmax.defjvp
def _log_softmax_jvp(mesh_axis: AxisName, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    """∂ log p_c = ẋ_c − Σ_j p_j ẋ_j, at the largest class a as (1 − p_a) ẋ_a − Σ_{j≠a} p_j ẋ_j.

    1 − p_a is the sum of the others with nothing rounded away, so that the gradient at a is exact,
    too. Classes that do not exist do not move, nor does any class beside one at +inf.
    """
    (logits,), (logits_dot,) = primals, tangents
    logits_dot = widen(logits_dot)
    pivot = largest_class(logits, mesh_axis)
    here = RowState(*row_state(logits, pivot))
    terms = row_terms(logits, pivot, here.maximum)
    state = merge(here, pivot, logits.shape[-1], mesh_axis)
    row = finish(state, None, True)
    p_pivot, p_others, row_moves = pivot_probability(row)
    scale = per_term(p_others, state)
    if mesh_axis is not None:
        scale = scale * jnp.exp(finite(here.maximum) - finite(state.maximum))
    of_others = mesh.total(scale * jnp.sum(terms * logits_dot, axis=-1), mesh_axis)
    is_pivot = is_class(logits, pivot)
    zeros = lax.full_like(logits_dot, 0.0)
    of_pivot = over_classes(lax.select(is_pivot, logits_dot, zeros), mesh_axis)
    moves = (logits != -jnp.inf) & ~is_pivot & spread(row_moves, logits)
    others = logits_dot - spread(p_pivot * of_pivot + of_others, logits)
    at_pivot = p_others * of_pivot - of_others
    log_probs = _relative_to(row, logits, mesh_axis)
    return log_probs, lax.select(moves, others, zeros) + place(at_pivot, pivot, logits)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _relative_to(row: Row, logits: Array, mesh_axis: AxisName) -> Array:
    """log_softmax of logits whose row is known."""
    # max(top, −largest): a row without a class has −inf everywhere. Infinite ones share the rest.
    x = widen_apart(logits)
    below = x - spread(jnp.maximum(row.top, -largest(row.top)), x)
    return keep(below, x != jnp.inf) - spread(row.excess, x)


@_relative_to.defjvp
def _relative_to_jvp(
    mesh_axis: AxisName, primals: tuple[Row, Array], tangents: tuple[Row, Array]
) -> tuple[Array, Array]:
    return _log_softmax_jvp(mesh_axis, primals[1:], tangents[1:])
