"""Draw the index of the examples: `python docs/_tools/gallery.py` (extras `docs` and `examples`).

Each example that draws nothing by itself is run, and what it leaves in its variables is drawn into
docs/gallery/; names after the command draw only these. The other examples have their own pictures.
It takes about a minute on a CPU.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
INCHES, DOTS = (3.2, 2.0), 120
OURS, SECOND, THIRD, FOURTH = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # colour-blind safe
OTHERS = "#999999"
STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "axes.prop_cycle": mpl.cycler(color=[OURS, SECOND, THIRD, FOURTH]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
HEADS = {
    "Flax NNX": "flax_nnx_head",
    "Flax Linen": "flax_linen_head",
    "Equinox": "equinox_head",
    "Haiku": "haiku_head",
}
PROCESSES, STEPS = 4, 30  # of the example over several processes


def run(name: str) -> dict[str, Any]:
    """What an example leaves in its variables."""
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


def heads(axes: Axes) -> None:
    """The loss of the same model in each framework."""
    for framework, name in HEADS.items():
        axes.semilogy(run(name)["losses"], label=framework)
    axes.set(xlabel="step", ylabel="loss, nats")
    axes.legend()


def gradient_accumulation(axes: Axes) -> None:
    """How far both ways of accumulating are from the gradient of the whole batch."""
    errors = run("gradient_accumulation")["errors"]
    ways = {"mean of\nmeans": errors.mean_of_means, "one\ndenominator": errors.with_denominator}
    bars = axes.barh([*ways], [*ways.values()], color=[OTHERS, OURS], height=0.6)
    axes.bar_label(bars, fmt=" %.2g")
    axes.set(xscale="log", xlim=(1e-8, 50), xticks=[1e-8, 1e-6, 1e-4, 1e-2, 1])
    axes.set_xlabel("relative error of the gradient")


def mixed_precision(axes: Axes) -> None:
    """The loss, and in which types it and its gradients are."""
    of = run("mixed_precision")
    types = f"loss in {of['loss_dtype']},\ngradients in {of['gradient_dtype']}"
    axes.semilogy(of["losses"], label=types)
    axes.set(xlabel="step", ylabel="loss, nats")
    axes.legend()


def ensemble(axes: Axes) -> None:
    """The members' losses on digits held out, and the loss of their average."""
    of = run("ensemble")
    members = np.sort(np.asarray(of["alone"]))[::-1]
    axes.plot(range(1, len(members) + 1), members, "o", ms=4, color=OTHERS, label="a member")
    axes.axhline(members.mean(), color=OTHERS, ls=":", label="the members' mean")
    axes.axhline(of["together"], color=OURS, lw=2, label="the average of their distributions")
    axes.set(xlabel="members, sorted", ylabel="loss held out, nats", xticks=[1, 4, 8, 12, 16])
    below, above = members.mean() - of["together"], members[0] - of["together"]
    axes.set_ylim(of["together"] - below, members[0] + above)  # room for the line and the legend
    axes.legend()


def policy_gradient(axes: Axes) -> None:
    """The reward, which is the share of right answers."""
    axes.plot(run("policy_gradient")["rewards"])
    axes.set(xlabel="step", ylabel="mean reward", ylim=(0, 1))


def multihost(axes: Axes) -> None:
    """The losses that the run prints: over the processes, and in one."""
    command = [sys.executable, str(ROOT / "examples/multihost.py")]
    command += ["--processes", str(PROCESSES), "--steps", str(STEPS)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^ *(\d+) +([\d.]+) +([\d.]+) ", printed, re.MULTILINE)
    steps, sharded, alone = np.array(rows, np.float64).T
    axes.plot(steps, alone, color=OTHERS, lw=5, alpha=0.6, label="one process")
    axes.plot(steps, sharded, "o-", ms=4, label=f"vocabulary over {PROCESSES} processes")
    axes.set(xlabel="step", ylabel="loss, nats")
    axes.legend()


PICTURES: dict[str, Callable[[Axes], None]] = {
    "heads": heads,
    "gradient_accumulation": gradient_accumulation,
    "mixed_precision": mixed_precision,
    "ensemble": ensemble,
    "policy_gradient": policy_gradient,
    "multihost": multihost,
}


def main(names: list[str]) -> None:
    """Write docs/gallery/NAME.png, of all or of the names given."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    plt.rcParams.update(STYLE)
    folder = ROOT / "docs/gallery"
    folder.mkdir(exist_ok=True)
    for name in names or PICTURES:
        figure, axes = plt.subplots(figsize=INCHES)
        PICTURES[name](axes)
        figure.savefig(folder / f"{name}.png", dpi=DOTS, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
