"""Options that act on a logit: `where`, `soft_cap`, `temperature`.

A class that does not exist has logit -inf, and keeps it through every option.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from jaxsoftmax._options import LossOptions
from jaxsoftmax._xla.dtypes import PerClass, widen
from jaxsoftmax._xla.masks import keep


def exclude(logits: PerClass, where: Bool[Array, "... C"] | None) -> PerClass:
    """Excluded classes at -inf; the select gives them a gradient of exactly 0."""
    if where is None:
        return logits
    return keep(logits, jnp.broadcast_to(where, logits.shape), -jnp.inf)


def transform(logits: PerClass, options: LossOptions) -> PerClass:
    """soft_cap(x) / temperature, in the accumulator's dtype where there is anything to do."""
    if options.soft_cap is not None:
        cap = options.soft_cap
        x = widen(logits)
        logits = keep(cap * jnp.tanh(x / cap), x != -jnp.inf, -jnp.inf)
    if options.temperature != 1.0:
        logits = widen(logits) / options.temperature
    return logits
