"""The passes over the tokens for the devices of a mesh, each with its part of the work.

Collectives stand where they cost least: the kernel comes before the loop over chunks and its
gradient leaves after it, each once, in the kernel's dtype. Inside of the loop the devices that
share the classes exchange a few numbers a row, as they do under `axis_name`, and where tokens move
(`division`), a chunk of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxsoftmax._fused import chunked, streamed
from jaxsoftmax._fused.division import Division
from jaxsoftmax._fused.given import (
    HIDDEN,
    KERNELS,
    VECTORS,
    Differentiable,
    Given,
    Layer,
    Rows,
    Wanted,
    with_each,
)
from jaxsoftmax._fused.plan import Gathered, Plan
from jaxsoftmax._options import Numbers
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.targets import ClassLabels, Labels, SoftLabels, SparseLabels
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.layouts import Axes, Layout
from jaxsoftmax._xla.programs import Tree

P = PartitionSpec


@dataclasses.dataclass(frozen=True)
class Work:
    """A division, and what follows from it for a call."""

    layout: Layout
    division: Division
    plan: Plan

    @property
    def here(self) -> Plan:
        """The plan of one device."""
        division = self.division
        axes = division.token_axes if division.moves else ()
        options = dataclasses.replace(self.plan.options, axis_name=division.shards or None)
        gathered = Gathered(axes, self.layout.size(axes), division.shards)
        return dataclasses.replace(self.plan, options=options, gathered=gathered)

    def axes(self, k: int) -> tuple[int, int]:
        """Of the kernel of a head: which is of features, and which of classes."""
        layout = self.plan.layouts[k]
        return layout.index("D"), layout.index("V")

    def of_rows(self, *rest: Axes | None) -> Tree:
        """How an array with a row for each token is split."""
        return P(*self.division.tokens, *rest)

    def of_kernel(self, classes: Axes, k: int) -> Tree:
        """How the kernel of a head is split."""
        features = self.division.features
        return P(classes, features) if self.axes(k)[0] else P(features, classes)

    def of_given(self, given: Given) -> Given:
        """How what is given is split; that of an argument that is None is ignored."""
        labels, division = given.rows.labels, self.division
        row, named, by_class = self.of_rows(), self.of_rows(None), self.of_rows(division.shards)
        of_labels: Labels | None = None if labels is None else ClassLabels(row)
        if isinstance(labels, SoftLabels):
            of_labels = SoftLabels(by_class)
        elif isinstance(labels, SparseLabels):
            of_labels = SparseLabels(named, named)
        kernel, target = (self.of_kernel(division.classes, k) for k in (0, -1))
        one: Tree = P(division.shards)
        whole: Tree = P()
        return Given(
            Rows(named, of_labels, row, by_class, row, named),
            Layer(kernel, one, one, one, Numbers(whole, whole, whole, whole), target, one),
        )

    def run(self, f: Callable[..., Tree], *trees: Tree, specs: Tree, out_specs: Tree) -> Tree:
        """f on each device."""
        mapped = jax.shard_map(f, mesh=self.layout.mesh, in_specs=specs, out_specs=out_specs)
        return mapped(*trees)

    # --- the kernel, once before the loop, and its gradient, once after it

    def arrive(self, kernel: Array, k: int) -> Array:
        """This device's classes, with all of their features."""
        at_features, at_classes = self.axes(k)
        division = self.division
        if division.moves:
            kernel = mesh.own_part(kernel, division.added, at_classes)
            return _exchange(kernel, division.features, at_classes, at_features)
        for axis in reversed(division.features):
            kernel = lax.all_gather(kernel, axis, axis=at_features, tiled=True)
        for axis in reversed(division.classes[len(division.shards) :]):
            kernel = lax.all_gather(kernel, axis, axis=at_classes, tiled=True)
        return kernel

    def depart(self, gradient: Array, dtype: np.dtype, k: int) -> Array:
        """The kernel's gradient, summed over the tokens, split as the kernel is."""
        at_features, at_classes = self.axes(k)
        division = self.division
        if dtype != jnp.float16:  # whose range a sum may leave before it is divided
            gradient = gradient.astype(dtype)
        if division.moves:
            return _exchange(gradient, division.features, at_features, at_classes)
        rest = list(division.token_axes)
        gathered = division.classes[len(division.shards) :]
        for axis in (*division.features, *gathered):
            at = at_features if axis in division.features else at_classes
            gradient = lax.psum_scatter(gradient, axis, scatter_dimension=at, tiled=True)
            rest.remove(axis)
        return lax.psum(gradient, tuple(rest)) if rest else gradient

    def home(self, found: Differentiable) -> Differentiable:
        """Gradients that lie as their arguments do."""

        def at(spec_of: Callable[[Array, int], PartitionSpec]) -> Callable[[Array, int], Array]:
            return lambda x, k: lax.with_sharding_constraint(
                x, NamedSharding(self.layout.mesh, spec_of(x, k))
            )

        division = self.division
        if division.added:
            found = with_each(found, KERNELS, at(lambda _, k: self.of_kernel(division.classes, k)))
        if division.lies != division.tokens:
            found = with_each(found, HIDDEN, at(lambda *_: P(*division.lies)))
        return with_each(found, VECTORS, at(lambda x, _: P(*(self.layout.of(x.shape) or ((),)))))


def _exchange(x: Array, axes: Axes, split: int, joined: int) -> Array:
    """Each device's part of one dimension for its part of another."""
    if not axes:
        return x
    return lax.all_to_all(x, axes, split_axis=split, concat_axis=joined, tiled=True)


def _arrived(work: Work, given: Given) -> Given:
    return given._replace(layer=with_each(given.layer, KERNELS, work.arrive))


def rows(work: Work, given: Given) -> RowLosses:
    def here(given: Given) -> RowLosses:
        return chunked.rows(_arrived(work, given), work.here)

    return work.run(here, given, specs=(work.of_given(given),), out_specs=work.of_rows())


def rows_and_gradients(
    work: Work, given: Given, wanted: Wanted
) -> tuple[RowLosses, Differentiable]:
    dtypes, wide = [head.kernel.dtype for head in given.heads()], given.rows.weights.dtype

    def depart(gradient: Array, k: int) -> Array:
        return work.depart(gradient, dtypes[k], k)

    def here(given: Given) -> tuple[RowLosses, Differentiable]:
        losses, found = streamed.rows_and_gradients(_arrived(work, given), wanted, work.here)
        found = with_each(found, KERNELS, depart)
        if not work.division.moves and work.division.token_axes:
            axes = work.division.token_axes
            found = with_each(found, VECTORS, lambda x, _: mesh.total(x, axes))
        return losses, found

    specs = work.of_given(given)
    classes = (*work.division.classes, *work.division.added)
    out = Differentiable.of(specs).only(wanted)
    out = with_each(out, KERNELS, lambda _, k: work.of_kernel(classes, k))
    losses, found = work.run(here, given, specs=(specs,), out_specs=(work.of_rows(), out))

    def summed(gradient: Array, k: int) -> Array:
        return gradient.astype(work.plan.sum_dtype(dtypes[k], wide))

    return losses, with_each(work.home(found), KERNELS, summed)


def tangents_of_rows(work: Work, both: tuple[Given, Differentiable]) -> RowLosses:
    given, tangents = both

    def here(given: Given, tangents: Differentiable) -> RowLosses:
        tangents = with_each(tangents, KERNELS, work.arrive)
        return chunked.tangents_of_rows(_arrived(work, given), tangents, work.here)

    specs = work.of_given(given)
    moved = Differentiable.of(specs).only(tangents.names())
    return work.run(here, given, tangents, specs=(specs, moved), out_specs=work.of_rows())
