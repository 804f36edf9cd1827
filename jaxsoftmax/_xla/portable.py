"""Rows of logits by masks and reductions: the definition of each operation.

Any compiler takes these, any partitioner splits them along any axis, and JAX names the sharding of
each result. A row is taken in two passes: its maximum, then a sum of exponentials relative to it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla import log_probs
from jaxsoftmax._xla.dtypes import Size, accumulator, finite, widen
from jaxsoftmax._xla.masks import at_least, at_most, is_class, keep, spread
from jaxsoftmax._xla.products import over_matrices, product

State = Callable[..., tuple[Array, Array, Array]]  # as `row_state`
Exponentials = Callable[[Array], tuple[Array, Array, Array]]  # as `row_exponentials`
Odds = Callable[[Array], tuple[Array, Array]]  # as `largest_and_odds`


def row_state(logits: Array, label: Array, *scale: Array) -> tuple[Array, Array, Array]:
    """x_k of the label k, 0 where it is none of these classes; m and Σ exp(x_j − m) of the others.

    A class that does not exist adds nothing, and of those at +inf each adds 1. With the scale of
    each row, a number > 0, the terms are exp((x_j − m) · scale): differences first.
    """
    label_logit = entry(logits, label)
    maximum = widen(maximum_of_others(logits, label))
    total = sum_of_exponentials(logits, finite(maximum), *scale)
    of_label = term(label_logit, finite(maximum), *scale)
    return label_logit, maximum, without_label(total, of_label, label, logits.shape[-1])


def row_state_and_terms(
    logits: Array, label: Array, *scale: Array, of: State = row_state
) -> tuple[Array, Array, Array, Array]:
    """The state, and the terms of its sum.

    In half precision these cannot become the gradient in their place, and each pass makes its own.
    """
    state = of(logits, label, *scale)
    terms = shared_terms if logits.dtype == accumulator(logits.dtype) else row_terms
    return *state, terms(logits, label, state[1], *scale)


def row_terms(logits: Array, label: Array, maximum: Array, *scale: Array) -> Array:
    """min(exp(x_j − m), 1) for the other classes, 0 for the label; in a pass of its own."""
    return keep(exponentials_again(logits, maximum, *scale), ~is_class(logits, label))


def row_exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """m, exp(x_j − m) and Σ_j exp(x_j − m) over all classes, m their maximum."""
    maximum = widen(jnp.max(logits, axis=-1))
    total = sum_of_exponentials(logits, finite(maximum))
    return maximum, exponentials(logits, finite(maximum)), total


def largest_and_odds(logits: Array) -> tuple[Array, Array]:
    """The largest logit x_a, and the odds Σ_{j≠a} exp(x_j − x_a) of the others against it.

    Those that equal it count 1 each, so that it need not be known which of them a is. A term that
    underflows is 0.
    """
    top = jnp.max(logits, axis=-1)
    leads, top = logits == spread(top, logits), widen(top)
    below = keep(exponentials(logits, finite(top)), ~leads)
    return top, (jnp.sum(leads.astype(top.dtype), axis=-1) - 1.0) + jnp.sum(below, axis=-1)


def softmax(logits: Array, of: Exponentials = row_exponentials) -> Array:
    """exp(x_c − m) / Σ_j exp(x_j − m), all 0 where no class exists; in the logits' dtype."""
    _, terms, total = of(logits)
    # A row without a class has terms 0 and total 0; where a class exists the total is at least 1.
    return (terms / at_least(total, 1.0)[..., None]).astype(logits.dtype)


def softmax_tangent(logits: Array, tangent: Array, of: Exponentials = row_exponentials) -> Array:
    """p (v − ⟨p, v⟩) of a tangent v in the accumulator's dtype; 0 in a saturated row."""
    maximum, terms, total = of(logits)
    p = terms / at_least(total, 1.0)[..., None]
    mean = jnp.sum(p * tangent, axis=-1)
    return keep(p * (tangent - spread(mean, p)), spread(maximum != jnp.inf, p))


def softmax_mean(logits: Array, v: Array, of: Exponentials = row_exponentials) -> Array:
    """⟨p, v⟩ of each row, v in the accumulator's dtype; 0 in a saturated row."""
    maximum, terms, total = of(logits)
    return scale_of(maximum, total) * jnp.sum(terms * v, axis=-1)


def softmax_times(logits: Array, values: Array, of: Exponentials = row_exponentials) -> Array:
    """p times a number of each row; 0 in a saturated row."""
    maximum, terms, total = of(logits)
    return terms * spread(scale_of(maximum, total) * values, terms)


log1p = lax.log1p


def log_softmax(logits: Array, of: Odds = largest_and_odds) -> Array:
    """(x_c − x_a) − log(1 + odds) of the largest class a; −inf where no class exists."""
    top, odds = of(logits)
    return log_probs.log_probs(top, log1p(odds), logits)


def log_softmax_tangent(logits: Array, v: Array, of: Exponentials = row_exponentials) -> Array:
    """v_c − ⟨p, v⟩, exact where p_c is near 1; 0 where no class exists or one is at +inf."""
    return log_probs.tangent(*moving_probabilities(logits, of), v)


def log_softmax_gradient(logits: Array, g: Array, of: Exponentials = row_exponentials) -> Array:
    """g_c − p_c Σ_j g_j over the classes that exist, with the same exceptions."""
    return log_probs.gradient(*moving_probabilities(logits, of), g)


def largest_class(logits: Array) -> Array:
    """The first class with the largest logit, int32; that of a NaN if there is one."""
    return lax.argmax(logits, logits.ndim - 1, jnp.int32)


def entry(logits: Array, label: Array) -> Array:
    """x_k in the accumulator's dtype, 0 where the label is none of these classes."""
    return widen(jnp.sum(keep(logits, is_class(logits, label)), axis=-1))


@over_matrices
def add_product(total: Array, hidden: Array, delta: Array, *, feature_axis: int) -> Array:
    """total + hiddenᵀ delta, the total being [D, V], or [V, D] where the features are axis 1."""
    factors = (delta, hidden) if feature_axis else (hidden, delta)
    return total + product(*factors, (0, 0)).astype(total.dtype)


def always(i: Array) -> Array:
    """True."""
    return i == i


# --- parts of these -------------------------------------------------------------------------------


def scale_of(maximum: Array, total: Array) -> Array:
    """1 / Σ_j exp(x_j − m), 0 in a saturated row, NaN in one with a NaN."""
    scale = 1.0 / at_least(total, 1.0)
    return keep(scale, (maximum != jnp.inf) | jnp.isnan(scale))


def moving_probabilities(logits: Array, of: Exponentials) -> tuple[Array, Array]:
    """p, and which classes move; 0 and none in a saturated row."""
    maximum, terms, total = of(logits)
    scale = scale_of(maximum, total)
    return terms * spread(scale, terms), log_probs.movable(logits, scale != 0.0)


def maximum_of_others(logits: Array, label: Array) -> Array:
    """max over j != label of x_j, -inf where there is no other class."""
    return jnp.max(keep(logits, ~is_class(logits, label), -jnp.inf), axis=-1)


def scaled(x: Array, *scale: Array) -> Array:
    """x · scale of each row, or x; x is of the rows, or of their classes."""
    for of_row in scale:
        x = x * (of_row if of_row.ndim == x.ndim else of_row[..., None])
    return x


def term(label_logit: Array, maximum: Array, *scale: Array) -> Array:
    """min(exp(x_k − m), 1)."""
    return at_most(jnp.exp(scaled(label_logit - maximum, *scale)), 1.0)


def sum_of_exponentials(logits: Array, maximum: Array, *scale: Array) -> Array:
    """Σ_j min(exp(x_j − m), 1)."""
    below = scaled(widen(logits) - maximum[..., None], *scale)
    return jnp.sum(at_most(jnp.exp(below), 1.0), axis=-1)


def exponentials(logits: Array, maximum: Array, *scale: Array) -> Array:
    """min(exp(x_j − m), 1)."""
    # −0.0: a broadcast 0.0 that the gradient's pass needs too is written to memory by XLA:CPU.
    return jnp.exp(at_most(scaled(widen(logits) - maximum[..., None], *scale), -0.0))


def exponentials_again(logits: Array, maximum: Array, *scale: Array) -> Array:
    """The same, in a pass of its own that shares nothing with any sum."""
    # The barrier and −m keep XLA:CPU from sharing terms, or a broadcast of m, through memory.
    x = widen(lax.optimization_barrier(logits))
    return jnp.exp(at_most(scaled(x + (-finite(maximum))[..., None], *scale), 0.0))


def shared_terms(logits: Array, label: Array, maximum: Array, *scale: Array) -> Array:
    """`row_terms` as one array for several uses."""
    terms = exponentials(logits, finite(maximum), *scale)
    return keep(terms, ~is_class(logits, label))


def without_label(total: Array, of_label: Array, label: Array, classes: Size) -> Array:
    """The sum over all classes less the label's own term.

    A mask inside the sum would cost XLA:CPU a copy of the logits. Nothing is lost by subtracting:
    where the label is the largest its term is exactly 1, and the others sum to at least 1.
    """
    return total - keep(of_label, label < classes)
