"""The rows of a linear loss, a chunk of tokens at a time: portable XLA, any device.

Of the logits only one chunk [n, V] exists. What the loss of a row is, is the caller's business: a
function from logits, what may move beside them, and what may not, to `RowLosses`.

Chunk i holds the tokens i, i + steps, i + 2·steps, ...: where tokens are sharded over devices,
each of them has its own part of every chunk, and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxsoftmax._fused.orientation import turned
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._loss import RowLosses
from jaxsoftmax._mesh import ELSEWHERE, vary_alike, zeros_as
from jaxsoftmax._precision import accumulator, product, promoted


class Moving(NamedTuple):
    """What the loss is differentiated by, but for the weights of the rows.

    Also the gradients, where None is one that nobody asked for, and the tangents, where None is
    one that is 0. (Any: an array, or None, or what is said of one.)
    """

    hidden: Float[Array, "N D"] | Any
    kernel: Float[Array, "D V"] | Any
    bias: Float[Array, "V"] | Any
    class_weights: Float[Array, "V"] | Any
    distribution: Float[Array, "N V"] | Any


class Fixed(NamedTuple):
    """What it is not differentiated by."""

    label: Int[Array, "N"] | None
    ignored: Bool[Array, "N"] | None
    where_rows: Bool[Array, "N V"] | None
    where_classes: Bool[Array, "V"] | None  # the same for all rows


# (logits [n, V], class_weights, distribution, fixed) -> RowLosses
Compute = Callable[..., RowLosses]


def rows(compute: Compute, moving: Moving, fixed: Fixed, plan: Plan, axis: int) -> RowLosses:
    """What each row comes to."""
    moving = _turned(moving, axis)
    all_rows = _split(_of_rows(moving, fixed), plan)

    def step(_: None, i: Array) -> tuple[None, RowLosses]:
        hidden, distribution, still = _take(all_rows, fixed, i)
        logits = _logits(hidden, moving, axis)
        return None, compute(logits, moving.class_weights, distribution, still)

    _, chunks = lax.scan(jax.checkpoint(step), None, jnp.arange(plan.steps))
    return _join(chunks, moving.hidden)


def rows_and_gradients(
    compute: Compute,
    moving: Moving,
    fixed: Fixed,
    weights: Float[Array, "N"],
    plan: Plan,
    wanted: Moving,
    axis: int,
) -> tuple[Float[Array, "N"], Moving]:
    """The losses, and the gradients of Σ weights · loss in one pass, three products a chunk.

    Sums over rows come in the accumulator's dtype, gradients of rows in their own: the caller
    divides afterwards, so that a small 1/N costs a narrow dtype no digits.
    """
    moving = _turned(moving, axis)
    all_rows = _split((*_of_rows(moving, fixed), weights), plan)
    dtype = promoted(moving.hidden.dtype, moving.kernel.dtype)

    def step(sums: Moving, i: Array) -> tuple[Moving, Array]:
        hidden, distribution, still, weight = _take(all_rows, fixed, i)
        logits = _logits(hidden, moving, axis)

        def differentiate(
            logits: Array, distribution: Array | None, still: Fixed, weight: Array
        ) -> tuple[Any, ...]:
            losses, pull = _losses_and_pull(
                compute, logits, moving.class_weights, distribution, still, wanted
            )
            delta, of_weights, of_distribution = pull(weight)
            of_bias = _map(lambda _: jnp.sum(delta, axis=0), wanted.bias)
            return losses, delta.astype(dtype), of_bias, of_weights, of_distribution

        losses, narrow, of_bias, of_weights, of_distribution = _in_the_loop(
            i, differentiate, logits, distribution, still, weight
        )
        return Moving(
            hidden=_map(
                lambda s: _put(s, product(narrow, moving.kernel, (1, 1 - axis)), i), sums.hidden
            ),
            kernel=_map(lambda s: _add_product(s, hidden, narrow, axis), sums.kernel),
            bias=_map(lambda s: s + of_bias, sums.bias),
            class_weights=_map(lambda s: s + of_weights, sums.class_weights),
            distribution=_map(lambda s: _put(s, of_distribution, i), sums.distribution),
        ), losses

    # Over a mesh, each gradient is this device's part of a sum: it varies wherever an input does.
    start = vary_alike(_zeros(moving, wanted, plan), (moving, fixed, weights))
    sums, losses = lax.scan(jax.checkpoint(step), start, jnp.arange(plan.steps))
    return _join(losses, moving.hidden), _turned(sums, axis)._replace(
        hidden=_map(lambda x: _unsplit(x, moving.hidden), sums.hidden),
        distribution=_map(lambda x: _unsplit(x, moving.hidden), sums.distribution),
    )


def tangents_of_rows(
    compute: Compute, moving: Moving, fixed: Fixed, tangents: Moving, plan: Plan, axis: int
) -> RowLosses:
    """How the rows move with their arrays; its transpose recomputes each chunk of logits."""
    moving, tangents = _turned(moving, axis), _turned(tangents, axis)
    all_rows = _split(_of_rows(moving, fixed), plan)
    moved_rows = _split((tangents.hidden, tangents.distribution), plan)
    wide = accumulator(moving.hidden.dtype, moving.kernel.dtype)
    # Cast here, so that the transpose sums over the chunks in the accumulator's dtype.
    shared = (tangents.kernel, tangents.bias, moving.class_weights, tangents.class_weights)
    moved_kernel, moved_bias, class_weights, moved_weights = jax.tree.map(
        lambda x: x.astype(wide), shared
    )

    def step(_: None, i: Array) -> tuple[None, RowLosses]:
        hidden, distribution, still = _take(all_rows, fixed, i)
        moved_hidden, moved_distribution = _index(moved_rows, i)
        logits = _logits(hidden, moving, axis)
        moved = jnp.zeros_like(logits)
        if moved_hidden is not None:
            moved += _narrow_product(moved_hidden, moving.kernel, axis).astype(wide)
        if moved_kernel is not None:
            moved += product(hidden.astype(wide), moved_kernel, (1, axis))
        if moved_bias is not None:
            moved += moved_bias[None, :]
        primals = [logits, class_weights, distribution]
        motions = [moved, moved_weights, moved_distribution]
        return None, _motion(compute, primals, motions, still)

    _, chunks = lax.scan(jax.checkpoint(step), None, jnp.arange(plan.steps))
    return _join(chunks, moving.hidden)


# --- one chunk ------------------------------------------------------------------------------------


def _losses_and_pull(
    compute: Compute,
    logits: Array,
    class_weights: Array | None,
    distribution: Array | None,
    still: Fixed,
    wanted: Moving,
) -> tuple[Array, Callable[[Array], tuple[Array, Array | None, Array | None]]]:
    """The losses of a chunk, and what pulls their cotangents back to whatever was asked for."""
    asked = [wanted.class_weights is not None, wanted.distribution is not None]
    optional = [class_weights, distribution]

    def losses_of(logits: Array, *given: Array) -> Array:
        taken = iter(given)
        return compute(
            logits, *(next(taken) if a else x for a, x in zip(asked, optional, strict=True)), still
        ).loss

    arguments = [x for a, x in zip(asked, optional, strict=True) if a]
    losses, transpose = jax.vjp(losses_of, logits, *arguments)

    def pull(weight: Array) -> tuple[Array, Array | None, Array | None]:
        # The weight as the losses are: over a mesh, varying and sharded as they.
        delta, *rest = transpose(weight + jnp.zeros_like(losses))
        taken = iter(rest)
        of_weights, of_distribution = (next(taken) if a else None for a in asked)
        return delta, of_weights, of_distribution

    return losses, pull


def _motion(
    compute: Compute, primals: list[Array | None], motions: list[Array | None], still: Fixed
) -> RowLosses:
    """The rows' tangents, `predicted` left out: it does not move."""
    places = [k for k, moved in enumerate(motions) if moved is not None]

    def rows_of(*given: Array) -> RowLosses:
        arguments = list(primals)
        for place, value in zip(places, given, strict=True):
            arguments[place] = value
        return compute(*arguments, still)._replace(predicted=None)

    at = [primals[place] for place in places]
    return jax.jvp(rows_of, at, [motions[place] for place in places])[1]


def _in_the_loop(i: Array, f: Callable[..., Any], *arguments: Any) -> Any:
    """f(*arguments), with nothing of it moved out of the loop over i.

    XLA:CPU computes what does not depend on the loop's state once, before the loop, and keeps it:
    a broadcast 0 becomes an array as large as the chunk of logits (JAX 0.10.2, 128 x 256000:
    156 MiB). It leaves the branches of a conditional alone. For CUDA, JAX itself moves such
    constants out of the scan (H200, 512 tokens: 1500 MiB), so that the conditional is there on
    every platform; off the CPU its condition is one that XLA folds.
    """

    def never(*arguments: Any) -> Any:
        return zeros_as(jax.eval_shape(f, *arguments))

    here = lax.platform_dependent(i, cpu=lambda i: i >= 0, default=lambda i: i == i)
    return lax.cond(here, f, never, *arguments)


# --- products -------------------------------------------------------------------------------------


def _logits(hidden: Float[Array, "n D"], moving: Moving, axis: int) -> Float[Array, "n V"]:
    logits = product(hidden, moving.kernel, (1, axis))
    if moving.bias is None:
        return logits
    return logits + moving.bias.astype(logits.dtype)[None, :]


def _narrow_product(hidden: Float[Array, "n D"], kernel: Array, axis: int) -> Array:
    """The product in the operands' dtype: so its transpose multiplies in that dtype, too."""
    dtype = promoted(hidden.dtype, kernel.dtype)
    return product(hidden, kernel, (1, axis)).astype(dtype)


def _add_product(
    total: Array, hidden: Float[Array, "n D"], delta: Float[Array, "n V"], axis: int
) -> Array:
    """Total + hiddenᵀ delta, in place."""
    return lax.platform_dependent(
        total,
        hidden,
        delta,
        cpu=partial(_add_product_by_bands, axis=axis),
        default=partial(_add_product_at_once, axis=axis),
    )


def _add_product_at_once(total: Array, hidden: Array, delta: Array, *, axis: int) -> Array:
    factors = (delta, hidden) if axis else (hidden, delta)
    return total + product(*factors, (0, 0)).astype(total.dtype)


_SMALLEST_BAND = 32


def _add_product_by_bands(total: Array, hidden: Array, delta: Array, *, axis: int) -> Array:
    """The same, some features at a time.

    XLA:CPU writes the product to memory before it adds it: as much again as the accumulator
    (JAX 0.10.2, 8192 x 2304 x 256000: 2.2 GiB). A loop, since bands in a row are all computed
    before the first is added.

    Nor can XLA:CPU execute a bfloat16 product whose operands are both contracted over their rows,
    and folds transposes into it to that effect: hidden is transposed before the loop (of two
    steps at least, since a loop of one is dissolved), the product behind a barrier.
    """
    tokens, features = hidden.shape
    if features == 1:
        wide = (x.astype(total.dtype) for x in (hidden, delta))
        return _add_product_at_once(total, *wide, axis=axis)
    known = tokens if isinstance(tokens, int) else 0  # or a symbolic dimension
    band = min(max(known // 4, _SMALLEST_BAND), -(-features // 2))
    by_feature = hidden.T  # [D, n]

    def add(k: Array, total: Array) -> Array:
        # The last band may reach back into the one before it: it adds 0 there.
        start = jnp.minimum(k * band, features - band)
        new = start + jnp.arange(band) >= k * band
        part = lax.dynamic_slice_in_dim(by_feature, start, band)
        part = jnp.where(new[:, None], part, 0).astype(part.dtype)
        moved = product(part, delta, (1, 0)).astype(total.dtype)  # [band, V]
        moved = lax.optimization_barrier(moved).T if axis else moved
        moved = lax.dynamic_slice_in_dim(total, start, band, axis) + moved
        return lax.dynamic_update_slice_in_dim(total, moved, start, axis)

    return lax.fori_loop(0, -(-features // band), add, total)


# --- chunks ---------------------------------------------------------------------------------------


def _turned(moving: Moving, axis: int) -> Moving:
    """With the kernel as it lies in memory, and back."""
    return moving._replace(kernel=_map(lambda kernel: turned(kernel, axis), moving.kernel))


def _of_rows(moving: Moving, fixed: Fixed) -> tuple[Array | None, Array | None, Fixed]:
    """What has a row for each token."""
    return moving.hidden, moving.distribution, fixed._replace(where_classes=None)


def _split(tree: Any, plan: Plan) -> Any:
    """[N, ...] -> [n, steps, ...], rows of weight 0 after the last one.

    Their loss is finite, since 0 times infinity is NaN: all classes exist, and none is the label.
    """

    def split(x: Array) -> Array:
        missing = plan.rows - x.shape[0]
        if missing:
            labels = x.ndim == 1 and jnp.issubdtype(x.dtype, jnp.integer)
            fill = ELSEWHERE if labels else x.dtype == jnp.bool_
            widths = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
            x = jnp.pad(x, widths, constant_values=fill)
        return x.reshape(plan.tokens, plan.steps, *x.shape[1:])

    return jax.tree.map(split, tree)


def _unsplit(x: Array, like: Array) -> Array:
    """The reverse."""
    return x.reshape(-1, *x.shape[2:])[: like.shape[0]]


def _index(tree: Any, i: Array) -> Any:
    """Chunk i of [n, steps, ...]."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 1, keepdims=False), tree)


def _take(all_rows: Any, fixed: Fixed, i: Array) -> Any:
    """Chunk i of what `_of_rows` has, with what all rows share."""
    hidden, distribution, still, *rest = _index(all_rows, i)
    return hidden, distribution, still._replace(where_classes=fixed.where_classes), *rest


def _put(x: Array, chunk: Array, i: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, chunk.astype(x.dtype), i, 1)


def _join(tree: Any, like: Array) -> Any:
    """What the steps gave, [steps, n], as rows [N]."""
    count = like.shape[0]
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1)[:count], tree)


def _zeros(moving: Moving, wanted: Moving, plan: Plan) -> Moving:
    """Where the gradients are gathered: those of rows as chunks in their own dtype."""
    wide = accumulator(moving.hidden.dtype, moving.kernel.dtype)

    def zeros(x: Any, asked: Any, of_rows: Any) -> Array | None:
        if x is None or asked is None:
            return None
        as_gathered = (lambda x: _split(x, plan)) if of_rows else (lambda x: x.astype(wide))
        return cast(Array, zeros_as(jax.eval_shape(as_gathered, x)))

    by_rows = Moving(hidden=True, kernel=False, bias=False, class_weights=False, distribution=True)
    return Moving(*map(zeros, moving, wanted, by_rows))


def _map(f: Callable[[Array], Array], x: Array | None) -> Array | None:
    return None if x is None else f(x)
