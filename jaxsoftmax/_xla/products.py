"""The matrix product: accumulated in float32, and full float32 where the operands are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jax import Array, lax

from jaxsoftmax._xla.dtypes import accumulator, promoted
from jaxsoftmax._xla.shardings import sharding_of_product


def product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Matrix product over one axis of each, accumulated and returned in the accumulator's dtype.

    Operands of different dtypes meet in the promoted one. float32 stays float32, also where the
    hardware would rather take bfloat16 or TF32, unless the user set JAX's own precision.
    """
    dtype = promoted(a.dtype, b.dtype)
    set_by_user = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined, unused-ignore]
    full = set_by_user is None and dtype == "float32"
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if full else None,
        preferred_element_type=accumulator(dtype),
        out_sharding=sharding_of_product(a, b, contract),
    )


def over_matrices(f: Callable[..., Array]) -> Callable[..., Array]:
    """A function of matrices as one of arrays with any number of leading batch axes."""

    def batched(first: Array, *rest: Array, **static: object) -> Array:
        of_matrices = partial(f, **static)
        for _ in range(first.ndim - 2):
            of_matrices = jax.vmap(of_matrices)
        return of_matrices(first, *rest)

    return batched
