"""Precision and shapes: everything is computed in float32 at least, in float64 if the input is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import DTypeLike, Float, Integer

PerClass = Float[Array, "... C"]  # logits, or anything else of one number for each class
PerRow = Float[Array, "..."]
Index = Integer[Array, "..."]  # of a class, for each row
Size = Any  # an int, or a symbolic dimension of jax.export
ClassWeights = Float[Array, "C"] | None


def accumulator(*dtypes: DTypeLike) -> np.dtype:
    """The dtype of statistics, sums and losses for inputs of these dtypes."""
    wide = any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def promoted(*dtypes: DTypeLike) -> np.dtype:
    """The dtype in which operands of these dtypes meet: asked for, so also under strict rules."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(jnp.result_type(*dtypes))


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The numbers in the accumulator's dtype."""
    return x.astype(accumulator(x.dtype))


def widen_apart(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same as `widen`, written so that XLA does not merge the two.

    What two passes over an array have in common, an upcast and what follows it, XLA:CPU computes
    once and writes to memory (JAX 0.10.2, 1024 x 32000 bfloat16: 125 MiB of temporaries), which
    costs more than to compute it twice. A pass behind the barrier keeps its own.
    """
    return x if x.dtype == accumulator(x.dtype) else widen(lax.optimization_barrier(x))


def largest(x: Array) -> np.ndarray:
    """The largest finite number of x's dtype."""
    return np.array(jnp.finfo(x.dtype).max, x.dtype)


def finite(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The number, or where that is infinite the largest finite one of its sign."""
    if jax.sharding.get_abstract_mesh().manual_axes:
        # Mapped over another axis of the mesh (spmd_axis_name), a clamp loses the type of its
        # bounds (JAX 0.12).
        return lax.min(lax.max(x, -largest(x)), largest(x))
    return lax.clamp(-largest(x), x, largest(x))


def two_difference(a: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Array, Array]:
    """a − b as a rounded difference and its rounding error, exactly.

    (Knuth, TAOCP 2, 4.2.2, theorem B.) Of finite numbers; where the difference overflows it is the
    largest number, and so is its error.
    """
    difference = finite(a - b)
    shadow = difference - a
    return difference, (a - (difference - shadow)) - (b + shadow)
