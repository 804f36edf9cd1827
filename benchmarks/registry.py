"""What a peer is, and the list of them all: the files in `peers` register themselves here."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from typing import Any

OURS = "jaxsoftmax"
TORCH_WORKER = "benchmarks.torch_worker"
_TORCH_PLATFORMS = ("cpu", "gpu")


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A peer's way to compute an operation."""

    operation: str
    peer: str
    function: Callable[..., Any] | None  # None: it is in the worker
    requires: str | None = None  # a module; without it the peer is "not installed"
    worker: str | None = None  # the module of the process that it runs in
    platforms: tuple[str, ...] | None = None  # None: wherever JAX runs
    worker_function: str | None = None  # the worker's name for it; None: the operation's
    at_least: str | None = None  # the oldest version of `requires` that has it
    known_wrong: Callable[[tuple[int, ...]], str | None] | None = None  # (shape) -> why, or None

    def serves(self, platform: str) -> bool:
        """Whether it runs on this kind of device at all."""
        return self.platforms is None or platform in self.platforms

    def unavailable(self, platform: str) -> str | None:
        """Why it cannot run here, if it cannot."""
        if not self.serves(platform):
            return f"not on {platform}"
        if self.requires and importlib.util.find_spec(self.requires) is None:
            return "not installed"
        if self.requires and self.at_least and _version(self.requires) < _parts(self.at_least):
            return f"needs {self.requires} {self.at_least}"
        return None

    @property
    def name_in_worker(self) -> str:
        """What its worker knows it by."""
        return self.worker_function or self.operation


_IMPLEMENTATIONS: list[Implementation] = []


def of(operation: str) -> list[Implementation]:
    """Every implementation of an operation, in the order in which they were registered."""
    return [known for known in _IMPLEMENTATIONS if known.operation == operation]


def implements(operation: str, peer: str, **how: Any) -> Callable[..., Any]:
    """Register the decorated function; `how` are further fields of `Implementation`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _IMPLEMENTATIONS.append(Implementation(operation, peer, function, **how))
        return function

    return register


def in_torch(operation: str, peer: str, *, requires: str = "torch", **how: Any) -> None:
    """Register a function of the PyTorch worker."""
    platforms = how.pop("platforms", _TORCH_PLATFORMS)
    _IMPLEMENTATIONS.append(
        Implementation(operation, peer, None, requires, TORCH_WORKER, platforms, **how)
    )


def _version(module: str) -> tuple[int, ...]:
    return _parts(importlib.metadata.version(module))


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
