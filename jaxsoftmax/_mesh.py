"""Every collective, and no mathematics: what one device's shard of the classes knows of the others.

`axis_name` is the mesh axis over which the classes are split in equal shards, None where they are
all here; then nothing is sent. A label is an index into this device's shard, or one of two numbers
beyond it: ELSEWHERE where another shard holds it, NOWHERE where it is no class at all.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

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
            f"sharded arrays just work under jit"
        ) from None


def total(x: Float[Array, "..."], axis_name: AxisName) -> Float[Array, "..."]:
    """The sum over the shards."""
    return x if axis_name is None else lax.psum(x, axis_name)


def maximum(x: Float[Array, "..."], axis_name: AxisName) -> Float[Array, "..."]:
    """The largest over the shards; a constant under differentiation."""
    return x if axis_name is None else lax.pmax(lax.stop_gradient(x), axis_name)


def anywhere(x: Bool[Array, "..."], axis_name: AxisName) -> Bool[Array, "..."]:
    """Whether it is true on any shard."""
    return x if axis_name is None else lax.pmax(x.astype(jnp.int32), axis_name) > 0


# --- labels ---------------------------------------------------------------------------------------


# No shard holds so many classes.
ELSEWHERE, NOWHERE = np.int32(2**31 - 2), np.int32(2**31 - 1)


def local(
    label: Int[Array, "..."], valid: Bool[Array, "..."], classes: int, axis_name: AxisName
) -> Int[Array, "..."]:
    """A global index as an index into this shard of so many classes."""
    label = jnp.where(valid, label, 0).astype(jnp.int32)
    if axis_name is not None:
        label = label - _first(classes, axis_name)
        label = jnp.where((label >= 0) & (label < classes), label, ELSEWHERE)
    return jnp.where(valid, label, NOWHERE)


def to_global(label: Int[Array, "..."], classes: int, axis_name: AxisName) -> Int[Array, "..."]:
    """The reverse, known on every shard."""
    if axis_name is None:
        return label
    here = label < classes
    return lax.psum(jnp.where(here, label + _first(classes, axis_name), 0), axis_name)


def from_owner(
    x: Float[Array, "..."], label: Int[Array, "..."], classes: int, axis_name: AxisName
) -> Float[Array, "..."]:
    """What the shard that holds the label has for it, on every shard; NaN for NOWHERE."""
    none = jnp.where(label == NOWHERE, jnp.nan, 0.0).astype(x.dtype)
    return total(jnp.where(label < classes, x, none), axis_name)


def first_owner(
    label: Int[Array, "..."], largest: Float[Array, "..."], axis_name: AxisName
) -> Int[Array, "..."]:
    """The label on the first shard that holds the largest number, ELSEWHERE on the others.

    `label` is the largest class of this shard and `largest` its number. One owner, since two that
    tie would be counted twice; and a NaN is held by whoever has it.
    """
    me = lax.axis_index(axis_name)
    mine = (largest == maximum(largest, axis_name)) | jnp.isnan(largest)
    owner = lax.pmin(jnp.where(mine, me, shards(axis_name)), axis_name)
    return jnp.where(owner == me, label, ELSEWHERE)


def _first(classes: int, axis_name: AxisName) -> Int[Array, ""]:
    return lax.axis_index(axis_name).astype(jnp.int32) * classes


# --- what JAX keeps about each array --------------------------------------------------------------


def vary_alike(tree: Any, like: Any) -> Any:
    """The tree, each array varying over every mesh axis over which one in `like` varies.

    A loop's state and the branches of a conditional must agree in this, and a new zero varies over
    nothing.
    """
    axes = frozenset[Any]().union(*(_varying(x) for x in jax.tree.leaves(like)))

    def vary(x: Array) -> Array:
        missing = tuple(axes - _varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree) if axes else tree


def placed_by_type(x: Float[Array, "..."]) -> bool:
    """Whether the array's type says that it is sharded (explicit sharding).

    Then some reshapes and gathers have no sharding that follows from their operands', and JAX
    refuses them; masks and reductions it takes.
    """
    return any(axis is not None for axis in _explicit_axes(x))


def split_by_type(x: Float[Array, "... C"]) -> bool:
    """Whether it says so of the classes."""
    axes = _explicit_axes(x)
    return bool(axes) and axes[-1] is not None


def sharding_of_product(a: Array, b: Array, contract: tuple[int, int]) -> NamedSharding | None:
    """How a matrix product is sharded where its operands' types say how they are.

    As they are along the axes that are left; what they share is summed over.
    """
    if not (placed_by_type(a) or placed_by_type(b)):
        return None
    specs = [list(_explicit_axes(x)) for x in (a, b)]
    kept = [axis for spec, k in zip(specs, contract, strict=True) for axis in _without(spec, k)]
    mesh = jax.sharding.get_abstract_mesh()
    return NamedSharding(mesh, PartitionSpec(*kept))


def _without(axes: list[Any], k: int) -> list[Any]:
    return axes[:k] + axes[k + 1 :]


def _explicit_axes(x: Array) -> tuple[Any, ...]:
    return tuple(getattr(_type(x).sharding, "spec", ()))


def zeros_as(shapes: Any) -> Any:
    """Zeros in place of a tree of arrays or of what `jax.eval_shape` says of them."""

    def zeros(x: Any) -> Array:
        explicit = _type(x).sharding if placed_by_type(x) else None
        return vary_alike(jnp.zeros(x.shape, x.dtype, device=explicit), x)

    return jax.tree.map(zeros, shapes)


def _varying(x: Array) -> frozenset[Any]:
    axes = getattr(_type(x), "manual_axis_type", None)  # None for a shape outside of any mesh
    return frozenset() if axes is None else axes.varying


def _type(x: Array | jax.ShapeDtypeStruct) -> Any:
    return x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
