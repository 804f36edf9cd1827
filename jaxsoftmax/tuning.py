"""How many tokens `linear_cross_entropy` takes at a time on which device: a table to extend.

The first row that fits the device and the call decides. To put rows of your own before ours:

    from jaxsoftmax import tuning
    mine = tuning.Row("tpu", ("TPU v6 lite",), tuning.Chunk(4, 1024, 4096), why="measured")
    with tuning.table((mine, *tuning.ROWS)):
        loss = linear_cross_entropy(hidden, kernel, labels)

A program is tuned for JAX's default device; for another one, as when compiling ahead of time,
trace it under `with tuning.compiling_for(tuning.Device("tpu", "TPU v6 lite")):`. Both contexts
are part of jit's cache key.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from jax import Array

from jaxsoftmax._xla.dtypes import promoted


class Chunk(NamedTuple):
    """How many tokens at a time: a share of all, within limits.

    More make larger products, and pass less often over the kernel's gradient, which is read and
    written for each chunk; they need the memory.
    """

    share: int  # one of so many
    least: int
    most: int


class Device(NamedTuple):
    """What a program is compiled for, in JAX's words."""

    platform: str  # "cpu", "gpu" or "tpu"
    kind: str  # jax.Device.device_kind


class Row(NamedTuple):
    """A device and a size of call, and what is best there."""

    platform: str | None  # None is any
    kinds: tuple[str, ...] | None  # device kinds, None is any
    chunk: Chunk
    dtypes: tuple[str, ...] | None = None  # of the matrix product
    least_tokens: int = 0
    why: str = ""


ROWS: tuple[Row, ...] = (
    # A chunk of n tokens multiplies 6 n D V and moves 8 D V bytes of the kernel's gradient: on an
    # H200 (990 TFLOP/s, 4.8 TB/s) half the time at 275 tokens, a fifth at 1024, on a v6e (918,
    # 1.64) a half at 750. By XLA:TPU's estimates, loops by their trips, none of 1024, 2048 and 4096
    # is best everywhere, so the one with the least memory. Million cycles with gradients:
    # 8192 x 2304 x 256000: v5e 359, 353, 335, v5p 160, 160, 154, v6e 158, 144, 157;
    # 16384 x 4096 x 128256: v5e 578, 595, 557, v5p 274, 274, 351, v6e 248, 285, 259.
    Row("tpu", None, Chunk(8, 1024, 1024), why="by the compiler's estimates"),
    Row("gpu", None, Chunk(8, 1024, 2048), why="by the device's rates"),
    Row(None, None, Chunk(16, 512, 512), why="measured on the CPU"),
)

table = jax.make_user_context(ROWS)
table.__doc__ = "Context in which other rows decide: `with tuning.table((mine, *tuning.ROWS)):`."

compiling_for = jax.make_user_context(None)
compiling_for.__doc__ = "Context in which programs are traced for another `Device`."


def device() -> Device:
    """What programs traced now are for."""
    if compiling_for.value is not None:
        return compiling_for.value
    default = jax.config.jax_default_device or jax.devices()[0]  # type: ignore[attr-defined, unused-ignore]
    if isinstance(default, str):
        default = jax.devices(default)[0]
    return Device(default.platform, default.device_kind)


def chunk_for_pair(hidden: Array, kernel: Array) -> Chunk:
    """The same where two layers' logits are compared: their chunk takes the memory of one.

    (XLA keeps two to three arrays of the pair's size: 8192 tokens, 256000 classes, JAX 0.12.)
    """
    share, least, most = chunk_for(hidden, kernel)
    return Chunk(2 * share, max(1, least // 2), max(1, most // 2))


def chunk_for(hidden: Array, kernel: Array) -> Chunk:
    """The chunk of the first row that fits; a program for any number of tokens fits them all."""
    here, dtype = device(), promoted(hidden.dtype, kernel.dtype).name
    tokens = math.prod(hidden.shape[:-1])
    fitting = (
        row.chunk
        for row in (*table.value, *ROWS)
        if row.platform in (None, here.platform)
        and (row.kinds is None or here.kind in row.kinds)
        and (row.dtypes is None or dtype in row.dtypes)
        and (not isinstance(tokens, int) or tokens >= row.least_tokens)
    )
    return next(fitting)
