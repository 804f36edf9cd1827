"""The language model example learns, weighs its loss, draws, and refuses what makes no sense."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("flax", "optax", "matplotlib", "rich"):
    pytest.importorskip(needed, reason=f"the examples need {needed}: the extra `examples`")

EXAMPLE = Path(__file__).parent.parent / "examples" / "language_model.py"
SMALL = ("--batch", "8", "--length", "64", "--width", "32", "--layers", "1")


def run(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--output", str(output), *options],
        capture_output=True,
        text=True,
        timeout=240,
    )


def numbers(text: str, pattern: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(pattern, text)]


@pytest.mark.exhaustive
def test_it_learns_more_than_the_frequencies_of_words(tmp_path):
    picture = tmp_path / "model.png"
    done = run(picture, *SMALL, "--steps", "200", "--rate", "1e-2")
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    (perplexity,) = numbers(out, r"held-out perplexity +│ +([\d.]+)")
    (unigram,) = numbers(out, r"frequencies +│ +([\d.]+)")
    (tokens, words) = numbers(out, r"([\d,]+) (?:tokens|words)\b")
    assert perplexity < unigram < words
    assert words >= 8000
    assert tokens > 100_000
    (fused,) = numbers(out, r"step, fused loss +│ +([\d.]+)")
    (unfused,) = numbers(out, r"unfused loss +│ +([\d.]+)")
    assert fused < unfused
    (speed,) = numbers(out, r"tokens per second +│ +([\d.]+)")
    assert speed > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive
def test_over_a_mesh_it_is_the_same_loss_and_sends_less(tmp_path):
    done = run(tmp_path / "model.png", *SMALL, "--steps", "1", "--fsdp", "2", "--tensor", "2")
    assert "A step over 2 fsdp x 2 tensor" in done.stdout, done.stdout + done.stderr
    row = r"│ {} +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+) MiB"
    (fused,) = re.findall(row.format("fused"), done.stdout)
    (unfused,) = re.findall(row.format("unfused"), done.stdout)
    assert float(fused[0]) == pytest.approx(float(fused[1]), rel=1e-5)
    assert float(fused[1]) == pytest.approx(float(unfused[1]), rel=1e-5)
    assert float(fused[2]) < float(unfused[2])


@pytest.mark.exhaustive
def test_it_says_that_it_did_not_learn(tmp_path):
    done = run(tmp_path / "model.png", *SMALL, "--steps", "1")
    assert done.returncode != 0
    assert "is not below" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "must be at least 1, got 0"),
        ("--vocabulary", "257", "must be more than the 257"),
        ("--width", "48", "must be a multiple of 32, got 48"),
        ("--batch", "1000000", "--batch must be at most"),
    ],
)
def test_it_refuses(tmp_path, option, value, message):
    done = run(tmp_path / "model.png", option, value)
    assert done.returncode == 2
    assert message in done.stderr
