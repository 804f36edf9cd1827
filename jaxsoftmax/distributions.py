"""Softmax, its logarithm and the logarithm of its normaliser: any axes, `where`, any dtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from jaxsoftmax import _arrays
from jaxsoftmax._batch.examples import classes_last
from jaxsoftmax._options import axis_name_of
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import logsumexp as _logsumexp
from jaxsoftmax._row import softmax as _softmax
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import roomy
from jaxsoftmax._xla.mesh import AxisName
from jaxsoftmax._xla.shardings import by_rows

_Array = Array | np.ndarray


def logsumexp(
    logits: Float[_Array, "..."],
    axis: int | tuple[int, ...] | None = -1,
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
        axis: the class axis, or several, or None for all. (Where `jax.nn` and SciPy reduce all
            axes by default, this reduces the last.)
        where: boolean, broadcastable to `logits`; excluded classes do not exist.
        keepdims: keep the class axes with length 1.
        axis_name: inside `jax.shard_map`, the mesh axis over which the classes are split.

    Returns:
        The logits' shape without the class axes, in float32 (float64 for float64 logits); -inf
        where no class exists, +inf where a logit is +inf, NaN where one is NaN.

    Gradients: softmax(x); 0 for a class that does not exist, and in a slice that holds +inf.

    Raises:
        TypeError: integer logits, a Python list, an axis that is no int, `where` not boolean.
        ValueError: an axis out of range, `where` of another shape.

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
    return _call(_logsumexp.logsumexp, logits, axis, where, axis_name, keepdims)


def softmax(
    logits: Float[_Array, "..."],
    axis: int | tuple[int, ...] | None = -1,
    *,
    where: Bool[_Array, "..."] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "..."]:
    r"""ŷ_c = exp(x_c) / Σ_j exp(x_j): logits to a probability distribution.

    Args:
        logits: `[..., C, ...]`, floating point.
        axis: the class axis, or several that share one distribution, or None for all.
        where: boolean, broadcastable to `logits`; an excluded class has probability 0.
        axis_name: inside `jax.shard_map`, the mesh axis over which the classes are split.

    Returns:
        The probabilities, in the shape and dtype of `logits`, computed in float32 at least. All
        are 0 where no class exists; a logit of +inf has probability 1, shared equally with
        others of its kind.

    Gradients: diag(p) − p pᵀ, formed as p (g − ⟨p, g⟩); 0 for a class that does not exist, and in
        a slice that holds +inf. (At a confident p its rounding is that of p; differentiate
        `log_softmax` where more is needed.)

    Raises:
        TypeError: integer logits, a Python list, an axis that is no int, `where` not boolean.
        ValueError: an axis out of range, `where` of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import softmax
        >>> print(softmax(jnp.array([-7.0, 5.0, 10.0])))
        [4.1122295e-08 6.6928510e-03 9.9330717e-01]

    Source: Dive into Deep Learning, section 4.1.1.2 (the softmax).
    """
    return _call(_softmax.softmax, logits, axis, where, axis_name)


def log_softmax(
    logits: Float[_Array, "..."],
    axis: int | tuple[int, ...] | None = -1,
    *,
    where: Bool[_Array, "..."] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "..."]:
    r"""log ŷ_c = x_c − log Σ_j exp(x_j): softmax's logarithm, never through softmax.

    Args:
        logits: `[..., C, ...]`, floating point.
        axis: the class axis, or several that share one distribution, or None for all.
        where: boolean, broadcastable to `logits`; an excluded class has log-probability -inf.
        axis_name: inside `jax.shard_map`, the mesh axis over which the classes are split.

    Returns:
        The log-probabilities, in the shape and dtype of `logits`, computed in float32 at least.
        That of the largest class is −log1p(Σ_{j≠a} exp(x_j − x_a)): small, but not rounded to zero.

    Gradients: I − 1 pᵀ, formed from differences to the largest class, so that the gradient of
        `nll_loss(log_softmax(x), y)` is not rounded to zero either; 0 for a class that does not
        exist, and in a slice that holds +inf.

    Raises:
        TypeError: integer logits, a Python list, an axis that is no int, `where` not boolean.
        ValueError: an axis out of range, `where` of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import log_softmax
        >>> print(log_softmax(jnp.array([20.0, 0.0, 0.0])))
        [-4.1223073e-09 -2.0000000e+01 -2.0000000e+01]

    Source: Dive into Deep Learning, section 4.5.2 (softmax revisited).
    """
    return _call(_softmax.log_softmax, logits, axis, where, axis_name)


# --- any axes, `where`, any dtype -----------------------------------------------------------------


def _call(
    function: Callable[[Array, AxisName], Array],
    logits: object,
    axis: int | tuple[int, ...] | None,
    where: object,
    axis_name: AxisName,
    keepdims: bool = False,
) -> Array:
    mesh.shards(axis_name_of(axis_name))
    x = _arrays.as_real("logits", logits)
    axes = _arrays.class_axes("logits", x, axis, distribution=True)
    mask = _arrays.as_mask(where, x.shape, "logits")
    mesh.check_axis(axis_name, {"logits": x}, {})
    result = _apply(x, mask, function=function, axes=axes, axis_name=axis_name)
    return jnp.expand_dims(result, axes) if keepdims else result


@partial(jax.jit, static_argnames=("function", "axes", "axis_name"))
@partial(by_rows, class_axes=lambda axes, **_: axes)
def _apply(
    logits: Array,
    where: Array | None,
    *,
    function: Callable[[Array, AxisName], Array],
    axes: tuple[int, ...],
    axis_name: AxisName,
) -> Array:
    """The function of classes that are last and one axis."""
    rows = classes_last(_logits.exclude(roomy(logits), where), axes)
    batch, without = logits.ndim - len(axes), rows.shape[-1] == 0
    if without:  # as a row of which no class exists
        rows = jnp.full((*rows.shape[:-1], 1), -jnp.inf, rows.dtype)
    result = function(rows, axis_name)
    if result.ndim == batch:
        return result
    if without:
        return logits
    sizes = (logits.shape[axis] for axis in axes)
    apart = result.astype(logits.dtype).reshape(*result.shape[:-1], *sizes)
    return jnp.moveaxis(apart, range(batch, logits.ndim), axes)
