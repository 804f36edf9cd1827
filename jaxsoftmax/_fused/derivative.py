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
from jax.custom_derivatives import zero_from_primal
from jaxtyping import Float

from jaxsoftmax._fused import passes
from jaxsoftmax._fused.given import Differentiable, Given, Wanted
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.forms import is_zero
from jaxsoftmax._xla.masks import counted
from jaxsoftmax._xla.shardings import vary_alike


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def total(plan: Plan, given: Given) -> tuple[Float[Array, ""], RowLosses | None]:
    """Σ weights · loss, and the rows where statistics are asked for.

    Where these are not differentiated, they take no product more: their tangents are a program of
    which nothing is left in reverse mode.
    """
    found, weights = rows(plan, given), given.rows.weights
    value = jnp.sum(weights * counted(found.loss, weights))
    return value, found if plan.options.return_statistics else None


def _total_jvp(
    plan: Plan, primals: tuple[Given], tangents: tuple[Given]
) -> tuple[tuple[Array, RowLosses | None], tuple[Array, RowLosses | None]]:
    (given,), given_dot = primals, _nonzero(tangents[0])
    dots, weights_dot = Differentiable.of(given_dot), given_dot.rows.weights
    found, gradients = passes.rows_and_gradients(given, dots.names(), plan)
    losses = counted(found.loss, given.rows.weights)
    value = jnp.sum(given.rows.weights * losses)
    whole = Differentiable.whole(given)
    tangent = _inner_products(gradients, dots, whole, value, plan)
    if weights_dot is not None:
        tangent += jnp.sum(weights_dot * losses)
    if not plan.options.return_statistics:
        return (value, None), (tangent, None)
    return (value, found), (tangent, _tangents_of_rows(found, given, dots, plan))


def _inner_products(
    gradients: Differentiable, dots: Differentiable, whole: Wanted, value: Array, plan: Plan
) -> Float[Array, ""]:
    """Σ ⟨gradient, tangent⟩."""
    tangent, of_whole = jnp.zeros_like(value), jnp.zeros_like(value)
    for name, gradient, dot in zip(dots._fields, gradients, dots, strict=True):
        if gradient is not None and dot is not None:
            # In the argument's dtype: where it varies over fewer axes, that is what is summed.
            dot = vary_alike(dot, gradient).astype(value.dtype)
            inner = jnp.sum(gradient.astype(value.dtype) * dot)
            if name in whole:
                of_whole += inner
            else:
                tangent += inner
    # Each device has its part of these; transposed, the sum is that of hidden's gradient. What
    # follows from the weights all devices have in full; of what is whole, each copy's part.
    tangent = mesh.total(tangent, plan.options.axis_name)
    return tangent + mesh.over_copies(of_whole, plan.options.axis_name)


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
    return found, _tangents_of_rows(found, given, dots, plan)


rows.defjvp(_rows_jvp, symbolic_zeros=True)


def _nonzero(tangents: Given) -> Given:
    """None for a tangent that is 0."""
    return jax.tree.map(lambda t: None if is_zero(t) else t, tangents)


def _tangents_of_rows(
    found: RowLosses, given: Given, dots: Differentiable, plan: Plan
) -> RowLosses:
    """Those of the rows that were found; an index has none."""
    moved = passes.tangents_of_rows(given, dots, plan)
    zeros = zero_from_primal(found, symbolic_zeros=True)
    return moved._replace(predicted=zeros.predicted, rank=zeros.rank)
