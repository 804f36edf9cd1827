"""Softmax and its logarithm over the last axis, each with its derivative right under it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._row.row import Row, finish, of_largest, per_term
from jaxsoftmax._row.state import (
    RowState,
    largest_class,
    like_row,
    merge,
    place,
    row_state,
    row_state_of_largest_and_terms,
    row_terms,
)
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import PerClass, finite, largest, widen, widen_apart
from jaxsoftmax._xla.forms import Arrays, Operation, Tangents, is_zero, zero
from jaxsoftmax._xla.masks import at_least, is_class, keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes

# --- softmax --------------------------------------------------------------------------------------

_softmax_here = Operation("softmax", widen)
softmax_tangent = Operation("softmax_tangent", lambda x, tangent: widen(x) + tangent)
_exponentials_here = Operation("row_exponentials", lambda x: (like_row(x), widen(x), like_row(x)))


def softmax(logits: PerClass, mesh_axis: AxisName) -> PerClass:
    """exp(x_c − m) / Σ_j exp(x_j − m); all 0 where no class exists."""
    return _softmax_here(logits) if mesh_axis is None else _over_mesh(logits, mesh_axis)


@_softmax_here.defjvp
def _softmax_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """ṗ = p (ẋ − ⟨p, ẋ⟩); 0 in a saturated row."""
    return (_softmax_here(*primals),), (softmax_tangent(*primals, widen(tangents[0])),)


@softmax_tangent.defjvp
def _tangent_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """Of p (v − ⟨p, v⟩): p (v̇ − ⟨p, v̇⟩) + ṗ (v − ⟨p, v⟩) − p ⟨ṗ, v⟩."""
    logits, v = primals

    def of_probabilities(p_dot: Array) -> Array:
        p = _softmax_here(logits)
        mean, mean_dot = (spread(jnp.sum(x * v, axis=-1), v) for x in (p, p_dot))
        return p_dot * (v - mean) - p * mean_dot

    return product_rule(softmax_tangent, primals, tangents, of_probabilities)


def product_rule(
    f: Operation, primals: Arrays, tangents: Tangents, of_probabilities: Callable[[Array], Array]
) -> tuple[Arrays, Tangents]:
    """Of f(logits, v), linear in v: f(logits, v̇), and what ṗ adds for a fixed v."""
    (logits, _), (logits_dot, v_dot) = primals, tangents
    moved = [] if is_zero(v_dot) else [f(logits, v_dot)]
    if not is_zero(logits_dot):
        moved.append(of_probabilities(softmax_tangent(logits, widen(logits_dot))))
    return (f(*primals),), (sum(moved[1:], moved[0]),)


@softmax_tangent.deftranspose
def _tangent_transpose(
    cotangents: Tangents, logits: Array, tangent: object
) -> tuple[Array | None, ...]:
    """diag(p) − p pᵀ is symmetric."""
    return None, softmax_tangent(logits, cotangents[0])


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _over_mesh(logits: PerClass, mesh_axis: AxisName) -> PerClass:
    """The classes being split over the devices."""
    here, terms, total = _exponentials_here(logits)
    rebase = jnp.exp(finite(here) - finite(mesh.maximum(here, mesh_axis)))
    total = mesh.total(total * rebase, mesh_axis)
    return terms * (rebase / at_least(total, 1.0))[..., None]


@_over_mesh.defjvp
def _over_mesh_jvp(mesh_axis: AxisName, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    p, v = _over_mesh(*primals, mesh_axis), widen(tangents[0])
    mean = spread(over_classes(p * v, mesh_axis), v)
    moves = mesh.maximum(jnp.max(primals[0], axis=-1), mesh_axis) != jnp.inf
    return p, keep(p * (v - mean), spread(moves, v))


# --- its logarithm --------------------------------------------------------------------------------

_sum_of_others = Operation("sum_of_others", lambda values, *_: like_row(values))
_spread_to_others = Operation(
    "spread_to_others", lambda values, x, _: keep(spread(values, x), x == x)
)


@_sum_of_others.defjvp
def _sum_of_others_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    return _linear(_sum_of_others, primals, tangents)


@_spread_to_others.defjvp
def _spread_to_others_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    return _linear(_spread_to_others, primals, tangents)


def _linear(f: Operation, primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """Of a function that is linear in its first argument and constant in the others."""
    values_dot, *_ = tangents
    found = f(*primals)
    moved = zero(found) if is_zero(values_dot) else f(values_dot, *primals[1:])
    return (found,), (moved,)


@_sum_of_others.deftranspose
def _sum_of_others_transpose(
    cotangents: Tangents, values: object, *others: Array
) -> tuple[Array | None, ...]:
    return _spread_to_others(cotangents[0], *others), None, None


@_spread_to_others.deftranspose
def _spread_to_others_transpose(
    cotangents: Tangents, values: object, *others: Array
) -> tuple[Array | None, ...]:
    return _sum_of_others(cotangents[0], *others), None, None


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
    if mesh_axis is None:
        *state, pivot, terms = row_state_of_largest_and_terms(logits)
    else:
        pivot = largest_class(logits, mesh_axis)
        state = row_state(logits, pivot)
        terms = row_terms(logits, pivot, state[1])
    here = RowState(*state)
    state = merge(here, pivot, logits.shape[-1], mesh_axis)
    row = finish(state, None, True)
    p_pivot, p_others, row_moves = row.probability, row.others, row.top != jnp.inf
    scale = per_term(p_others, state)
    if mesh_axis is not None:
        scale = scale * jnp.exp(finite(here.maximum) - finite(state.maximum))
    of_others = mesh.total(scale * jnp.sum(terms * logits_dot, axis=-1), mesh_axis)
    is_pivot = is_class(logits, pivot)
    of_pivot = over_classes(keep(logits_dot, is_pivot), mesh_axis)
    mean = keep(p_pivot * of_pivot + of_others, row_moves)
    at_pivot = p_others * of_pivot - of_others
    moves = _spread_to_others(row_moves, logits, pivot)
    others = keep(logits_dot, moves) + _spread_to_others(-mean, logits, pivot)
    log_probs = _relative_to(row, logits, mesh_axis)
    return log_probs, others + place(at_pivot, pivot, logits)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _relative_to(row: Row, logits: Array, mesh_axis: AxisName) -> Array:
    """log_softmax of logits whose row is known."""
    # max(top, −largest): a row without a class has −inf everywhere. Infinite ones share the rest.
    x = widen_apart(logits)
    # (The maximum of a NaN may be a number, but such a row's excess is NaN, too.)
    below = x - spread(lax.max(row.top, -largest(row.top)), x)
    # Without the barrier XLA:CPU writes short rows of `below` to memory before it subtracts.
    return keep(below, x != jnp.inf) - spread(lax.optimization_barrier(row.excess), x)


@_relative_to.defjvp
def _relative_to_jvp(
    mesh_axis: AxisName, primals: tuple[Row, Array], tangents: tuple[Row, Array]
) -> tuple[Array, Array]:
    return _log_softmax_jvp(mesh_axis, primals[1:], tangents[1:])
