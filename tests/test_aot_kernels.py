"""The TPU kernel, compiled by the real compiler for TPUs that are not there.

Every vocabulary on every generation, features and dtype in turn; `benchmarks/aot_kernels.py`
compiles the whole product and writes it down.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import pytest
from aot_tpu import aot

pytestmark = pytest.mark.aot

TOKENS = 8192
# Labels, a last look and statistics: a few numbers a token, and nothing of the kernel's size.
FEW = 64 * TOKENS
DTYPES = ("bfloat16", "float32")
# All of a list in turn, so that each vocabulary meets each generation.
CASES = [
    (generation, classes, (2048, 4096, 7168)[(k + n) % 3], DTYPES[(k + n) % 2])
    for (k, generation), (n, classes) in itertools.product(
        enumerate(aot.TOPOLOGIES), enumerate((32000, 50257, 128256, 151936, 256000))
    )
]


@pytest.mark.parametrize(("generation", "classes", "features", "dtype"), CASES)
def test_the_kernel_compiles_and_copies_nothing(generation, classes, features, dtype):
    program = aot.compiled(
        generation, (TOKENS, features), (features, classes), dtype, implementation="mosaic_tpu"
    )
    assert "tpu_custom_call" in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < FEW


@pytest.mark.parametrize("generation", list(aot.TOPOLOGIES))
def test_a_tied_embedding_is_not_copied(generation):
    def tied(hidden, embedding, labels):
        return aot.linear_cross_entropy(
            hidden, embedding.T, labels, implementation="mosaic_tpu", reduction="none"
        )

    program = aot.compiled(generation, (256, 512), (4096, 512), "bfloat16", tied)
    assert program.memory_analysis().temp_size_in_bytes < FEW


@pytest.mark.parametrize("tokens", [1, 150, 1000])
def test_every_option_at_once_and_odd_numbers_of_tokens(tokens):
    classes = 50257

    def loss(hidden, kernel, labels):
        row = jnp.arange(classes, dtype=jnp.float32)
        return aot.linear_cross_entropy(
            hidden,
            kernel,
            labels,
            row,
            where=row > 3.0,
            class_weights=row,
            label_smoothing=0.1,
            ignore_index=-1,
            soft_cap=30.0,
            temperature=0.7,
            z_loss=1e-4,
            implementation="mosaic_tpu",
            return_statistics=True,
        )

    program = aot.compiled("v6e", (tokens, 256), (256, classes), "bfloat16", loss)
    # A row of the vocabulary for each of bias, mask and weights.
    assert program.memory_analysis().temp_size_in_bytes < 4 * 4 * classes + 64 * 1024


def test_jax_s_precision_settings_that_the_kernel_says_it_knows():
    for precision in (None, "default", "highest"):
        for dtype in DTYPES:
            with jax.default_matmul_precision(precision):
                aot.compiled("v5e", (128, 256), (256, 512), dtype, implementation="mosaic_tpu")


def test_auto_traced_for_a_tpu_keeps_the_kernel_on_one():
    kind = aot.device("v6e")[1].kind
    mine = aot.tuning.Row("tpu", (kind,), "mosaic_tpu", vmem_bytes=64 * aot.MIB)
    with pytest.MonkeyPatch.context() as patch, aot.tuning.table((mine, *aot.tuning.ROWS)):
        patch.setattr(jax, "device_count", lambda: 1)
        program = aot.compiled("v6e", (256, 256), (256, 512), "bfloat16")
    assert "tpu_custom_call" in program.as_text()
