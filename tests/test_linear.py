"""linear_cross_entropy against its definition, cross entropy of hidden @ kernel + bias.

Under every transformation with the tables of `test_transformations`; at sizes that divide nothing,
in every dtype, against float64 NumPy; and what only the fused path can get wrong.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import test_transformations as table
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.experimental import checkify
from loss_cases import compiled

import jaxsoftmax
from jaxsoftmax import linear_cross_entropy

INF, NAN = float("inf"), float("nan")


# --- every option under every transformation ------------------------------------------------------

FEATURES = 2
_random = np.random.default_rng(50257)
HIDDEN = _random.normal(size=(3, FEATURES))
KERNEL = _random.normal(size=(FEATURES, table.CLASSES))
BIAS = _random.normal(size=table.CLASSES)


def by_definition(x, labels, *, kernel, bias=None, **options):
    logits = x @ kernel
    return table.define_cross_entropy(logits if bias is None else logits + bias, labels, **options)


def in_chunks(x, labels, *, kernel, bias=None, chunk_size=2, **options):
    """Two tokens at a time, of three: the last chunk is padded."""
    return linear_cross_entropy(x, kernel, labels, bias, chunk_size=chunk_size, **options)


def at_once(x, labels, *, kernel, bias=None, **options):
    return linear_cross_entropy(x, kernel, labels, bias, implementation="reference", **options)


def streamed(x, labels, **options):
    """The kernel's gradient a class at a time."""
    return in_chunks(x, labels, implementation="streamed", **options)


def tied(x, labels, *, kernel, **options):
    """A kernel that is stored as [V, D]."""
    return in_chunks(x, labels, kernel=kernel, kernel_layout="VD", **options)


def tied_by_definition(x, labels, *, kernel, **options):
    return by_definition(x, labels, kernel=kernel.T, **options)


def linear_case(function, labels, options):
    arrays = {"x": HIDDEN, "labels": labels, "kernel": KERNEL, "bias": BIAS}
    arrays |= {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    static = {k: v for k, v in options.items() if not isinstance(v, np.ndarray)}
    if function is tied:
        arrays["kernel"] = KERNEL.T.copy()
        return table.Case(table.Function(tied, tied_by_definition), arrays, static)
    return table.Case(table.Function(function, by_definition), arrays, static)


# "kernel" and "bias" stand in every row.
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "class_weights": {"class_weights": table.CLASS_WEIGHTS},
    "example_weights": {"example_weights": table.EXAMPLE_WEIGHTS},
    "mask_denominator": {"example_weights": table.MASK, "denominator": table.DENOMINATOR},
    "where": {"where": table.EXISTS, "label_smoothing": 0.1},
    "where_columns": {"where": table.COLUMNS, "class_weights": table.CLASS_WEIGHTS},
    "bias_of_minus_infinity": {"bias": np.array([0.5, -np.inf, 0.1, -0.3]), "z_loss": 0.3},
    "soft_cap": {"soft_cap": 3.0, "temperature": 0.5},
    "numbers": table.NUMBERS | {"class_weights": table.CLASS_WEIGHTS},
    "numbers_statistics": table.NUMBERS | {"return_statistics": True},
    "poly": {"poly_epsilon": 0.7},
    "everything": table.LOGIT_OPTIONS["everything"] | {"return_statistics": False},
    "everything_statistics": table.LOGIT_OPTIONS["everything"],
}
INDEX_ROWS = {
    "focal": table.FOCAL_OPTIONS["focal_poly_where"],
    "ignore_index": table.INDEX_OPTIONS["ignore_index"],
    "ignore_index_statistics": table.INDEX_OPTIONS["ignore_index_outside"]
    | {"reduction": "none", "return_statistics": True, "bias": BIAS * [1.0, -np.inf, 1.0, 1.0]},
}


KINDS = ("classes", "distributions")


def row_case(function, kind, row):
    function = {"tied": tied, "streamed": streamed}.get(kind.split(" ")[0], function)
    if not kind.endswith("distributions"):
        return linear_case(function, table.LABELS, (ROWS | INDEX_ROWS)[row])
    # No mass on classes that do not exist: the loss would be inf.
    options = ROWS[row]
    exists = options.get("where", True) & ~np.isinf(options.get("bias", BIAS))
    return linear_case(function, table.SOFT * exists, options)


@pytest.mark.exhaustive(every=13, cover=False)
@pytest.mark.parametrize(
    ("kind", "row"),
    [("classes", row) for row in ROWS | INDEX_ROWS]
    + [("distributions", row) for row in ("plain", "where", "mask_denominator", "everything")]
    + [("tied", row) for row in ("plain", "everything")]
    + [("streamed", row) for row in ROWS | INDEX_ROWS]
    + [("streamed distributions", row) for row in ("plain", "everything", "everything_statistics")],
)
def test_every_option(kind, row, x64):
    """Value, gradient and a product with the Hessian."""
    case = row_case(in_chunks, kind, row)
    at = case.vector()
    tangent = np.random.default_rng(3).normal(size=at.shape)

    def everything(v, t):
        gradient, curvature = jax.jvp(jax.grad(case.scalar), (v,), (t,))
        return case.ours(v), gradient, curvature

    results, gradient, curvature = compiled(everything)(at, tangent)
    for ours, definition in zip(results, case.definition(at), strict=True):
        table.assert_close(ours, definition, table.EXACT, "results")
    table.assert_close(gradient, case.gradient_by_definition(at), table.EXACT, "gradient")
    expected = case.curvature_by_definition(at, tangent)
    table.assert_close(curvature, expected, table.DIFFERENCED, "curvature")


@pytest.mark.exhaustive(every=4, cover=False)
# One row for each rule: of a sum, and of rows by themselves.
@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("distributions", "everything"),
        ("tied", "ignore_index_statistics"),
        ("streamed", "everything"),
        ("streamed distributions", "everything_statistics"),
    ],
)
def test_every_transformation(kind, row, x64):
    table.check_every_transformation(row_case(in_chunks, kind, row))


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference(kind, x64):
    table.check_drawn(row_case(at_once, kind, "everything_statistics"))


# --- options drawn at random ----------------------------------------------------------------------


@st.composite
def linear_cases(draw, function):
    """A case of the table of logits: what it takes of them, a linear layer gives or excludes."""
    drawn = draw(table.loss_cases(function))
    arrays = dict(drawn.arrays)
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    absent = np.isneginf(arrays["x"])
    if absent.any():
        arrays["where"] = ~absent & arrays.get("where", True)
        if arrays["labels"].ndim == 2:
            arrays["labels"] = arrays["labels"] * arrays["where"]
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    arrays["x"] = scale * random.normal(size=HIDDEN.shape)
    arrays["kernel"] = random.normal(size=KERNEL.shape)
    if draw(st.booleans()):
        arrays["bias"] = random.normal(size=BIAS.shape)
    ours = partial(in_chunks, chunk_size=draw(st.sampled_from([1, 2, 3, 64, None])))
    return table.Case(table.Function(ours, by_definition), arrays, drawn.static)


@settings(max_examples=6)
@given(linear_cases("cross_entropy"))
def test_any_options(case):
    table.check_drawn(case)


@pytest.mark.exhaustive
@settings(max_examples=4)
@given(linear_cases("cross_entropy_soft"))
def test_any_options_of_distributions(case):
    table.check_drawn(case)


# --- sizes and dtypes -----------------------------------------------------------------------------

# Unit roundoff of what an operand is rounded to before a product, and of what comes back.
ROUNDOFF = {"float64": 2**-53, "float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}
SIZES = [  # N, D, V, chunk_size: none divides another
    (1, 3, 1, None),
    (1, 5, 50257, None),
    (7, 3, 50257, 2),
    (7, 1, 5, 3),
    (1000, 7, 1, 300),
    (1000, 5, 997, 48),
    (1000, 1031, 3, None),
]


def layer(size, dtype, random, bias_dtype=None):
    n, d, v = size
    h = jnp.asarray(random.normal(size=(n, d)), dtype)
    w = jnp.asarray(random.normal(size=(d, v)) * (3.0 / np.sqrt(d)), dtype)
    b = jnp.asarray(random.normal(size=v), bias_dtype or dtype)
    return h, w, b, random.integers(0, v, size=n).astype(np.int32)


def gradients_in_float64(h, w, b, labels, factors):
    """Loss and gradients of Σ factors · loss, and what the terms of each may be off by.

    In units of roundoff: a logit is off by that of its terms, and delta by that times itself.
    """
    h, w, b = map(oracles.f64, (h, w, b))
    logits = h @ w + b
    losses = oracles.cross_entropy(logits, labels, reduction="none")
    delta = oracles.cross_entropy_gradient(logits, labels) * factors[:, None]
    logit_terms = np.abs(h) @ np.abs(w) + np.abs(b)
    size = np.abs(delta)
    off = size * (8.0 + 4.0 * logit_terms.max(-1, keepdims=True))
    gradients = delta @ w.T, h.T @ delta, delta.sum(0)
    sums = [(x @ np.abs(w).T, np.abs(h).T @ x, x.sum(0)) for x in (size, off)]
    return losses, gradients, sums


def assert_gradients(got, expected, sums, dtype, what):
    """Delta is rounded to the operands' dtype, all else to the accumulator's; then each entry.

    Twice in `hidden` under the mean: its rows are kept in their own dtype and divided at the end.
    """
    narrow, wide = ROUNDOFF[dtype.name], ROUNDOFF["float64" if dtype.itemsize == 8 else "float32"]
    for ours, exact, size, off, name in zip(got, expected, *sums, ("h", "W", "b"), strict=True):
        allowed = narrow * size + wide * off + 2 * ROUNDOFF[ours.dtype.name] * np.abs(exact)
        tiny = float(jnp.finfo(ours.dtype).tiny)  # what float16 has no number for
        assert np.all(np.abs(oracles.f64(ours) - exact) <= allowed + tiny), (what, name)


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_that_divide_nothing(size):
    *size, chunk_size = size
    h, w, b, y = layer(size, jnp.float32, np.random.default_rng(0))

    def loss(h, w, b):
        return linear_cross_entropy(h, w, y, b, chunk_size=chunk_size)

    value, gradients = compiled(jax.value_and_grad(loss, (0, 1, 2)))(h, w, b)
    losses, expected, terms = gradients_in_float64(h, w, b, y, np.full(len(y), 1 / len(y)))
    np.testing.assert_allclose(value, losses.mean(), rtol=2e-6, atol=1e-12)
    assert_gradients(gradients, expected, terms, h.dtype, size)


DTYPES = [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16]


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_dtypes(dtype, x64):
    """Under the mean, and without reduction under cotangents of either sign."""
    h, w, b, y = layer((37, 12, 101), dtype, np.random.default_rng(1))
    cotangent = np.random.default_rng(2).normal(size=37)
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32

    def loss(h, w, b):
        return linear_cross_entropy(h, w, y, b, chunk_size=8)

    def weighted(h, w, b):
        losses = linear_cross_entropy(h, w, y, b, chunk_size=8, reduction="none")
        return jnp.sum(losses * jnp.asarray(cotangent, wide)), losses

    @jax.jit
    def both(*layer):
        (_, losses), gradients = jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)(*layer)
        return jax.value_and_grad(loss, (0, 1, 2))(*layer), (losses, gradients)

    (value, mean_gradients), (losses, gradients) = both(h, w, b)
    assert value.dtype == losses.dtype == wide
    assert all(g.dtype == dtype for g in (*mean_gradients, *gradients))
    exact, expected, terms = gradients_in_float64(h, w, b, y, np.full(37, 1 / 37))
    # Products of the operands are exact in the accumulator: only it rounds the logits.
    tolerance = 1e-14 if dtype == jnp.float64 else 2e-6
    np.testing.assert_allclose(losses, exact, rtol=tolerance)
    np.testing.assert_allclose(value, exact.mean(), rtol=tolerance)
    assert_gradients(mean_gradients, expected, terms, np.dtype(dtype), "mean")
    _, expected, terms = gradients_in_float64(h, w, b, y, cotangent)
    assert_gradients(gradients, expected, terms, np.dtype(dtype), "none")


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_mixed_dtypes(reduction):
    """bfloat16 states and a float32 kernel meet in float32; each gradient has its own dtype."""
    h, w, b, y = layer((9, 6, 11), jnp.float32, np.random.default_rng(3), jnp.float16)
    h = h.astype(jnp.bfloat16)

    def loss(h, w, b):
        losses = linear_cross_entropy(h, w, y, b, chunk_size=4, reduction=reduction)
        return losses if reduction == "mean" else jnp.mean(losses)

    value, gradients = compiled(jax.value_and_grad(loss, (0, 1, 2)))(h, w, b)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float16]
    exact, expected, terms = gradients_in_float64(h, w, b, y, np.full(9, 1 / 9))
    np.testing.assert_allclose(value, exact.mean(), rtol=2e-6)
    assert_gradients(gradients, expected, terms, w.dtype, "mixed")


# --- small losses are not rounded to zero ---------------------------------------------------------


def identity_layer(logits):
    """hidden = logits, kernel = identity: products with 1 and sums with 0 are exact."""
    return jnp.asarray(logits), jnp.eye(logits.shape[1], dtype=jnp.float32)


def test_confident_rows_keep_their_digits():
    margins = np.concatenate([np.linspace(0.0, 80.0, 41), [20.0]])
    x = np.random.default_rng(4).uniform(-3.0, 0.0, (len(margins), 10)).astype(np.float32)
    x[:, 0] = margins
    x[-1] = [20.0] + 9 * [0.0]
    hidden, kernel = identity_layer(x)
    labels = jnp.zeros(len(x), jnp.int32)

    @jax.jit
    def of_each(hidden):
        def total(h):
            return linear_cross_entropy(h, kernel, labels, chunk_size=4, reduction="sum")

        losses = linear_cross_entropy(hidden, kernel, labels, chunk_size=4, reduction="none")
        return losses, jax.grad(total)(hidden), jax.grad(lambda h: total(h) / 4)(hidden)

    losses, gradients, quarters = of_each(hidden)
    for i, row in enumerate(x):
        loss, gradient = oracles.mp_loss_and_target_gradient(row, 0)
        assert oracles.relative_error(losses[i], loss) < 1e-6
        assert oracles.relative_error(gradients[i, 0], gradient) < 1e-6
        assert oracles.relative_error(4 * quarters[i, 0], gradient) < 1e-6
    assert losses[-1] == pytest.approx(1.8550374e-8, rel=1e-6)  # 9 e^-20


def test_large_offsets_cancel():
    hidden, kernel = identity_layer(np.float32([[1e6 + 2, 1e6 - 1], [20.0, 0.0]]))
    losses = linear_cross_entropy(hidden, kernel, np.zeros(2, np.int32), reduction="none")
    np.testing.assert_allclose(losses, [0.0485874, 2.0611537e-9], rtol=1e-6)


# --- rows that must not reach anything ------------------------------------------------------------


@pytest.fixture
def small():
    random = np.random.default_rng(5)
    return layer((5, 3, 4), jnp.float32, random)


ALL = (0, 1, 2)


@pytest.mark.exhaustive(every=5, cover=False)
@pytest.mark.parametrize("how", ["ignore_index", "mask", "weight 0"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_an_ignored_row_holds_reaches_nothing(small, how, reduction):
    h, w, b, y = small
    kept = np.array([1, 1, 0, 1, 1], bool)
    options = {"ignore_index": -100} if how == "ignore_index" else {}
    labels = np.where(kept, y, -100) if how == "ignore_index" else y
    if how != "ignore_index":
        weights = kept if how == "mask" else kept.astype(np.float32)
        options["example_weights"] = weights
    broken = h.at[2].set(jnp.array([NAN, INF, -INF]))

    def loss(h, w, b):
        losses = linear_cross_entropy(h, w, labels, b, chunk_size=2, reduction=reduction, **options)
        return losses if reduction == "mean" else jnp.sum(losses) / 4

    def without(h, w, b):
        return linear_cross_entropy(h[kept], w, y[kept], b)

    value, got = compiled(jax.value_and_grad(loss, ALL))(broken, w, b)
    expected_value, expected = compiled(jax.value_and_grad(without, ALL))(h, w, b)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    assert not np.any(got[0][2])
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("statistics", [False, True])
def test_a_batch_of_which_every_row_is_ignored(small, statistics):
    h, w, b, y = small

    def loss(h, w, b, denominator=None):
        result = linear_cross_entropy(
            jnp.full_like(h, NAN), w, np.full_like(y, -1), b, ignore_index=-1, chunk_size=2,
            denominator=denominator, return_statistics=statistics,
        )  # fmt: skip
        return jax.tree.leaves(result)[0]

    for arguments in ((h, w, b), (h, w, b, jnp.float32(0.0))):
        value, gradients = jax.value_and_grad(loss, tuple(range(len(arguments))))(*arguments)
        assert value == 0.0
        assert all(not np.any(g) for g in gradients)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_a_label_outside_the_classes_is_loud(small, bad):
    h, w, b, y = small
    y = y.copy()
    y[3] = bad

    def losses_of(h):
        return linear_cross_entropy(h, w, y, b, chunk_size=2, reduction="none")

    losses, pull = jax.vjp(losses_of, h)
    others = np.arange(5) != 3
    assert np.isnan(losses[3])
    assert np.all(np.isfinite(losses[others]))
    (gradient,) = pull(jnp.ones(5))
    assert np.all(np.isnan(gradient[3]))
    assert np.all(np.isfinite(gradient[others]))
    value, of_kernel = jax.value_and_grad(lambda w: linear_cross_entropy(h, w, y, b))(w)
    assert np.isnan(value)
    assert np.any(np.isnan(of_kernel))


def test_debug_checks_name_the_label(small):
    h, w, b, y = small
    y = y.copy()
    y[1] = 7

    def f(h):
        return jax.grad(lambda h: linear_cross_entropy(h, w, y, b, chunk_size=2))(h)

    with jaxsoftmax.debug_checks(True):
        error, _ = jax.jit(checkify.checkify(f))(h)
    with pytest.raises(checkify.JaxRuntimeError, match=r"labels must be in \[0, C\) .* got 7"):
        error.throw()
    error, _ = jax.jit(checkify.checkify(f))(h)
    error.throw()


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_batch_axes_of_any_number(implementation):
    random = np.random.default_rng(6)
    h, w, _, _ = layer((24, 3, 5), jnp.float32, random)
    labels = random.integers(0, 5, size=24)
    soft = random.dirichlet(np.ones(5), size=24).astype(np.float32)
    where = random.uniform(size=(24, 5)) < 0.8
    where[np.arange(24), labels] = True
    for shape in ((2, 3, 4), (24, 1)):
        for y in (labels.reshape(shape), (soft * where).reshape(*shape, 5)):
            losses, statistics = linear_cross_entropy(
                h.reshape(*shape, 3), w, y, where=where.reshape(*shape, 5), reduction="none",
                implementation=implementation, return_statistics=True,
            )  # fmt: skip
            assert losses.shape == shape
            assert {x.shape for x in statistics[:4]} == {shape}
            logits = np.where(where, oracles.f64(h) @ oracles.f64(w), -np.inf)
            expected = oracles.cross_entropy(
                logits, y.reshape(24, *y.shape[len(shape) :]), reduction="none"
            )
            np.testing.assert_allclose(losses.ravel(), expected, rtol=2e-6)
    one = linear_cross_entropy(h[0], w, labels[0], implementation=implementation)
    assert one.shape == ()


@pytest.mark.exhaustive(every=5, cover=False)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(shape, reduction):
    h, w = jnp.zeros((*shape, 3)), jnp.ones((3, 4))
    y = jnp.zeros(shape, jnp.int32)

    def loss(h, w):
        losses = linear_cross_entropy(h, w, y, reduction=reduction)
        return jnp.sum(losses), losses

    (value, losses), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(h, w)
    assert value == 0.0
    assert losses.shape == (shape if reduction == "none" else ())
    assert [g.shape for g in gradients] == [h.shape, w.shape]
    assert not np.any(gradients[1])


# --- a tied embedding -----------------------------------------------------------------------------


def test_a_tied_embedding_learns_from_both_of_its_uses():
    random = np.random.default_rng(7)
    embedding = jnp.asarray(random.normal(size=(11, 3)), jnp.float32)
    tokens, y = random.integers(0, 11, size=(2, 9))

    def loss(embedding, implementation):
        hidden = jnp.tanh(embedding[tokens])
        if implementation == "transposed":
            return linear_cross_entropy(hidden, embedding.T, y)
        return linear_cross_entropy(
            hidden, embedding, y, kernel_layout="VD", implementation=implementation
        )

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    expected = gradient(embedding, "reference")
    for way in ("chunked", "transposed"):
        np.testing.assert_allclose(gradient(embedding, way), expected, rtol=0, atol=1e-7)


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(40, 300, 8), (50, 8, 300), (7, 1, 50), (7, 50, 1), (9, 2, 2)])
def test_tied_embeddings_of_any_size(size, dtype):
    """Bands of features, a last one that reaches back, products that XLA:CPU has no kernel for."""
    h, w, b, y = layer(size, dtype, np.random.default_rng(8))

    def loss(h, embedding, b):
        return linear_cross_entropy(h, embedding, y, b, kernel_layout="VD", chunk_size=16)

    _, (of_h, of_e, of_b) = jax.jit(jax.value_and_grad(loss, ALL))(h, w.T, b)
    _, expected, terms = gradients_in_float64(h, w, b, y, np.full(len(y), 1 / len(y)))
    assert_gradients((of_h, of_e.T, of_b), expected, terms, np.dtype(dtype), size)


# --- an ensemble, a second backward, export, errors -----------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vmap_over_hidden_and_over_an_ensemble_of_kernels(small, reduction):
    h, w, b, y = small
    kernels = jnp.stack([w, -w])
    states = jnp.stack([h, -h])

    def gradients(h, w):
        def loss(h, w):
            losses = linear_cross_entropy(h, w, y, b, chunk_size=2, reduction=reduction)
            return jnp.sum(losses * losses)

        return jax.value_and_grad(loss, (0, 1))(h, w)

    def alone(states, kernels):
        pairs = [(h, w) for h in states for w in kernels]
        return jax.tree.map(lambda *x: jnp.stack(x), *[gradients(*pair) for pair in pairs])

    batched = jax.vmap(jax.vmap(gradients, (None, 0)), (0, None))
    got = compiled(batched)(states, kernels)
    expected = compiled(alone)(states, kernels)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_through_the_same_linearisation(small, reduction):
    h, w, b, y = small

    def losses(h, w):
        return linear_cross_entropy(h, w, y, b, chunk_size=2, reduction=reduction)

    value, pull = jax.vjp(losses, h, w)
    once, again, double = pull(value), pull(value), pull(2.0 * value)
    for first, second, twice in zip(once, again, double, strict=True):
        assert np.any(first)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(2.0 * first, twice, rtol=1e-6)
    _, push = jax.linearize(losses, h, w)
    forward = push(h, w)
    np.testing.assert_allclose(
        jnp.vdot(forward, value), sum(map(jnp.vdot, once, (h, w))), rtol=1e-5
    )


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", ["5", "n"])
def test_export_round_trip(small, tokens, tied):
    h, w, b, y = small
    w = w.T if tied else w

    def f(h, w, y):
        layout = "VD" if tied else "DV"
        return linear_cross_entropy(h, w, y, b, kernel_layout=layout, ignore_index=-1)

    (n,) = export.symbolic_shape(tokens)
    shapes = [
        jax.ShapeDtypeStruct((n, 3), h.dtype),
        jax.ShapeDtypeStruct(w.shape, w.dtype),
        jax.ShapeDtypeStruct((n,), y.dtype),
    ]
    data = export.export(jax.jit(f))(*shapes).serialize(vjp_order=1)
    back = export.deserialize(data).call
    value, gradients = jax.value_and_grad(back, (0, 1))(h, w, y)
    expected_value, expected = jax.value_and_grad(f, (0, 1))(h, w, y)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def call(small, **changed):
    h, w, b, y = small
    arguments = {"hidden": h, "kernel": w, "labels": y, "bias": b} | changed
    return linear_cross_entropy(**arguments)


ERRORS = [
    ({"implementation": "fast"}, ValueError, r"'auto', 'reference', 'chunked'.*got 'fast'"),
    ({"implementation": None}, ValueError, "got None"),
    ({"implementation": "reference", "chunk_size": 2}, ValueError, 'chunk_size=2 is for "chunked"'),
    ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size must be a Python int or None, got 2.0"),
    ({"kernel": jnp.ones((4, 3))}, ValueError, r'D = 3.* got \[4, 3\].*kernel_layout="VD"'),
    ({"kernel_layout": "VD"}, ValueError, r'\[V, D\].* got \[3, 4\].*kernel_layout="DV"'),
    ({"kernel_layout": "DVD"}, ValueError, "kernel_layout must be one of 'DV', 'VD', got 'DVD'"),
    ({"kernel_layout": 0}, ValueError, "kernel_layout must be one of"),
    ({"kernel": jnp.ones(3)}, ValueError, r"kernel must have shape \[D, V\]"),
    ({"kernel": jnp.ones((3, 0))}, ValueError, "kernel must have at least one class"),
    ({"kernel": jnp.ones((3, 4), jnp.int32)}, TypeError, "kernel must be a floating point"),
    ({"hidden": jnp.float32(1.0)}, ValueError, "hidden must have a feature axis"),
    ({"bias": jnp.ones(3)}, ValueError, r"bias must have one entry for each of the 4 classes"),
    ({"labels": jnp.zeros(4, jnp.int32)}, ValueError, r"labels must have the shape of the batch"),
    ({"labels": jnp.zeros(5)}, TypeError, "must be integer class indices"),
    ({"where": jnp.ones((5, 3), bool)}, ValueError, "where must broadcast"),
    ({"class_weights": jnp.ones(3)}, ValueError, "class_weights must have one weight"),
    ({"example_weights": jnp.ones(4)}, ValueError, "example_weights must broadcast to the shape"),
    ({"reduction": "sum", "denominator": 2.0}, ValueError, "denominator replaces the divisor"),
    ({"labels": [0, 1, 2, 3, 0]}, TypeError, "labels must be an array, got a list"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), ERRORS, ids=lambda x: str(x)[:40])
def test_errors_name_the_argument(small, changed, kind, message):
    with pytest.raises(kind, match=message):
        call(small, **changed)
