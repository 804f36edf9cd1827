"""Train a digit classifier with jaxsoftmax: the chapter from logits to a confusion matrix.

    pip install "jaxsoftmax[examples]"
    python examples/digits.py

A multilayer perceptron (Flax NNX) learns scikit-learn's 1797 handwritten digits of 8 x 8 pixels
by the negative log-likelihood of its log-softmax, with Adam (optax). It prints loss and accuracy
on the digits it learns from and on those held out, and draws one picture beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split

from jaxsoftmax import log_softmax, nll_loss, softmax

mpl.use("Agg")
import matplotlib.pyplot as plt

CLASSES = 10
PIXELS = 64
REQUIRED_ACCURACY = 0.97

TRAIN, HELD_OUT, SURE, ERROR = "#0072B2", "#D55E00", "#56B4E9", "#CC3311"  # colour-blind safe


class Digits(NamedTuple):
    """Images and what they show."""

    images: np.ndarray  # [N, 64], 0 to 1
    labels: np.ndarray  # [N], 0 to 9


class History(NamedTuple):
    """The learning curves: one entry an epoch."""

    train_loss: list[float]
    train_accuracy: list[float]
    held_out_loss: list[float]
    held_out_accuracy: list[float]


class Classifier(nnx.Module):
    """Pixels -> logits; softmax is the loss's business."""

    def __init__(self, rngs: nnx.Rngs, width: int = 512) -> None:
        self.first = nnx.Linear(PIXELS, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[N, 64] -> [N, 10]."""
        return self.last(self.dropout(nnx.relu(self.first(images))))


def loss_of(model: Classifier, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The chapter's −1/N Σ log ŷ_y."""
    return nll_loss(log_softmax(model(images)), labels)


@nnx.jit
def learn(
    model: Classifier, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """One epoch: images [batches, batch, 64], labels [batches, batch]."""

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def step(carry, batch):  # type: ignore[no-untyped-def]
        model, optimizer = carry
        loss, gradient = nnx.value_and_grad(loss_of)(model, *batch)
        optimizer.update(model, gradient)
        return (model, optimizer), loss

    _, losses = step((model, optimizer), (images, labels))
    return losses


@nnx.jit
def evaluate(
    model: Classifier, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, accuracy, and the distributions [N, 10]."""
    logits = model(images)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    return nll_loss(log_softmax(logits), labels), accuracy, softmax(logits)


def read_digits(seed: int) -> tuple[Digits, Digits]:
    """Three quarters to learn from, a quarter held out, each digit in proportion."""
    digits = load_digits()
    images = (digits.data / 16.0).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target.astype(np.int32), test_size=0.25, stratify=digits.target,
        random_state=seed,
    )  # fmt: skip
    return Digits(train_x, train_y), Digits(test_x, test_y)


def train(
    train_set: Digits, held_out: Digits, *, epochs: int, batch: int, seed: int, console: Console
) -> tuple[np.ndarray, History]:
    """Fit a classifier; its distributions on the held-out digits [N, 10], and how it got there."""
    model = Classifier(nnx.Rngs(seed))
    batches = len(train_set.labels) // batch
    schedule = optax.cosine_decay_schedule(3e-3, epochs * batches)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
    random = np.random.default_rng(seed)
    history = History([], [], [], [])
    for _ in track(range(epochs), description="Learning digits", console=console):
        order = random.permutation(len(train_set.labels))[: batches * batch].reshape(batches, batch)
        model.train()
        learn(model, optimizer, train_set.images[order], train_set.labels[order])
        model.eval()
        loss, accuracy, _ = evaluate(model, *train_set)
        history.train_loss.append(float(loss))
        history.train_accuracy.append(float(accuracy))
        loss, accuracy, distributions = evaluate(model, *held_out)
        history.held_out_loss.append(float(loss))
        history.held_out_accuracy.append(float(accuracy))
    return np.asarray(distributions), history


def draw(held_out: Digits, distributions: np.ndarray, history: History, path: Path) -> None:
    """Learning curves, a few distributions beside their digits, the confusion matrix."""
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"})
    figure = plt.figure(figsize=(13.5, 7), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1.0, 1.0, 1.15])
    draw_curves(left, history)
    draw_distributions(middle, held_out, distributions)
    draw_confusion(right, held_out.labels, distributions.argmax(-1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_curves(figure: mpl.figure.SubFigure, history: History) -> None:
    """Loss and accuracy over the epochs, both on the scale that shows the end of learning."""
    loss, error = figure.subplots(2, 1, sharex=True)
    epochs = np.arange(1, len(history.train_loss) + 1)
    least = 0.5 / 1797  # no error at all has no logarithm
    curves = (
        ("training", TRAIN, history.train_loss, history.train_accuracy),
        ("held out", HELD_OUT, history.held_out_loss, history.held_out_accuracy),
    )
    for name, colour, losses, accuracies in curves:
        loss.semilogy(epochs, losses, color=colour, label=name, lw=2)
        wrong = 100 * np.maximum(1.0 - np.asarray(accuracies), least)
        error.semilogy(epochs, wrong, color=colour, label=name, lw=2)
    loss.set(title="Negative log-likelihood", ylabel="nats per digit")
    loss.legend(frameon=False)
    final = history.held_out_accuracy[-1]
    error.set(title=f"Errors: {final:.1%} of held-out digits are right", xlabel="epoch")
    error.set_ylabel("% wrong (none at all: the bottom)")
    error.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    for axes in (loss, error):
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)


def draw_distributions(
    figure: mpl.figure.SubFigure, held_out: Digits, distributions: np.ndarray
) -> None:
    """Digits from the least to the most likely label, and what softmax says of each."""
    likelihood = np.take_along_axis(distributions, held_out.labels[:, None], axis=1)[:, 0]
    order = np.argsort(likelihood)
    chosen = [*order[:3], order[len(order) // 20], order[len(order) // 4], order[-1]]
    rows = figure.subplots(len(chosen), 2, width_ratios=[1, 4])
    figure.suptitle("softmax(x), the least sure of the truth first", fontsize=11, weight="bold")
    for (picture, bars), i in zip(rows, chosen, strict=True):
        truth, guess = held_out.labels[i], distributions[i].argmax()
        picture.imshow(held_out.images[i].reshape(8, 8), cmap="gray_r")
        picture.set(xticks=[], yticks=[])
        colours = [SURE] * CLASSES
        colours[guess] = ERROR
        colours[truth] = TRAIN
        bars.bar(np.arange(CLASSES), distributions[i], color=colours)
        verdict = "right" if guess == truth else f"taken for {guess}"
        bars.set_title(
            f"a {truth}, {verdict}", loc="right", fontsize=10, pad=2,
            color=TRAIN if guess == truth else ERROR,
        )  # fmt: skip
        bars.set(ylim=(0, 1.05), yticks=[0, 1], xticks=np.arange(CLASSES))
        bars.tick_params(labelbottom=bool(i == chosen[-1]), length=2)
        bars.spines[["top", "right"]].set_visible(False)
    rows[-1, 1].set_xlabel("digit (blue: the truth, red: the guess where wrong)")


def draw_confusion(figure: mpl.figure.SubFigure, labels: np.ndarray, guesses: np.ndarray) -> None:
    """Counts: right on the diagonal in blue, errors in red."""
    counts = confusion_matrix(labels, guesses, labels=np.arange(CLASSES))
    axes = figure.subplots()
    right = np.where(np.eye(CLASSES, dtype=bool), counts, np.nan)
    wrong = np.where(~np.eye(CLASSES, dtype=bool) & (counts > 0), counts, np.nan)
    axes.imshow(right, cmap="Blues", vmin=0, vmax=1.4 * np.nanmax(right))
    axes.imshow(wrong, cmap="Reds", vmin=0, vmax=max(4.0, 1.4 * np.nan_to_num(wrong).max()))
    for row, column in zip(*np.nonzero(counts), strict=True):
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=10)
    errors = int((labels != guesses).sum())
    axes.set(
        title=f"Confusion matrix: {errors} errors in {len(labels)} held-out digits",
        xlabel="predicted digit", ylabel="true digit",
        xticks=np.arange(CLASSES), yticks=np.arange(CLASSES),
    )  # fmt: skip
    axes.set_xticks(np.arange(CLASSES + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(CLASSES + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", lw=0.8)
    axes.tick_params(which="both", length=0)


def report(history: History, console: Console) -> None:
    """Loss and accuracy after the last epoch."""
    table = Table(title="After the last epoch")
    for column in ("digits", "loss", "accuracy"):
        table.add_column(column, justify="left" if column == "digits" else "right")
    table.add_row("training", f"{history.train_loss[-1]:.4f}", f"{history.train_accuracy[-1]:.2%}")
    table.add_row(
        "held out", f"{history.held_out_loss[-1]:.4f}", f"{history.held_out_accuracy[-1]:.2%}"
    )
    console.print(table)


def positive(text: str) -> int:
    """A number of epochs or examples."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main() -> None:
    """Read, train, report, draw."""
    parser = argparse.ArgumentParser(description="Train a digit classifier with jaxsoftmax.")
    parser.add_argument("--epochs", type=positive, default=100)
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("digits.png"))
    options = parser.parse_args()
    console = Console()

    train_set, held_out = read_digits(options.seed)
    if options.batch > len(train_set.labels):
        parser.error(f"--batch must be at most {len(train_set.labels)}, got {options.batch}")
    distributions, history = train(
        train_set, held_out, epochs=options.epochs, batch=options.batch, seed=options.seed,
        console=console,
    )  # fmt: skip
    report(history, console)
    draw(held_out, distributions, history, options.output)
    console.print(f"Picture: {options.output}")
    accuracy = history.held_out_accuracy[-1]
    if accuracy < REQUIRED_ACCURACY:
        raise SystemExit(
            f"held-out accuracy {accuracy:.2%} is below {REQUIRED_ACCURACY:.0%}: train longer"
        )


if __name__ == "__main__":
    main()
