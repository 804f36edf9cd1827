"""The forms of each operation: they agree, and the lowering picks the one that fits.

The forms for accelerators run here, too. XLA:CPU adds one number after the other, so that rows are
short: what a lane of an accelerator sees.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsoftmax
from jaxsoftmax._fused import products
from jaxsoftmax._row import divergence, logsumexp, softmax, state
from jaxsoftmax._xla import (
    cpu,
    cpu_blocks,
    cpu_largest,
    cpu_log_softmax,
    cpu_plain,
    forms,
    one_pass,
    portable,
)

ULP = 2.0**-23
CLASSES = 700
MANY = 200  # rows of so many classes that XLA:CPU gets other forms than for a few
FLOAT32 = {"rtol": 2e-6, "atol": 1e-6}


OPERATIONS = [
    operation
    for module in (divergence, state, softmax, logsumexp, products)
    for operation in vars(module).values()
    if isinstance(operation, forms.Operation)
]


def switch_forms(monkeypatch):
    """From here on every operation has the form for one accelerator."""
    jax.clear_caches()
    for operation in OPERATIONS:
        monkeypatch.setattr(operation, "cpu", operation.one_pass)


@pytest.fixture
def on_an_accelerator(monkeypatch):
    """Every operation in the form for one accelerator."""
    switch_forms(monkeypatch)
    yield
    jax.clear_caches()


def rows(count=12, classes=CLASSES, scale=4.0):
    rng = np.random.default_rng(count + classes)
    return jnp.asarray(scale * rng.normal(size=(count, classes)), jnp.float32)


def odd_rows(classes):
    """Some with infinite logits, one without a class, one with a NaN, one with large numbers."""
    logits = np.array(rows(12, classes))
    logits[0, 1] = logits[1, :2] = np.inf
    logits[2], logits[3, 0], logits[4, -1] = -np.inf, np.nan, -np.inf
    logits[5, :2] = 3e38
    return logits


def labels_of(logits):
    count, classes = logits.shape
    labels = np.random.default_rng(classes).integers(0, classes, count)
    labels[: count // 2] = np.asarray(logits).argmax(-1)[: count // 2]
    return jnp.asarray(labels, jnp.int32)


# --- the reduction --------------------------------------------------------------------------------

SLOPES = {
    "up by 1": np.linspace(0.0, 1.0, 1000),
    "up by 0.1": np.linspace(0.0, 0.1, 1000),
    "up by 10, far out": np.linspace(1000.0, 1010.0, 1000),
    "up by 30": np.linspace(-30.0, 0.0, 1000),
    "up by 1000": np.linspace(0.0, 1000.0, 1000),
    "down by 1": np.linspace(1.0, 0.0, 1000),
    "in no order": 3.0 * np.random.default_rng(0).normal(size=1000),
}


@pytest.mark.parametrize("name", SLOPES)
def test_a_slope_is_not_rounded_at_every_step(name):
    """With the maximum for an anchor, "up by 0.1" and "far out" are off by 20 ulps and more."""
    row = SLOPES[name].astype(np.float32)
    x = jnp.asarray(row)[None]
    others = np.delete(row, 0)
    for found, classes, relative_to in (
        (one_pass.row_exponentials(x)[::2], row, row.max()),
        (one_pass.row_state(x, jnp.array([0]))[1:], others, others.max()),
        (one_pass.largest_and_odds(x), np.delete(row, row.argmax()), row.max()),
    ):
        origin, total = (np.asarray(part)[0] for part in found)
        assert origin == relative_to
        terms = np.exp(classes.astype(np.float64) - origin)
        # A thousand additions, each of which rounds.
        assert oracles.relative_error(total, terms.sum()) < 8 * ULP


@pytest.mark.parametrize("order", ["forwards", "backwards"])
@pytest.mark.parametrize("module", [portable, cpu, one_pass])
def test_the_odds_of_the_others_count_what_ties_with_the_largest(module, order):
    row = jnp.array([[0.0, 5.0, 3.0, 5.0, -jnp.inf], [9.0, 1.0, 2.0, 3.0, 4.0], [jnp.inf] * 5])
    row = row if order == "forwards" else row[:, ::-1]
    largest, odds = module.largest_and_odds(row)
    np.testing.assert_array_equal(largest, [5.0, 9.0, np.inf])
    expected = [1 + np.exp(-5.0) + np.exp(-2.0), np.exp([-8.0, -7.0, -6.0, -5.0]).sum(), 4.0]
    np.testing.assert_allclose(odds, expected, rtol=4 * ULP)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes(classes):
    x = rows(classes=classes)
    label_logit, maximum, total = one_pass.row_state(x, jnp.zeros(12, jnp.int32))
    np.testing.assert_array_equal(label_logit, x[:, 0])
    others = np.asarray(x, np.float64)[:, 1:]
    np.testing.assert_array_equal(maximum, others.max(-1, initial=-np.inf))
    expected = np.exp(others - others.max(-1, initial=-1e30)[:, None]).sum(-1)
    np.testing.assert_allclose(total, expected, rtol=4 * ULP)


def test_reads_the_logits_once():
    x, y = rows(), labels_of(rows())
    for reduction in (one_pass.row_exponentials, partial(one_pass.row_state, label=y)):
        text = str(jax.make_jaxpr(reduction)(x))
        assert text.count("reduce[") == 1
        assert "reduce_sum" not in text
        assert "reduce_max" not in text


@pytest.mark.parametrize("spec", [P("data", None), P("data", "model")])
def test_explicit_axes(spec):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    x = rows(8, 64)
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        maximum, _ = jax.jit(lambda x: one_pass.row_exponentials(x)[::2])(placed)
        assert jax.typeof(maximum).sharding.spec == P("data")
        np.testing.assert_array_equal(maximum, np.asarray(x).max(-1))


@pytest.mark.parametrize("classes", [9, 2000])
@pytest.mark.parametrize("features", [1, 70])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("feature_axis", [0, 1])
def test_products_are_added_whole_or_in_bands(classes, features, dtype, feature_axis):
    """The last band of 32 features reaches back into the one before it."""
    hidden, delta = (rows(37, n, 1.0).astype(dtype) for n in (features, classes))
    total = rows(features, classes, 1.0)
    expected = total + np.float64(hidden).T @ np.float64(delta)
    for module in (portable, cpu):
        f = jax.jit(partial(module.add_product, feature_axis=feature_axis))
        found = f(total.T, hidden, delta).T if feature_axis else f(total, hidden, delta)
        # Sums of 37 products of order 1, in bfloat16 rounded before they are added.
        np.testing.assert_allclose(found, expected, atol=2e-5 if dtype == "float32" else 0.1)


# --- which form a program gets --------------------------------------------------------------------


def test_every_form_belongs_to_an_operation():
    names = {operation._primitive.name for operation in OPERATIONS}
    assert len(names) == 17
    for module in (cpu, one_pass):  # `cpu` names the forms of the files beside it
        found = vars(module).items()
        own = {n for n, f in found if getattr(f, "__module__", "").startswith(module.__name__)}
        public = {n for n in own if not n.startswith("_") and n != "Part"}
        assert public <= names


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("row_state", "float32"),
        ("row_state", "bfloat16"),
        ("row_state_and_terms", "float32"),
        ("row_state_and_terms", "float64"),
        ("row_state_and_terms", "bfloat16"),
    ],
)
def test_forms_agree(name, dtype, x64):
    logits = rows().astype(dtype)
    label = labels_of(logits).at[0].set(2**31 - 2)  # of another shard
    found = [getattr(module, name)(logits, label) for module in (portable, cpu, one_pass)]
    tolerance = 1e-12 if dtype == "float64" else 2e-6
    for other in found[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance), other, found[0])


@pytest.mark.parametrize("classes", [1, 3, 64, CLASSES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("numbers", [0, 5000])
def test_states_of_extreme_rows(numbers, classes, dtype, x64):
    """Relative to the first class, the last, and a label that is none."""
    count = max(9, numbers // classes)
    logits = np.array(rows(count, classes)).astype(dtype)
    most = jnp.finfo(dtype).max
    logits[0, :2], logits[1, 0], logits[2] = np.inf, np.nan, -np.inf
    logits[3], logits[4], logits[5, 0] = most, -most, -most
    logits[6, 0], logits[6, 1:] = -most, -np.inf
    logits[7, 0], logits[7, 1:2] = np.inf, -np.inf
    logits[8, 0], logits[8, 1:2] = np.inf, np.nan
    scale = jnp.linspace(0.5, 1.5, count, dtype="float64" if dtype == "float64" else "float32")
    for label in (0, classes - 1, 2**31 - 2):
        label = jnp.full(count, label, "int32")
        for scales in ((), (scale,)):
            found, expected = (
                jax.jit(partial(module.row_state_and_terms, jnp.asarray(logits), label))(*scales)
                for module in (cpu, portable)
            )
            known = ~np.isnan(expected[2])
            assert (np.isnan(found[2]) == ~known).all()
            for x, y in zip(found[:2], expected[:2], strict=True):
                np.testing.assert_array_equal(x[known], y[known])
            for x, y in zip(found[2:], expected[2:], strict=True):
                np.testing.assert_allclose(x[known], y[known], rtol=4e-6, atol=1e-37)
    top, odds = jax.jit(cpu.largest_and_odds)(logits)
    expected = jax.jit(portable.largest_and_odds)(logits)
    np.testing.assert_allclose(odds[:2], expected[1][:2], rtol=4e-6)
    np.testing.assert_allclose(odds[3:], expected[1][3:], rtol=4e-6)
    np.testing.assert_array_equal(np.delete(top, [1, 8]), np.delete(expected[0], [1, 8]))
    # Differences below the smallest normal number.
    tiny = (np.array(rows(count, classes)) * float(jnp.finfo(dtype).tiny)).astype(dtype)
    np.testing.assert_allclose(jax.jit(cpu.largest_and_odds)(tiny)[1], classes - 1.0)


@pytest.mark.parametrize("count", [4, 64])
def test_losses_of_rows_at_the_ends_of_float32(count):
    """A mask of the lowest number, and rows of nothing else."""
    most, low = np.finfo(np.float32).max, np.nextafter(np.finfo(np.float32).max, np.float32(0.0))
    x = np.zeros((count, 64), np.float32)
    x[0], x[1, :10], x[1, 10:], x[2], x[3, :2] = -most, -np.inf, -most, most, (most, low)
    labels = jnp.full(count, 20).at[3].set(0)
    losses = jaxsoftmax.cross_entropy(x, labels, reduction="none")
    expected = np.log([64.0, 54.0, 64.0, 1.0])
    np.testing.assert_allclose(losses[:4], expected, rtol=2 * ULP)
    log_probs = jaxsoftmax.log_softmax(x)[np.arange(4), labels[:4]]
    np.testing.assert_allclose(log_probs, -expected, rtol=2 * ULP)
    gradient = jax.grad(lambda x: jaxsoftmax.cross_entropy(x, labels, reduction="sum"))(x)
    np.testing.assert_allclose(gradient[:3, 20], [-63 / 64, -53 / 54, -63 / 64], rtol=2 * ULP)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log1p(dtype, x64):
    odds = np.exp(np.random.default_rng(0).uniform(-80.0, 14.0, 100_000)).astype(dtype)
    expected = np.log1p(odds.astype(np.longdouble))
    ulp = np.spacing(odds.dtype.type(expected))
    assert np.max(np.abs(np.asarray(jax.jit(cpu.log1p)(odds)) - expected) / ulp) < 2.0
    np.testing.assert_array_equal(cpu.log1p(jnp.array([0.0, np.nan], dtype)), [0.0, np.nan])


def test_many_terms_of_half_precision():
    """They are no array of their own, and the same."""
    few = rows().astype("bfloat16")
    label = labels_of(few)
    times = 1 + cpu_blocks._STORED // few.size
    many = cpu.row_state_and_terms(jnp.tile(few, (times, 1)), jnp.tile(label, times))
    for found, expected in zip(many, cpu.row_state_and_terms(few, label), strict=True):
        np.testing.assert_allclose(found[: len(few)], expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 130])
def test_exponentials_of_half_precision_in_passes(classes, monkeypatch):
    logits = odd_rows(classes)
    x, values = jnp.asarray(logits, "bfloat16"), jnp.linspace(-1.0, 1.0, 12)
    monkeypatch.setattr(cpu_blocks, "_STORED", 0)
    for name, *operands in (("softmax", x), ("softmax_times", x, values)):
        expected = getattr(portable, name)(*operands)
        found = jax.jit(getattr(cpu, name))(*operands)
        tolerance = 2.0**-7 if name == "softmax" else 2e-6  # which is rounded to bfloat16
        np.testing.assert_allclose(
            found.astype("float32"), expected.astype("float32"), rtol=tolerance, atol=1e-30
        )


def test_many_exponentials_of_half_precision_are_not_stored():
    numbers = jax.ShapeDtypeStruct((1 + cpu_blocks._STORED // 10_000, 10_000), "bfloat16")
    rows = jax.ShapeDtypeStruct((8192, 1000), "bfloat16")
    gradient = jax.grad(lambda x: jnp.sum(jaxsoftmax.logsumexp(x)))
    cases = [(jaxsoftmax.softmax, numbers, 16), (gradient, numbers, 16)]
    if "bfloat16" in cpu_plain._ONE_LOOP_DTYPES:  # not in JAX 0.10
        cases.append((jaxsoftmax.softmax, rows, 8))
    for f, x, share in cases:
        program = jax.jit(f).lower(x).compile()
        assert program.memory_analysis().temp_size_in_bytes < x.size / share


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("classes", [2, 63, 130, CLASSES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_forms_of_softmax_agree(classes, dtype, x64):
    """Also where a row has infinite logits, none that is finite, or one that is no number."""
    logits = odd_rows(classes)
    logits, v = jnp.asarray(logits, dtype), rows(12, classes, 1.0)[::-1]
    v = v.astype(dtype).astype("float64" if dtype == "float64" else "float32")
    tolerance = {"rtol": 2e-6, "atol": 1e-6}
    if dtype == "float64":
        tolerance = {"rtol": 1e-12, "atol": 1e-15}

    def results(module):
        return (
            module.softmax(logits),
            module.softmax_tangent(logits, v),
            module.softmax_times(logits, v[:, 0]),
            module.softmax_mean(logits, v),
            module.log_softmax(logits),
            module.log_softmax_tangent(logits, v),
            module.log_softmax_gradient(logits, v),
        )

    of_each = [jax.jit(partial(results, m))() for m in (portable, cpu, one_pass)]
    p, tangents, times, means, logs, *of_logs = zip(*of_each, strict=True)
    for got in logs[1:]:
        np.testing.assert_allclose(got, logs[0], **tolerance)
    for found in of_logs:
        np.testing.assert_array_equal(found[1][:3], 0.0)
        assert found[1][4, -1] == 0.0
    for found in (p, tangents, times, means, *of_logs):
        limits = tolerance
        if found[0].dtype == "bfloat16":  # rounded, perhaps in another direction
            found, limits = [x.astype("float32") for x in found], {"rtol": 2.0**-7, "atol": 1e-30}
        assert np.isnan(found[1][3]).all()
        assert np.isfinite(np.delete(found[1], 3, 0)).all()
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], **limits)
    for found in (tangents, times, means):
        np.testing.assert_array_equal(found[1][:3], 0.0)
    np.testing.assert_array_equal(p[1][1, :3], [0.5, 0.5, 0.0][:classes])


@pytest.mark.parametrize(("n", "classes"), [(300, 700), (4099, 40), (130, 1500), (5, 70_000)])
def test_rows_that_are_computed_twice(n, classes):
    """Many rows in float32: on a CPU those that the plain formulas make NaN are computed again."""
    logits = np.array(rows(n, classes))
    odd = {0: np.inf, 1: np.nan, n // 2: -np.inf, n - 1: np.inf}
    for row, value in odd.items():
        logits[row, 1 : classes if value == -np.inf else 4] = value
    logits[n // 2, 0] = -np.inf
    v = np.array(rows(n, classes, 1.0)[::-1])
    top, p = logits.max(-1, keepdims=True), oracles.softmax(logits)
    moved = p * (v - (p * v).sum(-1, keepdims=True))
    moved[np.isinf(top[:, 0])] = 0.0
    # Half an ulp of x − m, up to 40 here, is 2e-6 of its exponential.
    found = jax.jit(cpu.softmax)(logits)
    np.testing.assert_allclose(found, p, rtol=4e-6, atol=1e-30)
    assert np.isnan(found[1]).all()
    half = jnp.asarray(logits, "bfloat16")
    found = np.asarray(jax.jit(cpu.softmax)(half), np.float32)
    exact = oracles.softmax(np.asarray(half, np.float32))
    np.testing.assert_allclose(found, exact, rtol=1.01 * 2.0**-8, atol=1e-30)  # rounded once
    found = np.array(jax.jit(cpu.softmax_tangent)(logits, v))
    assert np.isnan(found[1]).all()
    size = p * (np.abs(v) + (p * np.abs(v)).sum(-1, keepdims=True))
    found[1] = moved[1] = size[1] = 0.0
    size[np.isinf(top[:, 0])] = 0.0
    assert (np.abs(found - moved) <= 4e-6 * size + 1e-30).all()
    moving = np.where(np.isinf(top), 0.0, p)
    found = jax.jit(cpu.softmax_times)(logits, v[:, 0])
    np.testing.assert_allclose(found, moving * v[:, :1], rtol=4e-6, atol=1e-30)
    found = jax.jit(cpu.softmax_mean)(logits, v)
    np.testing.assert_allclose(found, (moving * v).sum(-1), rtol=1e-5, atol=1e-6)


def gradient_of_log_softmax(logits, g):
    """g_c − p_c Σ_j g_j, at the largest class by a sum for 1 − p_a; and how large its terms are."""
    p, exists, which = oracles.softmax(logits), logits > -np.inf, np.arange(len(logits))
    a = np.argmax(logits, -1)
    others = exists.copy()
    others[which, a] = False
    g = np.where(exists, g, 0.0).astype(np.float64)
    expected = g - p * g.sum(-1, keepdims=True)
    size = np.abs(g) + p * np.abs(g).sum(-1, keepdims=True)
    rest, g_a = (p * others).sum(-1), g[which, a]
    expected[which, a] = rest * g_a - p[which, a] * (g * others).sum(-1)
    size[which, a] = rest * np.abs(g_a) + p[which, a] * np.abs(g * others).sum(-1)
    moves = np.isfinite(logits.max(-1, keepdims=True))
    return np.where(moves & exists, expected, 0.0), np.where(moves & exists, size, 0.0)


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize(
    ("n", "classes"), [(300, 700), (4099, 40), (130, 1500), (5, 70_000), (140_000, 1)]
)
@pytest.mark.parametrize("vmapped", [False, True])
def test_gradients_of_log_softmax_of_many_rows(n, classes, vmapped):
    """Confident rows, whatever the margin and class, and rows with infinite logits, or a NaN."""
    logits, g = np.array(rows(n, classes)), np.array(rows(n, classes, 1.0)[::-1])
    which, margins = np.arange(0, n, 2), np.linspace(0.0, 80.0, (n + 1) // 2)
    sure = which % classes
    sure[::5] = 0
    logits[which, sure] = logits[which].max(-1) + margins.astype(np.float32)
    g[which[::3], :] = 0.0
    g[which[::3], sure[::3]] = 1.0  # of nothing but the largest class
    logits[::7, classes // 2] = -np.inf
    logits[::11, 0] = -np.inf
    logits[1, 0], logits[2, -1], logits[3, :] = np.nan, np.inf, -np.inf
    expected, size = gradient_of_log_softmax(np.delete(logits, 1, 0), np.delete(g, 1, 0))
    f, batch = cpu.log_softmax_gradient, logits.shape
    if vmapped:
        f, batch = jax.vmap(f), (1, *batch)
    found = np.array(jax.jit(f)(logits.reshape(batch), g.reshape(batch))).reshape(logits.shape)
    assert np.isnan(found[1]).all()
    # Half an ulp of x − m, up to 40 here, is 2e-6 of its exponential.
    assert (np.abs(np.delete(found, 1, 0) - expected) <= 4e-6 * size + 1e-30).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_confident_row_spoils_no_other(dtype, x64):
    """In rows of many likely classes neither sums nor one large number cancel at the largest."""
    logits = np.array(rows(130, 1500, 1.0), dtype)
    logits[7, 3] += 40.0
    g = np.full_like(logits, 1.0 / 1500)
    a, which = logits.argmax(-1), np.arange(130)
    p = oracles.softmax(logits)
    expected = (g - p * g.sum(-1, keepdims=True))[which, a]
    found = jax.jit(cpu.log_softmax_gradient)(logits, g)[which, a]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)
    v = np.array(rows(130, 1500, 1.0)[::-1], dtype)
    v[which, a] = 1e6
    expected = v - (p * v).sum(-1, keepdims=True)
    found = np.array(jax.jit(cpu.log_softmax_tangent)(logits, v))
    others = np.delete(which, 7)
    np.testing.assert_allclose(found[others], expected[others], rtol=2e-5)


@pytest.mark.parametrize("count", [8, MANY])
def test_a_nan_beside_infinity_is_in_every_derivative(count):
    x = rows(count).at[0, 0].set(jnp.inf).at[0, -1].set(jnp.nan)
    for module in (portable, cpu, one_pass):
        for of in (module.log_softmax_tangent, module.log_softmax_gradient):
            found = jax.jit(of)(x, jnp.ones_like(x))
            assert np.isnan(found[0]).all()
            assert np.isfinite(found[1:]).all()


@pytest.mark.parametrize("absent", [False, True], ids=["all classes", "some absent"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_others(absent, dtype, x64):
    """A sum keeps what the label's value, larger by 1e9, would round away."""
    logits, values = rows(MANY).astype(dtype), np.array(rows(MANY, scale=1.0), dtype)
    if absent:
        logits = logits.at[:, ::7].set(-jnp.inf).at[2].set(-jnp.inf)
        values[:, 7] = np.nan
    label = np.array(labels_of(logits))
    label[5] = CLASSES + 3  # of another shard
    values[np.arange(5), label[:5]] = 1e9
    counted = np.isfinite(logits) & (np.arange(CLASSES) != label[:, None])
    exact = np.where(counted, values.astype(np.float64), 0.0).sum(-1)
    found = jax.jit(cpu_log_softmax.sum_of_others)(values, logits, label)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("n", "classes"), [(5, 1), (3, 2), (4, 40), (3, 67), (2, 2048), (MANY, CLASSES), (70, 2048)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_two_largest_numbers(n, classes, dtype):
    """Of many rows, few, blocks in blocks, and rows without blocks; ties go to the first class."""
    x = np.array(rows(n, classes).astype(dtype).astype("float32"))
    x[0, -1:], x[1, 0], x[2 % n] = np.inf, x[1].max(), -np.inf
    x[-1, [0, classes // 3, -1]] = x[-1].max() + 1.0
    found = jax.jit(cpu_largest.two_largest)(jnp.asarray(x, dtype))
    x = np.asarray(jnp.asarray(x, dtype).astype("float32"))
    expected = np.sort(np.insert(x, 0, -np.inf, -1), axis=-1)
    np.testing.assert_array_equal(found[0], expected[:, -1])
    np.testing.assert_array_equal(found[1], expected[:, -2])
    np.testing.assert_array_equal(found[2], x.argmax(-1))


def test_gradients_of_distributions_need_no_second_array_of_the_logits():
    x = jax.ShapeDtypeStruct((256, 32000), jnp.float32)
    row = jax.ShapeDtypeStruct((256,), jnp.float32)
    functions = {jaxsoftmax.softmax: x, jaxsoftmax.log_softmax: x, jaxsoftmax.logsumexp: row}
    for f, g in functions.items():
        pulled = jax.jit(lambda x, g, f=f: jax.vjp(f, x)[1](g)[0]).lower(x, g).compile()
        assert pulled.memory_analysis().temp_size_in_bytes < x.size * 4 / 16


def lowered(function, *arrays, **options):
    return jax.jit(function, **options).lower(*arrays).as_text()


def test_the_lowering_picks_the_form():
    """By the platform and by who runs the program, both unknown while it is traced."""
    x, y = rows(16, 1024), labels_of(rows(16, 1024))
    assert len(jax.make_jaxpr(state.row_state)(x, y).eqns) == 1
    # One CPU takes the label by index.
    assert "gather" in lowered(state.row_state, x, y)
    # A program that is partitioned uses masks and reductions only.
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    placed = NamedSharding(mesh, P("data"))
    partitioned = lowered(state.row_state, x, y, in_shardings=(placed, placed))
    assert "gather" not in partitioned
    assert "reduce" in partitioned
    # Inside of shard_map, each device's program is its own.
    inside = jax.shard_map(state.row_state, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert "gather" in lowered(inside, x, y)
    # An accelerator reads the row once.
    traced = jax.jit(state.row_state).trace(x, y)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.reduce(") == 1
    assert "gather" not in text


def test_exported_for_several_platforms():
    x, y = rows(4, 128), labels_of(rows(4, 128))
    both = jax.export.export(jax.jit(state.row_state), platforms=("cpu", "tpu"))(x, y)
    text = both.mlir_module()
    assert "stablehlo.case" in text
    np.testing.assert_allclose(both.call(x, y)[2], portable.row_state(x, y)[2], rtol=1e-6)


def test_a_form_is_traced_with_the_precision_of_its_program():
    """Also where it is lowered after the context that set it has ended."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 100)))
        y = jnp.zeros(4, jnp.int32)
        traced = jax.jit(state.row_state).trace(x, y)
    compiled = traced.lower().compile()
    with jax.enable_x64(True):
        assert {part.dtype for part in compiled(x, y)} == {jnp.dtype("float64")}


# --- the losses made with the one pass ------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "every option": {
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
        "soft_cap": 30.0,
        "temperature": 0.7,
        "where": np.arange(CLASSES) % 7 != 3,
        "class_weights": np.linspace(0.5, 2.0, CLASSES).astype(np.float32),
    },
}


@pytest.mark.exhaustive(every=3)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cross_entropy(on_an_accelerator, name, dtype):
    x = rows().astype(dtype)
    y = labels_of(x)
    y = jnp.where(y % 7 == 3, 0, y)  # a class that exists

    def loss(x):
        return jaxsoftmax.cross_entropy(x, y, **OPTIONS[name])

    assert "reduce(" in jax.jit(loss).lower(x).as_text()
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    exact = np.asarray(x, np.float64)
    expected = oracles.cross_entropy(exact, y, **OPTIONS[name])
    np.testing.assert_allclose(value, expected, **FLOAT32)
    with jax.enable_x64(True):
        wide = jax.grad(loss)(jnp.asarray(exact))
    narrow = {"rtol": 2.0**-8, "atol": 1e-6} if dtype == "bfloat16" else FLOAT32
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide, **narrow)


def test_the_gradient_is_the_closed_form_and_so_is_what_follows(on_an_accelerator):
    x, y = rows(), labels_of(rows())

    def loss(x):
        return jaxsoftmax.cross_entropy(x, y, reduction="sum")

    exact = np.asarray(x, np.float64)
    p = np.exp(exact - exact.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    gradient = p - np.eye(CLASSES)[np.asarray(y)]
    np.testing.assert_allclose(jax.grad(loss)(x), gradient, **FLOAT32)
    v = rows(scale=1.0)
    w = np.asarray(v, np.float64)
    np.testing.assert_allclose(jax.jvp(loss, (x,), (v,))[1], (gradient * w).sum(), rtol=2e-5)
    product = jax.jvp(jax.grad(loss), (x,), (v,))[1]
    # Where p is nearly 1 this is the difference of two terms of up to 4.
    expected = p * (w - (p * w).sum(-1, keepdims=True))
    np.testing.assert_allclose(product, expected, rtol=2e-6, atol=4e-6)
    each = jax.vmap(lambda x, y: jaxsoftmax.cross_entropy(x, y, reduction="none"))(x, y)
    np.testing.assert_allclose(each, oracles.cross_entropy(exact, y, reduction="none"), **FLOAT32)


def test_small_losses_are_not_rounded_to_zero(on_an_accelerator):
    for margin in (0.5, 10.0, 17.0, 20.0, 64.0, 80.0):
        row = np.zeros(600, np.float32)
        row[383] = margin
        expected, of_label = oracles.mp_loss_and_target_gradient(row, 383)
        value, gradient = jax.value_and_grad(jaxsoftmax.cross_entropy)(row, jnp.array(383))
        assert oracles.relative_error(value, expected) < 8 * ULP
        assert oracles.relative_error(gradient[383], of_label) < 8 * ULP
        log_p = jaxsoftmax.log_softmax(row)
        assert oracles.relative_error(-log_p[383], expected) < 8 * ULP


EXTREMES = {
    "absent classes": {600: -np.inf, 3: -np.inf},
    "one certain class": {600: np.inf},
    "two certain classes": {600: np.inf, 3: np.inf},
    "far apart": {600: 3e38, 3: -3e38},
    "all absent": dict.fromkeys(range(CLASSES), -np.inf),
    "not a number": {600: np.nan},
}


def test_extremes_as_on_a_cpu(monkeypatch):
    y = jnp.array([600, 0, 5, 700], jnp.int32)  # the last one is no class

    def everything(x):
        loss = partial(jaxsoftmax.cross_entropy, labels=y, reduction="none")
        values, pull = jax.vjp(loss, x)
        dense = [jaxsoftmax.softmax, jaxsoftmax.log_softmax, jaxsoftmax.logsumexp]
        found = [f(x) for f in dense]
        found += [jax.grad(lambda x, f=f: f(x)[:3].sum())(x) for f in dense]
        return values, pull(jnp.ones(4))[0], found

    cases = {name: np.array(rows(4)) for name in EXTREMES}
    for name, x in cases.items():
        for label, value in EXTREMES[name].items():
            x[:2, label] = value
    jax.clear_caches()
    on_a_cpu = jax.jit(everything)
    expected = {name: on_a_cpu(x) for name, x in cases.items()}
    switch_forms(monkeypatch)
    elsewhere = jax.jit(lambda x: everything(x))
    for name, x in cases.items():
        compare = partial(np.testing.assert_allclose, **FLOAT32, err_msg=name)
        jax.tree.map(compare, elsewhere(x), expected[name])
    jax.clear_caches()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distributions(on_an_accelerator, dtype):
    x = rows().astype(dtype)
    exact = np.asarray(x, np.float64)
    tolerance = {"rtol": 2.0**-8} if dtype == "bfloat16" else FLOAT32
    for f in (jaxsoftmax.softmax, jaxsoftmax.log_softmax):
        expected = getattr(oracles, f.__name__)(exact)
        np.testing.assert_allclose(f(x).astype(jnp.float32), expected, **tolerance)
    np.testing.assert_allclose(jaxsoftmax.logsumexp(x), oracles.logsumexp(exact), **FLOAT32)
    tiny = jaxsoftmax.logsumexp(jnp.array([0.0, -40.0], dtype))
    assert oracles.relative_error(tiny, np.exp(-40.0)) < 8 * ULP
    p = oracles.softmax(exact)
    gradient = jax.grad(lambda x: jaxsoftmax.logsumexp(x).sum())(x)
    np.testing.assert_allclose(gradient.astype(jnp.float32), p, **tolerance)


def test_the_linear_loss(on_an_accelerator):
    rng = np.random.default_rng(0)
    hidden, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((40, 24), (24, CLASSES))
    )
    labels = labels_of(hidden @ kernel)

    def loss(hidden, kernel):
        return jaxsoftmax.linear_cross_entropy(hidden, kernel, labels, chunk_size=16)

    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, kernel)
    exact = [np.asarray(a, np.float64) for a in (hidden, kernel)]
    logits = exact[0] @ exact[1]
    np.testing.assert_allclose(value, oracles.cross_entropy(logits, labels), **FLOAT32)
    delta = (oracles.softmax(logits) - np.eye(CLASSES)[np.asarray(labels)]) / 40
    np.testing.assert_allclose(gradients[0], delta @ exact[1].T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients[1], exact[0].T @ delta, rtol=1e-5, atol=1e-6)


def test_merged_shards(on_an_accelerator):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    x, y = rows(), labels_of(rows())

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(None, "model"), P()), out_specs=P())
    def losses(x, y):
        return jaxsoftmax.cross_entropy(x, y, reduction="none", axis_name="model")

    got = jax.jit(losses)(x, y)
    np.testing.assert_allclose(got, oracles.cross_entropy(x, y, reduction="none"), **FLOAT32)
    gradient = jax.grad(lambda x: losses(x, y).sum())(x)
    expected = oracles.softmax(np.asarray(x, np.float64)) - np.eye(CLASSES)[np.asarray(y)]
    np.testing.assert_allclose(gradient, expected, **FLOAT32)
