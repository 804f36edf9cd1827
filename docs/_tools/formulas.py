"""Formulas for the site: LaTeX becomes MathML while the pages are built.

Browsers draw MathML by themselves, with every script off and without a network. What they may lack
is a font that knows mathematics: STIX Two Math is cut down to what formulas use, and shipped.
"""

from __future__ import annotations

import importlib.resources
import logging
import re
from io import BytesIO
from pathlib import Path

from docutils import nodes
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it reports every table of a font

FONT = Path("_static", "STIXTwoMath.woff")
# ASCII and Latin-1, Greek, punctuation to mathematical operators, brackets, italic alphabets.
IN_FORMULAS = [(0x20, 0xFF), (0x2B0, 0x3FF), (0x2000, 0x23FF), (0x27C0, 0x27FF), (0x1D400, 0x1D7FF)]


OPENING = "|".join(["&#x00028;", "&#x0005B;", "&#x0003D;", "&#x0002C;"])  # ( [ = ,


def mathml(latex: str, display: str) -> str:
    """One formula, "inline" or as a "block"."""
    written = convert(latex, display=display)
    # A function's name is an identifier with space after it, not an operator between two others.
    written = re.sub(r"<mo>([A-Za-z]{2,})</mo>", r"<mi>\1</mi>", written)
    written = re.sub(r"(<mi>(?:log|exp)</mi>)(?!<mo)", r'\1<mspace width="0.17em"/>', written)
    # A minus after an opening bracket or a relation is a sign, and a slash stands close.
    minus = rf"(<mo[^>]*>(?:{OPENING})</mo>|<mrow>)<mo>&#x02212;</mo>"
    written = re.sub(
        minus, r'\1<mo form="prefix" lspace="0" rspace="0.06em">&#x02212;</mo>', written
    )
    written = re.sub(r"<mo>(/|&#x0002F;)</mo>", r'<mo lspace="0" rspace="0">/</mo>', written)
    return f'<span class="formula {display}">{written}</span>'


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """A formula by itself."""
    translator.body.append(mathml(node.astext(), "block"))
    raise nodes.SkipNode


def write_font(app: Sphinx, error: Exception | None) -> None:
    """STIX Two Math, a sixth of it."""
    if error is not None or app.builder.format != "html":
        return
    source = importlib.resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
    font = TTFont(BytesIO(source.read_bytes()))
    options = Options()
    options.layout_features = ["*"]
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=[c for first, last in IN_FORMULAS for c in range(first, last + 1)])
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(Path(app.outdir) / FONT)


def setup(app: Sphinx) -> dict[str, bool]:
    """An extension of Sphinx: the renderer `mathml`."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
