"""linear_cross_entropy against its definition, cross entropy of hidden @ kernel + bias.

Under every transformation with the tables of `test_transformations`; at sizes that divide nothing,
in every dtype, against float64 NumPy; and what only the fused path can get wrong.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import test_transformations as table


from jax.experimental import checkify

import jaxsoftmax
from jaxsoftmax import cross_entropy, linear_cross_entropy

INF, NAN = float("inf"), float("nan")

quickly = {"compiler_options": table.FAST}


# --- every option under every transformation ------------------------------------------------------

FEATURES = 2
_random = np.random.default_rng(50257)
HIDDEN = _random.normal(size=(3, FEATURES))
KERNEL = _random.normal(size=(FEATURES, table.CLASSES))
BIAS = _random.normal(size=table.CLASSES)


def by_definition(x, labels, *, kernel, bias=None, **options):
    logits = x @ kernel
    return table.define_cross_entropy(logits if bias is None else logits + bias, labels, **options)


def in_chunks(x, labels, *, kernel, bias=None, **options):
    """Two tokens at a time, of three: the last chunk is padded."""
    return linear_cross_entropy(x, kernel, labels, bias, chunk_size=2, **options)


def at_once(x, labels, *, kernel, bias=None, **options):
    return linear_cross_entropy(x, kernel, labels, bias, implementation="reference", **options)


def linear_case(function, labels, options):
    arrays = {"x": HIDDEN, "labels": labels, "kernel": KERNEL, "bias": BIAS}
    arrays |= {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    static = {k: v for k, v in options.items() if not isinstance(v, np.ndarray)}
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
    "everything": table.LOGIT_OPTIONS["everything"] | {"return_statistics": False},
    "everything_statistics": table.LOGIT_OPTIONS["everything"],
}
INDEX_ROWS = {
    "ignore_index": table.INDEX_OPTIONS["ignore_index"],
    "ignore_index_statistics": table.INDEX_OPTIONS["ignore_index_outside"]
    | {"reduction": "none", "return_statistics": True, "bias": BIAS * [1.0, -np.inf, 1.0, 1.0]},
}


def row_case(function, kind, row):
    if kind == "classes":
        return linear_case(function, table.LABELS, (ROWS | INDEX_ROWS)[row])
    # No mass on classes that do not exist: the loss would be inf.
    options = ROWS[row]
    exists = options.get("where", True) & ~np.isinf(options.get("bias", BIAS))
    return linear_case(function, table.SOFT * exists, options)


@pytest.mark.parametrize(
    ("kind", "row"),
    [("classes", row) for row in ROWS | INDEX_ROWS] + [("distributions", row) for row in ROWS],
)
def test_every_option(kind, row, x64):
    """Value, gradient and a product with the Hessian."""
    case = row_case(in_chunks, kind, row)
    at = case.vector()
    tangent = np.random.default_rng(3).normal(size=at.shape)

    def everything(v, t):
        gradient, curvature = jax.jvp(jax.grad(case.scalar), (v,), (t,))
        return case.ours(v), gradient, curvature

    results, gradient, curvature = jax.jit(everything, **quickly)(at, tangent)
    for ours, definition in zip(results, case.definition(at), strict=True):
        table.assert_close(ours, definition, table.EXACT, "results")
    table.assert_close(gradient, case.gradient_by_definition(at), table.EXACT, "gradient")
    expected = case.curvature_by_definition(at, tangent)
    table.assert_close(curvature, expected, table.DIFFERENCED, "curvature")


# One row for each rule: of a sum, and of rows by themselves.
@pytest.mark.parametrize(
    ("kind", "row"), [("distributions", "everything"), ("classes", "ignore_index_statistics")]
)
def test_every_transformation(kind, row, x64):
    table.check_every_transformation(row_case(in_chunks, kind, row))


def test_the_reference_under_every_option(x64):
    for kind in ("classes", "distributions"):
        case = row_case(at_once, kind, "everything_statistics")
        at = case.vector()
        results, gradient = jax.jit(lambda v: (case.ours(v), jax.grad(case.scalar)(v)), **quickly)(
            at
        )
        for ours, definition in zip(results, case.definition(at), strict=True):
            table.assert_close(ours, definition, table.EXACT, "results")
        table.assert_close(gradient, case.gradient_by_definition(at), table.EXACT, "gradient")
