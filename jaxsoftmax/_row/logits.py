"""Options that act on a logit: `where`, `soft_cap`, `temperature`.

A class that does not exist has logit -inf, and keeps it through every option.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool

from jaxsoftmax._row.options import RowOptions, is_on
from jaxsoftmax._row.row import Temperature
from jaxsoftmax._xla.dtypes import PerClass, accumulator, widen
from jaxsoftmax._xla.masks import keep


def exclude(logits: PerClass, where: Bool[Array, "... C"] | None) -> PerClass:
    """Excluded classes at -inf; the select gives them a gradient of exactly 0."""
    if where is None:
        return logits
    return keep(logits, jnp.broadcast_to(where, logits.shape), -jnp.inf)


def capped(logits: PerClass, options: RowOptions) -> PerClass:
    """c · tanh(x / c), in the accumulator's dtype."""
    if options.soft_cap is None:
        return logits
    x = widen(logits)
    return keep(options.soft_cap * jnp.tanh(x / options.soft_cap), x != -jnp.inf, -jnp.inf)


def temperature_of(logits: PerClass, options: RowOptions) -> Temperature | None:
    """What divides differences of the logits."""
    number = options.temperature
    if not is_on(number, 1.0):
        return None
    t = jnp.asarray(number, accumulator(logits.dtype))
    low = number - float(np.asarray(number, t.dtype)) if isinstance(number, float) else 0.0
    return Temperature(t, low)
