"""A row of logits in one pass: its state as a reduction, classes merged two parts at a time.

Of some classes a part knows the maximum m, and S = Σ exp(x_j − r) seen from an anchor r at most a
little below m. To merge two parts, one is brought to the other's anchor and added:

    S = S_a + S_b e^(r_b − r_a)        or        S = S_a e^(r_a − r_b) + S_b

Were the anchor the maximum itself, then in a row that rises slowly all that was added up would be
rescaled, and rounded, at every class. So the heavier part keeps its anchor unless the other's is
higher by 1: what is rescaled then, has shrunk to a third, and so have its errors.

The merge is the operation of one `lax.reduce`, of which accelerators make a single loop that reads
the logits once, where a maximum and then a sum read them twice (JAX 0.11.2 for an H200, libtpu
0.0.52). XLA:CPU is better off with the two passes of `_passes`.

No derivatives: those who call this have their rules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxsoftmax import _extremes
from jaxsoftmax._precision import finite, widen


class Part(NamedTuple):
    """What is known of some of the classes."""

    maximum: Float[Array, "..."]  # m
    anchor: Float[Array, "..."]  # r, finite
    total: Float[Array, "..."]  # S


def of_others(
    logits: Float[Array, "... C"], label: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """x_k of the label k, 0 where it is none of these classes; m and Σ exp(x_j − m) of the others.

    A class that does not exist adds nothing, and of those at +inf each adds 1.
    """
    x = widen(logits)
    here = _extremes.is_class(logits, label)
    others = _single(jnp.where(here, -jnp.inf, x))
    none = _none(x)
    label_logit, part = _reduce(
        _merge_beside_label, (jnp.where(here, x, 0.0), others), (none.total, none)
    )
    return label_logit, *_from_maximum(part)


def of_others_than_largest(
    logits: Float[Array, "... C"],
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """The same with the largest class for a label, of which nobody learns which one it is."""
    x = widen(logits)
    none = _none(x)
    others = _single(jnp.full_like(x, -jnp.inf))
    largest, part = _reduce(_merge_below_largest, (x, others), (none.maximum, none))
    return largest, *_from_maximum(part)


def of_all(logits: Float[Array, "... C"]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """m and Σ exp(x_j − m) of all classes."""
    x = widen(logits)
    return _from_maximum(_reduce(_merge, _single(x), _none(x)))


def _single(x: Array) -> Part:
    """Parts of one class each."""
    return Part(x, finite(x), jnp.where(x == -jnp.inf, 0.0, jnp.ones_like(x)))


def _none(x: Array) -> Part:
    """What is known of no class at all."""
    return _single(jnp.asarray(-jnp.inf, x.dtype))


def _merge(a: Part, b: Part) -> Part:
    distance = a.anchor - b.anchor
    near = jnp.abs(distance) < 1.0
    to_a = jnp.where(near, a.total >= b.total, distance > 0.0)
    factor = jnp.exp(jnp.where(to_a, -distance, distance))
    return Part(
        jnp.maximum(a.maximum, b.maximum),
        jnp.where(to_a, a.anchor, b.anchor),
        jnp.where(to_a, a.total + b.total * factor, a.total * factor + b.total),
    )


def _merge_beside_label(a: tuple[Array, Part], b: tuple[Array, Part]) -> tuple[Array, Part]:
    return a[0] + b[0], _merge(a[1], b[1])


def _merge_below_largest(a: tuple[Array, Part], b: tuple[Array, Part]) -> tuple[Array, Part]:
    """The smaller of the two largest classes joins the others."""
    joins = _single(jnp.minimum(a[0], b[0]))
    return jnp.maximum(a[0], b[0]), _merge(_merge(a[1], b[1]), joins)


def _from_maximum(part: Part) -> tuple[Array, Array]:
    return part.maximum, part.total * jnp.exp(part.anchor - finite(part.maximum))


def _reduce(merge: Any, parts: Any, none: Any) -> Any:
    """Over the classes."""
    return lax.reduce(parts, none, merge, (jax.tree.leaves(parts)[0].ndim - 1,))
