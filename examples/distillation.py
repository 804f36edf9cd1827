"""Knowledge distillation: a small student learns from a teacher's distributions, not from labels.

    pip install "jaxsoftmax[examples]" && python examples/distillation.py

Soft labels are an array of the logits' shape. `temperature` softens the student as it does the
teacher; the gradients of the soft targets shrink with its square, which the factor restores
(Hinton, Vinyals and Dean, 2015).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from jaxsoftmax import cross_entropy, softmax

TEMPERATURE = 4.0


class Result(NamedTuple):
    """What the student was given, and what it made of it."""

    teacher_accuracy: float
    divergences: list[float]  # KL from the teacher to the student, step by step, in nats
    student_accuracy: float


def new(key, width):
    """A multilayer perceptron's parameters."""
    body, head = jax.random.split(key)
    return {
        "body": jax.random.normal(body, (64, width)) / 8,
        "head": jax.random.normal(head, (width, 10)) / jnp.sqrt(width),
    }


def logits_of(parameters, images):
    """[N, 64] -> [N, 10]."""
    return jax.nn.relu(images @ parameters["body"]) @ parameters["head"]


def fit(parameters, loss_of, steps):
    """Adam on a loss of the parameters alone; they and the losses."""
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(carry, _):
        parameters, state = carry
        loss, gradient = jax.value_and_grad(loss_of)(parameters)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), loss

    start = parameters, optimizer.init(parameters)
    (parameters, _), losses = jax.lax.scan(step, start, length=steps)
    return parameters, losses


def train(steps: int = 200) -> Result:
    """The teacher first, then the student, which never sees a label."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    first, second = jax.random.split(jax.random.key(0))
    teacher, _ = fit(new(first, 256), lambda p: cross_entropy(logits_of(p, images), labels), steps)
    soft = softmax(logits_of(teacher, images) / TEMPERATURE)
    # The cross entropy of the teacher with itself: what no student can get below.
    least = cross_entropy(logits_of(teacher, images), soft, temperature=TEMPERATURE)

    def loss_of(student):
        logits = logits_of(student, images)
        return TEMPERATURE**2 * cross_entropy(logits, soft, temperature=TEMPERATURE)

    student, losses = fit(new(second, 16), loss_of, steps)

    def accuracy(parameters):
        return float(jnp.mean(jnp.argmax(logits_of(parameters, images), axis=-1) == labels))

    divergences = losses / TEMPERATURE**2 - least
    return Result(accuracy(teacher), divergences.tolist(), accuracy(student))


if __name__ == "__main__":
    teacher_accuracy, divergences, student_accuracy = train()
    print(f"KL(teacher ‖ student) {divergences[0]:.3f} -> {divergences[-1]:.4f} nats")
    print(f"right answers: teacher {teacher_accuracy:.1%}, student {student_accuracy:.1%}")
