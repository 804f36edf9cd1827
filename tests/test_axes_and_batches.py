"""The class axis anywhere, loops over micro-batches, vmap over any argument."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import (
    CLASS_WEIGHTS,
    SINGLE,
    assert_close,
    compiled,
    losses_and_gradient,
    value_and_gradient,
)

import jaxsoftmax as js

# --- axes, loops and batches ----------------------------------------------------------------------

SHAPES = {
    "[C]": ((4,), 0),
    "[B, C]": ((3, 4), 1),
    "[C, B]": ((4, 3), 0),
    "[B, C, L]": ((2, 4, 3), 1),
    "[B, C, H, W]": ((2, 4, 2, 3), 1),
    "[B, H, C, W]": ((2, 2, 4, 3), 2),
}


AXES = [("cross_entropy", case) for case in SHAPES] + [("nll_loss", "[B, C, H, W]")]


@pytest.mark.exhaustive(every=2, cover=False)
@pytest.mark.parametrize(("name", "case"), AXES)
def test_the_class_axis_anywhere(name, case):
    """[B, C, H, W] with axis=1 as in PyTorch, and axes counted from the end."""
    shape, axis = SHAPES[case]
    oracle = getattr(oracles, name)
    random = np.random.default_rng(6)
    x = random.normal(size=shape).astype(np.float32)
    batch = np.delete(shape, axis)
    labels = random.integers(0, 4, batch)
    soft = np.moveaxis(random.dirichlet(np.ones(4), batch), -1, axis).astype(np.float32)
    options = {"class_weights": CLASS_WEIGHTS, "label_smoothing": 0.1}
    options["example_weights"] = random.uniform(0.5, 1.5, batch).astype(np.float32)
    for y, axis_as_written in ((labels, axis), (soft, axis - len(shape))):
        given = options | ({"ignore_index": 2} if y is labels else {}) | {"axis": axis_as_written}
        ours, definition = (partial(m, labels=y, **given) for m in (getattr(js, name), oracle))
        value, gradient = value_and_gradient(ours, x)
        assert_close(value, definition(x))
        assert_close(gradient, oracles.numerical_gradient(definition, x))


@pytest.mark.parametrize("case", SHAPES)
def test_the_shapes_of_statistics_beside_any_class_axis(case):
    shape, axis = SHAPES[case]
    x = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    batch = tuple(np.delete(shape, axis).tolist())
    f = compiled(partial(js.cross_entropy, axis=axis, reduction="none", return_statistics=True))
    losses, statistics = f(x, np.zeros(batch, np.int32))
    assert losses.shape == batch
    assert all(s.shape == batch for s in statistics[:4])
    np.testing.assert_array_equal(statistics.predicted, x.argmax(axis))
    assert_close(statistics.logsumexp, oracles.logsumexp(np.moveaxis(x, axis, -1)))


def test_where_beside_a_class_axis_in_the_middle():
    shape = (2, 4, 2, 3)
    random = np.random.default_rng(7)
    x = random.normal(size=shape).astype(np.float32)
    labels = random.choice([0, 2], (2, 2, 3))
    where = np.array([True, False, True, True])[:, None, None]
    for options in ({}, {"label_smoothing": 0.1}):
        got = js.cross_entropy(x, labels, axis=1, where=where, **options)
        assert_close(got, oracles.cross_entropy(x, labels, axis=1, where=where, **options))


def test_scan_over_microbatches_with_rematerialisation():
    """A linear head, its loss a checkpointed step of a scan: value and gradient of the whole."""
    random = np.random.default_rng(8)
    hidden = random.normal(size=(4, 3, 5)).astype(np.float32)  # [microbatch, example, feature]
    kernel = random.normal(size=(5, 6)).astype(np.float32)
    labels = random.integers(0, 6, (4, 3))
    labels[1] = -100  # a microbatch of padding

    def loss(kernel):
        @jax.checkpoint
        def step(total, batch):
            h, y = batch
            return total + js.cross_entropy(h @ kernel, y, ignore_index=-100, denominator=9), None

        return jax.lax.scan(step, jnp.float32(0.0), (hidden, labels))[0]

    h, y = hidden.reshape(-1, 5), labels.ravel()
    logits = oracles.f64(h) @ oracles.f64(kernel)
    kept = y >= 0
    value, gradient = jax.jit(jax.value_and_grad(loss))(kernel)
    assert_close(value, oracles.cross_entropy(logits, y, ignore_index=-100), 4 * SINGLE)
    slope = oracles.cross_entropy_gradient(logits[kept], y[kept]) / 9
    assert_close(gradient, h[kept].T @ slope, 4 * SINGLE)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vmap_over_batches_is_each_batch(reduction):
    """One batch of them is all padding: its mean is 0, and nobody else's changes."""
    random = np.random.default_rng(9)
    x = random.normal(size=(3, 5, 4)).astype(np.float32)
    labels = random.integers(0, 4, (3, 5))
    labels[0, 2] = labels[1] = -100
    weights = random.uniform(0.5, 2.0, (3, 5)).astype(np.float32)
    options = {"ignore_index": -100, "label_smoothing": 0.1, "reduction": reduction}

    def ours(x, y, w):
        return js.cross_entropy(x, y, example_weights=w, **options)

    def oracle(x):
        rows = zip(x, labels, weights, strict=True)
        return np.stack(
            [oracles.cross_entropy(x, y, example_weights=w, **options) for x, y, w in rows]
        )

    slope = oracles.numerical_gradient(lambda x: oracle(x).sum(), x)
    losses, gradient = losses_and_gradient(lambda x: jax.vmap(ours)(x, labels, weights), x)
    assert_close(losses, oracle(x))
    assert_close(gradient, slope)
    gradients = jax.vmap(jax.grad(lambda *a: jnp.sum(ours(*a))))
    assert_close(compiled(gradients)(x, labels, weights), slope)


@pytest.mark.parametrize(
    "in_axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (0, 0, 0)], ids=str
)
def test_vmap_over_some_of_the_arguments(in_axes):
    random = np.random.default_rng(10)
    arrays = (
        random.normal(size=(3, 5, 4)).astype(np.float32),
        random.integers(0, 4, (3, 5)),
        random.uniform(0.5, 2.0, (3, 4)).astype(np.float32),
    )
    arguments = [a if mapped == 0 else a[0] for a, mapped in zip(arrays, in_axes, strict=True)]

    def ours(x, y, w):
        return js.cross_entropy(x, y, class_weights=w)

    got = jax.vmap(ours, in_axes)(*arguments)
    for i in range(3):
        x, y, w = (a[i if mapped == 0 else 0] for a, mapped in zip(arrays, in_axes, strict=True))
        assert_close(got[i], oracles.cross_entropy(x, y, class_weights=w))
