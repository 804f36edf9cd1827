"""A part of the work: the logits of some tokens, for all classes here or some, and their losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import Array
from jaxtyping import Float

from jaxsoftmax._batch.examples import zeroed
from jaxsoftmax._fused.given import TARGET, Differentiable, Given, Wanted
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._options import Numbers
from jaxsoftmax._row import divergence as _divergence
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import losses as _losses
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.options import row_options
from jaxsoftmax._row.targets import SoftLabels, SparseLabels
from jaxsoftmax._xla.blocks import Record, recorded
from jaxsoftmax._xla.masks import spread_over
from jaxsoftmax._xla.mesh import Blocks
from jaxsoftmax._xla.products import product


class Inputs(NamedTuple):
    """What the losses of a part are differentiated by; None for what they are not."""

    logits: list[Float[Array, "*n V"]]  # and, where they are wanted, the target's
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
        return recorded(rows_of, inputs, plan.options.axis_name)
    _, pull, found = jax.vjp(rows_of, inputs, has_aux=True)
    return found, lambda cotangents: (*pull(cotangents), None)


def rows_of_part(
    inputs: Inputs, blocks: Blocks | None = None, *, part: Given, plan: Plan
) -> tuple[RowLosses, RowLosses]:
    """The rows of a part: what is differentiated of them, and all of them."""
    found = losses_of(inputs, part, plan if blocks is None else plan.among(blocks))
    return found.movable(), found


def losses_of(inputs: Inputs, part: Given, plan: Plan) -> RowLosses:
    """The loss of each row of a part, as of logits that the user gave."""
    (_, labels, ignored, *_), layer = part
    (logits, *target), class_weights, soft, moved = inputs
    pairs = zip(moved, layer.numbers, strict=True)
    numbers = Numbers(*(number if x is None else x for x, number in pairs))
    options = row_options(plan.options, numbers, logits.dtype)
    logits = _existing(logits, part)
    if labels is None:
        (of_target,) = target or logits_of(part, plan)[1:]
        return _divergence.of_logits(logits, _existing(of_target, part), plan.options.beta, options)
    if isinstance(labels, SoftLabels):
        soft = (labels.weights if soft is None else soft).astype(logits.dtype)
        labels = SoftLabels(zeroed(soft, ignored))
    elif isinstance(labels, SparseLabels) and soft is not None:
        labels = labels._replace(weights=soft)
    if class_weights is None:
        class_weights = layer.class_weights
    return _losses.of_logits(logits, labels, class_weights, options)


def _existing(logits: Array, part: Given) -> Float[Array, "*n V"]:
    """Those of excluded classes at −inf."""
    if part.layer.where is not None:
        logits = _logits.exclude(logits, spread_over(part.layer.where, logits))
    return _logits.exclude(logits, part.rows.where)


def logits_of(part: Given, plan: Plan) -> list[Float[Array, "*n V"]]:
    """hidden · kernel + bias of each head, in the accumulator's dtype."""
    found = []
    for (hidden, kernel, bias), layout in zip(part.heads(), plan.layouts, strict=True):
        logits = product(hidden, kernel, (hidden.ndim - 1, layout.index("D")))
        logits = logits.astype(part.rows.weights.dtype)
        if bias is not None:
            logits += spread_over(bias.astype(logits.dtype), logits)
        found.append(logits)
    return found


def inputs_of(logits: list[Array], of: Differentiable, wanted: Wanted) -> Inputs:
    """The logits, and what else is wanted."""
    return Inputs(
        logits if wanted & TARGET else logits[:1],
        of.class_weights if "class_weights" in wanted else None,
        of.soft_labels if "soft_labels" in wanted else None,
        of.only(wanted).numbers,
    )
