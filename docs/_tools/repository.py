"""Pages that live elsewhere in the repository, brought into the site while it is built."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are not installed
from sphinx.application import Sphinx

from benchmarks.source import is_current

PAGES = {
    "benchmarks": "benchmarks/README.md",
    "results": "benchmarks/results/cpu.md",
    "compiled": "benchmarks/results/elsewhere.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}
# Of pages that open without one.
TITLES = {"results": "Benchmark results on a CPU", "compiled": "Compiled, not run"}
# The documents that such a page shows.
DOCUMENTS = {"results": "*-cpu.json", "compiled": "*-[th]*.json"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)]*)\)")


def older_than_the_code(root: Path, pattern: str) -> str:
    """Which documents behind a page did not measure the package as it is."""
    found = sorted((root / "benchmarks/results").glob(pattern))
    environments = {path.name: json.loads(path.read_text())["environment"] for path in found}
    older = [f"`{name}`" for name, known in environments.items() if not is_current(known)]
    if not older:
        return ""
    return f"The package has changed since these were measured: {', '.join(older)}.\n\n"


def write_pages(app: Sphinx) -> None:
    """Into generated/; a link to a file beside the page becomes that file's name."""
    source = Path(app.srcdir)
    folder = source / "generated"
    folder.mkdir(exist_ok=True)
    for name, path in PAGES.items():
        beside = Path(path).parent

        def located(match: re.Match[str], beside: Path = beside) -> str:
            picture, _, target = match.groups()
            where = (beside / target).as_posix()
            return f"![{match[2]}](../../{where})" if picture else f"`{where}`"

        text = LINK.sub(located, (source.parent / path).read_text())
        if name in TITLES:
            text = (
                f"# {TITLES[name]}\n\n{older_than_the_code(source.parent, DOCUMENTS[name])}{text}"
            )
        written = folder / f"{name}.md"
        if not written.exists() or written.read_text() != text:
            written.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """An extension of Sphinx, before it looks for pages."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
