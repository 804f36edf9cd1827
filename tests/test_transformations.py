"""Every function with every option, under every transformation: one row of a table each.

The reference is the contract's formula in NumPy, written for plain numbers and complex ones: its
gradient is a complex step (exact to rounding, nothing is subtracted), its second derivative a
difference of those. A new function is one line of FUNCTIONS and a definition, a new option one
line of a table of options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import compiled

import jaxsoftmax

CLASSES = 4

# Relative to the largest entry. The reference is exact to a few of its own epsilons (2e-16); 40
# terms are added in either. Its second derivative is a difference of fourth order with h = 1e-3:
# h^4 of truncation and eps/h of rounding, 1e-12 each.
EXACT, DIFFERENCED = 1e-13, 1e-9
SINGLE = 32 * 2.0**-23  # float32: the same count of epsilons, and class weights up to 2


# --- the definitions ------------------------------------------------------------------------------


def define_softmax(x, *, axis=-1, where=None):
    e = np.where(_exists(x, where), np.exp(_finite(x, where)), 0.0)
    return [e / e.sum(axis=axis, keepdims=True)]


def define_logsumexp(x, *, axis=-1, where=None, keepdims=False):
    e = np.where(_exists(x, where), np.exp(_finite(x, where)), 0.0)
    return [np.log(e.sum(axis=axis, keepdims=keepdims))]


def define_log_softmax(x, *, axis=-1, where=None):
    (z,) = define_logsumexp(x, axis=axis, where=where, keepdims=True)
    return [np.where(_exists(x, where), _finite(x, where) - z, -np.inf)]


def define_cross_entropy(
    x,
    labels,
    *,
    axis=-1,
    where=None,
    z_loss=0.0,
    soft_cap=None,
    temperature=1.0,
    focal_gamma=0.0,
    poly_epsilon=0.0,
    **options,
):
    exists = np.moveaxis(_exists(x, where), axis, -1)
    x = np.moveaxis(_finite(x, where), axis, -1)
    if soft_cap is not None:
        x = soft_cap * np.tanh(x / soft_cap)
    x = x / temperature
    labels = np.moveaxis(labels, axis, -1) if labels.ndim == x.ndim else labels
    e = np.where(exists, np.exp(x), 0.0)
    z = np.log(e.sum(-1))
    log_p = np.where(exists, x - z[..., None], 0.0)
    extra = z_loss * z**2
    if poly_epsilon:
        y = labels if labels.ndim == x.ndim else np.eye(x.shape[-1])[np.maximum(labels, 0)]
        extra = extra + poly_epsilon * (1.0 - (y * np.where(exists, np.exp(log_p), 0.0)).sum(-1))
    return _define_loss(
        log_p, exists, labels, (log_p, z), extra, focal_gamma=focal_gamma, **options
    )


def define_nll_loss(log_probs, labels, *, axis=-1, **options):
    exists = np.moveaxis(_exists(log_probs, None), axis, -1)
    log_p = np.moveaxis(_finite(log_probs, None), axis, -1)
    labels = np.moveaxis(labels, axis, -1) if labels.ndim == log_p.ndim else labels
    z = np.log(np.where(exists, np.exp(log_p), 0.0).sum(-1))
    seen_as_logits = np.where(exists, log_p - z[..., None], 0.0), z
    return _define_loss(
        np.where(exists, log_p, 0.0), exists, labels, seen_as_logits, 0.0, **options
    )


def _define_loss(
    log_p,  # [..., C], 0 where the class does not exist
    exists,
    labels,
    distribution,  # log-probabilities and their logsumexp, for the statistics
    extra,  # a term of each example that class weights do not touch
    *,
    class_weights=None,
    example_weights=None,
    ignore_index=None,
    label_smoothing=0.0,
    reduction="mean",
    denominator=None,
    return_statistics=False,
    focal_gamma=0.0,
):
    classes = log_p.shape[-1]
    kept = np.ones(log_p.shape[:-1])
    y = labels
    if labels.ndim < log_p.ndim:
        kept = kept * (labels != ignore_index)
        y = np.eye(classes)[np.where(kept == 1.0, labels, 0)]
    if example_weights is not None and example_weights.dtype == np.bool_:
        kept = kept * example_weights
    w = np.ones(classes) if class_weights is None else class_weights
    target = y
    if np.ndim(label_smoothing) == 0 and label_smoothing != 0.0:
        count = exists.sum(-1, keepdims=True)
        target = (1.0 - label_smoothing) * y + label_smoothing / count * exists
    terms = -(w * target * log_p)
    if focal_gamma:
        terms = terms * (1.0 - np.exp(log_p)) ** focal_gamma
    losses = terms.sum(-1) + extra
    weights = kept if example_weights is None else kept * example_weights
    divisor = (weights * ((w * y).sum(-1) if labels.ndim < log_p.ndim else 1.0)).sum()
    losses = losses * weights
    if reduction == "none":
        loss = losses
    elif reduction == "sum":
        loss = losses.sum()
    else:
        loss = losses.sum() / (divisor if denominator is None else denominator)
    if not return_statistics:
        return [loss]
    log_p, z = distribution
    entropy = -(np.where(exists, np.exp(log_p), 0.0) * log_p).sum(-1)
    ordered = np.where(exists, log_p.real, -np.inf)
    predicted = ordered.argmax(-1)
    of_predicted = np.take_along_axis(log_p, predicted[..., None], -1)[..., 0]
    ranks = []
    if labels.ndim < log_p.ndim:
        of_label = np.where(y == 1.0, ordered, -np.inf).max(-1, keepdims=True)
        ranks = [np.where(kept == 1.0, (ordered > of_label).sum(-1), -1)]
    return [
        loss,
        kept * (y * log_p).sum(-1),
        kept * z,
        kept * entropy,
        np.where(kept == 1.0, predicted, 0),
        kept * of_predicted,
        *ranks,
        divisor,
    ]


def define_binary_cross_entropy(
    x,
    y,
    *,
    pos_weight=None,
    example_weights=None,
    label_smoothing=0.0,
    focal_gamma=0.0,
    reduction="mean",
    denominator=None,
):
    y = (1.0 - label_smoothing) * y + label_smoothing / 2
    positive = y if pos_weight is None else pos_weight * y
    p, q = 1.0 / (1.0 + np.exp(-x)), 1.0 / (1.0 + np.exp(x))
    losses = positive * q**focal_gamma * np.log(1.0 + np.exp(-x))
    losses = losses + (1.0 - y) * p**focal_gamma * np.log(1.0 + np.exp(x))
    weights = np.broadcast_to(1.0 if example_weights is None else example_weights, x.shape)
    losses = losses * weights
    if reduction == "none":
        return [losses]
    if reduction == "sum":
        return [losses.sum()]
    return [losses.sum() / (weights.sum() if denominator is None else denominator)]


def _exists(x, where):
    exists = x.real != -np.inf
    return exists if where is None else exists & where


def _finite(x, where):
    return np.where(_exists(x, where), x, 0.0)


# --- the table ------------------------------------------------------------------------------------


class Function(NamedTuple):
    """A function as the table names it, and what it is compared with."""

    ours: Callable[..., Any]
    definition: Callable[..., list[Any]]
    labels: str | None = None  # "classes", "distributions", "entries"


FUNCTIONS = {
    "softmax": Function(jaxsoftmax.softmax, define_softmax),
    "log_softmax": Function(jaxsoftmax.log_softmax, define_log_softmax),
    "logsumexp": Function(jaxsoftmax.logsumexp, define_logsumexp),
    "cross_entropy": Function(jaxsoftmax.cross_entropy, define_cross_entropy, "classes"),
    "cross_entropy_soft": Function(jaxsoftmax.cross_entropy, define_cross_entropy, "distributions"),
    "nll_loss": Function(jaxsoftmax.nll_loss, define_nll_loss, "classes"),
    "nll_loss_soft": Function(jaxsoftmax.nll_loss, define_nll_loss, "distributions"),
    "binary_cross_entropy": Function(
        jaxsoftmax.binary_cross_entropy, define_binary_cross_entropy, "entries"
    ),
}

_random = np.random.default_rng(20241)
LOGITS = _random.normal(scale=2.0, size=(3, CLASSES))
LOG_PROBS = -_random.uniform(0.1, 5.0, size=(3, CLASSES))
CLASS_WEIGHTS = _random.uniform(0.5, 2.0, size=CLASSES)
EXAMPLE_WEIGHTS = np.array([1.5, 0.0, 0.7])  # a weight of 0 has a gradient, too
MASK = np.array([True, False, True])
DENOMINATOR = np.asarray(7.5)
LABELS = np.array([0, 2, 3])
IGNORED_LABELS = np.array([0, -100, 3])
EXISTS = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 0, 1]], bool)  # every label does
COLUMNS = np.array([1, 0, 1, 1], bool)
MISSING = np.where(EXISTS, LOGITS, -np.inf)
SOFT = _random.dirichlet(np.ones(CLASSES), size=3)
ONE_HOT = np.eye(CLASSES, dtype=np.int32)[LABELS]
# Classes along axis 1, batch [2, 2].
BLOCK = _random.normal(scale=2.0, size=(2, CLASSES, 2))
BLOCK_LABELS = np.array([[0, 3], [1, 1]])
BLOCK_SOFT = np.moveaxis(_random.dirichlet(np.ones(CLASSES), size=(2, 2)), -1, 1)
ENTRIES = _random.uniform(0.1, 0.9, size=(3, CLASSES))

# Options by the name of the row. A NumPy array is an argument (differentiated where it is real),
# anything else is static; "x" and "labels" replace the arrays that the row starts with.
DISTRIBUTION_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "axis": {"axis": 0},
    "axes": {"axis": (0, -1)},
    "block": {"x": BLOCK, "axis": 1},
    "where": {"where": EXISTS},
    "where_broadcast_axis": {"where": EXISTS[:, :1], "axis": 0},
    "minus_infinity": {"x": MISSING},
}
LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "axis": {"axis": 1, "x": BLOCK, "labels": BLOCK_LABELS},
    "class_weights": {"class_weights": CLASS_WEIGHTS},
    "example_weights": {"example_weights": EXAMPLE_WEIGHTS},
    "mask": {"example_weights": MASK},
    "label_smoothing": {"label_smoothing": 0.1},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "denominator": {"denominator": DENOMINATOR},
    "statistics": {"return_statistics": True},
    # pairs that meet in one formula
    "smoothing_class_weights": {"label_smoothing": 0.2, "class_weights": CLASS_WEIGHTS},
    "weights_weights": {"class_weights": CLASS_WEIGHTS, "example_weights": EXAMPLE_WEIGHTS},
    "statistics_mask_none": {
        "return_statistics": True,
        "example_weights": MASK,
        "reduction": "none",
        "class_weights": CLASS_WEIGHTS,
    },
}
# Class indices only.
INDEX_OPTIONS: dict[str, dict[str, Any]] = {
    "ignore_index": {"ignore_index": 2},
    "ignore_index_outside": {"ignore_index": -100, "labels": IGNORED_LABELS},
    "ignore_index_smoothing_class_weights": {
        "ignore_index": -100,
        "labels": IGNORED_LABELS,
        "label_smoothing": 0.1,
        "class_weights": CLASS_WEIGHTS,
    },
}
# Arrays in place of Python numbers: each has a gradient.
NUMBERS = {
    "label_smoothing": np.asarray(0.1),
    "z_loss": np.asarray(0.3),
    "soft_cap": np.asarray(3.0),
    "temperature": np.asarray(1.5),
}
# Logits only.
LOGIT_OPTIONS: dict[str, dict[str, Any]] = {
    "where": {"where": EXISTS},
    "where_columns_smoothing": {"where": COLUMNS, "label_smoothing": 0.1},
    "minus_infinity_smoothing": {"x": MISSING, "label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.3},
    "soft_cap": {"soft_cap": 3.0},
    "temperature": {"temperature": 0.5},
    "learned_temperature": {"temperature": np.asarray(0.5), "return_statistics": True},
    "numbers": {**NUMBERS, "class_weights": CLASS_WEIGHTS, "return_statistics": True},
    "poly": {"poly_epsilon": 0.7, "where": EXISTS},
    "z_loss_class_weights": {"z_loss": 0.3, "class_weights": CLASS_WEIGHTS},
    "soft_cap_where_smoothing": {"soft_cap": 3.0, "where": EXISTS, "label_smoothing": 0.1},
    "everything": {
        "where": EXISTS,
        "class_weights": CLASS_WEIGHTS,
        "example_weights": EXAMPLE_WEIGHTS,
        "label_smoothing": 0.1,
        "denominator": DENOMINATOR,
        "return_statistics": True,
        "z_loss": 0.3,
        "soft_cap": 3.0,
        "temperature": 1.5,
    },
}
FOCAL_OPTIONS: dict[str, dict[str, Any]] = {
    "focal": {"focal_gamma": 2.0},
    "focal_poly_where": {
        "focal_gamma": 0.5,
        "poly_epsilon": 0.7,
        "where": EXISTS,
        "class_weights": CLASS_WEIGHTS,
        "temperature": 2.0,
    },
}
BINARY_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "integers": {"labels": ONE_HOT},
    "booleans": {"labels": ONE_HOT == 1},
    "pos_weight": {"pos_weight": CLASS_WEIGHTS},
    "example_weights": {"example_weights": EXAMPLE_WEIGHTS[:, None]},
    "mask": {"example_weights": MASK[:, None]},
    "label_smoothing": {"label_smoothing": 0.1},
    "learned_smoothing": {"label_smoothing": np.asarray(0.1)},
    "focal": {"focal_gamma": 2.0, "pos_weight": CLASS_WEIGHTS, "labels": ONE_HOT},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "denominator": {"denominator": DENOMINATOR},
    "everything": {
        "pos_weight": CLASS_WEIGHTS,
        "example_weights": EXAMPLE_WEIGHTS[:, None],
        "label_smoothing": 0.1,
        "denominator": DENOMINATOR,
    },
}

ROWS = {
    "softmax": DISTRIBUTION_OPTIONS,
    "log_softmax": DISTRIBUTION_OPTIONS,
    "logsumexp": DISTRIBUTION_OPTIONS | {"keepdims": {"keepdims": True, "axis": 0}},
    "cross_entropy": LOSS_OPTIONS | INDEX_OPTIONS | LOGIT_OPTIONS | FOCAL_OPTIONS,
    "cross_entropy_soft": LOSS_OPTIONS | LOGIT_OPTIONS | {"one_hot": {"labels": ONE_HOT}},
    "nll_loss": LOSS_OPTIONS | INDEX_OPTIONS,
    "nll_loss_soft": LOSS_OPTIONS | {"one_hot": {"labels": ONE_HOT}},
    "binary_cross_entropy": BINARY_OPTIONS,
}
TABLE = [(function, row) for function, rows in ROWS.items() for row in rows]
# Rows that combine options which stand in rows of their own.
COMBINED = {
    "smoothing_class_weights",
    "weights_weights",
    "statistics_mask_none",
    "ignore_index_smoothing_class_weights",
    "where_columns_smoothing",
    "minus_infinity_smoothing",
    "z_loss_class_weights",
    "soft_cap_where_smoothing",
}
every_row = pytest.mark.parametrize(
    ("function", "row"),
    [
        pytest.param(f, r, id=f"{f}-{r}", marks=[pytest.mark.exhaustive] if r in COMBINED else [])
        for f, r in TABLE
    ],
)


class Case(NamedTuple):
    """A row made ready: a scalar function of one vector that holds every array that can move."""

    function: Function
    arrays: dict[str, np.ndarray]  # "x", "labels" and the options that are arrays
    static: dict[str, Any]

    @property
    def moving(self) -> dict[str, np.ndarray]:
        return {k: v for k, v in self.arrays.items() if np.issubdtype(v.dtype, np.floating)}

    def vector(self) -> np.ndarray:
        return np.concatenate([v.ravel() for v in self.moving.values()])

    def split(self, vector: Any) -> dict[str, Any]:
        """The arrays, those that move taken from the vector."""
        arrays, start = dict(self.arrays), 0
        for name, array in self.moving.items():
            arrays[name] = vector[start : start + array.size].reshape(array.shape)
            start += array.size
        return arrays

    def ours(self, vector: jax.Array) -> list[jax.Array]:
        arrays = self.split(vector)
        names = [name for name in ("x", "labels") if name in arrays]
        inputs = [arrays.pop(name) for name in names]
        return jax.tree.leaves(self.function.ours(*inputs, **arrays, **self.static))

    def definition(self, vector: np.ndarray) -> list[np.ndarray]:
        arrays = self.split(vector)
        names = [name for name in ("x", "labels") if name in arrays]
        inputs = [arrays.pop(name) for name in names]
        return self.function.definition(*inputs, **arrays, **self.static)

    def scalar(self, vector: Any) -> jax.Array:
        """A sum with unequal cotangents of all the real numbers that come back."""
        results = self.ours(vector)
        total = jnp.zeros((), vector.dtype)
        for result in results:
            if jnp.issubdtype(result.dtype, jnp.floating):
                # A log-probability of -inf is right, but in no sum.
                finite = jnp.where(jnp.isneginf(result), 0.0, result).astype(vector.dtype)
                total += jnp.sum(jnp.asarray(_cotangent(result.shape), vector.dtype) * finite)
        return total

    def scalar_by_definition(self, vector: np.ndarray) -> complex:
        total = 0.0
        for result in self.definition(vector):
            if not np.issubdtype(np.asarray(result).dtype, np.integer):
                finite = np.where(np.isneginf(np.real(result)), 0.0, result)
                total += np.sum(_cotangent(np.shape(result)) * finite)
        return total

    def gradient_by_definition(self, vector: np.ndarray) -> np.ndarray:
        step = 1e-30
        # 1j * step is added to the imaginary part only: -inf + 0j would come with a NaN.
        moved = np.tile(vector.astype(complex), (vector.size, 1))
        moved.imag += step * np.eye(vector.size)
        return np.array([np.imag(self.scalar_by_definition(row)) / step for row in moved])

    def curvature_by_definition(self, vector: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        h = 1e-3
        one, two = (
            self.gradient_by_definition(vector + k * h * tangent)
            - self.gradient_by_definition(vector - k * h * tangent)
            for k in (1, 2)
        )
        return (8.0 * one - two) / (12.0 * h)


def _cotangent(shape):
    size = int(np.prod(shape))
    return np.linspace(0.6, 1.4, size).reshape(shape) if size > 1 else np.full(shape, 0.8)


def make_case(function: str, options: dict[str, Any]) -> Case:
    """The arrays that a row starts with, replaced by those it names."""
    kind = FUNCTIONS[function].labels
    options = dict(options)
    arrays = {"x": LOG_PROBS if function.startswith("nll_loss") else LOGITS}
    if kind == "classes":
        arrays["labels"] = LABELS
    elif kind == "entries":
        arrays["labels"] = ENTRIES
    elif kind == "distributions":
        # Mass only where classes exist: elsewhere the loss is +inf, which is another test.
        exists = np.isfinite(options.get("x", LOGITS)) if options.get("axis") != 1 else True
        arrays["labels"] = np.where(exists & options.get("where", True), SOFT, 0.0)
        if options.get("axis") == 1:
            options["labels"] = BLOCK_SOFT
    arrays |= {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    static = {k: v for k, v in options.items() if not isinstance(v, np.ndarray)}
    return Case(FUNCTIONS[function], arrays, static)


def assert_close(ours, definition, tolerance, what):
    ours, definition = np.asarray(ours), np.asarray(definition)
    assert ours.shape == definition.shape, what
    finite = np.abs(definition[np.isfinite(definition)])
    scale = max(1.0, finite.max(initial=0.0))
    np.testing.assert_allclose(ours, definition, rtol=0, atol=tolerance * scale, err_msg=what)


# --- every row ------------------------------------------------------------------------------------


@pytest.mark.exhaustive(every=47, cover=False)
@every_row
def test_float64_under_every_transformation(function, row, x64):
    check_every_transformation(make_case(function, ROWS[function][row]))


def check_every_transformation(case: Case, scale: float = 1.0) -> None:
    """Under float64; tolerances times `scale`, where more numbers are added than in this table."""
    exact, differenced = scale * EXACT, scale * DIFFERENCED
    at = case.vector()
    random = np.random.default_rng(3)
    tangent = random.normal(size=at.shape)
    # In proportion: -inf stays -inf, and a class that does not exist keeps a label's mass of 0.
    near = at * (1.0 + 0.1 * random.uniform(-1.0, 1.0, size=(3, at.size)))
    f = case.scalar

    def everything(v, t, batch):
        def hessian_vector_product(u):
            return jax.jvp(jax.grad(f), (v,), (u,))[1]

        def scanned(b):
            total, values = jax.lax.scan(
                lambda total, u: (total + (value := f(u)), value), jnp.zeros((), b.dtype), b
            )
            return total, values

        value, gradient = jax.value_and_grad(f)(v)
        # The Hessian's columns and one product more: what jax.hessian does, compiled once.
        directions = jnp.concatenate([jnp.eye(v.size, dtype=v.dtype), t[None]])
        columns = jax.vmap(hessian_vector_product)(directions)
        values, gradients = jax.vmap(jax.value_and_grad(f))(batch)
        grad_of_scan, scanned_values = jax.grad(scanned, has_aux=True)(batch)
        return {
            "results": case.ours(v),
            "value": value,
            "gradient": gradient,
            "jvp": jax.jvp(f, (v,), (t,))[1],
            "hessian": columns[:-1],
            "forward over reverse": columns[-1],
            "reverse over reverse": jax.grad(lambda u: jnp.vdot(jax.grad(f)(u), t))(v),
            "vmap": values,
            "vmap of grad": gradients,
            "scan": scanned_values,
            "grad of scan": grad_of_scan,
            "checkpoint": jax.grad(jax.checkpoint(f))(v),
        }

    got = compiled(everything)(at, tangent, near)

    for ours, definition in zip(got["results"], case.definition(at), strict=True):
        assert_close(ours, definition, exact, "results")
    gradient = case.gradient_by_definition(at)
    curvature = case.curvature_by_definition(at, tangent)
    gradients = np.stack([case.gradient_by_definition(v) for v in near])
    values = np.array([case.scalar_by_definition(v) for v in near])
    assert_close(got["value"], case.scalar_by_definition(at), exact, "value")
    assert_close(got["gradient"], gradient, exact, "gradient")
    assert_close(got["jvp"], gradient @ tangent, 10 * exact, "jvp")  # a sum of up to 40 entries
    assert_close(got["hessian"], got["hessian"].T, exact, "hessian is symmetric")
    assert_close(got["hessian"] @ tangent, curvature, differenced, "hessian")
    assert_close(got["forward over reverse"], curvature, differenced, "forward over reverse")
    assert_close(got["reverse over reverse"], curvature, differenced, "reverse over reverse")
    assert_close(got["vmap"], values, exact, "vmap")
    assert_close(got["vmap of grad"], gradients, exact, "vmap of grad")
    assert_close(got["scan"], values, exact, "scan")
    assert_close(got["grad of scan"], gradients, exact, "grad of scan")
    assert_close(got["checkpoint"], gradient, exact, "checkpoint")


@pytest.mark.exhaustive(every=27, cover=False)
@every_row
def test_float32_without_an_outer_jit(function, row):
    case = make_case(function, ROWS[function][row])
    case = case._replace(arrays={k: _narrow(v) for k, v in case.arrays.items()})
    at = case.vector()
    assert at.dtype == np.float32
    value, gradient = jax.value_and_grad(case.scalar)(jnp.asarray(at))
    assert value.dtype == gradient.dtype == jnp.float32
    at = at.astype(np.float64)
    assert_close(value, case.scalar_by_definition(at), SINGLE, "value")
    assert_close(gradient, case.gradient_by_definition(at), SINGLE, "gradient")


def _narrow(array):
    return array.astype(np.float32) if array.dtype == np.float64 else array


@pytest.mark.exhaustive(every=15, cover=False)
@every_row
def test_dtypes_do_not_depend_on_x64(function, row):
    """float32 stays float32 where float64 could be had; bfloat16 logits give float32 losses."""
    case = make_case(function, ROWS[function][row])
    arrays = {k: _narrow(v) for k, v in case.arrays.items()}
    for dtype, x64 in ((jnp.float32, False), (jnp.float32, True), (jnp.bfloat16, True)):
        arrays["x"] = arrays["x"].astype(dtype)
        with jax.enable_x64(x64):
            inputs = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in arrays.items()}
            shapes = jax.eval_shape(lambda a: _value_and_gradients(case, a), inputs)
        results, gradients = shapes
        in_input_dtype = function in ("softmax", "log_softmax")
        for result in results:
            if jnp.issubdtype(result.dtype, jnp.floating):
                assert result.dtype == (dtype if in_input_dtype else jnp.float32)
            else:
                assert result.dtype == jnp.int32
        for name, gradient in gradients.items():
            assert gradient.dtype == arrays[name].dtype, name


def _value_and_gradients(case, arrays):
    """Results, and the gradient of their sum for each array that moves, unflattened."""

    def total(moving):
        named = arrays | moving
        inputs = [named.pop(name) for name in ("x", "labels") if name in named]
        results = jax.tree.leaves(case.function.ours(*inputs, **named, **case.static))
        real = [r for r in results if jnp.issubdtype(r.dtype, jnp.floating)]
        return sum(jnp.sum(r.astype(jnp.float32)) for r in real), results

    moving = {k: v for k, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    gradients, results = jax.grad(total, has_aux=True)(moving)
    return results, gradients


# --- vmap over each argument alone ----------------------------------------------------------------


@pytest.mark.exhaustive(every=3, cover=False)
@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("cross_entropy", LOGIT_OPTIONS["everything"]),
        ("cross_entropy", INDEX_OPTIONS["ignore_index"] | {"reduction": "none"}),
        ("cross_entropy_soft", LOGIT_OPTIONS["everything"]),
        ("nll_loss", LOSS_OPTIONS["statistics_mask_none"]),
        ("binary_cross_entropy", BINARY_OPTIONS["everything"]),
        ("log_softmax", DISTRIBUTION_OPTIONS["where"]),
    ],
)
def test_vmap_over_one_argument(function, options, x64):
    """Labels, weights, masks and the denominator may be the only thing that is batched."""
    case = make_case(function, options)

    def call(arrays):
        named = dict(arrays)
        inputs = [named.pop(name) for name in ("x", "labels") if name in named]
        return jax.tree.leaves(case.function.ours(*inputs, **named, **case.static))

    batches = {k: np.stack([v, _other(k, v)]) for k, v in case.arrays.items()}

    def over_each(arrays, batches):
        return {
            k: jax.vmap(call, in_axes=({n: 0 if n == k else None for n in arrays},))(
                arrays | {k: batch}
            )
            for k, batch in batches.items()
        }

    got = compiled(over_each)(case.arrays, batches)
    for name, batch in batches.items():
        for i, array in enumerate(batch):
            here = case._replace(arrays=case.arrays | {name: array})
            for ours, definition in zip(got[name], here.definition(here.vector()), strict=True):
                assert_close(ours[i], definition, EXACT, name)


def _other(name, array):
    """Another value for an argument, valid with the others."""
    if name == "where":
        return np.ones_like(array)
    if array.dtype == np.bool_:
        return ~array
    if name == "labels" and np.issubdtype(array.dtype, np.integer):
        return np.array([2, 0, 1])
    if name == "labels":
        return 0.5 * array
    return 1.25 * array


# --- options drawn at random ----------------------------------------------------------------------


def _draw_x(draw, function):
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    x = random.normal(scale=draw(st.sampled_from([0.1, 1.0, 10.0])), size=(3, CLASSES))
    if function.startswith("nll_loss"):
        x = -np.abs(x)
    return random, x


@st.composite
def loss_cases(draw, function):
    """Any of the options together, on logits some of whose classes may not exist."""
    random, x = _draw_x(draw, function)
    soft = FUNCTIONS[function].labels == "distributions"
    labels = random.integers(0, CLASSES, size=3)
    absent = np.zeros(x.shape, bool)
    if draw(st.booleans()):
        absent = (random.uniform(size=x.shape) < 0.4) & (np.arange(CLASSES) != labels[:, None])
        x = np.where(absent, -np.inf, x)
    arrays: dict[str, Any] = {"x": x, "labels": labels}
    if soft:
        arrays["labels"] = np.where(absent, 0.0, random.dirichlet(np.ones(CLASSES), size=3))
    static: dict[str, Any] = {}
    if draw(st.booleans()):
        arrays["class_weights"] = random.uniform(0.1, 3.0, size=CLASSES)
    weights = draw(st.sampled_from([None, "mask", "real"]))
    if weights == "mask":
        arrays["example_weights"] = np.array([True, *(random.uniform(size=2) < 0.5)])
    elif weights == "real":
        zero = np.array([1.0, 1.0, draw(st.sampled_from([0.0, 1.0]))])
        arrays["example_weights"] = zero * random.uniform(0.1, 2.0, size=3)
    if not soft and draw(st.booleans()):
        # Not the first example's, so that the mean has something to divide by.
        static["ignore_index"] = -1 if labels[1] == labels[0] else int(labels[1])
    static["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 0.9]))
    static["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
    if static["reduction"] == "mean" and draw(st.booleans()):
        arrays["denominator"] = np.asarray(random.uniform(1.0, 9.0))
    static["return_statistics"] = draw(st.booleans())
    if function.startswith("cross_entropy"):
        if draw(st.booleans()):
            keep = np.arange(CLASSES) == labels[:, None]
            arrays["where"] = keep | (random.uniform(size=x.shape) < 0.7)
            if soft:
                arrays["labels"] = np.where(arrays["where"], arrays["labels"], 0.0)
        static["z_loss"] = draw(st.sampled_from([0.0, 0.01]))
        static["soft_cap"] = draw(st.sampled_from([None, 5.0]))
        static["temperature"] = draw(st.sampled_from([1.0, 0.7, 3.0]))
    return Case(FUNCTIONS[function], arrays, static)


@st.composite
def binary_cases(draw):
    random, x = _draw_x(draw, "binary_cross_entropy")
    shape = st.sampled_from([(), (CLASSES,), (3, 1), (3, CLASSES)])
    labels = random.uniform(size=x.shape)
    if draw(st.booleans()):
        labels = labels < 0.5
    arrays: dict[str, Any] = {"x": x, "labels": labels}
    if draw(st.booleans()):
        arrays["pos_weight"] = np.asarray(random.uniform(0.1, 3.0, size=draw(shape)))
    weights = draw(st.sampled_from([None, "mask", "real"]))
    if weights == "mask":
        arrays["example_weights"] = np.arange(x.size).reshape(x.shape) % 3 != 0
    elif weights == "real":
        arrays["example_weights"] = np.asarray(random.uniform(0.1, 2.0, size=draw(shape)))
    static: dict[str, Any] = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 0.9])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if static["reduction"] == "mean" and draw(st.booleans()):
        arrays["denominator"] = np.asarray(random.uniform(1.0, 9.0))
    return Case(FUNCTIONS["binary_cross_entropy"], arrays, static)


# Logits of 10 give losses near 40, and the definition subtracts them from a logsumexp as large; a
# loss of 1e-8 among them is only right to 40 epsilons: hence relative to the largest, see above.


@given(loss_cases("cross_entropy"))
def test_cross_entropy_with_any_options(case):
    check_drawn(case)


@pytest.mark.exhaustive
@given(loss_cases("cross_entropy_soft"))
def test_cross_entropy_of_distributions_with_any_options(case):
    check_drawn(case)


@pytest.mark.exhaustive
@given(loss_cases("nll_loss"))
def test_nll_loss_with_any_options(case):
    check_drawn(case)


@pytest.mark.exhaustive
@given(loss_cases("nll_loss_soft"))
def test_nll_loss_of_distributions_with_any_options(case):
    check_drawn(case)


@pytest.mark.exhaustive
@given(binary_cases())
def test_binary_cross_entropy_with_any_options(case):
    check_drawn(case)


def check_drawn(case):
    at = case.vector()
    with jax.enable_x64(True):
        function = compiled(lambda v: (case.ours(v), jax.grad(case.scalar)(v)))
        results, gradient = function(at)
    for ours, definition in zip(results, case.definition(at), strict=True):
        assert_close(ours, definition, EXACT, "results")
    assert_close(gradient, case.gradient_by_definition(at), 10 * EXACT, "gradient")
