"""Dtypes of logits and labels, and more numbers than 32 bits can count."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import LOSSES, SINGLE, each_loss

import jaxsoftmax as js

# --- dtypes of the logits -------------------------------------------------------------------------

HALVES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])


@pytest.mark.exhaustive(every=6)
@HALVES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@each_loss
def test_a_half_precision_loss_is_not_quantised(kind, reduction, dtype):
    """Numbers of bfloat16 have three digits (optax #1020); the loss is that of those numbers."""
    loss, oracle, logits, labels = LOSSES[kind]
    x = jnp.asarray(logits, dtype)
    got = loss(x, labels, reduction=reduction)
    assert got.dtype == jnp.float32
    expected = oracle(x, labels, reduction=reduction)
    np.testing.assert_allclose(oracles.f64(got), expected, rtol=1e-6, atol=0)


@HALVES
def test_a_half_precision_loss_over_a_vocabulary_is_not_quantised(dtype):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(scale=3.0, size=(16, 32000)), dtype)
    labels = random.integers(0, 32000, 16)
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 1e-4, "soft_cap": 30.0}):
        expected = oracles.cross_entropy(x, labels, **options)
        got = js.cross_entropy(x, labels, **options)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(float(got), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("probability", [0.9, 0.99, 0.999, 0.9999])
def test_the_bfloat16_gradient_of_a_sure_label_is_one_rounding_off(probability):
    """bfloat16(p) − 1 is up to 100 % wrong (liger #1329, #1419)."""
    margin = np.log(probability / (1 - probability))
    x = jnp.array([[margin, 0.0]], jnp.bfloat16)
    gradient = jax.grad(js.cross_entropy)(x, jnp.array([0]))
    assert gradient.dtype == jnp.bfloat16
    expected = oracles.cross_entropy_gradient(x, np.array([0]))
    np.testing.assert_allclose(oracles.f64(gradient), expected, rtol=2.0**-8, atol=0)


CLASSES_BEYOND_HALF = 70_001  # float16 ends at 65,504


def test_float16_with_more_classes_than_it_can_count():
    """A sum of cotangents in float16 is inf there, and the gradient NaN (jax #40409)."""
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(2, CLASSES_BEYOND_HALF)), jnp.float16)
    labels = np.array([0, CLASSES_BEYOND_HALF - 1])
    p, log_p = oracles.softmax(x), oracles.log_softmax(x)
    half, tiny = 2.0**-10, 2.0**-23  # float16's epsilon, and its spacing below 6e-5
    np.testing.assert_allclose(oracles.f64(js.softmax(x)), p, rtol=half, atol=tiny)
    np.testing.assert_allclose(oracles.f64(js.log_softmax(x)), log_p, rtol=half)
    np.testing.assert_allclose(js.logsumexp(x), oracles.logsumexp(x), rtol=1e-6)

    def total(x):
        return jnp.sum(js.log_softmax(x).astype(jnp.float32))

    expected = 1.0 - CLASSES_BEYOND_HALF * p
    np.testing.assert_allclose(oracles.f64(jax.grad(total)(x)), expected, rtol=half, atol=half)
    log_z = jax.grad(lambda x: jnp.sum(js.logsumexp(x)))(x)
    np.testing.assert_allclose(oracles.f64(log_z), p, rtol=half, atol=tiny)
    for smoothing in (0.0, 0.1):
        f = partial(js.cross_entropy, reduction="sum", label_smoothing=smoothing)
        value, gradient = jax.value_and_grad(f)(x, labels)
        reference = oracles.cross_entropy(x, labels, reduction="sum", label_smoothing=smoothing)
        np.testing.assert_allclose(float(value), reference, rtol=1e-6)
        target = smoothing / CLASSES_BEYOND_HALF + (1 - smoothing) * (
            np.arange(CLASSES_BEYOND_HALF) == labels[:, None]
        )
        np.testing.assert_allclose(oracles.f64(gradient), p - target, rtol=half, atol=tiny)


# --- more than 2**31 logits, of which only the shapes are looked at ------------------------------

MANY = {
    "many classes": ((65_536, 65_544), -1),
    "many examples": ((2**32 + 8, 3), -1),
    "images": ((2**12, 1000, 64, 64), 1),
}


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("label_dtype", [jnp.int32, jnp.uint8], ids=["int32", "uint8"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", MANY)
def test_more_than_two_to_the_31_logits(case, dtype, label_dtype):
    """No size that has to fit an int32 (pytorch #85786)."""
    shape, axis = MANY[case]
    assert np.prod(shape, dtype=object) > 2**31
    batch = tuple(np.delete(shape, axis).tolist())
    x, labels = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(batch, label_dtype)
    w = jax.ShapeDtypeStruct((shape[axis],), jnp.float32)
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 1e-4, "ignore_index": -100}):

        def f(x, labels, w, options=options):
            return js.cross_entropy(x, labels, axis=axis, class_weights=w, **options)

        value = jax.eval_shape(f, x, labels, w)
        assert (value.shape, value.dtype) == ((), jnp.float32)
        value, gradients = jax.eval_shape(jax.value_and_grad(f, (0, 2)), x, labels, w)
        assert (value.shape, value.dtype) == ((), jnp.float32)
        assert [(g.shape, g.dtype) for g in gradients] == [(shape, dtype), (w.shape, w.dtype)]
    none = partial(js.cross_entropy, axis=axis, reduction="none", return_statistics=True)
    losses, statistics = jax.eval_shape(none, x, labels)
    assert losses.shape == statistics.predicted.shape == batch


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("case", MANY)
def test_distributions_over_more_than_two_to_the_31_logits(case, name):
    shape, axis = MANY[case]
    function = partial(getattr(js, name), axis=axis)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    kept = tuple(np.delete(shape, axis).tolist()) if name == "logsumexp" else shape
    assert jax.eval_shape(function, x).shape == kept
    assert jax.eval_shape(jax.grad(lambda x: jnp.sum(function(x))), x).shape == shape


def test_more_than_two_to_the_31_entries():
    x = jax.ShapeDtypeStruct((2**20, 2**12), jnp.float32)
    labels = jax.ShapeDtypeStruct(x.shape, jnp.uint8)
    value, gradient = jax.eval_shape(jax.value_and_grad(js.binary_cross_entropy), x, labels)
    assert (value.shape, gradient.shape) == ((), x.shape)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_the_mean_over_more_than_two_to_the_31_examples_divides_by_their_number(name):
    """As a float: the count itself does not fit an int32."""
    count = 2**33
    x = jax.ShapeDtypeStruct((count, 2), jnp.float32)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32)
    program = str(jax.make_jaxpr(getattr(js, name))(x, labels))
    assert f"{float(count)}:f32" in program


# --- dtypes of the labels -------------------------------------------------------------------------

LABEL_DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def losses_of(labels, classes, **options):
    """Per-example losses and their oracle, on random logits."""
    x = np.random.default_rng(classes).normal(size=(len(labels), classes)).astype(np.float32)
    got = js.cross_entropy(x, labels, reduction="none", **options)
    return oracles.f64(got), oracles.cross_entropy(x, labels, reduction="none", **options)


@pytest.mark.exhaustive(every=7, cover=False)
@pytest.mark.parametrize("dtype", LABEL_DTYPES)
@pytest.mark.parametrize("classes", [3, 256, 1000])
def test_labels_of_any_integer_dtype(classes, dtype):
    """The largest label that class count and dtype allow; int8 with 1000 classes among them."""
    top = min(classes - 1, np.iinfo(dtype).max)
    labels = np.array([0, 1, top // 2, top], dtype)
    with jax.enable_x64(np.dtype(dtype).itemsize == 8):
        got, expected = losses_of(labels, classes)
    np.testing.assert_allclose(got, expected, rtol=SINGLE)


@pytest.mark.parametrize("classes", [3, 200, 1000])
def test_an_ignore_index_that_the_labels_cannot_hold(classes):
    """-100 as a uint8 is 156, which is a class like any other."""
    labels = np.array([0, min(156, classes - 1), 2], np.uint8)
    got, expected = losses_of(labels, classes, ignore_index=-100)
    assert (got > 0.0).all()
    np.testing.assert_allclose(got, expected, rtol=SINGLE)


@pytest.mark.parametrize(
    ("dtype", "index", "other"),
    [
        ("int8", -100, 100),
        ("int16", -100, 156),
        ("uint8", 255, 127),
        ("uint16", 65_535, 255),
        ("int32", -100, 156),
        ("int32", -(2**31), 0),
        ("uint32", 2**32 - 1, 0),
    ],
)
def test_an_ignore_index_at_the_end_of_the_dtype(dtype, index, other):
    labels = np.array([1, index, other], dtype)
    got, expected = losses_of(labels, 300, ignore_index=index)
    assert got[1] == 0.0
    assert (got[[0, 2]] > 0.0).all()
    np.testing.assert_allclose(got, expected, rtol=SINGLE)


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        ("int8", -1),
        ("int8", -128),
        ("uint8", 255),
        ("int16", 1000),
        ("uint16", 65_535),
        ("int32", 2**31 - 1),
        ("int32", -(2**31)),
        ("uint32", 2**31),
        ("uint32", 2**32 - 1),
        # Low 32 bits of 0, 1 and 0: without x64 JAX would take them for classes.
        ("int64", 2**32),
        ("int64", 2**40 + 1),
        ("int64", -(2**32)),
        ("uint64", 2**63),
        ("uint64", 2**64 - 1),
    ],
)
def test_labels_that_are_no_class_never_wrap_to_one(dtype, bad):
    labels = np.array([0, bad, 2], dtype)
    for x64 in {False, np.dtype(dtype).itemsize == 8}:
        with jax.enable_x64(x64):
            got, expected = losses_of(labels, 200)
        assert np.isnan(got[1])
        np.testing.assert_allclose(got, expected, rtol=SINGLE)


@pytest.mark.parametrize("bad", [np.int64(2**32), np.int64(-(2**32)), np.uint64(2**32 + 1)])
def test_a_label_that_is_a_numpy_scalar_does_not_wrap_to_a_class(bad):
    assert np.isnan(js.cross_entropy(np.zeros(3, np.float32), np.asarray(bad)))
    assert np.isnan(js.cross_entropy(np.zeros(3, np.float32), bad))
