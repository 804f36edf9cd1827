"""Distillation without logits: a small language model learns from a larger one, in three ways.

    pip install "jaxsoftmax[examples]"
    python examples/distillation.py

First on scikit-learn's digits, where all logits are at hand (`kl_divergence`). Then on the language
model of `language_model.py`, whose vocabulary makes logits the largest array of a training step:

labels      the student alone, by the words themselves
top-k       the teacher's k largest probabilities of each token, stored beforehand, and what is left
            of 1 for the word itself (`SparseLabels`)
two heads   the teacher's last layer beside the student's, a chunk of tokens at a time
            (`linear_kl_divergence`)

All three students start from the same weights and see the same text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import jax
import jax.numpy as jnp
import language_model as lm
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from jaxsoftmax import (
    SparseLabels,
    cross_entropy,
    kl_divergence,
    linear_cross_entropy,
    linear_kl_divergence,
    softmax,
)

TEMPERATURE = 4.0  # of the digits
HELD_OUT_EVERY = 4  # of the digits
COLOURS = {"labels": "#999999", "top-k": "#D55E00", "two heads": "#0072B2"}  # colour-blind safe
MEASUREMENTS = 8
MIB = 2**20


# --- digits ---------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """What the student made of its teacher."""

    divergences: np.ndarray  # KL(teacher ‖ student), step by step, in nats
    teacher_accuracy: float  # on digits that neither saw
    student_accuracy: float


def perceptron(key: jax.Array, width: int) -> dict[str, jax.Array]:
    """A multilayer perceptron's parameters."""
    body, head = jax.random.split(key)
    return {
        "body": jax.random.normal(body, (64, width)) / 8,
        "head": jax.random.normal(head, (width, 10)) / jnp.sqrt(width),
    }


def logits_of(parameters: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """[N, 64] -> [N, 10]."""
    return jax.nn.relu(images @ parameters["body"]) @ parameters["head"]


def fit(parameters: dict[str, jax.Array], loss_of: Callable, steps: int) -> tuple:  # type: ignore[type-arg]
    """Adam on a loss of the parameters alone; they and the losses."""
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(carry, _):  # type: ignore[no-untyped-def]
        parameters, state = carry
        loss, gradient = jax.value_and_grad(loss_of)(parameters)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), loss

    (parameters, _), losses = jax.lax.scan(
        step, (parameters, optimizer.init(parameters)), length=steps
    )
    return parameters, losses


def distil_digits(steps: int) -> Digits:
    """The teacher first, then the student, which never sees a label.

    The gradients of softened logits shrink with the square of the temperature, which the factor
    restores (Hinton, Vinyals and Dean, 2015).
    """
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
    held_out = np.arange(len(digits)) % HELD_OUT_EVERY == 0
    seen = images[~held_out]
    first, second = jax.random.split(jax.random.key(0))
    of_labels = lambda p: cross_entropy(logits_of(p, seen), labels[~held_out])  # noqa: E731
    teacher, _ = fit(perceptron(first, 256), of_labels, steps)
    target = logits_of(teacher, seen)

    def loss_of(student: dict[str, jax.Array]) -> jax.Array:
        divergence = kl_divergence(logits_of(student, seen), target, temperature=TEMPERATURE)
        return TEMPERATURE**2 * divergence

    student, losses = fit(perceptron(second, 16), loss_of, steps)

    def accuracy(parameters: dict[str, jax.Array]) -> float:
        found = jnp.argmax(logits_of(parameters, images[held_out]), axis=-1)
        return float(jnp.mean(found == labels[held_out]))

    return Digits(np.asarray(losses) / TEMPERATURE**2, accuracy(teacher), accuracy(student))


# --- language model -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Some sequences, and what the teacher said of them."""

    tokens: jax.Array  # [batch, length]
    labels: jax.Array  # [batch, length]
    hidden: jax.Array  # the teacher's hidden states, [batch, length, width]
    top: SparseLabels  # its k largest probabilities, [batch, length, k]


class Student(NamedTuple):
    """How a training went."""

    held_out: list[float]  # nats a token, at each measurement
    temporaries: int  # bytes of the compiled step


def ask(
    teacher: lm.LanguageModel, tokens: jax.Array, labels: jax.Array, k: int
) -> tuple[jax.Array, SparseLabels]:
    """Hidden states, and the k largest probabilities of each token, a sequence at a time."""
    hidden, embedding = teacher(tokens), teacher.embed.embedding[...]

    def top_of(sequence: tuple[jax.Array, jax.Array]) -> SparseLabels:
        hidden, labels = sequence
        values, indices = jax.lax.top_k(softmax(hidden @ embedding.T), k)
        left = 1.0 - jnp.sum(values, axis=-1, keepdims=True)
        # A class that is named twice adds up.
        indices = jnp.concatenate([indices, labels[:, None]], axis=-1)
        return SparseLabels(indices, jnp.concatenate([values, left], axis=-1))

    return hidden, jax.lax.map(top_of, (hidden, labels))


def losses_of(embedding_of_teacher: jax.Array) -> dict[str, Callable]:  # type: ignore[type-arg]
    """The student's loss in each way; none holds an array of logits."""

    def labels(model: lm.LanguageModel, batch: Batch) -> jax.Array:
        return lm.fused_loss(model, batch.tokens, batch.labels)

    def top_k(model: lm.LanguageModel, batch: Batch) -> jax.Array:
        return linear_cross_entropy(
            model(batch.tokens),
            model.embed.embedding[...],
            batch.top,
            kernel_layout="VD",
            example_weights=batch.labels != lm.PADDING,
        )

    def two_heads(model: lm.LanguageModel, batch: Batch) -> jax.Array:
        return linear_kl_divergence(
            model(batch.tokens),
            model.embed.embedding[...],
            batch.hidden,
            embedding_of_teacher,
            kernel_layout="VD",
            target_kernel_layout="VD",
            example_weights=batch.labels != lm.PADDING,
        )

    return {"labels": labels, "top-k": top_k, "two heads": two_heads}


def of_all_logits(embedding_of_teacher: jax.Array) -> Callable:  # type: ignore[type-arg]
    """The divergence as it is usually computed, to weigh its training step."""

    def loss(model: lm.LanguageModel, batch: Batch) -> jax.Array:
        logits = model(batch.tokens) @ model.embed.embedding[...].T
        target = batch.hidden @ embedding_of_teacher.T
        each = optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(target))
        counts = batch.labels != lm.PADDING
        return jnp.sum(counts * each) / jnp.sum(counts)

    return loss


def new_model(width: int, layers: int, shape: argparse.Namespace, seed: int, steps: int) -> tuple:  # type: ignore[type-arg]
    """The structure and the state of a model and its optimizer."""
    model = lm.LanguageModel(shape.vocabulary, shape.length, width, layers, nnx.Rngs(seed))
    warmup = max(1, steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, shape.rate, warmup, warmup + steps + 1)
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    return nnx.split((model, nnx.Optimizer(model, chain, wrt=nnx.Param)))


def step_of(loss: Callable, structure: nnx.GraphDef) -> Callable:  # type: ignore[type-arg]
    """(state, batch) -> state."""

    def step(state: nnx.State, batch: Batch) -> nnx.State:
        model, optimizer = nnx.merge(structure, state)
        optimizer.update(model, nnx.grad(loss)(model, batch))
        return nnx.state((model, optimizer))

    return jax.jit(step)


def teach(train_set: lm.Texts, options: argparse.Namespace) -> lm.LanguageModel:
    """The larger model, by the words."""
    structure, state = new_model(2 * options.width, 2, options, 0, options.steps)
    step = lm.make_step(lm.fused_loss, structure, state)
    stream = lm.batches(train_set, options.batch, 0)
    for _ in range(options.steps):
        state, _ = step(state, *next(stream))
    return nnx.merge(structure, state)[0]


def learn(
    loss: Callable,  # type: ignore[type-arg]
    told: list[Batch],
    held_out: lm.Texts,
    options: argparse.Namespace,
) -> Student:
    """A student from the same start, on the batches that the teacher saw."""
    structure, state = new_model(options.width, 1, options, 1, options.steps)
    step = step_of(loss, structure).lower(state, told[0]).compile()
    evaluate = lm.make_evaluation(structure, held_out, options.batch)
    measured = [evaluate(state)]
    for part in np.array_split(np.arange(options.steps), MEASUREMENTS):
        for i in part:
            state = step(state, told[i % len(told)])
        measured.append(evaluate(state))
    return Student(measured, step.memory_analysis().temp_size_in_bytes)


def distil_language_model(options: argparse.Namespace, console: Console) -> dict[str, Student]:
    """The teacher, what it says of the text, and the three students."""
    words = [lm.words_of(source) for source in lm.read_sources()]
    chosen = [w for i, w in enumerate(words) if i % lm.HELD_OUT_EVERY]
    vocabulary = lm.make_vocabulary(chosen, options.vocabulary)
    train_set = lm.cut([lm.encode(w, vocabulary) for w in chosen], options.length)
    others = [lm.encode(w, vocabulary) for w in words[:: lm.HELD_OUT_EVERY]]
    held_out = lm.Texts(*(x[: lm.HELD_OUT_SEQUENCES] for x in lm.cut(others, options.length)))
    with console.status("The teacher learns"):
        teacher = teach(train_set, options)
    asked = nnx.jit(lambda teacher, *batch: ask(teacher, *batch, options.k))
    stream = lm.batches(train_set, options.batch, 0)
    told = []
    with console.status("The teacher is asked"):
        for _ in range(min(options.steps, len(train_set.tokens) // options.batch)):
            tokens, labels = map(jnp.asarray, next(stream))
            told.append(Batch(tokens, labels, *asked(teacher, tokens, labels)))
    kept = sum(x.nbytes for x in told[0].top) / told[0].tokens.size
    console.print(
        f"Of each token the teacher's top {options.k} are stored: {kept:.0f} bytes, where its "
        f"logits are {4 * options.vocabulary:,}."
    )
    embedding = teacher.embed.embedding[...]
    students = {}
    for name, loss in losses_of(embedding).items():
        with console.status(f"A student learns: {name}"):
            students[name] = learn(loss, told, held_out, options)
    weighed = argparse.Namespace(**{**vars(options), "steps": 0})
    students["all logits"] = learn(of_all_logits(embedding), told, held_out, weighed)
    return students


# --- report ---------------------------------------------------------------------------------------


def report(students: dict[str, Student], console: Console) -> None:
    """Perplexities, and what a training step allocates."""
    table = Table(title="Students of the language model")
    for column in ("learns from", "held-out perplexity", "temporaries of a step"):
        table.add_column(column, justify="left" if column == "learns from" else "right")
    for name, student in students.items():
        learned = f"{np.exp(student.held_out[-1]):.1f}" if name in COLOURS else "not trained"
        table.add_row(name, learned, f"{student.temporaries / MIB:.1f} MiB")
    console.print(table)


def draw(digits: Digits, students: dict[str, Student], options: argparse.Namespace) -> None:
    """The divergence of the digits, the students' perplexities, and the memory of a step."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    axes[0].semilogy(digits.divergences, color=COLOURS["two heads"])
    axes[0].set(title="Digits: KL(teacher ‖ student)", xlabel="step", ylabel="nats")
    at = np.linspace(0, options.steps, MEASUREMENTS + 1)
    for name, colour in COLOURS.items():
        axes[1].plot(at, np.exp(students[name].held_out), color=colour, label=name)
    axes[1].set(title="Language model", xlabel="step", ylabel="held-out perplexity", yscale="log")
    axes[1].legend(frameon=False)
    names = ["all logits", "two heads", "top-k"]
    sizes = [students[name].temporaries / MIB for name in names]
    bars = axes[2].barh(names, sizes, color=["#999999", COLOURS["two heads"], COLOURS["top-k"]])
    axes[2].bar_label(bars, fmt=" %.0f")
    axes[2].set(title="Temporaries of a training step", xlabel="MiB")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.output, dpi=130)


def main() -> None:
    """Both distillations, a table and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=lm.positive, default=400)
    parser.add_argument("--batch", type=lm.positive, default=16)
    parser.add_argument("--length", type=lm.positive, default=64)
    parser.add_argument("--width", type=lm.positive, default=64, help="the teacher has twice that")
    parser.add_argument("--vocabulary", type=lm.positive, default=8192)
    parser.add_argument("-k", type=lm.positive, default=16, help="classes that are stored")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--output", type=Path, default=Path("distillation.png"))
    options, console = parser.parse_args(), Console()
    digits = distil_digits(200)
    console.print(
        f"Digits: KL(teacher ‖ student) {digits.divergences[0]:.3f} -> "
        f"{digits.divergences[-1]:.4f} nats; right answers: teacher "
        f"{digits.teacher_accuracy:.1%}, student {digits.student_accuracy:.1%}"
    )
    students = distil_language_model(options, console)
    report(students, console)
    draw(digits, students, options)
    console.print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
