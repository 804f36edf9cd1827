"""Which implementation `auto` takes on which device, and its sizes: a table, yours to extend.

The first row that fits the device and the call decides. To put rows of your own before ours:

    from jaxsoftmax import tuning
    mine = tuning.Row("tpu", ("TPU v6 lite",), "mosaic_tpu", vmem_bytes=112 << 20, why="measured")
    with tuning.table((mine, *tuning.ROWS)):
        loss = linear_cross_entropy(hidden, kernel, labels)

A program is tuned for JAX's default device; for another one, as when compiling ahead of time,
trace it under `with tuning.compiling_for(tuning.Device("tpu", "TPU v6 lite")):`. Both contexts
are part of jit's cache key.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

MIB = 1 << 20


class Chunk(NamedTuple):
    """How many tokens at a time: a share of all, within limits.

    More make larger products, and pass less often over the kernel's gradient, which is read and
    written for each chunk; they need the room.
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
    implementation: str  # "chunked" or "mosaic_tpu"
    dtypes: tuple[str, ...] | None = None  # of the matrix product
    least_tokens: int = 0
    by_auto: bool = True  # False: only where the implementation is asked for by name
    chunk: Chunk = Chunk(16, 512, 512)  # "chunked"
    # "mosaic_tpu": what the kernel may take of VMEM, and its tile of tokens x classes (None: the
    # best that fits).
    vmem_bytes: int = 0
    tile: tuple[int, int] | None = None
    why: str = ""


V5E = ("TPU v5 lite", "TPU v5e")
V5P = ("TPU v5", "TPU v5p")
V6E = ("TPU v6 lite", "TPU v6e")
V7X = ("TPU7x",)

_UNMEASURED = "compiled for it, not run on it"

ROWS: tuple[Row, ...] = (
    # VMEM a core: 128 MiB (v5e, v6e), 64 (v5p, 7x), of which an eighth is left to XLA.
    Row("tpu", V5E, "mosaic_tpu", by_auto=False, vmem_bytes=112 * MIB, why=_UNMEASURED),
    Row("tpu", V5P, "mosaic_tpu", by_auto=False, vmem_bytes=56 * MIB, why=_UNMEASURED),
    Row("tpu", V6E, "mosaic_tpu", by_auto=False, vmem_bytes=112 * MIB, why=_UNMEASURED),
    Row("tpu", V7X, "mosaic_tpu", by_auto=False, vmem_bytes=56 * MIB, why=_UNMEASURED),
    # A chunk of n tokens multiplies 6 n D V and moves 8 D V bytes of the kernel's gradient: on an
    # H200 (990 TFLOP/s, 4.8 TB/s) half the time at 275 tokens, a fifth at 1024, on a v6e (918,
    # 1.64) a half at 750. XLA:TPU's estimates of one step, times the steps of 8192 x 2304 x 256000
    # with gradients: v5e 227, 174, 160 ms in chunks of 512, 1024, 2048, v5p 89, 78, 83, v6e 91,
    # 56, 48. An eighth of the tokens keeps the temporaries of a chunk at an eighth of the logits.
    Row("tpu", None, "chunked", chunk=Chunk(8, 1024, 2048), why="portable XLA"),
    Row("gpu", None, "chunked", chunk=Chunk(8, 1024, 2048), why="portable XLA"),
    Row(None, None, "chunked", why="portable XLA"),
)

table = jax.make_user_context(ROWS)
table.__doc__ = "Context in which other rows decide: `with tuning.table((mine, *tuning.ROWS)):`."

compiling_for = jax.make_user_context(None)
compiling_for.__doc__ = "Context in which programs are traced for another `Device`."


def device() -> Device:
    """What programs traced now are for."""
    if compiling_for.value is not None:
        return compiling_for.value
    default = jax.config.jax_default_device or jax.devices()[0]  # type: ignore[attr-defined]
    if isinstance(default, str):
        default = jax.devices(default)[0]
    return Device(default.platform, default.device_kind)


def rows_for(device: Device, dtype: str, tokens: int | None) -> list[Row]:
    """The rows that fit, best first; `tokens` is None where the program takes any number."""
    return [
        row
        for row in table.value
        if row.platform in (None, device.platform)
        and (row.kinds is None or device.kind in row.kinds)
        and (row.dtypes is None or dtype in row.dtypes)
        and (tokens is None or tokens >= row.least_tokens)
    ]
