"""Compile the TPU kernel for TPUs that are not there, and write down what the compiler says.

    pip install libtpu
    python benchmarks/aot_kernels.py [--resume]

compiles the rows of `linear_cross_entropy(implementation="mosaic_tpu")` for every generation,
number of features, vocabulary and dtype below, and writes `results/aot-kernels.json` and `.md`
beside this file. Nothing is run: whether it compiles, fits and copies is known, how fast it is
on the hardware is not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # before JAX wakes; no TPU is asked for its kind
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nobody needs the TPU for himself
    sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsoftmax import linear_cross_entropy, tuning
from jaxsoftmax._fused import select

TOPOLOGIES = {"v6e": "v6e:2x2", "v5p": "v5p:2x2x1", "v5e": "v5e:2x2", "v7x": "tpu7x:2x2x1"}
TOKENS = 8192
FEATURES = (4096, 2048, 7168)
CLASSES = (128256, 50257, 256000, 32000, 151936)
DTYPES = ("bfloat16", "float32")
MIB = 1 << 20
RESULTS = Path(__file__).parent / "results"


class Outcome(NamedTuple):
    """One program and what its compilation came to."""

    generation: str
    dtype: str
    features: int
    classes: int
    tile: str  # tokens x classes
    read_as: str  # how the kernel lies in memory where it is read without a copy
    compiles: bool
    temp_bytes: int
    seconds_to_compile: float
    estimate_ms: float  # XLA's, of the kernel's stated operations and bytes
    error: str = ""


def device(generation: str) -> tuple[Any, tuning.Device]:
    """One device of a generation, and what `tuning` calls it."""
    name = TOPOLOGIES[generation]
    one = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
    return one, tuning.Device("tpu", one.device_kind)


def compiled(
    generation: str,
    hidden: tuple[int, int],
    kernel: tuple[int, int],
    dtype: str,
    loss: Any = linear_cross_entropy,
    **options: Any,
) -> Any:
    """The program of a loss of hidden, kernel and labels on one device of a generation."""
    one, kind = device(generation)
    where = NamedSharding(Mesh(np.array([one]), ("x",)), PartitionSpec())
    shapes = (
        jax.ShapeDtypeStruct(hidden, jnp.dtype(dtype)),
        jax.ShapeDtypeStruct(kernel, jnp.dtype(dtype)),
        jax.ShapeDtypeStruct(hidden[:1], jnp.int32),
    )

    def program(*arrays: jax.Array) -> Any:
        return loss(*arrays, **options)

    with tuning.compiling_for(kind):
        lowered = jax.jit(program, in_shardings=where, out_shardings=where).lower(*shapes)
    return lowered.compile()


def measure(generation: str, dtype: str, features: int, classes: int) -> Outcome:
    """Compile one forward pass by the kernel."""
    call = select.Call(TOKENS, features, classes, dtype, dtype)
    rows = tuning.rows_for(device(generation)[1], dtype, TOKENS)
    blocks = select.blocks_for(call, rows)
    tile = f"{blocks.tokens} x {blocks.classes}" if blocks else "none"
    read_as = "[V, D]" if blocks and blocks.class_major else "[D, V]"
    named = (generation, dtype, features, classes, tile, read_as)
    start = time.perf_counter()
    try:
        program = compiled(
            generation, (TOKENS, features), (features, classes), dtype, implementation="mosaic_tpu"
        )
    except Exception as error:
        seconds = time.perf_counter() - start
        return Outcome(*named, False, 0, seconds, 0.0, str(error).splitlines()[0])
    seconds = time.perf_counter() - start
    temp = program.memory_analysis().temp_size_in_bytes
    estimate = 1e3 * program.cost_analysis().get("optimal_seconds", float("nan"))
    return Outcome(*named, True, temp, seconds, estimate)


def outcomes(known: list[Outcome]) -> Iterator[Outcome]:
    """All that are not known yet, the usual ones first."""
    done = {(row.generation, row.dtype, row.features, row.classes) for row in known}
    for dtype, features, classes, generation in itertools.product(
        DTYPES, FEATURES, CLASSES, TOPOLOGIES
    ):
        if (generation, dtype, features, classes) not in done:
            yield measure(generation, dtype, features, classes)


def read(path: Path, versions: dict[str, str]) -> list[Outcome]:
    """What a run that was stopped has left, by the same versions."""
    if not path.exists():
        return []
    of, *rows = json.loads(path.read_text())
    return [Outcome(**row) for row in rows] if of == versions else []


def as_markdown(table: list[Outcome], versions: dict[str, str]) -> str:
    """The table for readers."""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# The TPU kernel, compiled ahead of time",
        "",
        f'`linear_cross_entropy(..., implementation="mosaic_tpu")`, forward, {TOKENS} tokens, '
        f"on one device of each generation; {named}, compiled on a CPU-only machine that did other "
        "work meanwhile. **Nothing was run on a TPU.** Temporaries are those beside arguments and "
        "result (the logits in float32 would be 1 to 8 GB; a copy of the kernel 0.1 to 7 GB). "
        "The estimate is XLA's, from the operations and bytes that the kernel states of itself.",
        "",
        "| generation | dtype | D | V | tile | kernel read as | compiles | temp KiB "
        "| s to compile | XLA's estimate, ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(table):
        verdict = "yes" if row.compiles else f"no: {row.error}"
        lines.append(
            f"| {row.generation} | {row.dtype} | {row.features} | {row.classes} | {row.tile} "
            f"| {row.read_as} | {verdict} | {row.temp_bytes / 1024:.0f} "
            f"| {row.seconds_to_compile:.0f} | {row.estimate_ms:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compile everything, writing as it goes; 0 where all compiled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "aot-kernels")
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    arguments = parser.parse_args()
    out = arguments.out
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    table = read(out.with_suffix(".json"), versions) if arguments.resume else []
    for outcome in outcomes(list(table)):
        table.append(outcome)
        print(*outcome, flush=True)
        rows = [row._asdict() for row in table]
        out.with_suffix(".json").write_text(json.dumps([versions, *rows], indent=1) + "\n")
        out.with_suffix(".md").write_text(as_markdown(table, versions))
    return 0 if all(row.compiles for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
