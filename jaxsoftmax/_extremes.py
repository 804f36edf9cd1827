"""The largest logit of a row, and the largest of all classes but one.

Both are needed before anything is exponentiated. An accelerator fuses an index mask into the
reduction; XLA:CPU does not (JAX 0.10.2, 1024 x 32000 float32: 33 ms and a masked copy, against
2.3 ms for block maxima of which only the label's block is read again).
"""

from __future__ import annotations

import math
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxsoftmax import _mesh
from jaxsoftmax._mesh import AxisName
from jaxsoftmax._placement import on_one_cpu
from jaxsoftmax._precision import bits, from_bits

_FEWEST_CLASSES = 64  # below this a mask costs nothing anywhere

# The label's block is read into an array of its own, C/16 numbers a row beside 16 maxima. Where a
# gradient of C numbers a row is computed as well, it lends the block its room.
BLOCKS = 16


def is_class(logits: Float[Array, "... C"], label: Int[Array, "..."]) -> Bool[Array, "... C"]:
    """One-hot of the label, as a mask that the compiler fuses and never stores."""
    classes = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return classes == label[..., None]


def block_length(logits: Float[Array, "... C"]) -> int | None:
    """The divisor of C that makes nearest to `BLOCKS` blocks of a row; None without one."""
    classes = logits.shape[-1]
    if classes < _FEWEST_CLASSES or _mesh.placed_by_type(logits):
        return None
    lengths = [b for b in range(16, classes // 2 + 1) if classes % b == 0]
    return min(lengths, key=lambda b: abs(math.log(b * BLOCKS / classes)), default=None)


def maximum_of_others(
    logits: Float[Array, "... C"], label: Int[Array, "..."]
) -> Float[Array, "..."]:
    """max over j != label of logits_j, -inf where there is no other class."""
    length = block_length(logits)
    if length is None:
        return _maximum_of_others_by_mask(logits, label)
    by_blocks = partial(_maximum_of_others_by_blocks, length=length)
    return on_one_cpu(by_blocks, _maximum_of_others_by_mask, logits, label)


def maximum(logits: Float[Array, "... C"], axis_name: AxisName = None) -> Float[Array, "..."]:
    """max over all classes."""
    return _mesh.maximum(jnp.max(logits, axis=-1), axis_name)


def argmax(logits: Float[Array, "... C"], axis_name: AxisName = None) -> Int[Array, "..."]:
    """The first class with the largest logit, as a label; int32."""
    length = block_length(logits)
    if length is None:
        here = _argmax_by_index(logits)
    else:
        by_blocks = partial(_argmax_by_blocks, length=length)
        here = on_one_cpu(by_blocks, _argmax_by_index, logits)
    if axis_name is None:
        return here
    return _mesh.first_owner(here, jnp.max(logits, axis=-1), axis_name)


def _maximum_of_others_by_mask(logits: Array, label: Array) -> Array:
    return jnp.max(jnp.where(is_class(logits, label), -jnp.inf, logits), axis=-1)


def _maximum_of_others_by_blocks(logits: Array, label: Array, *, length: int) -> Array:
    blocks, maxima = _blocks(logits, length)
    home = jnp.minimum(lax.div(label, jnp.int32(length)), maxima.shape[-1] - 1)
    elsewhere = jnp.max(jnp.where(is_class(maxima, home), -jnp.inf, maxima), axis=-1)
    at_home = _maximum_of_others_by_mask(_take_block(blocks, home), label - home * length)
    return jnp.maximum(elsewhere, at_home)


def _argmax_by_index(logits: Array) -> Array:
    return lax.argmax(logits, logits.ndim - 1, jnp.int32)


def _argmax_by_blocks(logits: Array, *, length: int) -> Array:
    blocks, maxima = _blocks(logits, length)
    home = _argmax_by_index(maxima)
    return home * length + _argmax_by_index(_take_block(blocks, home))


def _blocks(logits: Array, length: int) -> tuple[Array, Array]:
    """The row as blocks [..., B, C/B], and the maximum of each."""
    blocks = logits.reshape(*logits.shape[:-1], logits.shape[-1] // length, length)
    return blocks, jnp.max(blocks, axis=-1)


def _take_block(blocks: Array, home: Array) -> Array:
    block = jnp.take_along_axis(bits(blocks), home[..., None, None], axis=-2)[..., 0, :]
    return from_bits(block, blocks.dtype)
