"""The matrix products of the fused loss, and what keeps the work on a chunk inside the loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
from jax import Array, lax

from jaxsoftmax._xla.forms import Arrays, Operation, Tangents, is_linear, is_zero
from jaxsoftmax._xla.products import over_matrices, product
from jaxsoftmax._xla.shardings import zeros_as

Tree = TypeVar("Tree")

add_product = Operation("add_product", lambda total, *_, feature_axis: total, cpu_on_mesh=True)


@add_product.defjvp
def _add_product_jvp(
    primals: Arrays, tangents: Tangents, feature_axis: int
) -> tuple[Arrays, Tangents]:
    """The product is linear in each factor."""
    total, hidden, delta = primals
    total_dot, hidden_dot, delta_dot = tangents
    result = add_product(total, hidden, delta, feature_axis=feature_axis)
    tangent = zeros_as(total) if is_zero(total_dot) else total_dot
    if not is_zero(hidden_dot):
        tangent = add_product(tangent, hidden_dot, delta, feature_axis=feature_axis)
    if not is_zero(delta_dot):
        tangent = add_product(tangent, hidden, delta_dot, feature_axis=feature_axis)
    return (result,), (tangent,)


@add_product.deftranspose
def _add_product_transpose(
    cotangents: Tangents, total: Any, hidden: Any, delta: Any, feature_axis: int
) -> tuple[Array | None, ...]:
    """Of the factor that the linear program is a function of: the other one times the cotangent."""
    (cotangent,) = cotangents
    of_total = cotangent if is_linear(total) else None
    of_hidden = of_delta = None
    if is_linear(hidden):
        of_hidden = _times(delta, cotangent, 1 - feature_axis).astype(hidden.aval.dtype)
    if is_linear(delta):
        of_delta = _times(hidden, cotangent, feature_axis).astype(delta.aval.dtype)
    return of_total, of_hidden, of_delta


def _times(rows: Array, cotangent: Array, axis: int) -> Array:
    """The rows times the cotangent of the total, over one axis of it."""
    return over_matrices(partial(product, contract=(1, axis)))(rows, cotangent)


always = Operation("always", lambda i: i == i, cpu_on_mesh=True)


def in_the_loop(i: Array, f: Callable[..., Tree], *arguments: object) -> Tree:
    """f(*arguments), with nothing of it moved out of the loop over i.

    XLA:CPU computes what does not depend on the loop's state once, before the loop, and keeps it:
    a broadcast 0 becomes an array as large as the chunk of logits (JAX 0.10.2, 128 x 256000:
    156 MiB). It leaves the branches of a conditional alone. For CUDA, JAX itself moves such
    constants out of the scan (H200, 512 tokens: 1500 MiB), so that the conditional is there on
    every platform; off the CPU its condition is one that XLA folds.
    """
    traced_once = jax.jit(f)

    def never(*arguments: object) -> Tree:
        return jax.tree.map(zeros_as, jax.eval_shape(traced_once, *arguments))

    return lax.cond(always(i), traced_once, never, *arguments)
