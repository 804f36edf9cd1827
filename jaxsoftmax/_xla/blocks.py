"""Blocks of classes that one device takes in turn, as if each were another device's shard.

A row of logits that is too long to keep is computed twice. The first time it is whole: each total T
that shards would have summed is recorded, and in reverse mode its cotangent T̄. The second time a
block at a time. Everything that depends on a class's logit x goes into those totals as terms t(x),
so that the gradient of a block's logits is Σ T̄ ∂t/∂x with all totals constant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow
from jaxsoftmax._xla.mesh import AxisName, Blocks
from jaxsoftmax._xla.shardings import zeros_as

Inputs = TypeVar("Inputs")
Others = TypeVar("Others")
Rows = TypeVar("Rows")


class Record(NamedTuple):
    """What a block has to be told of each row."""

    totals: list[PerRow]  # sums over all classes
    fixed: list[Array]  # the largest logit, or which class it is: constants
    cotangents: list[PerRow]  # of the totals


def recorded(
    rows_of: Callable[[Inputs, Blocks], tuple[Rows, Others]], inputs: Inputs, axis_name: AxisName
) -> tuple[Others, Callable[[Rows], tuple[Inputs, Record]]]:
    """The other result of rows_of(inputs, blocks), and as `jax.vjp` what pulls back the first.

    This gives the record, too.
    """

    def shifted(inputs: Inputs, shifts: list[Array] | None) -> tuple[Rows, tuple[Others, Record]]:
        record = Record([], [], [])
        found, others = rows_of(inputs, _recording(record, shifts, axis_name))
        return found, (others, record)

    # The cotangent of a 0 that is added to a total is the total's.
    _, (_, types) = jax.eval_shape(shifted, inputs, None)
    zeros = [zeros_as(total) for total in types.totals]
    _, pull, (others, record) = jax.vjp(shifted, inputs, zeros, has_aux=True)

    def pull_back(cotangents: Rows) -> tuple[Inputs, Record]:
        of_inputs, of_totals = pull(cotangents)
        of_totals = [mesh.over_copies(cotangent, axis_name) for cotangent in of_totals]
        return of_inputs, record._replace(cotangents=of_totals)

    return others, pull_back


def _recording(record: Record, shifts: list[Array] | None, axis_name: AxisName) -> Blocks:
    """All classes at once, over which totals are recorded."""
    shift = None if shifts is None else iter(shifts)

    def total(x: PerRow) -> PerRow:
        x = mesh.total(x, axis_name)
        record.totals.append(x if shift is None else x + next(shift))
        return record.totals[-1]

    def maximum(x: PerRow) -> PerRow:
        record.fixed.append(mesh.maximum(x, axis_name))
        return record.fixed[-1]

    def first_owner(label: Index, largest: PerRow) -> Index:
        record.fixed.append(mesh.first_owner(label, largest, axis_name))
        return record.fixed[-1]

    return Blocks(total, maximum, first_owner, partial(mesh.to_global, axis_name=axis_name))


def replayed(
    rows_of: Callable[[PerClass, Blocks], object],
    logits: PerClass,
    record: Record,
    first: Int[Array, ""],
) -> PerClass:
    """The gradient of a block of logits, the first of which is that class."""

    def terms_of(logits: PerClass) -> list[Array]:
        """What these classes add to each total."""
        totals, fixed = iter(record.totals), iter(record.fixed)
        terms: list[Array] = []

        def total(x: PerRow) -> PerRow:
            terms.append(x)
            return next(totals)

        block = Blocks(
            total,
            maximum=lambda _: next(fixed),
            first_owner=lambda *_: mesh.to_part(next(fixed), first, logits.shape[-1]),
            to_global=lambda label, _: label,  # of no gradient
        )
        rows_of(logits, block)
        return terms

    terms, pull = jax.vjp(terms_of, logits)
    (gradient,) = pull(
        [ct + jnp.zeros_like(x) for ct, x in zip(record.cotangents, terms, strict=True)]
    )
    return gradient
