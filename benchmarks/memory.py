"""Temporary memory of the linear loss at the size of a real model, compiled but not run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import abstract
from benchmarks.report import Table, mebibytes

_WIDTH_OF_SUM = 4  # bytes of float32, in which the kernel's gradient is summed


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory that one compiled program allocates."""

    peer: str
    computed: str
    sizes: tuple[int, ...]
    dtypes: str
    status: str
    note: str = ""
    temp_bytes: int | None = None
    output_bytes: int | None = None

    @property
    def passed(self) -> bool:
        """Whether it compiled; a peer that is not installed counts as passed."""
        return self.status != "failed"

    def __str__(self) -> str:
        return f"{self.status}: {self.peer}, {self.computed}: {self.note}"


def programs(*, quick: bool) -> list[abstract.Abstract]:
    """The programs to compile."""
    return list(abstract.memory_programs(quick=quick))


def measure(program: abstract.Abstract) -> list[Memory]:
    """Compile one program for this machine's device."""
    what = (program.peer, program.computed, program.sizes, program.dtypes)
    try:
        compiled: Any = jax.jit(program.function).lower(*program.arguments).compile()
        analysis = compiled.memory_analysis()
    except ModuleNotFoundError:
        return [Memory(*what, "not installed")]
    except Exception as problem:  # for instance out of memory on the device
        note = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
        return [Memory(*what, "failed", note)]
    temp, output = analysis.temp_size_in_bytes, analysis.output_size_in_bytes
    return [Memory(*what, "ok", "", temp, output)]


def tables(rows: Sequence[Memory]) -> list[Table]:
    """One line per program."""
    lines = [
        [
            "x".join(map(str, row.sizes)),
            row.computed,
            row.dtypes,
            row.peer,
            mebibytes(row.temp_bytes) if row.status == "ok" else row.status,
            mebibytes(row.output_bytes),
        ]
        for row in rows
    ]
    tokens, features, classes = rows[0].sizes if rows else (0, 0, 0)
    logits = tokens * classes * _WIDTH_OF_SUM
    note = (
        f"The logits in float32 take {mebibytes(logits)} MiB. The float32 sum of the kernel's "
        f"gradient takes {mebibytes(features * classes * _WIDTH_OF_SUM)} MiB; it is one of the "
        "temporaries if the kernel is bfloat16."
    )
    columns = ["tokens x features x classes", "computed", "dtypes", "program"]
    columns += ["temporaries, MiB", "outputs, MiB"]
    return [Table("memory of compiled programs", columns, lines, note if rows else "")]
