"""Programs compiled for TPUs that are not there: skipped without libtpu."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsoftmax import tuning

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: pip install libtpu", allow_module_level=True)
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no TPU is asked for its kind
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nor needed by one worker of pytest alone

TOPOLOGIES = {"v6e": "v6e:2x2", "v5p": "v5p:2x2x1", "v5e": "v5e:2x2", "v7x": "tpu7x:2x2x1"}


def compiled(generation, hidden, kernel, dtype, loss):
    """The program of a loss of hidden, kernel and labels on one device of a generation."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[generation])
    device = topology.devices[0]
    where = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    shapes = (
        jax.ShapeDtypeStruct(hidden, jnp.dtype(dtype)),
        jax.ShapeDtypeStruct(kernel, jnp.dtype(dtype)),
        jax.ShapeDtypeStruct(hidden[:1], jnp.int32),
    )
    with tuning.compiling_for(tuning.Device("tpu", device.device_kind)):
        lowered = jax.jit(loss, in_shardings=where, out_shardings=where).lower(*shapes)
    return lowered.compile()
