"""The options of a row: those that are Python numbers, and those that are arrays.

A Python number that stands for "off" is a branch never taken. An array is part of the program,
whatever its value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jax import Array

from jaxsoftmax._options import BOUNDS, LossOptions, Numbers, Traced
from jaxsoftmax._xla.masks import nan_where
from jaxsoftmax._xla.mesh import AxisName


class RowOptions(NamedTuple):
    """What the loss of a row depends on besides arrays of the logits' rows and classes."""

    label_smoothing: float | Array
    z_loss: float | Array
    soft_cap: float | Array | None
    temperature: float | Array
    focal_gamma: float
    poly_epsilon: float
    return_statistics: bool
    axis_name: AxisName


def row_options(options: LossOptions, numbers: Numbers, dtype: np.dtype) -> RowOptions:
    """A number that is out of bounds is NaN, and so is each loss that it goes into."""

    def value(name: str) -> Any:
        if getattr(options, name) is not Traced.ARRAY:
            return getattr(options, name)
        wide = getattr(numbers, name).astype(dtype)
        low, high, _ = BOUNDS[name]
        return nan_where(~((wide >= low) & (wide <= high)), wide)

    return RowOptions(*map(value, RowOptions._fields))


def is_on(number: float | Array, off: float = 0.0) -> bool:
    """Whether there is anything to compute."""
    return not isinstance(number, float) or number != off
