"""How the losses of the examples become one number: effective weights, the divisor, the sum."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxsoftmax._options import LossOptions


def weighted(
    losses: Float[Array, "..."], weights: Float[Array, "..."] | None
) -> Float[Array, "..."]:
    """weight · loss."""
    return losses if weights is None else weights * counted(losses, weights)


def counted(losses: Float[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, "..."]:
    """The losses with 0 for what a weight of 0 cannot hide: infinity, and NaN."""
    return jnp.where((weights == 0.0) & ~jnp.isfinite(losses), 0.0, losses)


def weights_of(
    weights: Float[Array, "..."] | None, shape: tuple[Any, ...], dtype: jnp.dtype
) -> Float[Array, "..."]:
    """The weights, 1 where there are none."""
    return jnp.ones(shape, dtype) if weights is None else weights


def weight_sum(
    shape: tuple[Any, ...],
    dtype: jnp.dtype,
    weights: Float[Array, "..."] | None,
    label_weights: Float[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """Σ label_weights · weights, the divisor of the mean; the number of examples without them."""
    factors = [w for w in (weights, label_weights) if w is not None]
    if not factors:
        return jnp.asarray(math.prod(shape), dtype=dtype)
    return jnp.sum(math.prod(factors[1:], start=factors[0]))


def divided(
    total: Float[Array, ""],
    divisor: Float[Array, ""],
    denominator: Array | None,
    options: LossOptions,
) -> Float[Array, ""]:
    """The sum, or the chapter's 1/N Σ; a divisor of 0 gives 0 and gradient 0."""
    if options.reduction == "sum":
        return total
    if denominator is not None:
        divisor = denominator.astype(total.dtype)
    empty = divisor == 0.0
    return jnp.where(empty, 0.0, total / jnp.where(empty, 1.0, divisor))
