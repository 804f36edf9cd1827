"""A part of the work: the logits of some tokens, for all classes here or some, and their losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import Array
from jaxtyping import Float

from jaxsoftmax._fused.given import Differentiable, Given, Wanted
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._options import Numbers
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import losses as _losses
from jaxsoftmax._row.losses import RowIndices, RowLosses
from jaxsoftmax._row.options import row_options
from jaxsoftmax._row.targets import SoftLabels, SparseLabels
from jaxsoftmax._xla.blocks import Record, recorded
from jaxsoftmax._xla.masks import keep, spread, spread_over
from jaxsoftmax._xla.mesh import Blocks
from jaxsoftmax._xla.products import product


class Inputs(NamedTuple):
    """What the losses of a part are differentiated by; None for what they are not."""

    logits: Float[Array, "*n V"]
    class_weights: Float[Array, "V"] | None
    soft_labels: Float[Array, "*n V"] | None
    numbers: Numbers


def rows_at_once(given: Given, plan: Plan) -> RowLosses:
    """The loss of each row, and its statistics, from all logits: the definition."""
    return losses_of(Inputs(logits_of(given, plan), None, None, Numbers()), given, plan)


def differentiated(
    part: Given, wanted: Wanted, plan: Plan, *, record: bool
) -> tuple[RowLosses, Callable[[RowLosses], tuple[Inputs, Record | None]]]:
    """The rows of a part, and what pulls their cotangents back to what is wanted."""
    inputs = inputs_of(logits_of(part, plan), Differentiable.of(part), wanted)
    rows_of = partial(rows_of_part, part=part, plan=plan)
    if record:
        found, indices, pull_back = recorded(rows_of, inputs, plan.options.axis_name)
        return found._replace(**indices._asdict()), pull_back
    found, pull, indices = jax.vjp(rows_of, inputs, has_aux=True)
    return found._replace(**indices._asdict()), lambda cotangents: (*pull(cotangents), None)


def rows_of_part(
    inputs: Inputs, blocks: Blocks | None = None, *, part: Given, plan: Plan
) -> tuple[RowLosses, RowIndices]:
    """The rows of a part: what is differentiated of them, and what is an index."""
    found = losses_of(inputs, part, plan if blocks is None else plan.among(blocks))
    return found.movable(), found.indices()


def losses_of(inputs: Inputs, part: Given, plan: Plan) -> RowLosses:
    """The loss of each row of a part, as of logits that the user gave."""
    (_, labels, ignored, where, _), layer = part
    logits, class_weights, soft, moved = inputs
    if layer.where is not None:
        logits = _logits.exclude(logits, spread_over(layer.where, logits))
    logits = _logits.exclude(logits, where)
    if isinstance(labels, SoftLabels):
        soft = (labels.weights if soft is None else soft).astype(logits.dtype)
        if ignored is not None:
            soft = keep(soft, spread(~ignored, soft))
        labels = SoftLabels(soft)
    elif isinstance(labels, SparseLabels) and soft is not None:
        labels = labels._replace(weights=soft)
    if class_weights is None:
        class_weights = layer.class_weights
    pairs = zip(moved, layer.numbers, strict=True)
    numbers = Numbers(*(number if x is None else x for x, number in pairs))
    options = row_options(plan.options, numbers, logits.dtype)
    return _losses.of_logits(logits, labels, class_weights, options)


def logits_of(part: Given, plan: Plan) -> Float[Array, "*n V"]:
    """hidden · kernel + bias in the accumulator's dtype."""
    hidden = part.rows.hidden
    logits = product(hidden, part.layer.kernel, (hidden.ndim - 1, plan.feature_axis))
    bias = part.layer.bias
    return logits if bias is None else logits + spread_over(bias.astype(logits.dtype), logits)


def inputs_of(logits: Array, of: Differentiable, wanted: Wanted) -> Inputs:
    """The logits, and what else is wanted."""
    return Inputs(
        logits,
        of.class_weights if "class_weights" in wanted else None,
        of.soft_labels if "soft_labels" in wanted else None,
        of.only(wanted).numbers,
    )
