"""A row of logits in two passes: its maximum, then the sum seen from it. The same as `_online`.

For XLA:CPU, in the forms that it runs fastest, and for arrays whose type says how they are sharded.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import _extremes, _labels, _mesh
from jaxsoftmax._placement import on_one_cpu
from jaxsoftmax._precision import finite, widen


def of_others(logits: Array, label: Array) -> tuple[Array, Array, Array]:
    """x_k of the label k; m and Σ exp(x_j − m) of the others."""
    label_logit, maximum = landmarks(logits, label)
    # All classes go into the sum, without a mask (a mask in a reduction costs XLA:CPU a copy of
    # the logits); the label's own term is known, and comes off without loss: where the label is
    # the largest it is exactly 1 and the others sum to at least 1.
    everyone = sum_of_exp(logits, finite(maximum))
    of_label = jnp.minimum(jnp.exp(label_logit - finite(maximum)), 1.0)
    of_label = jnp.where(label < logits.shape[-1], of_label, 0.0)
    return label_logit, maximum, everyone - of_label


def landmarks(logits: Array, label: Array) -> tuple[Array, Array]:
    """x_k and m."""
    maximum = _extremes.maximum_of_others(logits, label)
    return widen(_labels.take(logits, label)), widen(maximum)


def sum_of_exp(logits: Array, maximum: Array) -> Array:
    """Σ_j min(exp(x_j − m), 1), long rows in pieces on the CPU."""
    pieces = 1 if _mesh.placed_by_type(logits) else _pieces(logits.shape[-1])
    if pieces == 1:
        return _sum_at_once(logits, maximum)
    in_pieces = partial(_sum_in_pieces, pieces=pieces)
    return on_one_cpu(in_pieces, _sum_at_once, logits, maximum)


def _sum_at_once(logits: Array, maximum: Array) -> Array:
    # min(exp(·), 1) and exp(min(·, 0)) are the same; XLA:CPU has a loop of its own for exp(x − m)
    # (JAX 0.12, 1024 x 32000 float32: 8.5 ms, against 11).
    return jnp.sum(jnp.minimum(jnp.exp(widen(logits) - maximum[..., None]), 1.0), axis=-1)


def _sum_in_pieces(logits: Array, maximum: Array, *, pieces: int) -> Array:
    """The same sum over shorter rows, whose sums are added.

    XLA:CPU's exp-sum falls off a cliff beyond 32768 classes (JAX 0.10.2, 512 x 131072 float32:
    230 ms, as 2048 rows of 32768 thirty); only rows of a two-dimensional array help. The barrier
    keeps the reshape before the upcast: after it, it costs a copy (bfloat16: 98 ms, not 20).
    """
    length = logits.shape[-1] // pieces
    maxima = jnp.broadcast_to(maximum[..., None], (*maximum.shape, pieces))
    rows = lax.optimization_barrier(logits.reshape(-1, length))
    sums = _sum_at_once(rows, maxima.reshape(-1))
    return jnp.sum(sums.reshape(maxima.shape), axis=-1)


_LONGEST_ROW = 32768


def _pieces(classes: int) -> int:
    """Into how many rows of at most `_LONGEST_ROW` a row is cut; 1 where no number divides it."""
    fewest = -(-classes // _LONGEST_ROW)
    return next((n for n in range(fewest, 4 * fewest) if classes % n == 0), 1)
