"""Operations of several forms: which one a program gets is decided when it is lowered.

XLA:CPU runs some reductions several times as fast in forms that reshape rows and gather from them.
Over a mesh the partitioner would then move the logits, so that these are for a program that one CPU
runs by itself. An accelerator reads the logits once where one reduction does everything; of such a
reduction over sharded classes the partitioner gathers the parts, where a maximum and a sum are each
one all-reduce. How many devices run a program, and which, is not known while it is traced (ahead of
time, or exported for several platforms). So each such computation is one JAX primitive, whose
lowering traces the form that fits. A jaxpr holds one equation for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxsoftmax._xla import cpu, one_pass, portable
from jaxsoftmax._xla.cpu_blocks import some_at_a_time
from jaxsoftmax._xla.shardings import explicit_sharding, vary_alike

Form = Callable[..., Array | Sequence[Array]]
Arrays = tuple[Array, ...]
Tangents = Sequence[Any]  # arrays, or `Zero` for what does not depend on the input
JvpRule = Callable[..., tuple[Arrays, Tangents]]
Zero = ad.Zero
Context = mlir.LoweringRuleContext
Lowered = Any  # values of MLIR


class Operation:
    """A primitive with one meaning and several forms.

    These are the functions of its name in

    `portable`   the definition: masks and reductions that any compiler and partitioner takes;
    `cpu`        for a program that one CPU runs by itself, or any (`cpu_on_mesh`);
    `one_pass`   for an accelerator that has whole rows.

    `like` is any function whose results have the same types, as cheap to trace as can be. Arrays
    have any number of leading batch axes, the same ones on each. Where no row depends on
    another, `rows` is the definition, given here and not by name; a CPU runs it on some rows at a
    time.
    """

    def __init__(
        self, name: str, like: Form, rows: Form | None = None, *, cpu_on_mesh: bool = False
    ) -> None:
        self.portable: Form = rows or getattr(portable, name)
        of_rows = partial(some_at_a_time, rows) if rows else self.portable
        self.cpu: Form = getattr(cpu, name, of_rows)
        self.one_pass: Form = getattr(one_pass, name, self.portable)
        self._cpu_on_mesh = cpu_on_mesh
        self._primitive = Primitive(name)
        self._primitive.multiple_results = True
        self._primitive.def_impl(lambda *arrays, **static: _tuple(self.portable(*arrays, **static)))
        self._primitive.def_abstract_eval(partial(_result_types, like))
        batching.primitive_batchers[self._primitive] = self._batch
        mlir.register_lowering(self._primitive, self._lower_for_cpu, platform="cpu")
        mlir.register_lowering(self._primitive, self._lower_for_accelerator)

    def __call__(self, *arrays: Array, **static: object) -> Any:
        """One array, or a tuple of several."""
        # A cotangent varies over the mesh axes of the result: let each operand vary over them, too.
        arrays = vary_alike(arrays, arrays)
        results = self._primitive.bind(*arrays, **static)
        return results[0] if len(results) == 1 else tuple(results)

    def defjvp(self, rule: JvpRule) -> JvpRule:
        """rule(primals, tangents, **static) -> results, their tangents; a tangent may be `Zero`."""
        ad.primitive_jvps[self._primitive] = rule
        return rule

    def deftranspose(self, rule: Callable[..., tuple[Array | None, ...]]) -> None:
        """rule(cotangents, *operands, **static) -> a cotangent or None for each operand."""
        ad.primitive_transposes[self._primitive] = rule

    def _lower_for_cpu(self, ctx: Context, *operands: object, **static: object) -> Lowered:
        fits = self._cpu_on_mesh or _runs_alone(ctx)
        return lower_form(self.cpu if fits else self.portable, ctx, operands, static)

    def _lower_for_accelerator(self, ctx: Context, *operands: object, **static: object) -> Lowered:
        return lower_form(self.one_pass if _has_rows(ctx) else self.portable, ctx, operands, static)

    def _batch(
        self, arrays: Sequence[Array], axes: Sequence[int | None], **static: object
    ) -> tuple[Sequence[Array], Sequence[int]]:
        pairs = list(zip(arrays, axes, strict=True))
        size = next(x.shape[axis] for x, axis in pairs if axis is not None)
        batched = [_leading(x, axis, size) for x, axis in pairs]
        # With spmd_axis_name, only what is mapped varies over that axis.
        results = self._primitive.bind(*vary_alike(batched, batched), **static)
        return results, [0] * len(results)


def jvp_of(f: Form, primals: Sequence[Array], tangents: Tangents) -> Any:
    """`jax.jvp` of f by the operands whose tangent is not 0."""
    moving = [i for i, t in enumerate(tangents) if not is_zero(t)]

    def of_moving(*moved: Array) -> Array | Sequence[Array]:
        arrays = list(primals)
        for i, x in zip(moving, moved, strict=True):
            arrays[i] = x
        return f(*arrays)

    return jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])


def zero(x: Array) -> Zero:
    """The tangent of a result that does not depend on any input."""
    return Zero(jax.typeof(x).to_tangent_aval())


def is_zero(tangent: object) -> bool:
    """Whether a rule was given no tangent."""
    return isinstance(tangent, Zero | SymbolicZero)


def is_linear(operand: object) -> bool:
    """Whether a transposed program is a function of this operand, which then has no value."""
    return ad.is_undefined_primal(operand)


def _leading(x: Array, axis: int | None, size: int) -> Array:
    return jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)


def _tuple(results: Array | Sequence[Array]) -> Arrays:
    return (results,) if isinstance(results, Array) else tuple(results)


@lru_cache(maxsize=4096)
def _result_types(like: Form, *types: ShapedArray, **static: object) -> Sequence[ShapedArray]:
    """Traced, so that JAX says which mesh axes the results vary or are sharded over."""
    return jax.make_jaxpr(partial(like, **static))(*types).out_avals


def lower_form(
    form: Form, ctx: Context, operands: Sequence[object], static: dict[str, object] | None = None
) -> Lowered:
    """The form, traced into the program that is being lowered."""
    types: Sequence[Any] = ctx.avals_in
    # The form is traced now, perhaps outside of the context in which x64 was on.
    wide = any(jnp.dtype(t.dtype).itemsize == 8 for t in types)
    in_x64: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined, unused-ignore]
    with jax.enable_x64(wide or in_x64):
        lowered = mlir.lower_fun(lambda *arrays: _tuple(form(*arrays, **(static or {}))))
        return lowered(ctx, *operands)


def _has_rows(ctx: Context) -> bool:
    """Whether each device has whole rows of the first operand, as far as is known here.

    A type that names the mesh axes of its dimensions tells. An array on automatic axes does not,
    and counts as split where several devices run the program.
    """
    sharding = explicit_sharding(ctx.avals_in[0])
    return _runs_alone(ctx) if sharding is None else not any(sharding.spec[-1:])


def _runs_alone(ctx: Context) -> bool:
    """Whether no partitioner follows; inside shard_map each device's program is its own."""
    context: Any = ctx.module_context.axis_context
    mesh = getattr(context, "mesh", None)
    if mesh is not None:
        return bool(context.manual_axes == frozenset(mesh.axis_names))
    alone = getattr(context, "num_devices", 1) in (1, None)
    return alone and explicit_sharding(ctx.avals_in[0]) is None
