"""The arrays of a loss, checked against each other.

Every error about an array is raised here or in `_arrays`, when the function is called or traced.
(Values are looked at in `_examples`.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax._arrays import (
    Shape,
    as_array,
    as_mask,
    as_quantity,
    as_real,
    as_real_or_bool,
    batch_of,
    broadcast,
    class_axes,
    of_shape,
    show,
)
from jaxsoftmax._options import (
    KernelLayout,
    LinearOptions,
    LossOptions,
    Numbers,
)
from jaxsoftmax._row.targets import SparseLabels
from jaxsoftmax._xla import mesh


class Arrays(NamedTuple):
    """The arrays of a loss beside its logits, or beside the linear layer that makes them."""

    labels: Array | SparseLabels
    where: Array | None = None
    class_weights: Array | None = None
    example_weights: Array | None = None
    denominator: Array | None = None
    numbers: Numbers = Numbers()


# The same unchecked, in this order.
Given = tuple[object, object, object, object, object, Numbers]


def checked(
    name: str, logits: object, axis: object, given: Given, options: LossOptions
) -> tuple[Array, tuple[int, ...], Arrays]:
    """The logits of a loss, their class axes, and the arrays beside them."""
    x = as_real(name, logits)
    axes = class_axes(name, x, axis)
    mask = as_mask(given[1], x.shape, name)
    arrays = _beside(name, x.shape, axes, mask, given, options)
    mesh.check_axis(options.axis_name, {name: x}, _of_examples(arrays, x.ndim))
    return x, axes, arrays


def checked_linear(
    hidden: object, kernel: object, bias: object, given: Given, options: LinearOptions
) -> tuple[Array, Array, Array | None, Arrays]:
    """The same for logits that are those of a linear layer."""
    h, w, b = _as_linear(hidden, kernel, bias, options.kernel_layout)
    shape = (*h.shape[:-1], w.shape[options.kernel_layout.index("V")])
    mask = _as_class_mask(given[1], shape)
    arrays = _beside("hidden @ kernel", shape, (len(shape) - 1,), mask, given, options)
    whole = {"hidden": h, **_of_examples(arrays, len(shape))}
    mesh.check_axis(options.axis_name, {"kernel": w}, whole)
    return h, w, b, arrays


def checked_pair(
    logits: object,
    target_logits: object,
    axis: object,
    given: tuple[object, object, object],
    options: LossOptions,
) -> tuple[Array, tuple[int, ...], Arrays]:
    """Logits, their class axes, and beside them the target's logits, in place of labels."""
    where, example_weights, denominator = given
    x, y = as_real("logits", logits), as_real("target_logits", target_logits)
    axes = class_axes("logits", x, axis)
    of_shape("target_logits", y, x.shape, "the shape of logits")
    mesh.shards(options.axis_name)
    weights = as_example_weights(example_weights, batch_of(x.shape, axes))
    arrays = Arrays(
        y,
        as_mask(where, x.shape, "logits"),
        example_weights=weights,
        denominator=as_denominator(denominator, options.reduction),
    )
    split = {"logits": x, "target_logits": y}
    mesh.check_axis(options.axis_name, split, {"example_weights": weights})
    return x, axes, arrays


def _of_examples(arrays: Arrays, ndim: int) -> dict[str, Array | None]:
    """Arrays with a number for each example, by name."""
    if isinstance(arrays.labels, SparseLabels):
        indices, weights = arrays.labels
        found: dict[str, Array | None] = {"labels.indices": indices, "labels.weights": weights}
    else:
        found = {"labels": arrays.labels if arrays.labels.ndim < ndim else None}
    return {**found, "example_weights": arrays.example_weights}


def _beside(
    name: str,
    shape: Shape,
    axes: tuple[int, ...],
    where: Array | None,
    given: Given,
    options: LossOptions,
) -> Arrays:
    labels, _, class_weights, example_weights, denominator, numbers = given
    y: Array | SparseLabels
    if isinstance(labels, SparseLabels):
        y = _as_sparse(labels, batch_of(shape, axes))
    else:
        y = as_labels(labels, name, shape, axes, movable=not isinstance(options, LinearOptions))
    distributions = isinstance(y, SparseLabels) or y.ndim == len(shape)
    kind = "SparseLabels" if isinstance(y, SparseLabels) else f"labels of shape {show(y.shape)}"
    if options.ignore_index is not None and distributions:
        raise ValueError(
            f"ignore_index is for integer labels, got ignore_index={options.ignore_index} with "
            f"{kind}, one distribution per example; use example_weights=mask"
        )
    if options.focal_gamma and (distributions or options.label_smoothing != 0.0):
        raise ValueError(
            f"focal_gamma is for integer labels without smoothing, got focal_gamma="
            f"{options.focal_gamma} with {kind} and label_smoothing={options.label_smoothing}"
        )
    return Arrays(
        y,
        where,
        as_class_weights(
            class_weights, tuple(shape[a] for a in axes), mesh.shards(options.axis_name)
        ),
        as_example_weights(example_weights, batch_of(shape, axes)),
        as_denominator(denominator, options.reduction),
        numbers,
    )


def _as_linear(
    hidden: object, kernel: object, bias: object, layout: KernelLayout
) -> tuple[Array, Array, Array | None]:
    """The arrays of a linear layer, their shapes agreeing."""
    h, w = as_real("hidden", hidden), as_real("kernel", kernel)
    if h.ndim < 1:
        raise ValueError("hidden must have a feature axis, [..., D], got a scalar")
    features, classes = layout.index("D"), layout.index("V")
    if w.ndim != 2 or w.shape[features] != h.shape[-1]:
        expected = "[D, V]" if layout == "DV" else "[V, D]"
        other = "VD" if layout == "DV" else "DV"
        fits_other = w.ndim == 2 and w.shape[classes] == h.shape[-1]
        hint = f'; this one fits kernel_layout="{other}"' if fits_other else ""
        raise ValueError(
            f'kernel must have shape {expected} with kernel_layout="{layout}" and '
            f"D = {h.shape[-1]}, the last axis of hidden {show(h.shape)}, "
            f"got {show(w.shape)}{hint}"
        )
    if w.shape[classes] == 0:
        raise ValueError(f"kernel must have at least one class, got shape {show(w.shape)}")
    if bias is None:
        return h, w, None
    count = w.shape[classes]
    what = f"one entry for each of the {count} classes"
    return h, w, of_shape("bias", as_real("bias", bias), (count,), what)


def _as_class_mask(where: object, shape: Shape) -> Array | None:
    """A mask over the classes: [V] where it is the same for all rows, else [..., V]."""
    if where is None:
        return None
    mask = as_array("where", where)
    if all(n == 1 for n in mask.shape[:-1]) and mask.ndim <= len(shape):
        mask = mask.reshape(mask.shape[-1:])
        return as_mask(mask, shape[-1:], f"hidden @ kernel {show(shape)}, its last axis")
    return as_mask(mask, shape, "hidden @ kernel")


# --- labels ---------------------------------------------------------------------------------------


def as_labels(
    value: object, logits_name: str, shape: Shape, axes: tuple[int, ...], *, movable: bool = False
) -> Array:
    """Class indices in the shape of the batch, or soft labels in the shape of the logits.

    The rank tells which, never the dtype. `movable` says that the function takes an `axis`.
    """
    soft = isinstance(value, np.ndarray) and value.ndim == len(shape)
    labels = as_array("labels", as_quantity(value) if soft else value)
    batch = batch_of(shape, axes)
    if labels.ndim == len(shape) and labels.shape == tuple(shape):
        return as_real_or_bool("labels", labels)
    if len(axes) > 1:
        raise ValueError(
            f"labels must hold one distribution per example in the shape of {logits_name}, "
            f"{show(shape)}, where axis names several axes, got shape {show(labels.shape)}"
        )
    if labels.shape != batch:
        raise ValueError(
            f"labels must have the shape of the batch, {show(batch)} (class indices), or of "
            f"{logits_name}, {show(shape)} (soft labels), got shape {show(labels.shape)}"
            + _likely(labels, shape, batch, movable)
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"labels of the shape of the batch, {show(batch)}, must be integer class indices, "
            f"got dtype {labels.dtype}; soft labels have the shape of {logits_name}, "
            f"{show(shape)}"
        )
    return labels


def _as_sparse(labels: SparseLabels, batch: Shape) -> SparseLabels:
    """Integer indices and real weights of one shape: the batch's and a last axis."""
    indices = as_array("labels.indices", labels.indices)
    weights = as_real_or_bool("labels.weights", labels.weights)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"labels.indices must be integers, got dtype {indices.dtype}")
    for name, x in (("indices", indices), ("weights", weights)):
        if x.ndim != len(batch) + 1 or x.shape[:-1] != batch:
            of_batch = ", ".join(map(str, (*batch, "K")))
            raise ValueError(
                f"labels.{name} must have the shape of the batch and a last axis of the classes "
                f"that an example names, [{of_batch}], got shape {show(x.shape)}"
            )
    if indices.shape != weights.shape:
        raise ValueError(
            f"labels.indices and labels.weights must have one shape, got {show(indices.shape)} and "
            f"{show(weights.shape)}"
        )
    return SparseLabels(indices, weights)


def _likely(labels: Array, shape: Shape, batch: Shape, movable: bool) -> str:
    """What labels of a wrong shape were probably meant for."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return ""
    if labels.shape == (*batch, 1):
        return "; use labels[..., 0]"
    if math.prod(labels.shape) == math.prod(batch):
        return f"; class indices have shape {show(batch)}: use labels.reshape({batch})"
    for axis in range(len(shape) - 1) if movable else ():
        if labels.shape == batch_of(shape, (axis,)):
            return f"; did you mean axis={axis}?"
    return ""


def as_entries(value: object, shape: Shape) -> Array:
    """Labels entry by entry, in the logits' shape."""
    return of_shape("labels", as_real_or_bool("labels", value), shape, "the shape of logits")


def as_class_weights(value: object, shape: Shape, shards: int = 1) -> Array | None:
    """One real weight for each class that is here, as one axis."""
    if value is None:
        return None
    classes = math.prod(shape)
    here = "" if shards == 1 else f" of this device's shard, of {shards * classes} in all"
    what = f"one weight for each of the {classes} classes{here}"
    weights = of_shape("class_weights", as_real("class_weights", value), shape, what)
    return weights if len(shape) == 1 else weights.reshape(classes)


def as_example_weights(value: object, batch: Shape) -> Array | None:
    """One weight, or one True or False, for each example, broadcast to the batch."""
    if value is None:
        return None
    name = "example_weights"
    return broadcast(name, as_real_or_bool(name, value), batch, "the batch")


def as_denominator(value: object, reduction: str) -> Array | None:
    """A scalar to divide the sum by; it may be traced."""
    if value is None:
        return None
    if reduction != "mean":
        raise ValueError(
            f'denominator replaces the divisor of reduction="mean", got reduction={reduction!r}'
        )
    denominator = as_array("denominator", as_quantity(value))
    if denominator.shape != ():
        raise ValueError(f"denominator must be a scalar, got shape {show(denominator.shape)}")
    if jnp.issubdtype(denominator.dtype, jnp.complexfloating) or denominator.dtype == jnp.bool_:
        raise TypeError(f"denominator must be a real number, got dtype {denominator.dtype}")
    return denominator
