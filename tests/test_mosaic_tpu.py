"""The TPU kernel's numbers, run by Pallas's TPU interpreter on the CPU.

The interpreter fills memory that nobody wrote with NaN, and whatever lies beyond an array's end:
a padded class or token that entered a sum would show. What only the compiler knows (does it fit,
does it compile) is in test_aot_kernels.py.
"""

from __future__ import annotations

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from jaxsoftmax import LossStatistics, linear_cross_entropy, tuning

FEATURES = 128
V6E = tuning.Device("tpu", "TPU v6 lite")
# Small tiles, so that small arrays have several of either kind, and rests at both ends.
SMALL = tuning.Row("tpu", None, "mosaic_tpu", vmem_bytes=8 * tuning.MIB, tile=(128, 256))

# The products are sums of 128 terms in float32, logits of about 1 in size: a few 1e-6 absolute.
FLOAT32 = {"rtol": 3e-6, "atol": 3e-6}


@contextlib.contextmanager
def interpreted(tile=SMALL):
    with (
        tuning.table((tile, *tuning.ROWS)),
        tuning.compiling_for(V6E),
        pltpu.force_tpu_interpret_mode(),
    ):
        yield


def by_kernel(*arrays, **options):
    with interpreted():
        return linear_cross_entropy(*arrays, implementation="mosaic_tpu", **options)


def arrays(tokens, classes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(tokens, FEATURES)) / np.sqrt(FEATURES)
    kernel = rng.normal(size=(FEATURES, classes)) * 3.0
    labels = rng.integers(0, classes, tokens).astype(np.int32)
    return jnp.asarray(hidden, dtype), jnp.asarray(kernel, dtype), jnp.asarray(labels)


def logits_of(hidden, kernel, bias=None):
    logits = oracles.f64(hidden) @ oracles.f64(kernel)
    return logits if bias is None else logits + oracles.f64(bias)


def rows_of(logits, labels, **options):
    """As hidden and kernel whose product is exactly these logits."""
    hidden = np.eye(len(logits), FEATURES, dtype=np.float32)
    kernel = np.zeros((FEATURES, np.shape(logits)[1]), np.float32)
    kernel[: len(logits)] = logits
    return by_kernel(jnp.asarray(hidden), jnp.asarray(kernel), jnp.asarray(labels), **options)


CLASSES, TOKENS = 700, 150
RNG = np.random.default_rng(1)
BIAS = RNG.normal(size=CLASSES).astype(np.float32)
WHERE = RNG.random(CLASSES) < 0.7
CLASS_WEIGHTS = RNG.random(CLASSES).astype(np.float32) * 2.0
EXAMPLE_WEIGHTS = RNG.random(TOKENS).astype(np.float32)

OPTIONS = {
    "none": {"reduction": "none"},
    "mean": {},
    "bias": {"reduction": "none", "bias": BIAS},
    "soft_cap, temperature": {"reduction": "none", "soft_cap": 2.0, "temperature": 0.7},
    "z_loss": {"reduction": "none", "z_loss": 0.1},
    "class_weights": {"class_weights": CLASS_WEIGHTS},
    "label_smoothing": {"reduction": "none", "label_smoothing": 0.2},
    "ignore_index": {"ignore_index": 3, "example_weights": EXAMPLE_WEIGHTS},
    "where": {"reduction": "none", "where": WHERE},
    "all": {
        "bias": BIAS,
        "where": WHERE,
        "class_weights": CLASS_WEIGHTS,
        "example_weights": EXAMPLE_WEIGHTS,
        "label_smoothing": 0.1,
        "ignore_index": 3,
        "soft_cap": 4.0,
        "temperature": 1.3,
        "z_loss": 0.01,
        "reduction": "sum",
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_against_float64(name):
    options = dict(OPTIONS[name])
    hidden, kernel, labels = arrays(TOKENS, CLASSES)
    labels = labels.at[5:9].set(3)
    if "where" in options:
        # Every label exists: what it comes to where it does not is a test of its own.
        exists = np.flatnonzero(WHERE)
        labels = jnp.asarray(exists[np.asarray(labels) % len(exists)], jnp.int32)
    bias = options.pop("bias", None)
    expected = oracles.cross_entropy(logits_of(hidden, kernel, bias), labels, **options)
    in_jax = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    bias = None if bias is None else jnp.asarray(bias)
    got = by_kernel(hidden, kernel, labels, bias, **in_jax)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, **FLOAT32)


# Rests of tokens and classes of every kind: none, less than a lane's worth, a whole tile and one.
@pytest.mark.parametrize(
    ("tokens", "classes"), [(1, 128), (127, 129), (128, 512), (257, 255), (300, 1025)]
)
def test_odd_shapes(tokens, classes):
    hidden, kernel, labels = arrays(tokens, classes)
    # The last class is where the vocabulary ends, the first where a lane begins.
    labels = labels.at[0].set(classes - 1).at[-1].set(0 if tokens > 1 else classes - 1)
    got = by_kernel(hidden, kernel, labels, reduction="none")
    expected = oracles.cross_entropy(logits_of(hidden, kernel), labels, reduction="none")
    np.testing.assert_allclose(got, expected, **FLOAT32)


def test_the_tile_of_the_table_s_own_choice():
    hidden, kernel, labels = arrays(40, 3000)
    with interpreted(tuning.ROWS[0]):
        got = linear_cross_entropy(hidden, kernel, labels, implementation="mosaic_tpu")
    expected = oracles.cross_entropy(logits_of(hidden, kernel), labels)
    np.testing.assert_allclose(got, expected, **FLOAT32)


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_narrow_operands_accumulate_in_float32(dtypes):
    hidden, kernel, labels = arrays(TOKENS, CLASSES)
    hidden, kernel = hidden.astype(dtypes[0]), kernel.astype(dtypes[1])
    with jax.numpy_dtype_promotion("standard"):
        got = by_kernel(hidden, kernel, labels, reduction="none")
    # Products of two bfloat16 are exact in float32: what was lost is what the operands lost.
    expected = oracles.cross_entropy(logits_of(hidden, kernel), labels, reduction="none")
    np.testing.assert_allclose(got, expected, **FLOAT32)


@pytest.mark.parametrize("classes", [512, 700])
def test_a_tied_embedding(classes):
    hidden, kernel, labels = arrays(20, classes)
    embedding = kernel.T

    @jax.jit
    def loss(hidden, embedding):
        return by_kernel(hidden, embedding.T, labels, reduction="none")

    expected = oracles.cross_entropy(logits_of(hidden, kernel), labels, reduction="none")
    np.testing.assert_allclose(loss(hidden, embedding), expected, **FLOAT32)


@pytest.mark.parametrize("classes", [700, 512])
def test_statistics(classes):
    hidden, kernel, labels = arrays(TOKENS, classes)
    logits = logits_of(hidden, kernel)
    labels = labels.at[:50].set(jnp.asarray(logits.argmax(-1)[:50], jnp.int32))
    loss, statistics = by_kernel(hidden, kernel, labels, reduction="none", return_statistics=True)
    log_p = oracles.log_softmax(logits)
    at_label = np.take_along_axis(log_p, np.asarray(labels)[:, None], -1)[:, 0]
    assert isinstance(statistics, LossStatistics)
    np.testing.assert_allclose(loss, -at_label, **FLOAT32)
    np.testing.assert_allclose(statistics.log_prob, at_label, **FLOAT32)
    np.testing.assert_allclose(statistics.logsumexp, oracles.logsumexp(logits), **FLOAT32)
    np.testing.assert_allclose(statistics.entropy, -(np.exp(log_p) * log_p).sum(-1), **FLOAT32)
    np.testing.assert_array_equal(statistics.predicted, logits.argmax(-1))


def test_the_first_of_equal_classes_is_predicted():
    logits = np.zeros((6, 600), np.float32)
    labels = np.array([0, 599, 300, 10, 599, 40], np.int32)
    logits[0, 0] = logits[1, 0] = -1.0
    logits[2, [257, 300, 500]] = 2.0
    logits[3, [10, 9, 400]] = 2.0
    logits[4, [131, 259]] = 2.0
    logits[5, 40] = 2.0
    _, statistics = rows_of(logits, labels, return_statistics=True)
    np.testing.assert_array_equal(statistics.predicted, logits.argmax(-1))


def test_nothing_is_absorbed():
    rows, labels = [], []
    for margin in (0.5, 10.0, 17.0, 20.0, 64.0, 90.0):
        for label in (0, 127, 128, 383, 599):
            row = np.zeros(600, np.float32)
            row[label] = margin
            rows.append(row)
            labels.append(label)
    got = np.asarray(rows_of(np.stack(rows), np.array(labels, np.int32), reduction="none"))
    for loss, row, label in zip(got, rows, labels, strict=True):
        expected, _ = oracles.mp_loss_and_target_gradient(row, label)
        # 600 exponentials of 1 ulp each, in lanes of five.
        assert oracles.relative_error(loss, expected) < 8 * 2.0**-23


def test_common_offsets_and_great_distances():
    logits = np.full((4, 600), 1e6, np.float32)
    logits[0, 7] = 1e6 + 2.0
    logits[1, :] = -1e30
    logits[1, 7] = 1e30
    logits[2, 300] = 3e38
    logits[3] = np.linspace(-3e38, 3e38, 600)
    labels = np.array([7, 7, 300, 7], np.int32)
    got = rows_of(logits, labels, reduction="none")
    expected = oracles.cross_entropy(logits, labels, reduction="none")
    # 3e38 + 3e38 is infinite in float32: that is the loss's range, not its accuracy.
    np.testing.assert_allclose(got, np.where(expected > 3.4e38, np.inf, expected), rtol=1e-6)


def test_labels_that_are_no_class_are_nan_and_only_they():
    hidden, kernel, labels = arrays(20, 700)
    # 700 ... 767 lie in the last tile, beyond the vocabulary.
    wrong = labels.at[3].set(700).at[4].set(-1).at[5].set(10**6).at[6].set(767)
    got = np.asarray(by_kernel(hidden, kernel, wrong, reduction="none"))
    right = np.asarray(by_kernel(hidden, kernel, labels, reduction="none"))
    assert np.isnan(got[3:7]).all()
    np.testing.assert_array_equal(np.delete(got, range(3, 7)), np.delete(right, range(3, 7)))


def test_nan_stays_in_its_row():
    hidden, kernel, labels = arrays(20, 700)
    expected = np.asarray(by_kernel(hidden, kernel, labels, reduction="none"))
    got = np.asarray(by_kernel(hidden.at[3, 5].set(jnp.nan), kernel, labels, reduction="none"))
    assert np.isnan(got[3])
    np.testing.assert_array_equal(np.delete(got, 3), np.delete(expected, 3))
    # In a class that is nobody's label it is loud, too; where that class does not exist it is not.
    broken = kernel.at[5, 600].set(jnp.nan)
    labels = jnp.where(labels == 600, 0, labels)
    assert np.isnan(by_kernel(hidden, broken, labels, reduction="none")).all()
    where = jnp.arange(700) != 600
    got = by_kernel(hidden, broken, labels, where=where, reduction="none")
    expected = oracles.cross_entropy(
        logits_of(hidden, kernel), labels, where=where, reduction="none"
    )
    np.testing.assert_allclose(got, expected, **FLOAT32)


INFINITE = {
    "absent classes": {600: -np.inf, 3: -np.inf},
    "one certain class": {600: np.inf},
    "two certain classes": {600: np.inf, 3: np.inf},
    "certain and absent": {600: np.inf, 3: -np.inf},
}


@pytest.mark.parametrize("name", INFINITE)
def test_infinite_logits_mean_what_they_mean_elsewhere(name):
    hidden, kernel, labels = arrays(20, 700)
    labels = labels.at[0].set(600).at[1].set(3)
    bias = np.zeros(700, np.float32)
    for label, value in INFINITE[name].items():
        bias[label] = value
    options = {"label_smoothing": 0.1, "reduction": "none", "return_statistics": True}
    got = by_kernel(hidden, kernel, labels, jnp.asarray(bias), **options)
    reference = linear_cross_entropy(
        hidden, kernel, labels, jnp.asarray(bias), implementation="reference", **options
    )
    jax.tree.map(partial(np.testing.assert_allclose, **FLOAT32), got, reference)


def test_rows_without_any_class():
    hidden, kernel, labels = arrays(4, 700)
    options = {"where": jnp.zeros(700, bool), "reduction": "none", "return_statistics": True}
    got = by_kernel(hidden, kernel, labels, **options)
    reference = linear_cross_entropy(hidden, kernel, labels, implementation="reference", **options)
    jax.tree.map(np.testing.assert_array_equal, got, reference)


# --- under transformations ------------------------------------------------------------------------


def test_derivatives_are_those_of_the_chunks():
    hidden, kernel, labels = arrays(6, 200)
    weights = jnp.arange(6.0)

    def total(implementation, hidden, kernel):
        loss = linear_cross_entropy(
            hidden, kernel, labels, reduction="none", implementation=implementation
        )
        return jnp.sum(weights * loss)

    def first_and_second(implementation):
        value = jax.value_and_grad(partial(total, implementation), argnums=(0, 1))
        return jax.jvp(lambda h: value(h, kernel), (hidden,), (hidden + 1.0,))

    with interpreted():
        got = first_and_second("mosaic_tpu")
    expected = first_and_second("chunked")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, expected)


def test_vmap_over_either_operand():
    hidden, kernel, labels = arrays(20, 700)
    stacked, kernels = jnp.stack([hidden, 2 * hidden]), jnp.stack([kernel, 3 * kernel])
    by_row = jnp.stack([labels, labels[::-1]])
    for axes, operands in (
        ((0, None, None), (stacked, kernel, labels)),
        ((None, None, 0), (hidden, kernel, by_row)),
        ((0, 0, 0), (stacked, kernels, by_row)),
    ):
        got = jax.vmap(partial(by_kernel, reduction="none"), in_axes=axes)(*operands)
        for k in range(2):
            h, w, y = (x[k] if axis == 0 else x for x, axis in zip(operands, axes, strict=True))
            expected = oracles.cross_entropy(logits_of(h, w), y, reduction="none")
            np.testing.assert_allclose(got[k], expected, **FLOAT32)


def test_inside_shard_map():
    hidden, kernel, labels = arrays(40, 700)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P("data"))
    def losses(hidden, kernel, labels):
        return by_kernel(hidden, kernel, labels, reduction="none")

    got = jax.jit(losses)(hidden, kernel, labels)
    expected = oracles.cross_entropy(logits_of(hidden, kernel), labels, reduction="none")
    np.testing.assert_allclose(got, expected, **FLOAT32)


def test_the_kernel_is_what_ran_and_not_where_a_scalar_is_differentiated():
    hidden, kernel, labels = arrays(20, 700)

    def calls(f, **options):
        def loss(hidden):
            return jnp.sum(by_kernel(hidden, kernel, labels, **options))

        return str(jax.make_jaxpr(f(loss))(hidden)).count("pallas_call")

    # Once for either way round that the kernel may lie; the lowering keeps one.
    assert calls(lambda f: f) == 2
    assert calls(lambda f: f, reduction="none") == 2
    assert calls(jax.grad) == 0
    assert calls(jax.grad, reduction="none") == 2
