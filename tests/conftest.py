"""Strict JAX for every test, shapes checked at run time in the private modules."""

import gc
import os

# Eight virtual devices on the CPU, so that sharded code has a mesh to run on. Set before JAX wakes.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Public functions raise errors of their own for wrong shapes; the files behind them promise theirs.
CHECKED = [
    "_extremes",
    "_logits",
    "_loss",
    "_online",
    "_passes",
    "_precision",
    "_reduction",
    "_rows",
    "_targets",
    "_tiles",
]
install_import_hook([f"jaxsoftmax.{name}" for name in CHECKED], "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile(
    "default",
    deadline=None,  # the first example of a shape compiles
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption(
        "--every", type=int, default=1, help="run each N-th test of the suite only (default 1: all)"
    )


def pytest_collection_modifyitems(config, items):
    kept = items[:: config.getoption("--every")]
    left_out = set(items) - set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = kept


# Programs of a few hundred tests are gigabytes of small objects, and each collection visits them.
TESTS_BETWEEN_CLEARINGS = 100
_finished = 0


def pytest_runtest_teardown():
    global _finished
    _finished += 1
    if _finished % TESTS_BETWEEN_CLEARINGS == 0:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """float64 for one test."""
    with jax.enable_x64(True):
        yield
