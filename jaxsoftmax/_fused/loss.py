"""The entrance of the fused path: checked arrays and options to the loss, or the divergence."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax._arguments import Arrays, Head
from jaxsoftmax._batch import examples as _examples
from jaxsoftmax._batch import reduction as _reduction
from jaxsoftmax._batch.examples import Examples
from jaxsoftmax._batch.reduction import Loss
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
    by_row, by_class = _masks(arrays.where)
    weights = ones if examples.weights is None else examples.weights
    given = Given(
        Rows(examples.inputs, examples.labels, examples.ignored, by_row, weights),
        Layer(kernel, bias, arrays.class_weights, by_class, arrays.numbers),
    )
    return _reduced(plan, given, examples, arrays)


@partial(jax.jit, static_argnames=("options", "chunk"))
@on_their_mesh
def divergence(
    head: Head, target: Head, arrays: Arrays, *, options: LinearOptions, chunk: Chunk
) -> Array:
    """`kl_divergence` of the logits of two heads."""
    dtype = accumulator(*(x.dtype for x in (*head[:2], *target[:2])))
    ones = ones_of_rows(head.hidden, dtype)
    together = vary_alike((head.hidden, target.hidden), (arrays.example_weights,))
    hidden, target_hidden, examples = _examples.of_hidden_pair(*together, arrays, dtype, options)
    by_row, by_class = _masks(arrays.where)
    weights = ones if examples.weights is None else examples.weights
    given = Given(
        Rows(hidden, None, examples.ignored, by_row, weights, target_hidden),
        Layer(head.kernel, head.bias, None, by_class, arrays.numbers, target.kernel, target.bias),
    )
    found = _reduced(Plan(options, chunk), given, examples, arrays)
    assert isinstance(found, Array)
    return found


def _masks(where: Array | None) -> tuple[Array | None, Array | None]:
    """Of the classes row by row, or of all rows alike."""
    return (None, where) if where is None or where.ndim == 1 else (where, None)


def _reduced(plan: Plan, given: Given, examples: Examples, arrays: Arrays) -> Loss:
    options, weights = plan.options, given.rows.weights
    if options.implementation == "reference":
        return _reduction.reduced(rows_at_once(given, plan), examples, arrays, options)
    if options.reduction == "none":
        return _reduction.reduced(derivative.rows(plan, given), examples, arrays, options)
    divisor = _reduction.divisor_of(examples, arrays, weights.shape, weights.dtype, options)
    if plan.divides_first(given.rows.hidden.dtype, given.layer.kernel.dtype):
        share = _reduction.divided(jnp.ones_like(divisor), divisor, arrays, options)
        given = given._replace(rows=given.rows._replace(weights=weights * share))
        total, rows = derivative.total(plan, given)
    else:
        total, rows = derivative.total(plan, given)
        total = _reduction.divided(total, divisor, arrays, options)
    return total if rows is None else (total, _reduction.statistics_of(rows, examples, divisor))
