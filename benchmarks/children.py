"""Measurements in child processes, which have their own environment, device count and imports.

A child prints JSON documents, one per line of its standard output.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ROOT = pathlib.Path(__file__).parents[1]
_LAST_LINES = 3  # of the standard error, in the message
_LONGEST = 400  # characters of the message


class ChildFailed(RuntimeError):
    """The child failed; the message is the end of its standard error."""


def run(
    arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> dict[str, Any]:
    """Run `python arguments...` with the clone importable and return its last document."""
    documents = list(stream(arguments, environment, timeout_s))
    if not documents:
        raise ChildFailed("it printed no document")
    return documents[-1]


def stream(
    arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> Iterator[dict[str, Any]]:
    """Yield its documents as they are printed, also those printed before a failure or a timeout."""
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as child,
    ):
        stop = threading.Timer(timeout_s, child.kill)
        stop.start()
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        in_time = stop.is_alive()
        stop.cancel()
        if child.wait() != 0:
            errors.seek(0)
            words = [line for line in errors.read().strip().splitlines() if line.strip()]
            last = " / ".join(words[-_LAST_LINES:])[:_LONGEST] or f"exit {child.returncode}"
            raise ChildFailed(last if in_time else f"timed out after {timeout_s:.0f} s")
