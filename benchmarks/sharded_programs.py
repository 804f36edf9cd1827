"""Losses on several devices, in several layouts."""

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
from benchmarks.peers.logits import optax_losses
from benchmarks.registry import OURS

SIZES = (8192, 4096, 128256)  # Llama 3 8B's last layer; 128256 = 256 · 501
QUICK_SIZES = (512, 64, 4096)

P = PartitionSpec
DATA, MODEL = "data", "model"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh, and the mesh axes over which the arrays are sharded."""

    name: str
    model: Callable[[int], int]  # number of devices -> size of the mesh axis of the classes
    tokens: str | None  # the mesh axis of the tokens
    features: str | None  # the mesh axis of the kernel's features
    classes: str | None  # the mesh axis of the classes


LAYOUTS = (
    Layout("classes", lambda n: n, None, None, MODEL),
    Layout("tokens", lambda n: 1, DATA, None, None),
    Layout("tokens and classes", lambda n: max(1, n // 2), DATA, None, MODEL),
    Layout("tokens, kernel by features", lambda n: 1, DATA, DATA, None),
)


@dataclasses.dataclass(frozen=True)
class Sharded:
    """The value and the gradients of a loss, for a layout."""

    peer: str
    operation: str  # "cross_entropy" or "linear_cross_entropy"
    written: str  # "jit", with shardings, or "shard_map", with the name of a mesh axis
    layout: Layout
    sizes: tuple[int, ...]

    @property
    def computed(self) -> str:
        """The operation, the layout and how it is written."""
        return f"{self.operation}, {self.layout.name} sharded, {self.written}"

    def lowered(self, devices: Any, platform: str) -> Any:
        """Lowered for all of these devices."""
        model = self.layout.model(devices.size)
        mesh = Mesh(devices.reshape(devices.size // model, model), (DATA, MODEL))
        shapes, specs = self._arguments()
        places = [NamedSharding(mesh, spec) for spec in specs]
        arguments = [
            jax.ShapeDtypeStruct(*shape, sharding=place)
            for shape, place in zip(shapes, places, strict=True)
        ]
        function = _FUNCTIONS[self.operation, self.peer]
        if self.written == "shard_map":
            function = jax.shard_map(
                partial(function, axis_name=MODEL), mesh=mesh, in_specs=specs, out_specs=P()
            )
        by = tuple(range(len(places) - 1))
        gradients = jax.value_and_grad(function, argnums=by)
        whole = NamedSharding(mesh, P())
        out = (whole, tuple(places[i] for i in by))
        traced = jax.jit(gradients, out_shardings=out).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,))

    def _arguments(self) -> tuple[Any, tuple[PartitionSpec, ...]]:
        (tokens, features, classes), at = self.sizes, self.layout
        labels = ((tokens,), jnp.int32)
        if self.operation == "cross_entropy":
            shapes = [((tokens, classes), jnp.bfloat16), labels]
            return shapes, (P(at.tokens, at.classes), P(at.tokens))
        shapes = [((tokens, features), jnp.bfloat16), ((features, classes), jnp.bfloat16), labels]
        return shapes, (P(at.tokens, None), P(at.features, at.classes), P(at.tokens))


def _optax(logits: Array, labels: Array) -> Array:
    return optax_losses(logits, labels).mean()


def _optax_linear(hidden: Array, kernel: Array, labels: Array) -> Array:
    return optax_losses(hidden @ kernel, labels).mean()


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("cross_entropy", OURS): jaxsoftmax.cross_entropy,
    ("cross_entropy", "optax"): _optax,
    ("linear_cross_entropy", OURS): jaxsoftmax.linear_cross_entropy,
    ("linear_cross_entropy", "optax"): _optax_linear,
}


def programs(*, quick: bool) -> Iterator[Sharded]:
    """Every operation in every layout that it has."""
    sizes = QUICK_SIZES if quick else SIZES
    for operation, peer in _FUNCTIONS:
        for layout in LAYOUTS:
            if layout.features and operation == "cross_entropy":
                continue
            yield Sharded(peer, operation, "jit", layout, sizes)
        # The loss itself communicates only if the classes are sharded.
        if peer == OURS:
            yield Sharded(peer, operation, "shard_map", LAYOUTS[0], sizes)
