"""Softmax, its logarithm and its normaliser, each with its derivative right under it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxsoftmax import _arguments, _extremes, _labels, _logits, _mesh, _rows
from jaxsoftmax._mesh import AxisName
from jaxsoftmax._options import axis_name_of
from jaxsoftmax._precision import widen

_Array = Array | np.ndarray


def logsumexp(
    logits: Float[_Array, "..."],
    axis: int | tuple[int, ...] = -1,
    *,
    where: Bool[_Array, "..."] | None = None,
    keepdims: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "..."]:
    r"""log Σ_c exp(x_c), the logarithm of softmax's normaliser.

    With a the largest class, log Σ exp(x) = x_a + log1p(Σ_{j≠a} exp(x_j − x_a)): the maximum is
    left out of the sum, so that `logsumexp([0, -40])` is 4.2e-18 and not 0.

    Args:
        logits: `[..., C, ...]`, floating point.
        axis: the class axis, or several.
        where: boolean, broadcastable to `logits`; excluded classes do not exist.
        keepdims: keep the class axes with length 1.
        axis_name: inside `jax.shard_map`, the mesh axis over which the classes are split.

    Returns:
        The logits' shape without the class axes, in float32 (float64 for float64 logits); -inf
        where no class exists, +inf where a logit is +inf, NaN where one is NaN.

    Gradients: softmax(x); 0 for a class that does not exist, and in a slice that holds +inf.

    Raises:
        TypeError: integer logits, a Python list, an axis that is no int, `where` not boolean.
        ValueError: an axis out of range or without classes, `where` of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import logsumexp
        >>> print(logsumexp(jnp.array([0.0, -40.0])))
        4.248354e-18

    Source: Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax
        functions", IMA J. Numer. Anal. 41(4), 2021.
    """
    if not isinstance(keepdims, bool):
        raise TypeError(f"keepdims must be True or False, got {keepdims!r}")
    x, axes, mask = _check(logits, axis, where, axis_name)
    return _apply_logsumexp(x, mask, axes=axes, keepdims=keepdims, axis_name=axis_name)


def softmax(
    logits: Float[_Array, "..."],
    axis: int | tuple[int, ...] = -1,
    *,
    where: Bool[_Array, "..."] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "..."]:
    r"""ŷ_c = exp(x_c) / Σ_j exp(x_j): logits to a probability distribution.

    Args:
        logits: `[..., C, ...]`, floating point.
        axis: the class axis, or several that share one distribution.
        where: boolean, broadcastable to `logits`; an excluded class has probability 0.
        axis_name: inside `jax.shard_map`, the mesh axis over which the classes are split.

    Returns:
        The probabilities, in the shape and dtype of `logits`, computed in float32 at least. All
        are 0 where no class exists; a logit of +inf has probability 1, shared equally with
        others of its kind.

    Gradients: diag(p) − p pᵀ; 0 for a class that does not exist, and in a slice that holds +inf.

    Raises:
        TypeError: integer logits, a Python list, an axis that is no int, `where` not boolean.
        ValueError: an axis out of range or without classes, `where` of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import softmax
        >>> print(softmax(jnp.array([-7.0, 5.0, 10.0])))
        [4.1122295e-08 6.6928510e-03 9.9330717e-01]

    Source: Dive into Deep Learning, section 4.1.1.2 (the softmax).
    """
    x, axes, mask = _check(logits, axis, where, axis_name)
    return _apply(x, mask, function=_softmax, axes=axes, axis_name=axis_name)


def log_softmax(
    logits: Float[_Array, "..."],
    axis: int | tuple[int, ...] = -1,
    *,
    where: Bool[_Array, "..."] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "..."]:
    r"""log ŷ_c = x_c − log Σ_j exp(x_j): softmax's logarithm, never through softmax.

    Args:
        logits: `[..., C, ...]`, floating point.
        axis: the class axis, or several that share one distribution.
        where: boolean, broadcastable to `logits`; an excluded class has log-probability -inf.
        axis_name: inside `jax.shard_map`, the mesh axis over which the classes are split.

    Returns:
        The log-probabilities, in the shape and dtype of `logits`, computed in float32 at least.
        That of the largest class is −log1p(Σ_{j≠a} exp(x_j − x_a)): small, never a rounded 0.

    Gradients: I − 1 pᵀ, formed from differences to the largest class, so that the gradient of
        `nll_loss(log_softmax(x), y)` is not absorbed either; 0 for a class that does not exist,
        and in a slice that holds +inf.

    Raises:
        TypeError: integer logits, a Python list, an axis that is no int, `where` not boolean.
        ValueError: an axis out of range or without classes, `where` of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import log_softmax
        >>> print(log_softmax(jnp.array([20.0, 0.0, 0.0])))
        [-4.1223073e-09 -2.0000000e+01 -2.0000000e+01]

    Source: Dive into Deep Learning, section 4.5.2 (softmax revisited).
    """
    x, axes, mask = _check(logits, axis, where, axis_name)
    return _apply(x, mask, function=_log_softmax, axes=axes, axis_name=axis_name)


# --- the functions over the last axis, into the accumulator's dtype, each with its rule -----------


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(x: Float[Array, "... C"], axis_name: AxisName) -> Float[Array, "... C"]:
    return _rows.probabilities(x, axis_name)


@_softmax.defjvp
def _softmax_jvp(axis_name, primals, tangents):  # type: ignore[no-untyped-def]
    (x,) = primals
    moved = _Moved.by(x, tangents[0], axis_name)
    p_top, _ = _rows.label_probability(moved.row)
    tangent = moved.p_others * moved.others + _labels.place(p_top * moved.top, x, moved.label)
    return _softmax(x, axis_name), tangent


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _log_softmax(x: Float[Array, "... C"], axis_name: AxisName) -> Float[Array, "... C"]:
    return _rows.log_probabilities(x, _rows.of_distribution(x, axis_name))


@_log_softmax.defjvp
def _log_softmax_jvp(axis_name, primals, tangents):  # type: ignore[no-untyped-def]
    (x,) = primals
    moved = _Moved.by(x, tangents[0], axis_name)
    stuck = jnp.isinf(moved.row.top)[..., None]
    fixed = jnp.isinf(x) | stuck | _extremes.is_class(x, moved.label)
    tangent = jnp.where(fixed, 0.0, moved.others) + _labels.place(moved.top, x, moved.label)
    return _log_softmax(x, axis_name), tangent


class _Moved(NamedTuple):
    """∂ log p_c = ẋ_c − Σ_j p_j ẋ_j, at the largest class a as (1 − p_a) ẋ_a − Σ_{j≠a} p_j ẋ_j.

    1 − p_a is the sum of the others and absorbs none of them, so that the gradient at a, too, is
    exact where the model is sure. What cannot move: classes that do not exist, and every class
    beside one at +inf.
    """

    row: _rows.Row
    label: Int[Array, "..."]  # a
    p_others: Float[Array, "... C"]  # p_c, 0 at a and where nothing moves
    others: Float[Array, "... C"]  # ∂ log p_c, of no meaning where p_others is 0
    top: Float[Array, "..."]  # ∂ log p_a

    @classmethod
    def by(cls, x: Float[Array, "... C"], tangent: Array, axis_name: AxisName) -> _Moved:
        tangent = widen(tangent)
        row, label = _rows.from_largest(x, axis_name)
        p_others = _rows.other_probabilities(x, row, label)
        # Once more and not shared: see `widen_apart`.
        again = _rows.other_probabilities(lax.optimization_barrier(x), row, label)
        of_others = _rows.over_classes(again * tangent, axis_name)
        at_top = jnp.where(_extremes.is_class(x, label), tangent, 0.0)
        of_top = _rows.over_classes(at_top, axis_name)
        p_top, rest = _rows.label_probability(row)
        others = tangent - (p_top * of_top + of_others)[..., None]
        top = rest * of_top - of_others
        return cls(row, label, p_others, others, jnp.where(jnp.isinf(row.top), 0.0, top))


# --- any axes, `where`, any dtype -----------------------------------------------------------------


def _check(
    logits: object, axis: int | tuple[int, ...], where: object, axis_name: AxisName
) -> tuple[Array, tuple[int, ...], Array | None]:
    _mesh.shards(axis_name_of(axis_name))
    x = _arguments.as_real("logits", logits)
    axes = _arguments.class_axes("logits", x, axis)
    return x, axes, _arguments.as_mask("where", where, x.shape, "logits")


@partial(jax.jit, static_argnames=("function", "axes", "axis_name"))
def _apply(
    logits: Array,
    where: Array | None,
    *,
    function: Callable[[Array, AxisName], Array],
    axes: tuple[int, ...],
    axis_name: AxisName,
) -> Array:
    x = _classes_last(_logits.exclude(logits, where), axes)
    result = function(x, axis_name).astype(logits.dtype)
    kept = [n for i, n in enumerate(logits.shape) if i not in axes]
    result = result.reshape(*kept, *(logits.shape[a] for a in axes))
    return jnp.moveaxis(result, range(len(kept), logits.ndim), axes)


@partial(jax.jit, static_argnames=("axes", "keepdims", "axis_name"))
def _apply_logsumexp(
    logits: Array,
    where: Array | None,
    *,
    axes: tuple[int, ...],
    keepdims: bool,
    axis_name: AxisName,
) -> Array:
    x = _classes_last(_logits.exclude(logits, where), axes)
    result = _rows.logsumexp(_rows.of_distribution(x, axis_name))
    return jnp.expand_dims(result, sorted(axes)) if keepdims else result


def _classes_last(logits: Array, axes: tuple[int, ...]) -> Array:
    """The class axes moved to the end and made one."""
    if axes == (logits.ndim - 1,):
        return logits
    moved = jnp.moveaxis(logits, axes, range(logits.ndim - len(axes), logits.ndim))
    return moved.reshape(*moved.shape[: logits.ndim - len(axes)], -1)
