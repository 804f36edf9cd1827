"""What a loss is asked for besides its arrays: plain Python values, checked once, hashable.

Options are static under jit: an option that is off is a branch never taken, not a term times 0
(label smoothing of 0 times a log-probability of -inf would be NaN).
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Hashable
from typing import Any

REDUCTIONS = ("none", "sum", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Every option whose value is a Python number, string or bool."""

    reduction: str = "mean"
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    return_statistics: bool = False
    z_loss: float = 0.0
    soft_cap: float | None = None
    temperature: float = 1.0
    axis_name: Hashable | None = None
    in_chunks: bool = False  # nobody's argument: the logits come in parts that nobody else has

    def __post_init__(self) -> None:
        """Check each value and store it as the plain Python type it stands for."""
        _check_reduction(self.reduction)
        smoothing = _number("label_smoothing", self.label_smoothing)
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {smoothing}")
        z_loss = _number("z_loss", self.z_loss)
        if not (z_loss >= 0.0 and math.isfinite(z_loss)):
            raise ValueError(f"z_loss must be a finite number >= 0, got {z_loss}")
        temperature = _positive("temperature", self.temperature)
        soft_cap = None if self.soft_cap is None else _positive("soft_cap", self.soft_cap)
        store = object.__setattr__  # the dataclass is frozen
        store(self, "label_smoothing", smoothing)
        store(self, "z_loss", z_loss)
        store(self, "temperature", temperature)
        store(self, "soft_cap", soft_cap)
        store(self, "ignore_index", _index("ignore_index", self.ignore_index))
        axis_name_of(self.axis_name)
        store(self, "return_statistics", _flag("return_statistics", self.return_statistics))


def _check_reduction(reduction: object) -> None:
    _reject_array("reduction", reduction, "one of " + ", ".join(map(repr, REDUCTIONS)))
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}"
        )


def _number(name: str, value: Any) -> float:
    _reject_array(name, value, "a Python number")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a Python number, got {value!r}")
    return float(value)


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if not (number > 0.0 and math.isfinite(number)):
        raise ValueError(f"{name} must be a finite number > 0, got {number}")
    return number


def _index(name: str, value: Any) -> int | None:
    _reject_array(name, value, "a Python int or None")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a Python int or None, got {value!r}")
    return operator.index(value)


def _flag(name: str, value: Any) -> bool:
    _reject_array(name, value, "True or False")
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _reject_array(name: str, value: Any, expected: str) -> None:
    if hasattr(value, "aval") or (hasattr(value, "shape") and not isinstance(value, numbers.Real)):
        raise TypeError(
            f"{name} must be {expected}, known when the function is traced, got the array or "
            f"tracer {value!r}; under jit, mark it as a static argument or close over it"
        )


def axis_name_of(value: Any) -> Hashable | None:
    """The name of a mesh axis, a tuple of names, or None."""
    names = value if isinstance(value, tuple) and value else (value,)
    if value is not None and not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"axis_name must be the name of a mesh axis, a tuple of names, or None, got {value!r}"
        )
    return value


def chunk_size_of(value: Any) -> int | None:
    """A number of tokens, or None."""
    tokens = _index("chunk_size", value)
    if tokens is not None and tokens < 1:
        raise ValueError(f"chunk_size must be at least 1, got {tokens}")
    return tokens
