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
    as_class_weights,
    as_denominator,
    as_example_weights,
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

    labels: Array | SparseLabels | None  # None where two linear layers are compared
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


# The arrays unchecked, in this order.
Given = tuple[object, object, object, object, object, Numbers]
GivenToPair = tuple[object, object, object, Numbers]  # without labels and class weights


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
    given: GivenToPair,
    options: LossOptions,
) -> tuple[Array, tuple[int, ...], Arrays]:
    """Logits, their class axes, and beside them the target's logits, in place of labels."""
    x, y = as_real("logits", logits), as_real("target_logits", target_logits)
    axes = class_axes("logits", x, axis)
    of_shape("target_logits", y, x.shape, "the shape of logits")
    mask = as_mask(given[0], x.shape, "logits")
    arrays = _beside_pair(y, mask, batch_of(x.shape, axes), given, options)
    split = {"logits": x, "target_logits": y}
    mesh.check_axis(options.axis_name, split, {"example_weights": arrays.example_weights})
    return x, axes, arrays


def checked_linear_pair(
    head: tuple[object, object, object],
    target: tuple[object, object, object],
    given: GivenToPair,
    options: LinearOptions,
) -> tuple[Head, Head, Arrays]:
    """The same for the logits of two linear layers."""
    h, w, b = _as_linear(*head, options.kernel_layout)
    layout = options.target_kernel_layout
    assert layout is not None
    g, u, c = _as_linear(*target, layout, "target_")
    of_shape("target_hidden", g, (*h.shape[:-1], g.shape[-1]), "the batch of hidden")
    classes, others = w.shape[options.kernel_layout.index("V")], u.shape[layout.index("V")]
    if classes != others:
        raise ValueError(
            f"target_kernel must have the classes of kernel, {classes}, got {others} in shape "
            f'{show(u.shape)} with target_kernel_layout="{layout}"'
        )
    batch = h.shape[:-1]
    mask = _as_class_mask(given[0], (*batch, classes))
    arrays = _beside_pair(None, mask, batch, given, options)
    whole = {"hidden": h, "target_hidden": g, "example_weights": arrays.example_weights}
    mesh.check_axis(options.axis_name, {"kernel": w, "target_kernel": u}, whole)
    return Head(h, w, b), Head(g, u, c), arrays


def _beside_pair(
    target: Array | None,
    where: Array | None,
    batch: Shape,
    given: GivenToPair,
    options: LossOptions,
) -> Arrays:
    """The arrays beside two that are compared."""
    _, example_weights, denominator, numbers = given
    mesh.shards(options.axis_name)
    return Arrays(
        target,
        where,
        example_weights=as_example_weights(example_weights, batch),
        denominator=as_denominator(denominator, options.reduction),
        numbers=numbers,
    )


def _of_examples(arrays: Arrays, ndim: int) -> dict[str, Array | None]:
    """Arrays with a number for each example, by name."""
    assert arrays.labels is not None
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
    hidden: object, kernel: object, bias: object, layout: KernelLayout, prefix: str = ""
) -> tuple[Array, Array, Array | None]:
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
        return h, w, None
    count = w.shape[classes]
    what = f"one entry for each of the {count} classes"
    name = f"{prefix}bias"
    return h, w, of_shape(name, as_real(name, bias), (count,), what)


def _as_class_mask(where: object, shape: Shape) -> Array | None:
    """A mask over the classes: [V] where it is the same for all rows, else [..., V]."""
    if where is None:
        return None
    mask = as_array("where", where)
    if all(n == 1 for n in mask.shape[:-1]) and mask.ndim <= len(shape):
        mask = mask.reshape(mask.shape[-1:])
        return as_mask(mask, shape[-1:], f"hidden @ kernel {show(shape)}, its last axis")
    return as_mask(mask, shape, "hidden @ kernel")
