"""Devices to compile for that are not attached: TPUs and an H200 by description, CPUs by number.

A target has a name such as `tpu v5e:2x2`, `cuda h200` or `cpu:8`.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
from typing import Any

import numpy as np

_H200 = pathlib.Path(__file__).parent / "h200.textproto"
_CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def unavailable(target: str) -> str | None:
    """What is missing to compile for the target, or None."""
    if target.startswith("tpu") and importlib.util.find_spec("libtpu") is None:
        return "needs libtpu"
    if target.startswith("cuda") and not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
        return "needs the CUDA plugin"
    return None


def environment(target: str) -> dict[str, str]:
    """Environment variables of the process that compiles for a target, which runs nothing."""
    variables = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if target.startswith("tpu"):
        variables["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # the lock protects a device that is not used
    if target.startswith("cpu:"):
        count = target.removeprefix("cpu:")
        flags = f"--xla_force_host_platform_device_count={count}"
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return variables


def devices(target: str) -> Any:
    """The target's devices, in a process with the target's environment."""
    import jax
    from jax.experimental import topologies

    kind, _, name = target.partition(" ")
    if kind == "tpu":
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    elif kind == "cuda":
        count = name.partition(":")[2] or "1"
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=_H200.read_text(), topology=f"1x{count}x1"
        )
    else:
        return np.array(jax.devices())
    return np.array(topology.devices)


def platform(target: str) -> str:
    """Its name in `jax.jit(...).trace(...).lower(lowering_platforms=...)`."""
    return target.partition(" ")[0].partition(":")[0]
