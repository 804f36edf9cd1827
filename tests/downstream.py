"""What a user's type checker sees of the installed package: every line must pass.

    mypy --strict tests/downstream.py        pyright tests/downstream.py

The mistakes at the end must be found: strict mypy complains of an ignore that ignores nothing.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxsoftmax
from jaxsoftmax import (
    LossStatistics,
    SparseLabels,
    binary_cross_entropy,
    closed_form,
    cross_entropy,
    debug_checks,
    linear_cross_entropy,
    log_softmax,
    logsumexp,
    nll_loss,
    softmax,
)

version: str = jaxsoftmax.__version__


class Head(NamedTuple):
    """A last layer."""

    kernel: Array
    bias: Array


def loss_of(head: Head, hidden: Array, labels: Array) -> Array:
    """The plain loss is an array."""
    loss: Array = linear_cross_entropy(hidden, head.kernel, labels, head.bias, chunk_size=128)
    return loss


def sparse_and_learned(hidden: Array, kernel: Array, indices: Array, scale: Array) -> Array:
    """Labels that name a few classes, and options that are arrays."""
    labels = SparseLabels(indices, jnp.ones(indices.shape) / indices.shape[-1])
    loss, statistics = linear_cross_entropy(
        hidden, kernel, labels, temperature=scale, z_loss=jnp.float32(1e-4), return_statistics=True
    )
    confidence: Array = statistics.predicted_log_prob
    assert statistics.rank is None
    of_logits: Array = cross_entropy(hidden @ kernel, labels, label_smoothing=scale)
    distilled: Array = jaxsoftmax.kl_divergence(hidden @ kernel, hidden @ kernel, beta=0.5)
    return loss + of_logits + jnp.mean(confidence) + distilled


def every_loss(logits: Array, labels: Array, mask: Array) -> list[Array]:
    """Arrays in, arrays out; options by name."""
    log_probs: Array = log_softmax(logits, axis=-1, where=mask)
    sharp: Array = softmax(logits, (-2, -1))
    total: Array = logsumexp(logits, keepdims=True)
    nll: Array = nll_loss(log_probs, labels, reduction="sum")
    binary: Array = binary_cross_entropy(logits, mask, pos_weight=2.0)
    mean: Array = cross_entropy(
        logits,
        labels,
        axis=1,
        where=mask,
        ignore_index=-100,
        label_smoothing=0.1,
        denominator=jnp.sum(mask),
        z_loss=1e-4,
        soft_cap=30.0,
        temperature=2,
    )
    return [sharp, total, nll, binary, mean, closed_form.softmax_jacobian(logits)]


def of_numpy(logits: np.ndarray, labels: np.ndarray) -> Array:
    """NumPy arrays are arrays, too."""
    loss: Array = cross_entropy(logits, labels, example_weights=np.ones(3))
    return loss


def perplexity(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The statistics are named."""
    statistics: LossStatistics
    loss, statistics = cross_entropy(logits, labels, return_statistics=True)
    surprise: Array = -statistics.log_prob
    with debug_checks(True):
        accuracy = jnp.mean(statistics.predicted == labels)
    return jnp.exp(surprise.mean()) + 0.0 * loss, accuracy


smoothed = partial(cross_entropy, label_smoothing=0.1)
gradient = jax.grad(loss_of)


def mistakes(logits: Array, labels: Array) -> None:
    """What a checker has to see."""
    cross_entropy(logits, labels, reduction=3)  # type: ignore[call-overload]
    cross_entropy(logits, labels, label_smothing=0.1)  # type: ignore[call-overload]
    linear_cross_entropy(logits, labels=labels)  # type: ignore[call-overload]
    softmax(logits, "last")  # type: ignore[arg-type]
    linear_cross_entropy(logits, logits, labels, kernel_layout="VV")  # type: ignore[call-overload]
    statistics: LossStatistics = nll_loss(logits, labels)  # type: ignore[assignment]
    print(statistics)
    print(cross_entropy(logits, labels).no_such_attribute)  # type: ignore[attr-defined]
    name: str = softmax(logits)  # type: ignore[assignment]
    print(name)
