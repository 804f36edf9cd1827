"""Every collective: what one device's shard of the classes learns from the others.

`axis_name` is the mesh axis over which the classes are split in equal shards, None where they are
all here; then nothing is communicated. A label is an index into this device's shard, or one of two
numbers beyond it: ELSEWHERE where another shard holds it, NOWHERE where it is no class at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int

from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, Size
from jaxsoftmax._xla.masks import keep, nan_where
from jaxsoftmax._xla.shardings import varying

AxisName = Hashable | None  # the name of a mesh axis, or several; None; or `Blocks`


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """In place of a name: the classes are split in blocks that one device takes in turn.

    What a block learns from the others is then no collective, see `_xla.blocks`. The fields are
    what the functions of their names do.
    """

    total: Callable[[PerRow], PerRow]
    maximum: Callable[[PerRow], PerRow]
    first_owner: Callable[[Index, PerRow], Index]
    to_global: Callable[[Index, Size], Index]


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


def check_axis(
    axis_name: AxisName, split: dict[str, Array], whole: dict[str, Array | None]
) -> None:
    """An error where types tell that `axis_name` is not the axis of the classes.

    Arrays that hold this device's classes differ from device to device, and those that have a
    number for each example do not.
    """
    typed = {n for n in _names(axis_name) if _is_typed(n)}
    if not typed:
        return
    wanted = f"axis_name={axis_name!r} must be the mesh axis of the classes, not that of the data: "
    for name, x in split.items():
        if typed - varying(x):
            raise ValueError(
                f"{wanted}{name} must be this device's shard of the classes, got an array of type "
                f"{jax.typeof(x)}, the same on all devices of {_listed(typed - varying(x))}; where "
                f"each device has all classes, leave axis_name out"
            )
    for name, other in whole.items():
        if other is not None and typed & varying(other):
            raise ValueError(
                f"{wanted}{name} must be the same on all of its devices, got an array of type "
                f"{jax.typeof(other)}, which differs along {_listed(typed & varying(other))}; "
                f'what is equal there once it is gathered, gather with to="invarying"'
            )


def _names(axis_name: AxisName) -> tuple[Hashable, ...]:
    """Of one axis, of several, or of none."""
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def _is_typed(name: Hashable) -> bool:
    """Whether types say what varies over this axis."""
    return name in varying(lax.axis_index(name))


def _listed(names: frozenset[Hashable] | set[Hashable]) -> str:
    return ", ".join(sorted(map(repr, names)))


def total(x: PerRow, axis_name: AxisName) -> PerRow:
    """The sum over the shards."""
    if isinstance(axis_name, Blocks):
        return axis_name.total(x)
    return x if axis_name is None else lax.psum(x, axis_name)


def maximum(x: PerRow, axis_name: AxisName) -> PerRow:
    """The largest over the shards; a constant under differentiation."""
    if isinstance(axis_name, Blocks):
        return axis_name.maximum(x)
    return x if axis_name is None else lax.pmax(lax.stop_gradient(x), axis_name)


def anywhere(x: Bool[Array, "..."], axis_name: AxisName) -> Bool[Array, "..."]:
    """Whether it is true on any shard."""
    return x if axis_name is None else lax.pmax(x.astype(jnp.int32), axis_name) > 0


def transposed_copies(axis_name: AxisName) -> int:
    """How many times JAX counts a cotangent that it transposes a sum over the shards with.

    Once where types say over which axes an array varies, so that the result of a sum is one number
    that all devices hold. Elsewhere (`check_vma=False`, an axis of vmap or pmap) each device's
    result has a cotangent of its own, and those are summed: a transpose inside a rule starts from
    a cotangent divided by this.
    """
    return math.prod(int(lax.axis_size(n)) for n in _names(axis_name) if not _is_typed(n))


def over_copies(x: Array, axis_name: AxisName) -> Array:
    """A cotangent of which each device has the part of its own copy of the sum, complete."""
    names = tuple(n for n in _names(axis_name) if not _is_typed(n))
    return lax.psum(x, names) if names else x


def own_part(x: Array, axes: tuple[str, ...], dimension: int) -> Array:
    """This device's part of an array that it has whole along these axes; all of it for none."""
    if not axes:
        return x
    size = x.shape[dimension] // shards(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size, dimension)


def over_classes(terms: PerClass, axis_name: AxisName) -> PerRow:
    """The sum over all classes, those of the other shards included."""
    return total(jnp.sum(terms, axis=-1), axis_name)


# --- labels ---------------------------------------------------------------------------------------


# No shard holds so many classes.
ELSEWHERE, NOWHERE = np.int32(2**31 - 2), np.int32(2**31 - 1)


def to_local(label: Index, valid: Bool[Array, "..."], classes: Size, axis_name: AxisName) -> Index:
    """A global class index as an index into this shard of so many classes."""
    nowhere = lax.full_like(label, NOWHERE, jnp.int32)
    return to_shard(lax.select(valid, label.astype(jnp.int32), nowhere), classes, axis_name)


def to_shard(label: Index, classes: Size, axis_name: AxisName) -> Index:
    """The same of a label that is int32 and valid, or ELSEWHERE, or NOWHERE."""
    if axis_name is None:
        return label
    return to_part(label, _first_class(classes, axis_name), classes)


def to_part(label: Index, first: Int[Array, ""], classes: Size) -> Index:
    """The same of so many classes from the first."""
    local = label - first
    here = (local >= 0) & (local < classes)
    local = lax.select(here, local, lax.full_like(local, ELSEWHERE))
    return lax.select(label == NOWHERE, lax.full_like(local, NOWHERE), local)


def to_global(label: Index, classes: Size, axis_name: AxisName) -> Index:
    """The reverse, known on every shard."""
    if axis_name is None:
        return label
    if isinstance(axis_name, Blocks):
        return axis_name.to_global(label, classes)
    here = label < classes
    return lax.psum(jnp.where(here, label + _first_class(classes, axis_name), 0), axis_name)


def from_owner(x: PerRow, label: Index, classes: Size, axis_name: AxisName) -> PerRow:
    """What the shard that holds the label has for it, on every shard; NaN for NOWHERE."""
    return total(nan_if_nowhere(keep(x, label < classes), label), axis_name)


def nan_if_nowhere(x: PerRow, label: Index) -> PerRow:
    """x of each label, NaN for one that is no class."""
    return nan_where(label == NOWHERE, x)


def first_owner(label: Index, largest: PerRow, axis_name: AxisName) -> Index:
    """The label on the first shard that holds the largest number, ELSEWHERE on the others.

    `label` is the largest class of this shard and `largest` its number. One owner, since two that
    tie would be counted twice; and a NaN is held by whoever has it.
    """
    if axis_name is None:
        return label
    if isinstance(axis_name, Blocks):
        return axis_name.first_owner(label, largest)
    me = lax.axis_index(axis_name)
    mine = (largest == maximum(largest, axis_name)) | jnp.isnan(largest)
    owner = lax.pmin(jnp.where(mine, me, shards(axis_name)), axis_name)
    return jnp.where(owner == me, label, ELSEWHERE)


def _first_class(classes: Size, axis_name: AxisName) -> Int[Array, ""]:
    return lax.axis_index(axis_name).astype(jnp.int32) * classes
