"""Small float32 arrays on a CPU, in calls of XLA's library.

For maxima and sums of at least 4096 numbers, and the arithmetic around them, XLA:CPU calls a
library, and compiles no kernels (which take 10 to 20 ms each in JAX 0.12). A call takes no
comparison, select or clamp, and nothing that another one uses, too: where formulas or constants
seem more than is needed, they keep calls apart. The library's minimum or maximum of a NaN and a
number is the number. (Functions of `lax` are traced faster than operators.)
"""

from __future__ import annotations

import numpy as np
from jax import Array, lax

from jaxsoftmax._xla import portable
from jaxsoftmax._xla.cpu_blocks import is_small
from jaxsoftmax._xla.dtypes import largest
from jaxsoftmax._xla.masks import at_least, is_class, keep, spread

_FEWEST = 1 << 12  # numbers


def is_in_library(x: Array) -> bool:
    """Whether XLA has sums of such an array from its library, and few kernels count."""
    # Of one class XLA makes the maximum that class, whatever number the reduction begins with.
    return is_small(x) and x.dtype == np.float32 and x.size >= _FEWEST and x.shape[-1] > 1


def exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """As `portable.row_exponentials`."""
    bounded = lax.min(logits, lax.full_like(logits, largest(logits)))
    terms = lax.exp(lax.sub(bounded, spread(_finite_maximum(bounded), logits)))
    sign = lax.sign(logits)  # NaN of a NaN
    total = _sum(lax.add(terms, lax.sub(sign, sign)))
    return lax.reduce_max(logits, (logits.ndim - 1,)), terms, total


def others_and_terms(logits: Array, label: Array, *scale: Array) -> tuple[Array, Array, Array]:
    """m, S and the terms of `portable.row_state_and_terms`, whose mask is a kernel.

    They are those of halved logits, among which a finite number can stand for +inf.
    """
    infinite = lax.eq(logits, lax.full_like(logits, np.inf))
    half = lax.mul(logits, lax.full_like(logits, 0.5))
    half = lax.select(infinite, lax.full_like(half, 0.75 * largest(half)), half)
    half = keep(half, ~is_class(half, label), -np.inf)
    top = _finite_maximum(half)
    below = lax.sub(half, spread(top, half))
    terms = lax.exp(portable.scaled(lax.mul(below, lax.full_like(below, 2.0)), *scale))
    return lax.mul(top, lax.full_like(top, 2.0)), _sum(terms), terms


def largest_and_odds(logits: Array) -> tuple[Array, Array]:
    """As `portable.largest_and_odds`; the classes that equal the largest are counted apart."""
    x, most = logits, largest(logits)
    top = _finite_maximum(lax.min(x, lax.full_like(x, most)))
    below = lax.sub(x, spread(top, x))
    # −1 for a number below the top (a fraction if by less than 2⁻¹²⁶), 0 for the top, ∞ for +inf
    side = lax.max(lax.mul(below, lax.full_like(x, 2.0**126)), lax.full_like(x, -1.0))
    minus_others = _sum(lax.mul(lax.exp(below), side))
    # How many lie below the top, where +inf does not lie above: in a call of its own.
    ceiling = spread(lax.optimization_barrier(top), x)
    below = lax.sub(lax.min(x, ceiling), ceiling)
    lower = _sum(lax.min(lax.mul(below, lax.full_like(x, -(2.0**126))), lax.full_like(x, 1.0)))

    classes, infinity = lax.full_like(top, x.shape[-1]), lax.full_like(top, np.inf)
    saturated, empty = lax.eq(minus_others, infinity), lax.eq(lower, classes)
    top = lax.select(empty, -infinity, lax.select(saturated, infinity, top))
    ties = lax.sub(lax.sub(classes, lower), lax.full_like(top, 1.0))
    return top, at_least(lax.add(ties, keep(lax.neg(minus_others), ~saturated)), 0.0)


def _sum(terms: Array) -> Array:
    return lax.reduce_sum(terms, (terms.ndim - 1,))


def _finite_maximum(x: Array) -> Array:
    """The maximum, or the smallest finite number if that is more."""
    return lax.reduce(x, -largest(x), lax.max, (x.ndim - 1,))
