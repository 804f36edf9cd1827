"""The chapter's derivatives, written as the chapter writes them: what `jax.grad` is compared with.

jax.numpy only and no care for extremes: definitions, not implementations.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Num

from jaxsoftmax import _arrays
from jaxsoftmax._xla import masks as _masks

_Array = Array | np.ndarray


def softmax_jacobian(logits: Float[_Array, "... C"]) -> Float[Array, "... C C"]:
    r"""∂ŷ_i/∂x_j = ŷ_i (1[i=j] − ŷ_j), that is diag(p) − p pᵀ with p = softmax(x).

    Args:
        logits: `[..., C]`, floating point.

    Returns:
        `[..., C, C]` in the dtype of `logits`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import closed_form
        >>> print(closed_form.softmax_jacobian(jnp.zeros(2)))
        [[ 0.25 -0.25]
         [-0.25  0.25]]

    Source: Dive into Deep Learning, section 4.1.2.2 (softmax and cross-entropy loss).
    """
    return _covariance(_softmax(_checked(logits)))


def cross_entropy_gradient(
    logits: Float[_Array, "... C"], labels: Num[_Array, "..."], *, reduction: str = "mean"
) -> Float[Array, "... C"]:
    r"""∂ℓ/∂x = softmax(x) − y, divided by the number of examples for reduction="mean".

    Args:
        logits: `[..., C]`, floating point.
        labels: integers `[...]` or distributions `[..., C]`.
        reduction: "mean", or "sum" or "none", whose gradients (of a cotangent of ones) agree.

    Returns:
        `[..., C]` in the dtype of `logits`; NaN in the row of a label outside [0, C).

    Raises:
        ValueError: an unknown reduction.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import closed_form
        >>> print(closed_form.cross_entropy_gradient(jnp.zeros((1, 2)), jnp.array([0])))
        [[-0.5  0.5]]

    Source: Dive into Deep Learning, section 4.1.2.2 (softmax and cross-entropy loss).
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be one of 'none', 'sum', 'mean', got {reduction!r}")
    x = _checked(logits)
    y = _arrays.as_labels(labels, "logits", x.shape, (x.ndim - 1,))
    if y.ndim < x.ndim:
        valid = (y >= 0) & (y < x.shape[-1])
        y = jnp.eye(x.shape[-1])[jnp.where(valid, y, 0)]  # one-hot
        y = _masks.nan_where(_masks.spread(~valid, y), y)
    gradient = _softmax(x) - y.astype(x.dtype)
    examples = x.size // x.shape[-1]
    return gradient / examples if reduction == "mean" and examples else gradient


def cross_entropy_hessian(logits: Float[_Array, "... C"]) -> Float[Array, "... C C"]:
    r"""∂²ℓ/∂x² = diag(p) − p pᵀ, softmax's Jacobian, whatever the label.

    Args:
        logits: `[..., C]`, floating point.

    Returns:
        `[..., C, C]` in the dtype of `logits`, for one example's loss.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import closed_form
        >>> print(closed_form.cross_entropy_hessian(jnp.zeros(2)))
        [[ 0.25 -0.25]
         [-0.25  0.25]]

    Source: Dive into Deep Learning, section 4.1.2.2 and exercise 1 of section 4.1.
    """
    return softmax_jacobian(logits)


def _checked(logits: object) -> Array:
    x = _arrays.as_real("logits", logits)
    _arrays.class_axes("logits", x, -1)
    return x


def _softmax(x: Array) -> Array:
    exponentials = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


@partial(jnp.vectorize, signature="(c)->(c,c)")
def _covariance(p: Array) -> Array:
    return jnp.diag(p) - jnp.outer(p, p)
