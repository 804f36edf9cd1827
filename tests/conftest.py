"""Strict JAX for every test; grids in slices, or whole and with shapes checked at run time."""

import gc
import os
import shutil
from collections import defaultdict

# Eight virtual devices on the CPU, so that sharded code has a mesh to run on. Set before JAX wakes.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_parallel_codegen_split_count=1"  # small programs: less work in all
)

import jax
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Public functions raise errors of their own for wrong shapes; the modules behind them promise
# theirs in annotations, which the exhaustive run checks.
CHECKED = ["_batch", "_fused", "_row", "_xla"]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

for profile, examples in (("default", 6), ("exhaustive", 40)):
    settings.register_profile(
        profile,
        deadline=None,  # the first example of a shape compiles
        derandomize=True,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def pytest_addoption(parser):
    parser.addoption(
        "--every", type=int, default=1, help="run each N-th test of the suite only (default 1: all)"
    )
    parser.addoption(
        "--exhaustive", action="store_true", help="run every case of the grids, not a slice of each"
    )


# Thousands of small programs, each run once or twice: their compilation is what takes time. The
# exhaustive run has the code that users run.
QUICK_COMPILATION = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

# They are kept beside pytest's own cache: tests share some, and a second run compiles only what
# has changed. (`pytest --cache-clear` empties it.)
KEPT_PROGRAMS = 1 << 30  # bytes


def pytest_configure(config):
    exhaustive = config.getoption("--exhaustive")
    settings.load_profile("exhaustive" if exhaustive else "default")
    if exhaustive:
        install_import_hook([f"jaxsoftmax.{name}" for name in CHECKED], "beartype.beartype")
    else:
        os.environ["XLA_FLAGS"] += QUICK_COMPILATION  # before JAX has a backend
        keep_programs(config)


def keep_programs(config):
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    folder = config.cache.mkdir("programs")
    in_worker = hasattr(config, "workerinput")
    if not in_worker and sum(file.stat().st_size for file in folder.iterdir()) > KEPT_PROGRAMS:
        shutil.rmtree(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_finish():
    """What the suite has imported stays: no collection need visit it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)


def pytest_collection_modifyitems(config, items):
    kept = in_slices(items, exhaustive=config.getoption("--exhaustive"))
    kept = kept[:: config.getoption("--every")]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def in_slices(items, *, exhaustive):
    """Of a grid each n-th case and, unless cover=False, each value of its parameters.

    n is `every`, and in an exhaustive run `thin`, which only grids of slow cases have.
    """
    kept, count, seen = [], defaultdict(int), defaultdict(set)
    for item in items:
        marker = item.get_closest_marker("exhaustive")
        step = 1
        if marker is not None:
            step = marker.kwargs.get("thin", 1) if exhaustive else marker.kwargs.get("every")
        if step == 1:
            kept.append(item)
        if step in (1, None):
            continue
        grid = (item.path, item.originalname)
        values = item.callspec.id.split("-")
        unseen = marker.kwargs.get("cover", True) and not seen[grid].issuperset(values)
        if count[grid] % step == 0 or unseen:
            seen[grid].update(values)
            kept.append(item)
        count[grid] += 1
    return kept


# Programs of a few hundred tests are gigabytes of small objects, and each collection visits them.
TESTS_BETWEEN_CLEARINGS = 250
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
