"""In which precision things are computed: float32 at least, float64 where the input is float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import DTypeLike, Float

from jaxsoftmax import _mesh


def accumulator(*dtypes: DTypeLike) -> jnp.dtype:
    """The dtype of statistics, sums and losses for inputs of these dtypes."""
    wide = any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def promoted(*dtypes: DTypeLike) -> jnp.dtype:
    """The dtype in which operands of these dtypes meet: asked for, so also under strict rules."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def largest(x: Array) -> float:
    """The largest finite number of x's dtype."""
    return float(jnp.finfo(x.dtype).max)


def finite(x: Array) -> Array:
    """The number, or where that is infinite the largest finite one of its sign."""
    return jnp.clip(x, -largest(x), largest(x))


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """X in the accumulator's dtype."""
    return x.astype(accumulator(x.dtype))


def widen_apart(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same numbers as `widen`, written so that XLA does not see it.

    What two passes over an array have in common, an upcast or an exponential, XLA:CPU computes
    once and writes to memory (JAX 0.10.2, 1024 x 32000 bfloat16: 125 MiB of temporaries), which
    costs more than to compute it twice. A pass behind the barrier keeps its own.
    """
    return widen(lax.optimization_barrier(x))


def bits(x: Array) -> Array:
    """Numbers of 16 bits as integers, others as they are.

    XLA:CPU gathers 16-bit floats by converting the whole array to float32 first (JAX 0.10.2);
    integers it gathers as they are. `from_bits` undoes it.
    """
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2
    return lax.bitcast_convert_type(x, jnp.uint16) if narrow else x


def from_bits(x: Array, dtype: DTypeLike) -> Array:
    """The numbers of which `bits` made integers."""
    return x if x.dtype == jnp.dtype(dtype) else lax.bitcast_convert_type(x, dtype)


def two_sum(a: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Array, Array]:
    """A + b as a rounded sum and its rounding error, exactly (Knuth, TAOCP 2, 4.2.2, theorem B)."""
    total = a + b
    shadow = total - a
    error = (a - (total - shadow)) + (b - shadow)
    return total, jnp.where(jnp.isfinite(total), error, 0.0)


def product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Matrix product over one axis of each, accumulated and returned in the accumulator's dtype.

    Operands of different dtypes meet in the promoted one. float32 is honest float32, also where
    the hardware would rather take bfloat16 or TF32, unless the user set JAX's own precision.
    """
    dtype = promoted(a.dtype, b.dtype)
    set_by_user = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    own = set_by_user is None and dtype == jnp.float32
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if own else None,
        preferred_element_type=accumulator(dtype),
        out_sharding=_mesh.sharding_of_product(a, b, contract),
    )
