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
PerNamed = Float[Array, "... K"]  # a number for each class that a row names
Index = Integer[Array, "..."]  # of a class, for each row
Size = Any  # an int, or a symbolic dimension of jax.export
ClassWeights = Float[Array, "C"] | None


def accumulator(*dtypes: DTypeLike) -> np.dtype:
    """The dtype of statistics, sums and losses for inputs of these dtypes."""
    wide = any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def promoted(*dtypes: DTypeLike) -> np.dtype:
    """The dtype in which operands of these dtypes meet: asked for, so also under strict rules.

    Formats of 8 bits meet as they are where they are the same, and else in bfloat16; those of 4
    bits in bfloat16, since XLA:CPU multiplies none.
    """
    names = {jnp.dtype(dtype).name for dtype in dtypes}
    if len(names) > 1 or min(names).startswith("float4"):
        dtypes = tuple(jnp.bfloat16 if is_narrow(dtype) else dtype for dtype in dtypes)
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(jnp.result_type(*dtypes))


def is_narrow(dtype: DTypeLike) -> bool:
    """Whether a floating point format has 8 bits or 4: some of these know no infinity."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 8


def roomy(x: Array) -> Array:
    """The numbers in float32 where their own format is narrow: before any becomes infinite."""
    return x.astype(jnp.float32) if is_narrow(x.dtype) else x


def of_gradients(*dtypes: DTypeLike) -> np.dtype:
    """The dtype of a gradient that is multiplied with operands of these: 8 bits would not do."""
    dtype = promoted(*dtypes)
    return jnp.dtype(jnp.bfloat16) if is_narrow(dtype) else dtype


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


def two_product(a: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Array, Array]:
    """a · b as a rounded product and its rounding error, exactly.

    (Dekker, Numer. Math. 18, 1971.)
    """
    product = a * b
    (high_a, low_a), (high_b, low_b) = _halves(a), _halves(b)
    error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    return product, error


def _halves(x: Array) -> tuple[Array, Array]:
    """Two numbers of half the digits whose sum is x (Veltkamp)."""
    shifted = x * (2.0 ** -(-(jnp.finfo(x.dtype).nmant + 1) // 2) + 1.0)
    high = shifted - (shifted - x)
    return high, x - high


def two_difference(a: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Array, Array]:
    """a − b as a rounded difference and its rounding error, exactly.

    (Knuth, TAOCP 2, 4.2.2, theorem B.) Of finite numbers; where the difference overflows it is the
    largest number, and so is its error.
    """
    difference = finite(a - b)
    shadow = difference - a
    return difference, (a - (difference - shadow)) - (b + shadow)
