"""linear_kl_divergence: the textbook's divergence of two layers' logits, which never exist."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from loss_cases import compiled
from test_divergences import BETAS, definition
from test_linear_memory import largest_array, products
from test_sharded import mesh_of

import jaxsoftmax as js

N, D, E, V = 8, 4, 8, 16  # an axis of 2 or 4 devices divides each
ALL = tuple(range(6))
_random = np.random.default_rng(11)
HIDDEN, KERNEL, TARGET, ITS_KERNEL, BIAS, ITS_BIAS = AT = tuple(
    _random.normal(size=shape) for shape in ((N, D), (D, V), (N, E), (E, V), (V,), (V,))
)
DOTS = tuple(_random.normal(size=x.shape) for x in AT)


def plain(h, w, g, u, b, c, *, beta=0.0, soft_cap=None, temperature=1.0, where=None, weights=None):
    """As a textbook writes it, the logits and all."""
    x, y = h @ w + b[None], g @ u + c[None]
    if soft_cap is not None:
        x, y = (soft_cap * jnp.tanh(z / soft_cap) for z in (x, y))
    if where is not None:
        x, y = x[:, where], y[:, where]
    each = jax.vmap(lambda x, y: definition(x[None], y[None], beta, temperature))(x, y)
    return jnp.mean(each) if weights is None else jnp.sum(weights * each) / jnp.sum(weights)


def everything(f, at=AT):
    """Value, gradients, a forward derivative, and a product with the Hessian, in float64."""
    grad = jax.grad(f, ALL)

    def results(at, dots):
        return f(*at), grad(*at), jax.jvp(f, at, dots)[1], jax.jvp(grad, at, dots)[1]

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compiled(results)(at, DOTS))


def assert_equal(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


CASES = {
    "plain": {},
    "beta": {"beta": 0.3},
    "reverse": {"beta": 1.0},
    "capped and warm": {"beta": 0.5, "soft_cap": 2.0, "temperature": 1.7},
    "classes left out": {"where": np.arange(V) % 3 != 1},
    "weights": {"weights": np.array([1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 3.0, 0.1])},
}
CASES["weights, classes left out"] = CASES["weights"] | CASES["classes left out"]
TOGETHER = ("capped and warm", "weights, classes left out")  # the others are in them, or below


@pytest.mark.parametrize("chunk_size", [pytest.param(None, marks=pytest.mark.exhaustive), 3])
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c in TOGETHER else pytest.mark.exhaustive) for c in CASES],
)
def test_equals_the_divergence_of_the_logits(case, chunk_size):
    options = dict(CASES[case])
    named = {"example_weights" if name == "weights" else name: x for name, x in options.items()}
    ours = partial(js.linear_kl_divergence, chunk_size=chunk_size, **named)
    assert_equal(everything(ours), everything(partial(plain, **options)))


@pytest.mark.parametrize(
    "beta", [0.25, *(pytest.param(b, marks=pytest.mark.exhaustive) for b in BETAS if b != 0.25)]
)
def test_one_number_for_each_example(beta):
    def ours(*at):
        each = js.linear_kl_divergence(*at, beta=beta, chunk_size=3, reduction="none")
        return jnp.sum(jnp.sin(each))

    def theirs(*at):
        one = jax.vmap(lambda h, g: plain(h[None], at[1], g[None], at[3], *at[4:], beta=beta))
        return jnp.sum(jnp.sin(one(at[0], at[2])))

    assert_equal(everything(ours), everything(theirs))


def test_learned_numbers():
    """The temperature, the cap and the denominator may be arrays."""

    def ours(t, c, d):
        options = {"temperature": t, "soft_cap": c, "denominator": d}
        return js.linear_kl_divergence(*AT[:4], **options, chunk_size=3)

    def theirs(t, c, d):
        nothing = np.zeros(V)
        return plain(*AT[:4], nothing, nothing, temperature=t, soft_cap=c) * N / d

    with jax.enable_x64(True):
        numbers = jnp.array(1.3), jnp.array(2.5), jnp.array(5.0)
        found, expected = (jax.value_and_grad(f, (0, 1, 2))(*numbers) for f in (ours, theirs))
    assert_equal(found, expected)


def test_layouts_and_batches():
    h, w, g, u, b, c = (jnp.asarray(x, jnp.float32) for x in AT)
    f = jax.value_and_grad(js.linear_kl_divergence, (0, 1, 2, 3))
    expected, gradients = compiled(f)(h, w, g, u, b, c)
    tied = partial(js.linear_kl_divergence, kernel_layout="VD", target_kernel_layout="VD")
    batched = h.reshape(2, 4, D), w.T, g.reshape(2, 4, E), u.T
    f = compiled(jax.value_and_grad(tied, (0, 1, 2, 3)))
    found, tied_gradients = f(*batched, b, c)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    of_h, of_w, of_g, of_u = tied_gradients
    flat = of_h.reshape(N, D), of_w.T, of_g.reshape(N, E), of_u.T
    for a, e in zip(flat, gradients, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-7)
    mixed = js.linear_kl_divergence(h, w.T, g, u, b, c, kernel_layout="VD")
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    each = js.linear_kl_divergence(*batched, b, c, reduction="none", kernel_layout="VD",
                                   target_kernel_layout="VD")  # fmt: skip
    assert each.shape == (2, 4)


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize("beta", BETAS)
def test_equal_layers_are_exactly_0(beta):
    h, w, b = (jnp.asarray(x, jnp.float32) for x in (HIDDEN, KERNEL, BIAS))
    f = partial(js.linear_kl_divergence, beta=beta, chunk_size=3)
    value, gradients = jax.jit(jax.value_and_grad(f, ALL))(h, w, h, w, b, b)
    assert value == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_ignored_examples_may_hold_anything():
    mask = np.arange(N) != 2
    poisoned = HIDDEN.copy(), KERNEL, TARGET.copy(), ITS_KERNEL
    poisoned[0][2], poisoned[2][2] = np.nan, np.inf
    f = jax.value_and_grad(partial(js.linear_kl_divergence, example_weights=mask), (0, 1, 2, 3))
    with jax.enable_x64(True):
        found = f(*map(jnp.asarray, poisoned))
        kept = (x[mask] if len(x) == N and i % 2 == 0 else x for i, x in enumerate(AT[:4]))
        expected, gradients = jax.value_and_grad(js.linear_kl_divergence, (0, 1, 2, 3))(*kept)
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    np.testing.assert_array_equal(found[1][0][2], 0.0)
    np.testing.assert_allclose(found[1][1], gradients[1], rtol=1e-9, atol=1e-12)
    nothing = js.linear_kl_divergence(*AT[:4], example_weights=np.zeros(N, bool))
    assert nothing == 0.0


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float16", "bfloat16")])
def test_dtypes(dtypes):
    """Each gradient in its argument's dtype; the divergence in float32.

    To eight units in the last place of the largest entry: logits of size 8 are rounded, too.
    """
    student, teacher = map(jnp.dtype, dtypes)
    at = tuple(jnp.asarray(x, teacher if k in (2, 3, 5) else student) for k, x in enumerate(AT))
    value, gradients = jax.value_and_grad(js.linear_kl_divergence, ALL)(*at)
    assert value.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [x.dtype for x in at]
    with jax.enable_x64(True):
        wide = tuple(x.astype(jnp.float64) for x in at)
        expected, exact = jax.value_and_grad(plain, ALL)(*wide)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for found, e in zip(gradients, exact, strict=True):
        unit = float(jnp.finfo(found.dtype).eps)
        np.testing.assert_allclose(found, e, rtol=0, atol=8 * unit * float(np.abs(e).max()))


def test_vmap():
    h, w, g, u = (jnp.asarray(x, jnp.float32) for x in AT[:4])
    several = jnp.stack([w, 2 * w, w - 1])
    f = jax.grad(partial(js.linear_kl_divergence, chunk_size=3), 1)
    found = jax.vmap(f, (None, 0, None, None))(h, several, g, u)
    for one, kernel in zip(found, several, strict=True):
        np.testing.assert_allclose(one, f(h, kernel, g, u), rtol=1e-5, atol=1e-7)


# --- what it costs --------------------------------------------------------------------------------


def test_no_program_holds_the_logits():
    at = tuple(jnp.zeros(s) for s in ((24, 4), (4, 40), (24, 4), (4, 40)))
    f = partial(js.linear_kl_divergence, chunk_size=4)
    grad = jax.grad(f, (0, 1, 2, 3))
    each = partial(f, reduction="none")
    total = jax.grad(lambda *at: jnp.sum(jnp.sin(each(*at))), (0, 1, 2, 3))
    for program in (f, grad, total, lambda *at: jax.jvp(grad, at, at)):
        assert largest_array(program, *at) < 24 * 40


def test_a_fixed_teacher_takes_one_product():
    """Three for the student; for the teacher three where it is differentiated, else its logits."""
    at = tuple(jnp.zeros(s) for s in ((64, 4), (4, 40), (64, 4), (4, 40)))
    f = partial(js.linear_kl_divergence, chunk_size=16)
    assert products(jax.value_and_grad(f, (0, 1)), *at) == 4
    assert products(jax.value_and_grad(f, (0, 1, 2, 3)), *at) == 6

    def stopped(h, w, g, u):
        return f(h, w, *map(jax.lax.stop_gradient, (g, u)))

    assert products(jax.value_and_grad(stopped, (0, 1)), *at) == 4


@pytest.mark.exhaustive
@pytest.mark.parametrize("both", [False, True])
def test_temporaries_at_the_size_of_a_model(both):
    """Float32 sums of the kernels' gradients, and three arrays of a chunk of 256 tokens."""
    n, d, e, v = 8192, 2304, 3072, 256000
    shapes = ((n, d), (d, v), (n, e), (e, v))
    at = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    f = jax.value_and_grad(js.linear_kl_divergence, (0, 1, 2, 3) if both else (0, 1))
    memory = jax.jit(f).lower(*at).compile().memory_analysis()
    sums = 4 * v * (d + e if both else d)
    assert memory.temp_size_in_bytes < sums + 3 * 4 * 256 * v


# --- over a mesh ----------------------------------------------------------------------------------


@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_classes_split_inside_shard_map(check_vma):
    by_class = P(None, "model")
    specs = (P(), by_class, P(), by_class, P("model"), P("model"))
    options = {"beta": 0.3, "temperature": 1.3}

    def ours(*at):
        f = partial(js.linear_kl_divergence, axis_name="model", chunk_size=3, **options)
        mesh = mesh_of(4)
        return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)(*at)

    assert_equal(everything(ours), everything(partial(plain, **options)))


LAYOUTS = {
    "data": (P("data"), P(), P("data"), P(), P(), P()),
    "fsdp": (P("data"), P("data"), P("data"), P("data"), P(), P()),
    "tensor": (P(), P(None, "model"), P(), P(None, "model"), P("model"), P("model")),
    "both": (
        *(P("data"), P("data", "model"), P("data"), P("data", "model")),
        *(P("model"), P("model")),
    ),
    "the teacher apart": (P("data"), P("data"), P("data"), P(None, "model"), P(), P()),
}
SOME = {("fsdp", "Auto"), ("both", "Explicit")}


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        pytest.param(
            layout,
            kind,
            marks=() if (layout, kind.name) in SOME else pytest.mark.exhaustive,
            id=f"{layout}, {kind.name}",
        )
        for layout in LAYOUTS
        for kind in (AxisType.Auto, AxisType.Explicit)
    ],
)
def test_sharded_arrays_under_jit(layout, kind):
    mesh = mesh_of(2, 2, names=("data", "model"), kind=kind)
    expected = jax.value_and_grad(plain, ALL)
    with jax.enable_x64(True):
        at = tuple(
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(AT, LAYOUTS[layout], strict=True)
        )
        with jax.set_mesh(mesh):
            f = jax.jit(jax.value_and_grad(partial(js.linear_kl_divergence, chunk_size=4), ALL))
            found = jax.tree.map(np.asarray, f(*at))
        assert_equal(found, expected(*map(jnp.asarray, AT)))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"beta": 2.0}, ValueError, r"beta must be in \[0, 1\], got 2.0"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number > 0"),
        ({"soft_cap": -1.0}, ValueError, "soft_cap must be a finite number > 0"),
        ({"target_kernel_layout": "EV"}, ValueError, "target_kernel_layout must be one of"),
        ({"target_kernel": ITS_KERNEL.T}, ValueError, 'fits target_kernel_layout="VD"'),
        ({"target_kernel": ITS_KERNEL[:, 1:]}, ValueError, "the classes of kernel, 16, got 15"),
        ({"target_hidden": TARGET[1:]}, ValueError, "target_hidden must have the batch of hidden"),
        ({"target_bias": BIAS[1:]}, ValueError, "target_bias must have one entry for each"),
        ({"bias": BIAS.astype(int)}, TypeError, "bias must be a floating point array"),
        ({"target_hidden": TARGET.astype(int)}, TypeError, "target_hidden must be a floating"),
        ({"where": np.ones(3, bool)}, ValueError, "where must broadcast"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"example_weights": np.ones(3)}, ValueError, "example_weights must broadcast"),
        ({"denominator": 2.0, "reduction": "none"}, ValueError, "denominator replaces"),
    ],
)
def test_errors_name_the_argument(changed, error, said):
    arrays = dict(zip(("hidden", "kernel", "target_hidden", "target_kernel"), AT, strict=False))
    with pytest.raises(error, match=said):
        js.linear_kl_divergence(**{**arrays, **changed})
