"""One argument: what the user passed -> an array of known kind and shape.

An error names the argument, what it got and what was expected.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax._options import Numbers, Traced, check_number
from jaxsoftmax._row.targets import SparseLabels

Shape = tuple[int, ...]


def as_array(name: str, value: object) -> Array:
    """Value as a JAX array; Python containers are refused, as jax.numpy refuses them."""
    if isinstance(value, (list, tuple)):
        raise TypeError(
            f"{name} must be an array, got a {type(value).__name__}; "
            f"write jnp.asarray({name}) to convert it"
        )
    if isinstance(value, (dict, set, str, bytes)) or value is None:
        raise TypeError(f"{name} must be an array, got a {type(value).__name__}")
    if type(value).__name__ == "JetTracer":
        raise TypeError(
            f"{name} is traced by jax.experimental.jet, which takes no function with a derivative "
            f"rule of its own; nest jax.jvp for higher derivatives"
        )
    if isinstance(value, Array):
        return value  # as jnp.asarray does, in 10 µs
    if isinstance(value, (np.ndarray, np.integer)) and value.dtype in (np.int64, np.uint64):
        # Without x64, JAX keeps the low 32 bits: a label of 2**32 would pass for class 0.
        bounds = jnp.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
        value = np.clip(value, bounds.min, bounds.max)
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        given = f"a {type(value).__name__}"
        if isinstance(value, (np.ndarray, np.generic)):
            given = f"dtype {value.dtype.str}"
        raise TypeError(f"{name} must be an array that JAX can hold, got {given}") from None


def as_quantity(value: object) -> object:
    """NumPy's 64-bit integers as floating point: clipped to 32 bits they would be other numbers."""
    if isinstance(value, (np.ndarray, np.integer)) and value.dtype in (np.int64, np.uint64):
        return np.asarray(value, np.float64)
    return value


def as_real(name: str, value: object) -> Array:
    """An array of floating point numbers."""
    array = as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a floating point array, got dtype {array.dtype}; "
            f"write {name}.astype(jnp.float32) if these numbers are meant"
        )
    return array


def as_mask(value: object, shape: Shape, of: str) -> Array | None:
    """`where`: a boolean array that broadcasts to `shape`, broadcast; None stays None."""
    if value is None:
        return None
    array = as_array("where", value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, got dtype {array.dtype}")
    return broadcast("where", array, shape, of)


def broadcast(name: str, array: Array, shape: Shape, of: str) -> Array:
    try:
        return jnp.broadcast_to(array, tuple(shape))
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the shape of {of}, {show(shape)}, "
            f"got shape {show(array.shape)}"
        ) from None


def batch_of(shape: Shape, axes: tuple[int, ...]) -> Shape:
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def class_axes(
    name: str, array: Array, axis: object, *, distribution: bool = False
) -> tuple[int, ...]:
    """The axes of the classes as indices >= 0; a loss has at least one class.

    A distribution may have none, and `None` for all axes.
    """
    if distribution and axis is None:
        axis = tuple(range(array.ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    if not given:
        raise ValueError("axis must name at least one axis, got ()")
    shape, indices = array.shape, []
    for a in given:
        if not isinstance(a, (int, np.integer)) or isinstance(a, bool):
            expected = "an int or a tuple of ints" + (", or None" if distribution else "")
            raise TypeError(f"axis must be {expected}, got {axis!r}")
        if not -len(shape) <= a < len(shape):
            raise ValueError(
                f"axis {a} is out of range for {name} of shape {show(shape)}, "
                f"which has {len(shape)} axes"
            )
        indices.append(int(a) % len(shape))
        if shape[a] == 0 and not distribution:
            raise ValueError(
                f"{name} must have at least one class, got {show(shape)} "
                f"with no entry along the class axis {indices[-1]}"
            )
    if len(set(indices)) != len(indices):
        raise ValueError(f"axis must not name an axis twice, got {axis!r}")
    return tuple(indices)


def of_shape(name: str, array: Array, shape: Shape, what: str) -> Array:
    if array.shape != tuple(shape):
        raise ValueError(f"{name} must have {what}, {show(shape)}, got shape {show(array.shape)}")
    return array


def as_real_or_bool(name: str, value: object) -> Array:
    array = as_array(name, as_quantity(value))
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real or boolean, got dtype {array.dtype}")
    return array


def as_broadcastable(name: str, value: object, shape: Shape, of: str) -> Array | None:
    """Boolean or real numbers that broadcast to `shape`, broadcast; None stays None."""
    return None if value is None else broadcast(name, as_real_or_bool(name, value), shape, of)


def show(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


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


def as_sparse(labels: SparseLabels, batch: Shape) -> SparseLabels:
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


def as_class_weights(value: object, shape: Shape, shards: int = 1) -> Array | None:
    """One real weight for each class that is here, as one axis."""
    if value is None:
        return None
    classes = math.prod(shape)
    here = "" if shards == 1 else f" of this device's shard, of {shards * classes} in all"
    what = f"one weight for each of the {classes} classes{here}"
    weights = of_shape("class_weights", as_real("class_weights", value), shape, what)
    return weights if len(shape) == 1 else weights.reshape(classes)


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


# --- options that may be arrays -------------------------------------------------------------------


def split_numbers(**values: object) -> tuple[dict[str, Any], Numbers]:
    """Options that are arrays, apart; in their place the sign that they are."""
    static, arrays = dict(values), {}
    for name, value in values.items():
        if isinstance(value, (Array, np.ndarray)):
            arrays[name] = _as_number(name, value)
            static[name] = Traced.ARRAY
    return static, Numbers(**arrays)


def _as_number(name: str, value: object) -> Array:
    number = as_array(name, as_quantity(value))
    real = jnp.issubdtype(number.dtype, jnp.floating) or jnp.issubdtype(number.dtype, jnp.integer)
    if number.shape != () or not real:
        raise (ValueError if real else TypeError)(
            f"{name} must be a Python number or a scalar array of real numbers, got shape "
            f"{show(number.shape)}, dtype {number.dtype}"
        )
    if not isinstance(number, jax.core.Tracer):
        check_number(name, float(number))
    return number
