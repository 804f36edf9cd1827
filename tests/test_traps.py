"""The traps that losses of this kind have fallen into, each a test with the trap's name.

A number such as pytorch #75181 is the issue in which users of that project met the trap.
References are float64 formulas; SINGLE is a few roundings of a float32 result.
"""

from __future__ import annotations

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxsoftmax as js

# Many small programs, each run a few times: their compilation is what takes time.
FAST = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
compiled = partial(jax.jit, compiler_options=FAST)

INF, NAN = float("inf"), float("nan")
SINGLE = 1e-6

_random = np.random.default_rng(41)
LOGITS = _random.normal(scale=2.0, size=(3, 4)).astype(np.float32)
LOG_PROBS = oracles.log_softmax(LOGITS).astype(np.float32)
LABELS = np.array([2, 0, 3], np.int32)
SOFT = _random.dirichlet(np.ones(4), size=3).astype(np.float32)
CLASS_WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0], np.float32)


def nll_loss(logits, labels, **options):
    """`nll_loss` with the names of the others' arguments, for tables that hold all of them."""
    return js.nll_loss(logits, labels, **options)


# The function, its float64 definition, logits and labels.
LOSSES = {
    "classes": (js.cross_entropy, oracles.cross_entropy, LOGITS, LABELS),
    "distributions": (js.cross_entropy, oracles.cross_entropy, LOGITS, SOFT),
    "nll classes": (nll_loss, oracles.nll_loss, LOG_PROBS, LABELS),
    "nll distributions": (nll_loss, oracles.nll_loss, LOG_PROBS, SOFT),
    "entries": (js.binary_cross_entropy, oracles.binary_cross_entropy, LOGITS, SOFT),
}
each_loss = pytest.mark.parametrize("kind", LOSSES)
each_loss_over_classes = pytest.mark.parametrize("kind", [k for k in LOSSES if k != "entries"])

SMOOTHING = {"plain": {}, "smoothing": {"label_smoothing": 0.1}}
OF_CLASSES = SMOOTHING | {
    "class weights": {"class_weights": CLASS_WEIGHTS},
    "smoothing and class weights": {"label_smoothing": 0.1, "class_weights": CLASS_WEIGHTS},
}
OF_LOGITS = OF_CLASSES | {
    "z-loss": {"z_loss": 0.3},
    "soft cap": {"soft_cap": 5.0},
    "temperature": {"temperature": 0.5},
    "everything": {
        "label_smoothing": 0.1,
        "class_weights": CLASS_WEIGHTS,
        "z_loss": 0.3,
        "soft_cap": 5.0,
        "temperature": 0.5,
    },
}
each_option_of_logits = pytest.mark.parametrize("options", OF_LOGITS.values(), ids=OF_LOGITS)
OPTIONS = {
    "classes": OF_LOGITS,
    "distributions": OF_LOGITS,
    "nll classes": OF_CLASSES,
    "nll distributions": OF_CLASSES,
    "entries": SMOOTHING,
}
SOME_OPTIONS = [
    pytest.param(kind, OPTIONS[kind][name], id=f"{kind}-{name}")
    for kind in LOSSES
    for name in ("plain", "class weights", "everything")
    if name in OPTIONS[kind]
]


def assert_close(got, expected, tolerance=SINGLE):
    """Within a tolerance relative to the largest finite number; infinities and NaN alike."""
    expected = oracles.f64(expected)
    scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    assert np.shape(got) == expected.shape
    np.testing.assert_allclose(oracles.f64(got), expected, rtol=0, atol=tolerance * scale)


def value_and_gradients(loss, arrays, **fixed):
    """The loss, and its gradient in each of the arrays that are real numbers, by name."""
    moving = {k: jnp.asarray(v) for k, v in arrays.items() if v.dtype == np.float32}
    fixed |= {k: v for k, v in arrays.items() if k not in moving}
    return compiled(jax.value_and_grad(lambda moving: loss(**moving, **fixed)))(moving)


def value_and_gradient(f, *arguments):
    """A function and its derivative in its first argument, as one program."""
    return compiled(jax.value_and_grad(f))(*arguments)


def losses_and_gradient(f, x):
    """The losses of the examples, and the derivative of their sum."""

    def total(x):
        losses = f(x)
        return jnp.sum(losses), losses

    (_, losses), gradient = compiled(jax.value_and_grad(total, has_aux=True))(x)
    return np.asarray(losses), np.asarray(gradient)


def hessian_of(f, *arguments):
    return np.asarray(compiled(jax.hessian(f))(*arguments))


# --- ignored examples -----------------------------------------------------------------------------

NOTHING_KEPT = {
    "ignore_index": {"ignore_index": -100},
    "mask": {"example_weights": np.zeros(3, bool)},
    "zero weights": {"example_weights": np.zeros(3, np.float32)},
}


@pytest.mark.parametrize("how", NOTHING_KEPT)
@each_loss
def test_all_targets_ignored(kind, how):
    """Loss 0 and gradients 0, where the mean of nothing is NaN elsewhere (pytorch #75181)."""
    loss, _, logits, labels = LOSSES[kind]
    options = dict(NOTHING_KEPT[how if labels.ndim == 1 or how != "ignore_index" else "mask"])
    moving = {"logits": logits}
    if labels.ndim == 1:
        labels = np.full(3, -100, np.int32) if how == "ignore_index" else labels
    else:
        moving["labels"] = labels
    if kind == "entries":
        options["example_weights"] = options["example_weights"][:, None]
    else:
        moving["class_weights"] = CLASS_WEIGHTS
        options["label_smoothing"] = 0.1

    def both(moving):
        f = partial(loss, **{"labels": labels} | moving | options)
        return jnp.stack([f(), f(reduction="sum")])

    f = compiled(lambda moving: (both(moving), jax.jacrev(both)(moving)))
    for garbage in (0.0, NAN, INF):
        values, gradients = f(moving | {"logits": logits + np.float32(garbage)})
        np.testing.assert_array_equal(values, 0.0)
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, 0.0, err_msg=name)


KEPT = np.array([0, 2])  # of three examples the middle one is out


def leave_out_the_middle(kind, how):
    """Labels and the option with which the example does not count."""
    labels = LOSSES[kind][3].copy()
    if how == "ignore_index":
        labels[1] = -7
        return labels, {"ignore_index": -7}
    if labels.ndim > 1 and kind != "entries":
        labels[1] = NAN
    weights = np.array([1, 0, 1], bool if how == "mask" else np.float32)
    return labels, {"example_weights": weights[:, None] if kind == "entries" else weights}


LEFT_OUT = [
    pytest.param(*row.values, how, id=f"{row.id}-{how}")
    for row in SOME_OPTIONS
    for how in ["mask", "zero weight"] + ["ignore_index"] * (LOSSES[row.values[0]][3].ndim == 1)
]


@pytest.mark.parametrize(("kind", "options", "how"), LEFT_OUT)
def test_what_an_ignored_example_holds_reaches_nothing(kind, options, how):
    """Masking the loss alone leaves 0·NaN in the gradient: the row itself has to go."""
    loss, oracle, logits, _ = LOSSES[kind]
    labels, left_out = leave_out_the_middle(kind, how)
    others = {k: v for k, v in options.items() if k != "class_weights"}
    moving = {k: v for k, v in options.items() if k == "class_weights"}

    def alone(x):
        return oracle(x, labels[KEPT], **options)

    def alone_weighted(w):
        return oracle(logits[KEPT], labels[KEPT], class_weights=w, **others)

    f = compiled(jax.value_and_grad(lambda a: loss(labels=labels, **a, **others, **left_out)))
    slope = oracles.numerical_gradient(alone, logits[KEPT])
    for garbage in (NAN, INF, -INF, 1e30):
        bad = logits.copy()
        bad[1, [0, 2]] = garbage
        value, gradients = f({"logits": bad} | moving)
        assert_close(value, alone(logits[KEPT]))
        np.testing.assert_array_equal(gradients["logits"][1], 0.0)
        assert_close(gradients["logits"][KEPT], slope)
        if moving:
            slope_of_weights = oracles.numerical_gradient(alone_weighted, CLASS_WEIGHTS)
            assert_close(gradients["class_weights"], slope_of_weights)


@each_loss_over_classes
def test_statistics_and_curvature_of_an_ignored_example_are_zero(kind):
    loss, _, logits, _ = LOSSES[kind]
    labels, left_out = leave_out_the_middle(kind, "mask")

    def total(x):
        value, statistics = loss(x, labels, return_statistics=True, **left_out)
        return value + sum(jnp.sum(s[1]) + s[0] for s in statistics[:3]), statistics

    bad = jnp.asarray(logits).at[1, 2].set(NAN)
    hessian, statistics = compiled(jax.hessian(total, has_aux=True))(bad)
    chex.assert_tree_all_finite((hessian, statistics))
    np.testing.assert_array_equal(hessian[1], 0.0)
    np.testing.assert_array_equal(hessian[:, :, 1], 0.0)
    for field in statistics[:4]:
        assert field[1] == 0
    assert statistics.weight_sum == 2.0


# --- label smoothing ------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["", "class weights"])
@pytest.mark.parametrize("kind", ["classes", "nll classes"])
def test_smoothing_counts_only_the_examples_that_are_kept(kind, weighted):
    """PyTorch's rule, term by term: Σ over the kept of (1−ε) w_y ℓ_y + ε/C Σ_c w_c ℓ_c, by Σ w_y.

    A mean over all examples for the smooth term (tinygrad #3570) or its weights left out (pytorch
    #73205) are the ways to get it wrong.
    """
    loss, _, logits, _ = LOSSES[kind]
    labels = np.array([2, -100, 3], np.int32)
    w = CLASS_WEIGHTS if weighted else np.ones(4, np.float32)

    def definition(x):
        log_p = oracles.log_softmax(x) if kind == "classes" else x
        terms = [0.9 * w[y] * -log_p[i, y] + 0.1 / 4 * (w @ -log_p[i]) for i, y in ((0, 2), (2, 3))]
        return sum(terms) / (w[2] + w[3])

    options = {"label_smoothing": 0.1, "ignore_index": -100}
    if weighted:
        options["class_weights"] = w
    value, gradients = value_and_gradients(loss, {"logits": logits, "labels": labels}, **options)
    assert_close(value, definition(oracles.f64(logits)))
    assert_close(gradients["logits"], oracles.numerical_gradient(definition, logits))


MISSING = np.array([[1.0, -INF, 2.0, 0.5], [-INF, 0.0, -INF, -1.0]], np.float32)
EXIST = np.isfinite(MISSING)
ON_EXISTING = {
    "classes": np.array([2, 3], np.int32),
    "distributions": np.array([[0.2, 0.0, 0.3, 0.5], [0.0, 1.0, 0.0, 0.0]], np.float32),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", ON_EXISTING)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_smoothing_at_a_logit_of_minus_infinity(name, labels, smoothing):
    """ε = 0 is no term 0·inf, and ε > 0 gives nothing to a class that does not exist."""
    loss, oracle = getattr(js, name), getattr(oracles, name)
    labels = ON_EXISTING[labels]
    f = partial(loss, labels=labels, label_smoothing=smoothing)
    x = jnp.asarray(MISSING)

    @compiled
    def derivatives(x):
        return jax.jvp(f, (x,), (jnp.ones_like(x),)), jax.grad(f)(x), jax.hessian(f)(x)

    (value, tangent), gradient, hessian = derivatives(x)
    assert_close(value, oracle(MISSING, labels, label_smoothing=smoothing))
    chex.assert_tree_all_finite((gradient, hessian, tangent))
    np.testing.assert_array_equal(np.asarray(gradient)[~EXIST], 0.0)

    def of_existing(numbers):
        moved = MISSING.astype(np.float64)
        moved[EXIST] = numbers
        return oracle(moved, labels, label_smoothing=smoothing)

    expected = oracles.numerical_gradient(of_existing, MISSING[EXIST])
    assert_close(np.asarray(gradient)[EXIST], expected)
    assert_close(tangent, expected.sum())


# --- weights and the mean -------------------------------------------------------------------------


def test_the_mean_divides_by_the_weights_that_count():
    losses = oracles.cross_entropy(LOGITS, LABELS, reduction="none")
    soft = oracles.cross_entropy(LOGITS, SOFT, reduction="none", class_weights=CLASS_WEIGHTS)
    w, v = CLASS_WEIGHTS[LABELS], np.array([2.0, 0.0, 0.5], np.float32)
    f = partial(js.cross_entropy, LOGITS)
    assert_close(f(LABELS, class_weights=CLASS_WEIGHTS), w @ losses / w.sum())
    assert_close(f(LABELS, example_weights=v), v @ losses / v.sum())
    both = f(LABELS, class_weights=CLASS_WEIGHTS, example_weights=v)
    assert_close(both, (w * v) @ losses / (w * v).sum())
    assert_close(f(SOFT, class_weights=CLASS_WEIGHTS), soft.mean())
    assert_close(f(SOFT, class_weights=CLASS_WEIGHTS, example_weights=v), v @ soft / v.sum())
    ignored = f(LABELS, class_weights=CLASS_WEIGHTS, ignore_index=0)
    assert_close(ignored, (w * losses)[[0, 2]].sum() / w[[0, 2]].sum())
    x, y = LOGITS[0], np.array([1, 0, 1, 0])
    entries = oracles.binary_cross_entropy(x, y, reduction="none")
    weights = np.array([2.0, 0.0, 0.5, 1.0], np.float32)
    assert_close(
        js.binary_cross_entropy(x, y, example_weights=weights), weights @ entries / weights.sum()
    )


def test_microbatches_of_unequal_length_with_one_denominator():
    """A mean of means is not the mean over tokens (transformers #34191)."""
    labels = np.array([2, -100, 3, 0, 1, -100, -100, 2], np.int32)
    x = np.random.default_rng(5).normal(size=(8, 4)).astype(np.float32)

    def accumulated(x):
        parts = [slice(0, 2), slice(2, 5), slice(5, 8)]
        return sum(
            js.cross_entropy(x[p], labels[p], ignore_index=-100, denominator=5) for p in parts
        )

    expected = oracles.cross_entropy(x, labels, ignore_index=-100)
    assert_close(accumulated(x), expected)
    slope = oracles.numerical_gradient(
        lambda x: oracles.cross_entropy(x, labels, ignore_index=-100), x
    )
    assert_close(jax.grad(accumulated)(jnp.asarray(x)), slope)


@pytest.mark.parametrize(("kind", "options"), SOME_OPTIONS)
def test_the_gradient_without_reduction_takes_the_cotangent(kind, options):
    """A gradient made in the forward pass forgets it (liger #678, #968, #1298)."""
    loss, oracle, logits, labels = LOSSES[kind]

    @compiled
    def pulled_back(x, cotangent):
        losses, pull = jax.vjp(lambda x: loss(x, labels, reduction="none", **options), x)
        return losses, pull(cotangent)[0]

    expected = oracle(logits, labels, reduction="none", **options)
    cotangent = np.linspace(-1.0, 3.0, expected.size).reshape(expected.shape).astype(np.float32)
    cotangent.flat[1] = 0.0

    def weighed(x):
        return np.sum(cotangent * oracle(x, labels, reduction="none", **options))

    losses, gradient = pulled_back(logits, cotangent)
    assert_close(losses, expected)
    assert_close(gradient, oracles.numerical_gradient(weighed, logits))


@each_loss
def test_an_example_of_weight_zero_has_a_gradient_in_its_weight(kind):
    """Learning to reweight starts there: ∂Σwℓ/∂w = ℓ, and (ℓ − mean)/Σw under the mean."""
    loss, oracle, logits, labels = LOSSES[kind]
    losses = oracle(logits, labels, reduction="none")
    weights = np.linspace(0.0, 2.0, losses.size, dtype=np.float32).reshape(losses.shape)
    f = partial(value_and_gradients, loss, {"example_weights": weights}, logits=logits)
    _, gradients = f(labels=labels, reduction="sum")
    assert_close(gradients["example_weights"], losses)
    mean, gradients = f(labels=labels)
    expected = np.sum(weights * losses) / weights.sum()
    assert_close(mean, expected)
    assert_close(gradients["example_weights"], (losses - expected) / weights.sum())


TROUBLES = ["NaN", "+inf", "class that does not exist", "no class"]


@each_loss
def test_an_example_of_weight_zero_and_no_finite_loss_has_no_gradient(kind):
    loss, oracle, logits, labels = LOSSES[kind]
    weights = np.array([1.0, 0.0, 2.0], np.float32)
    if kind == "entries":
        weights = np.tile(weights[:, None], (1, 4))
    losses = oracle(logits[KEPT], labels[KEPT], reduction="none")
    f = compiled(
        jax.value_and_grad(lambda x, w, y: loss(x, y, example_weights=w, reduction="sum"), (0, 1))
    )
    for trouble in TROUBLES:
        value, gradients = f(*with_a_broken_example(kind, trouble, weights))
        assert_close(value, np.sum(weights[KEPT] * losses))
        for gradient in gradients:
            np.testing.assert_array_equal(gradient[1], 0.0, err_msg=trouble)
        assert np.isfinite(gradients[0]).all()
        assert_close(gradients[1][KEPT], losses)


def with_a_broken_example(kind, trouble, weights):
    """Logits, weights and labels, the example in the middle without a finite loss."""
    logits, labels = LOSSES[kind][2].copy(), LOSSES[kind][3].copy()
    if kind == "entries":
        logits[1], labels[1] = {"NaN": NAN, "no class": 0.0}.get(trouble, INF), 0.0
        labels[1] = 2.0 if trouble == "no class" else 0.0
    elif trouble == "no class":
        labels[1] = 9 if labels.ndim == 1 else NAN
    else:
        # The label is class 0: an infinity on another is as far from it as can be.
        at = 1 if trouble == "+inf" else 0
        logits[1, at] = {"NaN": NAN, "+inf": INF}.get(trouble, -INF)
    return logits, weights, labels


ZERO_DIVISORS = {
    "denominator": {"denominator": np.float32(0.0)},
    "weights that cancel": {"example_weights": np.array([1.0, -1.0, 0.0], np.float32)},
    "class weights": {"class_weights": np.zeros(4, np.float32)},
    "weights of the labels": {"class_weights": np.array([0.0, 1.0, 0.0, 0.0], np.float32)},
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("how", ZERO_DIVISORS)
def test_a_divisor_of_zero(how, smoothing):
    """Loss 0 and all gradients 0, the divisor's own among them."""
    arrays = {"logits": LOGITS, "labels": LABELS} | ZERO_DIVISORS[how]
    value, gradients = value_and_gradients(js.cross_entropy, arrays, label_smoothing=smoothing)
    assert value == 0.0
    assert set(gradients) >= set(ZERO_DIVISORS[how])
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, 0.0, err_msg=name)


@pytest.mark.parametrize("how", ["denominator", "weights that cancel"])
@pytest.mark.parametrize("kind", ["nll classes", "distributions", "nll distributions", "entries"])
def test_a_divisor_of_zero_of_the_other_losses(kind, how):
    loss, _, logits, labels = LOSSES[kind]
    arrays = {"logits": logits, "labels": labels} | ZERO_DIVISORS[how]
    if kind == "entries" and how != "denominator":
        arrays["example_weights"] = arrays["example_weights"][:, None]
    value, gradients = value_and_gradients(loss, arrays)
    assert value == 0.0
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, 0.0, err_msg=name)


# --- dtypes of the logits -------------------------------------------------------------------------

HALVES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])


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


# --- no examples, one class -----------------------------------------------------------------------

EMPTY = {"[0, 3]": ((0, 3), -1), "[2, 0, 3]": ((2, 0, 3), -1), "[0, 3, 2]": ((0, 3, 2), 1)}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_an_empty_batch(name, case, soft, reduction):
    """Loss 0; gradients of the right shape, and 0 where they have entries."""
    shape, axis = EMPTY[case]
    batch = tuple(np.delete(shape, axis).tolist())
    labels = np.zeros(shape, np.float32) if soft else np.zeros(batch, np.int32)
    loss = partial(nll_loss if name == "nll_loss" else js.cross_entropy, axis=axis)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    arrays = {"logits": np.zeros(shape, np.float32), "class_weights": np.ones(3, np.float32)}
    arrays |= {"labels": labels, "example_weights": np.zeros(batch, np.float32)}
    value = loss(**arrays, **options)
    assert value.shape == (batch if reduction == "none" else ())
    assert value.dtype == jnp.float32
    assert jnp.sum(value) == 0.0
    total, gradients = value_and_gradients(lambda **k: jnp.sum(loss(**k, **options)), arrays)
    assert total == 0.0
    for argument, gradient in gradients.items():
        assert gradient.shape == arrays[argument].shape
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_no_entries(shape):
    x = jnp.zeros(shape)
    value, gradient = jax.value_and_grad(js.binary_cross_entropy)(x, x)
    assert value == 0.0
    assert gradient.shape == shape
    assert js.binary_cross_entropy(x, x, reduction="none").shape == shape


def test_statistics_of_an_empty_batch():
    loss, statistics = js.cross_entropy(
        jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32), return_statistics=True
    )
    assert loss == 0.0
    assert [s.shape for s in statistics] == [(0,)] * 4 + [()]
    assert statistics.weight_sum == 0.0


ONE = np.array([[3.0], [-1e30], [0.0]], np.float32)


def test_one_class_is_certain():
    np.testing.assert_array_equal(js.softmax(ONE), np.ones((3, 1)))
    np.testing.assert_array_equal(js.log_softmax(ONE), np.zeros((3, 1)))
    np.testing.assert_array_equal(js.logsumexp(ONE), ONE[:, 0])
    assert not np.any(jax.jacobian(js.softmax)(ONE))
    assert not np.any(jax.jacobian(js.log_softmax)(ONE))
    np.testing.assert_array_equal(jax.jacobian(js.logsumexp)(jnp.asarray(ONE))[..., 0], np.eye(3))


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"soft_cap": 5.0, "temperature": 0.5}], ids=str
)
def test_one_class_has_nothing_to_learn(options, soft):
    labels = np.ones((3, 1), np.float32) if soft else np.zeros(3, np.int32)
    f = partial(js.cross_entropy, labels=labels, **options)
    value, gradient = value_and_gradient(f, ONE)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_array_equal(hessian_of(f, ONE), 0.0)


def test_one_class_in_nll_loss_and_its_z_loss():
    labels = np.zeros(3, np.int32)
    value, gradient = jax.value_and_grad(partial(js.nll_loss, reduction="sum"))(ONE, labels)
    assert value == -ONE.sum()
    np.testing.assert_array_equal(gradient, -1.0)
    x = ONE[[0, 2]]
    f = partial(js.cross_entropy, labels=labels[:2], z_loss=0.5, reduction="sum")
    assert f(x) == 4.5
    np.testing.assert_array_equal(jax.grad(f)(x), x)  # ∂ ½x² = x
    statistics = js.cross_entropy(ONE, labels, return_statistics=True)[1]
    np.testing.assert_array_equal(statistics.entropy, 0.0)
    np.testing.assert_array_equal(statistics.predicted, 0)


# --- ties of the maximum --------------------------------------------------------------------------


def covariance(x, z_loss=0.0):
    """The Hessian of −log p_y + λ log²Z: (diag(p) − p pᵀ)(1 + 2λ log Z) + 2λ p pᵀ."""
    p = oracles.softmax(x)
    scale = 1.0 + 2.0 * z_loss * oracles.logsumexp(x)
    return scale * (np.diag(p) - np.outer(p, p)) + 2.0 * z_loss * np.outer(p, p)


TIES = {
    "two": [1.0, 3.0, 3.0, 0.0],
    "two at the ends": [3.0, 1.0, 0.0, 3.0],
    "all": [2.0] * 4,
    "all but one": [2.0, 2.0, -1.0, 2.0],
    "below the label": [0.0, 0.0, 5.0, 0.0],
}


@pytest.mark.parametrize("z_loss", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["classes", "distributions"])
@pytest.mark.parametrize("copies", [1, 32], ids=["4 classes", "128 classes"])
def test_second_derivatives_where_classes_tie(copies, kind, z_loss):
    """max splits its derivative over ties: read back through it, the HVP is a third wrong."""
    gradient = jax.grad(partial(js.cross_entropy, z_loss=z_loss))

    @compiled
    def second_order(x, y, v):
        forward = jax.jvp(lambda x: gradient(x, y), (x,), (v,))[1]
        reverse = jax.grad(lambda x: jnp.vdot(gradient(x, y), v))(x)
        return jax.jacfwd(gradient)(x, y), forward, reverse

    v = np.random.default_rng(2).normal(size=4 * copies).astype(np.float32)
    for ties in TIES.values():
        x = np.array(ties * copies, np.float32)
        for label in (0, 1, 2, x.size - 1):
            y = np.eye(x.size, dtype=np.float32)[label] if kind == "distributions" else label
            expected = covariance(x, z_loss)
            hessian, forward, reverse = second_order(x, y, v)
            assert_close(hessian, expected)
            assert_close(forward, expected @ v)
            assert_close(reverse, expected @ v)


def test_second_derivatives_of_distributions_where_classes_tie():
    functions = (js.logsumexp, js.log_softmax, js.softmax)
    hessians = compiled(lambda x: [jax.hessian(f)(x) for f in functions])
    for ties in TIES.values():
        x = np.array(ties, np.float32)
        p, h = oracles.softmax(x), covariance(x)
        of_logsumexp, of_log_softmax, of_softmax = hessians(x)
        assert_close(of_logsumexp, h)
        assert_close(of_log_softmax, np.tile(-h, (4, 1, 1)))  # the same for every class
        d = np.eye(4) - p  # [c, i]: ∂p_c/∂x_i = p_c (1[c=i] − p_i)
        assert_close(of_softmax, p[:, None, None] * (d[:, :, None] * d[:, None, :] - h))


# --- numbers at and beyond the end of the line ----------------------------------------------------

# logits, label, loss, gradient
ENDS = {
    "1e30, label on it": ([1e30, 0.0, -1e30], 0, 0.0, [0, 0, 0]),
    "1e30, label below": ([1e30, 0.0, -1e30], 1, 1e30, [1, -1, 0]),
    "1e30, label far below": ([1e30, 0.0, -1e30], 2, 2e30, [1, 0, -1]),
    "1e30 twice": ([1e30, 1e30, 0.0], 0, np.log(2), [-0.5, 0.5, 0]),
    "-1e30 everywhere": ([-1e30] * 3, 1, np.log(3), [1 / 3, -2 / 3, 1 / 3]),
    "+inf, label on it": ([INF, 0.0, 1.0], 0, 0.0, [0, 0, 0]),
    "+inf, label below": ([INF, 0.0, 1.0], 1, INF, [0, 0, 0]),
    "+inf twice, label on one": ([INF, INF, 1.0], 1, np.log(2), [0, 0, 0]),
    "+inf everywhere": ([INF] * 3, 2, np.log(3), [0, 0, 0]),
    "+inf, label on -inf": ([INF, -INF, 0.0], 1, INF, [0, 0, 0]),
    "-inf elsewhere": ([0.0, -INF, 0.0], 0, np.log(2), [-0.5, 0, 0.5]),
    "-inf but for the label": ([-INF, 7.0, -INF], 1, 0.0, [0, 0, 0]),
    "-inf everywhere": ([-INF] * 3, 1, INF, [0, 0, 0]),
    "-inf and 1e30": ([1e30, -INF, 1e30], 2, np.log(2), [0.5, 0, -0.5]),
}


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "one-hot"])
@pytest.mark.parametrize("case", ENDS)
def test_huge_and_infinite_logits(case, soft):
    x, label, expected, slope = ENDS[case]
    y = np.eye(3, dtype=np.float32)[label] if soft else label
    value, gradient, hessian = derivatives_of_one_row()(np.array(x, np.float32), y)
    assert_close(value, expected)
    assert_close(gradient, slope)
    assert np.isfinite(hessian).all()


@functools.cache
def derivatives_of_one_row():
    f = js.cross_entropy
    return compiled(lambda x, y: (*jax.value_and_grad(f)(x, y), jax.hessian(f)(x, y)))


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "one-hot"])
def test_huge_and_infinite_logits_stay_in_their_rows(soft):
    rows = list(ENDS.values())
    x = np.array([row[0] for row in rows], np.float32)
    labels = np.array([row[1] for row in rows])
    y = np.eye(3, dtype=np.float32)[labels] if soft else labels
    losses, gradient = losses_and_gradient(partial(js.cross_entropy, labels=y, reduction="none"), x)
    for i, (_, _, expected, slope) in enumerate(rows):
        assert_close(losses[i], expected)
        assert_close(gradient[i], slope)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
@pytest.mark.parametrize("options", ["plain", "smoothing", "everything"])
def test_the_hessian_beside_logits_of_minus_infinity(options, soft):
    """No NaN to second order, exact zeros for the classes that do not exist (optax #1762)."""
    labels, options = ON_EXISTING["distributions" if soft else "classes"], OF_LOGITS[options]

    def of_existing(numbers):
        moved = MISSING.astype(np.float64)
        moved[EXIST] = numbers
        return oracles.cross_entropy(moved, labels, **options)

    # Differences of differences: 1e-6 of truncation and 1e-9 of rounding.
    expected = hessian_by_differences(of_existing, MISSING[EXIST])
    f = partial(js.cross_entropy, labels=labels, **options)
    for hessian in (
        hessian_of(f, MISSING),
        hessian_of(partial(f, where=EXIST), np.where(EXIST, MISSING, 0.0)),
    ):
        np.testing.assert_array_equal(hessian[~EXIST], 0.0)
        np.testing.assert_array_equal(hessian[:, :, ~EXIST], 0.0)
        assert_close(hessian[EXIST][:, EXIST], expected, 1e-5)


def hessian_by_differences(function, at, step=1e-3):
    """Central differences of central differences."""

    def slope(x):
        return oracles.numerical_gradient(function, x, step)

    at = oracles.f64(at)
    shifts = step * np.eye(at.size)
    return np.array([(slope(at + s) - slope(at - s)) / (2 * step) for s in shifts])


ON_MISSING = np.array([1, 3], np.int32)  # in the first row a class that does not exist


@pytest.mark.parametrize("excluded_by", ["where", "-inf"])
def test_a_label_on_a_class_that_does_not_exist(excluded_by):
    """Loss +inf, and the gradient softmax on the classes that do; the other row as ever."""
    x = MISSING if excluded_by == "-inf" else np.where(EXIST, MISSING, 3.0)
    f = partial(js.cross_entropy, labels=ON_MISSING, reduction="none")
    if excluded_by == "where":
        f = partial(f, where=EXIST)
    losses, gradient = losses_and_gradient(f, x)
    p = oracles.softmax(MISSING)
    assert_close(losses, [INF, -oracles.log_softmax(MISSING)[1, 3]])
    expected = np.stack([p[0], p[1] - np.eye(4)[3]])
    assert_close(gradient, expected)
    np.testing.assert_array_equal(gradient[~EXIST], 0.0)
    mean, gradient = value_and_gradient(partial(f, reduction="mean"), x)
    assert mean == INF
    assert_close(gradient, expected / 2)
    hessian = hessian_of(partial(f, reduction="sum"), x)
    for i in range(2):
        assert_close(hessian[i, :, i], covariance(MISSING[i]))


@each_option_of_logits
def test_a_label_on_a_class_that_does_not_exist_with_options(options):
    f = partial(js.cross_entropy, reduction="sum", **options)
    value, gradient = value_and_gradient(f, MISSING, ON_MISSING)
    assert value == INF
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[~EXIST], 0.0)


MASS_ON_MISSING = {
    "one-hot": np.eye(4, dtype=np.float32)[ON_MISSING],
    "soft": np.array([[0.3, 0.4, 0.3, 0.0], [0.0, 0.5, 0.0, 0.5]], np.float32),
}


@pytest.mark.parametrize("labels", MASS_ON_MISSING.values(), ids=MASS_ON_MISSING)
def test_a_distribution_with_mass_on_a_class_that_does_not_exist(labels):
    """Loss +inf, and 0 for a class without mass; no NaN in the gradient."""
    f = partial(js.cross_entropy, labels=labels, reduction="none")
    losses, gradient = losses_and_gradient(f, MISSING)
    existing = labels[1, EXIST[1]] @ oracles.log_softmax(MISSING)[1, EXIST[1]]
    assert_close(losses, [INF, -existing])
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~EXIST], 0.0)
    assert_close(gradient[1], np.where(EXIST, oracles.softmax(MISSING) - labels, 0.0)[1])


@pytest.mark.parametrize("labels", MASS_ON_MISSING.values(), ids=MASS_ON_MISSING)
def test_the_gradient_of_a_distribution_with_mass_on_a_class_that_does_not_exist(labels):
    """softmax − y on the classes that exist, for one-hot labels what it is for class indices."""
    gradient = jax.grad(partial(js.cross_entropy, reduction="sum"))(MISSING, labels)
    assert_close(gradient, np.where(EXIST, oracles.softmax(MISSING) - labels, 0.0))


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
@pytest.mark.parametrize("options", ["plain", "smoothing", "everything"])
def test_no_class_exists(options, soft):
    """Loss +inf for a label, 0 for a distribution without mass; gradient 0 and no NaN."""
    y = np.zeros((2, 4), np.float32) if soft else np.array([0, 3])
    f = partial(js.cross_entropy, labels=y, reduction="sum", **OF_LOGITS[options])
    for value, gradient in (
        value_and_gradient(f, np.full((2, 4), -INF, np.float32)),
        value_and_gradient(partial(f, where=np.zeros(4, bool)), np.ones((2, 4), np.float32)),
    ):
        assert value == (0.0 if soft else INF)
        np.testing.assert_array_equal(gradient, 0.0)


def test_a_class_weight_of_zero_on_a_class_that_does_not_exist():
    """0 · log 0 = 0: what has no weight is not infinitely wrong."""
    w = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    losses = js.cross_entropy(MISSING, ON_MISSING, class_weights=w, reduction="none")
    assert_close(losses, [0.0, -oracles.log_softmax(MISSING)[1, 3]])
    gradient = jax.grad(partial(js.cross_entropy, class_weights=w))(MISSING, ON_MISSING)
    assert_close(gradient[1], oracles.softmax(MISSING)[1] - np.eye(4)[3])
    np.testing.assert_array_equal(gradient[0], 0.0)


# --- axes, loops and batches ----------------------------------------------------------------------

SHAPES = {
    "[C]": ((4,), 0),
    "[B, C]": ((3, 4), 1),
    "[C, B]": ((4, 3), 0),
    "[B, C, L]": ((2, 4, 3), 1),
    "[B, C, H, W]": ((2, 4, 2, 3), 1),
    "[B, H, C, W]": ((2, 2, 4, 3), 2),
}


AXES = [("cross_entropy", case) for case in SHAPES] + [("nll_loss", "[B, C, H, W]")]


@pytest.mark.parametrize(("name", "case"), AXES)
def test_the_class_axis_anywhere(name, case):
    """[B, C, H, W] with axis=1 as in PyTorch, and axes counted from the end."""
    shape, axis = SHAPES[case]
    oracle = getattr(oracles, name)
    random = np.random.default_rng(6)
    x = random.normal(size=shape).astype(np.float32)
    batch = np.delete(shape, axis)
    labels = random.integers(0, 4, batch)
    soft = np.moveaxis(random.dirichlet(np.ones(4), batch), -1, axis).astype(np.float32)
    options = {"class_weights": CLASS_WEIGHTS, "label_smoothing": 0.1}
    options["example_weights"] = random.uniform(0.5, 1.5, batch).astype(np.float32)
    for y, axis_as_written in ((labels, axis), (soft, axis - len(shape))):
        given = options | ({"ignore_index": 2} if y is labels else {}) | {"axis": axis_as_written}
        ours, definition = (partial(m, labels=y, **given) for m in (getattr(js, name), oracle))
        value, gradient = value_and_gradient(ours, x)
        assert_close(value, definition(x))
        assert_close(gradient, oracles.numerical_gradient(definition, x))


@pytest.mark.parametrize("case", SHAPES)
def test_the_shapes_of_statistics_beside_any_class_axis(case):
    shape, axis = SHAPES[case]
    x = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    batch = tuple(np.delete(shape, axis).tolist())
    f = compiled(partial(js.cross_entropy, axis=axis, reduction="none", return_statistics=True))
    losses, statistics = f(x, np.zeros(batch, np.int32))
    assert losses.shape == batch
    assert all(s.shape == batch for s in statistics[:4])
    np.testing.assert_array_equal(statistics.predicted, x.argmax(axis))
    assert_close(statistics.logsumexp, oracles.logsumexp(np.moveaxis(x, axis, -1)))


def test_where_beside_a_class_axis_in_the_middle():
    shape = (2, 4, 2, 3)
    random = np.random.default_rng(7)
    x = random.normal(size=shape).astype(np.float32)
    labels = random.choice([0, 2], (2, 2, 3))
    where = np.array([True, False, True, True])[:, None, None]
    for options in ({}, {"label_smoothing": 0.1}):
        got = js.cross_entropy(x, labels, axis=1, where=where, **options)
        assert_close(got, oracles.cross_entropy(x, labels, axis=1, where=where, **options))


def test_scan_over_microbatches_with_rematerialisation():
    """A linear head, its loss a checkpointed step of a scan: value and gradient of the whole."""
    random = np.random.default_rng(8)
    hidden = random.normal(size=(4, 3, 5)).astype(np.float32)  # [microbatch, example, feature]
    kernel = random.normal(size=(5, 6)).astype(np.float32)
    labels = random.integers(0, 6, (4, 3))
    labels[1] = -100  # a microbatch of padding

    def loss(kernel):
        @jax.checkpoint
        def step(total, batch):
            h, y = batch
            return total + js.cross_entropy(h @ kernel, y, ignore_index=-100, denominator=9), None

        return jax.lax.scan(step, jnp.float32(0.0), (hidden, labels))[0]

    h, y = hidden.reshape(-1, 5), labels.ravel()
    logits = oracles.f64(h) @ oracles.f64(kernel)
    kept = y >= 0
    value, gradient = jax.jit(jax.value_and_grad(loss))(kernel)
    assert_close(value, oracles.cross_entropy(logits, y, ignore_index=-100), 4 * SINGLE)
    slope = oracles.cross_entropy_gradient(logits[kept], y[kept]) / 9
    assert_close(gradient, h[kept].T @ slope, 4 * SINGLE)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vmap_over_batches_is_each_batch(reduction):
    """One batch of them is all padding: its mean is 0, and nobody else's changes."""
    random = np.random.default_rng(9)
    x = random.normal(size=(3, 5, 4)).astype(np.float32)
    labels = random.integers(0, 4, (3, 5))
    labels[0, 2] = labels[1] = -100
    weights = random.uniform(0.5, 2.0, (3, 5)).astype(np.float32)
    options = {"ignore_index": -100, "label_smoothing": 0.1, "reduction": reduction}

    def ours(x, y, w):
        return js.cross_entropy(x, y, example_weights=w, **options)

    def oracle(x):
        rows = zip(x, labels, weights, strict=True)
        return np.stack(
            [oracles.cross_entropy(x, y, example_weights=w, **options) for x, y, w in rows]
        )

    slope = oracles.numerical_gradient(lambda x: oracle(x).sum(), x)
    losses, gradient = losses_and_gradient(lambda x: jax.vmap(ours)(x, labels, weights), x)
    assert_close(losses, oracle(x))
    assert_close(gradient, slope)
    gradients = jax.vmap(jax.grad(lambda *a: jnp.sum(ours(*a))))
    assert_close(compiled(gradients)(x, labels, weights), slope)


@pytest.mark.parametrize(
    "in_axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (0, 0, 0)], ids=str
)
def test_vmap_over_some_of_the_arguments(in_axes):
    random = np.random.default_rng(10)
    arrays = (
        random.normal(size=(3, 5, 4)).astype(np.float32),
        random.integers(0, 4, (3, 5)),
        random.uniform(0.5, 2.0, (3, 4)).astype(np.float32),
    )
    arguments = [a if mapped == 0 else a[0] for a, mapped in zip(arrays, in_axes, strict=True)]

    def ours(x, y, w):
        return js.cross_entropy(x, y, class_weights=w)

    got = jax.vmap(ours, in_axes)(*arguments)
    for i in range(3):
        x, y, w = (a[i if mapped == 0 else 0] for a, mapped in zip(arrays, in_axes, strict=True))
        assert_close(got[i], oracles.cross_entropy(x, y, class_weights=w))
