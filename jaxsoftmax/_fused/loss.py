"""The entrance of the fused path: checked arrays and options to the loss, or the divergence."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

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
def loss(heads: tuple[Head, ...], arrays: Arrays, *, options: LinearOptions, chunk: Chunk) -> Loss:
    """`cross_entropy` of the logits of a head, or `kl_divergence` of those of two."""
    head, *target = heads
    dtype = accumulator(*(x.dtype for one in heads for x in one[:2]))
    ones = ones_of_rows(head.hidden, dtype)
    inputs = tuple(one.hidden for one in heads)
    inputs = vary_alike(inputs, (arrays.labels, arrays.example_weights))
    plan, where = Plan(options, chunk), arrays.where
    classes = head.kernel.shape[plan.class_axis]
    examples = _examples.of_hidden(inputs, arrays, classes, dtype, options)
    # Of the classes row by row, or of all rows alike.
    by_row, by_class = (None, where) if where is None or where.ndim == 1 else (where, None)
    weights = ones if examples.weights is None else examples.weights
    hidden, *target_hidden = examples.inputs
    of_target = (x for one in target for x in one[1:])
    given = Given(
        Rows(hidden, examples.labels, examples.ignored, by_row, weights, *target_hidden),
        Layer(*head[1:], arrays.class_weights, by_class, arrays.numbers, *of_target),
    )
    return _reduced(plan, given, examples, arrays)


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
