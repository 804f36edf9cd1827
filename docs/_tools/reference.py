"""The pages of the reference, one for each public name, written while the site is built."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import jaxsoftmax
from jaxsoftmax import tuning

GROUPS = {
    "Losses": ("cross_entropy", "linear_cross_entropy", "nll_loss", "binary_cross_entropy"),
    "Divergences": ("kl_divergence", "linear_kl_divergence"),
    "Distributions": ("softmax", "log_softmax", "logsumexp"),
    "What goes in and comes out": ("SparseLabels", "LossStatistics"),
    "Closed forms": (
        "closed_form.softmax_jacobian",
        "closed_form.cross_entropy_gradient",
        "closed_form.cross_entropy_hessian",
    ),
    "Checks": ("debug_checks",),
    "Tuning": ("tuning",),
}
# What each computes, in LaTeX: the first thing on its page.
_DIVERGENCE = r"\operatorname{KL}(p \| q) = \sum_c p_c \, (\log p_c - \log q_c)"
FORMULAS = {
    "cross_entropy": r"\ell = -\frac{1}{N} \sum_n \sum_c y_{nc} \log \hat y_{nc},"
    r"\quad \hat y = \operatorname{softmax}(x)",
    "linear_cross_entropy": r"\ell = -\frac{1}{N} \sum_n \log \hat y_{n, y_n},"
    r"\quad \hat y = \operatorname{softmax}(h W + b)",
    "nll_loss": r"\ell = -\frac{1}{N} \sum_n \log \hat y_{n, y_n}",
    "binary_cross_entropy": r"\ell = -y \log \sigma(x) - (1 - y) \log \sigma(-x)",
    "kl_divergence": _DIVERGENCE
    + r", \quad q = \operatorname{softmax}(x), \ p = \operatorname{softmax}(y)",
    "linear_kl_divergence": _DIVERGENCE + r", \quad q = \operatorname{softmax}(h W + b),"
    r" \ p = \operatorname{softmax}(g U + c)",
    "softmax": r"\hat y_c = \frac{\exp x_c}{\sum_j \exp x_j}",
    "log_softmax": r"\log \hat y_c = x_c - \log \sum_j \exp x_j",
    "logsumexp": r"\operatorname{logsumexp}(x) = \log \sum_c \exp x_c",
    "closed_form.softmax_jacobian": r"\frac{\partial \hat y_i}{\partial x_j}"
    r" = \hat y_i \, (\delta_{ij} - \hat y_j)",
    "closed_form.cross_entropy_gradient": r"\frac{\partial \ell}{\partial x}"
    r" = \frac{1}{N} (\operatorname{softmax}(x) - y)",
    "closed_form.cross_entropy_hessian": r"\frac{\partial^2 \ell}{\partial x_i \partial x_j}"
    r" = p_i \, (\delta_{ij} - p_j)",
}
OF_TUNING = (tuning.Chunk, tuning.Device, tuning.Row)
# How the package abbreviates its types.
TYPES = {
    "_Weights": 'Real[Array, "..."] | Bool[Array, "..."] | None',
    "_Loss": 'Float[Array, "..."]',
    "_Array": "Array",
    "PerRow": 'Float[Array, "..."]',
    "PerNamed": 'Float[Array, "... K"]',
    "Index": 'Integer[Array, "..."]',
}
# Contexts are objects, whose first line of documentation says nothing by itself.
SUMMARIES = {"tuning": "How many tokens at a time on which device: a table to extend."}


def look_up(name: str) -> Any:
    """The object of a public name."""
    found: Any = jaxsoftmax
    for part in name.split("."):
        found = getattr(found, part)
    return found


def summary(name: str) -> str:
    """The first line of its documentation."""
    return SUMMARIES.get(name) or (look_up(name).__doc__ or "").strip().splitlines()[0]


def spelled_out(annotation: str) -> str:
    """Without abbreviations."""
    return re.sub("|".join(rf"\b{name}\b" for name in TYPES), lambda m: TYPES[m[0]], annotation)


def typed_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Each parameter with its type, as the source has it."""
    if not inspect.isfunction(obj):
        return None
    found = inspect.signature(obj)
    shown = [
        p.replace(annotation=_Verbatim(spelled_out(str(p.annotation))))
        for p in found.parameters.values()
    ]
    parameters = str(found.replace(parameters=shown, return_annotation=inspect.Signature.empty))
    return parameters, spelled_out(str(found.return_annotation))


class _Verbatim:
    """An annotation that `inspect` writes as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def fields(kind: type) -> str:
    """A table of a named tuple's fields, each with its type and the comment beside it."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines, tree = source.splitlines(), ast.parse(source)
    rows = ["| field | type | |", "|---|---|---|"]
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    for node in body:
        if isinstance(node, ast.AnnAssign):
            comment = lines[node.lineno - 1].partition("#")[2].strip()
            kind_of = spelled_out(ast.unparse(node.annotation)).replace("|", "\\|")
            rows.append(f"| `{ast.unparse(node.target)}` | `{kind_of}` | {comment} |")
    return "\n".join(rows)


def page(name: str) -> str:
    """The text of one page."""
    thing = look_up(name)
    head = f"---\nmyst:\n  html_meta:\n    description: {summary(name)!r}\n---\n\n# {name}\n\n"
    if name == "tuning":
        parts = ["```{eval-rst}\n.. automodule:: jaxsoftmax.tuning\n```\n"]
        for kind in OF_TUNING:
            parts.append(f"## {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n{fields(kind)}\n")
        return head + "\n".join(parts)
    if inspect.isclass(thing):
        return head + f"```{{eval-rst}}\n.. autoclass:: jaxsoftmax.{name}\n```\n\n{fields(thing)}\n"
    formula = f"$$\n{FORMULAS[name]}\n$$\n\n" if name in FORMULAS else ""
    return head + formula + f"```{{eval-rst}}\n.. autofunction:: jaxsoftmax.{name}\n```\n"


def table() -> str:
    """What there is, by group."""
    parts = []
    for group, names in GROUPS.items():
        rows = "\n".join(f"| [`{name}`](reference/{name}.md) | {summary(name)} |" for name in names)
        parts.append(f"## {group}\n\n| | |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def write_pages(app: Sphinx) -> None:
    """Into generated/reference/, and the table beside them."""
    folder = Path(app.srcdir) / "generated"
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    pages = {f"reference/{name}.md": page(name) for names in GROUPS.values() for name in names}
    intro = (Path(app.srcdir) / "_reference.md").read_text()
    names = "\n".join(f"reference/{name}" for names in GROUPS.values() for name in names)
    toctree = f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    pages["api.md"] = f"{intro}\n{table()}\n{toctree}"
    for name, text in pages.items():
        written = folder / name
        if not written.exists() or written.read_text() != text:
            written.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """An extension of Sphinx, before it looks for pages."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", typed_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
