"""A row of logits seen some classes at a time: what is carried along, and how two parts merge.

The whole row of `_rows`, for kernels that never have it: the same quantities seen from the label
against all the others, with m the maximum so far. *Rebase, then add*: to take in more classes,
everything that was measured from the old maximum is brought to the new one, and theirs is added.

    S' = S e^(m − m')        E' = e^(m − m') (E + (m' − m) S)        G' = G + (m' − m) W

Many rows at once, and of each row as many parts as a vector has lanes: every array of a carry has
one shape, and a strip brings one class for each entry of it. No derivatives: kernels have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxsoftmax import _rows
from jaxsoftmax._precision import finite


class Carry(NamedTuple):
    """What is known of the classes seen so far; the last two parts only where they are asked for.

    The label is in `label_logit` and in nothing else.
    """

    label_logit: Float[Array, "..."]  # x_k; 0 in parts that do not hold it
    maximum: Float[Array, "..."]  # m = max_{j≠k} x_j
    others: Float[Array, "..."]  # S = Σ exp(x_j − m)
    statistics: Statistics | None = None
    smoothing: Smoothing | None = None


class Statistics(NamedTuple):
    """What prediction and entropy need."""

    largest: Int[Array, "..."]  # the first of the other classes whose logit is m
    spread: Float[Array, "..."]  # E = Σ exp(x_j − m) (m − x_j)


class Smoothing(NamedTuple):
    """What a target that gives something to every class needs, of the classes that exist."""

    existing: Float[Array, "..."]  # how many
    mass: Float[Array, "..."]  # W = Σ w_j
    gap: Float[Array, "..."]  # G = Σ w_j (m − x_j)


class Strip(NamedTuple):
    """One class for each entry of the carry."""

    logits: Float[Array, "..."]
    is_label: Bool[Array, "..."]
    classes: Int[Array, "..."]  # which classes these are
    weights: Float[Array, "..."] | None = None  # w; None is 1


def empty(shape: tuple[int, ...], statistics: bool, smoothing: bool) -> Carry:
    """Nothing seen yet."""
    zero = jnp.zeros(shape, jnp.float32)
    return Carry(
        zero,
        jnp.full(shape, -jnp.inf, jnp.float32),
        zero,
        Statistics(jnp.zeros(shape, jnp.int32), zero) if statistics else None,
        Smoothing(zero, zero, zero) if smoothing else None,
    )


def observe(carry: Carry, strips: Sequence[Strip]) -> Carry:
    """The carry with the classes of the strips in it."""
    label_logit = carry.label_logit
    for strip in strips:
        label_logit = jnp.where(strip.is_label, strip.logits, label_logit)
    # Without the label, which from here on is a class that does not exist.
    strips = [s._replace(logits=jnp.where(s.is_label, -jnp.inf, s.logits)) for s in strips]
    maximum = reduce(jnp.maximum, [s.logits for s in strips], carry.maximum)
    first = None if carry.statistics is None else _first(carry, maximum, strips)
    carry = _rebase(carry, maximum)
    origin = finite(maximum)
    for strip in strips:
        # min, for the infinite logits that are the maximum.
        below = jnp.minimum(strip.logits - origin, 0.0)
        exponential = jnp.exp(below)
        statistics, smoothing = carry.statistics, carry.smoothing
        exists = strip.logits != -jnp.inf
        if statistics is not None:
            spread = statistics.spread - jnp.where(exists, exponential * below, 0.0)
            statistics = statistics._replace(spread=spread)
        if smoothing is not None:
            smoothing = _add(smoothing, strip.weights, below, exists)
        others = carry.others + exponential
        carry = Carry(label_logit, maximum, others, statistics, smoothing)
    if carry.statistics is not None and first is not None:
        carry = carry._replace(statistics=carry.statistics._replace(largest=first))
    return carry


def merge(carry: Carry, axis: int) -> Carry:
    """The parts along an axis as one, which keeps the axis."""
    maximum = jnp.max(carry.maximum, axis=axis, keepdims=True)
    at_top = carry.maximum == maximum
    moved = _rebase(carry, jnp.broadcast_to(maximum, carry.maximum.shape))

    def total(x: Array) -> Array:
        return jnp.sum(x, axis=axis, keepdims=True)

    statistics = None
    if moved.statistics is not None:
        none = jnp.iinfo(jnp.int32).max
        ids = jnp.where(at_top, moved.statistics.largest, none)
        first = jnp.min(ids, axis=axis, keepdims=True)
        first = jnp.where(first == none, 0, first)  # NaN is at no top
        statistics = Statistics(first, total(moved.statistics.spread))
    smoothing = None if moved.smoothing is None else Smoothing(*map(total, moved.smoothing))
    label_logit = total(carry.label_logit)
    return Carry(label_logit, maximum, total(moved.others), statistics, smoothing)


# --- all classes seen -----------------------------------------------------------------------------


def state(carry: Carry) -> _rows.RowState:
    """What `_rows.finish` makes a row of."""
    return _rows.RowState(carry.label_logit, carry.maximum, carry.others)


def predicted(carry: Carry, label: Int[Array, "..."]) -> Int[Array, "..."]:
    """The first class with the largest logit, the label among them."""
    assert carry.statistics is not None
    first = carry.statistics.largest
    ties = (carry.label_logit == carry.maximum) & (label < first)
    return jnp.where((carry.label_logit > carry.maximum) | ties, label, first)


def entropy(carry: Carry, row: _rows.Row) -> Float[Array, "..."]:
    """−Σ_j p_j log p_j = excess + Σ_j p_j (top − x_j), as in `_rows`."""
    moved = _rebase(carry, row.top).statistics
    assert moved is not None
    below = jnp.minimum(carry.label_logit - finite(row.top), 0.0)
    of_label = jnp.where(jnp.isinf(below), 0.0, -jnp.exp(below) * below)
    return row.excess + jnp.exp(-row.excess) * (moved.spread + of_label)


def smoothed(
    carry: Carry, row: _rows.Row, label_weight: Float[Array, "..."] | None
) -> Float[Array, "..."]:
    """The mean of w_c (−log p_c) over the C classes that exist: W·excess + G, over C."""
    moved = _rebase(carry, row.top).smoothing
    assert moved is not None
    exists = carry.label_logit != -jnp.inf
    below = jnp.minimum(carry.label_logit - finite(row.top), 0.0)
    existing, mass, gap = _add(moved, label_weight, below, exists)
    # Seen from an infinite logit, a finite one is infinitely far, whatever its gap came to.
    gap = jnp.where((row.top == jnp.inf) & (gap > 0.0), jnp.inf, gap)
    return (mass * row.excess + gap) / jnp.maximum(existing, 1.0)


# --- helpers --------------------------------------------------------------------------------------


def _rebase(carry: Carry, maximum: Float[Array, "..."]) -> Carry:
    """Everything measured from another maximum, at least as large as the old one."""
    # Where no class was seen there is nothing to bring along, from however far.
    nothing = carry.maximum == -jnp.inf
    step = jnp.where(nothing, 0.0, finite(maximum) - finite(carry.maximum))
    shrink = jnp.exp(-step)
    statistics, smoothing = carry.statistics, carry.smoothing
    if statistics is not None:
        far = jnp.where(shrink == 0.0, 0.0, step)  # 0 · inf
        spread = shrink * (statistics.spread + far * carry.others)
        statistics = statistics._replace(spread=spread)
    if smoothing is not None:
        smoothing = smoothing._replace(gap=smoothing.gap + step * smoothing.mass)
    return Carry(carry.label_logit, maximum, carry.others * shrink, statistics, smoothing)


def _add(smoothing: Smoothing, weights: Array | None, below: Array, exists: Array) -> Smoothing:
    """One class more, where it exists."""
    weight = jnp.where(exists, 1.0 if weights is None else weights, 0.0)
    return Smoothing(
        smoothing.existing + jnp.where(exists, 1.0, 0.0),
        smoothing.mass + weight,
        smoothing.gap - jnp.where(exists, weight * below, 0.0),
    )


def _first(carry: Carry, maximum: Array, strips: Sequence[Strip]) -> Array:
    """The first class at the new maximum: the old one where it is still the largest."""
    assert carry.statistics is not None
    first = carry.statistics.largest
    for strip in reversed(strips):
        first = jnp.where(strip.logits == maximum, strip.classes, first)
    return jnp.where(carry.maximum < maximum, first, carry.statistics.largest)
