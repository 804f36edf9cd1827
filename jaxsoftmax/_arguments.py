"""What the user wrote -> arrays of known kind and shape.

Every error about an array is raised here, when the function is called or traced, and names the
argument, what it got and what was expected. (Values are looked at in `_batch`.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def as_array(name: str, value: Any) -> Array:
    """Value as a JAX array; Python containers are refused, as jax.numpy refuses them."""
    if isinstance(value, (list, tuple, dict, set, str, bytes)) or value is None:
        raise TypeError(
            f"{name} must be an array, got a {type(value).__name__}; "
            f"write jnp.asarray({name}) to make one of it"
        )
    if isinstance(value, (np.ndarray, np.integer)) and value.dtype in (np.int64, np.uint64):
        # Without x64, JAX keeps the low 32 bits: a label of 2**32 would pass for class 0.
        bounds = jnp.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
        value = np.clip(value, bounds.min, bounds.max)
    return jnp.asarray(value)


def as_real(name: str, value: Any) -> Array:
    """An array of floating point numbers."""
    array = as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a floating point array, got dtype {array.dtype}; "
            f"write {name}.astype(jnp.float32) if these numbers are meant"
        )
    return array


def as_mask(name: str, value: Any, shape: Sequence[int], of: str) -> Array | None:
    """A boolean array that broadcasts to `shape`, broadcast; None stays None."""
    if value is None:
        return None
    array = as_array(name, value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got dtype {array.dtype}")
    return _broadcast(name, array, shape, of)


def _broadcast(name: str, array: Array, shape: Sequence[int], of: str) -> Array:
    try:
        return jnp.broadcast_to(array, tuple(shape))
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the shape of {of}, {_show(shape)}, "
            f"got shape {_show(array.shape)}"
        ) from None


def class_axis(name: str, array: Array, axis: Any) -> int:
    """The class axis of one array as an index >= 0, checked to hold at least one class."""
    (index,) = class_axes(name, array, axis, several=False)
    return index


def class_axes(name: str, array: Array, axis: Any, *, several: bool = True) -> tuple[int, ...]:
    """The same for one axis or a tuple of them."""
    expected = "an int or a tuple of ints" if several else "an int"
    axes = axis if several and isinstance(axis, tuple) else (axis,)
    if not all(isinstance(a, (int, np.integer)) and not isinstance(a, bool) for a in axes):
        raise TypeError(f"axis must be {expected}, got {axis!r}")
    if not axes:
        raise ValueError("axis must name at least one axis, got ()")
    for a in axes:
        if not -array.ndim <= a < array.ndim:
            raise ValueError(
                f"axis {a} is out of range for {name} of shape {_show(array.shape)}, "
                f"which has {array.ndim} axes"
            )
    indices = tuple(int(a) % array.ndim for a in axes)
    if len(set(indices)) != len(indices):
        raise ValueError(f"axis must not name an axis twice, got {axis!r}")
    for index in indices:
        if array.shape[index] == 0:
            raise ValueError(
                f"{name} must have at least one class, got {_show(array.shape)} "
                f"with no entry along the class axis {index}"
            )
    return indices


def as_linear(hidden: Any, kernel: Any, bias: Any) -> tuple[Array, Array, Array | None]:
    """The arrays of a linear layer, their shapes agreeing."""
    hidden, kernel = as_real("hidden", hidden), as_real("kernel", kernel)
    if hidden.ndim < 1:
        raise ValueError("hidden must have a feature axis, [..., D], got a scalar")
    if kernel.ndim != 2 or kernel.shape[0] != hidden.shape[-1]:
        raise ValueError(
            f"kernel must have shape [D, V] with D = {hidden.shape[-1]}, the last axis of hidden "
            f"{_show(hidden.shape)}, got {_show(kernel.shape)}; "
            "a tied embedding [V, D] is passed as embedding.T"
        )
    if kernel.shape[1] == 0:
        raise ValueError(f"kernel must have at least one class, got shape {_show(kernel.shape)}")
    if bias is None:
        return hidden, kernel, None
    bias = as_real("bias", bias)
    if bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"bias must have one entry for each of the {kernel.shape[1]} classes, shape "
            f"{_show(kernel.shape[1:])}, got shape {_show(bias.shape)}"
        )
    return hidden, kernel, bias


def as_class_mask(where: Any, shape: Sequence[int]) -> Array | None:
    """A mask over the classes: [V] where it is the same for all rows, else [..., V]."""
    if where is None:
        return None
    mask = as_array("where", where)
    if all(n == 1 for n in mask.shape[:-1]) and mask.ndim <= len(shape):
        mask = mask.reshape(mask.shape[-1:])
        return as_mask("where", mask, shape[-1:], f"hidden @ kernel {_show(shape)}, its last axis")
    return as_mask("where", mask, shape, "hidden @ kernel")


# --- labels ---------------------------------------------------------------------------------------


def as_labels(name: str, value: Any, logits_name: str, shape: Sequence[int], axis: int) -> Array:
    """Class indices in the shape of the batch, or distributions in the shape of the logits.

    The rank tells which, never the dtype.
    """
    labels = as_array(name, value)
    batch = tuple(n for i, n in enumerate(shape) if i != axis)
    if labels.ndim == len(shape):
        if labels.shape != tuple(shape):
            raise ValueError(
                f"{name} has the rank of {logits_name}, so it must hold one distribution per "
                f"example in their shape {_show(shape)}, got shape {_show(labels.shape)}"
            )
        return _real_or_bool(name, labels)
    if labels.shape != batch:
        raise ValueError(
            f"{name} must have the shape of the batch, {_show(batch)} (class indices), or of "
            f"{logits_name}, {_show(shape)} (distributions), got shape {_show(labels.shape)}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{name} of the shape of the batch, {_show(batch)}, must be integer class indices, "
            f"got dtype {labels.dtype}; a distribution has the shape of {logits_name}, "
            f"{_show(shape)}"
        )
    return labels


def check_ignore_index(index: int | None, labels: Array, logits: Array) -> None:
    """`ignore_index` names a class index, which distributions do not have."""
    if index is not None and labels.ndim == logits.ndim:
        raise ValueError(
            f"ignore_index is for integer labels, got ignore_index={index} with labels of shape "
            f"{_show(labels.shape)}, one distribution per example; use example_weights=mask"
        )


def as_entries(name: str, value: Any, shape: Sequence[int]) -> Array:
    """Labels entry by entry, in the logits' shape."""
    labels = _real_or_bool(name, as_array(name, value))
    if labels.shape != tuple(shape):
        raise ValueError(
            f"{name} must have the shape of logits, {_show(shape)}, got {_show(labels.shape)}"
        )
    return labels


def as_broadcastable(name: str, value: Any, shape: Sequence[int]) -> Array:
    """Boolean or real numbers that broadcast to `shape`, broadcast."""
    return _broadcast(name, _real_or_bool(name, as_array(name, value)), shape, "logits")


def _real_or_bool(name: str, array: Array) -> Array:
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real or boolean, got dtype {array.dtype}")
    return array


def as_class_weights(value: Any, classes: int, shards: int = 1) -> Array | None:
    """One real weight for each class that is here."""
    if value is None:
        return None
    weights = as_real("class_weights", value)
    if weights.shape != (classes,):
        here = "" if shards == 1 else f" of this device's shard, of {shards * classes} in all"
        raise ValueError(
            f"class_weights must have one weight for each of the {classes} classes{here}, shape "
            f"({classes},), got shape {_show(weights.shape)}"
        )
    return weights


def as_example_weights(value: Any, batch: Sequence[int]) -> Array | None:
    """One weight, or one True or False, for each example."""
    if value is None:
        return None
    weights = _real_or_bool("example_weights", as_array("example_weights", value))
    if weights.shape != tuple(batch):
        raise ValueError(
            f"example_weights must have the shape of the batch, {_show(batch)}, "
            f"got shape {_show(weights.shape)}"
        )
    return weights


def as_denominator(value: Any, reduction: str) -> Array | None:
    """A scalar to divide the sum by; it may be traced."""
    if value is None:
        return None
    if reduction != "mean":
        raise ValueError(
            f'denominator replaces the divisor of reduction="mean", got reduction={reduction!r}'
        )
    denominator = as_array("denominator", value)
    if denominator.shape != ():
        raise ValueError(f"denominator must be a scalar, got shape {_show(denominator.shape)}")
    if jnp.issubdtype(denominator.dtype, jnp.complexfloating) or denominator.dtype == jnp.bool_:
        raise TypeError(f"denominator must be a real number, got dtype {denominator.dtype}")
    return denominator


def _show(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
