"""The chunks, compiled by XLA:GPU for an H200 that is not there: nothing copied, nothing kept.

The machine is described in benchmarks/h200.textproto. Matrix products are tuned on the device
only, so that a real run may use other algorithms for the same products.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from jaxsoftmax import linear_cross_entropy, tuning

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
if not any(importlib.util.find_spec(name) for name in PLUGINS):
    pytest.skip('no CUDA plugin is installed: pip install "jax[cuda13]"', allow_module_level=True)

pytestmark = pytest.mark.aot

TOKENS, FEATURES, CLASSES = 8192, 2304, 256000
CHUNK = 1024
ACCUMULATOR = 4 * FEATURES * CLASSES
LOGITS = 4 * TOKENS * CLASSES


@pytest.fixture(scope="module", params=["plain", "tied"])
def program(request):
    description = (Path(__file__).parent.parent / "benchmarks" / "h200.textproto").read_text()
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=description, topology="1x1x1"
    )
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    where = NamedSharding(mesh, PartitionSpec())
    tied = request.param == "tied"

    def loss(hidden, kernel, labels):
        return linear_cross_entropy(hidden, kernel, labels, kernel_layout="VD" if tied else "DV")

    kernel = (CLASSES, FEATURES) if tied else (FEATURES, CLASSES)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=where)
        for shape, dtype in (
            ((TOKENS, FEATURES), jnp.bfloat16),
            (kernel, jnp.bfloat16),
            ((TOKENS,), jnp.int32),
        )
    ]
    with tuning.compiling_for(tuning.Device("gpu", "NVIDIA H200")):
        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*shapes)
    return traced.lower(lowering_platforms=("cuda",)).compile()


def computations(program):
    """The computations of the optimised HLO, as lists of instructions."""
    return [
        [line.strip() for line in text.splitlines()[1:] if " = " in line]
        for text in re.split(r"\n(?=\S.*\{\n)", program.as_text())
    ]


def loop_body(program):
    """The one that multiplies by fusions and adds to the accumulator: the step over a chunk."""
    accumulators = (f"f32[{FEATURES},{CLASSES}]", f"f32[{CLASSES},{FEATURES}]")
    (body,) = (
        lines
        for lines in computations(program)
        if any("dynamic_slice" in line for line in lines)
        and any(line.startswith("ROOT") and any(a in line for a in accumulators) for line in lines)
        and len(lines) > 10
    )
    return body


def test_temporaries(program):
    temp = program.memory_analysis().temp_size_in_bytes
    assert temp < ACCUMULATOR + LOGITS / 8


def test_of_a_chunk_only_logits_and_their_gradient_are_written(program):
    body = loop_body(program)
    made = [
        line.split(" = ")[1].split("{")[0]
        for line in body
        if re.search(rf"= \(?\w+\[{CHUNK},{CLASSES}\]", line) and "get-tuple-element(" not in line
    ]
    assert sorted(made) == [f"bf16[{CHUNK},{CLASSES}]", f"f32[{CHUNK},{CLASSES}]"]
    # Nothing of that size was computed once and kept over the steps, either.
    state = next(line for line in body if "parameter(0)" in line)
    assert f"[{CHUNK},{CLASSES}]" not in state


def test_a_chunk_is_read_once_for_its_statistics_and_once_for_its_gradient(program):
    body = loop_body(program)
    (logits,) = (
        line.split(" = ")[0].lstrip("%") for line in body if f"= f32[{CHUNK},{CLASSES}]" in line
    )
    readers = [line for line in body if re.search(rf"[(, ]%?{re.escape(logits)}[,)]", line)]
    readers = [line for line in readers if "bitcast(" not in line and " tuple(" not in line]
    assert len(readers) == 2, readers
    assert sum(f"= bf16[{CHUNK},{CLASSES}]" in line for line in readers) == 1


def test_products_take_bfloat16_and_the_accumulator_is_added_to_in_place(program):
    text = program.as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    assert len(products) == 3
    for line in products:
        names = re.search(r" dot\(([^)]*)\)", line)[1].replace("%", "").split(", ")
        own = next(c for c in computations(program) if any(line.strip() == x for x in c))
        for name in names:
            maker = next(
                x for x in own if x.removeprefix("ROOT ").lstrip("%").startswith(f"{name} =")
            )
            assert "= bf16[" in maker, maker
    # Total + product is one fusion, or one product with beta = 1, on the loop's own buffer.
    adding = [
        lines
        for lines in computations(program)
        if any(" dot(" in x for x in lines) and any(" add(" in x for x in lines)
    ]
    assert len(adding) == 1 or '"beta":1' in text
    copies = [
        x for x in text.splitlines() if " copy(" in x and f"{CLASSES}" in x.split(" copy(")[0]
    ]
    assert not copies
