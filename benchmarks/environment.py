"""The environment of a run: device, versions, flags, processors."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from datetime import UTC, datetime
from typing import Any

import jax

import jaxsoftmax
from benchmarks import source, workers

PACKAGES = (
    *("jax", "jaxlib", "numpy", "optax", "tokamax", "torch"),
    *("liger-kernel", "cut-cross-entropy", "quack-kernels", "libtpu"),
)
# Environment variables that change what is measured.
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION", "OMP_NUM_THREADS")


def environment() -> dict[str, Any]:
    """The environment, to be recorded before the first measurement."""
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "jaxsoftmax": jaxsoftmax.__version__,
        "source": source.source_hash(),
        **{name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "processor": _processor(),
        "cpu_count": workers.processors(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "flags": {name: os.environ[name] for name in _FLAGS if name in os.environ},
    }


def in_words(environment: dict[str, Any]) -> str:
    """The environment as a sentence."""
    versions = ", ".join(
        f"{name} {environment[name]}" for name in PACKAGES if environment.get(name)
    )
    return (
        f"{environment['date']}, jaxsoftmax {environment['jaxsoftmax']}, {versions}, "
        f"Python {environment['python']}; {environment['device_count']} x "
        f"{environment['device_kind']} ({environment['processor']}, {environment['cpu_count']} "
        f"processors, load average {environment['load_average']} before the run)."
        + ("" if source.is_current(environment) else " The package has changed since.")
    )


def version(name: str) -> str | None:
    """The version of an installed package, else None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
