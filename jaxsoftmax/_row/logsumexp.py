"""log Σ exp over the last axis, whose derivative is a mean over the classes.

The maximum is added by log1p, as Blanchard, Higham and Higham do (IMA J. Numer. Anal. 41(4), 2021).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax._row.softmax import over_mesh, product_rule, transpose_each_other
from jaxsoftmax._row.state import largest_and_odds, like_row, log1p
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import PerClass, PerRow, widen
from jaxsoftmax._xla.forms import Arrays, Operation, Tangents
from jaxsoftmax._xla.masks import keep, spread
from jaxsoftmax._xla.mesh import AxisName, over_classes

_mean_here = Operation("softmax_mean", lambda x, v: like_row(x) + like_row(v))
_times_here = Operation("softmax_times", lambda x, values: widen(x) + spread(values, x))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp(logits: PerClass, mesh_axis: AxisName) -> PerRow:
    """x_a + log(1 + Σ_{j≠a} exp(x_j − x_a)) of the largest class a."""
    top, odds = largest_and_odds(logits, mesh_axis)
    return top + log1p(odds)


@logsumexp.defjvp
def _logsumexp_jvp(mesh_axis: AxisName, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    """⟨p, ẋ⟩; 0 in a saturated row."""
    (logits,), v = primals, widen(tangents[0])
    found = logsumexp(logits, mesh_axis)
    if mesh_axis is None:
        return found, _mean_here(logits, v)
    moves = mesh.maximum(jnp.max(logits, axis=-1), mesh_axis) != jnp.inf
    return found, keep(over_classes(over_mesh(logits, mesh_axis) * v, mesh_axis), moves)


@_mean_here.defjvp
def _mean_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """Of ⟨p, v⟩: ⟨p, v̇⟩ + ⟨ṗ, v⟩."""
    _, v = primals
    return product_rule(_mean_here, primals, tangents, lambda p_dot: jnp.sum(p_dot * v, axis=-1))


@_times_here.defjvp
def _times_jvp(primals: Arrays, tangents: Tangents) -> tuple[Arrays, Tangents]:
    """Of p v, v a number of each row: p v̇ + ṗ v."""
    logits, v = primals
    return product_rule(_times_here, primals, tangents, lambda p_dot: p_dot * spread(v, logits))


transpose_each_other(_mean_here, _times_here)
