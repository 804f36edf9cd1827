"""A finished row: everything that a loss needs to know of it.

    odds = S exp((m − x_k)/t)        −log p_k = log(1 + odds)        1 − p_k = odds / (1 + odds)

with the temperature t, which divides differences of logits and no logit.

Small losses are not rounded to zero: p_k is never formed before it is subtracted from 1, and the
sum leaves out the pivot's exp(0) = 1, beside which 1e-8 would be rounded away.

A class that does not exist has logit −inf. A row that holds +inf is saturated: its probability is
on the infinite classes, in equal parts, and nothing finite changes it: its gradient is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxsoftmax._row.state import RowState, log1p, observe
from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, finite, two_difference, two_product
from jaxsoftmax._xla.log_probs import odds_of_gap, per_term
from jaxsoftmax._xla.masks import at_least, keep
from jaxsoftmax._xla.mesh import AxisName
from jaxsoftmax._xla.shardings import ones_of_rows


class Temperature(NamedTuple):
    """What divides the logits."""

    value: Float[Array, "..."]  # t, of all rows or of each
    low: float = 0.0  # what a Python number is more than t


class Row(NamedTuple):
    """A finished row."""

    loss: PerRow  # −log p_k
    excess: PerRow  # logsumexp(x/t) − top/t, between 0 and log C
    top: PerRow  # max_j x_j, ±inf included; a constant under differentiation
    probability: PerRow  # p_k
    others: PerRow  # 1 − p_k with nothing rounded away; 0 in a saturated row


class Observed(NamedTuple):
    """A finished row, and what it was made of."""

    logits: PerClass  # capped, excluded ones at −inf
    row: Row
    pivot: Index
    temperature: Temperature | None
    mesh_axis: AxisName


def of_pivot(
    logits: PerClass, pivot: Index, mesh_axis: AxisName, temperature: Temperature | None = None
) -> Observed:
    """The row relative to a class of its own."""
    scale = None
    if temperature is not None:
        scale = ones_of_rows(logits, temperature.value.dtype) / temperature.value
    row = finish(observe(logits, pivot, mesh_axis, scale), temperature)
    return Observed(logits, row, pivot, temperature, mesh_axis)


@jax.custom_jvp
def finish(state: RowState, temperature: Temperature | None) -> Row:
    """The row of a state."""
    # In functions of `lax`, which JAX traces in a third of an operator's time.
    gap, error = _gap(state, temperature)
    zero, one = lax.full_like(gap, 0.0), lax.full_like(gap, 1.0)
    infinite, absent = lax.full_like(gap, jnp.inf), lax.full_like(gap, -jnp.inf)
    top, exists = lax.max(state.pivot_logit, state.maximum), lax.ne(state.pivot_logit, absent)
    below_infinity, saturated = lax.lt(state.pivot_logit, infinite), lax.eq(state.maximum, infinite)
    possible = exists & ~(below_infinity & saturated)
    gap = lax.select(below_infinity | saturated, gap, absent)
    # Where another class leads, S >= 1: odds of the pivot against the others, both exact.
    leads = lax.le(gap, zero)
    most = at_least(state.others, 1.0)
    odds = odds_of_gap(
        lax.select(leads, state.others, lax.div(one, most)),
        lax.neg(lax.abs(gap)),
        lax.add(one, lax.select(leads, error, lax.neg(error))),
    )
    excess = lax.add(lax.select(leads, zero, lax.log(most)), log1p(odds))
    loss = lax.select(leads, excess, lax.add(gap, lax.add(error, excess)))
    larger = lax.div(one, lax.add(one, odds))
    smaller = lax.mul(odds, larger)
    others = lax.select(exists, lax.select(leads, smaller, larger), one)
    return Row(
        lax.select(possible, loss, infinite),
        lax.select(lax.ne(top, absent), excess, zero),
        top,
        lax.select(possible, lax.select(leads, larger, smaller), zero),
        lax.select(lax.ne(top, infinite), others, zero),
    )


def _gap(state: RowState, temperature: Temperature | None) -> tuple[Array, Array]:
    """(m − x_k)/t and its rounding error: at 64 half an ulp is 4e-6, and e^gap inherits it."""
    gap, error = two_difference(finite(state.maximum), finite(state.pivot_logit))
    if temperature is None:
        return gap, error
    t, low = temperature
    quotient = finite(gap / t)
    # Where e^gap is 0 or infinite its digits do not count, and here they might overflow.
    ordinary = (lax.abs(quotient) < 1e6) & (t < 1e30)
    within = keep(quotient, ordinary)
    product, below = two_product(within, keep(t, t < 1e30, 1.0))
    error = (gap - product) - below + (error - within * low)
    return quotient, keep(error / t, ordinary)


@finish.defjvp
def _finish_jvp(
    primals: tuple[RowState, Temperature | None],
    tangents: tuple[RowState, Temperature | None],
) -> tuple[Row, Row]:
    """ℓ̇ = Σ_{j≠k} p_j ẋ_j − (1 − p_k) ẋ_k, and Σ_j p_j ẋ_j for the logsumexp; with t, all over t.

    And the gap's own −(m − x_k) ṫ/t², of which the loss has 1 − p_k. The logsumexp, less top/t, has
    as much where x_k is the top, and −p_k where m is.
    """
    (state, temperature), (state_dot, temperature_dot) = primals, tangents
    row = finish(state, temperature)
    p_pivot, p_others = row.probability, row.others
    of_others = per_term(p_others, state.others) * state_dot.others  # Σ_{j≠k} p_j ẋ_j
    pivot_dot = over(state_dot.pivot_logit, temperature)
    loss = of_others - p_others * pivot_dot
    excess = of_others + p_pivot * pivot_dot
    if temperature is not None and temperature_dot is not None:
        moves = lax.is_finite(state.pivot_logit) & lax.is_finite(state.maximum)
        gap = keep(_gap(state, temperature)[0], moves)
        step = -temperature_dot.value / temperature.value
        loss += p_others * gap * step
        # The top is a constant of the excess. Where it is x_k, (x_k − top)/t moves, of order 2.
        pivot = keep(state.pivot_logit, moves)
        above = over(pivot - lax.stop_gradient(pivot), temperature)
        leads = p_others * (gap + above) + p_pivot * above
        excess += lax.select(gap <= 0.0, leads, -p_pivot * gap) * step
    others = p_pivot * loss
    return row, Row(loss, excess, jnp.zeros_like(row.top), -others, others)


def logsumexp(row: Row, temperature: Temperature | None = None) -> PerRow:
    """log Σ_j exp(x_j/t) of each row."""
    return over(row.top, temperature) + row.excess


def over(x: Array, temperature: Temperature | None) -> Array:
    """x/t."""
    if temperature is None:
        return x
    t = temperature.value
    return x / (t if t.ndim in (0, x.ndim) else t[..., None])


def against_zero(logits: PerRow) -> PerRow:
    """−log σ(x): the two-class row [x, 0] relative to its first class."""
    zero = jnp.zeros_like(logits)
    return finish(RowState(logits, zero, zero + 1.0), None).loss
