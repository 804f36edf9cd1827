"""The passes over the tokens as programs, which a mesh divides.

Each is a function of (tree, plan, wanted), tree being what is given, with the tangents or
cotangents of a linear one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax._fused import chunked, per_device, streamed
from jaxsoftmax._fused.division import division_of
from jaxsoftmax._fused.given import KERNELS, Differentiable, Given, Wanted, with_each
from jaxsoftmax._fused.per_device import Work
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.targets import ClassLabels, SparseLabels
from jaxsoftmax._xla.layouts import Layout
from jaxsoftmax._xla.programs import Program, Tree

NOTHING: Wanted = frozenset()


def rows(given: Given, plan: Plan) -> RowLosses:
    """Each row by itself."""
    return _rows(given, alone=_alone(plan), plan=plan, wanted=NOTHING)


def rows_and_gradients(
    given: Given, wanted: Wanted, plan: Plan
) -> tuple[RowLosses, Differentiable]:
    """The rows, and the gradients of Σ weights · loss."""
    return _rows_and_gradients(given, alone=_alone(plan), plan=plan, wanted=wanted)


def tangents_of_rows(given: Given, tangents: Differentiable, plan: Plan) -> RowLosses:
    """The tangents of `rows`."""
    both = (given, tangents)
    return _tangents(both, alone=_alone(plan), plan=plan, wanted=NOTHING)


def _alone(plan: Plan) -> bool:
    """Whether the user says how the classes are divided."""
    return plan.options.axis_name is not None


# --- the types of the results: rows lie as their weights do, gradients as their arguments ---------


def _like_rows(given: Given, plan: Plan, wanted: Wanted) -> RowLosses:
    number = given.rows.weights
    if not plan.options.return_statistics:
        return RowLosses(number)
    index = number.astype(jnp.int32)
    labels = given.rows.labels
    rank = index if isinstance(labels, ClassLabels) else None
    of_label = number
    if isinstance(labels, SparseLabels):
        of_label = jnp.broadcast_to(number[..., None], labels.weights.shape)
    return RowLosses(number, of_label, number, number, number, index, rank)


def _like_rows_and_gradients(
    given: Given, plan: Plan, wanted: Wanted
) -> tuple[RowLosses, Differentiable]:
    rows, wide = _like_rows(given, plan, wanted), given.rows.weights.dtype
    found = Differentiable.of(given).only(wanted)
    sums = jax.tree.map(lambda x: x.astype(wide), found.of_layer())

    def of_kernel(x: Array, k: int) -> Array:
        return x.astype(plan.sum_dtype(given.heads()[k].kernel.dtype, wide))

    return rows, with_each(Differentiable(*found.of_rows(), *sums), KERNELS, of_kernel)


def _like_pulled(both: tuple[Given, RowLosses], plan: Plan, wanted: Wanted) -> Differentiable:
    return Differentiable.of(both[0]).only(wanted)


# --- the programs ---------------------------------------------------------------------------------


def _pulled(
    tangents: Callable[[tuple[Given, Differentiable]], RowLosses],
    both: tuple[Given, RowLosses],
    wanted: Wanted,
) -> Differentiable:
    """The transpose of a function that is linear in the tangents."""
    given, cotangents = both
    transpose = jax.linear_transpose(
        lambda dots: tangents((given, dots)), Differentiable.of(given).only(wanted)
    )
    (found,) = transpose(cotangents)
    return found


def _pulled_back(both: tuple[Given, RowLosses], plan: Plan, wanted: Wanted) -> Differentiable:
    """The same on one device, where the kernel's gradient may come by blocks."""
    if plan.streams:
        found = streamed.pulled_back(*both, wanted, plan)[1]
        like = _like_pulled(both, plan, wanted)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), found, like)
    return _pulled(lambda pair: chunked.tangents_of_rows(*pair, plan), both, wanted)


def _pulled_divided(work: Work, both: tuple[Given, RowLosses], wanted: Wanted) -> Differentiable:
    found = _pulled(lambda pair: per_device.tangents_of_rows(work, pair), both, wanted)
    return work.home(found)


def _program(
    name: str,
    whole: Callable[..., Tree],
    like: Callable[..., Tree],
    divided: Callable[..., Tree],
    *,
    gradients: bool,
) -> Program:
    def divide(
        layout: Layout, tree: Tree, known: Tree, plan: Plan, wanted: Wanted
    ) -> Callable[[Tree], Tree] | None:
        given, of_given = (tree, known) if isinstance(tree, Given) else (tree[0], known[0])
        division = division_of(layout, given, of_given, plan, gradients=gradients)
        if division is None:
            return None
        return partial(divided, Work(layout, division, plan), wanted=wanted)

    return Program(name, whole, like=like, divide=divide)


_rows = _program(
    "linear_rows",
    lambda given, plan, wanted: chunked.rows(given, plan),
    _like_rows,
    lambda work, given, wanted: per_device.rows(work, given),
    gradients=False,
)
_rows_and_gradients = _program(
    "linear_rows_and_gradients",
    lambda given, plan, wanted: streamed.rows_and_gradients(given, wanted, plan),
    _like_rows_and_gradients,
    per_device.rows_and_gradients,
    gradients=True,
)
_tangents = _program(
    "linear_tangents",
    lambda both, plan, wanted: chunked.tangents_of_rows(both[0], both[1], plan),
    lambda both, plan, wanted: _like_rows(both[0], plan, wanted).movable(),
    lambda work, both, wanted: per_device.tangents_of_rows(work, both),
    gradients=True,
)
_gradients_of_rows = _program(
    "linear_gradients_of_rows",
    _pulled_back,
    _like_pulled,
    _pulled_divided,
    gradients=True,
)
_tangents.transposes_to(_gradients_of_rows)
