"""An ensemble is a vmap: sixteen classifiers learn at once, and predict better together.

pip install "jaxsoftmax[examples]"
python examples/ensemble.py
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxsoftmax import cross_entropy, log_softmax, logsumexp, nll_loss

MEMBERS = 16


class Result(NamedTuple):
    """Losses on the digits learned from and on those held out, in nats per digit."""

    first: jax.Array  # [MEMBERS], before the first step
    last: jax.Array  # [MEMBERS], before the last one
    alone: jax.Array  # [MEMBERS], held out
    together: float  # of the mean of the members' distributions, held out


def new(key):
    """One member's parameters."""
    body, head = jax.random.split(key)
    return {
        "body": jax.random.normal(body, (64, 32)) / 8,
        "head": jax.random.normal(head, (32, 10)) / 6,
    }


def logits_of(parameters, images):
    """[N, 64] -> [N, 10]."""
    return jax.nn.relu(images @ parameters["body"]) @ parameters["head"]


def loss_of(parameters, images, labels):
    """One member's mean loss."""
    return cross_entropy(logits_of(parameters, images), labels)


def train(steps: int = 150) -> Result:
    """Every member on the same digits, from a start of its own."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    learned, held_out = map(
        jnp.asarray, train_test_split(jnp.arange(len(digits)), test_size=0.5, random_state=0)
    )
    ensemble = jax.vmap(new)(jax.random.split(jax.random.key(0), MEMBERS))
    optimizer = optax.adam(1e-2)
    every = (0, None, None)  # each member's parameters, the same digits for all

    @jax.jit
    def step(ensemble, state):
        gradients_of = jax.vmap(jax.value_and_grad(loss_of), every)
        losses, gradients = gradients_of(ensemble, images[learned], labels[learned])
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(ensemble, updates), state, losses

    history, state = [], optimizer.init(ensemble)
    for _ in range(steps):
        ensemble, state, losses = step(ensemble, state)
        history.append(losses)
    alone = jax.vmap(loss_of, every)(ensemble, images[held_out], labels[held_out])
    logits = jax.vmap(logits_of, (0, None))(ensemble, images[held_out])  # [MEMBERS, N, 10]
    together = logsumexp(log_softmax(logits), axis=0) - jnp.log(MEMBERS)  # log of the mean
    return Result(history[0], history[-1], alone, float(nll_loss(together, labels[held_out])))


if __name__ == "__main__":
    first, last, alone, together = train()
    print(f"each learns: {first.mean():.3f} -> {last.mean():.3f}, worst {last.max():.3f}")
    print(f"held out: alone {alone.mean():.3f} (best {alone.min():.3f}), together {together:.3f}")
