"""JAX's debugging modes: none of them finds a NaN that the library made on the way.

`jax.debug_nans` with and without jit, and `checkify.nan_checks`, around every function and option,
and around what is extreme: the result holds no NaN, so none must have been made.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_linear
import test_transformations as table
from jax.experimental import checkify
from loss_cases import compiled

import jaxsoftmax as js

INF = float("inf")


# Each function and option; rows that combine some of these make nothing new.
ROWS = [(f, row) for f, row in table.TABLE if row not in table.COMBINED]


def single(case):
    """The row in float32: a function of one vector, and the vector."""
    arrays = {
        k: v.astype(np.float32) if np.issubdtype(v.dtype, np.floating) else v
        for k, v in case.arrays.items()
    }
    case = case._replace(arrays=arrays)
    return case, jnp.asarray(case.vector())


def everything(case):
    """Value, gradient, forward derivative and a product with the Hessian."""

    def all_of(v):
        gradient = jax.grad(case.scalar)
        return case.ours(v), jax.jvp(gradient, (v,), (jnp.ones_like(v),))

    return all_of


def checked(f):
    """One program, which gives what its checks for NaN found, and the results."""
    return compiled(checkify.checkify(f, errors=checkify.nan_checks))


def nans_found(f, *arrays):
    error, _ = checked(f)(*arrays)
    return error.get()


@pytest.mark.exhaustive(every=36, cover=False, thin=2)
@pytest.mark.parametrize(("function", "row"), ROWS)
def test_checkify_finds_no_nan(function, row):
    case, vector = single(table.make_case(function, table.ROWS[function][row]))
    assert nans_found(everything(case), vector) is None


@pytest.mark.exhaustive(every=60, cover=False, thin=4)
@pytest.mark.parametrize("implementation", ["chunked", "streamed"])
@pytest.mark.parametrize(
    ("kind", "row"),
    [("classes", row) for row in test_linear.ROWS | test_linear.INDEX_ROWS]
    + [("distributions", row) for row in ("plain", "where", "everything")],
)
def test_checkify_finds_no_nan_in_the_linear_loss(kind, row, implementation):
    f = test_linear.streamed if implementation == "streamed" else test_linear.in_chunks
    case, vector = single(test_linear.row_case(f, kind, row))
    assert nans_found(everything(case), vector) is None


@pytest.mark.exhaustive(every=29, cover=False, thin=2)
@pytest.mark.parametrize(("function", "row"), ROWS)
def test_debug_nans_without_jit(function, row):
    case, vector = single(table.make_case(function, table.ROWS[function][row]))
    with jax.debug_nans(True), jax.disable_jit():
        case.ours(vector)
        jax.grad(case.scalar)(vector)


LOGITS = {
    "large": [3e38, -3e38, 0.0],
    "one infinite": [INF, 1.0, 2.0],
    "two infinite": [INF, INF, 1.0],
    "one excluded": [-INF, 1.0, 2.0],
    "all excluded": [-INF, -INF, -INF],
    "both": [INF, -INF, 1.0],
    "far below": [-3e38, 3e38, 3e38],
}
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.1},
    "soft_cap": {"soft_cap": 2.0},
    "temperature": {"temperature": 0.5},
    "tiny temperature": {"temperature": 1e-30},
    "huge temperature": {"temperature": 1e30},
    "statistics": {"return_statistics": True},
    "infinite weight": {"class_weights": np.array([0.5, 2.0, INF], np.float32)},
}


@pytest.mark.exhaustive(every=31, thin=2, cover=False)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("row", LOGITS)
@pytest.mark.parametrize("labels", [[0], [[0.0, 1.0, 0.0]]], ids=["index", "soft"])
def test_extremes_make_no_nan(row, options, labels):
    x = jnp.array([LOGITS[row]], jnp.float32)

    def loss(x):
        return js.cross_entropy(x, np.array(labels), **OPTIONS[options])

    def both(x):
        if options == "statistics":
            return loss(x)
        return jax.value_and_grad(loss)(x), jax.jvp(jax.grad(loss), (x,), (jnp.ones_like(x),))

    error, results = checked(both)(x)
    assert error.get() is None
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(results))


@pytest.mark.parametrize("bad", [7, -1])
def test_a_bad_label_is_found(bad):
    """What is NaN because something is wrong, the modes still report."""
    f = partial(js.cross_entropy, jnp.zeros((2, 3)))
    assert "nan" in nans_found(f, jnp.array([0, bad]))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        f(jnp.array([0, bad])).block_until_ready()


@pytest.mark.parametrize("f", [js.logsumexp, js.softmax, js.log_softmax])
def test_a_slice_without_classes_makes_no_nan(f):
    nothing = jnp.zeros((2, 3), bool)

    def total(x):
        found = f(x, where=nothing)
        return jnp.sum(jnp.where(found == -INF, 0.0, found))

    assert nans_found(jax.value_and_grad(total), jnp.ones((2, 3))) is None
    with jax.debug_nans(True), jax.disable_jit():
        np.testing.assert_array_equal(jax.grad(total)(jnp.ones((2, 3))), 0.0)


def test_nothing_moves_to_the_device_in_a_jitted_step():
    random = np.random.default_rng(0)
    h, w, y = (
        jnp.asarray(random.normal(size=(8, 4)), jnp.float32),
        jnp.asarray(random.normal(size=(4, 10)), jnp.float32),
        jnp.arange(8),
    )
    options = {"label_smoothing": 0.1, "z_loss": 0.1, "temperature": 0.7, "ignore_index": 3}

    @jax.jit
    def step(h, w, y):
        def loss(h, w):
            of_logits = js.cross_entropy(h @ w, y, soft_cap=3.0, **options)
            return of_logits + js.linear_cross_entropy(h, w, y, **options)

        return jax.value_and_grad(loss, (0, 1))(h, w)

    with jax.transfer_guard("disallow"):
        jax.block_until_ready(step(h, w, y))
