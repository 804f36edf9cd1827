"""The README's code, pasted into a fresh process, prints what its comments say; its links exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxsoftmax

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LONGEST = 120  # lines


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", text)]


def test_the_code_runs_as_pasted_and_prints_what_it_says():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    code = "\n".join(blocks)
    # One device, and no setting of the tests.
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    printed = done.stdout.splitlines()
    assert len(promised) == len(printed) >= 3
    for line, expected in zip(printed, promised, strict=True):
        np.testing.assert_allclose(numbers(line), numbers(expected), rtol=1e-6)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert links
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link


RESULTS = ROOT / "benchmarks" / "results"
MIB = 2**20


def rows(suite, device, **wanted):
    """The rows of a committed result that have these values, by peer."""
    document = json.loads((RESULTS / f"{suite}-{device}.json").read_text())
    found = document["suites"][suite]
    return {row["peer"]: row for row in found if wanted.items() <= row.items()}


def test_its_figures_are_those_of_the_committed_results():
    both = {"computed": "value and both gradients", "dtypes": "bfloat16"}
    memory = {peer: row["temp_bytes"] / MIB for peer, row in rows("memory", "cpu", **both).items()}
    for peer, said in (
        ("jaxsoftmax, streamed", "take {:.0f} MiB of\ntemporaries on a CPU"),
        ("jaxsoftmax, default chunk", "`, {:.0f} by default"),
        ("optax", "and {:.0f} with optax."),
    ):
        assert said.format(memory[peer]) in README.replace("\n  ", "\n")
    assert memory["jaxsoftmax, streamed"] * 80 < memory["optax"]  # "a fraction"
    on_cpu = rows("memory", "cpu", **both)["jaxsoftmax, streamed"]
    case = {"target": "tpu v5e:2x2", "sizes": [8192, 2304, 256000]}
    on_tpu = rows("aot", "tpu", **case)["jaxsoftmax, streamed"]
    of = [(row["temp_bytes"] + row["output_bytes"]) / MIB for row in (on_cpu, on_tpu)]
    assert "takes {:.0f} MiB, compiled for a TPU {:.0f};".format(*of) in README
    step = {"target": "tpu v5e:2x4", "computed": "linear_cross_entropy, FSDP, jit"}
    sent = {
        peer: sum(each["sent_bytes"] for each in row["collectives"].values()) / MIB
        for peer, row in rows("sharded", "tpu", **step).items()
    }
    assert f"sends {sent['jaxsoftmax']:.0f} MiB per device" in README
    assert f"with materialised logits {sent['optax']:.0f}." in README
    for quantity in ("loss", "gradient"):
        of = {"dtype": "float32", "quantity": quantity}
        assert max(rows("accuracy", "cpu", **of)["jaxsoftmax"]["worst"]) < 1e-6


def test_it_is_short():
    assert len(README.splitlines()) <= LONGEST


def test_the_citation_has_this_version():
    assert f"version: {jaxsoftmax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
