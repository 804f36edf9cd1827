"""The options of a loss: plain Python values, checked once, frozen and hashable.

Options are static under jit: an option that is off is a branch never taken, not a term times 0
(label smoothing of 0 times a log-probability of -inf would be NaN).
"""

from __future__ import annotations

import dataclasses
import enum
import numbers
import operator
from collections.abc import Hashable
from typing import Literal, NamedTuple, TypedDict, get_args

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Real

from jaxsoftmax._xla.mesh import Blocks

Reduction = Literal["none", "sum", "mean"]
Implementation = Literal["auto", "reference", "chunked", "streamed"]
KernelLayout = Literal["DV", "VD"]

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)  # of the normal numbers

# Options that are real numbers: the smallest and the largest, both included, and that in words.
BOUNDS: dict[str, tuple[float, float, str]] = {
    "label_smoothing": (0.0, 1.0, "in [0, 1]"),
    "z_loss": (0.0, _LARGEST, "a finite number >= 0"),
    "temperature": (
        _SMALLEST,
        1 / _SMALLEST,
        "a finite number > 0, normal in float32, and so its inverse",
    ),
    "soft_cap": (_SMALLEST, _LARGEST, "a finite number > 0, normal in float32"),
    "focal_gamma": (0.0, _LARGEST, "a finite number >= 0"),
    "poly_epsilon": (-_LARGEST, _LARGEST, "a finite number"),
    "beta": (0.0, 1.0, "in [0, 1]"),
}


class Traced(enum.Enum):
    """Stands for the value of an option that is an array."""

    ARRAY = "an array"


class Numbers(NamedTuple):
    """The arrays among the options that may be arrays; None for Python numbers."""

    label_smoothing: Array | None = None
    z_loss: Array | None = None
    soft_cap: Array | None = None
    temperature: Array | None = None


def check_number(name: str, number: float) -> float:
    """An error for a value that is out of bounds, NaN included."""
    low, high, expected = BOUNDS[name]
    if not low <= number <= high:
        raise ValueError(f"{name} must be {expected}, got {number}")
    return number


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Every option whose value is a Python number, string or bool."""

    reduction: Reduction = "mean"
    label_smoothing: float | Traced = 0.0
    ignore_index: int | tuple[int, ...] | None = None
    return_statistics: bool = False
    z_loss: float | Traced = 0.0
    soft_cap: float | Traced | None = None
    temperature: float | Traced = 1.0
    focal_gamma: float = 0.0
    poly_epsilon: float = 0.0
    beta: float = 0.0  # of a divergence
    axis_name: Hashable | None = None

    def __post_init__(self) -> None:
        """Check each value and store it as the plain Python type it stands for."""
        _one_of("reduction", self.reduction, Reduction)
        axis_name_of(self.axis_name)
        for name in BOUNDS:
            value = getattr(self, name)
            if value is not Traced.ARRAY and (name != "soft_cap" or value is not None):
                self._store(name, check_number(name, _number(name, value)))
        self._store("ignore_index", _indices("ignore_index", self.ignore_index))
        if not isinstance(self.return_statistics, bool):
            raise _error("return_statistics", self.return_statistics, "True or False")

    def _store(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearOptions(LossOptions):
    """And those of the loss without logits."""

    kernel_layout: KernelLayout = "DV"
    chunk_size: int | None = None
    implementation: Implementation = "auto"
    target_kernel_layout: KernelLayout | None = None  # of a divergence, whose target has a kernel

    def __post_init__(self) -> None:
        """Check these, too."""
        super().__post_init__()
        _one_of("kernel_layout", self.kernel_layout, KernelLayout)
        if self.target_kernel_layout is not None:
            _one_of("target_kernel_layout", self.target_kernel_layout, KernelLayout)
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


def _one_of(name: str, value: object, names: object) -> None:
    if not isinstance(value, str) or hasattr(value, "shape") or value not in get_args(names):
        expected = "one of " + ", ".join(map(repr, get_args(names)))
        raise _error(name, value, expected, ValueError)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _error(name, value, "a Python number")
    return float(value)


def _index(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _error(name, value, "a Python int or None")
    return operator.index(value)


def _indices(name: str, value: object) -> int | tuple[int, ...] | None:
    """One index, several, or none."""
    if not isinstance(value, tuple):
        return _index(name, value)
    found = [_index(name, index) for index in value]
    if None in found or not found:
        raise _error(name, value, "a Python int, a tuple of them, or None")
    return tuple(index for index in found if index is not None)


def _error(name: str, value: object, expected: str, kind: type[Exception] = TypeError) -> Exception:
    """For a value that is not what was expected; of an array, what to do instead."""
    if hasattr(value, "aval") or (hasattr(value, "shape") and not isinstance(value, numbers.Real)):
        return TypeError(
            f"{name} must be {expected}, known when the function is traced, got the array or "
            f"tracer {value!r}; under jit, mark it as a static argument or close over it (to learn "
            f"or to schedule a number, take temperature, z_loss, soft_cap or label_smoothing)"
        )
    return kind(f"{name} must be {expected}, got {value!r}")


def axis_name_of(value: object) -> Hashable | None:
    """The name of a mesh axis, a tuple of names, or None."""
    if value is None or isinstance(value, Blocks):
        return value
    names = value if isinstance(value, tuple) and value else (value,)
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
    label_smoothing: float | Array
    reduction: Reduction
    denominator: float | Array | None
    axis_name: str | tuple[str, ...] | None


class CrossEntropyKeywords(LossKeywords, total=False):
    """Of those that are given logits."""

    where: Bool[_Array, "..."] | None
    z_loss: float | Array
    soft_cap: float | Array | None
    temperature: float | Array
    focal_gamma: float
    poly_epsilon: float


class LinearKeywords(CrossEntropyKeywords, total=False):
    """Of the one that makes them."""

    kernel_layout: KernelLayout
    chunk_size: int | None
    implementation: Implementation
