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
    dtype = accumulator(hidden.dtype, kernel.dtype)
    ones = ones_of_rows(hidden, dtype)
    hidden = vary_alike(hidden, (arrays.labels, arrays.example_weights))
    plan = Plan(options, chunk)
    classes = kernel.shape[plan.class_axis]
    examples = _examples.of_hidden(hidden, arrays, classes, dtype, options)
    where = arrays.where
    by_row, by_class = (None, where) if where is None or where.ndim == 1 else (where, None)
    weights = ones if examples.weights is None else examples.weights
    given = Given(
        Rows(examples.inputs, examples.labels, examples.ignored, by_row, weights),
        Layer(kernel, bias, arrays.class_weights, by_class, arrays.numbers),
    )
    if options.implementation == "reference":
        return _examples.reduced(rows_at_once(given, plan), examples, arrays, options)
    if options.reduction == "none":
        return _examples.reduced(derivative.rows(plan, given), examples, arrays, options)
    divisor = _examples.divisor_of(examples, arrays, weights.shape, dtype, options)
    if plan.divides_first(hidden.dtype, kernel.dtype):
        share = _examples.divided(jnp.ones_like(divisor), divisor, arrays, options)
        given = given._replace(rows=given.rows._replace(weights=weights * share))
        total, rows = derivative.total(plan, given)
    else:
        total, rows = derivative.total(plan, given)
        total = _examples.divided(total, divisor, arrays, options)
    return total if rows is None else (total, _examples.statistics_of(rows, examples, divisor))
