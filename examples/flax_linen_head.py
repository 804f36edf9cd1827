"""A Flax Linen model whose last layer is the loss's: no logits while it learns.

pip install "jaxsoftmax[examples]"
python examples/flax_linen_head.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

from jaxsoftmax import linear_cross_entropy


class Classifier(nn.Module):
    """64 pixels -> 10 digits, the head apart from the body."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N, 64] -> what the head sees [N, 128], and its logits [N, 10], for prediction."""
        hidden = nn.relu(nn.Dense(128, name="body")(images))
        return hidden, nn.Dense(10, name="head")(hidden)


def train(steps: int = 100) -> list[float]:
    """The loss on all 1797 digits, step by step."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    model, optimizer = Classifier(), optax.adam(3e-3)
    variables = model.init(jax.random.key(0), images)

    def loss_of(variables):
        hidden, _ = model.apply(variables, images)  # unused logits are not computed under jit
        head = variables["params"]["head"]  # Dense's kernel is [D, V]
        return linear_cross_entropy(hidden, head["kernel"], labels, head["bias"])

    @jax.jit
    def step(variables, state):
        loss, gradient = jax.value_and_grad(loss_of)(variables)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, updates), state, loss

    losses, state = [], optimizer.init(variables)
    for _ in range(steps):
        variables, state, loss = step(variables, state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
