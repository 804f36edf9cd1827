"""Ignored examples: nothing that they hold reaches the loss, a gradient or a statistic."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import (
    CLASS_WEIGHTS,
    INF,
    KEPT,
    LOSSES,
    NAN,
    SOME_OPTIONS,
    assert_close,
    compiled,
    each_loss,
    each_loss_over_classes,
)

# --- ignored examples -----------------------------------------------------------------------------

NOTHING_KEPT = {
    "ignore_index": {"ignore_index": -100},
    "mask": {"example_weights": np.zeros(3, bool)},
    "zero weights": {"example_weights": np.zeros(3, np.float32)},
}


@pytest.mark.exhaustive(every=5, cover=False)
@pytest.mark.parametrize("how", NOTHING_KEPT)
@each_loss
def test_all_targets_ignored(kind, how):
    """Loss 0 and gradients 0, where the mean of nothing is NaN elsewhere (pytorch #75181)."""
    loss, _, logits, labels = LOSSES[kind]
    options = dict(NOTHING_KEPT[how if labels.ndim == 1 or how != "ignore_index" else "mask"])
    moving = {"logits": logits}
    if labels.ndim == 1:
        labels = np.full(3, -100, np.int32) if how == "ignore_index" else labels
    else:
        moving["labels"] = labels
    if kind == "entries":
        options["example_weights"] = options["example_weights"][:, None]
    else:
        moving["class_weights"] = CLASS_WEIGHTS
        options["label_smoothing"] = 0.1

    def both(moving):
        f = partial(loss, **{"labels": labels} | moving | options)
        return jnp.stack([f(), f(reduction="sum")])

    f = compiled(lambda moving: (both(moving), jax.jacrev(both)(moving)))
    for garbage in (0.0, NAN, INF):
        values, gradients = f(moving | {"logits": logits + np.float32(garbage)})
        np.testing.assert_array_equal(values, 0.0)
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, 0.0, err_msg=name)


def leave_out_the_middle(kind, how):
    """Labels and the option with which the example does not count."""
    labels = LOSSES[kind][3].copy()
    if how == "ignore_index":
        labels[1] = -7
        return labels, {"ignore_index": -7}
    if labels.ndim > 1 and kind != "entries":
        labels[1] = NAN
    weights = np.array([1, 0, 1], bool if how == "mask" else np.float32)
    return labels, {"example_weights": weights[:, None] if kind == "entries" else weights}


LEFT_OUT = [
    pytest.param(*row.values, how, id=f"{row.id}-{how}")
    for row in SOME_OPTIONS
    for how in ["mask", "zero weight"] + ["ignore_index"] * (LOSSES[row.values[0]][3].ndim == 1)
]


@pytest.mark.exhaustive(every=9, cover=False)
@pytest.mark.parametrize(("kind", "options", "how"), LEFT_OUT)
def test_what_an_ignored_example_holds_reaches_nothing(kind, options, how):
    """Masking the loss alone leaves 0·NaN in the gradient: the row itself has to go."""
    loss, oracle, logits, _ = LOSSES[kind]
    labels, left_out = leave_out_the_middle(kind, how)
    others = {k: v for k, v in options.items() if k != "class_weights"}
    moving = {k: v for k, v in options.items() if k == "class_weights"}

    def alone(x):
        return oracle(x, labels[KEPT], **options)

    def alone_weighted(w):
        return oracle(logits[KEPT], labels[KEPT], class_weights=w, **others)

    f = compiled(jax.value_and_grad(lambda a: loss(labels=labels, **a, **others, **left_out)))
    slope = oracles.numerical_gradient(alone, logits[KEPT])
    for garbage in (NAN, INF, -INF, 1e30):
        bad = logits.copy()
        bad[1, [0, 2]] = garbage
        value, gradients = f({"logits": bad} | moving)
        assert_close(value, alone(logits[KEPT]))
        np.testing.assert_array_equal(gradients["logits"][1], 0.0)
        assert_close(gradients["logits"][KEPT], slope)
        if moving:
            slope_of_weights = oracles.numerical_gradient(alone_weighted, CLASS_WEIGHTS)
            assert_close(gradients["class_weights"], slope_of_weights)


@pytest.mark.exhaustive(every=2, cover=False)
@each_loss_over_classes
def test_statistics_and_curvature_of_an_ignored_example_are_zero(kind):
    loss, _, logits, _ = LOSSES[kind]
    labels, left_out = leave_out_the_middle(kind, "mask")

    def total(x):
        value, statistics = loss(x, labels, return_statistics=True, **left_out)
        return value + sum(jnp.sum(s[1]) + s[0] for s in statistics[:3]), statistics

    bad = jnp.asarray(logits).at[1, 2].set(NAN)
    hessian, statistics = compiled(jax.hessian(total, has_aux=True))(bad)
    chex.assert_tree_all_finite((hessian, statistics))
    np.testing.assert_array_equal(hessian[1], 0.0)
    np.testing.assert_array_equal(hessian[:, :, 1], 0.0)
    for field in statistics[:4]:
        assert field[1] == 0
    assert statistics.weight_sum == 2.0
