"""The mean loss in the textbook's forms; here the "peers" are formulas."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

import jaxsoftmax
from benchmarks.registry import implements


@implements("chapter", "nll_loss(log_softmax(x), y)")
def _(logits: Array, labels: Array) -> Array:
    return jaxsoftmax.nll_loss(jaxsoftmax.log_softmax(logits), labels)


@implements("chapter", "−mean log softmax(x)[y]")
def _(logits: Array, labels: Array) -> Array:
    probabilities = jaxsoftmax.softmax(logits)
    at_label = jnp.take_along_axis(probabilities, labels[:, None], axis=-1)
    return -jnp.mean(jnp.log(at_label))


@implements("chapter", "cross_entropy(x, y)")
def _(logits: Array, labels: Array) -> Array:
    return jaxsoftmax.cross_entropy(logits, labels)
