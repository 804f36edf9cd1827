"""One row of logits: observed, finished, pulled back. The only file with exp and log of logits.

A row is seen from one of its classes, the *label* k, against all the others:

    m = max_{j≠k} x_j        S = Σ_{j≠k} exp(x_j − m)        gap = m + log S − x_k

    −log p_k = log(1 + exp(gap))        1 − p_k = −expm1(log p_k)

Nothing is absorbed: p_k is never formed before it is subtracted from 1, and a sum that holds
exp(0) = 1 for the label is never asked for what lies below 1e-7. For distributions, where there
is no label, k is the largest class; then this is the log-sum-exp that leaves the maximum out of
the sum and adds it by log1p (Blanchard, Higham and Higham, IMA J. Numer. Anal. 41(4), 2021).

m is a constant under differentiation: it cancels in every quantity below, and S carries the
derivative. (Reading it through max would split the derivative over ties and spoil the Hessian.)
Where the classes are split over a mesh (`axis_name`), a row is observed on every device and the
states meet: each is a number a row, the same on all devices.

A class that does not exist has logit −inf. A row that holds +inf is saturated: its probability
sits on the infinite classes, in equal parts, and nothing finite moves it: its gradient is 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxsoftmax import _extremes, _labels, _mesh, _online, _passes, _precision
from jaxsoftmax._mesh import AxisName
from jaxsoftmax._placement import on_one_accelerator
from jaxsoftmax._precision import accumulator, finite, largest, widen, widen_apart


class RowState(NamedTuple):
    """What one pass over the classes of a row leaves."""

    label_logit: Float[Array, "..."]  # x_k
    maximum: Float[Array, "..."]  # m, -inf and +inf included; a constant under differentiation
    others: Float[Array, "..."]  # S = Σ_{j≠k} exp(x_j − m), at least 1 where others exist


class Row(NamedTuple):
    """A finished row: everything that a loss needs to know of it."""

    loss: Float[Array, "..."]  # −log p_k
    excess: Float[Array, "..."]  # logsumexp(x) − top, between 0 and log C
    top: Float[Array, "..."]  # max_j x_j, ±inf included; a constant under differentiation


# --- observe --------------------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def observe(
    logits: Float[Array, "... C"],
    label: Int[Array, "..."],
    axis_name: AxisName = None,
    in_chunks: bool = False,
) -> RowState:
    """The state of each row seen from its label; a label that is no class makes it NaN."""
    here = _once(_online.of_others, _passes.of_others, logits, label)
    return _meet(RowState(*here), label, logits.shape[-1], axis_name)


@observe.defjvp
def _observe_jvp(axis_name, in_chunks, primals, tangents):  # type: ignore[no-untyped-def]
    logits, label = primals
    # One upcast for all terms: in reverse mode they are then added in float32 and rounded once.
    tangent = widen(tangents[0])
    observed = partial(observe, axis_name=axis_name, in_chunks=in_chunks)
    if logits.dtype == accumulator(logits.dtype) and not in_chunks and axis_name is None:
        # XLA:CPU writes the gradient over the terms: with them there already, S is their sum.
        state = lax.platform_dependent(logits, label, cpu=_observe_by_terms, default=observed)
        terms = _terms(logits, label, finite(state.maximum))
    else:
        # It is written elsewhere, or over the logits: no array of terms, each pass has its own.
        state = observed(logits, label)
        terms = _terms_apart(logits, label, finite(state.maximum))
    # ∂x_k = ẋ_k, where x_k is a number that can move; ∂S = Σ_{j≠k} exp(x_j − m) ẋ_j.
    here = _extremes.is_class(logits, label)
    label_tangent = over_classes(jnp.where(here, tangent, 0.0), axis_name)
    label_tangent = jnp.where(jnp.isinf(state.label_logit), 0.0, label_tangent)
    others_tangent = over_classes(terms * tangent, axis_name)
    return state, RowState(label_tangent, jnp.zeros_like(state.maximum), others_tangent)


def _observe_by_terms(logits: Array, label: Array) -> RowState:
    label_logit, maximum = _passes.landmarks(logits, label)
    terms = _terms(logits, label, finite(maximum))
    return RowState(label_logit, maximum, jnp.sum(terms, axis=-1))


def _meet(here: RowState, label: Int[Array, "..."], classes: int, axis_name: AxisName) -> RowState:
    """The state of a row of which this device has observed so many classes."""
    label_logit = _mesh.from_owner(here.label_logit, label, classes, axis_name)
    if axis_name is None:
        return here._replace(label_logit=label_logit)
    maximum = _mesh.maximum(here.maximum, axis_name)
    rebased = here.others * jnp.exp(finite(here.maximum) - finite(maximum))
    return RowState(label_logit, maximum, _mesh.total(rebased, axis_name))


@jax.custom_jvp
def _terms(
    logits: Float[Array, "... C"], label: Int[Array, "..."], maximum: Float[Array, "..."]
) -> Float[Array, "... C"]:
    """min(exp(x_j − m), 1) for the other classes, 0 for the label."""
    # −0.0: a broadcast 0.0 that the gradient's pass needs too is written to memory.
    return _labels.drop(jnp.exp(jnp.minimum(logits - maximum[..., None], -0.0)), label)


@jax.custom_jvp
def _terms_apart(
    logits: Float[Array, "... C"], label: Int[Array, "..."], maximum: Float[Array, "..."]
) -> Float[Array, "... C"]:
    """The same in one pass, of which the sum in `observe` shares nothing."""
    # −m, since even the broadcast of a shared m is written to memory.
    below = jnp.minimum(widen_apart(logits) + (-maximum)[..., None], 0.0)
    return jnp.exp(jnp.where(_extremes.is_class(logits, label), -jnp.inf, below))


def _terms_jvp(terms_of, primals, tangents):  # type: ignore[no-untyped-def]
    terms = terms_of(*primals)
    return terms, terms * widen(tangents[0])


_terms.defjvp(partial(_terms_jvp, _terms))
_terms_apart.defjvp(partial(_terms_jvp, _terms_apart))


# --- finish ---------------------------------------------------------------------------------------


@jax.custom_jvp
def finish(state: RowState) -> Row:
    """−log p_k, logsumexp(x) − max(x) and max(x) of each row."""
    # The difference of two logits rounds, too: at 64 half an ulp is 4e-6, and e^gap inherits it.
    label_logit = jnp.minimum(state.label_logit, largest(state.label_logit))
    gap, error = _precision.two_sum(finite(state.maximum), -label_logit)
    gap = jnp.where((state.label_logit == jnp.inf) & (state.maximum < jnp.inf), -jnp.inf, gap)
    # The label is the largest: log1p(S e^gap), in two halves so that only the result underflows.
    half = jnp.exp(0.5 * jnp.minimum(gap, 0.0))
    ahead = jnp.log1p(half * (state.others * half) * (1.0 + error))
    # Another class is: then S >= 1, and log(S + e^-gap) is what logsumexp lies above that class.
    above = jnp.log(jnp.maximum(state.others, 1.0) + jnp.exp(-jnp.maximum(gap, 0.0)))
    label_leads = gap <= 0.0
    loss = jnp.where(label_leads, ahead, gap + (error + above))
    loss = jnp.where((state.maximum == jnp.inf) & (state.label_logit < jnp.inf), jnp.inf, loss)
    excess = jnp.where(label_leads, ahead, above)
    top = jnp.maximum(state.label_logit, state.maximum)
    return Row(loss, jnp.where(top == -jnp.inf, 0.0, excess), top)


@finish.defjvp
def _finish_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (state,), (tangent,) = primals, tangents
    row = finish(state)
    saturated = row.top == jnp.inf
    p_label, p_others = (jnp.where(saturated, 0.0, p) for p in label_probability(row))
    # ∂ log S, weighted: Σ_{j≠k} p_j ẋ_j.
    others = jnp.where(state.others == 0.0, 1.0, state.others)
    moved_others = p_others / others * tangent.others
    loss = moved_others - p_others * tangent.label_logit
    excess = moved_others + p_label * tangent.label_logit
    return row, Row(loss, excess, jnp.zeros_like(row.top))


def from_largest(
    logits: Float[Array, "... C"], axis_name: AxisName = None
) -> tuple[Row, Int[Array, "..."]]:
    """The row seen from its largest class, and which that is: for the distribution alone."""
    label = _extremes.argmax(logits, axis_name)
    return finish(observe(logits, label, axis_name)), label


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def of_distribution(logits: Float[Array, "... C"], axis_name: AxisName = None) -> Row:
    """The same row where nobody asks which class is the largest."""
    if axis_name is not None:
        return from_largest(logits, axis_name)[0]

    def in_passes(logits: Array) -> tuple[Array, Array, Array]:
        return _passes.of_others(logits, _extremes.argmax(logits))

    return finish(RowState(*_once(_online.of_others_than_largest, in_passes, logits)))


@of_distribution.defjvp
def _of_distribution_jvp(axis_name, primals, tangents):  # type: ignore[no-untyped-def]
    return jax.jvp(lambda x: from_largest(x, axis_name)[0], primals, tangents)


def label_probability(row: Row) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """p_k, and 1 − p_k with nothing absorbed."""
    return jnp.exp(-row.loss), -jnp.expm1(-row.loss)


def logsumexp(row: Row) -> Float[Array, "..."]:
    """log Σ_j exp(x_j) of each row."""
    return row.top + row.excess


def probabilities(
    logits: Float[Array, "... C"], axis_name: AxisName = None
) -> Float[Array, "... C"]:
    """exp(x_c − top) / Σ_j exp(x_j − top); all 0 where no class exists."""
    in_passes = partial(_probabilities_in_passes, axis_name=axis_name)
    if axis_name is not None:
        return in_passes(logits)
    return _once(_probabilities_online, in_passes, logits)


def _probabilities_in_passes(logits: Array, *, axis_name: AxisName) -> Array:
    top = finite(widen(_extremes.maximum(logits, axis_name)))
    if logits.dtype == accumulator(logits.dtype):
        # One array for the terms and the result: XLA:CPU writes it, sums it, divides it in place.
        # (−0.0: a broadcast 0.0 that a gradient's pass needs too is written to memory.)
        terms = jnp.exp(jnp.minimum(logits - top[..., None], -0.0))
        total = over_classes(terms, axis_name)
    else:
        total = _mesh.total(_passes.sum_of_exp(logits, top), axis_name)
        terms = jnp.exp(jnp.minimum(widen_apart(logits) + (-top)[..., None], 0.0))
    return terms / jnp.where(total == 0.0, 1.0, total)[..., None]


def _probabilities_online(logits: Array) -> Array:
    maximum, total = _online.of_all(logits)
    terms = jnp.exp(jnp.minimum(widen(logits) - finite(maximum)[..., None], 0.0))
    return terms / jnp.where(total == 0.0, 1.0, total)[..., None]


def log_probabilities(logits: Float[Array, "... C"], row: Row) -> Float[Array, "... C"]:
    """−(top − x_c) − excess."""
    return -_gap(widen_apart(logits), row.top) - row.excess[..., None]


def other_probabilities(
    logits: Float[Array, "... C"], row: Row, label: Int[Array, "..."]
) -> Float[Array, "... C"]:
    """p_c of a row seen from its largest class, 0 at that class and in a saturated row."""
    below = widen_apart(logits) + (-finite(row.top))[..., None]
    below = jnp.where(_extremes.is_class(logits, label), -jnp.inf, below)
    below = jnp.where(below > 0.0, 0.0, below)  # of a saturated row; min would halve ties' slopes
    scale = jnp.where(row.top == jnp.inf, 0.0, jnp.exp(-row.excess))
    return jnp.exp(below) * scale[..., None]


def against_zero(logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """−log σ(x): the two-class row [x, 0] seen from its first class."""
    zero = jnp.zeros_like(logits)
    return finish(RowState(label_logit=logits, maximum=zero, others=zero + 1.0)).loss


# --- what soft targets and statistics need beside it ----------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def weighted_gap(
    logits: Float[Array, "... C"],
    coefficients: Float[Array, "... C"],
    top: Float[Array, "..."],
    label: Int[Array, "..."] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Σ_c coefficients_c (top − x_c), with 0·inf = 0; top is max(x), or x_label where it is that.

    With it, Σ_c a_c (−log p_c) = (Σ_c a_c)·excess + weighted_gap(x, a, top): every term is the
    distance below the largest logit, so that a common offset of the logits costs no digits.

    Without a label, top is a constant under differentiation; with one, it moves with x_label.
    """
    gap = _gap(logits, top)
    return over_classes(jnp.where(coefficients == 0.0, 0.0, coefficients * gap), axis_name)


def _weighted_gap_jvp(axis_name, primals, tangents):  # type: ignore[no-untyped-def]
    logits, coefficients, top, label = primals
    moved_logits, moved_coefficients, _, _ = tangents
    gap = _gap(logits, top)
    fixed = jnp.isinf(gap) | jnp.isinf(top)[..., None]
    tangent = jnp.zeros_like(top)
    if not _is_zero(moved_logits):
        approach = -moved_logits
        if label is not None:
            # Σ_{c≠k} a_c (ẋ_k − ẋ_c): the label itself is in no sum, so that its gradient is that
            # of the others together and not the difference of two large numbers. Of the gap to a
            # class that does not exist, only x_k moves (and its coefficient not: the second
            # derivatives are symmetric).
            here = _extremes.is_class(logits, label)
            top_tangent = over_classes(jnp.where(here, moved_logits, 0.0), axis_name)
            missing = jnp.isinf(gap)
            coefficients = jnp.where(missing, lax.stop_gradient(coefficients), coefficients)
            approach = jnp.where(missing, 0.0, approach) + top_tangent[..., None]
            approach = jnp.where(here, 0.0, approach)
            fixed_logits = jnp.broadcast_to(jnp.isinf(top)[..., None], gap.shape)
        else:
            fixed_logits = fixed
        tangent += over_classes(jnp.where(fixed_logits, 0.0, coefficients * approach), axis_name)
    if not _is_zero(moved_coefficients):
        origin = top if label is None else _labels.take(logits, label, axis_name)
        distance = jnp.where(fixed, 0.0, origin[..., None] - jnp.where(fixed, 0.0, logits))
        tangent += over_classes(moved_coefficients * distance, axis_name)
    return weighted_gap(logits, coefficients, top, label, axis_name), tangent


weighted_gap.defjvp(_weighted_gap_jvp, symbolic_zeros=True)


def entropy(
    logits: Float[Array, "... C"], row: Row, axis_name: AxisName = None
) -> Float[Array, "..."]:
    """−Σ_j p_j log p_j = excess + Σ_j p_j (top − x_j): two terms of one sign, none absorbed."""
    return row.excess + jnp.exp(-row.excess) * _mean_gap(logits, row.top, axis_name)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _mean_gap(
    logits: Float[Array, "... C"], top: Float[Array, "..."], axis_name: AxisName
) -> Float[Array, "..."]:
    """Σ_j exp(x_j − top) (top − x_j), top being a constant."""
    gap = _gap(logits, top)
    return over_classes(jnp.exp(-gap) * jnp.where(jnp.isinf(gap), 0.0, gap), axis_name)


@_mean_gap.defjvp
def _mean_gap_jvp(axis_name, primals, tangents):  # type: ignore[no-untyped-def]
    logits, top = primals
    gap = _gap(logits, top)
    fixed = jnp.isinf(gap) | jnp.isinf(top)[..., None]
    distance = jnp.where(fixed, 0.0, top[..., None] - jnp.where(fixed, 0.0, logits))
    slope = jnp.where(fixed, 0.0, jnp.exp(-distance) * (distance - 1.0))
    return _mean_gap(logits, top, axis_name), over_classes(slope * tangents[0], axis_name)


# --- helpers --------------------------------------------------------------------------------------


def _once(online: Any, in_passes: Any, logits: Array, *rest: Array) -> Any:
    """The reduction in one pass where an accelerator has the whole row."""
    if _mesh.split_by_type(logits):
        return in_passes(logits, *rest)
    if _mesh.placed_by_type(logits):
        return lax.platform_dependent(logits, *rest, cpu=in_passes, default=online)
    return on_one_accelerator(online, in_passes, logits, *rest)


def over_classes(terms: Array, axis_name: AxisName) -> Array:
    """Σ over all classes, those of the other shards too."""
    return _mesh.total(jnp.sum(terms, axis=-1), axis_name)


def _gap(logits: Array, top: Array) -> Array:
    """Top − x_c >= 0: +inf for a class that does not exist, 0 at the top even where it is inf."""
    below = top[..., None]
    return jnp.where(logits == -jnp.inf, jnp.inf, jnp.where(logits == below, 0.0, below - logits))


def _is_zero(tangent: object) -> bool:
    return type(tangent) is jax.custom_derivatives.SymbolicZero
