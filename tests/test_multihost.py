"""The multi-process example: the same losses as one process, and an end when something dies."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "multihost.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.exhaustive
def test_processes_learn_what_one_learns():
    """Three, over which 4001 classes do not divide."""
    done = run("--processes", "3", "--steps", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    losses = [[float(number) for number in row[1:3]] for row in rows if len(row) == 4]
    assert len(losses) == 4
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert losses[-1][0] < 0.99 * losses[0][0]


@pytest.mark.exhaustive
def test_a_process_that_dies_ends_the_run():
    start = time.monotonic()
    done = run("--processes", "2", "--steps", "200", "--crash-at", "2", "--timeout", "100")
    assert done.returncode == 1
    assert "process 1 died with status 9" in done.stderr or "lost the others" in done.stderr
    assert "the run is over" in done.stderr
    assert time.monotonic() - start < 120


@pytest.mark.exhaustive
def test_a_coordinator_that_is_not_there_ends_the_run():
    start = time.monotonic()
    done = run("--processes", "2", "--rank", "1", "--coordinator", "127.0.0.1:9", "--timeout", "3")
    assert done.returncode == 1
    assert "process 1: the coordinator 127.0.0.1:9 could not be reached within 3 s" in done.stderr
    assert time.monotonic() - start < 30


def test_half_an_address_is_refused():
    done = run("--rank", "1")
    assert done.returncode == 2
    assert "--rank and --coordinator go together" in done.stderr
