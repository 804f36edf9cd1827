"""Log-probabilities and their derivatives, of rows whose largest class a is known.

With m and S = Σ_{j≠a} exp(x_j − m) of the other classes, their odds against a are S exp(m − x_a).
So neither 1 − p_a nor the log-probability of a is formed by a subtraction.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool

from jaxsoftmax._xla.dtypes import PerRow, finite, largest, two_difference, widen_apart
from jaxsoftmax._xla.masks import is_class, keep, spread


class Shares(NamedTuple):
    """How the probability of a row is divided; 0 in a saturated row, which nothing finite moves."""

    of_largest: PerRow  # p_a
    of_others: PerRow  # 1 − p_a with nothing rounded away
    per_term: PerRow  # p_j / exp(x_j − m)
    moves: Bool[Array, "..."]  # whether the row is not saturated


def shares(top: Array, maximum: Array, others: Array) -> Shares:
    """Those of a state."""
    odds, moves = odds_of_others(top, maximum, others), top != jnp.inf
    p = keep(1.0 / (1.0 + odds), moves)
    p_others = keep(odds * p, moves)
    return Shares(p, p_others, per_term(p_others, others), moves)


def per_term(p_others: Array, others: Array) -> Array:
    """(1 − p_a) / S: the probability of a class for each unit of its term in S."""
    # S is 0 or at least 1. (Not max(S, 1), whose derivative JAX halves where S is 1.)
    return p_others / lax.max(others, np.array(0.5, others.dtype))


def odds_of_others(top: Array, maximum: Array, others: Array) -> Array:
    """S exp(m − x_a)."""
    gap, error = two_difference(finite(maximum), finite(top))
    return odds_of_gap(others, gap, 1.0 + error)


def odds_of_gap(others: Array, gap: Array, correction: Array) -> Array:
    """S e^gap for gap <= 0, in two halves so that only the result underflows."""
    half = lax.exp(0.5 * gap)
    return half * (others * half) * correction


def log_probs(top: Array, excess: Array, logits: Array) -> Array:
    """(x_c − top) − excess, where logsumexp(x) is top + excess."""
    # max(top, −largest): a row without a class has −inf everywhere. Infinite ones share the rest.
    x = widen_apart(logits)
    # (The maximum of a NaN may be a number, but such a row's excess is NaN, too.)
    below = x - spread(lax.max(top, -largest(top)), x)
    # Without the barrier XLA:CPU writes short rows of `below` to memory before it subtracts.
    return keep(below, x != jnp.inf) - spread(lax.optimization_barrier(excess), x)


def tangent(
    of: Shares, v_largest: Array, mean_others: Array, logits: Array, label: Array, v: Array
) -> Array:
    """v_c − Σ_j p_j v_j, at the largest class a as (1 − p_a) v_a − Σ_{j≠a} p_j v_j.

    Of v_a and Σ_{j≠a} p_j v_j. A class that does not exist does not move.
    """
    mean = of.of_largest * v_largest + mean_others
    elsewhere = keep(v - spread(mean, v), (logits != -jnp.inf) & spread(of.moves, v))
    here = spread(of.of_others * v_largest - mean_others, v)
    return lax.select(is_class(logits, label), here, elsewhere)


def gradient(
    of: Shares,
    g_largest: Array,
    g_others: Array,
    terms: Array,
    logits: Array,
    label: Array,
    g: Array,
) -> Array:
    """g_c − p_c Σ_j g_j, at the largest class a as (1 − p_a) g_a − p_a Σ_{j≠a} g_j.

    Of g_a and Σ_{j≠a} g_j over the classes that exist, and the terms exp(x_j − m) of the others.
    """
    each = spread(of.per_term * (g_largest + g_others), g)
    elsewhere = keep(g, (logits != -jnp.inf) & spread(of.moves, g)) - terms * each
    here = spread(gradient_of_largest(of, g_largest, g_others), g)
    return lax.select(is_class(logits, label), here, elsewhere)


def gradient_of_largest(of: Shares, g_largest: Array, g_others: Array) -> Array:
    """(1 − p_a) g_a − p_a Σ_{j≠a} g_j."""
    return of.of_others * g_largest - of.of_largest * g_others
