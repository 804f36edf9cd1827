"""What only the values of labels tell: which are ignored or no class, and what to report."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import checkify

from jaxsoftmax._options import LossOptions
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import Index, Size
from jaxsoftmax._xla.masks import spread

debug_checks = jax.make_user_context(False)
debug_checks.__doc__ = """Context in which labels are checked by value, under checkify.

`with jaxsoftmax.debug_checks(True): error, loss = checkify.checkify(f)(...)` makes a label
outside [0, C) an error that names it, instead of the NaN that the loss is without.
"""


def comparable(label: Array) -> Array:
    """An int8 cannot be compared with 1000 classes."""
    return label.astype(jnp.int32) if label.dtype.itemsize < 4 else label


def is_valid(label: Array, classes: Size) -> Array:
    return (label >= 0) & (label < classes)


def checked_index(label: Index, classes: Size, options: LossOptions) -> Array:
    """Labels as int32 of this shard of so many classes, NOWHERE for all outside [0, C)."""
    everywhere = classes * mesh.shards(options.axis_name)
    valid = is_valid(label, everywhere)
    if debug_checks.value:
        checkify.check(
            jnp.all(valid),
            "labels must be in [0, C) with C = {classes}, got {value}",
            classes=jnp.int32(everywhere),
            value=_first(label, ~valid),
        )
    return mesh.to_local(label, valid, classes, options.axis_name)


def is_ignored(label: Array, options: LossOptions) -> Array | None:
    """Whether it is one of the ignored indices."""
    indices = options.ignore_index
    if indices is None:
        return None
    several = indices if isinstance(indices, tuple) else (indices,)
    return functools.reduce(operator.or_, (_is_index(label, index) for index in several))


def _is_index(label: Array, index: int) -> Array:
    """label == index, also for an index that the label's dtype cannot hold."""
    low, high = 0, 1
    if jnp.issubdtype(label.dtype, jnp.integer):
        low, high = jnp.iinfo(label.dtype).min, jnp.iinfo(label.dtype).max
    if jnp.issubdtype(label.dtype, jnp.floating) or low <= index <= high:
        return label == jnp.asarray(index, label.dtype)
    return lax.full_like(label, False, jnp.bool_)


def check_counts(labels: Array, ignored: Array | None) -> None:
    """Integers in the logits' shape are one-hot, or several hot classes, and no class indices."""
    if not debug_checks.value or not jnp.issubdtype(labels.dtype, jnp.integer):
        return
    wrong = (labels != 0) & (labels != 1)
    if ignored is not None:
        wrong &= spread(~ignored, wrong)
    checkify.check(
        ~jnp.any(wrong),
        "labels are integers in the shape of the logits: each must be 0 or 1, got {value}; class "
        "indices have the shape of the batch",
        value=_first(labels, wrong),
    )


def check_log_probs(log_probs: Array) -> None:
    """Log-probabilities are not all between 0 and 1."""
    if debug_checks.value:
        between = jnp.all((log_probs >= 0.0) & (log_probs <= 1.0)) & jnp.any(log_probs > 0.0)
        checkify.check(
            ~between,
            "log_probs are all in [0, 1]: they must be log-probabilities, as log_softmax gives "
            "them, got what looks like probabilities",
        )


def _first(values: Array, where: Array) -> Array:
    """The first of the values where the mask is true."""
    if values.size == 0:
        return jnp.zeros((), values.dtype)
    return values.reshape(-1)[jnp.argmax(where)]
