"""From logits and targets to the loss of each example, and the statistics beside it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.export
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxsoftmax import _extremes, _labels, _logits, _mesh, _reduction, _rows, _targets, _tiles
from jaxsoftmax._batch import Batch
from jaxsoftmax._mesh import AxisName
from jaxsoftmax._options import LossOptions
from jaxsoftmax._precision import accumulator, widen
from jaxsoftmax._rows import Row
from jaxsoftmax._targets import Targets
from jaxsoftmax._tiles import Carry


class LossStatistics(NamedTuple):
    """What a loss knows besides its value (a pytree; `return_statistics=True` returns it).

    All are of p = softmax(soft_cap(logits) / temperature), without smoothing or weights, and 0 on
    ignored examples. The first three are float32 (float64 for float64 logits), differentiable.
    """

    log_prob: Float[Array, "..."]  # log p_y of the label y; Σ_c y_c log p_c for a distribution
    logsumexp: Float[Array, "..."]  # log Σ_c exp(x_c)
    entropy: Float[Array, "..."]  # −Σ_c p_c log p_c
    predicted: Int[Array, "..."]  # argmax_c x_c, the first of several
    weight_sum: Float[Array, ""]  # the divisor of the mean that labels and weights imply


jax.export.register_namedtuple_serialization(
    LossStatistics, serialized_name="jaxsoftmax.LossStatistics"
)


class RowLosses(NamedTuple):
    """What the loss of each row is, and where statistics are asked for, what else is known of it.

    The names are those of `LossStatistics`, before ignored examples are zeroed.
    """

    loss: Float[Array, "..."]
    log_prob: Float[Array, "..."] | None = None
    logsumexp: Float[Array, "..."] | None = None
    entropy: Float[Array, "..."] | None = None
    predicted: Int[Array, "..."] | None = None


def of_rows(
    logits: Float[Array, "... C"],
    label: Int[Array, "..."] | None,
    distribution: Float[Array, "... C"] | None,
    class_weights: Float[Array, "C"] | None,
    options: LossOptions,
) -> RowLosses:
    """Logits to losses, one row at a time: every option but the weights and the reduction."""
    x = _logits.transform(logits, options)
    axis = options.axis_name
    targets = _targets.make(x, label, distribution, class_weights, options.label_smoothing, axis)
    if targets.coefficients is not None or options.return_statistics:
        x = widen(x)  # several passes, whose gradients are to be added in float32
    row = observe(x, targets, axis, options.in_chunks)
    losses = example_losses(x, row, targets, axis)
    if options.z_loss:
        losses = losses + z_losses(row, options)
    if not options.return_statistics:
        return RowLosses(losses)
    return RowLosses(losses, **known_of(x, row, targets, distribution, axis))


def observe(
    logits: Float[Array, "... C"], targets: Targets, axis_name: AxisName, in_chunks: bool = False
) -> Row:
    """The finished row of each example, seen from its label or largest class."""
    return _rows.finish(_rows.observe(logits, targets.label, axis_name, in_chunks))


def example_losses(
    logits: Float[Array, "... C"], row: Row, targets: Targets, axis_name: AxisName
) -> Float[Array, "..."]:
    """share · (−log p_label) + Σ_c coefficients_c · (−log p_c)."""
    losses = jnp.zeros_like(row.loss) if targets.share is None else times(targets.share, row.loss)
    if targets.coefficients is not None:
        losses = losses + _dense_loss(logits, row, targets, targets.coefficients, axis_name)
    return losses


def negative_log_likelihoods(
    log_probs: Float[Array, "... C"], targets: Targets, axis_name: AxisName
) -> Float[Array, "..."]:
    """The same where the log-probabilities are what is given."""
    losses = jnp.zeros(log_probs.shape[:-1], accumulator(log_probs.dtype))
    if targets.share is not None:
        of_label = _labels.take(log_probs, targets.label, axis_name)
        losses = times(targets.share, -widen(of_label))
    if targets.coefficients is not None:
        certain = jnp.zeros_like(losses)  # log 1, from which −log p is the gap
        losses = losses + _rows.weighted_gap(
            log_probs, targets.coefficients, certain, None, axis_name
        )
    return losses


def z_losses(row: Row, options: LossOptions) -> Float[Array, "..."]:
    """λ · logsumexp²; 0 where no class exists, since there is no logsumexp to keep small."""
    log_z = _rows.logsumexp(row)
    movable = jnp.where(jnp.isinf(log_z), 0.0, log_z)
    return jnp.where(log_z == jnp.inf, jnp.inf, options.z_loss * movable * movable)


def of_log_probs(
    log_probs: Float[Array, "... C"],
    label: Int[Array, "..."] | None,
    distribution: Float[Array, "... C"] | None,
    class_weights: Float[Array, "C"] | None,
    options: LossOptions,
) -> RowLosses:
    """The same where the log-probabilities are what is given."""
    x = log_probs
    axis = options.axis_name
    targets = _targets.make(x, label, distribution, class_weights, options.label_smoothing, axis)
    if targets.coefficients is not None or options.return_statistics:
        x = widen(x)
    losses = negative_log_likelihoods(x, targets, axis)
    if not options.return_statistics:
        return RowLosses(losses)
    return RowLosses(losses, **known_of(x, observe(x, targets, axis), targets, distribution, axis))


def known_of(
    logits: Float[Array, "... C"],
    row: Row,
    targets: Targets,
    distribution: Float[Array, "... C"] | None,
    axis_name: AxisName,
) -> dict[str, Array]:
    """The statistics of finished rows."""
    log_prob = -row.loss
    if distribution is not None:
        log_prob = -_dense_loss(logits, row, targets, distribution, axis_name)
    predicted = _extremes.argmax(logits, axis_name)
    return {
        "log_prob": log_prob,
        "logsumexp": _rows.logsumexp(row),
        "entropy": _rows.entropy(logits, row, axis_name),
        "predicted": _mesh.to_global(predicted, logits.shape[-1], axis_name),
    }


def reduced(
    rows: RowLosses,
    batch: Batch,
    class_weights: Float[Array, "C"] | None,
    denominator: Array | None,
    options: LossOptions,
) -> Any:  # Array, or with return_statistics: tuple[Array, LossStatistics]
    """The rows' losses as one number, with the statistics where they are asked for."""
    divisor = divisor_of(batch, class_weights, rows.loss.shape, rows.loss.dtype, options)
    losses = _reduction.weighted(rows.loss, batch.weights)
    loss = losses
    if options.reduction != "none":
        loss = _reduction.divided(jnp.sum(losses), divisor, denominator, options)
    if not options.return_statistics:
        return loss
    return loss, statistics(rows, batch.ignored, divisor)


def divisor_of(
    batch: Batch,
    class_weights: Float[Array, "C"] | None,
    shape: tuple[Any, ...],  # of ints and of symbolic dimensions
    dtype: jnp.dtype,
    options: LossOptions,
) -> Float[Array, ""]:
    """What the mean divides by: known before any logit is."""
    label_weights = None
    if class_weights is not None and batch.label is not None:
        label_weights = _targets.weight_of_label(
            class_weights.astype(dtype), batch.label, options.axis_name
        )
    return _reduction.weight_sum(shape, dtype, batch.weights, label_weights)


def statistics(
    rows: RowLosses, ignored: Bool[Array, "..."] | None, weight_sum: Float[Array, ""]
) -> LossStatistics:
    """What the user gets of it: 0 on ignored examples."""

    def keep(values: Array | None) -> Array:
        assert values is not None
        return values if ignored is None else jnp.where(ignored, 0, values).astype(values.dtype)

    known = (rows.log_prob, rows.logsumexp, rows.entropy, rows.predicted)
    log_prob, log_z, entropy, predicted = map(keep, known)
    return LossStatistics(log_prob, log_z, entropy, predicted, weight_sum)


def times(share: Array | float, losses: Array) -> Array:
    """share · loss with 0·inf = 0, and no product where the share is the number 1.

    An infinite loss moves no share: its gradient would turn an example of weight 0 into 0·inf.
    """
    if isinstance(share, float):
        return losses if share == 1.0 else share * losses
    infinite = jnp.isinf(losses) & (share != 0.0)
    finite = share * jnp.where(jnp.isinf(losses), 0.0, losses)
    return jnp.where(infinite, lax.stop_gradient(share) * losses, finite)


def _dense_loss(
    logits: Array, row: Row, targets: Targets, coefficients: Array, axis_name: AxisName
) -> Array:
    """Σ_c coefficients_c · (−log p_c)."""
    # Mass on a class that does not exist is an infinite gap, which does not move its coefficient.
    fixed = lax.stop_gradient(coefficients)
    mass = jnp.sum(jnp.where(logits == -jnp.inf, fixed, coefficients), axis=-1)
    mass = _mesh.total(mass, axis_name)
    if targets.share is not None:
        return mass * row.excess + _rows.weighted_gap(
            logits, coefficients, row.top, None, axis_name
        )
    # Seen from the largest class k, excess is −log p_k. Taken as such, with the gaps to x_k, its
    # gradient at k cancels nothing: a one-hot distribution is as exact as an integer label.
    excess = jnp.where(row.top == -jnp.inf, 0.0, row.loss)
    return mass * excess + _rows.weighted_gap(
        logits, coefficients, row.top, targets.label, axis_name
    )


def of_carry(
    carry: Carry,
    label: Int[Array, "..."],
    class_weights: Float[Array, "C"] | None,
    options: LossOptions,
) -> RowLosses:
    """`of_rows` for integer labels, where a kernel has been through the logits."""
    row = _rows.finish(_tiles.state(carry))
    share: Array | float = 1.0 - options.label_smoothing
    weight = None
    if class_weights is not None:
        weight = _targets.weight_of_label(class_weights.astype(row.loss.dtype), label)
        share = share * weight
    losses = times(share, row.loss)
    if options.label_smoothing:
        losses = losses + options.label_smoothing * _tiles.smoothed(carry, row, weight)
    if options.z_loss:
        losses = losses + z_losses(row, options)
    if not options.return_statistics:
        return RowLosses(losses)
    return RowLosses(
        losses,
        log_prob=-row.loss,
        logsumexp=_rows.logsumexp(row),
        entropy=_tiles.entropy(carry, row),
        predicted=_tiles.predicted(carry, label),
    )
