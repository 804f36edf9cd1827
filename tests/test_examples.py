"""The examples run, say what they claim, and refuse what makes no sense."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("flax", "sklearn", "matplotlib", "rich"):
    pytest.importorskip(needed, reason=f"the examples need {needed}: the extra `examples`")

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_digits_learns_and_draws(tmp_path):
    picture = tmp_path / "digits.png"
    done = run("digits.py", "--epochs", "40", "--output", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "held out" in line]
    assert float(line.split()[-2].rstrip("%")) >= 97.0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_digits_says_that_it_did_not_learn(tmp_path):
    done = run("digits.py", "--epochs", "1", "--output", str(tmp_path / "digits.png"))
    assert done.returncode != 0
    assert "below 97%" in done.stderr


def test_digits_refuses_no_epochs(tmp_path):
    done = run("digits.py", "--epochs", "0", "--output", str(tmp_path / "digits.png"))
    assert done.returncode == 2
    assert "must be at least 1, got 0" in done.stderr
