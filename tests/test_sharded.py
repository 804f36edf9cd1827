"""The classes split over a mesh: the same numbers, and no logits communicated.

Every option inside `shard_map` is compared with the definitions of `test_transformations`, and what
the compiled programs send is read from their text. The mesh is of virtual CPU devices (conftest).
"""

from __future__ import annotations

import functools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import test_linear
import test_transformations as table
from jax.experimental import checkify
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from loss_cases import compiled

import jaxsoftmax as js

DEVICES = table.CLASSES  # a class each: every label is another shard's for most devices


def mesh_of(*sizes: int, names=("model",), kind=AxisType.Auto) -> Mesh:
    devices = np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes)
    return Mesh(devices, names, axis_types=(kind,) * len(sizes))


# --- every option inside shard_map ----------------------------------------------------------------


def split(array, axis=-1):
    """How an array is split whose class axis this is; whole where it has one class for all."""
    spec = [None] * np.ndim(array)
    if spec and array.shape[axis] == table.CLASSES:
        spec[axis] = "model"
    return P(*spec)


def over_the_mesh(function, results_hold_classes=False):
    """A public function as the tables call it, run as one program a device."""

    def call(x, labels=None, *, axis=-1, **options):
        arrays = {"x": x} | ({} if labels is None else {"labels": labels})
        specs = {"x": split(x, axis)}
        if labels is not None:
            specs["labels"] = split(labels, axis) if labels.ndim == x.ndim else P()
        for name, value in list(options.items()):
            if not hasattr(value, "shape"):
                continue
            arrays[name] = jnp.asarray(options.pop(name))
            shared = name in ("example_weights", "denominator")
            specs[name] = P() if shared else split(value, axis if name == "where" else -1)
        if "kernel" in arrays:
            specs["x"] = P()

        def one_device(arrays):
            named = dict(arrays)
            inputs = [named.pop(name) for name in ("x", "labels") if name in named]
            if "kernel" not in named:
                options["axis"] = axis
            return function(*inputs, **named, **options, axis_name="model")

        out = split(x, axis) if results_hold_classes else P()
        return jax.shard_map(one_device, mesh=mesh_of(DEVICES), in_specs=(specs,), out_specs=out)(
            arrays
        )

    return call


def check(case: table.Case) -> None:
    """Values, gradient, and a product with the Hessian."""
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


FEW_OF_DISTRIBUTIONS = ["plain", "one_hot", "statistics_mask_none", "everything"]
FUNCTIONS = {
    "softmax": ["plain", "block", "where", "minus_infinity"],
    "log_softmax": ["plain", "where", "minus_infinity"],
    "logsumexp": ["plain", "minus_infinity"],
    "cross_entropy": [*table.LOSS_OPTIONS, *table.INDEX_OPTIONS, *table.LOGIT_OPTIONS],
    "cross_entropy_soft": [*FEW_OF_DISTRIBUTIONS, "minus_infinity_smoothing"],
    "nll_loss": ["smoothing_class_weights", "statistics_mask_none", "ignore_index"],
    "nll_loss_soft": ["statistics_mask_none"],
}


@pytest.mark.exhaustive(every=11, cover=False)
@pytest.mark.parametrize(
    ("name", "row"), [(f, row) for f, rows in FUNCTIONS.items() for row in rows]
)
def test_every_option(name, row, x64):
    case = table.make_case(name, table.ROWS[name][row])
    holds_classes = name in ("softmax", "log_softmax")
    check(
        case._replace(
            function=case.function._replace(ours=over_the_mesh(case.function.ours, holds_classes))
        )
    )


@pytest.mark.exhaustive(every=7, cover=False)
@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("classes", "sum"),
        ("classes", "none"),
        ("classes", "where_columns"),
        ("classes", "everything"),
        ("classes", "ignore_index_statistics"),
        ("distributions", "everything"),
        ("distributions", "everything_statistics"),
        ("streamed", "everything"),
        ("streamed distributions", "everything"),
    ],
)
def test_every_option_of_the_linear_loss(kind, row, x64):
    function = test_linear.streamed if kind.startswith("streamed") else test_linear.in_chunks
    kind = kind.split(" ")[-1].replace("streamed", "classes")
    check(test_linear.row_case(over_the_mesh(function), kind, row))


# --- small losses, labels and ties across shards --------------------------------------------------


def each_on_a_device(f, *arrays, devices=8):
    """f as one program a device; of arrays with several axes the last holds the classes."""
    mesh = mesh_of(devices)
    specs = tuple(P(*[None] * (a.ndim - 1), "model") if a.ndim > 1 else P() for a in arrays)
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P()))(*arrays)


def total_over_the_mesh(x, y):
    return each_on_a_device(partial(js.cross_entropy, axis_name="model", reduction="sum"), x, y)


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("margin", [20.0, 40.0, 64.0, 80.0])
def test_small_losses_across_shards(margin):
    """[margin, 0, 0, ...] over 8 devices: full accuracy, wherever the label is."""
    for label in (0, 5, 7):
        x = np.zeros((1, 8), np.float32)
        x[0, label] = margin
        y = np.array([label])
        loss, gradient = jax.value_and_grad(total_over_the_mesh)(jnp.asarray(x), y)
        np.testing.assert_allclose(loss, oracles.cross_entropy(x, y).sum(), rtol=1e-6)
        np.testing.assert_allclose(gradient, oracles.cross_entropy_gradient(x, y), rtol=1e-6)


def log_softmax_over_the_mesh(x):
    log_probs = partial(js.log_softmax, axis_name="model")
    return jax.shard_map(
        log_probs, mesh=mesh_of(8), in_specs=P(None, "model"), out_specs=P(None, "model")
    )(x)


@pytest.mark.parametrize("margin", [20.0, 40.0, 60.0])
def test_derivatives_of_log_softmax_at_a_confident_class_across_shards(margin):
    """In either mode, and of second order: 1 − p_a is never formed by a subtraction."""
    x = jnp.zeros((1, 16)).at[0, 3].set(margin)
    p = np.exp(-np.float64(margin)) / (1.0 + 15 * np.exp(-np.float64(margin)))  # of each other
    at_largest = jnp.zeros((1, 16)).at[0, 3].set(1.0)
    jacobian = np.eye(16)[3] - np.full(16, p)
    jacobian[3] = 15 * p
    (gradient,) = jax.jit(lambda x: jax.vjp(log_softmax_over_the_mesh, x)[1](at_largest))(x)
    np.testing.assert_allclose(gradient[0], jacobian, rtol=1e-6)
    _, tangent = jax.jvp(log_softmax_over_the_mesh, (x,), (at_largest,))
    np.testing.assert_allclose(tangent[0, 3], 15 * p, rtol=1e-6)
    np.testing.assert_allclose(tangent[0, 4], -1.0, rtol=1e-6)
    log_prob = jax.grad(lambda x: log_softmax_over_the_mesh(x)[0, 3])
    second = jax.jit(jax.grad(lambda x: log_prob(x)[0, 3]))(x)
    np.testing.assert_allclose(second[0, 3], -15 * p * (1 - 15 * p), rtol=1e-6)


def test_log_softmax_of_a_lone_lowest_number_and_of_a_nan_across_shards():
    """Shards without a class add nothing, however low the largest logit is; a NaN stays one."""
    lowest = np.finfo(np.float32).min
    x = jnp.full((2, 16), -jnp.inf).at[0, 0].set(lowest)
    x = x.at[1].set(0.0).at[1, 0].set(jnp.inf).at[1, 9].set(jnp.nan)
    found = log_softmax_over_the_mesh(x)
    np.testing.assert_array_equal(found[0], [0.0, *[-np.inf] * 15])
    assert np.isnan(found[1]).all()
    (gradient,) = jax.vjp(log_softmax_over_the_mesh, x)[1](jnp.ones_like(x))
    np.testing.assert_array_equal(gradient[0], 0.0)
    assert np.isnan(gradient[1]).all()


@pytest.mark.parametrize("label", [8, 9, -1, 2**31 - 1])
def test_a_label_beyond_all_shards_is_nan_for_its_example_alone(label):
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    f = partial(js.cross_entropy, axis_name="model", reduction="none")
    losses = each_on_a_device(f, x, np.array([label, 7]))
    assert np.isnan(losses[0])
    expected = oracles.cross_entropy(x, np.array([7, 7]), reduction="none")
    np.testing.assert_allclose(losses[1], expected[1], rtol=1e-6)


def test_a_tie_across_shards_has_one_owner():
    """`predicted` is the first of several, and the Hessian-vector product counts none twice."""
    x = np.array([[1.0, 3.0, 0.0, 3.0, 3.0, 0.0, 0.0, 2.0]], np.float32)
    f = partial(js.cross_entropy, axis_name="model", return_statistics=True)
    _, statistics = each_on_a_device(f, x, np.array([3]))
    assert statistics.predicted == 1
    t = np.linspace(-1.0, 1.0, 8, dtype=np.float32)[None]
    soft = np.full((1, 8), 0.125, np.float32)

    def loss(x):
        return each_on_a_device(partial(js.cross_entropy, axis_name="model"), x, soft)

    product = jax.jvp(jax.grad(loss), (jnp.asarray(x),), (jnp.asarray(t),))[1]
    p = oracles.softmax(x)
    np.testing.assert_allclose(product, p * (t - (p * t).sum()), rtol=2e-6, atol=1e-8)


def test_an_axis_of_vmap_is_a_mesh_axis_too():
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    y = np.array([0, 3, 7, 2, 4])
    shards = x.reshape(5, 4, 2).transpose(1, 0, 2)
    f = jax.vmap(partial(js.cross_entropy, axis_name="m"), in_axes=(0, None), axis_name="m")
    np.testing.assert_allclose(f(shards, y), np.full(4, oracles.cross_entropy(x, y)), rtol=1e-6)


def test_debug_checks_name_the_global_number_of_classes():
    x = np.zeros((2, 8), np.float32)
    f = jax.vmap(partial(js.cross_entropy, axis_name="m"), in_axes=(1, None), axis_name="m")
    with js.debug_checks(True):
        error, _ = checkify.checkify(f)(x.reshape(2, 4, 2), np.array([1, 8]))
    assert "C = 8, got 8" in error.get()


# --- with the batch on the other axis -------------------------------------------------------------


def mean_over_data(loss_and_weight):
    """The recipe for one mean over everything: sum the losses, and divide by the summed weights."""
    loss, statistics = loss_and_weight
    return jax.lax.psum(loss, "data") / jax.lax.psum(statistics.weight_sum, "data")


def test_one_mean_over_data_and_model():
    """Unequal numbers of tokens a device: the mean of the means would be wrong."""
    random = np.random.default_rng(2)
    hidden = random.normal(size=(8, 6)).astype(np.float32)
    kernel = random.normal(size=(6, 12)).astype(np.float32)
    labels = np.array([3, -1, -1, -1, 0, 5, 11, 7])

    def step(hidden, kernel, labels):
        options = {"ignore_index": -1, "axis_name": "model"}

        def loss(hidden, kernel):
            # One global count of tokens as the divisor of every device's sum.
            count = jax.lax.psum(jnp.sum(labels != -1), "data")
            mean = js.linear_cross_entropy(hidden, kernel, labels, denominator=count, **options)
            return jax.lax.psum(mean, "data")

        both = js.linear_cross_entropy(
            hidden, kernel, labels, reduction="sum", return_statistics=True, **options
        )
        return jax.value_and_grad(loss, (0, 1))(hidden, kernel), mean_over_data(both)

    rows, columns = P("data"), P(None, "model")
    (loss, gradients), other = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh_of(2, 4, names=("data", "model")),
            in_specs=(rows, columns, rows),
            out_specs=((P(), (rows, columns)), P()),
        )
    )(hidden, kernel, labels)
    logits = hidden.astype(np.float64) @ kernel.astype(np.float64)
    kept = labels >= 0
    delta = oracles.cross_entropy_gradient(logits[kept], labels[kept]) / kept.sum()
    expected = oracles.cross_entropy(logits[kept], labels[kept])
    np.testing.assert_allclose([loss, other], [expected] * 2, rtol=1e-6)
    np.testing.assert_allclose(gradients[1], hidden[kept].T @ delta, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradients[0][kept], delta @ kernel.T, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradients[0][~kept], 0.0)


def test_a_vocabulary_that_does_not_divide_is_padded_and_masked():
    """10 classes over 4 devices: 12 columns, the last two excluded by `where`."""
    random = np.random.default_rng(4)
    hidden, kernel = random.normal(size=(5, 3)), random.normal(size=(3, 10))
    labels, shards = np.array([9, 0, 4, 2, 9]), 4
    missing = -kernel.shape[1] % shards
    padded = np.pad(kernel, [(0, 0), (0, missing)]).astype(np.float32)
    exists = np.arange(padded.shape[1]) < kernel.shape[1]

    def loss(hidden, kernel, exists, labels):
        return js.linear_cross_entropy(
            hidden, kernel, labels, where=exists, label_smoothing=0.1, axis_name="model"
        )

    sharded = jax.shard_map(
        loss,
        mesh=mesh_of(shards),
        in_specs=(P(), P(None, "model"), P("model"), P()),
        out_specs=P(),
    )
    value, gradient = jax.jit(jax.value_and_grad(sharded, 1))(
        hidden.astype(np.float32), padded, exists, labels
    )
    expected = oracles.cross_entropy(hidden @ kernel, labels, label_smoothing=0.1)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient[:, ~exists], 0.0)


# --- jit with sharded arrays ----------------------------------------------------------------------

ROWS, CLASSES, FEATURES = 16, 2 * 32768, 8  # beyond the longest row that a CPU takes at once


def collectives(text: str) -> list[tuple[str, int]]:
    """What a compiled program sends: the operation, and the largest array in it."""
    found = []
    for line in text.splitlines():
        match = re.search(
            r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
            r"(?:-start)?\(",
            line,
        )
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            sizes = [math.prod(map(int, filter(None, s.split(",")))) for s in shapes]
            found.append((match[2], max(sizes)))
    return found


def lowered(f, arrays, specs, mesh):
    arguments = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
        for a, spec in zip(arrays, specs, strict=True)
    ]
    return jax.jit(f).lower(*arguments).compile()


LOGITS_AND_LABELS = [P("data", "model"), P("data")]
SHARDED = {
    "classes": (js.cross_entropy, LOGITS_AND_LABELS),
    "classes, smoothed": (
        partial(js.cross_entropy, label_smoothing=0.1, z_loss=1e-4),
        LOGITS_AND_LABELS,
    ),
    "distributions": (js.cross_entropy, [P("data", "model"), P("data", "model")]),
    "classes alone": (js.cross_entropy, [P(None, "model"), P()]),
    "batch alone": (js.cross_entropy, [P("data"), P("data")]),
    "nll of log_softmax": (
        lambda x, y: js.nll_loss(js.log_softmax(x), y),
        LOGITS_AND_LABELS,
    ),
    "softmax": (lambda x, y: jnp.sum(js.softmax(x) ** 2), LOGITS_AND_LABELS),
}


@pytest.mark.exhaustive(every=5, cover=False)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("case", SHARDED)
def test_sharded_arrays_under_jit(case, kind):
    """Forward and backward, only numbers a row travel: at most one a device and row."""
    f, specs = SHARDED[case]
    mesh = mesh_of(2, 4, names=("data", "model"), kind=kind)
    random = np.random.default_rng(5)
    logits = random.normal(size=(ROWS, CLASSES)).astype(np.float32)
    labels = random.integers(0, CLASSES, ROWS).astype(np.int32)
    if case == "distributions":
        labels = (labels[:, None] == np.arange(CLASSES)).astype(np.float32)
    with jax.set_mesh(mesh):
        g = jax.value_and_grad(f)
        compiled = lowered(g, (logits, labels), specs, mesh)
        for what, size in collectives(compiled.as_text()):
            assert size <= 8 * ROWS, (what, size)
        put = [
            jax.device_put(a, NamedSharding(mesh, s))
            for a, s in zip((logits, labels), specs, strict=True)
        ]
        value, gradient = compiled(*put)
        expected = jax.jit(g)(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(value, expected[0], rtol=2e-6)
    # softmax's p (g − ⟨p, g⟩) is rounded to 6e-8 p, which is up to 0.05 here.
    np.testing.assert_allclose(np.asarray(gradient), np.asarray(expected[1]), rtol=2e-5, atol=5e-9)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_a_sharded_kernel_under_jit(kind):
    """Numbers a row, chunks of tokens, and of the kernel its gradient: no logits."""
    mesh = mesh_of(2, 4, names=("data", "model"), kind=kind)
    random = np.random.default_rng(6)
    features = 3  # D·V is not the size of any part of the logits
    hidden = random.normal(size=(ROWS, features)).astype(np.float32)
    kernel = random.normal(size=(features, CLASSES)).astype(np.float32)
    labels = random.integers(0, CLASSES, ROWS).astype(np.int32)
    specs = [P("data"), P(None, "model"), P("data")]
    with jax.set_mesh(mesh):
        g = jax.value_and_grad(partial(js.linear_cross_entropy, chunk_size=8), (0, 1))
        compiled = lowered(g, (hidden, kernel, labels), specs, mesh)
        for _, size in collectives(compiled.as_text()):
            assert size <= features * CLASSES // 4
        arrays = zip((hidden, kernel, labels), specs, strict=True)
        value, gradients = compiled(*(jax.device_put(a, NamedSharding(mesh, s)) for a, s in arrays))
    logits = hidden.astype(np.float64) @ kernel.astype(np.float64)
    delta = oracles.cross_entropy_gradient(logits, labels) / ROWS
    np.testing.assert_allclose(value, oracles.cross_entropy(logits, labels), rtol=1e-6)
    np.testing.assert_allclose(gradients[0], delta @ kernel.T, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradients[1], hidden.T @ delta, rtol=1e-5, atol=1e-9)


def test_what_the_axis_name_sends():
    """Forward: three numbers an example. Backward: hidden's gradient, once, and one scalar."""
    mesh = mesh_of(8)
    shapes = [(ROWS, FEATURES), (FEATURES, CLASSES), (ROWS,)]
    dtypes = [np.float32, np.float32, np.int32]
    arrays = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]
    specs = (P(), P(None, "model"), P())
    f = jax.shard_map(
        partial(js.linear_cross_entropy, axis_name="model"),
        mesh=mesh,
        in_specs=specs,
        out_specs=P(),
    )
    forward = collectives(lowered(f, arrays, specs, mesh).as_text())
    assert all(size <= ROWS for _, size in forward)
    # The label's logit and the sum may travel in one operation.
    assert 1 <= len(forward) <= 3
    both = collectives(lowered(jax.value_and_grad(f, (0, 1)), arrays, specs, mesh).as_text())
    assert [size for _, size in both if size > ROWS] == [ROWS * FEATURES]
    assert {what for what, _ in both} == {"all-reduce"}


# --- whatever binds the axis ----------------------------------------------------------------------

K = 4


def given_of_the_linear_loss():
    """Hidden states, a kernel, labels: gradients in whose ratio a factor shows."""
    random = np.random.default_rng(7)
    hidden = random.normal(size=(5, 3)).astype(np.float32)
    kernel = random.normal(size=(3, 8)).astype(np.float32)
    return hidden, kernel, np.array([0, 5, 7, 2, 2])


def by_shard_map(check_vma, **options):
    def f(h, w, y):
        def here(h, w, y):
            return js.linear_cross_entropy(h, w, y, chunk_size=2, axis_name="m", **options)

        specs = (P(), P(None, "m"), P())
        mesh = mesh_of(K, names=("m",))
        mapped = jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
        return mapped(h, w, y)

    return f


def by_vmap(**options):
    def f(h, w, y):
        shards = w.reshape(w.shape[0], K, -1)
        here = partial(js.linear_cross_entropy, chunk_size=2, axis_name="m", **options)
        return jnp.mean(jax.vmap(here, (None, 1, None), axis_name="m")(h, shards, y))

    return f


def by_pmap(**options):
    def f(h, w, y):
        shards = w.reshape(w.shape[0], K, -1)
        here = partial(js.linear_cross_entropy, chunk_size=2, axis_name="m", **options)
        devices = jax.devices()[:K]
        mapped = jax.pmap(here, "m", in_axes=(None, 1, None), devices=devices)
        return jnp.mean(mapped(h, shards, y))

    return f


def by_spmd_axis_name(check_vma, **options):
    """A batch of losses over another axis of the mesh."""

    def f(h, w, y):
        def here(h, w, y):
            return js.linear_cross_entropy(h, w, y, chunk_size=2, axis_name="m", **options)

        mapped = jax.shard_map(
            here,
            mesh=mesh_of(2, K, names=("data", "m")),
            in_specs=(P(), P(None, "m"), P()),
            out_specs=P(),
            check_vma=check_vma,
        )
        twice = jnp.stack([h, 2 * h])
        losses = jax.vmap(mapped, (0, None, None), spmd_axis_name="data")(twice, w, y)
        return losses[0]

    return f


BINDINGS = {
    "checked": partial(by_shard_map, True),
    "unchecked": partial(by_shard_map, False),
    "vmap": by_vmap,
    "pmap": by_pmap,
    "spmd_axis_name, checked": partial(by_spmd_axis_name, True),
    "spmd_axis_name, unchecked": partial(by_spmd_axis_name, False),
}


@functools.cache
def everything_alone(label_smoothing=0.0, z_loss=0.0, implementation="auto"):
    """The same of one device, for all bindings."""
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    alone = partial(js.linear_cross_entropy, implementation=implementation, **options)
    return everything_of(alone)


def everything_of(f):
    """Value and gradients, forward mode, and a product with the Hessian."""
    h, w, y = given_of_the_linear_loss()

    def everything(h, w, y, *directions):
        along = lambda h, w: f(h, w, y)  # noqa: E731
        gradient = jax.grad(along, (0, 1))
        return (
            jax.value_and_grad(along, (0, 1))(h, w),
            jax.jvp(along, (h, w), directions),
            jax.jvp(gradient, (h, w), directions),
        )

    arrays = (h, w, y, np.cos(h), np.sin(w))
    return compiled(everything)(*arrays)


@pytest.mark.exhaustive(every=11, cover=False)
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"implementation": "streamed"}],
    ids=["plain", "smoothing", "streamed"],
)
@pytest.mark.parametrize("binding", BINDINGS)
def test_gradients_do_not_depend_on_what_binds_the_axis(binding, options):
    """Gradient outside, forward mode, and a product with the Hessian: ratio 1 to one device's."""
    if options == {"implementation": "streamed"} and binding == "spmd_axis_name, checked":
        pytest.skip("JAX 0.12 raises: it moves a constant out of the loop with another type")
    sharded, expected = BINDINGS[binding](**options), everything_alone(**options)
    if binding == "pmap":  # which JAX does not differentiate forward inside of another jit
        h, w, y = given_of_the_linear_loss()
        found = jax.value_and_grad(sharded, (0, 1))(h, w, y)
        expected = expected[0]
    else:
        found = everything_of(sharded)
    for x, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, e, rtol=2e-5, atol=2e-6)


def test_a_psum_is_in_no_transpose_of_the_rule():
    """ones [2, 3], arange(24) / 9, 4 devices: the ratio was 4."""
    h, w, y = np.ones((2, 3), np.float32), np.arange(24.0).reshape(3, 8) / 9, np.array([0, 5])
    w = w.astype(np.float32)
    found = jax.grad(by_shard_map(False), (0, 1))(h, w, y)
    expected = jax.grad(js.linear_cross_entropy, (0, 1))(h, w, y)
    for x, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, e, rtol=1e-5, atol=1e-7)


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        js.softmax,
        js.log_softmax,
        js.logsumexp,
        lambda x, **axis: js.cross_entropy(x, np.array([0]), **axis),
        lambda x, **axis: js.nll_loss(x, np.array([0]), **axis),
        lambda x, **axis: js.linear_cross_entropy(x, x.T, np.array([0]), **axis),
    ],
)
def test_axis_name_that_means_nothing(f):
    x = np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"axis_name must name a mesh axis .*'vocabulary'"):
        f(x, axis_name="vocabulary")
    with pytest.raises(TypeError, match=r"axis_name must be the name of a mesh axis.*got 3"):
        f(x, axis_name=3)


@pytest.mark.parametrize(("classes", "weights"), [(8, 8), (8, 1)])
def test_class_weights_of_the_wrong_part(classes, weights):
    """The global weights where this device's shard is meant, and the reverse."""

    def loss(x, y):
        return js.cross_entropy(x, y, class_weights=jnp.ones(weights), axis_name="model")

    x, y = np.zeros((2, classes), np.float32), np.array([0, 1])
    said = rf"class_weights must .* 2 classes of this device's shard, of 8 in all.*\[{weights}\]"
    with pytest.raises(ValueError, match=said):
        each_on_a_device(loss, x, y, devices=4)
    said = rf"class_weights must .* {classes} classes, .*\[2\]"
    with pytest.raises(ValueError, match=said):
        js.cross_entropy(x, y, class_weights=jnp.ones(2))


LOSSES_OF_LOGITS = {
    "softmax": js.softmax,
    "log_softmax": js.log_softmax,
    "logsumexp": js.logsumexp,
    "cross_entropy": lambda x, **axis: js.cross_entropy(x, np.array([0]), **axis),
    "nll_loss": lambda x, **axis: js.nll_loss(x, np.array([0]), **axis),
    "linear": lambda x, **axis: js.linear_cross_entropy(x[:, :1], x, np.array([0]), **axis),
}


@pytest.mark.parametrize("name", LOSSES_OF_LOGITS)
def test_classes_that_do_not_vary_over_the_axis(name):
    """Logits of zeros, whole on each of 4 devices: 3.4657 would be log 32, not log 8."""
    f = partial(LOSSES_OF_LOGITS[name], axis_name="model")
    mapped = jax.shard_map(f, mesh=mesh_of(4), in_specs=P(), out_specs=P())
    what = "kernel" if name == "linear" else "log_probs" if name == "nll_loss" else "logits"
    with pytest.raises(ValueError, match=rf"axis of the classes.*{what} must be .* shard"):
        mapped(np.zeros((1, 8), np.float32))


@pytest.mark.parametrize("wrong", ["labels", "hidden", "example_weights"])
def test_examples_that_vary_over_the_axis(wrong):
    """The axis of the data in the place of that of the classes."""
    arrays = {
        "hidden": np.zeros((4, 2), np.float32),
        "kernel": np.zeros((2, 8), np.float32),
        "labels": np.zeros(4, int),
        "example_weights": np.ones(4, np.float32),
    }
    specs = {name: P() for name in arrays} | {"kernel": P(None, "data"), wrong: P("data")}
    if wrong != "hidden":
        arrays[wrong] = np.repeat(arrays[wrong], 4)

    def f(arrays):
        if wrong == "hidden":
            arrays = arrays | {"labels": np.zeros(1, int), "example_weights": np.ones(1)}
        return js.linear_cross_entropy(**arrays, axis_name="data")

    mesh = mesh_of(4, names=("data",))
    mapped = jax.shard_map(f, mesh=mesh, in_specs=(specs,), out_specs=P("data"))
    with pytest.raises(ValueError, match=f"'data' must be .*: {wrong} must be the same"):
        mapped(arrays)
