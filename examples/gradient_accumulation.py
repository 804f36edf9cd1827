"""Micro-batches of unequal token counts, one gradient: the mean over all tokens, exactly.

    pip install "jaxsoftmax[examples]" && python examples/gradient_accumulation.py

The mean of the micro-batches' means weighs a token by how full its micro-batch is. With one global
count as `denominator`, the micro-batches' gradients add up to the gradient of the whole batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

from jaxsoftmax import cross_entropy

PADDING = -100
SIZES = (700, 60, 1037)  # examples a micro-batch: all 1797 digits
UNLABELLED = 0.6  # of the first micro-batch, where padding sits in real life


class Errors(NamedTuple):
    """The largest error of a gradient's entries, relative to the largest entry of the true one."""

    with_denominator: float
    mean_of_means: float


def loss_of(kernel, images, labels, denominator=None):
    """A linear classifier; ignored examples do not count."""
    logits = images @ kernel
    return cross_entropy(logits, labels, ignore_index=PADDING, denominator=denominator)


def compare() -> Errors:
    """Both ways of accumulating against the gradient of the whole batch."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    unlabelled = jnp.arange(sum(SIZES)) < UNLABELLED * SIZES[0]
    labels = jnp.where(unlabelled, PADDING, labels)
    kernel = 0.1 * jax.random.normal(jax.random.key(0), (64, 10))
    gradient = jax.grad(loss_of)
    whole = gradient(kernel, images, labels)

    tokens = jnp.sum(labels != PADDING)  # counted once, before any micro-batch
    accumulated, averaged = jnp.zeros_like(kernel), jnp.zeros_like(kernel)
    start = 0
    for size in SIZES:
        micro = images[start : start + size], labels[start : start + size]
        accumulated += gradient(kernel, *micro, tokens)
        averaged += gradient(kernel, *micro) / len(SIZES)
        start += size

    def error(got: jax.Array) -> float:
        return float(jnp.max(jnp.abs(got - whole)) / jnp.max(jnp.abs(whole)))

    return Errors(error(accumulated), error(averaged))


if __name__ == "__main__":
    errors = compare()
    print(f"error of the gradient, one denominator:  {errors.with_denominator:.1e}")
    print(f"error of the gradient, mean of means:    {errors.mean_of_means:.1e}")
