"""The linear loss on the meshes that trainers use, under plain `jit`: automatic and explicit axes.

The same numbers as on one device, gradients that lie as their arguments do, and of the kernel
nothing that crosses inside a loop. The mesh is of eight virtual CPU devices (conftest).
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from loss_cases import compiled

import jaxsoftmax as js
from benchmarks import collectives

BATCH, LENGTH, FEATURES, CLASSES = 8, 8, 24, 48
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


class Layout(NamedTuple):
    """A mesh, and how hidden states, kernel and labels lie on it."""

    mesh: dict[str, int]
    hidden: P
    kernel: P
    labels: P


LAYOUTS = {
    "data": Layout({"data": 8}, P("data"), P(), P("data")),
    "fsdp": Layout({"data": 8}, P("data"), P("data"), P("data")),
    "fsdp, classes": Layout({"data": 8}, P("data"), P(None, "data"), P("data")),
    "data x tensor": Layout({"data": 4, "model": 2}, P("data"), P(None, "model"), P("data")),
    "fsdp x tensor": Layout({"data": 4, "model": 2}, P("data"), P("data", "model"), P("data")),
    "tensor": Layout({"model": 8}, P(), P(None, "model"), P()),
    "batch over two": Layout(
        {"data": 2, "fsdp": 4}, P(("data", "fsdp")), P("fsdp"), P(("data", "fsdp"))
    ),
    "batch over two, tensor": Layout(
        {"data": 2, "fsdp": 2, "model": 2},
        P(("data", "fsdp")),
        P("fsdp", "model"),
        P(("data", "fsdp")),
    ),
    "batch and sequence": Layout(
        {"data": 4, "sequence": 2}, P("data", "sequence"), P(), P("data", "sequence")
    ),
    "batch and sequence, fsdp": Layout(
        {"data": 4, "sequence": 2}, P("data", "sequence"), P("data"), P("data", "sequence")
    ),
    "features whole on an axis of their own": Layout(
        {"data": 4, "fsdp": 2}, P("data"), P("fsdp"), P("data")
    ),
    "labels alone": Layout({"data": 8}, P(), P(), P("data")),
}


def mesh_of(layout: Layout, kind: AxisType) -> Mesh:
    sizes = tuple(layout.mesh.values())
    devices = np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes)
    return Mesh(devices, tuple(layout.mesh), axis_types=(kind,) * len(sizes))


def arrays_of(batch=(BATCH, LENGTH)):
    random = np.random.default_rng(0)
    hidden = random.normal(size=(*batch, FEATURES)).astype(np.float32)
    kernel = random.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    return hidden, kernel, random.integers(0, CLASSES, batch).astype(np.int32)


def put(arrays, specs, mesh):
    pairs = zip(arrays, specs, strict=True)
    return tuple(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in pairs)


def assert_close(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.max(np.abs(y), initial=1e-30)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=3e-6, atol=3e-6 * scale)


def reads(x, spec):
    """How an array lies, unused axes left out."""
    return NamedSharding(x.sharding.mesh, spec).is_equivalent_to(x.sharding, x.ndim)


# --- the same numbers -----------------------------------------------------------------------------


def mean(h, w, y):
    return js.linear_cross_entropy(h, w, y, chunk_size=16)


def everything(h, w, y):
    """All that an option adds, in one scalar."""
    bias, weights = jnp.linspace(-1, 1, CLASSES), jnp.linspace(0.5, 1.5, CLASSES)
    return js.linear_cross_entropy(
        h,
        w,
        y,
        bias,
        chunk_size=16,
        ignore_index=3,
        class_weights=weights,
        label_smoothing=0.1,
        z_loss=1e-3,
        soft_cap=5.0,
        temperature=0.7,
        where=jnp.arange(CLASSES) != 7,
        example_weights=(y % 5 != 1),
    )


def none(h, w, y):
    losses = js.linear_cross_entropy(h, w, y, chunk_size=16, reduction="none")
    return jnp.sum(losses * jnp.cos(losses))


def statistics(h, w, y):
    loss, found = js.linear_cross_entropy(h, w, y, chunk_size=16, return_statistics=True)
    assert found.predicted.shape == y.shape
    return loss + jnp.mean(found.entropy * found.log_prob) + jnp.mean(found.logsumexp**2)


def soft(h, w, y):
    labels = jax.nn.one_hot(y, CLASSES) * 0.9 + 0.1 / CLASSES
    return js.linear_cross_entropy(h, w, labels, chunk_size=16)


def reference(h, w, y):
    return js.linear_cross_entropy(h, w, y, implementation="reference")


def streamed(h, w, y):
    options = {"label_smoothing": 0.1, "example_weights": y % 5 != 1}
    return js.linear_cross_entropy(h, w, y, chunk_size=16, implementation="streamed", **options)


LOSSES = {f.__name__: f for f in (mean, everything, none, statistics, soft, reference, streamed)}


@cache
def on_one_device(loss):
    """Value and gradients as one program, and what it gives on one device."""
    f = compiled(jax.value_and_grad(LOSSES[loss], (0, 1)))
    return f, f(*arrays_of())


@pytest.mark.exhaustive(every=53, thin=3, cover=False)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_value_and_gradients(name, loss, kind):
    layout, (f, expected) = LAYOUTS[name], on_one_device(loss)
    mesh = mesh_of(layout, KINDS[kind])
    given = put(arrays_of(), layout[1:], mesh)
    value, gradients = found = f(*given)
    assert_close(found, expected)
    assert value.shape == ()
    if loss in ("mean", "none", "statistics"):
        assert reads(gradients[0], layout.hidden)
        assert reads(gradients[1], layout.kernel)
    with jax.set_mesh(mesh):
        assert_close(f(*given), expected)


@cache
def products_on_one_device(loss):
    """The loss forward, and a product with its Hessian."""
    h, w, y = arrays_of()

    def products(h, w, y, *directions):
        along = lambda h, w: LOSSES[loss](h, w, y)  # noqa: E731
        forward = jax.jvp(along, (h, w), directions)
        return forward, jax.jvp(jax.grad(along, (0, 1)), (h, w), directions)

    f = compiled(products)
    arrays = (h, w, y, np.cos(h), np.sin(w))
    return f, arrays, f(*arrays)


@pytest.mark.exhaustive(every=39, thin=5, cover=False)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["mean", "none", "streamed"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_hessian_vector_products_and_forward_mode(name, loss, kind):
    layout, (f, arrays, expected) = LAYOUTS[name], products_on_one_device(loss)
    specs = (*layout[1:], layout.hidden, layout.kernel)
    assert_close(f(*put(arrays, specs, mesh_of(layout, KINDS[kind]))), expected)


def test_reverse_over_reverse():
    layout = LAYOUTS["fsdp x tensor"]
    arrays = arrays_of()

    def f(h, w, y):
        gradient = jax.grad(mean, 1)
        return jax.grad(lambda w: jnp.sum(gradient(h, w, y) ** 2))(w)

    found = jax.jit(f)(*put(arrays, layout[1:], mesh_of(layout, AxisType.Auto)))
    assert_close(found, jax.jit(f)(*map(jnp.asarray, arrays)))


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("kind", KINDS)
def test_transformations_around_it(kind):
    """vmap, remat, scan and a nested jit."""
    layout = LAYOUTS["fsdp x tensor"]
    h, w, y = arrays_of()

    def f(h, w, y):
        # (JAX does not map over an axis that an array which is not mapped is sharded over.)
        mapped = jnp.sum(jax.vmap(mean, (1, None, 1))(h, w, y))
        kept = jax.checkpoint(jax.jit(mean))(h, w, y)

        def step(total, _):
            return total + mean(h, w, y), None

        return mapped + kept + jax.lax.scan(step, 0.0, None, length=2)[0]

    g = jax.value_and_grad(f, (0, 1))
    expected = jax.jit(g)(*map(jnp.asarray, (h, w, y)))
    mesh = mesh_of(layout, KINDS[kind])
    assert_close(jax.jit(g)(*put((h, w, y), layout[1:], mesh)), expected)


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("spec", [P("data", "model"), P("model", "data")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_embedding(spec, kind):
    """[V, D], its classes over one axis and its features over another."""
    h, w, y = arrays_of()
    layout = Layout({"data": 4, "model": 2}, P("data"), spec, P("data"))
    f = jax.value_and_grad(partial(js.linear_cross_entropy, kernel_layout="VD"), (0, 1))
    expected = jax.jit(f)(h, w.T, y)
    value, gradients = jax.jit(f)(*put((h, w.T, y), layout[1:], mesh_of(layout, KINDS[kind])))
    assert_close((value, gradients), expected)
    assert reads(gradients[1], spec)


@pytest.mark.parametrize("classes", [50, 51])
def test_a_vocabulary_that_no_mesh_divides(classes):
    h, w, y = arrays_of()
    w = np.concatenate([w, w], axis=1)[:, :classes]
    layout = LAYOUTS["fsdp"]
    f = jax.value_and_grad(mean, (0, 1))
    found = jax.jit(f)(*put((h, w, y), layout[1:], mesh_of(layout, AxisType.Auto)))
    assert_close(found, jax.jit(f)(h, w, y))


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_kinds_of_axes(kind):
    """One explicit axis, the other automatic, either way round."""
    h, w, y = arrays_of()
    kinds = (KINDS[kind], *(k for k in KINDS.values() if k != KINDS[kind]))
    devices = np.array(jax.devices()[:8]).reshape(4, 2)
    mesh = Mesh(devices, ("data", "model"), axis_types=kinds)
    f = jax.value_and_grad(mean, (0, 1))
    given = put((h, w, y), (P("data"), P("data", "model"), P("data")), mesh)
    assert_close(jax.jit(f)(*given), jax.jit(f)(h, w, y))


@pytest.mark.exhaustive(every=5, cover=False)
@pytest.mark.parametrize("manual", [("data",), ("model",), ("data", "model")])
@pytest.mark.parametrize("kinds", ["auto auto", "explicit explicit", "auto explicit"])
def test_a_mesh_that_is_partly_manual(kinds, manual):
    """`shard_map` over some axes, and the others left as they are."""
    h, w, y = arrays_of((BATCH,))
    devices = np.array(jax.devices()[:8]).reshape(4, 2)
    mesh = Mesh(devices, ("data", "model"), axis_types=tuple(KINDS[k] for k in kinds.split()))
    specs = (P("data"), P(None, "model"), P("data"))
    inside = tuple(P(*(a if a in manual else None for a in spec)) for spec in specs)

    def here(h, w, y):
        axis = {"axis_name": "model"} if "model" in manual else {}
        loss = js.linear_cross_entropy(h, w, y, reduction="sum", **axis)
        return jax.lax.psum(loss, "data") if "data" in manual else loss

    def f(h, w, y):
        mapped = jax.shard_map(here, axis_names=set(manual), in_specs=inside, out_specs=P())
        return mapped(h, w, y) / BATCH

    expected = jax.value_and_grad(js.linear_cross_entropy, (0, 1))(h, w, y)
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(f, (0, 1)))(*put((h, w, y), specs, mesh))
    assert_close(found, expected)


def test_bfloat16():
    """As accurate as on one device, though parts of a gradient are added in bfloat16."""
    h, w, y = arrays_of()
    narrow = (jnp.asarray(h, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16), y)
    wide = tuple(np.asarray(x).astype(np.float64) for x in narrow[:2])
    logits = wide[0] @ wide[1]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    delta = (p - np.eye(CLASSES)[y]) / y.size
    expected = np.einsum("btd,btv->dv", wide[0], delta)
    for name in ("fsdp", "data", "fsdp x tensor"):
        layout = LAYOUTS[name]
        mesh = mesh_of(layout, AxisType.Auto)
        gradient = jax.jit(jax.grad(mean, 1))(*put(narrow, layout[1:], mesh))
        error = np.abs(np.asarray(gradient, np.float64) - expected).max() / np.abs(expected).max()
        assert error < 2.0**-7, (name, error)


# --- what crosses ---------------------------------------------------------------------------------


def step_of(loss, micro_batches=1):
    """A training step: float32 masters, a bfloat16 product, Adam, micro-batches in a scan."""
    optimiser = optax.adam(1e-2)

    def objective(master, h, y):
        return loss(h.astype(jnp.bfloat16), master.astype(jnp.bfloat16), y)

    def step(master, state, h, y):
        def accumulate(total, part):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(objective)(master, *part)), None

        start = (jnp.zeros(()), jnp.zeros_like(master))
        (value, gradient), _ = jax.lax.scan(accumulate, start, (h, y))
        updates, state = optimiser.update(gradient, state, master)
        return optax.apply_updates(master, updates), state, value / micro_batches

    return optimiser, step


def materialised(h, w, y):
    logits = (h @ w).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def compiled_step(loss, layout, kind, arrays, micro_batches=2):
    optimiser, step = step_of(loss, micro_batches)
    mesh = mesh_of(layout, KINDS[kind])
    h, master, y = arrays
    specs = (P(None, *layout.hidden), layout.kernel, P(None, *layout.labels))
    h, master, y = put((h, master, y), specs, mesh)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        state = jax.jit(optimiser.init)(master)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        return jitted.lower(master, state, h, y).compile(), (master, state, h, y)


@pytest.mark.exhaustive(every=11, thin=2, cover=False)
@pytest.mark.parametrize("name", [n for n in LAYOUTS if n != "labels alone"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step(name, kind):
    """The step of one device; the kernel and its gradient cross outside of the loop over chunks."""
    layout = LAYOUTS[name]
    arrays = arrays_of((2, BATCH, LENGTH))
    compiled, given = compiled_step(mean, layout, kind, arrays)
    kernel = 2 * FEATURES * CLASSES // 8  # bytes of the smallest part of it
    for found in collectives.find(compiled.as_text(), 8):
        inside = found.times > 2  # a scan over two micro-batches, each of several chunks
        of_tokens = found.payload_bytes <= 4 * 16 * FEATURES  # a chunk's, or numbers a row
        assert not inside or of_tokens or found.payload_bytes < kernel, found
    master, _, value = compiled(*given)

    optimiser, step = step_of(mean, 2)
    h, w, y = map(jnp.asarray, arrays)
    with jax.numpy_dtype_promotion("standard"):
        expected, _, expected_value = jax.jit(step)(w, optimiser.init(w), h, y)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    # Adam's first step is the sign of the gradient: where it is next to nothing, anything.
    close = np.isclose(np.asarray(master), np.asarray(expected), atol=1e-4)
    assert close.mean() > 0.98
    assert reads(master, layout.kernel)


@pytest.mark.exhaustive(every=16, cover=False)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n in LAYOUTS if n != "labels alone"])
@pytest.mark.parametrize("tokens", [256, 8192])
def test_no_more_is_sent_than_by_materialised_logits(name, kind, tokens):
    """With few tokens and with many, for a wide kernel."""
    layout = LAYOUTS[name]
    shape = (BATCH, tokens // BATCH)
    shapes = [(*shape, 128), (128, 4096), shape]
    dtypes = [jnp.bfloat16, jnp.bfloat16, jnp.int32]
    sent = []
    # (optax's loss raises on explicit axes.)
    for f, of_mesh in ((js.linear_cross_entropy, KINDS[kind]), (materialised, AxisType.Auto)):
        mesh = mesh_of(layout, of_mesh)
        arguments = [
            jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, spec))
            for s, d, spec in zip(shapes, dtypes, layout[1:], strict=True)
        ]
        g = jax.jit(jax.value_and_grad(f, (0, 1)))
        text = g.lower(*arguments).compile().as_text()
        sent.append(sum(c.sent_bytes for c in collectives.find(text, 8)))
    small = 16 * math.prod(shape) * 4  # a few numbers a row
    assert sent[0] <= 1.02 * sent[1] + small, sent


# --- explicit axes: arrays beside the logits that are sharded otherwise, or not at all ------------

EYE, COUNT = np.eye(4, dtype=np.float32), np.arange(4.0, dtype=np.float32)
BESIDE = {
    "class weights": lambda x, y, w: js.cross_entropy(x, y, class_weights=COUNT + 1),
    "sharded class weights": lambda x, y, w: js.cross_entropy(x, y, class_weights=w),
    "constant labels": lambda x, y, w: js.cross_entropy(x, jnp.arange(4)),
    "constant distributions": lambda x, y, w: js.cross_entropy(x, EYE, class_weights=w),
    "where": lambda x, y, w: js.cross_entropy(x, y, where=COUNT != 2, label_smoothing=0.1),
    "masked": lambda x, y, w: js.cross_entropy(x, y, example_weights=COUNT > 1, reduction="sum"),
    "ignored": lambda x, y, w: js.cross_entropy(x, np.arange(4), ignore_index=1),
    "none": lambda x, y, w: jnp.sum(js.cross_entropy(x, y, class_weights=w, reduction="none")),
    "statistics": lambda x, y, w: jnp.sum(
        js.cross_entropy(x, np.arange(4), return_statistics=True, ignore_index=1)[1].entropy
    ),
    "nll": lambda x, y, w: js.nll_loss(js.log_softmax(x), np.arange(4), class_weights=w),
    "binary": lambda x, y, w: js.binary_cross_entropy(
        x, EYE, pos_weight=w, example_weights=COUNT[:, None]
    ),
    "softmax": lambda x, y, w: jnp.sum(js.softmax(x, where=COUNT != 2) ** 2),
    "along the batch": lambda x, y, w: jnp.sum(js.log_softmax(x, axis=0) * COUNT[None]),
    "all axes": lambda x, y, w: js.logsumexp(x, axis=(0, 1)),
    "linear": lambda x, y, w: js.linear_cross_entropy(x, EYE, np.arange(4), w, class_weights=COUNT),
    "linear where": lambda x, y, w: js.linear_cross_entropy(
        x, EYE, y, where=COUNT != 2, ignore_index=0
    ),
    "linear distributions": lambda x, y, w: js.linear_cross_entropy(x, EYE, EYE),
    "linear weights": lambda x, y, w: js.linear_cross_entropy(x, EYE, y, example_weights=w),
    "linear reference": lambda x, y, w: js.linear_cross_entropy(
        x, EYE, y, class_weights=w, implementation="reference"
    ),
    "a sharded kernel": lambda x, y, w: js.linear_cross_entropy(EYE, x, y, class_weights=w),
}


@pytest.mark.exhaustive(every=11, cover=False)
@pytest.mark.parametrize("spec", [P("d"), P(None, "d")], ids=["rows", "classes"])
@pytest.mark.parametrize("case", BESIDE)
def test_explicit_axes_that_do_not_agree(case, spec):
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",), axis_types=(AxisType.Explicit,))
    f = jax.value_and_grad(BESIDE[case])
    arrays = (EYE, np.arange(4), COUNT + 1)
    given = put(arrays, (spec, P("d"), P("d")), mesh)
    f = compiled(f)
    expected = f(*arrays)
    assert_close(f(*given), expected)
    with jax.set_mesh(mesh):
        assert_close(f(*given), expected)


def test_values_on_explicit_axes():
    """eye(4) by rows: class weights 1 to 4, and constant labels."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",), axis_types=(AxisType.Explicit,))
    x, y, _ = put((EYE, np.arange(4), COUNT), (P("d"), P("d"), P("d")), mesh)
    for f in (BESIDE["class weights"], BESIDE["constant labels"]):
        np.testing.assert_allclose(f(x, y, None), 0.7437, atol=5e-5)
    kernel = jax.device_put(EYE, NamedSharding(mesh, P("d", None)))
    with jax.set_mesh(mesh):
        gradient = jax.grad(js.linear_cross_entropy, 1)(x, kernel, y)
    p = np.exp(EYE) / np.exp(EYE).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, (p - EYE) / 4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_rows_on_each_device(dtype):
    """On a CPU gradients of many rows are corrected in loops, of which each device has its own."""
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    x = np.random.default_rng(0).normal(size=(8192, 40)).astype(np.float32)
    x[::3, 7], x[5, 0], x[4100, 1], x[4200] = 30.0, np.inf, -np.inf, -np.inf
    x, g = jnp.asarray(x, dtype), jnp.asarray(x[::-1] > 0.0, dtype)

    def of_rows(x, g):
        functions = (js.softmax, js.log_softmax)
        gradients = [jax.vjp(f, x)[1](g)[0] for f in functions]
        of_sums = jax.grad(lambda x: jnp.sum(js.logsumexp(x)))(x)
        return js.softmax(x), *gradients, of_sums

    mapped = jax.shard_map(of_rows, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    for found, expected in zip(jax.jit(mapped)(x, g), jax.jit(of_rows)(x, g), strict=True):
        np.testing.assert_array_equal(found, expected)
