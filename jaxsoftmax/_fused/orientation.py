"""Which way round a kernel lies in memory: [D, V], or [V, D] where it is `embedding.T`.

XLA folds no transpose from outside a loop into the products inside. A tied embedding would be
copied before the loop over the tokens (CPU and GPU), and so would its gradient after it (TPU,
too; JAX 0.10.2 to 0.12, 8192 x 2304 x 256000 bfloat16: 1125 MiB). Transposed once more it is the
embedding itself; but a kernel that does lie as [D, V] would then be the one that is copied. Only
the lowering sees what a kernel was made by. So both programs are traced, a constant says which
of them it is to be, and XLA drops the other.

A transpose of another program (of the caller's caller, outside a scan, or run before) is not
seen; then the kernel is taken as it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.extend.core
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad, batching, mlir
from jaxtyping import Bool, Float

T = TypeVar("T")


def lies_turned(kernel: Float[Array, "D V"]) -> Bool[Array, ""] | None:
    """Whether the program makes the kernel by a transpose: a constant of the lowered program.

    None where nothing is traced, and the kernel is an array. To be asked in the caller's own
    program: inside a jit of ours, the kernel is an argument, made by nobody.
    """
    answer = is_transposed_p.bind(kernel)
    return answer if isinstance(answer, jax.core.Tracer) else None


def either_way(lies_turned: Bool[Array, ""] | None, f: Callable[[int], T]) -> T:
    """f(axis), the axis of features in the kernel as it lies in memory."""
    if lies_turned is None:
        return f(0)
    return lax.cond(lies_turned, lambda: f(1), lambda: f(0))


def turned(kernel: Array, axis: int) -> Array:
    """[D, V] as it lies in memory, and back: XLA drops a transpose of a transpose."""
    return kernel.T if axis else kernel


is_transposed_p = jax.extend.core.Primitive("is_transposed")
is_transposed_p.def_impl(lambda _: jnp.zeros((), jnp.bool_))
is_transposed_p.def_abstract_eval(lambda _: jax.core.ShapedArray((), jnp.dtype(jnp.bool_)))


def _lower(_: mlir.LoweringRuleContext, kernel: Any) -> list[Any]:
    maker = getattr(kernel.owner, "name", None)  # that of an argument is a block, without a name
    return [mlir.ir_constant(jnp.bool_(maker == "stablehlo.transpose"))]


def _differentiate(primals: Any, _: Any) -> tuple[Array, Any]:
    answer = is_transposed_p.bind(*primals)
    return answer, ad.Zero(jax.typeof(answer).to_tangent_aval())


def _batch(kernels: Any, _: Any) -> tuple[Array, None]:
    """One answer for all: the transpose of a batch of kernels is a transpose, too."""
    return is_transposed_p.bind(*kernels), None


mlir.register_lowering(is_transposed_p, _lower, cacheable=False)
ad.primitive_jvps[is_transposed_p] = _differentiate
batching.primitive_batchers[is_transposed_p] = _batch
