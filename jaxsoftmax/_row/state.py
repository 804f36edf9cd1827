"""What one pass over a row of logits leaves: its pivot's logit, and the others' maximum and sum.

A row is taken relative to one of its classes, the *pivot* k, against all the others:

    m = max_{j≠k} x_j        S = Σ_{j≠k} exp(s (x_j − m))

where s, the scale, is 1/temperature and left out where that is 1. The pivot is the label, or for
quantities of the distribution alone the largest class. It is in no sum, so that 1 − p_k is never
formed by a subtraction. m is a constant under differentiation: it cancels in every quantity below,
and S carries the derivative. (Reading it through max would split the derivative over ties and spoil
the Hessian.)

Each operation is one equation of a program; `_xla.forms` chooses its form. Over a mesh every device
has the state of its classes, and `observe` makes one of them, the same on all devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, accumulator, finite, widen
from jaxsoftmax._xla.forms import Arrays, Operation, Tangents, Zero, is_zero, zero
from jaxsoftmax._xla.masks import is_class, keep, nan_where, spread, take_along
from jaxsoftmax._xla.mesh import AxisName


class RowState(NamedTuple):
    """What one pass over the classes of a row leaves."""

    pivot_logit: PerRow  # x_k
    maximum: PerRow  # m, -inf and +inf included; a constant under differentiation
    others: PerRow  # S = Σ_{j≠k} exp(s (x_j − m)), at least 1 where others exist


def like_row(logits: Array, *of_rows: Array) -> Array:
    """A number of each row, as far as types go."""
    maximum = widen(jnp.max(logits, axis=-1))
    return maximum + sum(x.astype(maximum.dtype) for x in of_rows)


def _like_state(*arrays: Array) -> tuple[Array, Array, Array]:
    return (like_row(*arrays),) * 3


def _like_terms(logits: Array, pivot: Array, *_: Array) -> Array:
    return widen(logits) + pivot[..., None].astype(accumulator(logits.dtype))


# --- the state, and its terms ---------------------------------------------------------------------

row_state = Operation("row_state", _like_state)
row_state_and_terms = Operation(
    "row_state_and_terms", lambda *arrays: (*_like_state(*arrays), _like_terms(*arrays))
)


@row_state_and_terms.defjvp
def _state_and_terms_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    *state, terms = row_state_and_terms(*primals)
    return (*state, terms), _state_and_terms_dot(primals, state, terms, tangents)


def _state_and_terms_dot(
    primals: Arrays, state: Sequence[Array], terms: Array, tangents: Tangents
) -> Tangents:
    """ẋ_k, where x_k is a number that can move; Ṡ = Σ_{j≠k} exp(s (x_j − m)) · (s (x_j − m))˙."""
    logits, pivot, *scale = primals
    x_dot, _, *scale_dot = tangents
    pivot_dot: Array | Zero = zero(state[0])
    if not is_zero(x_dot):
        # One upcast for all terms: in reverse mode they are then added in float32 and rounded once.
        x_dot = widen(x_dot)
        # A masked sum, whose transpose is a select that fuses with what is added to it.
        of_pivot = jnp.sum(keep(x_dot, is_class(logits, pivot)), axis=-1)
        pivot_dot = keep(of_pivot, jnp.abs(state[0]) != jnp.inf)
    terms_dot = terms * _exponent_dot(logits, state[1], scale, (x_dot, *scale_dot))
    return pivot_dot, zero(state[1]), jnp.sum(terms_dot, axis=-1), terms_dot


def _exponent_dot(
    logits: Array, maximum: Array, scale: Sequence[Array], tangents: Tangents
) -> Array:
    """The tangent of s (x_j − m): s ẋ_j + ṡ (x_j − m)."""
    x_dot, *scale_dot = tangents
    parts = []
    if not is_zero(x_dot):
        x_dot = widen(x_dot)
        parts.append(x_dot * spread(scale[0], x_dot) if scale else x_dot)
    if scale and not is_zero(scale_dot[0]):
        x = widen(logits)
        # The pivot may lie above m, by any number: its term is 0.
        below = keep(x, lax.is_finite(x)) - spread(finite(maximum), x)
        below = keep(below, lax.is_finite(x) & (below <= 0.0))
        parts.append(below * spread(scale_dot[0], x))
    return sum(parts[1:], parts[0])


@row_state.defjvp
def _state_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    state, state_dot = _state_and_terms_jvp(primals, tangents)
    return state[:3], state_dot[:3]


def observe(
    logits: PerClass, pivot: Index, mesh_axis: AxisName, scale: PerRow | None = None
) -> RowState:
    """The state of each row over all shards; a pivot that is no class makes it NaN."""
    here = RowState(*row_state(logits, pivot, *(() if scale is None else (scale,))))
    if mesh_axis is None:
        return here._replace(pivot_logit=mesh.nan_if_nowhere(here.pivot_logit, pivot))
    # The shards' states are merged: each sum is brought to the largest maximum, and added.
    pivot_logit = mesh.from_owner(here.pivot_logit, pivot, logits.shape[-1], mesh_axis)
    maximum = mesh.maximum(here.maximum, mesh_axis)
    below = keep(finite(here.maximum) - finite(maximum), here.maximum != -jnp.inf)
    rebased = here.others * jnp.exp(below if scale is None else below * scale)
    return RowState(pivot_logit, maximum, mesh.total(rebased, mesh_axis))


# --- the largest class against all the others -----------------------------------------------------

_odds_here = Operation("largest_and_odds", lambda x: (like_row(x),) * 2)


def largest_and_odds(logits: PerClass, mesh_axis: AxisName) -> tuple[PerRow, PerRow]:
    """The largest logit x_a of each row over all shards, and Σ_{j≠a} exp(x_j − x_a)."""
    here, odds = _odds_here(logits)
    if mesh_axis is None:
        return here, odds
    top = mesh.maximum(here, mesh_axis)
    leads = here == top
    rebased = keep((1.0 + odds) * jnp.exp(finite(here) - finite(top)), here != -jnp.inf)
    ties = mesh.total(leads.astype(odds.dtype), mesh_axis) - 1.0
    return top, ties + mesh.total(lax.select(leads, odds, rebased), mesh_axis)


log1p = Operation("log1p", lambda odds: odds, cpu_on_mesh=True)  # of odds, never differentiated


# --- one class of a row ---------------------------------------------------------------------------

_largest_here = Operation("largest_class", lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32))


@_largest_here.defjvp
def _largest_here_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    label = _largest_here(*primals)
    return (label,), (zero(label),)


def largest_class(logits: PerClass, mesh_axis: AxisName = None) -> Index:
    """The first class with the largest logit, as a label of this shard; int32."""
    here = _largest_here(logits)
    if mesh_axis is None:  # no maximum is wanted
        return here
    return mesh.first_owner(here, jnp.max(logits, axis=-1), mesh_axis)


_entry_here = Operation("entry", like_row)


@_entry_here.defjvp
def _entry_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """A masked sum, whose transpose fuses, where a gather's is a scatter into an array of zeros."""
    logits, label = primals
    found = _entry_here(logits, label)
    if is_zero(tangents[0]):
        return (found,), (zero(found),)
    # A label that is no class makes the gradient of its row NaN, as it makes the loss.
    nowhere = label == mesh.NOWHERE
    here = is_class(logits, label) | nowhere[..., None]
    tangent = jnp.sum(keep(widen(tangents[0]), here), axis=-1)
    return (found,), (tangent * nan_where(nowhere, lax.full_like(tangent, 1.0)),)


def entry(logits: PerClass, label: Index, mesh_axis: AxisName) -> Array:
    """x_label of each row on every shard, NaN for a label that is no class."""
    return mesh.from_owner(_entry_here(logits, label), label, logits.shape[-1], mesh_axis)


def entries(logits: PerClass, labels: Index, mesh_axis: AxisName) -> Array:
    """x of several labels [..., K] of each row on every shard, NaN for one that is no class."""
    classes = logits.shape[-1]
    found = widen(take_along(logits, jnp.minimum(labels, classes - 1)))
    return mesh.from_owner(found, labels, classes, mesh_axis)
