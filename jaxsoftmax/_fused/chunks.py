"""Rows taken a chunk at a time: split, taken, joined; gathered where devices share a chunk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax._fused.given import Differentiable, Given, Layer, Rows, Wanted
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._row.targets import ClassLabels, Labels, SparseLabels
from jaxsoftmax._xla import mesh
from jaxsoftmax._xla.dtypes import Size
from jaxsoftmax._xla.mesh import ELSEWHERE
from jaxsoftmax._xla.shardings import zeros_as

Tree = TypeVar("Tree")


class Chunks(NamedTuple):
    """How the rows [*batch] of a call are taken: `steps` times `tokens` of them."""

    batch: tuple[Size, ...]
    tokens: Size
    steps: int

    @classmethod
    def of(cls, given: Given, plan: Plan) -> Chunks:
        batch, classes = given.rows.hidden.shape[:-1], given.layer.kernel.shape[plan.class_axis]
        return cls(batch, *plan.chunks(math.prod(batch), classes))

    def split(self, tree: Tree) -> Tree:
        """[*batch, ...] -> [n, steps, ...], rows of weight 0 after the last one.

        Their loss is finite, since 0 times infinity is NaN: all classes exist, and none is the
        label.
        """
        missing = self.tokens * self.steps - math.prod(self.batch)

        def split(x: Array) -> Array:
            of_row = x.shape[len(self.batch) :]
            x = x.reshape(math.prod(self.batch), *of_row)
            if missing:
                labels = jnp.issubdtype(x.dtype, jnp.integer)
                fill = ELSEWHERE if labels else x.dtype == jnp.bool_
                widths = [(0, missing)] + [(0, 0)] * len(of_row)
                x = jnp.pad(x, widths, constant_values=fill)
            return x.reshape(self.tokens, self.steps, *of_row)

        return jax.tree.map(split, tree)

    def unsplit(self, tree: Tree) -> Tree:
        """The reverse."""

        def unsplit(x: Array) -> Array:
            of_row = x.shape[2:]
            rows = x.reshape(self.tokens * self.steps, *of_row)[: math.prod(self.batch)]
            return rows.reshape(*self.batch, *of_row)

        return jax.tree.map(unsplit, tree)

    def join(self, tree: Tree) -> Tree:
        """What the steps gave, [steps, n], as rows [*batch]."""
        return self.unsplit(jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree))


def take(tree: Tree, i: Array) -> Tree:
    """Chunk i of [n, steps, ...]."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 1, keepdims=False), tree)


def put(x: Array, chunk: Array, i: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, chunk.astype(x.dtype), i, 1)


def zeros_of(given: Given, wanted: Wanted, chunks: Chunks) -> Differentiable:
    """Where the gradients are summed: those of rows as chunks in their own dtype."""
    wide = given.rows.weights.dtype
    asked = Differentiable.of(given).only(wanted)

    def sums(asked: Differentiable) -> Differentiable:
        widened = jax.tree.map(lambda x: x.astype(wide), asked.of_layer())
        return Differentiable(*chunks.split(asked.of_rows()), *widened)

    return jax.tree.map(zeros_as, jax.eval_shape(sums, asked))


# --- a chunk of a program that is divided over a mesh ---------------------------------------------


def chunk_of(split: Rows, i: Array, layer: Layer, plan: Plan) -> Rows:
    """Chunk i, with the tokens of all devices that share it and labels of this shard."""
    return labels_of_shard(gather(take(split, i), plan, "invarying"), layer, plan)


def labels_of_shard(part: Rows, layer: Layer, plan: Plan) -> Rows:
    """The same rows, their labels, in a program divided over a mesh, those of this shard."""
    if plan.gathered is None:
        return part
    classes = layer.kernel.shape[plan.class_axis]

    def local(index: Array) -> Array:
        return mesh.to_shard(index, classes, plan.options.axis_name)

    return part._replace(labels=with_indices(part.labels, local))


def with_indices(labels: Labels | None, f: Callable[[Array], Array]) -> Labels | None:
    """The labels with f of the class indices that they hold."""
    if isinstance(labels, ClassLabels):
        return ClassLabels(f(labels.classes))
    if isinstance(labels, SparseLabels):
        return labels._replace(indices=f(labels.indices))
    return labels


def gather(tree: Tree, plan: Plan, to: str) -> Tree:
    """A chunk of all devices that share it; `to` is "varying" for what is transposed."""
    axes = plan.shared_by
    if not axes:
        return tree
    return jax.tree.map(lambda x: lax.all_gather(x, axes, axis=0, tiled=True, to=to), tree)


def own(tree: Tree, plan: Plan) -> Tree:
    """This device's rows of a chunk."""
    return jax.tree.map(lambda x: mesh.own_part(x, plan.shared_by, 0), tree)


def summed(of_hidden: Array, plan: Plan) -> Array:
    """The gradient of a chunk's hidden states over all classes, this device's rows of it.

    Where the user says `axis_name`, that sum is the transpose of the rule's inner products.
    """
    if plan.gathered is None:
        return of_hidden
    axes = plan.shared_by
    # XLA:GPU would sum before it narrows, and send twice as much.
    of_hidden = lax.optimization_barrier(of_hidden)
    if axes:
        of_hidden = lax.psum_scatter(of_hidden, axes, scatter_dimension=0, tiled=True)
    rest = tuple(axis for axis in plan.gathered.shards if axis not in axes)
    return lax.psum(of_hidden, rest) if rest else of_hidden
