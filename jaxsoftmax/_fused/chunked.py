"""The rows of a linear loss, a chunk of tokens at a time: portable XLA, any device.

Of the logits only one chunk [n, V] exists. Chunk i holds the tokens i, i + steps, i + 2·steps, ...:
where tokens are sharded over devices, each of them has its own part of every chunk, and nothing is
gathered.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._fused.products import add_product, in_the_loop
from jaxsoftmax._row import logits as _logits
from jaxsoftmax._row import losses as _losses
from jaxsoftmax._row.losses import RowLosses
from jaxsoftmax._row.targets import Labels, SoftLabels
from jaxsoftmax._xla.dtypes import accumulator, promoted
from jaxsoftmax._xla.masks import keep, spread
from jaxsoftmax._xla.mesh import ELSEWHERE
from jaxsoftmax._xla.products import product
from jaxsoftmax._xla.shardings import vary_alike, zeros_as

Tree = TypeVar("Tree")


class Rows(NamedTuple):
    """What has a row for each token."""

    hidden: Float[Array, "N D"]
    labels: Labels
    ignored: Bool[Array, "N"] | None
    where: Bool[Array, "N V"] | None
    weights: Float[Array, "N"]  # in a sum of losses


class Layer(NamedTuple):
    """What all tokens share."""

    kernel: Float[Array, "D V"] | Float[Array, "V D"]
    bias: Float[Array, "V"] | None
    class_weights: Float[Array, "V"] | None
    where: Bool[Array, "V"] | None


class Given(NamedTuple):
    """Both."""

    rows: Rows
    layer: Layer


class Differentiable(NamedTuple):
    """What the loss is differentiated by, but for the weights of the rows.

    Also the gradients and the tangents, with None for one that is not wanted, or 0.
    """

    hidden: Float[Array, "N D"] | None
    soft_labels: Float[Array, "N V"] | None
    kernel: Float[Array, "D V"] | Float[Array, "V D"] | None
    bias: Float[Array, "V"] | None
    class_weights: Float[Array, "V"] | None

    @classmethod
    def of(cls, given: Given) -> Differentiable:
        """Of what is given, or of its tangents."""
        rows, layer = given
        soft = rows.labels.weights if isinstance(rows.labels, SoftLabels) else None
        return cls(rows.hidden, soft, layer.kernel, layer.bias, layer.class_weights)


class _Inputs(NamedTuple):
    """What the losses of a chunk are differentiated by; None for what they are not."""

    logits: Float[Array, "n V"]
    class_weights: Float[Array, "V"] | None
    soft_labels: Float[Array, "n V"] | None


def rows_at_once(given: Given, plan: Plan) -> RowLosses:
    """The loss of each row, and its statistics, from all logits: the definition."""
    return _row_losses(_Inputs(_logits_of(given, plan), None, None), given, plan)


def rows(given: Given, plan: Plan) -> RowLosses:
    """The same, a chunk at a time."""
    chunks = _split(given.rows, plan)

    def step(_: None, i: Array) -> tuple[None, RowLosses]:
        return None, rows_at_once(Given(_take(chunks, i), given.layer), plan)

    return _join(lax.scan(jax.checkpoint(step), None, jnp.arange(plan.steps))[1], given)


def rows_and_gradients(
    given: Given, wanted: Differentiable, plan: Plan
) -> tuple[Float[Array, "N"], Differentiable]:
    """The losses, and the gradients of Σ weights · loss in one pass, three products a chunk.

    Sums over rows come in the accumulator's dtype, gradients of rows in their own: the caller
    divides afterwards, so that a small 1/N costs a narrow dtype no digits.
    """
    chunks, kernel, features = _split(given.rows, plan), given.layer.kernel, plan.feature_axis
    narrow = promoted(given.rows.hidden.dtype, kernel.dtype)

    def differentiate(chunk: Rows) -> tuple[Array, _Inputs, Array | None]:
        """The losses of a chunk, and what their weights are pulled back to."""
        part = Given(chunk, given.layer)
        inputs = _inputs(_logits_of(part, plan), Differentiable.of(part), wanted)
        losses, pull = jax.vjp(lambda inputs: _row_losses(inputs, part, plan).loss, inputs)
        # Give the cotangent the losses' sharding, over a mesh.
        (pulled,) = pull(chunk.weights + jnp.zeros_like(losses))
        of_bias = None if wanted.bias is None else jnp.sum(pulled.logits, axis=0)
        return losses, pulled._replace(logits=pulled.logits.astype(narrow)), of_bias

    def step(sums: Differentiable, i: Array) -> tuple[Differentiable, Array]:
        chunk = _take(chunks, i)
        losses, (delta, of_weights, of_soft), of_bias = in_the_loop(i, differentiate, chunk)
        of_hidden = of_kernel = None
        if sums.hidden is not None:
            of_hidden = _put(sums.hidden, product(delta, kernel, (1, 1 - features)), i)
        if sums.kernel is not None:
            of_kernel = add_product(sums.kernel, chunk.hidden, delta, feature_axis=features)
        if sums.soft_labels is not None:
            of_soft = _put(sums.soft_labels, of_soft, i)
        added = jax.tree.map(jnp.add, sums[3:], (of_bias, of_weights))
        return Differentiable(of_hidden, of_soft, of_kernel, *added), losses

    # Over a mesh, each gradient is this device's part of a sum: it varies wherever an input does.
    start = vary_alike(_zeros(given, wanted, plan), given)
    sums, losses = lax.scan(jax.checkpoint(step), start, jnp.arange(plan.steps))
    return _join(losses, given), Differentiable(*_unsplit(sums[:2], given), *sums[2:])


def tangents_of_rows(given: Given, tangents: Differentiable, plan: Plan) -> RowLosses:
    """The tangents of `rows`; the transpose recomputes each chunk of logits."""
    dtypes = (given.rows.hidden.dtype, given.layer.kernel.dtype)
    wide, narrow = accumulator(*dtypes), promoted(*dtypes)
    of_rows, of_layer = tangents[:2], tangents[2:]
    chunks, moved_chunks = _split((given.rows, of_rows), plan)
    # Cast here, so that the transpose sums over the chunks in the accumulator's dtype.
    of_layer = jax.tree.map(lambda x: x.astype(wide), of_layer)
    layer = given.layer
    if layer.class_weights is not None:
        layer = layer._replace(class_weights=layer.class_weights.astype(wide))

    def step(_: None, i: Array) -> tuple[None, RowLosses]:
        part = Given(_take(chunks, i), layer)
        moved = Differentiable(*_take(moved_chunks, i), *of_layer)
        logits = _logits_of(part, plan)
        logits_dot = jnp.zeros_like(logits)
        if moved.hidden is not None:
            # In the operands' dtype: so its transpose multiplies in that dtype, too.
            moved_logits = product(moved.hidden, layer.kernel, (1, plan.feature_axis))
            logits_dot += moved_logits.astype(narrow).astype(wide)
        if moved.kernel is not None:
            hidden = part.rows.hidden.astype(wide)
            logits_dot += product(hidden, moved.kernel, (1, plan.feature_axis))
        if moved.bias is not None:
            logits_dot += moved.bias[None, :]
        inputs = _inputs(logits, Differentiable.of(part), tangents)
        inputs_dot = _inputs(logits_dot, moved, tangents)

        def rows_of(inputs: _Inputs) -> RowLosses:  # without `predicted`, which has no tangent
            return _row_losses(inputs, part, plan)._replace(predicted=None)

        return None, jax.jvp(rows_of, (inputs,), (inputs_dot,))[1]

    return _join(lax.scan(jax.checkpoint(step), None, jnp.arange(plan.steps))[1], given)


# --- one chunk ------------------------------------------------------------------------------------


def _row_losses(inputs: _Inputs, part: Given, plan: Plan) -> RowLosses:
    """The loss of each row of a part, as of logits that the user gave."""
    (_, labels, ignored, where, _), layer = part
    logits, class_weights, soft = inputs
    if layer.where is not None:
        logits = _logits.exclude(logits, layer.where[None, :])
    logits = _logits.exclude(logits, where)
    if isinstance(labels, SoftLabels):
        soft = (labels.weights if soft is None else soft).astype(logits.dtype)
        if ignored is not None:
            soft = keep(soft, spread(~ignored, soft))
        labels = SoftLabels(soft)
    if class_weights is None:
        class_weights = layer.class_weights
    return _losses.of_logits(logits, labels, class_weights, plan.options)


def _logits_of(part: Given, plan: Plan) -> Float[Array, "n V"]:
    """hidden · kernel + bias in the accumulator's dtype."""
    logits = product(part.rows.hidden, part.layer.kernel, (1, plan.feature_axis))
    bias = part.layer.bias
    return logits if bias is None else logits + bias.astype(logits.dtype)[None, :]


def _inputs(logits: Array, of: Differentiable, wanted: Differentiable) -> _Inputs:
    """The logits, and what else is wanted."""
    return _Inputs(
        logits,
        None if wanted.class_weights is None else of.class_weights,
        None if wanted.soft_labels is None else of.soft_labels,
    )


# --- chunks ---------------------------------------------------------------------------------------


def _split(tree: Tree, plan: Plan) -> Tree:
    """[N, ...] -> [n, steps, ...], rows of weight 0 after the last one.

    Their loss is finite, since 0 times infinity is NaN: all classes exist, and none is the label.
    """

    def split(x: Array) -> Array:
        missing = plan.tokens * plan.steps - x.shape[0]
        if missing:
            labels = x.ndim == 1 and jnp.issubdtype(x.dtype, jnp.integer)
            fill = ELSEWHERE if labels else x.dtype == jnp.bool_
            widths = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
            x = jnp.pad(x, widths, constant_values=fill)
        return x.reshape(plan.tokens, plan.steps, *x.shape[1:])

    return jax.tree.map(split, tree)


def _unsplit(tree: Tree, given: Given) -> Tree:
    """The reverse."""
    count = given.rows.hidden.shape[0]
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)


def _take(tree: Tree, i: Array) -> Tree:
    """Chunk i of [n, steps, ...]."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 1, keepdims=False), tree)


def _put(x: Array, chunk: Array, i: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, chunk.astype(x.dtype), i, 1)


def _join(tree: Tree, given: Given) -> Tree:
    """What the steps gave, [steps, n], as rows [N]."""
    return _unsplit(jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree), given)


def _zeros(given: Given, wanted: Differentiable, plan: Plan) -> Differentiable:
    """Where the gradients are summed: those of rows as chunks in their own dtype."""
    wide = accumulator(given.rows.hidden.dtype, given.layer.kernel.dtype)
    pairs = zip(Differentiable.of(given), wanted, strict=True)
    asked = Differentiable(*(None if w is None else x for x, w in pairs))

    def sums(asked: Differentiable) -> Differentiable:
        widened = jax.tree.map(lambda x: x.astype(wide), asked[2:])
        return Differentiable(*_split(asked[:2], plan), *widened)

    return jax.tree.map(zeros_as, jax.eval_shape(sums, asked))
