"""How many tokens a chunk has: the table, the context for another device, and the plan."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsoftmax import linear_cross_entropy, tuning
from jaxsoftmax._fused import plan
from jaxsoftmax._options import LinearOptions

CPU = tuning.Device("cpu", "cpu")
V6E = tuning.Device("tpu", "TPU v6 lite")
H200 = tuning.Device("gpu", "NVIDIA H200")
MINE = tuning.Row("tpu", ("TPU v6 lite",), tuning.Chunk(1, 3, 3), why="mine")
HIDDEN = jnp.ones((8192, 4), jnp.bfloat16)
KERNEL = jnp.ones((4, 8), jnp.bfloat16)


def chosen(device, *rows, hidden=HIDDEN):
    with tuning.table((*rows, *tuning.ROWS)), tuning.compiling_for(device):
        return tuning.chunk_for(hidden, KERNEL)


@pytest.mark.parametrize("device", [CPU, V6E, H200, tuning.Device("tpu", "TPU v99")])
def test_every_device_has_a_chunk(device):
    assert chosen(device).most >= 512


def test_a_row_put_before_ours_decides():
    assert chosen(V6E, MINE) == MINE.chunk
    for device in (tuning.Device("tpu", "TPU v5"), H200):
        assert chosen(device, MINE) != MINE.chunk


@pytest.mark.parametrize(
    "changed",
    [
        {"least_tokens": 10_000},
        {"dtypes": ("float32",)},
        {"kinds": ("TPU v5",)},
        {"platform": "gpu"},
    ],
)
def test_a_row_that_does_not_fit_is_passed_over(changed):
    assert chosen(V6E, MINE._replace(**changed)) != MINE.chunk


def test_a_table_without_a_fitting_row_leaves_ours():
    with tuning.table((MINE,)), tuning.compiling_for(CPU):
        assert tuning.chunk_for(HIDDEN, KERNEL) == tuning.ROWS[-1].chunk


def test_the_device_is_jax_s_own_unless_another_is_named():
    assert tuning.device() == (jax.default_backend(), jax.devices()[0].device_kind)
    with tuning.compiling_for(V6E):
        assert tuning.device() == V6E


def test_tables_are_part_of_the_cache_key():
    """Traced with one table, a program must not be reused under another."""
    arrays = jnp.ones((6, 4)), jnp.ones((4, 8)), jnp.zeros(6, jnp.int32)
    compiled = jax.jit(lambda *arrays: linear_cross_entropy(*arrays))

    def loops():
        return compiled.trace(*arrays).lower().as_text().count("tensor<3x2x")  # two chunks of three

    plain = loops()
    with tuning.table((MINE,)), tuning.compiling_for(V6E):
        assert loops() > plain
    assert loops() == plain


@given(
    rows=st.integers(1, 100_000),
    chunk_size=st.none() | st.integers(1, 5000),
    chunk=st.sampled_from([row.chunk for row in tuning.ROWS]),
)
def test_chunks_cover_all_rows_once(rows, chunk_size, chunk):
    tokens, steps = plan.Plan(LinearOptions(chunk_size=chunk_size), chunk).chunks(rows, 1000)
    covered = tokens * steps
    assert covered >= rows
    assert covered - rows < steps or covered == rows
    assert tokens <= (chunk_size or chunk.most)
    assert tokens <= rows


def test_devices_that_share_a_chunk_take_their_part_of_it():
    gathered = plan.Gathered(("data",), 8, ("data",))
    made = plan.Plan(LinearOptions(), tuning.Chunk(8, 1024, 2048), gathered)
    assert made.chunks(1024, 1000) == (128, 8)


def tokens_of(rows, chunk):
    return plan.Plan(LinearOptions(), chunk).chunks(rows, 1000)[0]


def test_a_chunk_is_its_share_within_limits():
    chunk = tuning.Chunk(8, 1024, 2048)
    tokens = {n: tokens_of(n, chunk) for n in (512, 4096, 12288, 1 << 17)}
    assert tokens == {512: 512, 4096: 1024, 12288: 1536, 1 << 17: 2048}


def test_no_tokens_and_any_number_of_tokens():
    made = plan.Plan(LinearOptions(), tuning.ROWS[-1].chunk)
    assert made.chunks(0, 1000) == (1, 1)  # of padding
    (symbol,) = jax.export.symbolic_shape("n")
    assert made.chunks(symbol, 1000)[1] == plan.SYMBOLIC_STEPS


def test_another_device_s_chunks_give_the_same_loss():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(20, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(8, 30)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 30, 20), jnp.int32)
    expected = linear_cross_entropy(hidden, kernel, labels)
    with tuning.table((MINE,)), tuning.compiling_for(V6E):
        got = linear_cross_entropy(hidden, kernel, labels)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
