"""The entrance of the fused path: checked arrays and options to the loss."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax import _examples
from jaxsoftmax._arguments import Arrays
from jaxsoftmax._examples import Loss
from jaxsoftmax._fused import derivative
from jaxsoftmax._fused.given import Given, Layer, Rows
from jaxsoftmax._fused.part import rows_at_once
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._options import LinearOptions
from jaxsoftmax._xla.dtypes import accumulator
from jaxsoftmax._xla.shardings import on_their_mesh, ones_of_rows, vary_alike
from jaxsoftmax.tuning import Chunk


@partial(jax.jit, static_argnames=("options", "chunk"))
@on_their_mesh
def loss(
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    arrays: Arrays,
    *,
    options: LinearOptions,
    chunk: Chunk,
) -> Loss:
    """`cross_entropy` of hidden · kernel + bias."""
    hidden = vary_alike(hidden, (arrays.labels, arrays.example_weights))
    classes = kernel.shape[options.kernel_layout.index("V")]
    dtype = accumulator(hidden.dtype, kernel.dtype)
    examples = _examples.of_hidden(hidden, arrays, classes, dtype, options)
    where = arrays.where
    by_row = None if where is None or where.ndim == 1 else where
    plan = Plan(options, chunk)
    weights = examples.weights
    if weights is None:
        weights = ones_of_rows(hidden, dtype)
    given = Given(
        Rows(examples.inputs, examples.labels, examples.ignored, by_row, weights),
        Layer(kernel, bias, arrays.class_weights, where if by_row is None else None),
    )
    if options.implementation == "reference":
        rows = rows_at_once(given, plan)
    elif options.reduction == "none" or options.return_statistics:
        rows = derivative.rows(plan, given)
    else:
        divisor = _examples.divisor_of(examples, arrays, weights.shape, dtype, options)
        if not plan.divides_first(hidden.dtype, kernel.dtype):
            total = derivative.total(plan, given)
            return _examples.divided(total, divisor, arrays, options)
        share = _examples.divided(jnp.ones_like(divisor), divisor, arrays, options)
        of_rows = given.rows._replace(weights=weights * share)
        return derivative.total(plan, given._replace(rows=of_rows))
    return _examples.reduced(rows, examples, arrays, options)
