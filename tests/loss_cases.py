"""Losses with every kind of label, and what the tests of special cases share."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxsoftmax as js

# Many small programs, each run a few times: their compilation is what takes time.
FAST = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
compiled = partial(jax.jit, compiler_options=FAST)

INF, NAN = float("inf"), float("nan")
SINGLE = 1e-6

_random = np.random.default_rng(41)
LOGITS = _random.normal(scale=2.0, size=(3, 4)).astype(np.float32)
LOG_PROBS = oracles.log_softmax(LOGITS).astype(np.float32)
LABELS = np.array([2, 0, 3], np.int32)
SOFT = _random.dirichlet(np.ones(4), size=3).astype(np.float32)
CLASS_WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0], np.float32)


def nll_loss(logits, labels, **options):
    """`nll_loss` with the names of the others' arguments, for tables that hold all of them."""
    return js.nll_loss(logits, labels, **options)


# The function, its float64 definition, logits and labels.
LOSSES = {
    "classes": (js.cross_entropy, oracles.cross_entropy, LOGITS, LABELS),
    "distributions": (js.cross_entropy, oracles.cross_entropy, LOGITS, SOFT),
    "nll classes": (nll_loss, oracles.nll_loss, LOG_PROBS, LABELS),
    "nll distributions": (nll_loss, oracles.nll_loss, LOG_PROBS, SOFT),
    "entries": (js.binary_cross_entropy, oracles.binary_cross_entropy, LOGITS, SOFT),
}
each_loss = pytest.mark.parametrize("kind", LOSSES)
each_loss_over_classes = pytest.mark.parametrize("kind", [k for k in LOSSES if k != "entries"])

SMOOTHING = {"plain": {}, "smoothing": {"label_smoothing": 0.1}}
OF_CLASSES = SMOOTHING | {
    "class weights": {"class_weights": CLASS_WEIGHTS},
    "smoothing and class weights": {"label_smoothing": 0.1, "class_weights": CLASS_WEIGHTS},
}
OF_LOGITS = OF_CLASSES | {
    "z-loss": {"z_loss": 0.3},
    "soft cap": {"soft_cap": 5.0},
    "temperature": {"temperature": 0.5},
    "everything": {
        "label_smoothing": 0.1,
        "class_weights": CLASS_WEIGHTS,
        "z_loss": 0.3,
        "soft_cap": 5.0,
        "temperature": 0.5,
    },
}
each_option_of_logits = pytest.mark.parametrize("options", OF_LOGITS.values(), ids=OF_LOGITS)
OPTIONS = {
    "classes": OF_LOGITS,
    "distributions": OF_LOGITS,
    "nll classes": OF_CLASSES,
    "nll distributions": OF_CLASSES,
    "entries": SMOOTHING,
}
SOME_OPTIONS = [
    pytest.param(kind, OPTIONS[kind][name], id=f"{kind}-{name}")
    for kind in LOSSES
    for name in ("plain", "class weights", "everything")
    if name in OPTIONS[kind]
]

KEPT = np.array([0, 2])  # of three examples the middle one is out

# Logits of classes that exist and of others, and labels on those that exist.
MISSING = np.array([[1.0, -INF, 2.0, 0.5], [-INF, 0.0, -INF, -1.0]], np.float32)
EXIST = np.isfinite(MISSING)
ON_EXISTING = {
    "classes": np.array([2, 3], np.int32),
    "distributions": np.array([[0.2, 0.0, 0.3, 0.5], [0.0, 1.0, 0.0, 0.0]], np.float32),
}


def assert_close(got, expected, tolerance=SINGLE):
    """Within a tolerance relative to the largest finite number; infinities and NaN alike."""
    expected = oracles.f64(expected)
    scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    assert np.shape(got) == expected.shape
    np.testing.assert_allclose(oracles.f64(got), expected, rtol=0, atol=tolerance * scale)


def value_and_gradients(loss, arrays, **fixed):
    """The loss, and its gradient in each of the arrays that are real numbers, by name."""
    moving = {k: jnp.asarray(v) for k, v in arrays.items() if v.dtype == np.float32}
    fixed |= {k: v for k, v in arrays.items() if k not in moving}
    return compiled(jax.value_and_grad(lambda moving: loss(**moving, **fixed)))(moving)


def value_and_gradient(f, *arguments):
    """A function and its derivative in its first argument, as one program."""
    return compiled(jax.value_and_grad(f))(*arguments)


def losses_and_gradient(f, x):
    """The losses of the examples, and the derivative of their sum."""

    def total(x):
        losses = f(x)
        return jnp.sum(losses), losses

    (_, losses), gradient = compiled(jax.value_and_grad(total, has_aux=True))(x)
    return np.asarray(losses), np.asarray(gradient)


def hessian_of(f, *arguments):
    return np.asarray(compiled(jax.hessian(f))(*arguments))
