"""Labels that name a few classes of each example: as the same labels with a number for each class.

The reference is the loss of soft labels, which the other tests hold to float64 definitions.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from loss_cases import compiled

import jaxsoftmax as js
from jaxsoftmax import SparseLabels

N, V, K = 8, 6, 3
_random = np.random.default_rng(11)
LOGITS = _random.normal(size=(N, V)) * 2
INDICES = _random.integers(0, V, (N, K))
WEIGHTS = _random.uniform(0.1, 1.0, (N, K))
WEIGHTS[2, 1], INDICES[2, 1] = 0.0, 99  # padding, whose index is not looked at
WEIGHTS[5] = 0.0  # an example without mass
INDICES[3] = [1, 1, 2]  # a class that is named twice

OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "class_weights": {"class_weights": np.linspace(0.5, 2.0, V), "label_smoothing": 0.2},
    "logits": {"z_loss": 0.1, "temperature": 0.6, "soft_cap": 3.0},
    "poly": {"poly_epsilon": 0.5},
    "mask": {"example_weights": np.arange(N) % 3 != 1},
}


def dense(weights):
    """The same labels as soft labels."""
    rows = jnp.arange(N)[:, None]
    return jnp.zeros((N, V), weights.dtype).at[rows, np.minimum(INDICES, V - 1)].add(weights)


def scalar(losses):
    """With unequal cotangents."""
    return jnp.sum(
        losses * jnp.linspace(1.0, 2.0, losses.size, dtype=losses.dtype).reshape(losses.shape)
    )


def of_soft(x, weights, **options):
    return scalar(js.cross_entropy(x, dense(weights), **options))


def of_sparse(x, weights, **options):
    return scalar(js.cross_entropy(x, SparseLabels(INDICES, weights), **options))


def of_linear(implementation, x, weights, **options):
    """The logits for a kernel."""
    if implementation != "reference":
        options["chunk_size"] = 3  # of 8: the last chunk is padded
    labels = SparseLabels(INDICES, weights)
    eye = jnp.eye(N, dtype=x.dtype)
    return scalar(js.linear_cross_entropy(eye, x, labels, implementation=implementation, **options))


PATHS = {
    "logits": of_sparse,
    **{i: partial(of_linear, i) for i in ("reference", "chunked", "streamed")},
}


def everything(f, **options):
    """Value, gradients of logits and weights, and a product with the Hessian."""

    def all_of(x, weights):
        g = lambda x, w: f(x, w, **options)  # noqa: E731
        tangents = (jnp.cos(x), jnp.where(weights == 0.0, 0.0, jnp.sin(weights)))
        gradient = jax.grad(g, (0, 1))
        return jax.value_and_grad(g, (0, 1))(x, weights), jax.jvp(gradient, (x, weights), tangents)[
            1
        ]

    return all_of


def everything_compiled(f, **options):
    return compiled(everything(f, **options))


@cache
def expected_of(name):
    """With soft labels, for every path."""
    return everything_compiled(of_soft, **OPTIONS[name])(LOGITS, WEIGHTS)


def assert_same(found, expected, tolerance):
    """The weights' gradient is 0 at padding, where soft labels have one for the index."""
    (value, (of_x, of_w)), (curve_x, curve_w) = found
    (value_e, (of_x_e, of_w_e)), (curve_x_e, curve_w_e) = expected
    counted = np.asarray(WEIGHTS != 0.0)
    assert (np.asarray(of_w)[~counted] == 0.0).all()
    pairs = [(value, value_e), (of_x, of_x_e), (curve_x, curve_x_e)]
    pairs += [
        (np.asarray(a)[counted], np.asarray(b)[counted])
        for a, b in ((of_w, of_w_e), (curve_w, curve_w_e))
    ]
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.exhaustive(every=16, cover=False)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", OPTIONS)
def test_as_soft_labels(name, path, x64):
    found = everything_compiled(PATHS[path], **OPTIONS[name])(LOGITS, WEIGHTS)
    assert_same(found, expected_of(name), 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_statistics(path):
    """log p of every class that is named, 0 for padding; no rank."""
    x, weights = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(WEIGHTS, jnp.float32)
    labels, options = SparseLabels(INDICES, weights), {"return_statistics": True}
    if path == "logits":
        _, found = js.cross_entropy(x, labels, **options)
    else:
        _, found = js.linear_cross_entropy(jnp.eye(N), x, labels, implementation=path, **options)
    log_p = np.take_along_axis(np.asarray(js.log_softmax(x)), np.minimum(INDICES, V - 1), -1)
    np.testing.assert_allclose(found.log_prob, np.where(WEIGHTS != 0, log_p, 0.0), rtol=2e-6)
    assert found.rank is None
    assert found.weight_sum == N


def test_one_hot_labels_are_as_accurate_as_indices():
    x = jnp.array([[20.0, 0.0, 0.0], [0.0, 60.0, 0.0]])
    labels = SparseLabels(jnp.array([[0, 2], [1, 0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
    loss = partial(js.cross_entropy, reduction="sum")
    found = jax.value_and_grad(loss)(x, labels)
    expected = jax.value_and_grad(loss)(x, jnp.array([0, 1]))
    np.testing.assert_allclose(found[0], expected[0], rtol=3e-7)
    np.testing.assert_allclose(found[1], expected[1], rtol=5e-7)


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("path", PATHS)
def test_vmap_over_sets_of_weights(path):
    x = jnp.asarray(LOGITS, jnp.float32)
    several = jnp.stack([jnp.asarray(WEIGHTS, jnp.float32) * s for s in (1.0, 0.5)])
    f = jax.value_and_grad(PATHS[path], (0, 1))
    found = compiled(jax.vmap(f, (None, 0)))(x, several)
    f = compiled(f)
    for i, weights in enumerate(several):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(f(x, weights)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=2e-6, atol=1e-6)


# --- over a mesh ----------------------------------------------------------------------------------


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("path", ["logits", "chunked", "streamed"])
def test_indices_are_global_inside_of_shard_map(path, check_vma, x64):
    mesh = Mesh(np.array(jax.devices()[:2]), ("m",))

    def sharded(x, weights, **options):
        def here(x, weights):
            return PATHS[path](x, weights, axis_name="m", **options)

        specs = (P(None, "m"), P())
        return jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)(
            x, weights
        )

    found = everything_compiled(sharded, **OPTIONS["smoothing"])(LOGITS, WEIGHTS)
    assert_same(found, expected_of("smoothing"), 1e-12)


LAYOUTS = {
    "data": (P("d"), P(), P("d")),
    "fsdp": (P("d"), P("d"), P("d")),
    "tensor": (P(), P(None, "d"), P()),
}


SHARDED_HIDDEN = _random.normal(size=(N, 4)).astype(np.float32)
SHARDED_KERNEL = _random.normal(size=(4, V)).astype(np.float32)


@cache
def loss_to_shard(implementation):
    """The loss and its gradients as one program, its arrays, and what it gives on one device."""

    def loss(h, w, indices, weights):
        labels = SparseLabels(indices, weights)
        options = {"chunk_size": 4, "implementation": implementation, "return_statistics": True}
        loss, found = js.linear_cross_entropy(h, w, labels, **options)
        return loss + jnp.sum(found.log_prob * weights)

    f = compiled(jax.value_and_grad(loss, (0, 1, 3)))
    labels = INDICES.astype(np.int32), WEIGHTS.astype(np.float32)
    arrays = (SHARDED_HIDDEN, SHARDED_KERNEL, *labels)
    return f, arrays, f(*arrays)


@pytest.mark.exhaustive(every=16, cover=False)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("implementation", ["chunked", "streamed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_under_jit(layout, implementation, kind):
    hidden, kernel, labels = LAYOUTS[layout]
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",), axis_types=(kind,))
    f, arrays, expected = loss_to_shard(implementation)
    specs = (hidden, kernel, labels, labels)
    put = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]
    for a, b in zip(jax.tree.leaves(f(*put)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=3e-6, atol=3e-6)


# --- what is not made, what is wrong --------------------------------------------------------------


def test_no_array_over_the_classes_is_made():
    """Of logits [n, C]: no array of theirs but themselves and their gradient; linear, none."""
    classes, tokens = 50_000, 64
    h = jax.ShapeDtypeStruct((tokens, 32), jnp.float32)
    w = jax.ShapeDtypeStruct((32, classes), jnp.float32)
    labels = SparseLabels(
        jax.ShapeDtypeStruct((tokens, K), jnp.int32), jax.ShapeDtypeStruct((tokens, K), jnp.float32)
    )
    loss = partial(js.linear_cross_entropy, chunk_size=4)
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(h, w, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * tokens * classes / 3
    x = jax.ShapeDtypeStruct((tokens, classes), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(js.cross_entropy)).lower(x, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.2 * 4 * tokens * classes


def test_an_index_that_is_no_class():
    """NaN for its example alone; an error under debug_checks."""
    labels = SparseLabels(jnp.array([[0, 7], [1, 2]]), jnp.full((2, 2), 0.5))
    for f in (js.cross_entropy, lambda x, y, **o: js.linear_cross_entropy(x, jnp.eye(3), y, **o)):
        losses = f(jnp.zeros((2, 3)), labels, reduction="none")
        assert np.isnan(losses[0])
        np.testing.assert_allclose(losses[1], np.log(3), rtol=1e-6)
    with js.debug_checks(True):
        error, _ = checkify.checkify(js.cross_entropy)(jnp.zeros((2, 3)), labels)
    assert "labels must be in [0, C) with C = 3, got 7" in error.get()


def test_nll_of_named_classes():
    log_probs = js.log_softmax(jnp.asarray(LOGITS, jnp.float32))
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    found = js.nll_loss(log_probs, SparseLabels(INDICES, weights), reduction="none")
    expected = js.nll_loss(log_probs, dense(weights), reduction="none")
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


def test_export():
    (n,) = export.symbolic_shape("n")
    shapes = (
        jax.ShapeDtypeStruct((n, V), jnp.float32),
        SparseLabels(
            jax.ShapeDtypeStruct((n, K), jnp.int32), jax.ShapeDtypeStruct((n, K), jnp.float32)
        ),
    )
    f = jax.jit(js.cross_entropy)
    program = export.deserialize(export.export(f)(*shapes).serialize(vjp_order=1))
    x = jnp.asarray(LOGITS, jnp.float32)
    labels = SparseLabels(jnp.asarray(INDICES, jnp.int32), jnp.asarray(WEIGHTS, jnp.float32))
    np.testing.assert_allclose(program.call(x, labels), f(x, labels), rtol=1e-6)


ONES = np.ones((2, 2), np.float32)
PAIRS = np.zeros((2, 2), np.int32)


@pytest.mark.parametrize(
    ("labels", "options", "error", "said"),
    [
        (SparseLabels(ONES, ONES), {}, TypeError, "labels.indices must be integers"),
        (SparseLabels(PAIRS, ONES * 1j), {}, TypeError, "labels.weights must be real"),
        (SparseLabels(PAIRS[0], ONES), {}, ValueError, r"labels.indices must have .* \[2, K\]"),
        (SparseLabels(PAIRS, ONES[:1]), {}, ValueError, r"labels.weights must have .* \[2, K\]"),
        (SparseLabels(PAIRS, ONES[:, :1]), {}, ValueError, "must have one shape"),
        (
            SparseLabels(PAIRS, [[1.0]]),
            {},
            TypeError,
            "labels.weights must be an array",
        ),
        (SparseLabels(PAIRS, ONES), {"ignore_index": 0}, ValueError, "ignore_index is for integer"),
        (SparseLabels(PAIRS, ONES), {"focal_gamma": 1.0}, ValueError, "focal_gamma is for integer"),
    ],
)
def test_errors_name_the_array(labels, options, error, said):
    with pytest.raises(error, match=said):
        js.cross_entropy(jnp.zeros((2, 3)), labels, **options)
    with pytest.raises(error, match=said):
        js.linear_cross_entropy(jnp.zeros((2, 4)), jnp.zeros((4, 3)), labels, **options)
