"""A Flax NNX model whose last layer is the loss's: no logits while it learns.

pip install "jaxsoftmax[examples]"
python examples/flax_nnx_head.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jaxsoftmax import linear_cross_entropy


class Classifier(nnx.Module):
    """64 pixels -> 10 digits, the head apart from the body."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body = nnx.Linear(64, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def hidden(self, images: jax.Array) -> jax.Array:
        """[N, 64] -> [N, 128]."""
        return nnx.relu(self.body(images))

    def __call__(self, images: jax.Array) -> jax.Array:
        """[N, 64] -> logits [N, 10], for prediction."""
        return self.head(self.hidden(images))


def loss_of(model: Classifier, images: jax.Array, labels: jax.Array) -> jax.Array:
    """nnx.Linear's kernel is [D, V], as linear_cross_entropy takes it."""
    head = model.head
    return linear_cross_entropy(model.hidden(images), head.kernel[...], labels, head.bias[...])


@nnx.jit
def step(model: Classifier, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array):
    """One update; the loss before it."""
    loss, gradient = nnx.value_and_grad(loss_of)(model, images, labels)
    optimizer.update(model, gradient)
    return loss


def train(steps: int = 100) -> list[float]:
    """The loss on all 1797 digits, step by step."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    return [float(step(model, optimizer, images, labels)) for _ in range(steps)]


if __name__ == "__main__":
    losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
