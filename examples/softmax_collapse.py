"""Softmax collapse: the usual float32 loss becomes exactly 0 and learning ends; here it goes on.

    pip install "jaxsoftmax[examples]" && python examples/softmax_collapse.py

Modular addition, a + b mod 113, learned by a multilayer perceptron in float32 with Adam and no
weight decay, after Prieto et al., "Grokking at the Edge of Numerical Stability", arXiv 2501.04697.
Twice: with optax's loss and with jaxsoftmax's, from the same weights, on the same examples in the
same order. Once the right class leads by 17 nats, logsumexp(x) − x_y rounds to 0 in float32, and
p_y − 1 with it. What the run shows is that and no more: it does not ask whether the network
generalises.

It prints a table and draws a picture beside this file. About two minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from jax import Array
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxsoftmax import cross_entropy

mpl.use("Agg")
import matplotlib.pyplot as plt

TRAIN_SHARE = 0.4  # of all modulus² sums
WIDTH = 128
STEPS_AT_ONCE = 50  # between two looks at the progress bar

# Adam as in the literature on grokking (Power et al., 2022), but for ε: the usual 1e-8 is larger
# than the gradients that this is about, and slows both runs down by itself. At 1e-18 the square of
# a gradient is about to leave float32.
LEARNING_RATE = 1e-3
DECAYS = {"b1": 0.9, "b2": 0.98}

OURS, USUAL, TRUE = "#0072B2", "#D55E00", "#777777"

Parameters = dict[str, Array]
Loss = Callable[[Array, Array], Array]  # logits [N, C] and labels [N] to a scalar


class Experiment(NamedTuple):
    """What both runs share."""

    modulus: int
    steps: int
    seed: int
    epsilon: float  # Adam's


class Curves(NamedTuple):
    """What a run went through: one entry a step."""

    loss: np.ndarray  # as the loss that it learned with says
    true_loss: np.ndarray  # of the same logits, by jaxsoftmax


def usual_loss(logits: Array, labels: Array) -> Array:
    """The mean of logsumexp(x) − x_y."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def sums(modulus: int, seed: int) -> tuple[Array, Array]:
    """Pairs [N, 2] to learn from, and what they add up to."""
    numbers = np.arange(modulus)
    pairs = np.stack(np.meshgrid(numbers, numbers), axis=-1).reshape(-1, 2)
    count = int(TRAIN_SHARE * len(pairs))
    chosen = np.random.default_rng(seed).permutation(pairs)[:count]
    return jnp.asarray(chosen), jnp.asarray(chosen.sum(-1) % modulus)


def new(modulus: int, seed: int) -> Parameters:
    """Two layers on one-hot pairs, the first of which is two tables."""
    first, middle, last = jax.random.split(jax.random.key(seed), 3)
    return {
        "first": 0.1 * jax.random.normal(first, (2, modulus, WIDTH)),
        "middle": jax.random.normal(middle, (WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5,
        "last": jax.random.normal(last, (WIDTH, modulus)) * (1 / WIDTH) ** 0.5,
    }


def logits_of(parameters: Parameters, pairs: Array) -> Array:
    """[N, 2] -> [N, modulus]."""
    left, right = parameters["first"]
    hidden = jax.nn.relu(left[pairs[:, 0]] + right[pairs[:, 1]])
    return jax.nn.relu(hidden @ parameters["middle"]) @ parameters["last"]


def learn(loss_of_logits: Loss, experiment: Experiment, console: Console) -> Curves:
    """Full batches, one optimiser, one seed: only the loss differs between calls."""
    modulus, steps, seed, epsilon = experiment
    pairs, labels = sums(modulus, seed)
    optimizer = optax.adam(LEARNING_RATE, eps=epsilon, **DECAYS)

    def loss_of(parameters: Parameters) -> tuple[Array, Array]:
        logits = logits_of(parameters, pairs)
        return loss_of_logits(logits, labels), cross_entropy(logits, labels)

    @jax.jit
    def some_steps(carry):  # type: ignore[no-untyped-def]
        def step(carry, _):  # type: ignore[no-untyped-def]
            parameters, state = carry
            losses, gradient = jax.value_and_grad(loss_of, has_aux=True)(parameters)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(parameters, updates), state), losses

        return jax.lax.scan(step, carry, length=STEPS_AT_ONCE)

    start = new(modulus, seed)
    carry = start, optimizer.init(start)
    history = []
    rounds = -(-steps // STEPS_AT_ONCE)
    for _ in track(range(rounds), description=loss_of_logits.__name__, console=console):
        carry, losses = some_steps(carry)
        history.append(jax.device_get(losses))
    return Curves(*(np.concatenate(x)[:steps] for x in zip(*history, strict=True)))


def first_zero(loss: np.ndarray) -> int | None:
    """The step before which the loss is exactly 0 for the first time."""
    return int(np.argmin(loss)) if loss.min() == 0.0 else None


def report(usual: Curves, ours: Curves, modulus: int, console: Console) -> None:
    """The two runs, side by side."""
    table = Table(title=f"a + b mod {modulus}: the loss before a step, float32")
    for column in ("step", "optax", "the same logits, exactly", "jaxsoftmax"):
        table.add_column(column, justify="right")
    zero = first_zero(usual.loss)
    steps = set(np.linspace(0, len(ours.loss) - 1, 9).round().astype(int).tolist())
    for step in sorted(steps | ({zero} if zero is not None else set())):
        values = (usual.loss[step], usual.true_loss[step], ours.loss[step])
        table.add_row(f"{step}", *("0" if v == 0 else f"{v:.2e}" for v in values))
    console.print(table)
    where = "never was exactly 0" if zero is None else f"was exactly 0 first at step {zero}"
    console.print(f"optax's loss {where}; jaxsoftmax's ended at {ours.loss[-1]:.2e}")


def draw(usual: Curves, ours: Curves, modulus: int, path: Path) -> None:
    """Both losses over the steps; a loss of 0 has no logarithm, and no curve."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    steps = np.arange(len(ours.loss))
    axes.semilogy(steps, ours.loss, color=OURS, lw=2, label="jaxsoftmax")
    label = "the logits of optax's run, measured by jaxsoftmax"
    axes.semilogy(steps, usual.true_loss, color=TRUE, lw=1, ls="--", label=label)
    positive = np.where(usual.loss > 0, usual.loss, np.nan)
    axes.semilogy(steps, positive, color=USUAL, lw=2, label="optax (no curve: exactly 0)")
    zero = first_zero(usual.loss)
    if zero is not None:
        axes.axvline(zero, color=USUAL, lw=1, ls=":")
        text = f" exactly 0,\n the first time\n at step {zero}"
        axes.text(zero, axes.get_ylim()[1], text, color=USUAL, va="top")
    axes.set(
        title=f"Softmax collapse: a + b mod {modulus}, one model, one seed, float32",
        xlabel="step of Adam", ylabel="mean loss, nats",
    )  # fmt: skip
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Learn twice, report, draw."""
    parser = argparse.ArgumentParser(description="Softmax collapse in float32, and without it.")
    parser.add_argument("--modulus", type=int, default=113)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epsilon", type=float, default=1e-18, help="Adam's")
    parser.add_argument("--output", type=Path, default=Path("softmax_collapse.png"))
    options = parser.parse_args()
    for name in ("modulus", "steps"):
        if getattr(options, name) < 2:
            parser.error(f"--{name} must be at least 2, got {getattr(options, name)}")
    experiment = Experiment(options.modulus, options.steps, options.seed, options.epsilon)
    console = Console()
    usual, ours = (learn(loss, experiment, console) for loss in (usual_loss, cross_entropy))
    report(usual, ours, options.modulus, console)
    draw(usual, ours, options.modulus, options.output)
    console.print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
