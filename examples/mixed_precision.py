"""bfloat16 parameters and activations, float32 loss; float32 copies for the optimiser.

    pip install "jaxsoftmax[examples]" && python examples/mixed_precision.py

The products run in bfloat16 and accumulate in float32; the loss is float32 and its gradients come
back in bfloat16, the dtype of what they are taken of.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from jaxsoftmax import linear_cross_entropy


class Result(NamedTuple):
    """The losses, step by step, and in which dtypes all this ran."""

    losses: list[float]
    loss_dtype: str
    gradient_dtype: str


def loss_of(parameters, images, labels):
    """One hidden layer, then the head."""
    hidden = jax.nn.relu(images @ parameters["body"])
    return linear_cross_entropy(hidden, parameters["head"], labels)


def train(steps: int = 100) -> Result:
    """The loss on all 1797 digits, step by step."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.bfloat16), jnp.asarray(digits, jnp.int32)
    body, head = jax.random.split(jax.random.key(0))
    master = {  # float32: an update of 3e-3 to a bfloat16 weight of 1 would be lost
        "body": jax.random.normal(body, (64, 128)) / 8,
        "head": jax.random.normal(head, (128, 10)) / 11,
    }
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(master, state):
        parameters = optax.tree.cast(master, jnp.bfloat16)
        loss, gradient = jax.value_and_grad(loss_of)(parameters, images, labels)
        updates, state = optimizer.update(optax.tree.cast(gradient, jnp.float32), state)
        return optax.apply_updates(master, updates), state, loss, gradient

    losses, state = [], optimizer.init(master)
    for _ in range(steps):
        master, state, loss, gradient = step(master, state)
        losses.append(float(loss))
    return Result(losses, str(loss.dtype), str(gradient["head"].dtype))


if __name__ == "__main__":
    losses, loss_dtype, gradient_dtype = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
    print(f"loss in {loss_dtype}, gradients in {gradient_dtype}")
