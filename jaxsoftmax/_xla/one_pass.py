"""Rows of logits in one pass, for accelerators: a reduction that merges parts of the classes.

Of some classes a part knows the maximum m, and S = Σ exp(x_j − r) relative to an anchor r at most a
little below m. To merge two parts, one is rescaled to the other's anchor and added:

    S = S_a + S_b e^(r_b − r_a)        or        S = S_a e^(r_a − r_b) + S_b

Anchoring at the running maximum would rescale, and round, the sum at every class of a slowly
increasing row. So the heavier part keeps its anchor unless the other's is higher by 1: what is
rescaled then has shrunk to a third, and its errors with it.

The merge is the operation of one `lax.reduce`, which accelerators compile to a single loop over the
logits, where a maximum and then a sum read them twice (JAX 0.11.2 for an H200, libtpu 0.0.52).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxsoftmax._xla import portable
from jaxsoftmax._xla.dtypes import finite, widen
from jaxsoftmax._xla.log_probs import odds_of_others
from jaxsoftmax._xla.masks import is_class, keep


class Part(NamedTuple):
    """What is known of some of the classes."""

    maximum: Float[Array, "..."]  # m
    anchor: Float[Array, "..."]  # r, finite
    total: Float[Array, "..."]  # S


def row_state(logits: Array, label: Array, *scale: Array) -> tuple[Array, Array, Array]:
    """As `portable.row_state`, the label's entry found on the way.

    (XLA:TPU writes what a gather reads: libtpu 0.0.52, 8192 x 128256 bfloat16, 2 GiB.) A scale
    would be an operand of the merge, as large as the logits.
    """
    if scale:
        return portable.row_state(logits, label, *scale)
    x = widen(logits)
    here = is_class(logits, label)
    none = _none(x)
    label_logit, part = _reduce(
        lambda a, b: (a[0] + b[0], _merge(a[1], b[1])),
        (keep(x, here), _single(keep(x, ~here, -jnp.inf))),
        (none.total, none),
    )
    return label_logit, *_from_maximum(part)


def largest_and_odds(logits: Array) -> tuple[Array, Array]:
    """As `portable.largest_and_odds`."""
    x = widen(logits)
    none = _none(x)
    others = _single(lax.full_like(x, -jnp.inf))
    top, part = _reduce(_merge_below_largest, (x, others), (none.maximum, none))
    return top, odds_of_others(top, *_from_maximum(part))


def row_exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """As `portable.row_exponentials`."""
    x = widen(logits)
    maximum, total = _from_maximum(_reduce(_merge, _single(x), _none(x)))
    terms = jnp.exp(jnp.minimum(x - finite(maximum)[..., None], 0.0))
    return maximum, terms, total


row_state_and_terms = partial(portable.row_state_and_terms, of=row_state)
softmax = partial(portable.softmax, of=row_exponentials)
softmax_tangent = partial(portable.softmax_tangent, of=row_exponentials)
softmax_mean = partial(portable.softmax_mean, of=row_exponentials)
softmax_times = partial(portable.softmax_times, of=row_exponentials)
log_softmax = partial(portable.log_softmax, of=largest_and_odds)
log_softmax_tangent = partial(portable.log_softmax_tangent, of=row_exponentials)
log_softmax_gradient = partial(portable.log_softmax_gradient, of=row_exponentials)


def _single(x: Array) -> Part:
    """Parts of one class each."""
    return Part(x, finite(x), keep(lax.full_like(x, 1.0), x != -jnp.inf))


def _none(x: Array) -> Part:
    """What is known of no class at all."""
    return _single(jnp.asarray(-jnp.inf, x.dtype))


def _merge(a: Part, b: Part) -> Part:
    distance = a.anchor - b.anchor
    near = jnp.abs(distance) < 1.0
    to_a = lax.select(near, a.total >= b.total, distance > 0.0)
    factor = jnp.exp(lax.select(to_a, -distance, distance))
    return Part(
        jnp.maximum(a.maximum, b.maximum),
        lax.select(to_a, a.anchor, b.anchor),
        lax.select(to_a, a.total + b.total * factor, a.total * factor + b.total),
    )


def _merge_below_largest(a: tuple[Array, Part], b: tuple[Array, Part]) -> tuple[Array, Part]:
    """The smaller of the two largest classes joins the others."""
    joins = _single(jnp.minimum(a[0], b[0]))
    return jnp.maximum(a[0], b[0]), _merge(_merge(a[1], b[1]), joins)


def _from_maximum(part: Part) -> tuple[Array, Array]:
    return part.maximum, part.total * jnp.exp(part.anchor - finite(part.maximum))


def _reduce(merge: Callable[[Any, Any], Any], parts: Any, none: Any) -> Any:
    """Over the classes."""
    return lax.reduce(parts, none, merge, (jax.tree.leaves(parts)[0].ndim - 1,))
