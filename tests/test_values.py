"""What depends on values, and programs without them: labels out of range, checks, `jax.export`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import export
from jax.experimental import checkify

import jaxsoftmax as js

SINGLE = 1e-6  # a few roundings of a float32 result

_random = np.random.default_rng(77)
LOGITS = _random.normal(scale=2.0, size=(4, 3)).astype(np.float32)
LOG_PROBS = oracles.log_softmax(LOGITS).astype(np.float32)
CLASS_WEIGHTS = np.array([0.5, 2.0, 1.0], np.float32)

# The function, its float64 definition, and logits.
LOSSES = {
    "cross_entropy": (js.cross_entropy, oracles.cross_entropy, LOGITS),
    "nll_loss": (js.nll_loss, oracles.nll_loss, LOG_PROBS),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def assert_close(got, expected):
    """Within a tolerance relative to the largest number; infinities and NaN alike."""
    expected = oracles.f64(expected)
    scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    assert np.shape(got) == expected.shape
    np.testing.assert_allclose(oracles.f64(got), expected, rtol=0, atol=SINGLE * scale)


# --- labels out of range --------------------------------------------------------------------------

BAD = [3, -1, 1000, -100, 2**31 - 1, -(2**31)]

WAYS: dict[str, Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]] = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "vmap of jit": lambda f: jax.vmap(jax.jit(f)),
    "jit of vmap": lambda f: jax.jit(jax.vmap(f)),
}

OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "class weights": {"class_weights": CLASS_WEIGHTS},
    "another ignore_index": {"ignore_index": -7},
}


@pytest.mark.exhaustive(every=6)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@each_loss
def test_a_label_out_of_range_is_nan_for_its_example_alone(name, options, way):
    loss, oracle, logits = LOSSES[name]
    f = WAYS[way](partial(loss, reduction="none", **options))
    for bad in BAD:
        labels = np.array([2, bad, 0, 1], np.int32)
        losses = np.asarray(f(logits, labels))
        assert np.isnan(losses[1])
        kept = [0, 2, 3]
        expected = oracle(logits[kept], labels[kept], reduction="none", **options)
        assert_close(losses[kept], expected)


@pytest.mark.exhaustive(every=5, cover=False)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@each_loss
def test_the_gradient_of_a_label_out_of_range_is_nan_for_its_example_alone(name, options):
    loss, oracle, logits = LOSSES[name]
    labels = np.array([2, 5, 0, 1])
    kept = np.array([0, 2, 3])
    gradient = np.asarray(jax.grad(partial(loss, reduction="sum", **options))(logits, labels))
    assert np.isnan(gradient[1]).any()
    expected = oracles.numerical_gradient(
        lambda x: oracle(x, labels[kept], reduction="sum", **options), logits[kept]
    )
    assert_close(gradient[kept], expected)
    each = jax.vmap(jax.grad(partial(loss, **options | {"class_weights": None})))
    gradient = np.asarray(each(logits, labels))
    assert np.isnan(gradient[1]).any()
    assert np.isfinite(gradient[kept]).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@each_loss
def test_a_label_out_of_range_is_loud_in_the_reduced_loss(name, reduction):
    loss, _, logits = LOSSES[name]
    assert np.isnan(loss(logits, np.array([2, 5, 0, 1]), reduction=reduction))
    weighted = loss(logits, np.array([2, 5, 0, 1]), class_weights=CLASS_WEIGHTS)
    assert np.isnan(weighted)


@pytest.mark.parametrize("classes", [1, 64, 128, 1000])
def test_a_label_out_of_range_of_many_classes(classes):
    """No clamp to the last class, nor to the last block of a row."""
    x = _random.normal(size=(3, classes)).astype(np.float32)
    for bad in (classes, -1, -classes):
        losses = js.cross_entropy(x, np.array([0, bad, classes - 1]), reduction="none")
        np.testing.assert_array_equal(np.isnan(losses), [False, True, False])


def test_statistics_beside_a_label_out_of_range():
    """The label's log-probability is NaN; those of the other examples, and of no label, are not."""
    labels = np.array([2, 5, 0, 1])
    loss, statistics = js.cross_entropy(LOGITS, labels, reduction="none", return_statistics=True)
    others = [0, 2, 3]
    assert np.isnan(statistics.log_prob[1])
    assert_close(np.asarray(statistics.log_prob)[others], -np.asarray(loss)[others])
    assert_close(np.asarray(statistics.logsumexp)[others], oracles.logsumexp(LOGITS)[others])
    np.testing.assert_array_equal(np.asarray(statistics.predicted), LOGITS.argmax(-1))


def test_a_binary_label_out_of_range_is_nan_for_its_entry_alone():
    labels = np.array([0.0, 1.0, 0.5, -0.1, 1.1, np.nan], np.float32)
    x = np.linspace(-1.0, 1.0, 6, dtype=np.float32)
    f = partial(js.binary_cross_entropy, reduction="none")
    for losses in (f(x, labels), jax.jit(f)(x, labels), jax.vmap(f)(x, labels)):
        assert_close(losses, oracles.binary_cross_entropy(x, labels, reduction="none"))
        np.testing.assert_array_equal(np.isnan(losses), [False] * 3 + [True] * 3)
    integers = f(x[:3], np.array([0, 1, 2]))
    np.testing.assert_array_equal(np.isnan(integers), [False, False, True])


# --- debug_checks under checkify ------------------------------------------------------------------

CHECKED: dict[str, Callable[[Callable[..., jax.Array]], Callable[..., Any]]] = {
    "plain": checkify.checkify,
    "jit inside": lambda f: checkify.checkify(jax.jit(f)),
    "jit outside": lambda f: jax.jit(checkify.checkify(f)),
    "grad": lambda f: checkify.checkify(jax.grad(f)),
    "jit of grad": lambda f: jax.jit(checkify.checkify(jax.grad(f))),
    "value and grad": lambda f: checkify.checkify(jax.value_and_grad(f)),
    "vmap": lambda f: checkify.checkify(lambda x, y: jnp.sum(jax.vmap(f)(x, y))),
    "vmap of grad": lambda f: checkify.checkify(jax.vmap(jax.grad(f))),
    "jvp": lambda f: checkify.checkify(lambda x, y: jax.jvp(lambda x: f(x, y), (x,), (x,))),
    "remat": lambda f: checkify.checkify(jax.grad(jax.checkpoint(f))),
}
each_checked = pytest.mark.parametrize("way", CHECKED)


def names_the_label(message: str | None, value: int, classes: int) -> bool:
    """Whether an error says which argument, which value, and of how many classes."""
    numbers = re.findall(r"-?\d+", message or "")
    return "labels" in (message or "") and str(value) in numbers and str(classes) in numbers


@pytest.mark.exhaustive(every=11, cover=False)
@pytest.mark.parametrize("bad", [7, -1])
@each_checked
@each_loss
def test_checks_name_the_label(name, way, bad):
    loss, _, logits = LOSSES[name]
    f, labels = CHECKED[way](loss), np.array([2, bad, 0, 1])
    with js.debug_checks(True):
        error, _ = f(logits, labels)
    assert names_the_label(error.get(), bad, 3), error.get()
    with pytest.raises(checkify.JaxRuntimeError, match="labels"):
        error.throw()


@pytest.mark.exhaustive(every=6)
@each_checked
@each_loss
def test_checks_that_are_off_say_nothing(name, way):
    loss, _, logits = LOSSES[name]
    error, result = CHECKED[way](loss)(logits, np.array([2, 7, 0, 1]))
    assert error.get() is None
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(result))


@pytest.mark.exhaustive(every=5)
@each_checked
@each_loss
def test_checks_are_content_with_labels_in_range(name, way):
    loss, _, logits = LOSSES[name]
    labels = np.array([2, 1, 0, 1])
    off, expected = CHECKED[way](loss)(logits, labels)
    with js.debug_checks(True):
        on, result = CHECKED[way](loss)(logits, labels)
    assert (on.get(), off.get()) == (None, None)
    for got, same in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, same)


OUTSIDE = {
    "int8": [-128, -1, 127],
    "uint8": [3, 255],
    "int16": [-(2**15)],
    "uint16": [2**16 - 1],
    "int32": [-(2**31), 2**31 - 1],
    "uint32": [3, 2**31, 2**32 - 1],
}


@pytest.mark.parametrize("dtype", OUTSIDE)
def test_checks_of_labels_of_any_dtype(dtype):
    f = jax.jit(checkify.checkify(js.cross_entropy))
    with js.debug_checks(True):
        for bad in OUTSIDE[dtype]:
            error, _ = f(LOGITS, np.array([0, 2, bad, 1], dtype))
            assert names_the_label(error.get(), bad, 3), error.get()
        error, _ = f(LOGITS, np.array([0, 2, 0, 1], dtype))
        assert error.get() is None


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bad", [2**40, -(2**40), 3])
def test_checks_of_int64_labels(bad):
    with js.debug_checks(True):
        error, _ = checkify.checkify(js.cross_entropy)(LOGITS, np.array([0, 2, bad, 1]))
    assert names_the_label(error.get(), bad, 3), error.get()


LEFT_OUT = {
    "ignore_index": (-100, {"ignore_index": -100}),
    "mask": (9, {"example_weights": np.array([True, False, True, True])}),
    "zero weight": (9, {"example_weights": np.array([1.0, 0.0, 2.0, 1.0], np.float32)}),
}


@pytest.mark.exhaustive(every=9, cover=False)
@pytest.mark.parametrize("way", ["plain", "jit inside", "grad", "jvp"])
@pytest.mark.parametrize("how", LEFT_OUT)
@each_loss
def test_checks_do_not_look_at_ignored_labels(name, how, way):
    loss, _, logits = LOSSES[name]
    label, options = LEFT_OUT[how]
    f = CHECKED[way](partial(loss, **options))
    with js.debug_checks(True):
        error, result = f(logits, np.array([2, label, 0, 1]))
        another, _ = f(logits, np.array([2, label, 0, 8]))
    assert error.get() is None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    assert names_the_label(another.get(), 8, 3), another.get()


def test_checks_of_no_examples_and_of_distributions():
    with js.debug_checks(True):
        f = checkify.checkify(js.cross_entropy)
        error, loss = f(np.zeros((0, 3), np.float32), np.zeros(0, np.int32))
        assert (error.get(), float(loss)) == (None, 0.0)
        error, loss = f(LOGITS, np.full((4, 3), 7.0, np.float32))
        assert error.get() is None
        assert np.isfinite(loss)


def test_switching_checks_reuses_no_stale_program():
    """The same jitted functions off, on, off and on again, and one context in another."""
    labels = np.array([2, 7, 0, 1])
    plain, checked = jax.jit(js.cross_entropy), jax.jit(checkify.checkify(js.cross_entropy))
    for _ in range(2):
        assert np.isnan(plain(LOGITS, labels))
        assert np.isnan(js.cross_entropy(LOGITS, labels))
        assert checked(LOGITS, labels)[0].get() is None
        with js.debug_checks(True):
            assert names_the_label(checked(LOGITS, labels)[0].get(), 7, 3)
            with js.debug_checks(False):
                assert checked(LOGITS, labels)[0].get() is None
                assert np.isnan(plain(LOGITS, labels))
            assert names_the_label(checked(LOGITS, labels)[0].get(), 7, 3)


def test_switching_checks_on_first_reuses_no_stale_program():
    x = LOGITS[:, ::-1].copy()[:2]  # a shape of its own: nothing is compiled for it yet
    labels = np.array([2, 7])
    checked = jax.jit(checkify.checkify(js.cross_entropy))
    with js.debug_checks(True):
        assert names_the_label(checked(x, labels)[0].get(), 7, 3)
    assert checked(x, labels)[0].get() is None
    assert np.isnan(js.cross_entropy(x, labels))


@pytest.mark.parametrize("differentiate", [lambda f: f, jax.grad], ids=["loss", "gradient"])
@each_loss
def test_a_check_is_in_a_program_only_where_it_is_asked_for(name, differentiate):
    """The effect of a check cannot be exported, so that none may be there by default."""
    loss, _, logits = LOSSES[name]

    def effects():
        return jax.make_jaxpr(differentiate(loss))(logits, np.array([2, 1, 0, 1])).effects

    assert not effects()
    with js.debug_checks(True):
        assert effects()
    assert not effects()


# --- jax.export -----------------------------------------------------------------------------------


class Exported(NamedTuple):
    """A function to be exported, and its definition on the same arrays."""

    ours: Callable[..., Any]
    definition: Callable[..., Any]
    arrays: tuple[np.ndarray, ...]  # batch first; those that are real are differentiated


CLASSES = 10
N = 5
X = _random.normal(scale=2.0, size=(N, CLASSES)).astype(np.float32)
LOG_P = oracles.log_softmax(X).astype(np.float32)
Y = _random.integers(0, CLASSES, N).astype(np.int32)
Y_IGNORED = np.where(np.arange(N) == 1, -100, Y).astype(np.int32)
SOFT = _random.dirichlet(np.ones(CLASSES), size=N).astype(np.float32)
W = _random.uniform(0.5, 2.0, CLASSES).astype(np.float32)
EXAMPLE_WEIGHTS = _random.uniform(0.5, 2.0, N).astype(np.float32)
COLUMNS = np.arange(CLASSES) != 4
Y_KEPT = np.where(Y == 4, 5, Y).astype(np.int32)  # on a class that exists

EVERYTHING = {
    "class_weights": W,
    "label_smoothing": 0.1,
    "z_loss": 1e-2,
    "soft_cap": 5.0,
    "temperature": 1.5,
    "denominator": 7.0,
}


def loss_of(name: str, *arrays: np.ndarray, **options: Any) -> Exported:
    ours, definition = getattr(js, name), getattr(oracles, name)
    return Exported(partial(ours, **options), partial(definition, **options), arrays)


def weighted(name: str, *arrays: np.ndarray, **options: Any) -> Exported:
    """The same, the last array being the weights of the examples."""
    ours, definition = getattr(js, name), getattr(oracles, name)
    return Exported(
        lambda x, y, w: ours(x, y, example_weights=w, **options),
        lambda x, y, w: definition(x, y, example_weights=w, **options),
        arrays,
    )


EXPORTED = {
    "softmax": loss_of("softmax", X),
    "softmax where": loss_of("softmax", X, where=COLUMNS),
    "log_softmax": loss_of("log_softmax", X),
    "logsumexp": loss_of("logsumexp", X),
    "logsumexp where": loss_of("logsumexp", X, where=COLUMNS),
    "cross_entropy": loss_of("cross_entropy", X, Y),
    "cross_entropy sum": loss_of("cross_entropy", X, Y, reduction="sum"),
    "cross_entropy none": loss_of("cross_entropy", X, Y, reduction="none"),
    "cross_entropy where": loss_of("cross_entropy", X, Y_KEPT, where=COLUMNS, label_smoothing=0.1),
    "cross_entropy class weights": loss_of("cross_entropy", X, Y, class_weights=W),
    "cross_entropy ignore_index": loss_of("cross_entropy", X, Y_IGNORED, ignore_index=-100),
    "cross_entropy smoothing": loss_of("cross_entropy", X, Y, label_smoothing=0.1),
    "cross_entropy weights": weighted("cross_entropy", X, Y, EXAMPLE_WEIGHTS),
    "cross_entropy mask": weighted("cross_entropy", X, Y, EXAMPLE_WEIGHTS > 1.0),
    "cross_entropy z-loss": loss_of("cross_entropy", X, Y, z_loss=1e-2),
    "cross_entropy everything": weighted(
        "cross_entropy", X, Y_IGNORED, EXAMPLE_WEIGHTS, ignore_index=-100, **EVERYTHING
    ),
    "cross_entropy soft": loss_of("cross_entropy", X, SOFT),
    "cross_entropy soft none": loss_of("cross_entropy", X, SOFT, reduction="none"),
    "cross_entropy soft everything": weighted(
        "cross_entropy", X, SOFT, EXAMPLE_WEIGHTS, **EVERYTHING
    ),
    "nll_loss": loss_of("nll_loss", LOG_P, Y),
    "nll_loss soft": loss_of("nll_loss", LOG_P, SOFT, label_smoothing=0.1),
    "nll_loss options": weighted(
        "nll_loss", LOG_P, Y_IGNORED, EXAMPLE_WEIGHTS, ignore_index=-100, class_weights=W
    ),
    "binary_cross_entropy": loss_of("binary_cross_entropy", X, SOFT),
    "binary_cross_entropy integers": loss_of("binary_cross_entropy", X, (SOFT > 0.1).astype(int)),
    "binary_cross_entropy options": weighted(
        "binary_cross_entropy", X, SOFT, SOFT + 0.5, pos_weight=W, label_smoothing=0.1
    ),
}

BATCHES = {
    "concrete": lambda: (N,),
    "symbolic": lambda: export.symbolic_shape("n"),
    "constrained": lambda: export.symbolic_shape("n", constraints=("n >= 2", "n <= 64")),
}


def round_trip(f: Callable[..., Any], arrays: tuple[np.ndarray, ...], batch: tuple) -> Any:
    """The program written to bytes with its derivative, and read again."""
    shapes = [jax.ShapeDtypeStruct((*batch, *a.shape[1:]), jnp.asarray(a).dtype) for a in arrays]
    data = export.export(jax.jit(f))(*shapes).serialize(vjp_order=1)
    return export.deserialize(data)


def check_round_trip(case: Exported, batch: tuple, examples: int) -> None:
    """Value and gradients of the program that was read, against the definition."""
    arrays = tuple(np.resize(a, (examples, *a.shape[1:])) for a in case.arrays)
    program = round_trip(case.ours, case.arrays, batch)
    expected = oracles.f64(case.definition(*arrays))
    assert_close(program.call(*arrays), expected)
    cotangent = np.linspace(0.5, 1.5, expected.size).reshape(expected.shape)
    gradients = program.vjp().call(*arrays, cotangent.astype(np.float32))
    # A class that does not exist has log-probability −inf, and nothing flows through it.
    cotangent = np.where(np.isfinite(expected), cotangent, 0.0)
    for i, array in enumerate(arrays):
        if array.dtype != np.float32:
            continue

        def scalar(a, i=i):
            value = case.definition(*arrays[:i], a, *arrays[i + 1 :])
            return np.sum(np.where(np.isfinite(value), value, 0.0) * cotangent)

        assert_close(gradients[i], oracles.numerical_gradient(scalar, array))


@pytest.mark.exhaustive(every=11, cover=False)
@pytest.mark.parametrize("case", EXPORTED)
def test_export_of_a_symbolic_batch(case):
    check_round_trip(EXPORTED[case], BATCHES["symbolic"](), examples=N)


@pytest.mark.exhaustive(every=6, cover=False)
@pytest.mark.parametrize("batch", ["concrete", "constrained"])
@pytest.mark.parametrize(
    "case",
    [
        "softmax",
        "log_softmax",
        "logsumexp",
        "cross_entropy everything",
        "cross_entropy soft everything",
        "nll_loss options",
        "binary_cross_entropy options",
    ],
)
def test_export_of_a_concrete_and_of_a_constrained_batch(case, batch):
    check_round_trip(EXPORTED[case], BATCHES[batch](), examples=N)


def test_a_symbolic_program_serves_batches_of_any_length():
    case = EXPORTED["cross_entropy ignore_index"]
    program = round_trip(case.ours, case.arrays, export.symbolic_shape("n"))
    for examples in (1, 2, 33):
        x, y = (np.resize(a, (examples, *a.shape[1:])) for a in case.arrays)
        assert_close(program.call(x, y), case.definition(x, y))
        gradient, _ = program.vjp().call(x, y, np.float32(1.0))
        assert_close(gradient, oracles.numerical_gradient(lambda x, y=y: case.definition(x, y), x))


def test_export_of_two_symbolic_axes_and_a_long_row():
    """Two axes of the batch and enough classes that the CPU looks at them block by block."""
    b, t, classes = export.symbolic_shape("b, t, 128")
    shapes = (
        jax.ShapeDtypeStruct((b, t, classes), jnp.float32),
        jax.ShapeDtypeStruct((b, t), jnp.int32),
    )
    exported = export.export(jax.jit(partial(js.cross_entropy, label_smoothing=0.1)))(*shapes)
    program = export.deserialize(exported.serialize(vjp_order=1))
    x = _random.normal(size=(2, 3, 128)).astype(np.float32)
    y = _random.integers(0, 128, (2, 3)).astype(np.int32)
    assert_close(program.call(x, y), oracles.cross_entropy(x, y, label_smoothing=0.1))
    gradient, _ = program.vjp().call(x, y, np.float32(6.0))
    target = 0.9 * np.eye(128)[y] + 0.1 / 128
    assert_close(gradient, oracles.softmax(x) - target)


def test_export_of_symbolic_logits_in_the_contracts_words():
    n, classes = export.symbolic_shape("n, 10")
    x = jax.ShapeDtypeStruct((n, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)
    for f in (js.cross_entropy, jax.value_and_grad(js.cross_entropy)):
        program = export.deserialize(export.export(jax.jit(f))(x, labels).serialize(vjp_order=1))
        value = jax.tree.leaves(program.call(X, Y))[0]
        assert_close(value, oracles.cross_entropy(X, Y))


def test_export_of_statistics():
    """They come back as what they are; one of them is an integer, whose cotangent is none."""
    options = {"ignore_index": -100}
    f = partial(js.cross_entropy, return_statistics=True, **options)
    program = round_trip(f, (X, Y_IGNORED), export.symbolic_shape("n"))
    loss, statistics = program.call(X, Y_IGNORED)
    assert isinstance(statistics, js.LossStatistics)
    kept = Y_IGNORED >= 0
    log_p = oracles.log_softmax(X)
    assert_close(loss, oracles.cross_entropy(X, Y_IGNORED, **options))
    assert_close(statistics.log_prob, kept * log_p[np.arange(N), np.where(kept, Y_IGNORED, 0)])
    assert_close(statistics.logsumexp, kept * oracles.logsumexp(X))
    assert_close(statistics.entropy, kept * -np.sum(np.exp(log_p) * log_p, -1))
    np.testing.assert_array_equal(statistics.predicted, kept * X.argmax(-1))
    of_label = X[np.arange(N), np.where(kept, Y_IGNORED, 0)][:, None]
    np.testing.assert_array_equal(statistics.rank, np.where(kept, (of_label < X).sum(-1), -1))
    assert_close(statistics.predicted_log_prob, kept * log_p.max(-1))
    assert float(statistics.weight_sum) == kept.sum()
    ones = [np.float32(1.0), np.zeros(N, np.float32), kept.astype(np.float32)]
    index = np.zeros(N, jax.dtypes.float0)
    none = [np.zeros(N, np.float32), index, np.zeros(N, np.float32), index, np.float32(0.0)]
    gradient = program.vjp().call(X, Y_IGNORED, *ones, *none)[0]

    def definition(x):
        return oracles.cross_entropy(x, Y_IGNORED, **options) + kept @ oracles.logsumexp(x)

    assert_close(gradient, oracles.numerical_gradient(definition, X))


@pytest.mark.parametrize("case", ["softmax", "log_softmax", "logsumexp", "cross_entropy smoothing"])
@pytest.mark.parametrize("classes", [10, 128])
def test_export_for_platforms_that_are_not_here(case, classes):
    case = EXPORTED[case]
    (n,) = export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((n, classes), jnp.bfloat16)]
    if len(case.arrays) > 1:
        shapes.append(jax.ShapeDtypeStruct((n,), jnp.int32))
    platforms = ("cpu", "cuda", "rocm", "tpu")
    exported = export.export(jax.jit(case.ours), platforms=platforms)(*shapes)
    assert export.deserialize(exported.serialize(vjp_order=1)).platforms == platforms
