"""Which implementation a call gets, with which sizes, and the sentences where it gets none."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsoftmax import __main__, linear_cross_entropy, tuning
from jaxsoftmax._fused import plan, select

CPU = tuning.Device("cpu", "cpu")
V6E = tuning.Device("tpu", "TPU v6 lite")
H200 = tuning.Device("gpu", "NVIDIA H200")
CALL = select.Call(8192, 4096, 128256, "bfloat16", "bfloat16")
MINE = tuning.Row("tpu", ("TPU v6 lite",), "mosaic_tpu", vmem_bytes=64 << 20, why="mine")


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def chosen(device, call=CALL, implementation="auto", chunk_size=None, rows=tuning.ROWS):
    with tuning.table(rows), tuning.compiling_for(device):
        return select.choose(implementation, chunk_size, call)


# --- auto -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, V6E, H200, tuning.Device("tpu", "TPU v99")])
def test_auto_takes_chunks_on_every_device(device):
    # Nothing was measured on an accelerator: until it is, no kernel is taken unasked.
    choice = chosen(device)
    assert choice.implementation == "chunked"
    assert choice.blocks is None
    assert choice.why


def test_a_row_put_before_ours_decides(one_device):
    choice = chosen(V6E, rows=(MINE, *tuning.ROWS))
    assert (choice.implementation, choice.why) == ("mosaic_tpu", "mine")
    assert choice.portable
    assert choice.blocks.vmem_bytes == 64 << 20
    for device, call in (
        (tuning.Device("tpu", "TPU v5"), CALL),
        (H200, CALL),
    ):
        assert chosen(device, call, rows=(MINE, *tuning.ROWS)).implementation == "chunked"


@pytest.mark.parametrize(
    ("row", "call"),
    [
        (MINE._replace(least_tokens=10_000), CALL),
        (MINE._replace(dtypes=("float32",)), CALL),
        (MINE._replace(by_auto=False), CALL),
        (MINE._replace(kinds=("TPU v5",)), CALL),
        (MINE._replace(platform="gpu"), CALL),
        (MINE, CALL._replace(soft_labels=True)),
        (MINE, CALL._replace(where_by_row=True)),
        (MINE, CALL._replace(axis_name="model")),
        (MINE, CALL._replace(hidden="float16", kernel="float16")),
        (MINE, CALL._replace(features=100)),
        (MINE, CALL._replace(classes=100)),
        (MINE, CALL._replace(features=1 << 20)),
        (MINE, CALL._replace(tokens=0)),
        (MINE._replace(vmem_bytes=0), CALL),
    ],
)
def test_auto_passes_over_what_cannot_serve(one_device, row, call):
    assert chosen(V6E, call, rows=(row, *tuning.ROWS)).implementation == "chunked"
    assert chosen(V6E, call, rows=(row,)).implementation == "chunked"


def test_auto_leaves_programs_that_jit_partitions_alone():
    assert jax.device_count() > 1
    choice = chosen(V6E, rows=(MINE, *tuning.ROWS))
    assert choice.implementation == "chunked"
    assert "shard_map" in choice.why
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    seen = []

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    def inside(x):
        seen.append(chosen(V6E, rows=(MINE, *tuning.ROWS)).implementation)
        return x

    inside(jnp.ones(2))
    assert set(seen) == {"mosaic_tpu"}


def test_a_row_that_names_nothing_known_is_an_error():
    with pytest.raises(ValueError, match="'chunked' or 'mosaic_tpu', got 'mosaic'"):
        chosen(V6E, rows=(MINE._replace(implementation="mosaic"),))


def test_auto_with_a_chunk_size_means_chunks(one_device):
    assert chosen(V6E, chunk_size=64, rows=(MINE,)).implementation == "chunked"


def test_what_was_traced_for_a_tpu_still_runs_elsewhere(one_device):
    # Under jit the platform is known only when the program is lowered: here it is the CPU.
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(20, 128)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(128, 300)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 300, 20), jnp.int32)
    with tuning.table((MINE,)), tuning.compiling_for(V6E):
        program = str(jax.make_jaxpr(linear_cross_entropy)(hidden, kernel, labels))
        got = linear_cross_entropy(hidden, kernel, labels)
    assert "pallas_call" in program
    expected = linear_cross_entropy(hidden, kernel, labels, implementation="chunked")
    np.testing.assert_array_equal(got, expected)


def test_what_was_traced_for_a_tpu_runs_elsewhere_under_transformations(one_device):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 6, 128)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(128, 130)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 130, (2, 6)), jnp.int32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.P("data")

    def losses(hidden, kernel, labels):
        return linear_cross_entropy(hidden, kernel, labels, reduction="none")

    def total(hidden, kernel, labels):
        return jnp.sum(losses(hidden, kernel, labels) ** 2)

    def everything():
        over_mesh = jax.shard_map(losses, mesh=mesh, in_specs=(split, None, split), out_specs=split)
        return (
            jax.jit(over_mesh)(hidden, kernel, labels),
            jax.vmap(losses, in_axes=(0, None, 0))(hidden, kernel, labels),
            jax.value_and_grad(total, argnums=(0, 1))(hidden, kernel, labels),
        )

    with tuning.table((MINE,)), tuning.compiling_for(V6E):
        got = everything()
    jax.tree.map(np.testing.assert_array_equal, got, everything())


def test_tables_are_part_of_the_cache_key(one_device):
    # Traced with one table, a program must not be reused under another.
    arrays = jnp.ones((4, 128)), jnp.ones((128, 256)), jnp.zeros(4, jnp.int32)
    compiled = jax.jit(lambda *arrays: linear_cross_entropy(*arrays))
    plain = str(compiled.trace(*arrays).jaxpr)
    with tuning.table((MINE,)), tuning.compiling_for(V6E):
        assert "pallas_call" in str(compiled.trace(*arrays).jaxpr)
    assert "pallas_call" not in plain


# --- asked for by name ----------------------------------------------------------------------------


def test_by_name_on_a_tpu():
    choice = chosen(V6E, implementation="mosaic_tpu")
    assert choice.implementation == "mosaic_tpu"
    assert not choice.portable
    # A size for the gradients, which come from the chunks.
    assert chosen(V6E, implementation="mosaic_tpu", chunk_size=64).implementation == "mosaic_tpu"


@pytest.mark.parametrize(
    ("device", "call", "words"),
    [
        (CPU, CALL, "runs on TPUs, and this program is traced for 'cpu'"),
        (H200, CALL, "'NVIDIA H200' (gpu)"),
        (V6E, CALL._replace(soft_labels=True), "integer labels"),
        (V6E, CALL._replace(where_by_row=True), "the same for all rows"),
        (V6E, CALL._replace(axis_name="model"), "axis_name='model'"),
        (V6E, CALL._replace(hidden="float64", kernel="float64"), "got hidden float64"),
        (V6E, CALL._replace(features=100), "D = 100"),
        (V6E, CALL._replace(tokens=0), "at least one token"),
        (V6E, CALL._replace(features=1 << 20), "no tile for D = 1048576"),
        (tuning.Device("tpu", "TPU v99"), CALL, "knows of 'TPU v99'"),
    ],
)
def test_by_name_where_it_cannot_serve(device, call, words):
    with pytest.raises(ValueError) as error:
        chosen(device, call, implementation="mosaic_tpu")
    assert words in str(error.value)
    assert 'implementation="mosaic_tpu"' in str(error.value)
    assert '"auto" serves this call' in str(error.value)


def test_by_name_under_a_precision_that_the_kernel_does_not_know():
    with jax.default_matmul_precision("tensorfloat32"), pytest.raises(ValueError) as error:
        chosen(V6E, implementation="mosaic_tpu")
    assert "jax_default_matmul_precision" in str(error.value)


def test_what_the_user_sees_on_this_machine():
    if jax.default_backend() == "tpu":
        pytest.skip("here the kernel would run")
    arrays = jnp.ones((4, 128)), jnp.ones((128, 256)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="runs on TPUs"):
        linear_cross_entropy(*arrays, implementation="mosaic_tpu")
    with pytest.raises(ValueError, match="implementation must be one of"):
        linear_cross_entropy(*arrays, implementation="mosaic")


def test_the_device_is_jax_s_own_where_nobody_says_otherwise():
    assert tuning.device() == (jax.default_backend(), jax.devices()[0].device_kind)
    with tuning.compiling_for(V6E):
        assert tuning.device() == V6E


# --- sizes ----------------------------------------------------------------------------------------

SIZES = ((2, 2), (4, 4), (2, 4))


def test_tiles_fit_and_cover():
    kernels = [row for row in tuning.ROWS if row.implementation == "mosaic_tpu"]
    assert kernels
    shapes = itertools.product((2048, 2304, 4096, 7168), (32000, 50257, 128256, 151936, 256000))
    for row, (features, classes), sizes in itertools.product(kernels, list(shapes), SIZES):
        blocks = plan.make_blocks(features, classes, sizes, row.vmem_bytes)
        assert blocks is not None, (row, features, classes, sizes)
        assert blocks.tokens % plan.LANES == 0
        assert blocks.classes % plan.PIECE == 0
        needed = plan.vmem_needed(features, blocks.tokens, blocks.classes, sizes)
        assert needed <= row.vmem_bytes
        # A matrix that no lane divides is read by its rows: XLA lays it out so.
        assert blocks.class_major == (classes % plan.LANES != 0)


def test_no_tile_where_none_fits():
    assert plan.make_blocks(4096, 32000, (2, 2), 1 << 20) is None


def test_a_tile_of_the_user_s_is_taken_as_it_is():
    blocks = plan.make_blocks(4096, 32000, (2, 2), 1 << 20, (256, 512))
    assert (blocks.tokens, blocks.classes) == (256, 512)
    with pytest.raises(ValueError, match="multiple of 128 tokens by 256 classes"):
        plan.make_blocks(4096, 32000, (2, 2), 1 << 20, (256, 128))


@given(
    rows=st.integers(1, 100_000),
    chunk_size=st.none() | st.integers(1, 5000),
    chunk=st.sampled_from([row.chunk for row in tuning.ROWS]),
)
def test_chunks_cover_all_rows_once(rows, chunk_size, chunk):
    made = plan.make_plan(rows, chunk_size, chunk)
    assert made.rows >= rows
    assert made.rows - rows < made.steps or made.rows == rows
    assert made.tokens <= (chunk_size or chunk.most)
    assert made.tokens <= rows


def test_a_chunk_is_its_share_within_limits():
    chunk = tuning.Chunk(8, 1024, 2048)
    tokens = {n: plan.make_plan(n, None, chunk).tokens for n in (512, 4096, 12288, 1 << 17)}
    assert tokens == {512: 512, 4096: 1024, 12288: 1536, 1 << 17: 2048}


def test_no_tokens_and_any_number_of_tokens():
    chunk = tuning.ROWS[-1].chunk
    assert plan.make_plan(0, None, chunk) == plan.Plan(1, 1)  # of padding
    (symbol,) = jax.export.symbolic_shape("n")
    assert plan.make_plan(symbol, None, chunk).steps == plan.SYMBOLIC_STEPS


# --- on the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "words"), [(CPU, "portable XLA"), (V6E, "mosaic_tpu only by name: compiled for it")]
)
def test_the_command_line_says_what_auto_takes_and_why(device, words, capsys):
    with tuning.compiling_for(device):
        __main__.print_choices()
    head, *lines = capsys.readouterr().out.strip().splitlines()
    assert device.kind in head
    assert len(lines) == 6
    assert all("chunked" in line and words in line for line in lines)
