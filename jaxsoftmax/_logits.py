"""What acts on a logit before it is looked at: `where`, `soft_cap`, `temperature`.

A class that does not exist has logit -inf, and keeps it through every option.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxsoftmax._options import LossOptions
from jaxsoftmax._precision import widen


def exclude(
    logits: Float[Array, "... C"], where: Bool[Array, "... C"] | None
) -> Float[Array, "... C"]:
    """Excluded classes at -inf; the select gives them a gradient of exactly 0."""
    return logits if where is None else jnp.where(where, logits, -jnp.inf)


def transform(logits: Float[Array, "... C"], options: LossOptions) -> Float[Array, "... C"]:
    """soft_cap(x) / temperature, in the accumulator's dtype where there is anything to do."""
    if options.soft_cap is not None:
        cap = options.soft_cap
        x = widen(logits)
        logits = jnp.where(x == -jnp.inf, -jnp.inf, cap * jnp.tanh(x / cap))
    if options.temperature != 1.0:
        logits = widen(logits) / options.temperature
    return logits
