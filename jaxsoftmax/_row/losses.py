"""The loss of each row, the options that act on a finished row (`z_loss`), and its statistics."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._options import LossOptions
from jaxsoftmax._row import gaps, state
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import row as _row
from jaxsoftmax._row import targets as _targets
from jaxsoftmax._row.row import Row, Temperature
from jaxsoftmax._row.targets import Labels, SoftLabels, Targets
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import ClassWeights, Index, PerClass, PerRow, widen
from jaxsoftmax._xla.masks import keep


class RowLosses(NamedTuple):
    """The loss of each row, and where statistics are asked for, what else is known of it.

    The names are those of `LossStatistics`, before ignored examples are zeroed.
    """

    loss: PerRow
    log_prob: PerRow | None = None
    logsumexp: PerRow | None = None
    entropy: PerRow | None = None
    predicted: Index | None = None


def of_logits(
    logits: PerClass, labels: Labels, class_weights: ClassWeights, options: LossOptions
) -> RowLosses:
    """Logits to losses: every option but the weights of the examples and the reduction."""
    x, temperature = _logits.capped(logits, options), _logits.temperature_of(logits, options)
    targets = _targets.make(x, labels, class_weights, options)
    x = _widened(x, targets, options)
    row = _row.of_pivot(x, targets.pivot, options.axis_name, temperature)
    losses = jnp.zeros_like(row.loss) if targets.share is None else times(targets.share, row.loss)
    if targets.coefficients is not None:
        losses = losses + _soft_loss(x, row, targets, targets.coefficients, temperature, options)
    if options.z_loss:
        losses = losses + _z_losses(_row.logsumexp(row, temperature), options)
    if not options.return_statistics:
        return RowLosses(losses)
    return _with_statistics(losses, x, row, labels, targets, temperature, options)


def of_log_probs(
    log_probs: PerClass, labels: Labels, class_weights: ClassWeights, options: LossOptions
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
    if not options.return_statistics:
        return RowLosses(losses)
    row = _row.of_pivot(x, targets.pivot, mesh_axis)
    return _with_statistics(losses, x, row, labels, targets, None, options)


def of_binary_logits(
    logits: PerRow, label: PerRow, pos_weight: Array | None, options: LossOptions
) -> RowLosses:
    """Two classes, of which the logits are [0, x]."""
    x = widen(logits)
    positive, negative = _targets.of_binary(label, pos_weight, options.label_smoothing)
    return RowLosses(times(positive, _row.against_zero(x)) + times(negative, _row.against_zero(-x)))


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


def _widened(logits: Array, targets: Targets, options: LossOptions) -> Array:
    """Float32 where several passes follow, whose gradients are to be added in float32."""
    several = targets.coefficients is not None or options.return_statistics
    return widen(logits) if several else logits


def _soft_loss(
    logits: Array,
    row: Row,
    targets: Targets,
    coefficients: Array,
    temperature: Temperature | None,
    options: LossOptions,
) -> Array:
    """Σ_c coefficients_c · (−log p_c)."""
    mesh_axis = options.axis_name
    # Mass on a class that does not exist is an infinite gap, which does not move its coefficient.
    fixed = lax.stop_gradient(coefficients)
    mass = mesh.over_classes(lax.select(logits == -jnp.inf, fixed, coefficients), mesh_axis)
    if targets.share is not None:
        gap = gaps.weighted_gap(logits, coefficients, row.top, None, mesh_axis)
        return mass * row.excess + _row.over(gap, temperature)
    # Relative to the largest class k, excess is −log p_k. Taken as such, with the gaps to x_k, its
    # gradient at k cancels nothing: one-hot labels are as exact as integer labels.
    excess = keep(row.loss, row.top != -jnp.inf)
    gap = gaps.weighted_gap(logits, coefficients, row.top, targets.pivot, mesh_axis)
    return mass * excess + _row.over(gap, temperature)


def _z_losses(log_z: Array, options: LossOptions) -> Array:
    """λ · logsumexp²; 0 where no class exists, since there is no logsumexp to keep small."""
    movable = keep(log_z, ~jnp.isinf(log_z))
    return keep(options.z_loss * movable * movable, log_z != jnp.inf, jnp.inf)


def _with_statistics(
    losses: Array,
    logits: Array,
    row: Row,
    labels: Labels,
    targets: Targets,
    temperature: Temperature | None,
    options: LossOptions,
) -> RowLosses:
    mesh_axis = options.axis_name
    log_prob = -row.loss
    if isinstance(labels, SoftLabels):
        log_prob = -_soft_loss(logits, row, targets, labels.weights, temperature, options)
    predicted = state.largest_class(logits, mesh_axis)
    return RowLosses(
        losses,
        log_prob=log_prob,
        logsumexp=_row.logsumexp(row, temperature),
        entropy=gaps.entropy(logits, row, mesh_axis, temperature),
        predicted=mesh.to_global(predicted, logits.shape[-1], mesh_axis),
    )
