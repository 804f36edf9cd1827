"""Blocks of classes that one device takes in turn, as if each were another device's shard.

A row of logits that is too long to keep is computed twice. The first time it is whole: each total T
that shards would have summed is recorded, and in reverse mode its cotangent T̄. The second time a
block at a time. Everything that depends on a class's logit x goes into those totals as terms t(x),
so that the gradient of a block's logits is Σ T̄ ∂t/∂x with all totals constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import Index, PerClass, PerRow, Size
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
) -> tuple[Rows, Others, Callable[[Rows], tuple[Inputs, Record]]]:
    """As `jax.vjp` of the first result of rows_of(inputs, blocks); the other has no derivative.

    What pulls back gives the record, too.
    """

    def totals_of(inputs: Inputs) -> list[Array]:
        whole = _Whole(axis_name)
        rows_of(inputs, whole)
        return whole.totals

    def shifted(inputs: Inputs, shifts: list[Array]) -> tuple[Rows, tuple[Others, Record]]:
        whole = _Whole(axis_name, shifts)
        found, others = rows_of(inputs, whole)
        return found, (others, Record(whole.totals, whole.fixed, []))

    # The cotangent of a 0 that is added to a total is the total's.
    zeros = [zeros_as(total) for total in jax.eval_shape(totals_of, inputs)]
    found, pull, (others, record) = jax.vjp(shifted, inputs, zeros, has_aux=True)

    def pull_back(cotangents: Rows) -> tuple[Inputs, Record]:
        of_inputs, of_totals = pull(cotangents)
        of_totals = [mesh.over_copies(cotangent, axis_name) for cotangent in of_totals]
        return of_inputs, record._replace(cotangents=of_totals)

    return found, others, pull_back


def replayed(
    rows_of: Callable[[PerClass, Blocks], object],
    logits: PerClass,
    record: Record,
    first: Int[Array, ""],
) -> PerClass:
    """The gradient of a block of logits, the first of which is that class."""

    def terms_of(logits: PerClass) -> list[Array]:
        block = _Block(record, first, logits.shape[-1])
        rows_of(logits, block)
        return block.terms

    terms, pull = jax.vjp(terms_of, logits)
    (gradient,) = pull(
        [ct + jnp.zeros_like(x) for ct, x in zip(record.cotangents, terms, strict=True)]
    )
    return gradient


class _Whole(Blocks):
    """All classes at once, over which totals are recorded."""

    def __init__(self, axis_name: AxisName, shifts: Sequence[Array] | None = None) -> None:
        self._axis_name = axis_name
        self._shifts = None if shifts is None else iter(shifts)
        self.totals: list[Array] = []
        self.fixed: list[Array] = []

    def total(self, x: PerRow) -> PerRow:
        x = mesh.total(x, self._axis_name)
        self.totals.append(x if self._shifts is None else x + next(self._shifts))
        return self.totals[-1]

    def maximum(self, x: PerRow) -> PerRow:
        self.fixed.append(mesh.maximum(x, self._axis_name))
        return self.fixed[-1]

    def first_owner(self, label: Index, largest: PerRow) -> Index:
        self.fixed.append(mesh.first_owner(label, largest, self._axis_name))
        return self.fixed[-1]

    def to_global(self, label: Index, classes: Size) -> Index:
        return mesh.to_global(label, classes, self._axis_name)


class _Block(Blocks):
    """So many classes from the first; `terms` is what they add to each total."""

    def __init__(self, record: Record, first: Int[Array, ""], classes: Size) -> None:
        self._totals, self._fixed = iter(record.totals), iter(record.fixed)
        self._first, self._classes = first, classes
        self.terms: list[Array] = []

    def total(self, x: PerRow) -> PerRow:
        self.terms.append(x)
        return next(self._totals)

    def maximum(self, x: PerRow) -> PerRow:
        return next(self._fixed)

    def first_owner(self, label: Index, largest: PerRow) -> Index:
        return mesh.to_part(next(self._fixed), self._first, self._classes)

    def to_global(self, label: Index, classes: Size) -> Index:
        return label  # of no gradient
