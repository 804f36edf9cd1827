"""Where a program will run, known when it is lowered: which form of a computation it gets.

XLA:CPU wants some reductions in forms of their own (blocks of a row, pieces of a row) that it runs
several times as fast. Over a mesh those forms reshape and gather along the sharded classes, and
GSPMD then moves the logits between the devices: they are for a program that one CPU runs alone.
An accelerator reads the logits once where a reduction does all that there is to do. Of such a
reduction over sharded classes GSPMD gathers the results of all devices, where a maximum and a sum
are each as large as one.
How many devices will run it is not known when it is traced, where arrays carry no sharding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import mlir


def on_one_cpu(fast: Callable[..., Array], portable: Callable[..., Array], *args: Any) -> Array:
    """`fast(*args)` where one CPU runs the whole program, `portable(*args)` anywhere else."""

    def on_cpu(*args: Any) -> Array:
        return lax.cond(_alone.bind(), fast, portable, *args)

    return lax.platform_dependent(*args, cpu=on_cpu, default=portable)


def on_one_accelerator(fast: Callable[..., Any], portable: Callable[..., Any], *args: Any) -> Any:
    """`fast(*args)` where one accelerator runs the whole program, `portable(*args)` elsewhere."""

    def on_accelerator(*args: Any) -> Any:
        return lax.cond(_alone.bind(), fast, portable, *args)

    return lax.platform_dependent(*args, cpu=portable, default=on_accelerator)


_alone = Primitive("jaxsoftmax_alone")
_alone.def_impl(lambda: np.bool_(True))


_alone.def_abstract_eval(lambda: jax.core.ShapedArray((), jnp.dtype(jnp.bool_)))


def _alone_lowering(ctx: Any) -> Any:
    """True where no partitioner follows; inside shard_map each device's program is its own."""
    context = ctx.module_context.axis_context
    mesh = getattr(context, "mesh", None)
    if mesh is None:
        alone = getattr(context, "num_devices", 1) in (1, None)
    else:
        alone = context.manual_axes == frozenset(mesh.axis_names)
    return [mlir.ir_constant(np.bool_(alone))]


mlir.register_lowering(_alone, _alone_lowering)
