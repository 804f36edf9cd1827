"""Relative error of small losses: every peer against 50-digit arithmetic.

The label's logit exceeds the largest other one by a margin; the loss is about (C − 1)·e^−margin,
and so is the magnitude of the gradient at the label. The errors are relative to the exact results
for the logits as rounded to the peer's dtype, and are taken only where the exact result is a normal
float32 number. An error of 1 means that no digit is correct; the result is then usually 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import mpmath
import numpy as np

from benchmarks import implementations, programs, report, workers
from benchmarks.cases import DTYPES

Numbers = np.ndarray[Any, Any]

SEED = 0
DIGITS = 50
CLASSES = (3, 10)
BANDS = ((0, 10), (10, 20), (20, 40), (40, 80))  # of the margin; the last one includes its end
RANDOM_MARGINS = 120
QUICK_RANDOM_MARGINS = 8


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """One peer's largest relative errors of one quantity."""

    dtype: str  # of the logits
    quantity: str  # "loss" or "gradient"
    peer: str
    status: str  # "ok", "failed", or why it cannot run on this machine
    note: str = ""
    result_dtype: str = ""
    worst: tuple[float | None, ...] = ()  # for each band; None is a NaN or an infinity
    counts: tuple[int, ...] = ()  # rows of logits in each band

    @property
    def passed(self) -> bool:
        """Whether it ran or is not installed. A large error is a result, not a failure."""
        return self.status != "failed"

    def __str__(self) -> str:
        return f"{self.status}: {self.peer}, {self.quantity} of {self.dtype} logits: {self.note}"


@dataclasses.dataclass(frozen=True)
class Part:
    """One peer in one dtype."""

    implementation: implementations.Implementation
    dtype: str

    def __str__(self) -> str:
        return f"accuracy, {self.implementation.peer}, {self.dtype}"


def parts() -> list[Part]:
    """Every peer in every dtype."""
    known = implementations.of("example_losses")
    return [Part(implementation, dtype) for dtype in DTYPES for implementation in known]


def measure(part: Part, *, quick: bool, pool: workers.Workers) -> list[Accuracy]:
    """One row for the loss and one for the gradient."""
    batches = [_batch(classes, part.dtype, quick) for classes in CLASSES]
    return _measure_peer(part.implementation, batches, part.dtype, pool)


class _Batch:
    """Rows of C logits with label 0, one row per margin, and the exact results."""

    def __init__(self, classes: int, dtype: str, quick: bool) -> None:
        rng = np.random.default_rng((SEED, classes))
        random = rng.uniform(0.0, 80.0, QUICK_RANDOM_MARGINS if quick else RANDOM_MARGINS)
        margins = np.concatenate([np.arange(81.0), random])
        # Three classes: both others at 0. More: one at 0, the rest up to 10 below it.
        below = np.zeros((len(margins), classes - 1))
        if classes > 3:
            below[:, 1:] = rng.uniform(-10.0, 0.0, (len(margins), classes - 2))
        self.logits = np.concatenate([margins[:, None], below], axis=1).astype(dtype)
        self.labels = np.zeros(len(margins), np.int32)
        self.margins = self.logits[:, 0].astype(np.float64)
        self.exact = [_exact(row) for row in self.logits.astype(np.float64)]

    def relative_errors(self, losses: Numbers, gradients: Numbers) -> dict[str, Numbers]:
        """One error per row; NaN where the exact result is not a normal float32 number."""
        got = {"loss": losses, "gradient": gradients[:, 0]}
        return {
            quantity: np.array(
                [_relative(g, e[quantity]) for g, e in zip(numbers, self.exact, strict=True)]
            )
            for quantity, numbers in got.items()
        }


@cache
def _batch(classes: int, dtype: str, quick: bool) -> _Batch:
    return _Batch(classes, dtype, quick)


def _exact(row: Numbers) -> dict[str, mpmath.mpf]:
    """−log p_0 = log1p(Σ_{j≠0} exp(x_j − x_0)), and its derivative p_0 − 1 with respect to x_0."""
    with mpmath.workdps(DIGITS):
        others = mpmath.fsum(mpmath.exp(mpmath.mpf(x) - mpmath.mpf(row[0])) for x in row[1:])
        return {"loss": mpmath.log1p(others), "gradient": -others / (1 + others)}


def _relative(got: Any, exact: mpmath.mpf) -> float:
    if abs(exact) < float(np.finfo(np.float32).tiny):
        return float("nan")
    if not np.isfinite(np.float64(got)):
        return float("inf")
    with mpmath.workdps(DIGITS):
        return float(abs(mpmath.mpf(float(got)) - exact) / abs(exact))


def _measure_peer(
    implementation: implementations.Implementation,
    batches: Sequence[_Batch],
    dtype: str,
    pool: workers.Workers,
) -> list[Accuracy]:
    """One row for the loss and one for the gradient."""
    peer = implementation.peer
    quantities = ("loss", "gradient")
    unavailable = implementation.unavailable(jax.default_backend())
    if unavailable:
        return [Accuracy(dtype, quantity, peer, unavailable) for quantity in quantities]
    try:
        results = [_run(implementation, batch, pool) for batch in batches]
    except Exception as error:  # the other peers are measured nevertheless
        note = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return [Accuracy(dtype, quantity, peer, "failed", note) for quantity in quantities]
    errors = [
        batch.relative_errors(*result) for batch, result in zip(batches, results, strict=True)
    ]
    margins = np.concatenate([batch.margins for batch in batches])
    rows = []
    for index, quantity in enumerate(quantities):
        worst, counts = _in_bands(margins, np.concatenate([e[quantity] for e in errors]))
        result_dtype = results[0][index].dtype.name
        rows.append(Accuracy(dtype, quantity, peer, "ok", "", result_dtype, worst, counts))
    return rows


def _run(
    implementation: implementations.Implementation, batch: _Batch, pool: workers.Workers
) -> list[Numbers]:
    inputs = programs.Inputs((batch.logits, batch.labels))
    return programs.build(implementation, "losses_and_gradient", inputs, pool).outputs


def _in_bands(
    margins: Numbers, errors: Numbers
) -> tuple[tuple[float | None, ...], tuple[int, ...]]:
    """The largest error in each band of the margin, and the number of rows in the band."""
    worst, counts = [], []
    for low, high in BANDS:
        last = high == BANDS[-1][1]
        inside = (margins >= low) & ((margins <= high) if last else (margins < high))
        inside &= ~np.isnan(errors)
        largest = float(errors[inside].max())
        worst.append(largest if np.isfinite(largest) else None)
        counts.append(int(inside.sum()))
    return tuple(worst), tuple(counts)


# --- the table ---------------------------------------------------------------------------------


def tables(rows: Sequence[Accuracy]) -> list[report.Table]:
    """The largest relative error in each band of the margin."""
    lines: list[list[str]] = []
    counts: dict[str, tuple[int, ...]] = {}
    # Sorted by quantity, so that the peers are in adjacent lines.
    order = list(dict.fromkeys((row.dtype, row.quantity) for row in rows))
    for row in sorted(rows, key=lambda row: order.index((row.dtype, row.quantity))):
        cells = [_error(e) for e in row.worst] or [row.status] * len(BANDS)
        lines.append([row.dtype, row.quantity, row.peer, row.result_dtype, *cells])
        counts[row.dtype] = row.counts or counts.get(row.dtype, ())
    columns = [f"{low} to {high}" for low, high in BANDS]
    in_words = "; ".join(f"{d}: {', '.join(map(str, c))}" for d, c in counts.items())
    note = (
        "Largest relative error against 50-digit arithmetic at the same logits, by the margin in "
        "nats between the label and the largest other class. 1 means that no digit is correct: the "
        "result is 0. The gradient is that at the label. Rounding a result to bfloat16 costs up to "
        f"2^-8 = 3.9e-03. Rows of logits in each band: {in_words}."
    )
    head = ["logits", "quantity", "computed by", "result in", *columns]
    return [
        report.Table("accuracy of the loss of a confident, correct prediction", head, lines, note)
    ]


def _error(error: float | None) -> str:
    if error is None:
        return "not finite"
    return "1" if error == 1.0 else f"{error:.1e}"
