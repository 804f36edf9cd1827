"""The derivative of the fused path: one rule for a sum of losses, one for the rows by themselves.

With L = Σ_n a_n ℓ_n(h_n, W), the rule of the sum computes the loss and its gradients in one pass
over the tokens, and returns the tangent as inner products with them:

    L̇ = ⟨∂L/∂h, ḣ⟩ + ⟨∂L/∂W, Ẇ⟩ + ... + Σ_n ȧ_n ℓ_n

Transposed it is the gradient; evaluated, a forward derivative; and since the pass itself consists
of differentiable operations, the derivative of either, a Hessian-vector product, follows from it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jaxtyping import Float

from jaxsoftmax import _examples
from jaxsoftmax._fused import passes
from jaxsoftmax._fused.given import Differentiable, Given
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.shardings import vary_alike


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def total(plan: Plan, given: Given) -> Float[Array, ""]:
    """Σ weights · loss."""
    losses, weights = rows(plan, given).loss, given.rows.weights
    return jnp.sum(weights * _examples.counted(losses, weights))


def _total_jvp(plan: Plan, primals: tuple[Given], tangents: tuple[Given]) -> tuple[Array, Array]:
    (given,), given_dot = primals, _nonzero(tangents[0])
    dots, weights_dot = Differentiable.of(given_dot), given_dot.rows.weights
    losses, gradients = passes.rows_and_gradients(given, dots.names(), plan)
    losses = _examples.counted(losses, given.rows.weights)
    value = jnp.sum(given.rows.weights * losses)
    tangent = jnp.zeros_like(value)
    for gradient, dot in zip(gradients, dots, strict=True):
        if gradient is not None and dot is not None:
            # In the argument's dtype: where it varies over fewer axes, that is what is summed.
            dot = vary_alike(dot, gradient).astype(value.dtype)
            tangent += jnp.sum(gradient.astype(value.dtype) * dot)
    # Each device has its part of these; transposed, the sum is that of hidden's gradient. What
    # follows from the weights all devices have in full.
    tangent = mesh.total(tangent, plan.options.axis_name)
    if weights_dot is not None:
        tangent += jnp.sum(weights_dot * losses)
    return value, tangent


total.defjvp(_total_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def rows(plan: Plan, given: Given) -> RowLosses:
    """Each row by itself: for losses that are not summed, and statistics."""
    return passes.rows(given, plan)


def _rows_jvp(
    plan: Plan, primals: tuple[Given], tangents: tuple[Given]
) -> tuple[RowLosses, RowLosses]:
    (given,) = primals
    found = rows(plan, given)
    dots = Differentiable.of(_nonzero(tangents[0]))
    moved = passes.tangents_of_rows(given, dots, plan)
    if found.predicted is not None:
        moved = moved._replace(predicted=zero_from_primal(found.predicted, symbolic_zeros=True))
    return found, moved


rows.defjvp(_rows_jvp, symbolic_zeros=True)


def _nonzero(tangents: Given) -> Given:
    """None for a tangent that is 0."""
    return jax.tree.map(lambda t: None if isinstance(t, SymbolicZero) else t, tangents)
