"""Measurements that need a process of their own: its environment, its device count, its imports.

A child prints one JSON document as the last line of its standard output.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_ROOT = pathlib.Path(__file__).parents[1]
_LAST_LINES = 3  # of the error output, in the message


class ChildFailed(RuntimeError):
    """The child's last words."""


def run(
    arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> dict[str, Any]:
    """Run `python arguments...` from the clone's root and read its document."""
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"not done after {timeout_s:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        words = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise ChildFailed(" / ".join(words[-_LAST_LINES:])[:400] or f"exit {done.returncode}")
    return json.loads(lines[-1])
