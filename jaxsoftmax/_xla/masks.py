"""Masks over the classes, and rows broadcast to them, sharded as the logits are.

JAX asks of a select that its mask and its cases have one explicit sharding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int, Shaped

from jaxsoftmax._xla.shardings import automatic, explicit_mesh, explicit_sharding


def keep(
    x: Shaped[Array, "*s"], where: Bool[Array, "*s"], otherwise: float = 0.0
) -> Shaped[Array, "*s"]:
    """x where the mask is true: `jnp.where` without a jitted function inside."""
    of_x, of_mask = explicit_sharding(x), explicit_sharding(where)
    if of_x is not None and of_mask != of_x:
        where = jax.sharding.reshard(where, of_x)
    elif of_x is None and of_mask is not None:
        x = jax.sharding.reshard(x, of_mask)
    return lax.select(where, x, lax.full_like(x, otherwise))


def counted(x: Array, weights: Array) -> Array:
    """x with 0 for what a weight of 0 cannot hide: infinity, and NaN."""
    return keep(x, (weights != 0.0) | lax.is_finite(x))


def at_least(x: Shaped[Array, "*s"], bound: float) -> Shaped[Array, "*s"]:
    """max(x, bound), NaN where x is.

    XLA:CPU's own maximum and minimum of a NaN and a number may be the number (JAX 0.12, in loops
    with a reduction over some hundred classes).
    """
    limit = lax.full_like(x, bound)
    return lax.select(lax.lt(x, limit), limit, x)


def at_most(x: Shaped[Array, "*s"], bound: float) -> Shaped[Array, "*s"]:
    """min(x, bound), NaN where x is."""
    limit = lax.full_like(x, bound)
    return lax.select(lax.gt(x, limit), limit, x)


def nan_where(bad: Bool[Array, "*s"], x: Shaped[Array, "*s"]) -> Shaped[Array, "*s"]:
    """x, and NaN where it is bad.

    No literal, and none that is made where it is not wanted: `jax.debug_nans` looks at both.
    """
    return x + 0.0 * keep(lax.full_like(x, jnp.inf), bad)


def spread(values: Shaped[Array, "*b"], like: Shaped[Array, "*b C"]) -> Shaped[Array, "*b C"]:
    """One value for each row, at every class."""
    rows = tuple(range(values.ndim))
    return lax.broadcast_in_dim(values, like.shape, rows, out_sharding=explicit_sharding(like))


def spread_over(values: Shaped[Array, "C"], like: Shaped[Array, "*b C"]) -> Shaped[Array, "*b C"]:
    """One value for each class, in every row."""
    last = (like.ndim - 1,)
    return lax.broadcast_in_dim(values, like.shape, last, out_sharding=explicit_sharding(like))


def take(values: Shaped[Array, "C"], index: Int[Array, "*b"]) -> Shaped[Array, "*b"]:
    """The value at each index, sharded as the indices are."""
    return _gathered(partial(jnp.take, axis=0), values, index)


def take_along(values: Shaped[Array, "*b C"], index: Int[Array, "*b K"]) -> Shaped[Array, "*b K"]:
    """The values of some classes of each row, sharded as the indices are."""
    return _gathered(partial(jnp.take_along_axis, axis=-1), values, index)


def _gathered(gather: Callable[[Array, Array], Array], values: Array, index: Array) -> Array:
    mesh = explicit_mesh((values, index))
    if mesh is None:
        return gather(values, index)
    return automatic(gather, mesh, jax.typeof(index).sharding.spec)(values, index)


def is_class(logits: Shaped[Array, "*b C"], label: Int[Array, "*b"]) -> Bool[Array, "*b C"]:
    """One-hot of the label, as a mask that the compiler fuses and never stores."""
    classes = lax.broadcasted_iota(
        jnp.int32, logits.shape, logits.ndim - 1, out_sharding=explicit_sharding(logits)
    )
    return classes == label[..., None]
