"""How the arrays of a program lie on its mesh, as far as its lowering can know.

Automatic axes are not in the types of arrays. But the shardings of a program's arguments stand in
the module that is being lowered; an array inside it is taken to lie as an argument of its shape
does (a kernel under mixed precision, its gradient, a micro-batch of the labels).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

Axes = tuple[str, ...]  # mesh axes over which one dimension is split, the outermost first
Spec = tuple[Axes, ...]  # one for each dimension
Shape = tuple[int, ...]


class Layout(NamedTuple):
    """A mesh of automatic axes, and the arguments that are known to be on it."""

    mesh: AbstractMesh
    arguments: tuple[tuple[Shape, Spec], ...]

    def of(self, shape: Shape) -> Spec | None:
        """How an argument of this shape lies, the first of several."""
        return next((spec for known, spec in self.arguments if known == shape), None)

    def size(self, axes: Axes) -> int:
        """Into how many parts these axes split an array."""
        return math.prod(self.mesh.shape[axis] for axis in axes)


def of_program(ctx: mlir.LoweringRuleContext) -> Layout | None:
    """The layout of the program that is being lowered; None for one device, and where unknown."""
    context: Any = ctx.module_context.axis_context
    devices = getattr(context, "num_devices", 1)  # no such number inside of shard_map and pmap
    if devices in (1, None):
        return None
    main = _main(ctx.module_context.module)
    pairs = [] if main is None else list(zip(main.type.inputs, main.arg_attrs, strict=True))
    shardings = [
        (ir.RankedTensorType(kind).shape, sdy.TensorShardingAttr(attributes["sdy.sharding"]))
        for kind, attributes in pairs
        if "sdy.sharding" in attributes
    ]
    types: Any = ctx.avals_in
    meshes = [t.sharding.mesh for t in types if not t.sharding.mesh.empty]
    meshes += [mesh for _, sharding in shardings if (mesh := _mesh(sharding)) is not None]
    fitting = [m for m in meshes if m.size == devices and set(m.axis_types) == {AxisType.Auto}]
    if not fitting:
        return None
    arguments = ((tuple(shape), _spec(sharding)) for shape, sharding in shardings)
    known = tuple((shape, spec) for shape, spec in arguments if spec is not None)
    return Layout(fitting[0], known)


def of_type(spec: PartitionSpec) -> Spec:
    """The same of a sharding that a type names."""
    return tuple(() if a is None else a if isinstance(a, tuple) else (a,) for a in spec)


def _main(module: Any) -> Any:
    named = (op for op in module.body.operations if "sym_name" in op.attributes)
    mains = (op for op in named if ir.StringAttr(op.attributes["sym_name"]).value == "main")
    return next((op for op in mains if "arg_attrs" in op.attributes), None)


def _mesh(sharding: sdy.TensorShardingAttr) -> AbstractMesh | None:
    """The mesh that stands in a sharding; None for a reference, and for an order of its own."""
    if str(sharding.mesh_or_ref).startswith("@"):
        return None
    mesh = sdy.MeshAttr(sharding.mesh_or_ref)
    axes = [sdy.MeshAxisAttr(axis) for axis in mesh.axes]
    if not axes or len(list(mesh.device_ids)):
        return None
    sizes, names = tuple(a.size for a in axes), tuple(a.name for a in axes)
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(axes))


def _spec(sharding: sdy.TensorShardingAttr) -> Spec | None:
    """None where it splits a mesh axis."""
    dimensions = [sdy.DimensionShardingAttr(d).axes for d in sharding.dimension_shardings]
    axes = [[sdy.AxisRefAttr(axis) for axis in of_one] for of_one in dimensions]
    if any(axis.sub_axis_info is not None for of_one in axes for axis in of_one):
        return None
    return tuple(tuple(axis.name for axis in of_one) for of_one in axes)
