"""Who computes each operation: one small function for each peer.

A function takes arrays and returns arrays; the runner jits it, differentiates it and times it. A
peer that is not JAX runs in a process of its own (see `workers`), because two thread pools in one
process disturb each other; its functions are in its worker's module.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import jaxsoftmax

OURS = "jaxsoftmax"


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A peer's way to compute an operation."""

    operation: str
    peer: str
    function: Callable[..., Any] | None  # None: it is in the worker
    requires: str | None = None  # a module; without it the peer is "not installed"
    worker: str | None = None  # the module of the process that it runs in
    platforms: tuple[str, ...] | None = None  # None: wherever JAX runs

    def unavailable(self, platform: str) -> str | None:
        """Why it cannot run here, if it cannot."""
        if self.requires and importlib.util.find_spec(self.requires) is None:
            return "not installed"
        if self.platforms and platform not in self.platforms:
            return f"not on {platform}"
        return None


_IMPLEMENTATIONS: list[Implementation] = []


def of(operation: str) -> list[Implementation]:
    """Every implementation of an operation, in the order in which they stand here."""
    return [known for known in _IMPLEMENTATIONS if known.operation == operation]


def _implements(operation: str, peer: str, requires: str | None = None) -> Callable[..., Any]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _IMPLEMENTATIONS.append(Implementation(operation, peer, function, requires))
        return function

    return register


def _implements_in_worker(operation: str, peer: str, requires: str, worker: str) -> None:
    _IMPLEMENTATIONS.append(
        Implementation(operation, peer, None, requires, worker, platforms=("cpu",))
    )


# --- chapter: the mean loss, as the textbook may write it -----------------------------------------


@_implements("chapter", "nll_loss(log_softmax(x), y)")
def _(logits: Array, labels: Array) -> Array:
    return jaxsoftmax.nll_loss(jaxsoftmax.log_softmax(logits), labels)


@_implements("chapter", "−mean log softmax(x)[y]")
def _(logits: Array, labels: Array) -> Array:
    probabilities = jaxsoftmax.softmax(logits)
    return -jnp.mean(jnp.log(_at_label(probabilities, labels)))


@_implements("chapter", "cross_entropy(x, y)")
def _(logits: Array, labels: Array) -> Array:
    return jaxsoftmax.cross_entropy(logits, labels)


def _at_label(values: Array, labels: Array) -> Array:
    return jnp.take_along_axis(values, labels[:, None], axis=-1)[:, 0]


# --- distributions --------------------------------------------------------------------------------


@_implements("softmax", OURS)
def _(logits: Array) -> Array:
    return jaxsoftmax.softmax(logits)


@_implements("softmax", "jax.nn")
def _(logits: Array) -> Array:
    return jax.nn.softmax(logits)


@_implements("log_softmax", OURS)
def _(logits: Array) -> Array:
    return jaxsoftmax.log_softmax(logits)


@_implements("log_softmax", "jax.nn")
def _(logits: Array) -> Array:
    return jax.nn.log_softmax(logits)


@_implements("logsumexp", OURS)
def _(logits: Array) -> Array:
    return jaxsoftmax.logsumexp(logits)


@_implements("logsumexp", "jax.nn")
def _(logits: Array) -> Array:
    return jax.nn.logsumexp(logits, axis=-1)


# --- cross entropy, the mean ----------------------------------------------------------------------


@_implements("cross_entropy", OURS)
def _(logits: Array, labels: Array) -> Array:
    return jaxsoftmax.cross_entropy(logits, labels)


@_implements("cross_entropy", "optax", requires="optax")
def _(logits: Array, labels: Array) -> Array:
    return _optax_losses(logits, labels).mean()


@_implements("cross_entropy", "jax.nn")
def _(logits: Array, labels: Array) -> Array:
    return _jax_nn_losses(logits, labels).mean()


_implements_in_worker("cross_entropy", "torch", "torch", worker="benchmarks.torch_worker")


# --- cross entropy, one loss for each example (for the accuracy suite) ----------------------------


@_implements("example_losses", OURS)
def _(logits: Array, labels: Array) -> Array:
    return jaxsoftmax.cross_entropy(logits, labels, reduction="none")


@_implements("example_losses", "optax", requires="optax")
def _optax_losses(logits: Array, labels: Array) -> Array:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@_implements("example_losses", "jax.nn")
def _jax_nn_losses(logits: Array, labels: Array) -> Array:
    return -_at_label(jax.nn.log_softmax(logits), labels)


_implements_in_worker("example_losses", "torch", "torch", worker="benchmarks.torch_worker")
