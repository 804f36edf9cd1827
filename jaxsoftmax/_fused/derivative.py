"""The derivative of the fused path: one rule for a sum of losses, one for the rows by themselves.

With L = Σ_n a_n ℓ_n(h_n, W), the rule of the sum computes the loss and its gradients in one pass
over the tokens, and returns the tangent as inner products with them:

    L̇ = ⟨∂L/∂h, ḣ⟩ + ⟨∂L/∂W, Ẇ⟩ + ... + Σ_n ȧ_n ℓ_n

Transposed it is the gradient; evaluated, a forward derivative; and since the pass is itself made
of differentiable operations, the derivative of either, a Hessian-vector product, follows from it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Bool, Float

from jaxsoftmax import _mesh, _reduction
from jaxsoftmax._fused import chunked
from jaxsoftmax._fused.chunked import Compute, Fixed, Moving
from jaxsoftmax._fused.forward import Forward
from jaxsoftmax._fused.orientation import either_way
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._loss import RowLosses
from jaxsoftmax._mesh import AxisName


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def total(
    forward: Forward,
    compute: Compute,
    plan: Plan,
    axis_name: AxisName,
    lies_turned: Bool[Array, ""] | None,
    moving: Moving,
    fixed: Fixed,
    weights: Float[Array, "N"],
) -> Float[Array, ""]:
    """Σ weights · loss; undifferentiated the rows come from `forward`."""
    losses = rows(forward, compute, plan, lies_turned, moving, fixed).loss
    return jnp.sum(_reduction.weighted(losses, weights))


def _total_jvp(
    forward: Forward,
    compute: Compute,
    plan: Plan,
    axis_name: AxisName,
    primals: Any,
    tangents: Any,
) -> tuple[Array, Array]:
    lies_turned, moving, fixed, weights = primals
    moved, moved_weights = _moved(tangents[1]), tangents[3]
    once = partial(chunked.rows_and_gradients, compute, moving, fixed, weights, plan, moved)
    losses, gradients = either_way(lies_turned, once)
    losses = _reduction.counted(losses, weights)
    value = jnp.sum(weights * losses)
    tangent = jnp.zeros_like(value)
    for gradient, motion in zip(gradients, moved, strict=True):
        if gradient is not None:
            tangent += jnp.sum(gradient.astype(value.dtype) * motion.astype(value.dtype))
    # Each device has its part of these; transposed, the sum is that of hidden's gradient. What
    # follows from the weights all devices have in full.
    tangent = _mesh.total(tangent, axis_name)
    if not isinstance(moved_weights, SymbolicZero):
        tangent += jnp.sum(moved_weights * losses)
    return value, tangent


total.defjvp(_total_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def rows(
    forward: Forward,
    compute: Compute,
    plan: Plan,
    lies_turned: Bool[Array, ""] | None,
    moving: Moving,
    fixed: Fixed,
) -> RowLosses:
    """Each row by itself: for losses that are not summed, and statistics."""
    return either_way(lies_turned, partial(forward, compute, moving, fixed, plan))


def _rows_jvp(
    forward: Forward, compute: Compute, plan: Plan, primals: Any, tangents: Any
) -> tuple[RowLosses, RowLosses]:
    lies_turned, moving, fixed = primals
    values = rows(forward, compute, plan, lies_turned, moving, fixed)
    moved = _moved(tangents[1])
    once = partial(chunked.tangents_of_rows, compute, moving, fixed, moved, plan)
    motions = either_way(lies_turned, once)
    if values.predicted is not None:
        still: Any = np.zeros(values.predicted.shape, jax.dtypes.float0)
        motions = motions._replace(predicted=still)
    return values, motions


rows.defjvp(_rows_jvp, symbolic_zeros=True)


def _moved(tangents: Moving) -> Moving:
    """None for what does not move."""
    return Moving(*(None if isinstance(t, SymbolicZero) else t for t in tangents))
