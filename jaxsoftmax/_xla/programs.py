"""Functions that several devices run divided between them: how, is decided at lowering.

As an `Operation` chooses a form for a platform, a `Program` chooses a division for a mesh. On a
mesh of automatic axes a trace does not know how its arrays lie, and what the partitioner would make
of a loop can send its state in every step. So a program is one JAX primitive until it is lowered.
On explicit axes the types say how arrays lie; they are made automatic around it, so that one way
serves both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from jaxsoftmax._xla import layouts
from jaxsoftmax._xla.forms import (
    Context,
    Lowered,
    Tangents,
    is_linear,
    jvp_of,
    lower_form,
)
from jaxsoftmax._xla.layouts import Spec
from jaxsoftmax._xla.shardings import automatic, explicit_mesh

Tree = Any
Function = Callable[..., Tree]


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is static about a call."""

    tree: jax.tree_util.PyTreeDef
    specs: tuple[Spec | None, ...] | None  # how the types say that the arrays lie
    options: tuple[tuple[str, object], ...]

    def of(self, function: Function) -> Callable[..., list[Array]]:
        """A function of the tree as one of its leaves, to leaves."""

        def flat(*leaves: object) -> list[Array]:
            return jax.tree.leaves(function(self.joined(leaves), **dict(self.options)))

        return flat

    def joined(self, leaves: Sequence[object]) -> Tree:
        return jax.tree.unflatten(self.tree, leaves)


class Program:
    """whole(tree, **options), a function of a tree of arrays.

    `like` is any function whose results have the same types, as cheap to trace as can be; where
    axes are explicit, they say how the results lie.
    `divide(layout, types, specs, **options)` gives the same function for the devices of a mesh, or
    None where there is none; `specs` says of each array how its type says that it lies, or None.
    """

    def __init__(
        self,
        name: str,
        whole: Function,
        *,
        like: Function,
        divide: Callable[..., Function | None],
    ) -> None:
        self._whole, self._like, self._divide = whole, like, divide
        self._primitive = Primitive(name)
        self._primitive.multiple_results = True
        self._primitive.def_impl(lambda *leaves, call: call.of(whole)(*leaves))
        self._primitive.def_abstract_eval(
            lambda *types, call: jax.make_jaxpr(call.of(like))(*types).out_avals
        )
        batching.primitive_batchers[self._primitive] = self._batch
        ad.primitive_jvps[self._primitive] = self._jvp
        mlir.register_lowering(self._primitive, self._lower)

    def __call__(self, tree: Tree, *, alone: bool, **options: object) -> Tree:
        """The function's value; `alone` where this device's program is its own."""
        if alone:
            return self._whole(tree, **options)
        leaves = jax.tree.leaves(tree)
        mesh = explicit_mesh(leaves)
        if mesh is None:
            return self._bind(tree, None, options)
        specs = tuple(layouts.of_type(jax.typeof(x).sharding.spec) for x in leaves)
        types = jax.jit(partial(self._like, **options)).trace(tree).out_avals
        placed = jax.tree.map(lambda x: PartitionSpec(*x.sharding.spec), types)
        bind = partial(self._bind, specs=specs, options=options)
        return automatic(bind, mesh, placed)(tree)

    def transposes_to(self, other: Program) -> None:
        """Say that the tree is (known, linear), and that other((known, cotangents)) is the rest."""

        def rule(cotangents: Tangents, *leaves: Any, call: _Call) -> Tangents:
            known, linear = call.joined(leaves)
            types = [x.aval if is_linear(x) else x for x in leaves]
            shapes = jax.eval_shape(partial(self._like, **dict(call.options)), call.joined(types))
            values = [ad.instantiate_zeros(ct) for ct in cotangents]
            given = (known, jax.tree.unflatten(jax.tree.structure(shapes), values))
            specs = call.specs
            if specs is not None:
                specs = (*specs[: len(jax.tree.leaves(known))], *[None] * len(values))
            found = other._bind(given, specs, {**dict(call.options), "wanted": linear.names()})
            gradients = jax.tree.leaves(found)
            return [None] * (len(leaves) - len(gradients)) + gradients

        ad.primitive_transposes[self._primitive] = rule

    def _bind(
        self, tree: Tree, specs: tuple[Spec | None, ...] | None, options: dict[str, object]
    ) -> Tree:
        if jax.sharding.get_abstract_mesh().manual_axes:  # inside of `jax.shard_map`
            return self._whole(tree, **options)
        leaves, treedef = jax.tree.flatten(tree)
        shapes = jax.eval_shape(partial(self._like, **options), tree)
        call = _Call(treedef, specs, tuple(sorted(options.items())))
        return jax.tree.unflatten(
            jax.tree.structure(shapes), self._primitive.bind(*leaves, call=call)
        )

    def _lower(self, ctx: Context, *operands: object, call: _Call) -> Lowered:
        layout = layouts.of_program(ctx)
        divided = None
        if layout is not None:
            known = call.joined(call.specs or [None] * len(operands))
            types = call.joined(ctx.avals_in)
            divided = self._divide(layout, types, known, **dict(call.options))
        if layout is None or divided is None:
            return lower_form(call.of(self._whole), ctx, operands)
        on_each_device = dataclasses.replace(call, options=()).of(divided)
        with jax.sharding.use_abstract_mesh(layout.mesh):
            return lower_form(on_each_device, ctx, operands)

    def _batch(
        self, leaves: Sequence[Array], axes: Sequence[int | None], call: _Call
    ) -> tuple[list[Array], list[int]]:
        results = jax.vmap(call.of(self._whole), in_axes=tuple(axes))(*leaves)
        return results, [0] * len(results)

    def _jvp(self, primals: Sequence[Array], tangents: Tangents, call: _Call) -> Any:
        return jvp_of(call.of(self._whole), primals, tangents)
