"""A finished row: everything that a loss needs to know of it.

    gap = m + log S − x_k        −log p_k = log(1 + exp(gap))        1 − p_k = −expm1(log p_k)

Small losses are not rounded to zero: p_k is never formed before it is subtracted from 1, and the
sum leaves out the pivot's exp(0) = 1, beside which 1e-8 would be rounded away. With the largest
class for the pivot this is the log-sum-exp that adds the maximum by log1p (Blanchard, Higham and
Higham, IMA J. Numer. Anal. 41(4), 2021).

A class that does not exist has logit −inf. A row that holds +inf is saturated: its probability is
on the infinite classes, in equal parts, and nothing finite changes it: its gradient is 0.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool

from jaxsoftmax._row.state import (
    RowState,
    largest_class,
    merge,
    observe,
    row_state,
    row_state_of_largest,
)
from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, finite, two_difference
from jaxsoftmax._xla.masks import keep
from jaxsoftmax._xla.mesh import AxisName


class Row(NamedTuple):
    """A finished row."""

    loss: PerRow  # −log p_k
    excess: PerRow  # logsumexp(x) − top, between 0 and log C
    top: PerRow  # max_j x_j, ±inf included; a constant under differentiation


def of_pivot(logits: PerClass, pivot: Index, mesh_axis: AxisName) -> Row:
    """The row relative to a class of its own."""
    return finish(observe(logits, pivot, mesh_axis), False)


def of_largest(logits: PerClass, mesh_axis: AxisName) -> Row:
    """The row relative to its largest class: for quantities of the distribution alone."""
    if mesh_axis is None:
        return finish(RowState(*row_state_of_largest(logits)), True)
    pivot = largest_class(logits, mesh_axis)
    here = RowState(*row_state(logits, pivot))
    return finish(merge(here, pivot, logits.shape[-1], mesh_axis), True)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def finish(state: RowState, pivot_is_largest: bool) -> Row:
    """−log p_k, logsumexp(x) − max(x) and max(x) of each row."""
    # The difference of two logits rounds, too: at 64 half an ulp is 4e-6, and e^gap inherits it.
    gap, error = two_difference(finite(state.maximum), finite(state.pivot_logit))
    if pivot_is_largest:
        ahead = _log_odds(state.others, gap, error)
        return Row(ahead, ahead, state.pivot_logit)
    gap = keep(gap, (state.pivot_logit < jnp.inf) | (state.maximum == jnp.inf), -jnp.inf)
    ahead = _log_odds(state.others, jnp.minimum(gap, 0.0), error)
    # Another class leads: then S >= 1, and log(S + e^-gap) is what logsumexp lies above it.
    above = jnp.log(jnp.maximum(state.others, 1.0) + jnp.exp(-jnp.maximum(gap, 0.0)))
    pivot_leads = gap <= 0.0
    loss = lax.select(pivot_leads, ahead, gap + (error + above))
    beside_infinity = (state.maximum == jnp.inf) & (state.pivot_logit < jnp.inf)
    impossible = beside_infinity | (state.pivot_logit == -jnp.inf)
    excess = lax.select(pivot_leads, ahead, above)
    top = jnp.maximum(state.pivot_logit, state.maximum)
    return Row(keep(loss, ~impossible, jnp.inf), keep(excess, top != -jnp.inf), top)


def _log_odds(others: Array, gap: Array, error: Array) -> Array:
    """log(1 + S e^gap) for gap <= 0, in two halves so that only the result underflows."""
    half = jnp.exp(0.5 * gap)
    return jnp.log1p(half * (others * half) * (1.0 + error))


@finish.defjvp
def _finish_jvp(
    pivot_is_largest: bool, primals: tuple[RowState], tangents: tuple[RowState]
) -> tuple[Row, Row]:
    """ℓ̇ = Σ_{j≠k} p_j ẋ_j − (1 − p_k) ẋ_k, and Σ_j p_j ẋ_j for the logsumexp."""
    (state,), (tangent,) = primals, tangents
    row = finish(state, pivot_is_largest)
    p_pivot, p_others, _ = pivot_probability(row)
    of_others = per_term(p_others, state) * tangent.others  # Σ_{j≠k} p_j ẋ_j
    loss = of_others - p_others * tangent.pivot_logit
    excess = of_others + p_pivot * tangent.pivot_logit
    return row, Row(loss, excess, jnp.zeros_like(row.top))


def pivot_probability(row: Row) -> tuple[PerRow, PerRow, Bool[Array, "..."]]:
    """p_k; 1 − p_k with nothing rounded away; and whether the row can move.

    In a saturated row it cannot: 1 − p_k is 0, and an infinite pivot has no tangent.
    """
    moves = row.top != jnp.inf
    return jnp.exp(-row.loss), -jnp.expm1(-keep(row.loss, moves)), moves


def per_term(p_others: PerRow, state: RowState) -> PerRow:
    """(1 − p_k) / S: the probability of a class for each unit of its term in S."""
    # S is 0 or at least 1. (Not max(S, 1), whose derivative JAX halves where S is 1.)
    return p_others / jnp.maximum(state.others, 0.5)


def logsumexp(row: Row) -> PerRow:
    """log Σ_j exp(x_j) of each row."""
    return row.top + row.excess


def against_zero(logits: PerRow) -> PerRow:
    """−log σ(x): the two-class row [x, 0] relative to its first class."""
    zero = jnp.zeros_like(logits)
    return finish(RowState(logits, zero, zero + 1.0), False).loss
