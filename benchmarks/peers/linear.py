"""Peers of the mean linear cross entropy, from hidden states and kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable

from jax import Array

import jaxsoftmax
from benchmarks.cases import CHUNK_SIZES, LARGE_CHUNK_SIZES
from benchmarks.peers.logits import jax_nn_losses, optax_losses
from benchmarks.registry import OURS, implements, in_torch

# tokamax's chunked_xla adds the padded columns of its last block to the sum (tokamax 0.0.17).
_TOKAMAX_BLOCK = 2048


@implements("linear_cross_entropy", OURS)
def _(hidden: Array, kernel: Array, labels: Array) -> Array:
    return jaxsoftmax.linear_cross_entropy(hidden, kernel, labels)


@implements("linear_cross_entropy", "jaxsoftmax reference")
def _(hidden: Array, kernel: Array, labels: Array) -> Array:
    return jaxsoftmax.linear_cross_entropy(hidden, kernel, labels, implementation="reference")


@implements("linear_cross_entropy", "optax", requires="optax")
def optax_linear(hidden: Array, kernel: Array, labels: Array) -> Array:
    """The logits of all tokens, then optax."""
    return optax_losses(hidden @ kernel, labels).mean()


@implements("linear_cross_entropy", "jax.nn")
def _(hidden: Array, kernel: Array, labels: Array) -> Array:
    return jax_nn_losses(hidden @ kernel, labels).mean()


def _tokamax(implementation: str) -> Callable[[Array, Array, Array], Array]:
    def function(hidden: Array, kernel: Array, labels: Array) -> Array:
        import tokamax

        # It warns about every shape for which it has no tuned block sizes.
        logging.getLogger("absl").setLevel(logging.ERROR)
        return tokamax.linear_softmax_cross_entropy_loss(
            hidden, labels, kernel, reduction="mean", implementation=implementation
        )

    return function


def _padded(shape: tuple[int, ...]) -> str | None:
    if shape[-1] % _TOKAMAX_BLOCK == 0:
        return None
    return f"wrong: {_TOKAMAX_BLOCK} ∤ V"


implements("linear_cross_entropy", "tokamax xla", requires="tokamax")(_tokamax("xla"))
implements(
    "linear_cross_entropy",
    "tokamax chunked_xla",
    requires="tokamax",
    at_least="0.0.17",
    known_wrong=_padded,
)(_tokamax("chunked_xla"))
implements("linear_cross_entropy", "tokamax mosaic_tpu", requires="tokamax", platforms=("tpu",))(
    _tokamax("mosaic_tpu")
)

in_torch("linear_cross_entropy", "torch")
in_torch(
    "linear_cross_entropy",
    "torch chunked",
    worker_function="chunked_linear_cross_entropy",
    at_least="2.13",
)
for _peer, _module, _function in (
    ("torch.compile", "torch", "compiled_linear_cross_entropy"),
    ("Liger", "liger_kernel", "liger_linear_cross_entropy"),
    ("cut-cross-entropy", "cut_cross_entropy", "cut_linear_cross_entropy"),
    ("QuACK", "quack", "quack_linear_cross_entropy"),
):
    in_torch(
        "linear_cross_entropy",
        _peer,
        requires=_module,
        worker_function=_function,
        platforms=("gpu",),
    )

# --- over chunk_size; here the "peers" are chunk sizes --------------------------------------------


def _chunked(chunk_size: int | None) -> Callable[[Array, Array, Array], Array]:
    def function(hidden: Array, kernel: Array, labels: Array) -> Array:
        return jaxsoftmax.linear_cross_entropy(hidden, kernel, labels, chunk_size=chunk_size)

    return function


for _size in CHUNK_SIZES:
    _name = "default" if _size is None else f"{_size}"
    implements("linear_chunks", _name)(_chunked(_size))
for _size in LARGE_CHUNK_SIZES:
    implements("linear_chunks", f"{_size}", platforms=("gpu", "tpu"))(_chunked(_size))
