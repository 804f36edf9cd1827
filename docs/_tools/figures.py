"""How the tutorial's figures look: drawn while the site is built, in the page's own colours."""

from __future__ import annotations

import io
import re

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#3B8BC9", "#E0752D", "#2FA37C", "#B468B0"  # on white and on black
COLOURS = [BLUE, ORANGE, GREEN, PURPLE]
INK = "#123456"  # stands for the page's text colour until the figure is written

plt.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.prop_cycle": mpl.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.2,
        "lines.linewidth": 2,
        "legend.frameon": False,
        "svg.hashsalt": "jaxsoftmax",  # the same picture from the same numbers
        **dict.fromkeys(
            ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
        ),
        "grid.color": INK,
    }
)


def show(figure: Figure, description: str) -> None:
    """A figure as HTML that scales with the page and follows light and dark."""
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = written.getvalue()[written.getvalue().index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
    caption = f"<figcaption>{description}</figcaption>"
    display(HTML(f'<figure class="drawn"><div>{svg}</div>{caption}</figure>'))
