"""optax's losses, and the distributions of jax.nn and SciPy, as references: values and gradients.

Every case runs in float32, float64 and bfloat16; the reference is the peer in float64 on the very
same numbers. Where the two differ on purpose, the case has a name in `DIFFERENCES` and a test of
its own that asserts what either library does.

    python -m pytest -q -s tests/test_optax.py     prints how many cases of each peer were compared
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import scipy.special
from loss_cases import compiled

import jaxsoftmax as js

INF, NAN = math.inf, math.nan

# Where we differ on purpose, and why; `test_difference_<name>` holds both sides to it.
DIFFERENCES = {
    "confident_prediction": "optax rounds a small loss and its gradient to 0",
    "large_logits": "optax subtracts two large numbers for integer labels and keeps the rounding",
    "loss_of_low_precision": "optax computes a bfloat16 loss in bfloat16, ours is float32",
    "label_outside_the_classes": "NaN in both; optax's gradient hides it, ours is NaN too",
    "negative_label": "optax counts it from the end, ours is NaN",
    "absent_class_without_mass": "softmax_cross_entropy's 0 · log 0 is NaN, ours 0",
    "gradient_of_a_label_on_an_absent_class": "optax's is inf or NaN, ours 0",
    "label_on_an_excluded_class": "optax takes its logit all the same, ours is inf",
    "mass_on_an_excluded_class": "optax drops it, ours is inf",
    "label_on_an_infinite_negative_logit": "loss inf in both; its gradient -1 in optax, 0 in ours",
    "no_class_left": "optax's loss is 0 (an example left out: example_weights), ours inf",
    "infinite_binary_logit": "optax's 0 · inf is NaN, ours 0",
    "binary_label_outside_0_1": "optax extrapolates, ours is NaN in that entry alone",
    "tuple_of_axes": "a loss of ours has one class axis; reshape the logits",
    "labels_that_broadcast": "optax broadcasts labels, ours have the shape of the logits",
    "confident_logsumexp": "jax.nn rounds away all but the largest logit",
    "no_logit_left": "softmax of nothing but -inf: jax.nn NaN, ours 0",
    "infinite_logit": "softmax beside +inf: jax.nn NaN, ours probability 1",
    "gradient_of_an_absent_logit": "jax.nn.log_softmax moves -inf, ours does not",
    "integer_logits": "jax.nn takes them, ours is an error",
}

DTYPES = {"float32": jnp.float32, "float64": jnp.float64, "bfloat16": jnp.bfloat16}

# (relative, absolute), by the dtype of the result. Logits up to 5 make losses up to 12, which
# are rounded by 2^-21 = 5e-7; a bfloat16 gradient is rounded once, by 2^-8 of itself.
TOLERANCE = {"float32": (2e-6, 2e-6), "float64": (1e-14, 1e-14), "bfloat16": (2**-8, 2e-6)}

# optax subtracts log-probabilities of up to 15, which cancel.
OF_PEER = {"kl_divergence": {**TOLERANCE, "float64": (1e-13, 1e-13)}}


class Case(NamedTuple):
    """One call through both libraries."""

    theirs: Callable
    ours: Callable
    inputs: tuple[np.ndarray, ...]  # what is rounded to the dtype under test
    differentiated: int  # how many of the inputs, from the first


@pytest.fixture(scope="module")
def tallies():
    """Cases compared and unexplained differences by peer and dtype, printed at the end."""
    rows: dict[str, tuple[int, int]] = {}
    yield rows
    print(
        f"\n\n{'optax ' + optax.__version__ + ', JAX ' + jax.__version__:<60}compared  unexplained"
    )
    for name, (compared, unexplained) in rows.items():
        print(f"{name:<60}{compared:8}{unexplained:13}")
    compared, unexplained = (sum(column) for column in zip(*rows.values(), strict=True))
    print(f"{compared} cases compared, {unexplained} unexplained differences")


# --- the cases ------------------------------------------------------------------------------------

LAYOUTS = [((5,), -1), ((6, 5), -1), ((6, 5), 0), ((3, 5, 4), -2)]  # shape of the logits, axis

per_example = functools.partial(js.cross_entropy, reduction="none")
binary_per_entry = functools.partial(js.binary_cross_entropy, reduction="none")


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-5, 5, shape)


def labels_of(shape: tuple[int, ...], axis: int) -> np.ndarray:
    labels = np.random.default_rng(1).integers(0, shape[axis], np.delete(shape, axis))
    return np.asarray(labels, np.int32)


def one_hot_of(shape: tuple[int, ...], axis: int) -> np.ndarray:
    return np.moveaxis(np.eye(shape[axis])[labels_of(shape, axis)], -1, axis)


def soft_of(shape: tuple[int, ...], axis: int, where: Any = True) -> np.ndarray:
    weights = np.where(where, np.exp(random(shape, 2)), 0)
    return weights / weights.sum(axis, keepdims=True)


def class_mask(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Some classes of each example, its label's among them."""
    return (np.random.default_rng(3).random(shape) < 0.6) | (one_hot_of(shape, axis) == 1)


def shared_mask(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """The same classes for every example, all but the second."""
    mask = np.ones([shape[axis] if a == axis % len(shape) else 1 for a in range(len(shape))], bool)
    mask.flat[1] = False
    return mask


def example_mask(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Some examples; optax takes such a mask for `where`."""
    mask = np.asarray(np.random.default_rng(4).random(np.delete(shape, axis)) < 0.6)
    mask.flat[0] = True
    return mask


def integer_labels() -> Iterator[Case]:
    for shape, axis in LAYOUTS:
        x, labels = random(shape), labels_of(shape, axis)
        theirs = functools.partial(
            optax.softmax_cross_entropy_with_integer_labels, labels=labels, axis=axis
        )
        ours = functools.partial(per_example, labels=labels, axis=axis)
        where, examples = class_mask(shape, axis), example_mask(shape, axis)
        yield Case(theirs, ours, (x,), 1)
        yield Case(
            functools.partial(theirs, where=where), functools.partial(ours, where=where), (x,), 1
        )
        yield Case(
            functools.partial(theirs, where=examples),
            functools.partial(ours, example_weights=examples),
            (x,),
            1,
        )


def dense_labels() -> Iterator[Case]:
    for shape, axis in LAYOUTS:
        x, examples = random(shape), example_mask(shape, axis)
        theirs = functools.partial(optax.softmax_cross_entropy, axis=axis)
        ours = functools.partial(per_example, axis=axis)
        yield Case(theirs, ours, (x, one_hot_of(shape, axis)), 2)
        yield Case(theirs, ours, (x, soft_of(shape, axis)), 2)
        for where in (class_mask(shape, axis), shared_mask(shape, axis)):
            yield Case(
                functools.partial(theirs, where=where),
                functools.partial(ours, where=where),
                (x, soft_of(shape, axis, where)),
                1,  # test_difference_gradient_of_a_label_on_an_absent_class
            )
        yield Case(
            functools.partial(theirs, where=examples),
            functools.partial(ours, example_weights=examples),
            (x, soft_of(shape, axis)),
            1,
        )


def safe() -> Iterator[Case]:
    for shape, axis in LAYOUTS:
        if axis != -1:  # safe_softmax_cross_entropy knows no other
            continue
        x, where = random(shape), class_mask(shape, axis)
        yield Case(optax.safe_softmax_cross_entropy, per_example, (x, one_hot_of(shape, -1)), 2)
        yield Case(optax.safe_softmax_cross_entropy, per_example, (x, soft_of(shape, -1)), 2)
        yield Case(
            optax.safe_softmax_cross_entropy,
            per_example,
            (np.where(where, x, -INF), soft_of(shape, -1, where)),
            1,
        )


def smoothed() -> Iterator[Case]:
    """smooth_labels of one-hot labels, against ours of integers and of one-hot labels."""
    for shape, axis in LAYOUTS[1::2]:
        x, labels, one_hot = random(shape), labels_of(shape, axis), one_hot_of(shape, axis)
        for epsilon, where in ((0.1, None), (0.4, class_mask(shape, axis))):

            def theirs(x, one_hot, axis=axis, epsilon=epsilon, where=where):
                target = optax.smooth_labels(one_hot, epsilon, axis=axis, where=where)
                return optax.softmax_cross_entropy(x, target, axis, where)

            ours = functools.partial(per_example, axis=axis, where=where, label_smoothing=epsilon)
            yield Case(theirs, ours, (x, one_hot), 1)
            yield Case(
                lambda x, theirs=theirs, y=one_hot: theirs(x, y.astype(x.dtype)),
                functools.partial(ours, labels=labels),
                (x,),
                1,
            )


def binary() -> Iterator[Case]:
    for shape in ((), (7,), (4, 5), (2, 3, 4)):
        hard = np.asarray(np.random.default_rng(5).integers(0, 2, shape), np.float64)
        soft = np.asarray(np.random.default_rng(6).random(shape))
        for labels in (hard, soft):
            yield Case(
                optax.sigmoid_binary_cross_entropy, binary_per_entry, (random(shape), labels), 2
            )


def distributions(name: str) -> Iterator[Case]:
    """One of jax.nn's functions, `axis` and `where` included."""
    theirs, ours = getattr(jax.nn, name), getattr(js, name)
    for shape, axis in [*LAYOUTS[2:], ((3, 5, 4), (0, 2)), ((3, 5, 4), (1, -1, 0))]:
        where = np.random.default_rng(7).random(shape) < 0.7
        where |= np.arange(where.size).reshape(shape) % 5 == 0  # no slice without a class
        options = [{}, {"where": where}]
        if name == "logsumexp":
            options.append({"keepdims": True})
        for option in options:
            yield Case(
                functools.partial(theirs, axis=axis, **option),
                functools.partial(ours, axis=axis, **option),
                (random(shape),),
                1,
            )


def divergences() -> Iterator[Case]:
    """Both of optax's, of log-probabilities and of probabilities, against ours of logits."""
    for shape in ((5,), (6, 5), (3, 4, 5)):
        x, target = random(shape), random(shape, 9)

        def of_probabilities(x, target):
            return optax.kl_divergence(jax.nn.log_softmax(x), jax.nn.softmax(target))

        def of_logs(x, target):
            log_probs = jax.nn.log_softmax(x), jax.nn.log_softmax(target)
            return optax.losses.kl_divergence_with_log_targets(*log_probs)

        for theirs in (of_probabilities, of_logs):
            ours = functools.partial(js.kl_divergence, reduction="none")
            yield Case(theirs, ours, (x, target), 2)


def focal() -> Iterator[Case]:
    for shape in ((), (7,), (4, 5)):
        hard = np.asarray(np.random.default_rng(5).integers(0, 2, shape), np.float64)
        for gamma in (0.5, 2.0):
            yield Case(
                functools.partial(optax.sigmoid_focal_loss, gamma=gamma),
                functools.partial(binary_per_entry, focal_gamma=gamma),
                (random(shape), hard),
                1,
            )


def poly() -> Iterator[Case]:
    for shape, axis in LAYOUTS:
        for epsilon in (2.0, -0.5):
            yield Case(
                functools.partial(optax.losses.poly_loss_cross_entropy, axis=axis, epsilon=epsilon),
                functools.partial(per_example, axis=axis, poly_epsilon=epsilon),
                (random(shape), one_hot_of(shape, axis)),
                1,  # of the labels: theirs is Σ y (1 − p), ours 1 − Σ y p
            )


# The cases of each peer, and how many they are.
PEERS: dict[str, tuple[Callable[[], Iterator[Case]], int]] = {
    "softmax_cross_entropy_with_integer_labels": (integer_labels, 12),
    "softmax_cross_entropy": (dense_labels, 20),
    "safe_softmax_cross_entropy": (safe, 6),
    "smooth_labels": (smoothed, 8),
    "sigmoid_binary_cross_entropy": (binary, 8),
    "sigmoid_focal_loss": (focal, 6),
    "poly_loss_cross_entropy": (poly, 8),
    "kl_divergence": (divergences, 6),
    "jax.nn.softmax": (functools.partial(distributions, "softmax"), 8),
    "jax.nn.log_softmax": (functools.partial(distributions, "log_softmax"), 8),
    "jax.nn.logsumexp": (functools.partial(distributions, "logsumexp"), 12),
}


# --- through both libraries -----------------------------------------------------------------------


@functools.cache
def cases_of(peer: str) -> list[Case]:
    return list(PEERS[peer][0]())


@functools.cache
def program(peer: str, which: str) -> Callable:
    """Values and gradients of every case by "theirs" or "ours", from the cases' inputs."""

    def one(case, inputs):
        function = getattr(case, which)
        arguments, rest = inputs[: case.differentiated], inputs[case.differentiated :]
        output, pull_back = jax.vjp(lambda *arguments: function(*arguments, *rest), *arguments)
        # Any numbers but ones, whose gradient through a softmax would be 0; exact in bfloat16.
        eighths = np.random.default_rng(output.size).integers(4, 13, output.shape)
        return [output, *pull_back(jnp.asarray(eighths / 8, output.dtype))]

    @compiled
    def all_of_them(inputs):
        return [one(*each) for each in zip(cases_of(peer), inputs, strict=True)]

    return all_of_them


@jax.numpy_dtype_promotion("standard")  # which optax is written for
def references(peer: str, inputs: Any) -> Any:
    return program(peer, "theirs")(inputs)


def assert_close(got: list[Any], expected: list[Any], tolerances: Any = None) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert not np.any(np.isnan(theirs))
        tolerance = (tolerances or TOLERANCE)[ours.dtype.name]
        np.testing.assert_allclose(oracles.f64(ours), theirs, *tolerance)


@pytest.mark.exhaustive(every=9, cover=False)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("peer", PEERS)
def test_peer(peer, dtype, tallies, record_property):
    cases = cases_of(peer)
    rounded = [[x.astype(DTYPES[dtype]) for x in case.inputs] for case in cases]
    with jax.enable_x64(True):
        expected = references(peer, jax.tree.map(lambda x: x.astype(np.float64), rounded))
    with jax.enable_x64(dtype == "float64"):
        results = program(peer, "ours")(rounded)
    keeps_dtype = peer in ("jax.nn.softmax", "jax.nn.log_softmax")
    wrong = []
    for number, (got, reference) in enumerate(zip(results, expected, strict=True)):
        value, *gradients = got
        try:
            assert value.dtype == ("float32" if dtype == "bfloat16" and not keeps_dtype else dtype)
            assert all(gradient.dtype == dtype for gradient in gradients)
            assert_close(got, reference, OF_PEER.get(peer))
        except AssertionError as error:
            wrong.append(f"case {number} of {peer}: {error}")
    tallies[f"{peer}, {dtype}"] = (len(cases), len(wrong))
    record_property("compared", len(cases))
    assert not wrong, "\n\n".join(wrong)
    assert len(cases) == PEERS[peer][1]


def test_every_cross_entropy_of_optax_is_compared_or_named():
    names = {name for name in dir(optax.losses) if "cross_entropy" in name}
    assert names >= {"softmax_cross_entropy", "sigmoid_binary_cross_entropy"}
    assert names == {name for name in PEERS if "cross_entropy" in name}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_scipy(name):
    x = random((40, 6))
    if name != "log_softmax":  # SciPy's rounds a log-probability near 0 to 0
        x = np.concatenate([x, [[0, -40, -50, -60, -45, -41], [1e6, 1e6 - 1, 0, 0, 0, 1]]])
    for axis in (-1, 0, (0, 1)):
        got = getattr(js, name)(x, axis)
        expected = getattr(scipy.special, name)(x, axis=axis)
        np.testing.assert_allclose(got, expected, 1e-14, 0)


def test_tuple_of_axes_after_a_reshape():
    """What optax does with axis=(2, 3): a label is an index into the flattened classes."""
    x = random((3, 2, 4, 5)).astype(np.float32)
    labels = np.random.default_rng(8).integers(0, 20, (3, 2)).astype(np.int32)
    expected = optax.softmax_cross_entropy_with_integer_labels(x, labels, axis=(2, 3))
    np.testing.assert_allclose(per_example(x.reshape(3, 2, 20), labels), expected, 2e-6, 2e-6)


# --- where we differ on purpose -------------------------------------------------------------------


def run(function: Callable, *inputs: Any) -> tuple[np.ndarray, ...]:
    """The value and the gradients of its sum, in float32."""

    @compiled
    def value_and_gradients(*inputs):
        output, pull_back = jax.vjp(function, *inputs)
        return output, *pull_back(jnp.ones_like(output))

    return jax.device_get(value_and_gradients(*[np.asarray(x, np.float32) for x in inputs]))


def labelled(label: int) -> tuple[Callable, Callable]:
    """optax's and our loss of rows that all have this label."""

    def labels(x):
        return jnp.full(x.shape[:-1], label, jnp.int32)

    return (
        lambda x, **options: optax.softmax_cross_entropy_with_integer_labels(
            x, labels(x), **options
        ),
        lambda x, **options: per_example(x, labels(x), **options),
    )


def assert_results(got: tuple[Any, ...], *expected: Any) -> None:
    for result, value in zip(got, expected, strict=True):
        np.testing.assert_allclose(result, value, 1e-6, 1e-7)


ROW = [[1.0, 2.0, 3.0]]
ABSENT = [[1.0, 2.0, -INF]]  # a row whose last class does not exist
P = oracles.softmax(ABSENT[0])
WITHOUT_LAST = np.array([[True, True, False]])
SOFT = np.array([[0.25, 0.75, 0.0]], np.float32)
SOFT_LOSS = -0.25 * np.log(P[0]) - 0.75 * np.log(P[1])


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_difference_has_its_test(name):
    assert f"test_difference_{name}" in globals()


def test_difference_confident_prediction():
    x = [[20.0, 0.0, 0.0]]
    value, gradient = [np.log1p(2 * np.exp(-20.0))], [oracles.cross_entropy_gradient(x[0], 0)]
    one_hot = jnp.array([[1.0, 0.0, 0.0]])
    theirs, ours = labelled(0)
    for loss in (
        theirs,
        functools.partial(optax.softmax_cross_entropy, labels=one_hot),
        functools.partial(optax.safe_softmax_cross_entropy, labels=one_hot),
    ):
        got, slope = run(loss, x)
        assert got == slope[0, 0] == 0
    for loss in (ours, functools.partial(per_example, labels=one_hot)):
        got, slope = run(loss, x)
        np.testing.assert_allclose(got, value, 1e-6, 0)
        np.testing.assert_allclose(slope, gradient, 1e-6, 0)


def test_difference_large_logits():
    theirs, ours = labelled(0)
    x = [[1e6 + 2, 1e6 - 1]]
    assert run(theirs, x)[0] == 0.0625
    np.testing.assert_allclose(run(ours, x)[0], [np.log1p(np.exp(-3.0))], 1e-6)


def test_difference_loss_of_low_precision():
    x = np.asarray([[1.0, 2.0, 0.0]], jnp.bfloat16)
    one_hot = np.asarray([[0.0, 0.0, 1.0]], jnp.bfloat16)
    exact = oracles.cross_entropy(x, np.array([2]), reduction="none")
    theirs, ours = labelled(2)
    for loss in (
        theirs(x),
        optax.softmax_cross_entropy(x, one_hot),
        optax.safe_softmax_cross_entropy(x, one_hot),
    ):
        assert loss.dtype == jnp.bfloat16
        assert abs(float(loss[0]) - exact[0]) > 1e-3
    for loss in (ours(x), per_example(x, one_hot)):
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, exact, 1e-6)
    binary = np.asarray([1.0, 0.0, 1.0], jnp.bfloat16)
    assert optax.sigmoid_binary_cross_entropy(x[0], binary).dtype == jnp.bfloat16
    losses = binary_per_entry(x[0], binary)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, oracles.softplus([-1.0, 2.0, 0.0]), 1e-6)


@pytest.mark.parametrize("label", [3, -4, -100])
def test_difference_label_outside_the_classes(label):
    theirs, ours = labelled(label)
    assert_results(run(theirs, ROW), [NAN], oracles.softmax(ROW))
    assert_results(run(ours, ROW), [NAN], np.full((1, 3), NAN))


def test_difference_negative_label():
    theirs, ours = labelled(-1)
    assert_results(run(theirs, ROW)[:1], -oracles.log_softmax(ROW)[:, -1])
    assert_results(run(ours, ROW), [NAN], np.full((1, 3), NAN))


def test_difference_absent_class_without_mass():
    assert np.isnan(run(functools.partial(optax.softmax_cross_entropy, labels=SOFT), ABSENT)[0])
    got = run(functools.partial(per_example, labels=SOFT), ABSENT)
    assert_results(got, [SOFT_LOSS], [P - SOFT[0]])


def test_difference_gradient_of_a_label_on_an_absent_class():
    x, absent = jnp.asarray(ROW), jnp.asarray(ABSENT)
    expected = [[-np.log(P[0]), -np.log(P[1]), 0.0]]
    gradient = run(lambda y: optax.safe_softmax_cross_entropy(absent, y), SOFT)[1]
    assert gradient[0, 2] == INF
    gradient = run(lambda y: optax.softmax_cross_entropy(x, y, where=WITHOUT_LAST), SOFT)[1]
    assert np.isnan(gradient[0, 2])
    assert_results(run(lambda y: per_example(absent, y), SOFT), [SOFT_LOSS], expected)
    got = run(lambda y: per_example(x, y, where=WITHOUT_LAST), SOFT)
    assert_results(got, [SOFT_LOSS], expected)
    # An example left out has no class that exists.
    example = np.array([False])
    gradient = run(lambda y: optax.softmax_cross_entropy(x, y, where=example), SOFT)[1]
    assert np.all(np.isnan(gradient))
    got = run(lambda y: per_example(x, y, example_weights=example), SOFT)
    assert_results(got, [0], np.zeros((1, 3)))


def test_difference_label_on_an_excluded_class():
    theirs, ours = (functools.partial(f, where=WITHOUT_LAST) for f in labelled(2))
    value, gradient = run(theirs, ROW)
    np.testing.assert_allclose(value, oracles.logsumexp(ROW[0][:2]) - 3, 1e-6)
    assert value < 0
    assert gradient[0, 2] == -1
    assert_results(run(ours, ROW), [INF], [P])


def test_difference_mass_on_an_excluded_class():
    y = np.array([[0.0, 0.5, 0.5]], np.float32)
    value = run(lambda x: optax.softmax_cross_entropy(x, y, where=WITHOUT_LAST), ROW)[0]
    np.testing.assert_allclose(value, [-0.5 * np.log(P[1])], 1e-6)
    assert run(lambda x: per_example(x, y, where=WITHOUT_LAST), ROW)[0] == INF


def test_difference_label_on_an_infinite_negative_logit():
    theirs, ours = labelled(2)
    assert_results(run(theirs, ABSENT), [INF], [P - [0, 0, 1]])
    assert_results(run(ours, ABSENT), [INF], [P])


def test_difference_no_class_left():
    nothing, zero = np.zeros((1, 3), bool), np.zeros((1, 3))
    for theirs, ours in (labelled(0), [functools.partial(f, labels=SOFT) for f in DENSE]):
        assert_results(run(functools.partial(theirs, where=nothing), ROW), [0], zero)
        assert_results(run(functools.partial(ours, where=nothing), ROW), [INF], zero)
        left_out = functools.partial(ours, example_weights=np.array([False]))
        assert_results(run(left_out, ROW), [0], zero)


DENSE = (optax.softmax_cross_entropy, per_example)


def test_difference_infinite_binary_logit():
    one = np.ones(1, np.float32)
    assert np.isnan(run(lambda x: optax.sigmoid_binary_cross_entropy(x, one), [INF])[0])
    assert_results(run(lambda x: binary_per_entry(x, one), [INF]), [0], [0])


def test_difference_binary_label_outside_0_1():
    x, y = [1.0, 1.0], np.array([2, 1], np.float32)
    theirs = run(lambda x: optax.sigmoid_binary_cross_entropy(x, y), x)[0]
    np.testing.assert_allclose(theirs, oracles.softplus(1.0) - y, 1e-6)
    got = run(lambda x: binary_per_entry(x, y), x)[0]
    np.testing.assert_allclose(got, [NAN, oracles.softplus(-1.0)], 1e-6)


def test_difference_tuple_of_axes():
    x, labels = np.zeros((2, 3, 4), np.float32), np.zeros(2, np.int32)
    theirs = optax.softmax_cross_entropy_with_integer_labels(x, labels, axis=(1, 2))
    np.testing.assert_allclose(theirs, np.full(2, np.log(12)), 1e-6)
    with pytest.raises(ValueError, match="where axis names several axes"):
        per_example(x, labels, axis=(1, 2))
    np.testing.assert_allclose(per_example(x.reshape(2, 12), labels), theirs, 1e-6)


def test_difference_labels_that_broadcast():
    x, y = np.zeros((2, 3), np.float32), np.array([[0, 0.5, 0.5]], np.float32)
    np.testing.assert_allclose(optax.softmax_cross_entropy(x, y), np.full(2, np.log(3)), 1e-6)
    with pytest.raises(ValueError, match="labels must have the shape of the batch"):
        per_example(x, y)
    with pytest.raises(ValueError, match="labels must have the shape of logits"):
        binary_per_entry(x, y)


def test_difference_confident_logsumexp():
    assert run(jax.nn.logsumexp, [0.0, -40.0])[0] == 0
    np.testing.assert_allclose(run(js.logsumexp, [0.0, -40.0])[0], np.exp(-40.0), 1e-6)


def test_difference_no_logit_left():
    x = [-INF, -INF]
    assert np.all(np.isnan(run(jax.nn.softmax, x)))
    assert np.all(np.isnan(run(jax.nn.logsumexp, x)[1]))
    assert_results(run(js.softmax, x), [0, 0], [0, 0])
    assert_results(run(js.log_softmax, x), x, [0, 0])
    assert_results(run(js.logsumexp, x), -INF, [0, 0])


def test_difference_infinite_logit():
    x = [0.0, INF, 1.0]
    assert np.all(np.isnan(run(jax.nn.softmax, x)[0]))
    assert_results(run(js.softmax, x), [0, 1, 0], [0, 0, 0])


def test_difference_gradient_of_an_absent_logit():
    assert_results(run(jax.nn.log_softmax, [1.0, -INF]), [0, -INF], [-1, 1])
    assert_results(run(js.log_softmax, [1.0, -INF]), [0, -INF], [0, 0])


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # jax.nn's own, of -inf
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_difference_integer_logits(name):
    x = np.array([1, 2], np.int32)
    expected = getattr(oracles, name)(x)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(getattr(jax.nn, name)(x), expected, 1e-6)
    with pytest.raises(TypeError, match="logits must be a floating point array"):
        getattr(js, name)(x)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_every_axis(name):
    x = random((2, 3)).astype(np.float32)
    expected = getattr(jax.nn, name)(x, axis=None)
    np.testing.assert_allclose(getattr(js, name)(x, None), expected, 2e-6)
    np.testing.assert_allclose(getattr(js, name)(x, (0, 1)), expected, 2e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_no_class(name):
    x = np.zeros((2, 0), np.float32)
    expected = np.full(2, -INF) if name == "logsumexp" else x
    np.testing.assert_array_equal(getattr(jax.nn, name)(x, axis=-1), expected)
    np.testing.assert_array_equal(getattr(js, name)(x), expected)
