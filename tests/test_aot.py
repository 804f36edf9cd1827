"""Loss and gradients in chunks, compiled by the real compiler for TPUs that are not there.

What the compiler says of its temporaries; nothing is run. (For an H200: `test_aot_gpu`.)
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import aot_tpu
import jax
import jax.numpy as jnp
import pytest

from jaxsoftmax import cross_entropy, kl_divergence, linear_cross_entropy, log_softmax

pytestmark = pytest.mark.aot

TOKENS = 8192
MIB = 2**20
SMALL_CHUNK, SMALL_CHUNK_MEMORY = 128, 256 * MIB
GENERATIONS = ("v5e", "v5p", "v6e")
SIZES = [(4096, 32000), (768, 50257), (4096, 128256), (3584, 151936), (2304, 256000)]
LAYOUTS = {"plain": "DV", "tied": "VD"}
KERNELS = tuple(LAYOUTS)
CASES = [
    (generation, *size, KERNELS[(i + k) % 2])
    for (i, generation), (k, size) in itertools.product(enumerate(GENERATIONS), enumerate(SIZES))
]


def program(generation: str, features: int, classes: int, kind: str, **options: Any) -> Any:
    def gradients(hidden, kernel, labels):
        def loss(hidden, kernel):
            return linear_cross_entropy(
                hidden, kernel, labels, kernel_layout=LAYOUTS[kind], **options
            )

        return jax.value_and_grad(loss, (0, 1))(hidden, kernel)

    shape = (classes, features) if kind == "tied" else (features, classes)
    return aot_tpu.compiled(generation, (TOKENS, features), shape, "bfloat16", gradients)


def beyond_the_accumulator(compiled: Any, features: int, classes: int) -> int:
    return compiled.memory_analysis().temp_size_in_bytes - 4 * features * classes


@pytest.mark.exhaustive(every=15, cover=False)
@pytest.mark.parametrize(("generation", "features", "classes", "kind"), CASES)
def test_temporaries(generation, features, classes, kind):
    compiled = program(generation, features, classes, kind)
    logits, hidden = 4 * TOKENS * classes, 2 * TOKENS * features
    # The hidden states by chunks, their gradient, and the same as it is returned.
    allowed = logits / 8 + 3 * hidden
    assert beyond_the_accumulator(compiled, features, classes) < allowed
    shape = rf"\[(?:{features},{classes}|{classes},{features})\]"
    assert not re.findall(rf"= \w+{shape}\S* (?:copy|transpose)\(.*", compiled.as_text())


@pytest.mark.exhaustive(every=4, cover=False)
@pytest.mark.parametrize(
    ("generation", "kind"), [("v5e", "plain"), ("v5e", "tied"), ("v5p", "plain"), ("v6e", "tied")]
)
def test_undifferentiated_no_logits_are_written(generation, kind):
    """The product and the reduction over the classes are one loop: not even a chunk is stored."""
    features, classes = SIZES[-1]

    def loss(hidden, kernel, labels):
        return linear_cross_entropy(hidden, kernel, labels, kernel_layout=LAYOUTS[kind])

    shape = (classes, features) if kind == "tied" else (features, classes)
    compiled = aot_tpu.compiled(generation, (TOKENS, features), shape, "bfloat16", loss)
    assert compiled.memory_analysis().temp_size_in_bytes < MIB + 2 * TOKENS * features


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_cross_entropy_reads_the_logits_once_and_for_its_gradient_once_more(generation):
    shape = (TOKENS, 128256)
    size = 2 * shape[0] * shape[1]

    def loss(logits, _, labels):
        return cross_entropy(logits, labels)

    for function, arrays in ((loss, 1), (jax.value_and_grad(loss), 3)):
        compiled = aot_tpu.compiled(generation, shape, (1, 1), "bfloat16", function)
        assert compiled.cost_analysis()["bytes accessed"] < (arrays + 0.01) * size
        assert compiled.memory_analysis().temp_size_in_bytes < MIB


def test_the_gradient_of_log_softmax_is_three_passes():
    """Over the logits, over both for the sums, and over both to write the result."""
    shape = (TOKENS, 32000)

    def pull_back(logits, g, _):
        return jax.vjp(log_softmax, logits)[1](g)[0]

    compiled = aot_tpu.compiled("v5e", shape, shape, "float32", pull_back)
    size = 4 * shape[0] * shape[1]
    assert compiled.cost_analysis()["bytes accessed"] < 6.01 * size
    assert compiled.memory_analysis().temp_size_in_bytes < MIB


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_divergence_with_both_gradients_is_four_passes(dtype):
    """Over each side, over both for a sum, for a mean, and for the gradients, which are written."""
    shape = (TOKENS, 32000)

    def both(x, y, _):
        return jax.value_and_grad(kl_divergence, (0, 1))(x, y)

    compiled = aot_tpu.compiled("v5e", shape, shape, dtype, both)
    size = jnp.dtype(dtype).itemsize * shape[0] * shape[1]
    assert compiled.cost_analysis()["bytes accessed"] < 10.02 * size
    assert compiled.memory_analysis().temp_size_in_bytes < MIB


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("kind", KERNELS)
def test_temporaries_of_small_chunks(kind):
    features, classes = SIZES[-1]
    compiled = program("v5p", features, classes, kind, chunk_size=SMALL_CHUNK)
    assert beyond_the_accumulator(compiled, features, classes) < SMALL_CHUNK_MEMORY


@pytest.mark.exhaustive(every=6, cover=False)
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("kind", KERNELS)
def test_streamed_gradients_need_no_accumulator(generation, kind):
    features, classes = SIZES[-1]
    compiled = program(generation, features, classes, kind, implementation="streamed")
    assert compiled.memory_analysis().temp_size_in_bytes < SMALL_CHUNK_MEMORY
