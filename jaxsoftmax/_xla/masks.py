"""Masks over the classes, and rows broadcast to them, sharded as the logits are.

JAX asks of a select that its mask and its cases have one explicit sharding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int, Shaped

from jaxsoftmax._xla.shardings import explicit_sharding


def keep(
    x: Shaped[Array, "*s"], where: Bool[Array, "*s"], otherwise: float = 0.0
) -> Shaped[Array, "*s"]:
    """x where the mask is true: `jnp.where` without a jitted function inside."""
    sharding = explicit_sharding(x)
    if sharding is not None and explicit_sharding(where) != sharding:
        where = jax.sharding.reshard(where, sharding)
    return lax.select(where, x, lax.full_like(x, otherwise))


def spread(values: Shaped[Array, "*b"], like: Shaped[Array, "*b C"]) -> Shaped[Array, "*b C"]:
    """One value for each row, at every class."""
    rows = tuple(range(values.ndim))
    return lax.broadcast_in_dim(values, like.shape, rows, out_sharding=explicit_sharding(like))


def is_class(logits: Shaped[Array, "*b C"], label: Int[Array, "*b"]) -> Bool[Array, "*b C"]:
    """One-hot of the label, as a mask that the compiler fuses and never stores."""
    classes = lax.broadcasted_iota(
        jnp.int32, logits.shape, logits.ndim - 1, out_sharding=explicit_sharding(logits)
    )
    return classes == label[..., None]
