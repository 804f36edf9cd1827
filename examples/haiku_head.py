"""A Haiku model whose last layer is the loss's: no logits while it learns.

pip install "jaxsoftmax[examples]"
python examples/haiku_head.py
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from jaxsoftmax import linear_cross_entropy


def classify(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N, 64] -> what the head sees [N, 128], and its logits [N, 10], for prediction."""
    hidden = jax.nn.relu(hk.Linear(128, name="body")(images))
    return hidden, hk.Linear(10, name="head")(hidden)


def train(steps: int = 100) -> list[float]:
    """The loss on all 1797 digits, step by step."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    model, optimizer = hk.without_apply_rng(hk.transform(classify)), optax.adam(3e-3)
    parameters = model.init(jax.random.key(0), images)
    state = optimizer.init(parameters)

    def loss_of(parameters):
        hidden, _ = model.apply(parameters, images)  # unused logits are not computed under jit
        head = parameters["head"]  # hk.Linear's w is [D, V]
        return linear_cross_entropy(hidden, head["w"], labels, head["b"])

    @jax.jit
    def step(parameters, state):
        loss, gradient = jax.value_and_grad(loss_of)(parameters)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, loss

    losses = []
    for _ in range(steps):
        parameters, state, loss = step(parameters, state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
