"""Memory of linear_cross_entropy is a contract: no [N, V] in any program, few temporaries in any.

The jaxpr of every derivative is walked for an array with N·V numbers; and at the size of a large
model, compiled and not run, the compiler's own account of the temporaries is held to bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxsoftmax import cross_entropy, linear_cross_entropy

# --- no array of N·V numbers ----------------------------------------------------------------------

TOKENS, FEATURES, CLASSES, CHUNK, MODELS = 24, 4, 40, 4, 3
LOGITS = TOKENS * CLASSES
assert MODELS * CHUNK * CLASSES < LOGITS  # a chunk of each of several models may exist
assert MODELS * FEATURES * CLASSES < LOGITS


def arrays_of(jaxpr: Any) -> Iterator[Any]:
    """The type of every array in a program, those of loops, branches and calls included."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for variable in (*jaxpr.invars, *jaxpr.constvars):
        yield variable.aval
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval
        for inner in jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


def largest_array(function: Callable, *arguments: Any) -> int:
    return max(array.size for array in arrays_of(jax.make_jaxpr(function)(*arguments)))


HIDDEN = np.ones((TOKENS, FEATURES), np.float32)
KERNEL = np.ones((FEATURES, CLASSES), np.float32)
LABELS = np.zeros(TOKENS, np.int32)
BIAS = np.ones(CLASSES, np.float32)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"reduction": "none"},
    "statistics": {"return_statistics": True},
    "everything": {
        "where": BIAS > 0,
        "class_weights": BIAS,
        "example_weights": HIDDEN[:, 0],
        "ignore_index": -1,
        "label_smoothing": 0.1,
        "z_loss": 1e-4,
        "soft_cap": 30.0,
        "temperature": 2.0,
    },
}
DERIVATIVES: dict[str, Callable[[Callable], Callable]] = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(f, (0, 1)),
    "jvp": lambda f: lambda h, w: jax.jvp(f, (h, w), (h, w)),
    "forward over reverse": lambda f: lambda h, w: jax.jvp(jax.grad(f, (0, 1)), (h, w), (h, w)),
}


def total(loss: Callable, **options: Any) -> Callable:
    def f(h: Any, w: Any) -> Any:
        results = jax.tree.leaves(loss(h, w, **options))
        real = [r for r in results if jnp.issubdtype(r.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.sin(r)) for r in real)

    return f


def fused(h, w, **options):
    return linear_cross_entropy(h, w, LABELS, BIAS, chunk_size=CHUNK, **options)


def tied(h, w, **options):
    return fused(h, w, kernel_layout="VD", **options)


def materialised(h, w, **options):
    return cross_entropy(h @ w + BIAS[None, :], LABELS, **options)


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("options", OPTIONS)
def test_no_program_holds_the_logits(options, derivative):
    options, derive = OPTIONS[options], DERIVATIVES[derivative]
    assert largest_array(derive(total(fused, **options)), HIDDEN, KERNEL) < LOGITS
    # What is looked for would be found.
    assert largest_array(derive(total(materialised, **options)), HIDDEN, KERNEL) >= LOGITS


@pytest.mark.parametrize("derivative", ["value", "grad"])
def test_nor_does_that_of_a_tied_embedding(derivative):
    assert largest_array(DERIVATIVES[derivative](total(tied)), HIDDEN, KERNEL.T) < LOGITS


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_nor_does_one_of_several_models(derivative):
    over_models = jax.vmap(DERIVATIVES[derivative](total(fused)), (None, 0))
    kernels = np.ones((MODELS, *KERNEL.shape), np.float32)
    assert largest_array(over_models, HIDDEN, kernels) < LOGITS


# --- at the size of a large model, compiled only --------------------------------------------------

MIB = 2**20
N, D, V = 8192, 2304, 256000
ACCUMULATOR = 4 * D * V  # the kernel's gradient in float32
FLOAT32_LOGITS = 4 * N * V
SMALL_CHUNK, SMALL_CHUNK_MEMORY = 128, 256 * MIB


def compiled(f: Callable, h: Any, w: Any, *more: Any) -> Any:
    labels = jax.ShapeDtypeStruct((N,), jnp.int32)
    return jax.jit(f).lower(h, w, labels, *more).compile()


def temporaries(program: Any) -> int:
    return program.memory_analysis().temp_size_in_bytes


def layer(hidden_dtype: Any, kernel_dtype: Any, tied: bool = False) -> tuple[Any, Any]:
    shape = (V, D) if tied else (D, V)
    return jax.ShapeDtypeStruct((N, D), hidden_dtype), jax.ShapeDtypeStruct(shape, kernel_dtype)


def loss(h, w, y, *, tied=False, **options):
    return linear_cross_entropy(h, w, y, kernel_layout="VD" if tied else "DV", **options)


def copies_of_the_kernel(program: Any) -> list[str]:
    """Instructions that move the kernel or its gradient to another place or order."""
    shape = rf"\[(?:{D},{V}|{V},{D})\]"
    return re.findall(rf"= \w+{shape}\S* (?:copy|transpose)\(.*", program.as_text())


on_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="the bounds are those of the CPU's compiler"
)


@on_cpu
@pytest.mark.parametrize("tied", [False, True], ids=["kernel", "tied embedding"])
@pytest.mark.parametrize("chunk_size", [None, SMALL_CHUNK])
def test_value_and_gradients_in_bfloat16(chunk_size, tied):
    f = jax.value_and_grad(partial(loss, chunk_size=chunk_size, tied=tied), (0, 1))
    program = compiled(f, *layer(jnp.bfloat16, jnp.bfloat16, tied))
    beyond = temporaries(program) - ACCUMULATOR
    assert beyond < (FLOAT32_LOGITS / 8 if chunk_size is None else SMALL_CHUNK_MEMORY)
    assert not copies_of_the_kernel(program)


# A few hundred tokens' logits. (XLA:CPU of JAX 0.10 keeps a float32 copy of the hidden states.)
STREAMED_MEMORY = 256 * MIB + (4 * N * D if jax.__version_info__ < (0, 12) else 0)


@pytest.mark.exhaustive(every=3, cover=False)
@on_cpu
@pytest.mark.parametrize("tied", [False, True], ids=["kernel", "tied embedding"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_streamed_gradients_need_no_accumulator(reduction, tied):
    def total(h, w, y):
        return jnp.sum(loss(h, w, y, reduction=reduction, implementation="streamed", tied=tied))

    program = compiled(jax.value_and_grad(total, (0, 1)), *layer(jnp.bfloat16, jnp.bfloat16, tied))
    assert temporaries(program) < STREAMED_MEMORY
    assert not copies_of_the_kernel(program)


@on_cpu
@pytest.mark.parametrize("tied", [False, True], ids=["kernel", "tied embedding"])
def test_a_gradient_in_float32_is_its_own_accumulator(tied):
    f = jax.value_and_grad(partial(loss, chunk_size=SMALL_CHUNK, tied=tied), (0, 1))
    program = compiled(f, *layer(jnp.float32, jnp.float32, tied))
    # The logits, their gradient and the products of a chunk, in float32.
    assert temporaries(program) < 3 * 4 * SMALL_CHUNK * V
    assert not copies_of_the_kernel(program)


@on_cpu
@pytest.mark.parametrize("tied", [False, True], ids=["kernel", "tied embedding"])
def test_the_value_alone(tied):
    f = partial(loss, chunk_size=SMALL_CHUNK, tied=tied)
    program = compiled(f, *layer(jnp.bfloat16, jnp.bfloat16, tied))
    assert temporaries(program) < SMALL_CHUNK_MEMORY
    assert not copies_of_the_kernel(program)


@on_cpu
def test_second_derivatives():
    """A gradient and its tangent: two accumulators."""
    h, w = layer(jnp.bfloat16, jnp.bfloat16)

    def product(h, w, y, moved_h, moved_w):
        gradient = jax.grad(partial(loss, chunk_size=SMALL_CHUNK), (0, 1))
        return jax.jvp(lambda h, w: gradient(h, w, y), (h, w), (moved_h, moved_w))

    program = compiled(product, h, w, h, w)
    assert temporaries(program) - 2 * ACCUMULATOR < FLOAT32_LOGITS / 8


@on_cpu
def test_losses_of_each_row_and_their_gradients():
    def total(h, w, y):
        return jnp.sum(loss(h, w, y, chunk_size=SMALL_CHUNK, reduction="none") ** 2)

    # The accumulator, and before it is added XLA:CPU writes the product of a chunk, twice.
    program = compiled(jax.value_and_grad(total, (0, 1)), *layer(jnp.bfloat16, jnp.bfloat16))
    assert temporaries(program) - 3 * ACCUMULATOR < FLOAT32_LOGITS / 8


# --- products -------------------------------------------------------------------------------------


def products(f, *arrays):
    """Matrix products of the compiled program."""
    return jax.jit(f).lower(*arrays).compile().as_text().count(" dot(")


def test_statistics_beside_a_scalar_take_no_product_more():
    """Three for value and gradients, with statistics and without; differentiated they take more."""
    h, w, y = np.ones((64, 32), np.float32), np.ones((32, 128), np.float32), np.arange(64)

    def loss(h, w, **options):
        return linear_cross_entropy(h, w, y, chunk_size=16, **options)

    def both(h, w):
        value, found = loss(h, w, return_statistics=True)
        return value + jnp.sum(found.entropy)

    with_statistics = partial(loss, return_statistics=True)
    assert products(jax.value_and_grad(loss, (0, 1)), h, w) == 3
    assert products(jax.value_and_grad(with_statistics, (0, 1), has_aux=True), h, w) == 3
    assert products(with_statistics, h, w) == 1
    assert products(jax.grad(both, (0, 1)), h, w) > 3
