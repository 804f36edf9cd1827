"""Programs that are compiled but not run, at sizes larger than this machine's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsoftmax
from benchmarks.peers.logits import optax_divergences, optax_losses
from benchmarks.registry import OURS

GEMMA_2B = (8192, 2304, 256000)  # the main example of the cut cross-entropy paper
LLAMA_8B = (16384, 4096, 128256)
LOGITS = ((65536, 256), (65536, 2048), (16384, 16384), (8192, 128256), (4096, 262144))
QUICK = (512, 128, 2048)
SMALL_CHUNK = 128
STREAMED = f"{OURS}, streamed"


@dataclasses.dataclass(frozen=True)
class Abstract:
    """A function and the shapes of its arguments."""

    peer: str
    computed: str
    sizes: tuple[int, ...]  # tokens x features x classes, or rows x classes
    dtypes: str
    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]

    def lowered(self, devices: Any, platform: str) -> Any:
        """Lowered for the first of these devices, which does not have to be attached."""
        mesh = Mesh(devices.reshape(-1)[:1], ("x",))
        here = NamedSharding(mesh, PartitionSpec())
        arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for a in self.arguments]
        traced = jax.jit(self.function, out_shardings=here).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,))

    def __str__(self) -> str:
        return f"{self.computed}, {'x'.join(map(str, self.sizes))} {self.dtypes}, {self.peer}"


def _loss(chunk_size: int | None, hidden: Array, kernel: Array, labels: Array) -> Array:
    return jaxsoftmax.linear_cross_entropy(hidden, kernel, labels, chunk_size=chunk_size)


def _tied(chunk_size: int | None, hidden: Array, embedding: Array, labels: Array) -> Array:
    return jaxsoftmax.linear_cross_entropy(
        hidden, embedding, labels, chunk_size=chunk_size, kernel_layout="VD"
    )


def _streamed(hidden: Array, kernel: Array, labels: Array) -> Array:
    return jaxsoftmax.linear_cross_entropy(hidden, kernel, labels, implementation="streamed")


def _optax(hidden: Array, kernel: Array, labels: Array) -> Array:
    return optax_losses(hidden @ kernel, labels).mean()


STORED = 16  # of a teacher's probabilities


def _of_sparse(hidden: Array, kernel: Array, indices: Array, weights: Array) -> Array:
    labels = jaxsoftmax.SparseLabels(indices, weights)
    return jaxsoftmax.linear_cross_entropy(hidden, kernel, labels)


def _two_heads(*heads: Array) -> Array:
    return jaxsoftmax.linear_kl_divergence(*heads)


def _optax_kl(hidden: Array, kernel: Array, target_hidden: Array, target_kernel: Array) -> Array:
    logits, target = hidden @ kernel, target_hidden @ target_kernel
    return optax_divergences(logits, target).mean()


def _both(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(function, argnums=(0, 1))


def linear_arguments(
    sizes: tuple[int, ...], dtype: Any = jnp.bfloat16, kernel_dtype: Any = None, tied: bool = False
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Hidden states, kernel (or embedding) and labels."""
    tokens, features, classes = sizes
    kernel = (classes, features) if tied else (features, classes)
    return (
        jax.ShapeDtypeStruct((tokens, features), dtype),
        jax.ShapeDtypeStruct(kernel, kernel_dtype or dtype),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )


def sparse_arguments(sizes: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The same with indices and weights of a few classes for labels."""
    hidden, kernel, _ = linear_arguments(sizes)
    shape = (sizes[0], STORED)
    indices = jax.ShapeDtypeStruct(shape, jnp.int32)
    return hidden, kernel, indices, jax.ShapeDtypeStruct(shape, jnp.float32)


def memory_programs(*, quick: bool) -> Iterator[Abstract]:
    """The programs of the suite `memory`."""
    sizes = QUICK if quick else GEMMA_2B
    small = partial(_loss, SMALL_CHUNK)
    both, narrow = "value and both gradients", "bfloat16"
    arguments, tied = linear_arguments(sizes), linear_arguments(sizes, tied=True)
    wide = linear_arguments(sizes, kernel_dtype=jnp.float32)
    chunk, default = f"{OURS}, chunk_size={SMALL_CHUNK}", f"{OURS}, default chunk"
    yield Abstract(chunk, "forward", sizes, narrow, small, arguments)
    yield Abstract("optax", "forward", sizes, narrow, _optax, arguments)
    yield Abstract(chunk, both, sizes, narrow, _both(small), arguments)
    yield Abstract(default, both, sizes, narrow, _both(partial(_loss, None)), arguments)
    yield Abstract(STREAMED, both, sizes, narrow, _both(_streamed), arguments)
    yield Abstract("optax", both, sizes, narrow, _both(_optax), arguments)
    embedding = f"{both}, tied embedding [V, D]"
    yield Abstract(chunk, embedding, sizes, narrow, _both(partial(_tied, SMALL_CHUNK)), tied)
    yield Abstract(default, embedding, sizes, narrow, _both(partial(_tied, None)), tied)
    tokens, features, classes = sizes
    top = f"{both}, {STORED} sparse labels a token"
    yield Abstract(default, top, sizes, narrow, _both(_of_sparse), sparse_arguments(sizes))
    larger = (tokens, 2 * features, classes)
    pair = (*arguments[:2], *linear_arguments(larger)[:2])
    compared = f"KL of two heads, {features} and {2 * features} features, {both}"
    yield Abstract(default, compared, sizes, narrow, _both(_two_heads), pair)
    yield Abstract("optax", compared, sizes, narrow, _both(_optax_kl), pair)
    mixed = "bfloat16, kernel float32"
    yield Abstract(chunk, both, sizes, mixed, _both(small), wide)
    yield Abstract(default, both, sizes, mixed, _both(partial(_loss, None)), wide)


_AOT_CHUNKS = (512, 2048, 8192)  # in addition to the default


def aot_programs(*, quick: bool) -> Iterator[Abstract]:
    """The programs of the suite `aot`."""
    both = "value and both gradients"
    for sizes in (QUICK,) if quick else (GEMMA_2B, LLAMA_8B):
        arguments = linear_arguments(sizes)
        yield Abstract(OURS, "linear, forward", sizes, "bfloat16", partial(_loss, None), arguments)
        for chunk in (None,) if quick else (None, *_AOT_CHUNKS):
            name = OURS if chunk is None else f"{OURS}, chunk_size={chunk}"
            function = _both(partial(_loss, chunk))
            yield Abstract(name, f"linear, {both}", sizes, "bfloat16", function, arguments)
        streamed = _both(_streamed)
        yield Abstract(STREAMED, f"linear, {both}", sizes, "bfloat16", streamed, arguments)
        yield Abstract("optax", "linear, forward", sizes, "bfloat16", _optax, arguments)
        yield Abstract("optax", f"linear, {both}", sizes, "bfloat16", _both(_optax), arguments)
    for rows, classes in ((256, 2048),) if quick else LOGITS:
        yield from _of_logits(rows, classes)


def _of_logits(rows: int, classes: int) -> Iterator[Abstract]:
    """Functions of logits, whose cost is that of the bytes accessed."""
    sizes = (rows, classes)
    logits = jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    losses: dict[str, Callable[..., Any]] = {
        OURS: jaxsoftmax.cross_entropy,
        "optax": lambda x, y: optax_losses(x, y).mean(),
    }
    for peer, function in losses.items():
        both = "cross_entropy, value and gradient"
        yield Abstract(
            peer, both, sizes, "bfloat16", jax.value_and_grad(function), (logits, labels)
        )
        forward = "cross_entropy, forward"
        yield Abstract(peer, forward, sizes, "bfloat16", function, (logits, labels))
    distributions: dict[str, Callable[..., Any]] = {
        OURS: jaxsoftmax.log_softmax,
        "jax.nn": jax.nn.log_softmax,
    }
    for peer, function in distributions.items():
        yield Abstract(peer, "log_softmax", sizes, "bfloat16", function, (logits,))
