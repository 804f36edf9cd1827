"""Losses on several devices, in several layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxsoftmax
from benchmarks.peers.logits import optax_losses
from benchmarks.registry import OURS

SIZES = (8192, 4096, 128256)  # Llama 3 8B's last layer; 128256 = 256 · 501
QUICK_SIZES = (512, 64, 4096)

P = PartitionSpec
DATA, FSDP, MODEL, SEQUENCE = "data", "fsdp", "model", "sequence"
_BATCH = 8  # tokens are [batch, sequence]; a mesh may split either


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of `n` devices, and the mesh axes over which the arrays are sharded."""

    name: str
    mesh: Callable[[int], dict[str, int]]
    batch: tuple[str, ...] | str | None
    kernel: tuple[str | None, str | None]  # features, classes
    sequence: str | None = None


def _two(first: str, second: str, of_second: int = 2) -> Callable[[int], dict[str, int]]:
    return lambda n: {first: max(1, n // of_second), second: min(n, of_second)}


CLASSES = Layout("classes", lambda n: {MODEL: n}, None, (None, MODEL))
TOKENS = Layout("data", lambda n: {DATA: n}, DATA, (None, None))
LAYOUTS = (
    TOKENS,
    Layout("FSDP", lambda n: {DATA: n}, DATA, (DATA, None)),
    Layout("FSDP, classes over it", lambda n: {DATA: n}, DATA, (None, DATA)),
    Layout("data x tensor", _two(DATA, MODEL), DATA, (None, MODEL)),
    Layout("FSDP x tensor", _two(DATA, MODEL), DATA, (DATA, MODEL)),
    Layout("batch over two axes, FSDP", _two(DATA, FSDP, 4), (DATA, FSDP), (FSDP, None)),
    Layout("batch and sequence", _two(DATA, SEQUENCE), DATA, (None, None), SEQUENCE),
    Layout("batch and sequence, FSDP", _two(DATA, SEQUENCE), DATA, (DATA, None), SEQUENCE),
)
OF_LOGITS = (
    CLASSES,
    TOKENS,
    Layout("data x classes", _two(DATA, MODEL), DATA, (None, MODEL)),
)


@dataclasses.dataclass(frozen=True)
class Sharded:
    """The value and the gradients of a loss, for a layout."""

    peer: str
    operation: str  # "cross_entropy" or "linear_cross_entropy"
    written: str  # "jit" or "explicit", with shardings, or "shard_map", with the name of an axis
    layout: Layout
    sizes: tuple[int, ...]
    each: bool = False  # whether the tokens are those of one device

    @property
    def computed(self) -> str:
        """The operation, the layout and how it is written."""
        tokens = ", many tokens" if self.each else ""
        return f"{self.operation}, {self.layout.name}, {self.written}{tokens}"

    def lowered(self, devices: Any, platform: str) -> Any:
        """Lowered for all of these devices."""
        axes = self.layout.mesh(devices.size)
        kind = AxisType.Explicit if self.written == "explicit" else AxisType.Auto
        mesh = Mesh(devices.reshape(*axes.values()), tuple(axes), axis_types=(kind,) * len(axes))
        shapes, specs = self._arguments(devices.size)
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
        out = (NamedSharding(mesh, P()), tuple(places[i] for i in by))
        # On explicit axes results lie as their types say.
        placed = {} if self.written == "explicit" else {"out_shardings": out}
        return jax.jit(gradients, **placed).trace(*arguments).lower(lowering_platforms=(platform,))

    def _arguments(self, devices: int) -> tuple[Any, tuple[PartitionSpec, ...]]:
        (tokens, features, classes), at = self.sizes, self.layout
        batch = max(_BATCH, devices)
        rows = (batch, tokens * (devices if self.each else 1) // batch)
        of_rows = (at.batch, at.sequence)
        labels = (rows, jnp.int32)
        if self.operation == "cross_entropy":
            shapes = [((*rows, classes), jnp.bfloat16), labels]
            return shapes, (P(*of_rows, at.kernel[1]), P(*of_rows))
        shapes = [((*rows, features), jnp.bfloat16), ((features, classes), jnp.bfloat16), labels]
        return shapes, (P(*of_rows, None), P(*at.kernel), P(*of_rows))


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
    """Every operation in every layout that it has, and the linear one with many tokens too."""
    sizes = QUICK_SIZES if quick else SIZES
    for peer in (OURS, "optax"):
        for layout in OF_LOGITS:
            yield Sharded(peer, "cross_entropy", "jit", layout, sizes)
    linear = "linear_cross_entropy"
    for operation in ("cross_entropy", linear):
        # The loss itself communicates only if the classes are sharded.
        yield Sharded(OURS, operation, "shard_map", CLASSES, sizes)
    for layout in (CLASSES, *LAYOUTS):
        for each in (False, True):
            yield Sharded(OURS, linear, "jit", layout, sizes, each)
            yield Sharded("optax", linear, "jit", layout, sizes, each)
            if not each:  # optax's loss raises on explicit axes
                yield Sharded(OURS, linear, "explicit", layout, sizes)
