"""Log-probabilities and their derivatives.

Of a largest class a, the odds of the others against it are Σ_{j≠a} exp(x_j − x_a), so that neither
its log-probability, −log(1 + odds), nor 1 − p_a is formed by a subtraction. Only of a large p_a
would that lose digits: to a derivative one class is *sure*, with p_a > 0.6, or none.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool

from jaxsoftmax._xla.dtypes import PerClass, PerRow, finite, largest, two_difference, widen_apart
from jaxsoftmax._xla.masks import keep, spread

Total = Callable[[PerClass], PerRow]

# More than 1/2 by more than any rounding: of two classes that tie none is sure. Where p_a is less,
# 1 − p_a loses little more than a bit.
SURE = 0.6


def odds_of_others(top: Array, maximum: Array, others: Array) -> Array:
    """S exp(m − x_a) of m and S = Σ_{j≠a} exp(x_j − m) of the other classes."""
    gap, error = two_difference(finite(maximum), finite(top))
    return odds_of_gap(others, gap, 1.0 + error)


def odds_of_gap(others: Array, gap: Array, correction: Array) -> Array:
    """S e^gap for gap <= 0; e^gap is carried times 2⁴⁸, so that only the result underflows."""
    # A square: XLA:CPU puts in a kernel of its own what leads to an exponential that is used twice.
    return (others * 2.0**-48) * lax.square(lax.exp(0.5 * gap) * 2.0**24) * correction


def per_term(p_others: Array, others: Array) -> Array:
    """(1 − p_a) / S: the probability of a class for each unit of its term in S."""
    # S is 0 or at least 1. (Not max(S, 1), whose derivative JAX halves where S is 1.)
    return p_others / lax.max(others, np.array(0.5, others.dtype))


def log_probs(top: PerRow, excess: PerRow, logits: PerClass) -> PerClass:
    """(x_c − top) − excess, which is log(1 + odds)."""
    # max(top, −largest): a row without a class has −inf everywhere. Infinite ones share the rest.
    x = widen_apart(logits)
    # (The maximum of a NaN may be a number, but such a row's excess is NaN, too.)
    below = lax.sub(x, spread(lax.max(top, -largest(top)), x))
    # Without the barrier XLA:CPU writes short rows of `below` to memory before it subtracts.
    below = keep(below, lax.ne(x, lax.full_like(x, np.inf)))
    return lax.sub(below, spread(lax.optimization_barrier(excess), x))


def over_last(terms: PerClass) -> PerRow:
    """The sum over the classes."""
    return jnp.sum(terms, axis=-1)


def movable(logits: PerClass, moves: Bool[Array, "..."]) -> Bool[Array, "... C"]:
    """Classes whose log-probability moves: of rows that do, those that exist."""
    return (logits != -jnp.inf) & spread(moves, logits)


def tangent(
    p: PerClass, moves: Bool[Array, "... C"], v: PerClass, total: Total = over_last
) -> PerClass:
    """v_c − ⟨p, v⟩, as (v_c − v_a) + (1 − p_a) v_a − Σ_{j≠a} p_j v_j of a sure class a."""
    sure, v = p > SURE, keep(v, moves)
    # Sums of which none waits for another: one pass on an accelerator.
    of_sure, p_others = total(keep(v, sure)), total(keep(p, ~sure))
    here = spread(p_others * of_sure - total(keep(p * v, ~sure)), v)
    # Apart at the sure class, of which the transpose would form g_a − Σ_j g_j.
    elsewhere = v - spread(of_sure, v) + here
    return keep(lax.select(sure, here, elsewhere), moves)


def gradient(p: PerClass, moves: Bool[Array, "... C"], g: PerClass) -> PerClass:
    """g_c − p_c Σ_j g_j, at a sure class a as (1 − p_a) Σ_j g_j − Σ_{j≠a} g_j."""
    sure, g = p > SURE, keep(g, moves)
    of_all, of_others, p_others = over_last(g), over_last(keep(g, ~sure)), over_last(keep(p, ~sure))
    here = p_others * of_all - of_others
    return lax.select(sure, spread(here, g), g - p * spread(of_all, g))
