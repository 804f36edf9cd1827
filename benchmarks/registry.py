"""The registry of peers, filled by the modules in `peers`."""

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
    """A peer's implementation of an operation."""

    operation: str
    peer: str
    function: Callable[..., Any] | None  # None: the worker has it
    requires: str | None = None  # a module; the peer is "not installed" without it
    worker: str | None = None  # the module of its worker process
    platforms: tuple[str, ...] | None = None  # None: every platform of JAX
    worker_function: str | None = None  # its name in the worker; None: the operation
    at_least: str | None = None  # the oldest suitable version of `requires`
    known_wrong: Callable[[tuple[int, ...]], str | None] | None = None  # shape -> reason

    def serves(self, platform: str) -> bool:
        """Whether it supports this platform."""
        return self.platforms is None or platform in self.platforms

    def unavailable(self, platform: str) -> str | None:
        """The reason why it cannot run on this machine, or None."""
        if not self.serves(platform):
            return f"not on {platform}"
        if self.requires and importlib.util.find_spec(self.requires) is None:
            return "not installed"
        if self.requires and self.at_least and _version(self.requires) < _parts(self.at_least):
            return f"needs {self.requires} {self.at_least}"
        return None

    @property
    def name_in_worker(self) -> str:
        """Its name in the worker."""
        return self.worker_function or self.operation


_IMPLEMENTATIONS: list[Implementation] = []


def of(operation: str) -> list[Implementation]:
    """Every implementation of an operation, in order of registration."""
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
