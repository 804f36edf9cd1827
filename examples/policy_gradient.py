"""REINFORCE on digits: log-probability and entropy of the policy from `return_statistics`.

    pip install "jaxsoftmax[examples]" && python examples/policy_gradient.py

The policy sees an image and names a digit; it is told whether it was right, never what was. The
loss is −advantage · log π(action) − β · entropy(π), both taken from one pass over the logits.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from jaxsoftmax import linear_cross_entropy

ENTROPY_BONUS = 0.01


def loss_of(policy, images, actions, advantages):
    """The policy's loss for the actions that it took."""
    hidden = jax.nn.relu(images @ policy["body"])
    _, of = linear_cross_entropy(hidden, policy["head"], actions, return_statistics=True)
    return -jnp.mean(advantages * of.log_prob) - ENTROPY_BONUS * jnp.mean(of.entropy)


def act(policy, key, images):
    """An action for each image, drawn from the policy."""
    return jax.random.categorical(key, jax.nn.relu(images @ policy["body"]) @ policy["head"])


@partial(jax.jit, static_argnames="optimizer")
def step(optimizer, policy, state, baseline, key, images, labels):
    """Act, be rewarded, learn; the mean reward."""
    actions = act(policy, key, images)
    rewards = (actions == labels).astype(jnp.float32)
    gradient = jax.grad(loss_of)(policy, images, actions, rewards - baseline)
    updates, state = optimizer.update(gradient, state)
    reward = jnp.mean(rewards)
    baseline = 0.9 * baseline + 0.1 * reward
    return optax.apply_updates(policy, updates), state, baseline, reward


def train(steps: int = 200) -> list[float]:
    """The share of right answers, step by step."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    body, head, acting = jax.random.split(jax.random.key(0), 3)
    policy = {
        "body": jax.random.normal(body, (64, 128)) / 8,
        "head": jax.random.normal(head, (128, 10)) / 11,
    }
    optimizer = optax.adam(1e-2)
    state, baseline, rewards = optimizer.init(policy), jnp.zeros(()), []
    for key in jax.random.split(acting, steps):
        policy, state, baseline, reward = step(
            optimizer, policy, state, baseline, key, images, labels
        )
        rewards.append(float(reward))
    return rewards


if __name__ == "__main__":
    rewards = train()
    print(f"right answers {rewards[0]:.1%} -> {rewards[-1]:.1%} in {len(rewards)} steps")
