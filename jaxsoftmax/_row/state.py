"""What one pass over a row of logits leaves: its pivot's logit, and the others' maximum and sum.

A row is taken relative to one of its classes, the *pivot* k, against all the others:

    m = max_{j≠k} x_j        S = Σ_{j≠k} exp(x_j − m)

The pivot is the label, or for quantities of the distribution alone the largest class. It is in no
sum, so that 1 − p_k is never formed by a subtraction. m is a constant under differentiation: it
cancels in every quantity below, and S carries the derivative. (Reading it through max would split
the derivative over ties and spoil the Hessian.)

Each operation is one equation of a program; `_xla.forms` chooses its form. Over a mesh every device
has the state of its classes, and `merge` makes one of them, the same on all devices.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, Size, accumulator, finite, widen
from jaxsoftmax._xla.forms import Arrays, Operation, Tangents, is_zero, zero
from jaxsoftmax._xla.masks import is_class, keep
from jaxsoftmax._xla.mesh import AxisName


class RowState(NamedTuple):
    """What one pass over the classes of a row leaves."""

    pivot_logit: PerRow  # x_k
    maximum: PerRow  # m, -inf and +inf included; a constant under differentiation
    others: PerRow  # S = Σ_{j≠k} exp(x_j − m), at least 1 where others exist


def like_row(logits: Array, *pivot: Array) -> Array:
    """A number of each row, as far as types go."""
    maximum = widen(jnp.max(logits, axis=-1))
    return maximum + sum(k.astype(maximum.dtype) for k in pivot)


def _like_state(*arrays: Array) -> tuple[Array, Array, Array]:
    return (like_row(*arrays),) * 3


def _like_terms(logits: Array, pivot: Array, *_: Array) -> Array:
    return widen(logits) + pivot[..., None].astype(accumulator(logits.dtype))


# --- the state, and its terms ---------------------------------------------------------------------

row_state = Operation("row_state", _like_state)
row_state_of_largest = Operation("row_state_of_largest", _like_state)
row_terms = Operation("row_terms", _like_terms)
row_state_and_terms = Operation(
    "row_state_and_terms", lambda x, k: (*_like_state(x, k), _like_terms(x, k))
)


@row_state_and_terms.defjvp
def _state_and_terms_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """ẋ_k, where x_k is a number that can move; Ṡ = Σ_{j≠k} exp(x_j − m) ẋ_j."""
    logits, pivot = primals
    if logits.dtype == accumulator(logits.dtype):
        *state, terms = row_state_and_terms(logits, pivot)
    else:  # the gradient is no array of terms: each pass makes its own
        state = row_state(logits, pivot)
        terms = row_terms(logits, pivot, state[1])
    # One upcast for all terms: in reverse mode they are then added in float32 and rounded once.
    x_dot = widen(tangents[0])
    # A masked sum, whose transpose is a select that fuses with what is added to it.
    pivot_dot = jnp.sum(keep(x_dot, is_class(logits, pivot)), axis=-1)
    pivot_dot = keep(pivot_dot, jnp.abs(state[0]) != jnp.inf)
    terms_dot = terms * x_dot
    others_dot = jnp.sum(terms_dot, axis=-1)
    return (*state, terms), (pivot_dot, zero(state[1]), others_dot, terms_dot)


@row_state.defjvp
def _state_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    state, state_dot = _state_and_terms_jvp(primals, tangents)
    return state[:3], state_dot[:3]


@row_state_of_largest.defjvp
def _state_of_largest_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    return _state_jvp((*primals, largest_class(*primals)), tangents)


@row_terms.defjvp
def _row_terms_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    terms = row_terms(*primals)
    return (terms,), (zero(terms) if is_zero(tangents[0]) else terms * widen(tangents[0]),)


def observe(logits: PerClass, pivot: Index, mesh_axis: AxisName) -> RowState:
    """The state of each row over all shards; a pivot that is no class makes it NaN."""
    here = RowState(*row_state(logits, pivot))
    if mesh_axis is None:
        here = here._replace(pivot_logit=mesh.nan_if_nowhere(here.pivot_logit, pivot))
    return merge(here, pivot, logits.shape[-1], mesh_axis)


def merge(here: RowState, pivot: Index, classes: Size, mesh_axis: AxisName) -> RowState:
    """The state of a row of which each shard has observed so many classes."""
    if mesh_axis is None:
        return here
    pivot_logit = mesh.from_owner(here.pivot_logit, pivot, classes, mesh_axis)
    maximum = mesh.maximum(here.maximum, mesh_axis)
    rebased = here.others * jnp.exp(finite(here.maximum) - finite(maximum))
    return RowState(pivot_logit, maximum, mesh.total(rebased, mesh_axis))


# --- one class of a row ---------------------------------------------------------------------------

_largest_here = Operation("largest_class", lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32))


@_largest_here.defjvp
def _largest_here_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    label = _largest_here(*primals)
    return (label,), (zero(label),)


def largest_class(logits: PerClass, mesh_axis: AxisName = None) -> Index:
    """The first class with the largest logit, as a label of this shard; int32."""
    here = _largest_here(logits)
    if mesh_axis is None:
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
    return (found,), (tangent * keep(lax.full_like(tangent, 1.0), ~nowhere, jnp.nan),)


def entry(logits: PerClass, label: Index, mesh_axis: AxisName) -> Array:
    """x_label of each row on every shard, NaN for a label that is no class."""
    return mesh.from_owner(_entry_here(logits, label), label, logits.shape[-1], mesh_axis)


place = Operation("place", lambda values, _, like: like.astype(values.dtype) + values[..., None])


@place.defjvp
def _place_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    values, label, like = primals
    placed = place(values, label, like)
    moved = zero(placed) if is_zero(tangents[0]) else place(tangents[0], label, like)
    return (placed,), (moved,)


@place.deftranspose
def _place_transpose(
    cotangents: Tangents, values: object, label: Array, like: Array
) -> tuple[Array | None, ...]:
    """By index: in the gradient of log_softmax a masked sum takes twice as long on the CPU.

    (JAX 0.12, 1024 x 32000 float32: 110 ms, with a gather 61.)
    """
    return _entry_here(cotangents[0], label), None, None
