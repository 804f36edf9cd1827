"""The arrays of a loss, checked against each other.

Every error about an array is raised here or in `_arrays`, when the function is called or traced.
(Values are looked at in `_batch`.)
"""

from __future__ import annotations

from typing import NamedTuple

from jax import Array
from jaxtyping import Float

from jaxsoftmax._arrays import (
    Shape,
    as_array,
    as_broadcastable,
    as_class_weights,
    as_denominator,
    as_labels,
    as_mask,
    as_real,
    as_sparse,
    batch_of,
    class_axes,
    of_shape,
    show,
)
from jaxsoftmax._options import KernelLayout, LinearOptions, LossOptions, Numbers
from jaxsoftmax._row.targets import SparseLabels
from jaxsoftmax._xla import mesh


class Arrays(NamedTuple):
    """The arrays of a loss beside its logits, or beside the linear layer that makes them."""

    labels: Array | SparseLabels | None  # None where two rows of logits are compared
    where: Array | None = None
    class_weights: Array | None = None
    example_weights: Array | None = None
    denominator: Array | None = None
    numbers: Numbers = Numbers()


class Head(NamedTuple):
    """A linear layer and what it is given."""

    hidden: Float[Array, "*batch D"]
    kernel: Float[Array, "D V"] | Float[Array, "V D"]
    bias: Float[Array, "V"] | None


# The arrays unchecked, in this order; without labels, and class weights, where two are compared.
Given = tuple[object, object, object, object, object, Numbers]
Linear = tuple[object, object, object]  # the same of a linear layer: hidden, kernel, bias


def checked(
    name: str, logits: object, axis: object, given: Given, options: LossOptions
) -> tuple[Array, tuple[int, ...], Arrays]:
    """The logits of a loss, their class axes, and the arrays beside them."""
    x = as_real(name, logits)
    axes = class_axes(name, x, axis)
    mask = as_mask(given[1], x.shape, name)
    labels = _labels(name, x.shape, axes, given[0], options)
    arrays = _beside(labels, mask, x.shape, axes, given, options)
    mesh.check_axis(options.axis_name, {name: x}, _of_examples(arrays, x.ndim))
    return x, axes, arrays


def checked_pair(
    logits: object, target_logits: object, axis: object, given: Given, options: LossOptions
) -> tuple[Array, Array, tuple[int, ...], Arrays]:
    """The same with the logits of a target in place of labels."""
    x, y = as_real("logits", logits), as_real("target_logits", target_logits)
    axes = class_axes("logits", x, axis)
    of_shape("target_logits", y, x.shape, "the shape of logits")
    arrays = _beside(None, as_mask(given[1], x.shape, "logits"), x.shape, axes, given, options)
    split = {"logits": x, "target_logits": y}
    mesh.check_axis(options.axis_name, split, _of_examples(arrays, x.ndim))
    return x, y, axes, arrays


def checked_linear(
    linear: Linear, given: Given, options: LinearOptions, target: Linear | None = None
) -> tuple[tuple[Head, ...], Arrays]:
    """The same for logits that are those of a linear layer, or of two."""
    head = _as_linear(*linear, options.kernel_layout)
    shape = (*head.hidden.shape[:-1], head.kernel.shape[options.kernel_layout.index("V")])
    axes = (len(shape) - 1,)
    heads = (head,) if target is None else (head, _as_target(target, shape, options))
    mask = _as_class_mask(given[1], shape)
    labels = None
    if target is None:
        labels = _labels("hidden @ kernel", shape, axes, given[0], options)
    arrays = _beside(labels, mask, shape, axes, given, options)
    named = list(zip(("", "target_"), heads, strict=False))
    split = {f"{prefix}kernel": head.kernel for prefix, head in named}
    whole = {f"{prefix}hidden": head.hidden for prefix, head in named}
    mesh.check_axis(options.axis_name, split, {**whole, **_of_examples(arrays, len(shape))})
    return heads, arrays


def _of_examples(arrays: Arrays, ndim: int) -> dict[str, Array | None]:
    """Arrays with a number for each example, by name."""
    found: dict[str, Array | None] = {}
    if isinstance(arrays.labels, SparseLabels):
        found = {"labels.indices": arrays.labels.indices, "labels.weights": arrays.labels.weights}
    elif arrays.labels is not None and arrays.labels.ndim < ndim:
        found = {"labels": arrays.labels}
    return {**found, "example_weights": arrays.example_weights}


def _labels(
    name: str, shape: Shape, axes: tuple[int, ...], labels: object, options: LossOptions
) -> Array | SparseLabels:
    """Labels of either kind that the options take."""
    y: Array | SparseLabels
    if isinstance(labels, SparseLabels):
        y = as_sparse(labels, batch_of(shape, axes))
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
    return y


def _beside(
    labels: Array | SparseLabels | None,
    where: Array | None,
    shape: Shape,
    axes: tuple[int, ...],
    given: Given,
    options: LossOptions,
) -> Arrays:
    """The arrays beside logits of this shape."""
    _, _, class_weights, example_weights, denominator, numbers = given
    classes, shards = tuple(shape[a] for a in axes), mesh.shards(options.axis_name)
    return Arrays(
        labels,
        where,
        as_class_weights(class_weights, classes, shards),
        as_broadcastable("example_weights", example_weights, batch_of(shape, axes), "the batch"),
        as_denominator(denominator, options.reduction),
        numbers,
    )


def _as_target(target: Linear, shape: Shape, options: LinearOptions) -> Head:
    """The layer of the target, beside one whose logits have this shape."""
    layout = options.target_kernel_layout
    assert layout is not None
    head = _as_linear(*target, layout, "target_")
    hidden, kernel, _ = head
    of_shape("target_hidden", hidden, (*shape[:-1], hidden.shape[-1]), "the batch of hidden")
    classes = kernel.shape[layout.index("V")]
    if classes != shape[-1]:
        raise ValueError(
            f"target_kernel must have the classes of kernel, {shape[-1]}, got {classes} in shape "
            f'{show(kernel.shape)} with target_kernel_layout="{layout}"'
        )
    return head


def _as_linear(
    hidden: object, kernel: object, bias: object, layout: KernelLayout, prefix: str = ""
) -> Head:
    """The arrays of a linear layer, their shapes agreeing."""
    h, w = as_real(f"{prefix}hidden", hidden), as_real(f"{prefix}kernel", kernel)
    if h.ndim < 1:
        raise ValueError(f"{prefix}hidden must have a feature axis, [..., D], got a scalar")
    features, classes = layout.index("D"), layout.index("V")
    if w.ndim != 2 or w.shape[features] != h.shape[-1]:
        expected = "[D, V]" if layout == "DV" else "[V, D]"
        other = "VD" if layout == "DV" else "DV"
        fits_other = w.ndim == 2 and w.shape[classes] == h.shape[-1]
        hint = f'; this one fits {prefix}kernel_layout="{other}"' if fits_other else ""
        raise ValueError(
            f'{prefix}kernel must have shape {expected} with {prefix}kernel_layout="{layout}" and '
            f"D = {h.shape[-1]}, the last axis of {prefix}hidden {show(h.shape)}, "
            f"got {show(w.shape)}{hint}"
        )
    if w.shape[classes] == 0:
        raise ValueError(f"{prefix}kernel must have at least one class, got shape {show(w.shape)}")
    if bias is None:
        return Head(h, w, None)
    count, name = w.shape[classes], f"{prefix}bias"
    what = f"one entry for each of the {count} classes"
    return Head(h, w, of_shape(name, as_real(name, bias), (count,), what))


def _as_class_mask(where: object, shape: Shape) -> Array | None:
    """A mask over the classes: [V] where it is the same for all rows, else [..., V]."""
    if where is None:
        return None
    mask = as_array("where", where)
    if all(n == 1 for n in mask.shape[:-1]) and mask.ndim <= len(shape):
        mask = mask.reshape(mask.shape[-1:])
        return as_mask(mask, shape[-1:], f"hidden @ kernel {show(shape)}, its last axis")
    return as_mask(mask, shape, "hidden @ kernel")
