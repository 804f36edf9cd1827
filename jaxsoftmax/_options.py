"""The options of a loss: plain Python values, checked once, frozen and hashable.

Options are static under jit: an option that is off is a branch never taken, not a term times 0
(label smoothing of 0 times a log-probability of -inf would be NaN).
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Real

from jaxsoftmax._xla.mesh import Blocks

Reduction = Literal["none", "sum", "mean"]
Implementation = Literal["auto", "reference", "chunked", "streamed"]
KernelLayout = Literal["DV", "VD"]

_FLOAT32 = np.finfo(np.float32)
_POSITIVE = (
    lambda x: float(_FLOAT32.tiny) <= x <= float(_FLOAT32.max),
    "a finite number > 0, normal in float32",
)
# The inverse is taken, too.
_INVERTIBLE = (
    lambda x: float(_FLOAT32.tiny) <= x <= 1 / float(_FLOAT32.tiny),
    "a finite number > 0, normal in float32, and so its inverse",
)
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "label_smoothing": (lambda x: 0.0 <= x <= 1.0, "in [0, 1]"),
    "z_loss": (lambda x: 0.0 <= x < math.inf, "a finite number >= 0"),
    "temperature": _INVERTIBLE,
    "soft_cap": _POSITIVE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Every option whose value is a Python number, string or bool."""

    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    ignore_index: int | tuple[int, ...] | None = None
    return_statistics: bool = False
    z_loss: float = 0.0
    soft_cap: float | None = None
    temperature: float = 1.0
    axis_name: Hashable | None = None

    def __post_init__(self) -> None:
        """Check each value and store it as the plain Python type it stands for."""
        _one_of("reduction", self.reduction, Reduction)
        axis_name_of(self.axis_name)
        for name, (holds, expected) in _NUMBERS.items():
            if name != "soft_cap" or self.soft_cap is not None:
                number = _number(name, getattr(self, name))
                if not holds(number):
                    raise ValueError(f"{name} must be {expected}, got {number}")
                self._store(name, number)
        self._store("ignore_index", _indices("ignore_index", self.ignore_index))
        _reject_array("return_statistics", self.return_statistics, "True or False")
        if not isinstance(self.return_statistics, bool):
            raise TypeError(
                f"return_statistics must be True or False, got {self.return_statistics!r}"
            )

    def _store(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearOptions(LossOptions):
    """And those of the loss without logits."""

    kernel_layout: KernelLayout = "DV"
    chunk_size: int | None = None
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        """Check these, too."""
        super().__post_init__()
        _one_of("kernel_layout", self.kernel_layout, KernelLayout)
        _one_of("implementation", self.implementation, Implementation)
        tokens = _index("chunk_size", self.chunk_size)
        if tokens is not None and tokens < 1:
            raise ValueError(f"chunk_size must be at least 1, got {tokens}")
        if tokens is not None and self.implementation == "reference":
            raise ValueError(
                f'chunk_size={tokens} is for "chunked" and "streamed", got '
                'implementation="reference", which has all logits at once'
            )
        self._store("chunk_size", tokens)


def _one_of(name: str, value: object, names: Any) -> None:
    expected = "one of " + ", ".join(map(repr, get_args(names)))
    _reject_array(name, value, expected)
    if not isinstance(value, str) or value not in get_args(names):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _number(name: str, value: object) -> float:
    _reject_array(name, value, "a Python number")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a Python number, got {value!r}")
    return float(value)


def _index(name: str, value: object) -> int | None:
    _reject_array(name, value, "a Python int or None")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a Python int or None, got {value!r}")
    return operator.index(value)


def _indices(name: str, value: object) -> int | tuple[int, ...] | None:
    """One index, several, or none."""
    if not isinstance(value, tuple):
        return _index(name, value)
    found = tuple(_index(name, index) for index in value)
    if None in found or not found:
        raise TypeError(f"{name} must be a Python int, a tuple of them, or None, got {value!r}")
    return tuple(index for index in found if index is not None)


def _reject_array(name: str, value: object, expected: str) -> None:
    if hasattr(value, "aval") or (hasattr(value, "shape") and not isinstance(value, numbers.Real)):
        raise TypeError(
            f"{name} must be {expected}, known when the function is traced, got the array or "
            f"tracer {value!r}; under jit, mark it as a static argument or close over it"
        )


def axis_name_of(value: object) -> Hashable | None:
    """The name of a mesh axis, a tuple of names, or None."""
    names = value if isinstance(value, tuple) and value else (value,)
    if value is None or isinstance(value, Blocks):
        return value
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"axis_name must be the name of a mesh axis, a tuple of names, or None, got {value!r}"
        )
    return value


# --- the same as type checkers see them, in overloads ---------------------------------------------

_Array = Array | np.ndarray


class LossKeywords(TypedDict, total=False):
    """Of every loss over classes."""

    class_weights: Float[_Array, "C"] | None
    example_weights: Real[_Array, "..."] | Bool[_Array, "..."] | None
    ignore_index: int | tuple[int, ...] | None
    label_smoothing: float
    reduction: Reduction
    denominator: float | Array | None
    axis_name: str | tuple[str, ...] | None


class CrossEntropyKeywords(LossKeywords, total=False):
    """Of those that are given logits."""

    where: Bool[_Array, "..."] | None
    z_loss: float
    soft_cap: float | None
    temperature: float


class LinearKeywords(CrossEntropyKeywords, total=False):
    """Of the one that makes them."""

    kernel_layout: KernelLayout
    chunk_size: int | None
    implementation: Implementation
