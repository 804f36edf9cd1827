"""What `benchmarks/README.md` quotes is in the committed results, and no lost row is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_readme import MIB, rows

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TEXT = (BENCHMARKS / "README.md").read_text()
SUITES = ("distributions", "cross_entropy", "kl_divergence", "linear_cross_entropy")
LEVEL = 1.05  # times a peer's time


def seconds():
    """Of each case the medians by peer."""
    found = {}
    for suite in SUITES:
        document = json.loads((BENCHMARKS / "results" / f"{suite}-cpu.json").read_text())
        for row in document["suites"][suite]:
            case = row["case"]
            if case["operation"] != "linear_chunks" and row["status"] == "ok":
                shape = "x".join(map(str, case["shape"]))
                key = (case["operation"], case["dtype"], case["direction"] == "forward", shape)
                found.setdefault(key, {})[row["peer"]] = row["median_s"]
    return found


SECONDS = seconds()


def losing():
    """The lines of the table on times: the cases of each, and what it says of which peer."""
    section = TEXT.partition("Where we lose")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if not line.startswith("| `"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        times = re.findall(r"([\d.]+)(?: to ([\d.]+))? x (`jax\.nn`|optax|PyTorch)", cells[1])
        operations = re.findall(r"`(\w+)`", cells[0])
        shapes = re.findall(r"\d+(?:x\d+)+", cells[0])
        dtypes = re.findall(r"b?float\d+", cells[0])
        directions = [word == "forward" for word in re.findall(r"forward|gradients", cells[0])]
        cases = [
            case
            for case in SECONDS
            if case[0] in operations
            and (not dtypes or case[1] in dtypes)
            and (not directions or case[2] in directions)
            and (not shapes or case[3] in shapes)
        ]
        peers = [
            (peer.strip("`").replace("PyTorch", "torch"), low, high or low)
            for low, high, peer in times
        ]
        yield pytest.param(cases, peers, id=cells[0])


LOSING = list(losing())


@pytest.mark.parametrize(("cases", "peers"), LOSING)
def test_a_line_of_the_table_holds(cases, peers):
    for peer, low, high in peers:
        ratios = [SECONDS[case]["jaxsoftmax"] / SECONDS[case][peer] for case in cases]
        assert (f"{min(ratios):.2g}", f"{max(ratios):.2g}") == (low, high), peer


def test_every_row_that_we_lose_is_in_the_table():
    explained = {
        (case, peer) for line in LOSING for case in line.values[0] for peer, *_ in line.values[1]
    }
    for case, times in SECONDS.items():
        ours = times["jaxsoftmax"]
        for peer, theirs in times.items():
            if peer in ("jax.nn", "optax", "torch") and ours > LEVEL * theirs:
                assert (case, peer) in explained, (case, peer, ours / theirs)


def of_fastest(operation, dtype, forward, shape):
    times = SECONDS[operation, dtype, forward, shape]
    others = [s for peer, s in times.items() if not peer.startswith("jaxsoftmax")]
    return times["jaxsoftmax"] / min(others)


def test_the_conclusions_hold():
    text = " ".join(TEXT.split())
    long = [
        of_fastest("cross_entropy", dtype, forward, "512x131072")
        for dtype, forward in (("float32", True), ("bfloat16", True), ("bfloat16", False))
    ]
    assert (
        "512x131072 takes {:.2f} of the time of the fastest other forward pass in float32, "
        "{:.2f} in bfloat16, and {:.2f} with its gradient in bfloat16.".format(*long)
    ) in text
    of_torch = [
        times["torch"] / times["jaxsoftmax"]
        for (operation, dtype, forward, shape), times in SECONDS.items()
        if (operation, dtype, forward) == ("cross_entropy", "float32", False) and shape != "128x10"
    ]
    assert f"and {min(of_torch):.1f} to {max(of_torch):.1f} times as fast as PyTorch." in text
    linear = [
        of_fastest("linear_cross_entropy", dtype, forward, "2048x512x32000")
        for dtype in ("float32", "bfloat16")
        for forward in (True, False)
    ]
    assert (
        "{:.2f} and {:.2f} of the time of the fastest other peer in float32, "
        "{:.2f} and {:.2f} in bfloat16.".format(*linear)
    ) in text
    divergence = {
        shape: [
            times["jaxsoftmax"] / times[peer]
            for (operation, of, forward, size), times in SECONDS.items()
            if (operation, of, size) == ("kl_divergence", dtype, shape) and forward in directions
            for peer in ("optax", "jax.nn")
        ]
        for shape, dtype, directions in (
            ("1024x32000", "float32", (False,)),
            ("8192x1000", "float32", (True, False)),
        )
    }
    assert "in {:.2f} and {:.2f} of their time".format(*divergence["1024x32000"]) in text
    low, high = min(divergence["8192x1000"]), max(divergence["8192x1000"])
    assert f"it takes {low:.1f} to {high:.1f} times theirs in float32" in text
    forward, both = (
        rows("memory", "cpu", computed=computed, dtypes="bfloat16")
        for computed in ("forward", "value and both gradients")
    )
    small = [of["jaxsoftmax, chunk_size=128"]["temp_bytes"] / MIB for of in (forward, both)]
    assert f"The forward pass takes {small[0]:.0f}, optax 4000." in text
    assert f"its gradients take {small[1]:.0f} MiB of temporaries" in text


def test_first_calls_are_as_quoted():
    document = json.loads((BENCHMARKS / "results" / "compile-cpu.json").read_text())
    seconds = {
        (row["operation"], row["peer"]): row["seconds"]["first_call"]
        for row in document["suites"]["compile"]
        if "first_call" in row["seconds"]
    }
    quoted = {
        "softmax": ("jax.nn", "softmax {:.1f} x `jax.nn`"),
        "log_softmax": ("jax.nn", "gradient of log-softmax {:.1f} x"),
        "cross_entropy": ("optax", "cross entropy {:.1f} x optax"),
        "linear_cross_entropy": ("optax", "linear loss {:.1f} x"),
    }
    for operation, (peer, said) in quoted.items():
        ratio = seconds[operation, "jaxsoftmax"] / seconds[operation, peer]
        assert said.format(ratio) in TEXT
