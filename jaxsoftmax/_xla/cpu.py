"""The forms of operations that XLA:CPU runs fastest, in a program that it runs by itself.

When the compiler no longer needs them, this file and those beside it can be deleted.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._xla import cpu_blocks, portable
from jaxsoftmax._xla.cpu_log_softmax import log_softmax as log_softmax
from jaxsoftmax._xla.cpu_log_softmax import log_softmax_gradient as log_softmax_gradient
from jaxsoftmax._xla.cpu_log_softmax import log_softmax_tangent as log_softmax_tangent
from jaxsoftmax._xla.cpu_rows import entry as entry
from jaxsoftmax._xla.cpu_rows import largest_and_odds as largest_and_odds
from jaxsoftmax._xla.cpu_rows import largest_class as largest_class
from jaxsoftmax._xla.cpu_rows import log1p as log1p
from jaxsoftmax._xla.cpu_rows import row_state as row_state
from jaxsoftmax._xla.cpu_rows import row_state_and_terms as row_state_and_terms
from jaxsoftmax._xla.cpu_softmax import softmax as softmax
from jaxsoftmax._xla.cpu_softmax import softmax_mean as softmax_mean
from jaxsoftmax._xla.cpu_softmax import softmax_tangent as softmax_tangent
from jaxsoftmax._xla.cpu_softmax import softmax_times as softmax_times
from jaxsoftmax._xla.products import over_matrices, product

_SMALLEST_BAND = 32


@over_matrices
def add_product(total: Array, hidden: Array, delta: Array, *, feature_axis: int) -> Array:
    """As `portable.add_product`, some features at a time.

    XLA:CPU writes the product to memory before it adds it: as much again as the accumulator
    (JAX 0.10.2, 8192 x 2304 x 256000: 2.2 GiB). A loop, since bands in a row are all computed
    before the first is added.

    Nor can XLA:CPU execute a bfloat16 product whose operands are both contracted over their rows,
    and folds transposes into it to that effect: hidden is transposed before the loop (of two
    steps at least, since a loop of one is dissolved), the product behind a barrier.

    A small result is added at once, without a loop to compile, where no operand is widened.
    """
    tokens, features = hidden.shape
    at_once = cpu_blocks.is_small(total) and hidden.dtype == total.dtype
    if features < 2 or at_once:
        wide = (x.astype(total.dtype) for x in (hidden, delta))
        return portable.add_product(total, *wide, feature_axis=feature_axis)
    known = tokens if isinstance(tokens, int) else 0  # or a symbolic dimension
    band = min(max(known // 4, _SMALLEST_BAND), -(-features // 2))
    by_feature = hidden.T  # [D, n]

    def add(k: Array, total: Array) -> Array:
        # The last band may reach back into the one before it: it adds 0 there.
        start = jnp.minimum(k * band, features - band)
        new = start + jnp.arange(band) >= k * band
        part = lax.dynamic_slice_in_dim(by_feature, start, band)
        part = jnp.where(new[:, None], part, 0).astype(part.dtype)
        added = product(part, delta, (1, 0)).astype(total.dtype)  # [band, V]
        added = lax.optimization_barrier(added).T if feature_axis else added
        added = lax.dynamic_slice_in_dim(total, start, band, feature_axis) + added
        return lax.dynamic_update_slice_in_dim(total, added, start, feature_axis)

    return lax.fori_loop(0, -(-features // band), add, total)


def always(i: Array) -> Array:
    """As `portable.always`, not found out by the compiler."""
    return i >= 0
