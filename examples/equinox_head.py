"""An Equinox model whose last layer is the loss's: no logits while it learns.

pip install "jaxsoftmax[examples]"
python examples/equinox_head.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from jaxsoftmax import linear_cross_entropy


class Classifier(eqx.Module):
    """64 pixels -> 10 digits, the head apart from the body."""

    body: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, keys: jax.Array) -> None:
        self.body = eqx.nn.Linear(64, 128, key=keys[0])
        self.head = eqx.nn.Linear(128, 10, key=keys[1])

    def hidden(self, image: jax.Array) -> jax.Array:
        """[64] -> [128]: one image, as Equinox writes it."""
        return jax.nn.relu(self.body(image))


def loss_of(model: Classifier, images: jax.Array, labels: jax.Array) -> jax.Array:
    """eqx.nn.Linear's weight is [V, D], as a tied embedding is."""
    hidden, head = jax.vmap(model.hidden)(images), model.head
    return linear_cross_entropy(hidden, head.weight, labels, head.bias, kernel_layout="VD")


def train(steps: int = 100) -> list[float]:
    """The loss on all 1797 digits, step by step."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    model, optimizer = Classifier(jax.random.split(jax.random.key(0))), optax.adam(3e-3)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        loss, gradient = eqx.filter_value_and_grad(loss_of)(model, images, labels)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(steps):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
