"""Docstrings for the site: plain text with indented formulas becomes what Sphinx reads.

The docstrings are written for `help()`: Google's sections, some of our own, and formulas indented
between paragraphs.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Raises|Example):$")  # napoleon reads these
# Plain text; what napoleon would make of a colon in Returns is a type.
OWN_SECTION = re.compile(r"(Returns|Gradients|Source):(.*)")


def prepare(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Indented formulas are literal; our own sections are paragraphs that open in bold."""
    written: list[str] = []
    place = "text"  # or "theirs", a section of napoleon's; "ours"; "formula"
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            own = OWN_SECTION.match(line)
            place = "ours" if own else "theirs" if SECTION.match(line) else "text"
            line = f"**{own[1]}.**{own[2]}" if own else line
        elif indented and place == "ours":
            line = line.strip()
        elif indented and place == "text" and written and not written[-1]:
            written += ["::", ""]
            place = "formula"
        written.append(line)
    lines[:] = written


def setup(app: Sphinx) -> dict[str, bool]:
    """An extension of Sphinx, before napoleon."""
    app.connect("autodoc-process-docstring", prepare, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
