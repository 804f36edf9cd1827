"""What the type of an array says of its mesh: explicit shardings, and axes over which it varies."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def explicit_sharding(x: Any) -> NamedSharding | None:
    """How an array, or what a type is of, is sharded where the type names mesh axes; else None."""
    sharding = _type(x).sharding
    split = any(axis is not None for axis in getattr(sharding, "spec", ()))
    return sharding if split else None


def vary_alike(tree: Tree, like: object) -> Tree:
    """The tree, each array varying over every mesh axis over which one in `like` varies.

    A loop's state and the branches of a conditional must agree in this, and a new zero varies over
    nothing.
    """
    axes = frozenset[Hashable]().union(*(_varying(x) for x in jax.tree.leaves(like)))

    def vary(x: Array) -> Array:
        missing = tuple(axes - _varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree) if axes else tree


def zeros_as(x: Any) -> Array:
    """Zeros in place of the array, or of what `jax.eval_shape` says of one, sharded as it is."""
    return vary_alike(jnp.zeros(x.shape, x.dtype, device=explicit_sharding(x)), x)


def sharding_of_product(a: Array, b: Array, contract: tuple[int, int]) -> NamedSharding | None:
    """How a matrix product is sharded where its operands' types say how they are.

    As they are along the axes that are left; what they share is summed over.
    """
    if explicit_sharding(a) is None and explicit_sharding(b) is None:
        return None
    specs = [list(_type(x).sharding.spec) for x in (a, b)]
    kept = [
        axis for spec, k in zip(specs, contract, strict=True) for axis in spec[:k] + spec[k + 1 :]
    ]
    return NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec(*kept))


def _varying(x: Any) -> frozenset[Hashable]:
    axes = getattr(_type(x), "manual_axis_type", None)  # None for a shape outside of any mesh
    return frozenset() if axes is None else axes.varying


def _type(x: Any) -> Any:
    return jax.typeof(x) if isinstance(x, jax.Array) else x
