"""The loss of each row, the options that act on a finished row (`z_loss`), and its statistics."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._row import gaps, state
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import row as _row
from jaxsoftmax._row import targets as _targets
from jaxsoftmax._row.options import RowOptions, is_on
from jaxsoftmax._row.row import Observed
from jaxsoftmax._row.targets import (
    ClassLabels,
    Labels,
    SoftLabels,
    SparseLabels,
    Targets,
)
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import ClassWeights, Index, PerClass, PerNamed, PerRow, widen
from jaxsoftmax._xla.masks import keep, spread


class RowLosses(NamedTuple):
    """The loss of each row, and where statistics are asked for, what else is known of it.

    The names are those of `LossStatistics`, before ignored examples are zeroed.
    """

    loss: PerRow
    log_prob: PerRow | PerNamed | None = None
    logsumexp: PerRow | None = None
    entropy: PerRow | None = None
    predicted_log_prob: PerRow | None = None
    predicted: Index | None = None
    rank: Index | None = None

    def movable(self) -> RowLosses:
        """What has a derivative."""
        return self._replace(predicted=None, rank=None)


def of_logits(
    logits: PerClass, labels: Labels, class_weights: ClassWeights, options: RowOptions
) -> RowLosses:
    """Logits to losses: every option but the weights of the examples and the reduction."""
    x, temperature = _logits.capped(logits, options), _logits.temperature_of(logits, options)
    targets = _targets.make(x, labels, class_weights, options)
    x = _widened(x, targets, options)
    seen = _row.of_pivot(x, targets.pivot, options.axis_name, temperature)
    losses = jnp.zeros_like(seen.row.loss)
    if targets.share is not None:
        losses = times(targets.share, focal(seen.row.loss, options.focal_gamma))
    if targets.coefficients is not None:
        losses = losses + _soft_loss(seen, targets.coefficients, targets.share is None)
    if targets.named is not None:
        losses = losses + _named_loss(seen, targets.named)
    if options.poly_epsilon:
        losses = losses + options.poly_epsilon * _unlikely(seen, labels)
    if is_on(options.z_loss):
        losses = losses + _z_losses(_row.logsumexp(seen.row, temperature), options)
    if not options.return_statistics:
        return RowLosses(losses)
    return _with_statistics(losses, seen, labels)


def of_log_probs(
    log_probs: PerClass, labels: Labels, class_weights: ClassWeights, options: RowOptions
) -> RowLosses:
    """The same where the log-probabilities are what is given."""
    mesh_axis = options.axis_name
    targets = _targets.make(log_probs, labels, class_weights, options)
    x = _widened(log_probs, targets, options)
    certain = widen(jnp.zeros(x.shape[:-1], x.dtype))  # log 1, from which −log p is the gap
    losses = certain
    if targets.share is not None:
        losses = times(targets.share, -state.entry(x, targets.pivot, mesh_axis))
    if targets.coefficients is not None:
        losses = losses + gaps.weighted_gap(x, targets.coefficients, certain, None, mesh_axis)
    if targets.named is not None:
        gap = gaps.fixed_gaps(
            state.entries(x, targets.named.indices, mesh_axis), targets.named, certain
        )
        losses = losses + jnp.sum(gap, axis=-1)
    if not options.return_statistics:
        return RowLosses(losses)
    return _with_statistics(losses, _row.of_pivot(x, targets.pivot, mesh_axis), labels)


def of_binary_logits(
    logits: PerRow, label: PerRow, pos_weight: Array | None, options: RowOptions
) -> RowLosses:
    """Two classes, of which the logits are [0, x]."""
    x = widen(logits)
    positive, negative = _targets.of_binary(label, pos_weight, options.label_smoothing)
    of_positive = focal(_row.against_zero(x), options.focal_gamma)
    of_negative = focal(_row.against_zero(-x), options.focal_gamma)
    return RowLosses(times(positive, of_positive) + times(negative, of_negative))


def times(share: Array | float, losses: Array) -> Array:
    """share · loss with 0·inf = 0, and no product where the share is the number 1 or 0.

    An infinite loss does not move its share: that gradient would turn an example of weight 0 into
    0·inf.
    """
    if isinstance(share, float):
        if share == 0.0:
            return jnp.zeros_like(losses)
        return losses if share == 1.0 else share * losses
    infinite = jnp.isinf(losses) & (share != 0.0)
    finite = share * keep(losses, ~jnp.isinf(losses))
    return lax.select(infinite, lax.stop_gradient(share) * keep(losses, infinite), finite)


def focal(losses: PerRow, gamma: float) -> PerRow:
    """(1 − p)^γ · (−log p) of losses −log p, 1 − p being formed without a subtraction from 1."""
    if not gamma:
        return losses
    moves = lax.is_finite(losses)
    ordinary = keep(losses, moves & (losses > 0.0), 1.0)
    weighted = jnp.exp(gamma * jnp.log(-jnp.expm1(-ordinary))) * ordinary
    return lax.select(moves, keep(weighted, losses > 0.0), losses)


def _widened(logits: Array, targets: Targets, options: RowOptions) -> Array:
    """Float32 where several passes follow, whose gradients are to be added in float32."""
    of_several = targets.coefficients is not None or targets.named is not None
    several = of_several or options.return_statistics
    return widen(logits) if several else logits


def _soft_loss(seen: Observed, coefficients: Array, of_largest: bool) -> Array:
    """Σ_c coefficients_c · (−log p_c), the pivot being the largest class, or not."""
    logits, row, pivot, temperature, mesh_axis = seen
    # Mass on a class that does not exist is an infinite gap, which does not move its coefficient.
    fixed = lax.stop_gradient(coefficients)
    mass = mesh.over_classes(lax.select(logits == -jnp.inf, fixed, coefficients), mesh_axis)
    # Relative to the largest class k, excess is −log p_k. Taken as such, with the gaps to x_k, its
    # gradient at k cancels nothing: one-hot labels are as exact as integer labels.
    excess = keep(row.loss, row.top != -jnp.inf) if of_largest else row.excess
    origin = pivot if of_largest else None
    gap = gaps.weighted_gap(logits, coefficients, row.top, origin, mesh_axis)
    return mass * excess + _row.over(gap, temperature)


def _named_loss(seen: Observed, named: SparseLabels) -> Array:
    """The same of a few classes."""
    gap = gaps.named_gaps(seen, named)
    excess = keep(seen.row.loss, seen.row.top != -jnp.inf)
    # Mass on a class that does not exist is an infinite gap, which does not move its coefficient.
    masses = lax.select(lax.is_finite(gap), named.weights, lax.stop_gradient(named.weights))
    total = jnp.sum(keep(masses, named.weights != 0.0), axis=-1)
    return total * excess + _row.over(jnp.sum(gap, axis=-1), seen.temperature)


def _named_log_probs(seen: Observed, named: SparseLabels) -> PerNamed:
    """log p of each class that a row names; 0 for padding."""
    counted = named.weights != 0.0
    ones = SparseLabels(named.indices, keep(lax.full_like(named.weights, 1.0), counted))
    gap = _row.over(gaps.named_gaps(seen, ones), seen.temperature)
    return -keep(spread(seen.row.loss, gap) + gap, counted)


def _unlikely(seen: Observed, labels: Labels) -> PerRow:
    """1 − Σ_c y_c p_c of the labels y as they are given."""
    if isinstance(labels, SoftLabels):
        rest = gaps.unlikely(seen, labels.weights)
        return rest + (1.0 - mesh.over_classes(labels.weights, seen.mesh_axis))
    if isinstance(labels, SparseLabels):
        counted = keep(labels.weights, labels.weights != 0.0)
        unlikely = -jnp.expm1(_named_log_probs(seen, labels))
        return jnp.sum(counted * unlikely, axis=-1) + (1.0 - jnp.sum(counted, axis=-1))
    return seen.row.others


def _z_losses(log_z: Array, options: RowOptions) -> Array:
    """λ · logsumexp²; 0 where no class exists, since there is no logsumexp to keep small."""
    movable = keep(log_z, ~jnp.isinf(log_z))
    return keep(options.z_loss * movable * movable, log_z != jnp.inf, jnp.inf)


def _with_statistics(losses: Array, seen: Observed, labels: Labels) -> RowLosses:
    logits, row, _, temperature, mesh_axis = seen
    log_prob = -row.loss
    if isinstance(labels, SoftLabels):
        log_prob = -_soft_loss(seen, labels.weights, True)
    elif isinstance(labels, SparseLabels):
        log_prob = _named_log_probs(seen, labels)
    predicted = state.largest_class(logits, mesh_axis)
    return RowLosses(
        losses,
        log_prob=log_prob,
        logsumexp=_row.logsumexp(row, temperature),
        entropy=gaps.entropy(seen),
        predicted_log_prob=_of_predicted(seen, predicted),
        predicted=mesh.to_global(predicted, logits.shape[-1], mesh_axis),
        rank=_rank(seen) if isinstance(labels, ClassLabels) else None,
    )


def _of_predicted(seen: Observed, predicted: Index) -> PerRow:
    """log p of the largest class: less than 0 by the excess, of which the top is a constant."""
    top = state.entry(seen.logits, predicted, seen.mesh_axis)
    movable = keep(top, lax.is_finite(top))
    return _row.over(movable - lax.stop_gradient(movable), seen.temperature) - seen.row.excess


def _rank(seen: Observed) -> Index:
    """How many classes lie strictly above the label; −1 for a label that is no class."""
    logits, _, label, _, mesh_axis = seen
    x = lax.stop_gradient(logits)
    of_label = state.entry(x, label, mesh_axis)
    above = x > spread(of_label, x)
    count = mesh.over_classes(above.astype(x.dtype), mesh_axis).astype(jnp.int32)
    return lax.select(jnp.isnan(of_label), lax.full_like(count, -1), count)
