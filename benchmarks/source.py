"""Which code a result is of: a hash of the package's code, without docstrings and comments."""

from __future__ import annotations

import ast
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxsoftmax"


def source_hash(package: pathlib.Path = PACKAGE) -> str:
    """The first digits of a SHA-256 over the code of all Python files, names included."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(_code(path.read_text(encoding="utf-8")).encode() + b"\0")
    return digest.hexdigest()[:16]


def _code(text: str) -> str:
    """The lines that are no docstring, no comment and not empty."""
    lines = text.splitlines()
    with_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, with_docstring) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            for line in range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno):
                lines[line] = ""
    return "\n".join(line for line in lines if line.strip() and not line.strip().startswith("#"))


def is_current(environment: Mapping[str, Any]) -> bool:
    """Whether a run measured the package as it is now."""
    return environment.get("source") == source_hash()
