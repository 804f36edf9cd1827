"""Checked arrays -> the one form that all below works on: classes last, ignored rows zeroed.

Nothing further down knows of `ignore_index` or of a mask over examples. What only values can tell
is settled here, too: which examples count, and labels outside [0, C) with their `debug_checks`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import checkify
from jaxtyping import Bool, Float, Int

from jaxsoftmax import _mesh
from jaxsoftmax._options import LossOptions
from jaxsoftmax._precision import accumulator

debug_checks = jax.make_user_context(False)
debug_checks.__doc__ = """Context in which labels are checked by value, under checkify.

`with jaxsoftmax.debug_checks(True): error, loss = checkify.checkify(f)(...)` makes a label
outside [0, C) an error that names it, instead of the NaN that the loss is without.
"""


class Batch(NamedTuple):
    """The arrays of a loss in the one form that everything below works on: classes last."""

    inputs: Float[Array, "... K"]  # logits or hidden; ignored rows are 0: no NaN goes further
    label: Int[Array, "..."] | None  # int32, of this shard: see _mesh
    distribution: Float[Array, "... C"] | None
    weights: Float[Array, "..."] | None  # 0 on ignored examples
    ignored: Bool[Array, "..."] | None


def one_form(
    logits: Float[Array, "..."],
    labels: Array,
    example_weights: Array | None,
    *,
    axis: int,
    options: LossOptions,
) -> Batch:
    """Classes to the last axis, both kinds of labels apart, ignored rows zeroed."""
    soft = labels.ndim == logits.ndim
    logits = jnp.moveaxis(logits, axis, -1)
    dtype = accumulator(logits.dtype)
    broken = partial(_broken_logits, logits)
    if soft:
        distribution = jnp.moveaxis(labels, axis, -1).astype(dtype)
        batch = _settle(logits, None, distribution, example_weights, broken, dtype, options)
        if batch.ignored is None:
            return batch
        kept = jnp.where(batch.ignored[..., None], 0.0, distribution)
        return batch._replace(distribution=kept)
    classes = logits.shape[-1]
    batch = _settle(logits, labels, None, example_weights, broken, dtype, options, classes)
    return _with_checked_label(batch, classes, options)


def rows_in_one_form(
    hidden: Float[Array, "... D"],
    labels: Array,
    example_weights: Array | None,
    *,
    classes: int,
    dtype: jnp.dtype,
    options: LossOptions,
) -> Batch:
    """The same where the logits do not exist: examples in one axis, hidden in place of logits.

    Distributions keep their dtype and their ignored rows: a copy of them would be as large as
    the logits.
    """
    soft = labels.ndim == hidden.ndim
    hidden = hidden.reshape(-1, hidden.shape[-1])
    if example_weights is not None:
        example_weights = example_weights.reshape(-1)

    def broken() -> Array:
        return ~jnp.all(jnp.isfinite(hidden), axis=-1)

    if soft:
        labels = labels.reshape(-1, classes)
        return _settle(hidden, None, labels, example_weights, broken, dtype, options)
    labels = labels.reshape(-1)
    batch = _settle(hidden, labels, None, example_weights, broken, dtype, options, classes)
    return _with_checked_label(batch, classes, options)


def _settle(
    inputs: Array,
    label: Array | None,
    distribution: Array | None,
    example_weights: Array | None,
    broken_inputs: Callable[[], Array],
    dtype: jnp.dtype,
    options: LossOptions,
    classes: int = 0,
) -> Batch:
    """Which examples count and how much; the inputs and labels of the others zeroed."""
    axis_name = options.axis_name

    def broken() -> Array:
        """Which examples hold something that no loss can be made of."""
        found = broken_inputs()
        if label is not None:
            found |= ~_is_valid(_comparable(label), classes * _mesh.shards(axis_name))
        elif distribution is not None and jnp.issubdtype(distribution.dtype, jnp.floating):
            found |= ~jnp.all(jnp.isfinite(distribution), axis=-1)
        return _mesh.anywhere(found, axis_name)

    ignored = None
    if label is not None and options.ignore_index is not None:
        ignored = _is_index(label, options.ignore_index)
    weights, ignored = _effective(example_weights, ignored, broken, dtype)
    if ignored is not None:
        inputs = jnp.where(ignored[..., None], 0, inputs).astype(inputs.dtype)
        if label is not None:
            label = jnp.where(ignored, 0, label).astype(label.dtype)
    return Batch(inputs, label, distribution, weights, ignored)


def _with_checked_label(batch: Batch, classes: int, options: LossOptions) -> Batch:
    assert batch.label is not None
    return batch._replace(label=checked_label(batch.label, classes, options))


def _broken_logits(logits: Array) -> Array:
    """A NaN or +inf in the row; -inf is an absent class."""
    return ~(jnp.max(logits, axis=-1) < jnp.inf)


def entries_in_one_form(logits: Array, labels: Array, example_weights: Array | None) -> Batch:
    """The same for losses that have no class axis: every entry is an example."""
    dtype = accumulator(logits.dtype)
    y = labels.astype(dtype)
    y = jnp.where((y >= 0.0) & (y <= 1.0), y, jnp.nan)

    def broken() -> Array:
        return ~jnp.isfinite(logits) | jnp.isnan(y)

    weights, ignored = _effective(example_weights, None, broken, dtype)
    if ignored is not None:
        logits = jnp.where(ignored, 0, logits).astype(logits.dtype)
        y = jnp.where(ignored, 0.0, y)
    return Batch(logits, None, y, weights, ignored)


def _effective(
    weights: Array | None,
    ignored: Array | None,
    broken: Callable[[], Array],
    dtype: jnp.dtype,
) -> tuple[Array | None, Array | None]:
    """Weights that are 0 on every ignored example, and which those are.

    A real weight of 0 does not make an example ignored, since the gradient of the weight is the
    example's loss; where that loss is no number, it does.
    """
    if weights is not None:
        off = ~weights if weights.dtype == jnp.bool_ else (weights == 0) & broken()
        ignored = off if ignored is None else ignored | off
        weights = weights.astype(dtype)
    if ignored is not None:
        weights = jnp.where(ignored, 0.0, 1.0 if weights is None else weights).astype(dtype)
    return weights, ignored


def checked_label(
    label: Int[Array, "..."], classes: int, options: LossOptions
) -> Int[Array, "..."]:
    """Labels as int32 of this shard of so many classes, NOWHERE for all outside [0, C)."""
    label = _comparable(label)
    everywhere = classes * _mesh.shards(options.axis_name)
    valid = _is_valid(label, everywhere)
    if debug_checks.value:
        first = jnp.argmax(~valid) if label.size else 0
        checkify.check(
            jnp.all(valid),
            "labels must be in [0, C) with C = {classes}, got {value}",
            classes=jnp.int32(everywhere),
            value=label.reshape(-1)[first] if label.size else jnp.int32(0),
        )
    return _mesh.local(label, valid, classes, options.axis_name)


def _is_index(label: Array, index: int) -> Array:
    """Label == index, also for an index that the label's dtype cannot hold."""
    info = jnp.iinfo(label.dtype)
    if not info.min <= index <= info.max:
        return jnp.zeros(label.shape, jnp.bool_)
    return label == jnp.asarray(index, label.dtype)


def _is_valid(label: Array, classes: int) -> Array:
    return (label >= 0) & (label < classes)


def _comparable(label: Array) -> Array:
    """Int8 cannot be compared with 1000 classes."""
    return label.astype(jnp.int32) if label.dtype.itemsize < 4 else label
