"""The examples run, say what they claim, and refuse what makes no sense."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

for needed in ("flax", "optax", "sklearn", "matplotlib", "rich"):
    pytest.importorskip(needed, reason=f"the examples need {needed}: the extra `examples`")

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        capture_output=True,
        text=True,
        timeout=240,
    )


def run_here(name: str) -> dict[str, Any]:
    """What `python examples/NAME.py` leaves in its variables, in JAX as users have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


HEADS = {"flax_nnx": "flax", "flax_linen": "flax", "equinox": "equinox", "haiku": "haiku"}
HEAD_LINES = 60


@pytest.mark.parametrize("framework", HEADS)
def test_a_head_in_each_framework_learns(framework, capsys):
    package = HEADS[framework]
    pytest.importorskip(package, reason=f"this head needs {package}: the extra `examples`")
    losses = run_here(f"{framework}_head")["losses"]
    assert losses[0] == pytest.approx(np.log(10), rel=0.1)  # it starts from guessing
    assert losses[-1] < 0.15
    assert np.all(np.diff(losses[::20]) < 0)
    assert "loss" in capsys.readouterr().out
    assert len((EXAMPLES / f"{framework}_head.py").read_text().splitlines()) < HEAD_LINES


def test_one_denominator_makes_micro_batches_one_batch():
    errors = run_here("gradient_accumulation")["errors"]
    assert errors.with_denominator < 2e-6
    assert errors.mean_of_means > 0.1


def test_mixed_precision_learns_with_a_float32_loss():
    variables = run_here("mixed_precision")
    assert variables["losses"][-1] < 0.15 < 2.0 < variables["losses"][0]
    assert (variables["loss_dtype"], variables["gradient_dtype"]) == ("float32", "bfloat16")


def test_every_member_of_the_ensemble_learns_and_together_they_predict_better():
    variables = run_here("ensemble")
    assert float(variables["first"].min()) > 2.0
    assert float(variables["last"].max()) < 0.1
    # Jensen: the mean of the distributions is never worse than the mean of the losses.
    assert variables["together"] < float(variables["alone"].mean())


@pytest.mark.exhaustive
def test_the_policy_gets_better_from_rewards_alone():
    rewards = run_here("policy_gradient")["rewards"]
    assert np.mean(rewards[:5]) < 0.25
    assert np.mean(rewards[-5:]) > 0.75


@pytest.mark.exhaustive
def test_students_come_close_to_their_teacher(tmp_path):
    picture = tmp_path / "distillation.png"
    small = ["--steps", "60", "--batch", "8", "--width", "32", "--rate", "1e-2"]
    done = run("distillation.py", *small, "--output", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    printed = " ".join(done.stdout.split())  # however wide the terminal is
    before, after, student = re.search(
        r"student\) ([\d.]+) -> ([\d.]+) nats; .* student ([\d.]+)%", printed
    ).groups()
    assert float(after) < 0.03 * float(before)
    assert float(student) > 95.0
    row = r"{} │ +([\d.]+) │ +([\d.]+) MiB"
    students = {name: re.search(row.format(name), printed) for name in ("labels", "two heads")}
    perplexities = {name: float(found[1]) for name, found in students.items()}
    # Sixty steps of a small teacher: both learn, and come to about the same.
    assert max(perplexities.values()) < 400
    assert perplexities["two heads"] < 1.3 * perplexities["labels"]
    (unfused,) = re.findall(r"all logits │ not trained │ +([\d.]+) MiB", printed)
    assert 2 * float(students["two heads"][2]) < float(unfused)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive
def test_the_usual_loss_collapses_and_ours_does_not(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "collapse.png"
    options = ["--modulus", "23", "--steps", "2000", "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", ["softmax_collapse.py", *options])
    run_here("softmax_collapse")
    printed = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    step, ours = re.search(
        r"exactly 0 first at step (\d+); jaxsoftmax's ended at (\S+)", printed
    ).groups()
    assert 500 < int(step) < 1900
    assert 0.0 < float(ours) < 1e-9
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_softmax_collapse_refuses_no_steps(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["softmax_collapse.py", "--steps", "0"])
    with pytest.raises(SystemExit, match="2"):
        run_here("softmax_collapse")
    assert "--steps must be at least 2, got 0" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_digits_learns_and_draws(tmp_path):
    picture = tmp_path / "digits.png"
    done = run("digits.py", "--epochs", "40", "--output", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "held out" in line]
    assert float(line.split()[-2].rstrip("%")) >= 97.0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive
def test_digits_says_that_it_did_not_learn(tmp_path):
    done = run("digits.py", "--epochs", "1", "--output", str(tmp_path / "digits.png"))
    assert done.returncode != 0
    assert "below 97%" in done.stderr


def test_digits_refuses_no_epochs(tmp_path):
    done = run("digits.py", "--epochs", "0", "--output", str(tmp_path / "digits.png"))
    assert done.returncode == 2
    assert "must be at least 1, got 0" in done.stderr


def test_every_example_stands_in_the_index_with_a_picture():
    docs = EXAMPLES.parent / "docs"
    table = (docs / "examples.md").read_text().split(":::")[1]
    rows = re.findall(r"^\| (.*`) \| .*!\[[^\]]+\]\((\S+\.png)\)", table, re.MULTILINE)
    named = [script for scripts, _ in rows for script in re.findall(r"`(\w+\.py)`", scripts)]
    assert sorted(named) == sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert all((docs / picture).is_file() for _, picture in rows)
    pictures = {picture for _, picture in rows if picture.startswith("gallery/")}
    assert pictures == {f"gallery/{path.name}" for path in (docs / "gallery").glob("*.png")}
