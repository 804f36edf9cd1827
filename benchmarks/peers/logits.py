"""Peers of the distributions and of the cross entropy of logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

import jaxsoftmax
from benchmarks.registry import OURS, implements, in_torch

# --- distributions --------------------------------------------------------------------------------


@implements("softmax", OURS)
def _(logits: Array) -> Array:
    return jaxsoftmax.softmax(logits)


@implements("softmax", "jax.nn")
def _(logits: Array) -> Array:
    return jax.nn.softmax(logits)


@implements("log_softmax", OURS)
def _(logits: Array) -> Array:
    return jaxsoftmax.log_softmax(logits)


@implements("log_softmax", "jax.nn")
def _(logits: Array) -> Array:
    return jax.nn.log_softmax(logits)


@implements("logsumexp", OURS)
def _(logits: Array) -> Array:
    return jaxsoftmax.logsumexp(logits)


@implements("logsumexp", "jax.nn")
def _(logits: Array) -> Array:
    return jax.nn.logsumexp(logits, axis=-1)


for _operation in ("softmax", "log_softmax", "logsumexp"):
    in_torch(_operation, "torch")

# --- mean cross entropy ----------------------------------------------------------------------


@implements("cross_entropy", OURS)
def _(logits: Array, labels: Array) -> Array:
    return jaxsoftmax.cross_entropy(logits, labels)


@implements("cross_entropy", "optax", requires="optax")
def _(logits: Array, labels: Array) -> Array:
    return optax_losses(logits, labels).mean()


@implements("cross_entropy", "jax.nn")
def _(logits: Array, labels: Array) -> Array:
    return jax_nn_losses(logits, labels).mean()


in_torch("cross_entropy", "torch")
in_torch(
    "cross_entropy", "torch.compile", worker_function="compiled_cross_entropy", platforms=("gpu",)
)
in_torch(
    "cross_entropy",
    "Liger",
    requires="liger_kernel",
    worker_function="liger_cross_entropy",
    platforms=("gpu",),
)
in_torch(
    "cross_entropy",
    "QuACK",
    requires="quack",
    worker_function="quack_cross_entropy",
    platforms=("gpu",),
)

# --- mean divergence of the first logits' distribution from the second's --------------------------


@implements("kl_divergence", OURS)
def _(logits: Array, target_logits: Array) -> Array:
    return jaxsoftmax.kl_divergence(logits, target_logits)


@implements("kl_divergence", "optax", requires="optax")
def _(logits: Array, target_logits: Array) -> Array:
    return optax_divergences(logits, target_logits).mean()


@implements("kl_divergence", "jax.nn")
def _(logits: Array, target_logits: Array) -> Array:
    log_q, log_p = jax.nn.log_softmax(logits), jax.nn.log_softmax(target_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean()


in_torch("kl_divergence", "torch")

# --- cross entropy, one loss per example (for the accuracy suite) ----------------------------


@implements("example_losses", OURS)
def _(logits: Array, labels: Array) -> Array:
    return jaxsoftmax.cross_entropy(logits, labels, reduction="none")


@implements("example_losses", "optax", requires="optax")
def optax_losses(logits: Array, labels: Array) -> Array:
    """−log softmax(x)_y of each row, by optax."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def optax_divergences(logits: Array, target_logits: Array) -> Array:
    """KL from the target, as optax computes it."""
    import optax

    return optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(target_logits))


@implements("example_losses", "jax.nn")
def jax_nn_losses(logits: Array, labels: Array) -> Array:
    """−log softmax(x)_y of each row, by `jax.nn.log_softmax` and a gather."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


in_torch("example_losses", "torch")
