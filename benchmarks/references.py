"""Inputs of every operation, and its exact outputs in float64 NumPy.

The error of an output is the maximum over its entries of |got − exact|, divided by the sum of the
magnitudes of the terms of the exact entry. The error of a probability of 1e-9 is thus relative to
1e-9, and that of p − 1 is relative to p + 1: the effect of cancellation is measured by the accuracy
suite, not by this check. A wrong shape or a NaN is an infinite error.

Every entry is compared, except in the two gradients of a large linear loss, whose exact values
would take longer than all timings: there, random rows of the hidden states' gradient and random
columns of the kernel's are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np

from benchmarks.cases import Case

Numbers = np.ndarray[Any, Any]

SEED = 0
# An output with a larger error is wrong. A peer that computes in bfloat16 rounds a log-probability
# between -16 and -32 by up to 1/16 and the log-sum-exp before it by as much again, and both errors
# propagate to the probability: the error of PyTorch's gradient at 512 x 131072 is 0.1. Smaller
# mistakes are detected in float32, where the tolerance for the same function is 1e-4.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}

_BLOCK = 2**22  # entries compared at once, so that float64 copies stay small
_WHOLE = 2**22  # the largest number of logits for which whole gradients are compared
_SAMPLE = 128  # rows of the hidden states' gradient, and columns of the kernel's


def inputs(case: Case) -> tuple[Numbers, ...]:
    """The inputs of every peer; the same in every run."""
    return _OPERATIONS[case.operation].inputs(case, np.random.default_rng(SEED))


class Exact:
    """The exact outputs of a case. Expensive parts are computed once, for all peers."""

    def __init__(self, case: Case, arrays: Sequence[Numbers]) -> None:
        self._case, self._arrays = case, arrays
        self._prepared = _OPERATIONS[case.operation].prepare(case.direction, arrays)

    def error(self, outputs: Sequence[Numbers]) -> float:
        """The largest error of a peer's outputs."""
        errors = _OPERATIONS[self._case.operation].errors
        return max(errors(self._case.direction, self._prepared, outputs))


class _Operation(NamedTuple):
    inputs: Callable[[Case, np.random.Generator], tuple[Numbers, ...]]
    errors: Callable[..., Iterator[float]]  # (direction, prepared, outputs): one per output
    prepare: Callable[..., Any] = lambda direction, arrays: arrays


# --- inputs ---------------------------------------------------------------------------------------


def _logits(case: Case, rng: np.random.Generator) -> Numbers:
    return rng.standard_normal(case.shape, np.float32).astype(case.dtype)


def _logits_and_labels(case: Case, rng: np.random.Generator) -> tuple[Numbers, ...]:
    *batch, classes = case.shape
    return _logits(case, rng), rng.integers(0, classes, batch, dtype=np.int32)


def _two_logits(case: Case, rng: np.random.Generator) -> tuple[Numbers, ...]:
    return _logits(case, rng), _logits(case, rng)


def _logits_and_cotangent(case: Case, rng: np.random.Generator) -> tuple[Numbers, ...]:
    if case.direction == "forward":
        return (_logits(case, rng),)
    size = case.shape[:-1] if case.operation == "logsumexp" else case.shape
    # Positive, so that Σ_j p_j c_j and Σ_j c_j contribute to every entry.
    cotangent = (rng.random(size, np.float32) + 0.5).astype(case.dtype)
    return _logits(case, rng), cotangent


def _hidden_kernel_and_labels(case: Case, rng: np.random.Generator) -> tuple[Numbers, ...]:
    tokens, features, classes = case.shape
    hidden = rng.standard_normal((tokens, features), np.float32).astype(case.dtype)
    # Scaled so that the logits have a variance of 1.
    kernel = rng.standard_normal((features, classes), np.float32) / np.float32(np.sqrt(features))
    labels = rng.integers(0, classes, tokens, dtype=np.int32)
    return hidden, kernel.astype(case.dtype), labels


# --- comparing ------------------------------------------------------------------------------------


def _distance(got: Any, exact: Any, scale: Any) -> float:
    numbers = np.asarray(got).astype(np.float64)
    if numbers.shape != np.shape(exact) or not np.isfinite(numbers).all():
        return float("inf")
    return float((np.abs(numbers - exact) / scale).max())


def _blocks(logits: Numbers) -> Iterator[slice]:
    rows, classes = logits.shape
    step = max(1, _BLOCK // classes)
    return (slice(start, start + step) for start in range(0, rows, step))


def _row_wise(exact: Callable[..., tuple[Numbers, Numbers]]) -> Callable[..., Iterator[float]]:
    """Errors of an output with one row per row of logits."""

    def errors(arrays: Sequence[Numbers], output: Numbers) -> Iterator[float]:
        logits, *rest = arrays
        if len(output) != len(logits):
            yield float("inf")
            return
        for rows in _blocks(logits):
            terms = exact(*(a[rows].astype(np.float64) for a in (logits, *rest)))
            yield _distance(output[rows], *terms)

    return errors


# --- the formulas: the exact value and the magnitude of its terms ---------------------------------


def _parts(x: Numbers) -> tuple[Numbers, Numbers]:
    """max(x) and logsumexp(x) − max(x), both [N, 1]."""
    top = x.max(-1, keepdims=True)
    return top, np.log(np.exp(x - top).sum(-1, keepdims=True))


def _log_p(x: Numbers) -> Numbers:
    top, above = _parts(x)
    return (x - top) - above


def _softmax(x: Numbers) -> tuple[Numbers, Numbers]:
    p = np.exp(_log_p(x))
    return p, p


def _log_softmax(x: Numbers) -> tuple[Numbers, Numbers]:
    log_p = _log_p(x)
    return log_p, -log_p


def _logsumexp(x: Numbers) -> tuple[Numbers, Numbers]:
    top, above = _parts(x)
    return (top + above)[:, 0], (np.abs(top) + above)[:, 0]


def _softmax_vjp(x: Numbers, c: Numbers) -> tuple[Numbers, Numbers]:
    p = np.exp(_log_p(x))
    mean = (p * c).sum(-1, keepdims=True)
    return p * (c - mean), p * (c + mean)


def _log_softmax_vjp(x: Numbers, c: Numbers) -> tuple[Numbers, Numbers]:
    moved = np.exp(_log_p(x)) * c.sum(-1, keepdims=True)
    return c - moved, c + moved


def _logsumexp_vjp(x: Numbers, c: Numbers) -> tuple[Numbers, Numbers]:
    gradient = c[:, None] * np.exp(_log_p(x))
    return gradient, gradient


def _distribution(forward: Callable[..., Any], vjp: Callable[..., Any]) -> _Operation:
    exact = {"forward": _row_wise(forward), "vjp": _row_wise(vjp)}
    return _Operation(
        _logits_and_cotangent,
        lambda direction, arrays, outputs: exact[direction](arrays, outputs[0]),
    )


def _mean_errors(
    of_rows: Callable[..., Numbers], gradient: Callable[..., tuple[Numbers, Numbers]]
) -> Callable[..., Iterator[float]]:
    """Errors of 1/N Σ of the rows, and of its gradient, given N times that and its terms."""

    def errors(
        direction: str, arrays: Sequence[Numbers], outputs: Sequence[Numbers]
    ) -> Iterator[float]:
        count = len(arrays[0])

        def of_mean(*some: Numbers) -> tuple[Numbers, Numbers]:
            exact, terms = gradient(*some)
            return exact / count, terms / count

        total = sum(
            of_rows(*(array[rows].astype(np.float64) for array in arrays)).sum()
            for rows in _blocks(arrays[0])
        )
        exact = total / count
        yield _distance(outputs[0], exact, exact)
        if direction == "value_and_grad":
            yield from _row_wise(of_mean)(arrays, outputs[1])

    return errors


def _losses(x: Numbers, y: Numbers) -> Numbers:
    """−log p_y."""
    return -np.take_along_axis(_log_p(x), y[:, None].astype(np.int64), axis=-1)


def _loss_gradient(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """p − y."""
    p, one_hot = np.exp(_log_p(x)), np.arange(x.shape[-1]) == y[:, None]
    return p - one_hot, p + one_hot


def _divergences(x: Numbers, y: Numbers) -> Numbers:
    """Σ p log(p/q)."""
    log_q, log_p = _log_p(x), _log_p(y)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def _divergence_gradient(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """q − p."""
    q, p = np.exp(_log_p(x)), np.exp(_log_p(y))
    return q - p, q + p


class _Linear(NamedTuple):
    """The exact loss, and sampled rows and columns of the gradients with their magnitudes."""

    loss: float
    rows: Numbers
    columns: Numbers
    of_hidden: tuple[Numbers, Numbers]  # [rows, D]
    of_kernel: tuple[Numbers, Numbers]  # [D, columns]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


def _prepare_linear(direction: str, arrays: Sequence[Numbers]) -> _Linear:
    """dh = (p − y) Wᵀ / N and dW = hᵀ (p − y) / N, at the sampled rows and columns."""
    hidden, kernel = (array.astype(np.float64) for array in arrays[:2])
    labels = arrays[2]
    (tokens, classes), rng = (len(hidden), kernel.shape[1]), np.random.default_rng(SEED)
    rows, columns = np.arange(tokens), np.arange(classes)
    if tokens * classes > _WHOLE:
        rows = np.sort(rng.choice(tokens, min(_SAMPLE, tokens), replace=False))
        columns = np.sort(rng.choice(classes, min(_SAMPLE, classes), replace=False))
        columns = np.union1d(columns, labels[rows])
    step = max(1, _BLOCK // classes)
    lse = np.empty(tokens)
    for start in range(0, tokens, step):
        lse[start : start + step] = _logsumexp(hidden[start : start + step] @ kernel)[0]
    losses = lse - np.einsum("nd,dn->n", hidden, kernel[:, labels])

    def delta(r: Numbers, c: Numbers) -> tuple[Numbers, Numbers]:
        p = np.exp(hidden[r] @ kernel[:, c] - lse[r][:, None])
        one_hot = labels[r][:, None] == c[None, :]
        return (p - one_hot) / tokens, (p + one_hot) / tokens

    empty = np.empty((0, 0))
    of_hidden = of_kernel = (empty, empty)
    if direction != "forward":
        here, size = delta(rows, np.arange(classes))
        of_hidden = here @ kernel.T, size @ np.abs(kernel).T
        here, size = delta(np.arange(tokens), columns)
        of_kernel = hidden.T @ here, np.abs(hidden).T @ size
    shapes = (hidden.shape, kernel.shape)
    return _Linear(float(losses.mean()), rows, columns, of_hidden, of_kernel, shapes)


def _linear_errors(direction: str, exact: _Linear, outputs: Sequence[Numbers]) -> Iterator[float]:
    yield _distance(outputs[0], exact.loss, exact.loss)
    if direction == "forward":
        return
    for gradient, shape in zip(outputs[1:], exact.shapes, strict=True):
        if gradient.shape != shape or not np.isfinite(gradient).all():
            yield float("inf")
            return
    yield _distance(outputs[1][exact.rows], *exact.of_hidden)
    yield _distance(outputs[2][:, exact.columns], *exact.of_kernel)


_MEAN_LOSS = _Operation(_logits_and_labels, _mean_errors(_losses, _loss_gradient))
_LINEAR_LOSS = _Operation(_hidden_kernel_and_labels, _linear_errors, _prepare_linear)
_OPERATIONS = {
    "linear_cross_entropy": _LINEAR_LOSS,
    "linear_chunks": _LINEAR_LOSS,
    "chapter": _MEAN_LOSS,
    "cross_entropy": _MEAN_LOSS,
    "kl_divergence": _Operation(_two_logits, _mean_errors(_divergences, _divergence_gradient)),
    "softmax": _distribution(_softmax, _softmax_vjp),
    "log_softmax": _distribution(_log_softmax, _log_softmax_vjp),
    "logsumexp": _distribution(_logsumexp, _logsumexp_vjp),
}
