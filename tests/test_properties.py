"""What holds for every input: drawn shapes, dtypes, axes, magnitudes and options.

Shapes come from a small pool, since each new one compiles.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxsoftmax as js

SHAPES = [(4,), (3, 5), (2, 3, 4)]
DTYPES = ["float32", "bfloat16", "float16", "float64"]
MAGNITUDES = [1e-30, 1e-3, 1.0, 30.0, 1e4, 1e30]
LARGEST = {"float16": 1e4}  # magnitudes that the dtype holds


def unit(shape):
    """Numbers in [-1, 1], many of them equal when shrunk."""
    return hnp.arrays(
        np.float64, shape, elements=st.floats(-1.0, 1.0, width=32, allow_subnormal=False)
    )


@st.composite
def logits_and_axis(draw, dtypes=tuple(DTYPES), magnitudes=tuple(MAGNITUDES)):
    """A NumPy array to be cast, its dtype, and a class axis as the user would write it."""
    shape = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from(dtypes))
    magnitude = min(draw(st.sampled_from(magnitudes)), LARGEST.get(dtype, np.inf))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return magnitude * draw(unit(shape)), dtype, axis


@st.composite
def examples(draw, dtypes=("float32",), magnitudes=tuple(MAGNITUDES)):
    """The same with classes last, and a label for each example."""
    numbers, dtype, _ = draw(logits_and_axis(dtypes, magnitudes))
    batch, classes = numbers.shape[:-1], numbers.shape[-1]
    labels = draw(hnp.arrays(np.int32, batch, elements=st.integers(0, classes - 1)))
    return numbers, dtype, labels


@contextlib.contextmanager
def cast(numbers, dtype):
    """The array in its dtype, float64 where that is asked for."""
    with jax.enable_x64(dtype == "float64"):
        yield jnp.asarray(numbers, dtype)


def epsilon(dtype):
    """Half the spacing around 1, and the distance to the next number near 0."""
    info = jnp.finfo(dtype)
    return 0.5 * float(info.eps), float(info.tiny)


# --- distributions --------------------------------------------------------------------------------


@given(logits_and_axis())
def test_softmax_sums_to_one(case):
    numbers, dtype, axis = case
    with cast(numbers, dtype) as x:
        p = oracles.f64(js.softmax(x, axis))
    half_ulp, smallest = epsilon(dtype)
    assert p.shape == numbers.shape
    assert np.all((p >= 0.0) & (p <= 1.0))
    # Each probability is rounded once; beneath is the rounding of float32 or float64.
    allowed = (
        half_ulp + 5 * smallest + 4 * epsilon("float64" if dtype == "float64" else "float32")[0]
    )
    assert np.all(np.abs(p.sum(axis) - 1.0) <= allowed)


@given(logits_and_axis())
def test_softmax_keeps_the_order(case):
    """The largest logit has the largest probability, and no smaller one overtakes a larger."""
    numbers, dtype, axis = case
    with cast(numbers, dtype) as x:
        p = np.moveaxis(oracles.f64(js.softmax(x, axis)), axis, -1)
        log_p = np.moveaxis(oracles.f64(js.log_softmax(x, axis)), axis, -1)
        x = np.moveaxis(oracles.f64(x), axis, -1)
    best = x.argmax(-1)[..., None]
    np.testing.assert_array_equal(np.take_along_axis(p, best, -1)[..., 0], p.max(-1))
    np.testing.assert_array_equal(np.take_along_axis(log_p, best, -1)[..., 0], log_p.max(-1))
    order = x.argsort(-1)
    assert np.all(np.diff(np.take_along_axis(log_p, order, -1), axis=-1) >= 0.0)


@given(logits_and_axis())
def test_distributions_agree_with_the_formulas(case):
    numbers, dtype, axis = case
    with cast(numbers, dtype) as x:
        got = [oracles.f64(f(x, axis)) for f in (js.softmax, js.log_softmax)]
        log_z = oracles.f64(js.logsumexp(x, axis))
        x = np.moveaxis(oracles.f64(x), axis, -1)
    half_ulp, smallest = epsilon(dtype)
    wide, _ = epsilon("float64" if dtype == "float64" else "float32")
    # p: the rounding of each gap to the maximum comes back as a relative error of its exponential.
    gaps = np.moveaxis(x.max(-1, keepdims=True) - x, -1, axis)
    log_p = np.moveaxis(oracles.log_softmax(x), -1, axis)
    p = np.exp(log_p)
    allowed = (half_ulp + wide * (8 + np.minimum(gaps, 1000.0))) * p + smallest
    assert np.all(np.abs(got[0] - p) <= allowed)
    allowed = (half_ulp + 8 * wide) * np.abs(log_p) + smallest
    finite = np.abs(log_p) <= float(jnp.finfo(dtype).max)
    assert np.all(np.abs(got[1] - log_p)[finite] <= allowed[finite])
    np.testing.assert_allclose(log_z, oracles.logsumexp(x), rtol=8 * wide, atol=8 * wide)


@given(
    hnp.arrays(np.int32, (3, 5), elements=st.integers(-4096, 4096)),
    hnp.arrays(np.int32, (3,), elements=st.integers(0, 4)),
    st.integers(-65536, 65536),
)
def test_a_common_shift_changes_no_bit(steps, labels, shift):
    """Multiples of 1/64 below 2^11: the shifted logits are exact, and so is everything after."""
    x = jnp.asarray(steps / 64, jnp.float32)
    shifted = jnp.asarray((steps + shift) / 64, jnp.float32)
    np.testing.assert_array_equal(js.softmax(x), js.softmax(shifted))
    np.testing.assert_array_equal(js.log_softmax(x), js.log_softmax(shifted))
    value_and_gradient = jax.value_and_grad(js.cross_entropy)
    for a, b in zip(
        value_and_gradient(x, labels), value_and_gradient(shifted, labels), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@given(examples(), st.randoms(use_true_random=False))
def test_classes_have_no_order(case, random):
    """Permuting the classes permutes probabilities and gradients, and leaves the loss."""
    numbers, dtype, labels = case
    order = list(range(numbers.shape[-1]))
    random.shuffle(order)
    moved = np.argsort(order)[labels]  # where each label's class went
    with cast(numbers, dtype) as x:
        permuted = x[..., np.asarray(order)]
        np.testing.assert_allclose(
            js.softmax(permuted), js.softmax(x)[..., np.asarray(order)], 5e-7
        )
        np.testing.assert_allclose(
            js.cross_entropy(permuted, jnp.asarray(moved, jnp.int32), reduction="none"),
            js.cross_entropy(x, labels, reduction="none"),
            rtol=FLOAT32,
        )
        gradient = jax.grad(js.cross_entropy)
        np.testing.assert_allclose(
            gradient(permuted, jnp.asarray(moved, jnp.int32)),
            gradient(x, labels)[..., np.asarray(order)],
            rtol=1e-5,
            atol=1e-30,
        )


# --- losses ---------------------------------------------------------------------------------------

FLOAT32 = 1e-6
SMALLEST = float(jnp.finfo(jnp.float32).tiny)


@given(examples(dtypes=("float32", "bfloat16", "float16")))
def test_losses_agree_with_the_formula(case):
    """To the last digits of float32, whatever the magnitude, and never below 0."""
    numbers, dtype, labels = case
    with cast(numbers, dtype) as x:
        losses = js.cross_entropy(x, labels, reduction="none")
        gradient = jax.grad(lambda x: js.cross_entropy(x, labels, reduction="sum"))(x)
    assert losses.dtype == jnp.float32
    assert gradient.dtype == x.dtype
    assert bool(jnp.all(losses >= 0.0))
    expected = oracles.cross_entropy(x, labels, reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=FLOAT32, atol=SMALLEST)
    half_ulp, smallest = epsilon(dtype)
    gaps = np.abs(oracles.f64(x) - oracles.f64(x).max(-1, keepdims=True))
    expected = oracles.cross_entropy_gradient(x, labels)
    allowed = (half_ulp + FLOAT32 + np.minimum(gaps, 1000.0) * 2**-23) * np.abs(expected) + smallest
    assert np.all(np.abs(oracles.f64(gradient) - expected) <= allowed)


@given(examples(dtypes=("float64",)))
def test_losses_agree_with_the_formula_in_float64(case):
    numbers, dtype, labels = case
    with cast(numbers, dtype) as x:
        losses = js.cross_entropy(x, labels, reduction="none")
        assert losses.dtype == jnp.float64
        expected = oracles.cross_entropy(x, labels, reduction="none")
        np.testing.assert_allclose(losses, expected, rtol=4e-15, atol=1e-300)


@given(examples())
def test_gradients_sum_to_zero(case):
    numbers, dtype, labels = case
    with cast(numbers, dtype) as x:
        one = jax.grad(js.cross_entropy)(x, labels)
        hot = jax.nn.one_hot(labels, x.shape[-1], dtype=x.dtype)
        soft = jax.grad(js.cross_entropy)(x, 0.5 * hot + 0.5 / x.shape[-1])
    for gradient in map(oracles.f64, (one, soft)):
        sizes = np.abs(gradient).sum(-1)
        assert np.all(np.abs(gradient.sum(-1)) <= FLOAT32 * sizes + 5 * SMALLEST)


@given(examples())
def test_one_hot_labels_are_integer_labels(case):
    numbers, dtype, labels = case
    with cast(numbers, dtype) as x:
        hot = jax.nn.one_hot(labels, x.shape[-1], dtype=jnp.float32)
        ours = js.cross_entropy(x, hot, reduction="none")
        expected = oracles.cross_entropy(x, labels, reduction="none")
    # The gap to the label carries its own rounding here, half an ulp of up to 64 where exp sees it.
    np.testing.assert_allclose(ours, expected, rtol=5e-6, atol=SMALLEST)


@given(examples())
def test_a_batch_is_the_mean_of_its_examples(case):
    numbers, dtype, labels = case
    with cast(numbers, dtype) as x:
        rows = x.reshape(-1, x.shape[-1])
        flat = labels.reshape(-1)
        singles = [js.cross_entropy(row, y) for row, y in zip(rows, flat, strict=True)]
        mean = np.mean(np.asarray(singles, np.float64))
        np.testing.assert_allclose(js.cross_entropy(x, labels), mean, rtol=FLOAT32, atol=SMALLEST)
        gradient = jax.grad(js.cross_entropy)(x, labels).reshape(rows.shape)
        alone = [jax.grad(js.cross_entropy)(row, y) for row, y in zip(rows, flat, strict=True)]
        expected = np.asarray(alone, np.float64) / len(flat)
        np.testing.assert_allclose(gradient, expected, rtol=FLOAT32, atol=2 * SMALLEST)


@given(unit((3, 5)), hnp.arrays(np.bool_, (5,)), st.integers(0, 4), st.sampled_from(MAGNITUDES))
def test_excluding_classes_is_removing_them(numbers, mask, kept, magnitude):
    mask[kept] = True
    x = jnp.asarray(magnitude * numbers, jnp.float32)
    inside = np.flatnonzero(mask)
    removed = x[:, inside]
    label = int(np.flatnonzero(inside == kept)[0])
    old, new = jnp.full(3, kept, jnp.int32), jnp.full(3, label, jnp.int32)
    where = jnp.asarray(mask)
    np.testing.assert_allclose(
        js.softmax(x, where=where)[:, inside], js.softmax(removed), rtol=5e-7, atol=SMALLEST
    )
    np.testing.assert_allclose(js.logsumexp(x, where=where), js.logsumexp(removed), rtol=5e-7)
    np.testing.assert_allclose(
        js.cross_entropy(x, old, where=where), js.cross_entropy(removed, new), rtol=FLOAT32
    )
    gradient = jax.grad(lambda x: js.cross_entropy(x, old, where=where))(x)
    np.testing.assert_array_equal(gradient[:, np.flatnonzero(~mask)], 0.0)
    expected = jax.grad(js.cross_entropy)(removed, new)
    np.testing.assert_allclose(gradient[:, inside], expected, rtol=1e-6, atol=2 * SMALLEST)


@given(examples(magnitudes=(1.0, 30.0)), st.data())
def test_ignoring_examples_is_removing_them(case, data):
    numbers, _, labels = case
    rows, flat = numbers.reshape(-1, numbers.shape[-1]), labels.reshape(-1)
    mask = data.draw(hnp.arrays(np.bool_, flat.shape))
    x = jnp.asarray(rows, jnp.float32)
    poisoned = jnp.where(jnp.asarray(mask)[:, None], x, jnp.nan)
    expected = oracles.cross_entropy(np.asarray(x)[mask], flat[mask]) if mask.any() else 0.0
    got = js.cross_entropy(poisoned, flat, example_weights=jnp.asarray(mask))
    np.testing.assert_allclose(got, expected, rtol=FLOAT32)
    marked = np.where(mask, flat, -1).astype(np.int32)
    value, gradient = jax.value_and_grad(
        lambda x: js.cross_entropy(x, jnp.asarray(marked), ignore_index=-1)
    )(poisoned)
    np.testing.assert_allclose(value, expected, rtol=FLOAT32)
    np.testing.assert_array_equal(gradient[np.flatnonzero(~mask)], 0.0)
    assert not bool(jnp.any(jnp.isnan(gradient)))


# --- options --------------------------------------------------------------------------------------

WEIGHTS = st.floats(0.25, 2.0, width=32)


@st.composite
def options(draw, batch, classes):
    """A draw from all options at once, arrays as NumPy; with integer labels or distributions."""
    drawn = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    soft = draw(st.booleans())
    labels = draw(hnp.arrays(np.int32, batch, elements=st.integers(0, classes - 1)))
    hot = labels[..., None] == np.arange(classes)
    if draw(st.booleans()):
        drawn["where"] = draw(hnp.arrays(np.bool_, (*batch, classes))) | hot
    if draw(st.booleans()):
        drawn["class_weights"] = draw(hnp.arrays(np.float32, (classes,), elements=WEIGHTS))
    if draw(st.booleans()):
        kind = draw(st.sampled_from([np.bool_, np.float32]))
        elements = WEIGHTS if kind is np.float32 else None
        drawn["example_weights"] = draw(hnp.arrays(kind, batch, elements=elements))
    if drawn["reduction"] == "mean" and draw(st.booleans()):
        drawn["denominator"] = 7.0
    drawn["label_smoothing"] = draw(st.sampled_from([0.0, 0.1]))
    drawn["z_loss"] = draw(st.sampled_from([0.0, 1e-2]))
    drawn["soft_cap"] = draw(st.sampled_from([None, 5.0]))
    drawn["temperature"] = draw(st.sampled_from([1.0, 0.7]))
    if soft:
        mass = draw(hnp.arrays(np.float32, (*batch, classes), elements=WEIGHTS))
        mass = np.where(drawn.get("where", True), mass, np.float32(0.0))
        return mass / mass.sum(-1, keepdims=True), drawn
    if draw(st.booleans()):
        drawn["ignore_index"] = draw(st.sampled_from([0, -100]))
    return labels, drawn


@given(unit((2, 3, 4)), st.data())
def test_any_options_agree_with_the_formulas(numbers, data):
    """Value, and gradient against central differences of the float64 reference."""
    labels, drawn = data.draw(options((2, 3), 4))
    x = jnp.asarray(4.0 * numbers, jnp.float32)

    def ours(x):
        return jnp.sum(js.cross_entropy(x, labels, **drawn))

    def reference(x):
        return np.sum(oracles.cross_entropy(x, labels, **drawn))

    value, gradient = jax.value_and_grad(ours)(x)
    # Logits within ±4: a few roundings of terms of size 10 in float32.
    np.testing.assert_allclose(value, reference(oracles.f64(x)), rtol=3e-6, atol=1e-6)
    expected = oracles.numerical_gradient(reference, x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=2e-6)


@given(
    unit((2, 5)),
    hnp.arrays(np.float32, (2, 5), elements=st.floats(0.0, 1.0, width=32)),
    st.sampled_from([None, 3.0]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from(["mean", "sum", "none"]),
    st.sampled_from([None, np.bool_, np.float32]),
    st.data(),
)
def test_any_binary_options_agree_with_the_formulas(
    numbers, labels, pos_weight, smoothing, reduction, weights, data
):
    x = jnp.asarray(8.0 * numbers, jnp.float32)
    drawn = {"label_smoothing": smoothing, "reduction": reduction}
    if pos_weight is not None:
        drawn["pos_weight"] = np.full(5, pos_weight, np.float32)
    if weights is not None:
        elements = WEIGHTS if weights is np.float32 else None
        drawn["example_weights"] = data.draw(hnp.arrays(weights, (2, 1), elements=elements))

    def ours(x):
        return jnp.sum(js.binary_cross_entropy(x, labels, **drawn))

    def reference(x):
        return np.sum(oracles.binary_cross_entropy(x, labels, **drawn))

    value, gradient = jax.value_and_grad(ours)(x)
    np.testing.assert_allclose(value, reference(oracles.f64(x)), rtol=3e-6, atol=1e-6)
    expected = oracles.numerical_gradient(reference, x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=2e-6)
