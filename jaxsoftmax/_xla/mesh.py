"""Every collective: what one device's shard of the classes learns from the others.

`axis_name` is the mesh axis over which the classes are split in equal shards, None where they are
all here; then nothing is communicated. A label is an index into this device's shard, or one of two
numbers beyond it: ELSEWHERE where another shard holds it, NOWHERE where it is no class at all.
"""

from __future__ import annotations

from collections.abc import Hashable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int

from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, Size
from jaxsoftmax._xla.masks import keep

AxisName = Hashable | None


def shards(axis_name: AxisName) -> int:
    """Over how many devices the classes are split; an error where the name means nothing here."""
    if axis_name is None:
        return 1
    try:
        return int(lax.axis_size(axis_name))
    except NameError:
        raise ValueError(
            f"axis_name must name a mesh axis of the jax.shard_map (or a vmap axis) around this "
            f"call, got {axis_name!r}, which is not bound; outside of shard_map leave it out: "
            f"sharded arrays need no name under jit"
        ) from None


def total(x: PerRow, axis_name: AxisName) -> PerRow:
    """The sum over the shards."""
    return x if axis_name is None else lax.psum(x, axis_name)


def maximum(x: PerRow, axis_name: AxisName) -> PerRow:
    """The largest over the shards; a constant under differentiation."""
    return x if axis_name is None else lax.pmax(lax.stop_gradient(x), axis_name)


def anywhere(x: Bool[Array, "..."], axis_name: AxisName) -> Bool[Array, "..."]:
    """Whether it is true on any shard."""
    return x if axis_name is None else lax.pmax(x.astype(jnp.int32), axis_name) > 0


def over_classes(terms: PerClass, axis_name: AxisName) -> PerRow:
    """The sum over all classes, those of the other shards included."""
    return total(jnp.sum(terms, axis=-1), axis_name)


# --- labels ---------------------------------------------------------------------------------------


# No shard holds so many classes.
ELSEWHERE, NOWHERE = np.int32(2**31 - 2), np.int32(2**31 - 1)


def to_local(label: Index, valid: Bool[Array, "..."], classes: Size, axis_name: AxisName) -> Index:
    """A global class index as an index into this shard of so many classes."""
    nowhere = lax.full_like(label, NOWHERE, jnp.int32)
    if axis_name is None:
        return lax.select(valid, label.astype(jnp.int32), nowhere)
    label = lax.select(valid, label, lax.full_like(label, 0)).astype(jnp.int32)
    label = label - _first_class(classes, axis_name)
    here = (label >= 0) & (label < classes)
    return lax.select(valid, lax.select(here, label, lax.full_like(label, ELSEWHERE)), nowhere)


def to_global(label: Index, classes: Size, axis_name: AxisName) -> Index:
    """The reverse, known on every shard."""
    if axis_name is None:
        return label
    here = label < classes
    return lax.psum(jnp.where(here, label + _first_class(classes, axis_name), 0), axis_name)


def from_owner(x: PerRow, label: Index, classes: Size, axis_name: AxisName) -> PerRow:
    """What the shard that holds the label has for it, on every shard; NaN for NOWHERE."""
    return total(nan_if_nowhere(keep(x, label < classes), label), axis_name)


def nan_if_nowhere(x: PerRow, label: Index) -> PerRow:
    """x of each label, NaN for one that is no class."""
    return keep(x, label != NOWHERE, jnp.nan)


def first_owner(label: Index, largest: PerRow, axis_name: AxisName) -> Index:
    """The label on the first shard that holds the largest number, ELSEWHERE on the others.

    `label` is the largest class of this shard and `largest` its number. One owner, since two that
    tie would be counted twice; and a NaN is held by whoever has it.
    """
    me = lax.axis_index(axis_name)
    mine = (largest == maximum(largest, axis_name)) | jnp.isnan(largest)
    owner = lax.pmin(jnp.where(mine, me, shards(axis_name)), axis_name)
    return jnp.where(owner == me, label, ELSEWHERE)


def _first_class(classes: Size, axis_name: AxisName) -> Int[Array, ""]:
    return lax.axis_index(axis_name).astype(jnp.int32) * classes
