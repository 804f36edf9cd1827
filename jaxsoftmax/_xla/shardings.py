"""What the type of an array says of its mesh: explicit shardings, and axes over which it varies."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")
Function = TypeVar("Function", bound=Callable[..., object])


def explicit_sharding(x: object) -> NamedSharding | None:
    """How an array, or what a type is of, is sharded where the type names mesh axes; else None."""
    sharding = _type(x).sharding
    split = any(axis is not None for axis in getattr(sharding, "spec", ()))
    return sharding if split else None


def explicit_mesh(arrays: Iterable[object]) -> AbstractMesh | None:
    """The mesh on whose explicit axes one of the arrays is sharded; None where none is."""
    found = (explicit_sharding(x) for x in arrays)
    return next((sharding.mesh.abstract_mesh for sharding in found if sharding is not None), None)


def on_their_mesh(f: Function) -> Function:
    """f in the context of the mesh on whose explicit axes its arrays are, so that new ones are too.

    `jax.jit` alone gives its arguments' mesh to no context.
    """

    @functools.wraps(f)
    def call(*arguments: object, **keywords: object) -> object:
        mesh = explicit_mesh(jax.tree.leaves(arguments))
        if mesh is None:
            return f(*arguments, **keywords)
        with jax.sharding.use_abstract_mesh(mesh):
            return f(*arguments, **keywords)

    return cast(Function, call)


def automatic(f: Callable[..., Tree], mesh: AbstractMesh, placed: object) -> Callable[..., Tree]:
    """f with the mesh's explicit axes automatic inside; its results lie as `placed` says."""
    return jax.sharding.auto_axes(f, axes=mesh.explicit_axes, out_sharding=placed)


def by_rows(f: Function, class_axes: Callable[..., tuple[int, ...]]) -> Function:
    """A function of logits, and of arrays beside them, the same on explicit axes.

    JAX asks that explicit shardings agree in each operation. Where those of the arrays do, they
    stay; else the axes are automatic inside, and rows come out as those of the logits.
    `class_axes(**keywords)` are the axes that a row does not have.
    """

    @on_their_mesh
    @functools.wraps(f)
    def call(logits: Array, *others: object, **keywords: object) -> object:
        leaves = jax.tree.leaves((logits, others))
        mesh = explicit_mesh(leaves)
        if mesh is None:
            return f(logits, *others, **keywords)
        classes = class_axes(**keywords)
        spec = jax.typeof(logits).sharding.spec
        kept = [i for i in range(logits.ndim) if i not in classes]
        placed = {(): PartitionSpec(), logits.shape: spec}
        placed[tuple(logits.shape[i] for i in kept)] = PartitionSpec(*(spec[i] for i in kept))

        def place(x: jax.ShapeDtypeStruct) -> PartitionSpec:
            return placed.get(x.shape, PartitionSpec())

        of_f = functools.partial(f, **keywords)
        agree = all(jax.typeof(x).sharding.spec == placed.get(x.shape) for x in leaves)
        if agree and len(classes) < 2:
            return of_f(logits, *others)
        types = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (logits, others))
        results = jax.eval_shape(lambda both: of_f(both[0], *both[1]), types)
        return automatic(of_f, mesh, jax.tree.map(place, results))(logits, *others)

    return cast(Function, call)


def vary_alike(tree: Tree, like: object) -> Tree:
    """The tree, each array varying over every mesh axis over which one in `like` varies.

    A loop's state and the branches of a conditional must agree in this, and a new zero varies over
    nothing.
    """
    axes = frozenset[Hashable]().union(*(varying(x) for x in jax.tree.leaves(like)))

    def vary(x: Array) -> Array:
        missing = tuple(axes - varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree) if axes else tree


def zeros_as(x: Array | jax.ShapeDtypeStruct) -> Array:
    """Zeros in place of the array, or of what `jax.eval_shape` says of one, sharded as it is."""
    return vary_alike(jnp.zeros(x.shape, x.dtype, device=explicit_sharding(x)), x)


def ones_of_rows(x: Array, dtype: np.dtype) -> Array:
    """A 1 for each row of the last axis, sharded as the rows are."""
    sharding = explicit_sharding(x)
    if sharding is not None:
        sharding = sharding.update(spec=PartitionSpec(*sharding.spec[:-1]))
    return vary_alike(jnp.ones(x.shape[:-1], dtype, device=sharding), x)


def sharding_of_product(a: Array, b: Array, contract: tuple[int, int]) -> NamedSharding | None:
    """How a matrix product is sharded where its operands' types say how they are.

    As they are along the axes that are left, the first one's where both have an axis of the mesh;
    what they share is summed over.
    """
    if explicit_sharding(a) is None and explicit_sharding(b) is None:
        return None
    shardings = [_type(x).sharding for x in (a, b)]
    specs = [list(sharding.spec) for sharding in shardings]
    kept = [
        axis for spec, k in zip(specs, contract, strict=True) for axis in spec[:k] + spec[k + 1 :]
    ]
    used: set[object] = set()
    for i, axes in enumerate(kept):
        taken = {axes} if isinstance(axes, str) else set(axes or ())
        kept[i] = None if taken & used else axes
        used |= taken
    mesh = next(s.mesh for s in shardings if not s.mesh.empty)
    return NamedSharding(mesh, PartitionSpec(*kept))


def varying(x: object) -> frozenset[Hashable]:
    """The mesh axes over which an array varies, as far as its type says."""
    axes = getattr(_type(x), "manual_axis_type", None)  # None for a shape outside of any mesh
    return frozenset() if axes is None else axes.varying


def _type(x: object) -> Any:
    return jax.typeof(x) if isinstance(x, jax.Array) else x
