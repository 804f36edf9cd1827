"""Draw the README's picture: `python docs/_tools/overview.py` (with the extra `docs`).

Left, the memory of a language model's head, from the committed results. Right, the loss of a
prediction that grows more confident, computed here in float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax

from jaxsoftmax import cross_entropy

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
OURS, OTHERS = "#0072B2", "#999999"  # colour-blind safe
GIB = 2**30
CLASSES = 10
MARGINS = np.linspace(0, 60, 121, dtype=np.float32)  # the label's logit less the others', in nats


def memory() -> dict[str, float]:
    """Temporaries of value and both gradients, in GiB, by what computes them."""
    rows = json.loads((ROOT / "benchmarks/results/memory-cpu.json").read_text())["suites"]["memory"]
    chosen = {"optax": "optax, all logits", "jaxsoftmax, default chunk": 'implementation="auto"'}
    chosen |= {"jaxsoftmax, streamed": 'implementation="streamed"'}
    return {
        chosen[row["peer"]]: row["temp_bytes"] / GIB
        for row in rows
        if row["peer"] in chosen
        and row["computed"] == "value and both gradients"
        and row["dtypes"] == "bfloat16"
    }


def draw_memory(axes: plt.Axes) -> None:
    """A bar for each program."""
    sizes = memory()
    order = sorted(sizes, key=lambda name: -sizes[name])[::-1]
    colours = [OTHERS if "optax" in name else OURS for name in order]
    bars = axes.barh(order, [sizes[name] for name in order], color=colours)
    axes.bar_label(bars, fmt=" %.1f GiB")
    axes.set(
        xlim=(0, 19), xticks=range(0, 16, 5), xlabel="GiB of temporaries, loss and both gradients"
    )
    axes.set_title("A head of 256,000 words, 8192 tokens, bfloat16", fontsize=10)


def draw_losses(axes: plt.Axes) -> None:
    """Both losses of a row whose label leads."""
    logits = jnp.zeros((len(MARGINS), CLASSES)).at[:, 0].set(MARGINS)
    labels = jnp.zeros(len(MARGINS), jnp.int32)
    usual = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    ours = np.asarray(cross_entropy(logits, labels, reduction="none"))
    last = int(np.flatnonzero(usual)[-1])
    axes.semilogy(MARGINS, ours, color=OURS, lw=2, label="jaxsoftmax")
    axes.semilogy(MARGINS[: last + 1], usual[: last + 1], color=OTHERS, lw=4, alpha=0.6, zorder=0)
    axes.semilogy(MARGINS[last], usual[last], "o", color=OTHERS, label="logsumexp(x) − x_y: then 0")
    axes.set(xlabel="the label's lead, in nats", ylabel="loss, float32")
    axes.set_title("The loss of a confident prediction", fontsize=10)
    axes.legend(frameon=False)


def main() -> None:
    """Write docs/overview.png."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    draw_memory(axes[0])
    draw_losses(axes[1])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs/overview.png", dpi=130)


if __name__ == "__main__":
    main()
