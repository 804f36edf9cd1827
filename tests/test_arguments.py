"""Every misuse of every argument: the error's type, and that it names argument, got and expected.

One row of a table for each misuse, and every row twice: as called, and with its arrays traced.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from jaxsoftmax import closed_form

NAN, INF = float("nan"), float("inf")

X = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
LABELS = jnp.array([2, 0])
SOFT = jnp.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
ENTRIES = jnp.array([[1, 0, 0], [0, 1, 1]])

# What each function is called with where a row does not say otherwise. "x" is the first argument.
FUNCTIONS = {
    "logsumexp": (jaxsoftmax.logsumexp, {"x": X}),
    "softmax": (jaxsoftmax.softmax, {"x": X}),
    "log_softmax": (jaxsoftmax.log_softmax, {"x": X}),
    "cross_entropy": (jaxsoftmax.cross_entropy, {"x": X, "labels": LABELS}),
    "nll_loss": (jaxsoftmax.nll_loss, {"x": X, "labels": LABELS}),
    "binary_cross_entropy": (jaxsoftmax.binary_cross_entropy, {"x": X, "labels": ENTRIES}),
    "softmax_jacobian": (closed_form.softmax_jacobian, {"x": X}),
    "cross_entropy_gradient": (closed_form.cross_entropy_gradient, {"x": X, "labels": LABELS}),
    "cross_entropy_hessian": (closed_form.cross_entropy_hessian, {"x": X}),
}
CLOSED = ("softmax_jacobian", "cross_entropy_gradient", "cross_entropy_hessian")
DISTRIBUTIONS = ("logsumexp", "softmax", "log_softmax")
OVER_CLASSES = ("cross_entropy", "nll_loss")
LOSSES = (*OVER_CLASSES, "binary_cross_entropy")
WITH_AXIS = (*DISTRIBUTIONS, *OVER_CLASSES)
WITH_WHERE = (*DISTRIBUTIONS, "cross_entropy")
OPEN = (*DISTRIBUTIONS, *LOSSES)


class Misuse(NamedTuple):
    """One wrong call, of one or more functions, and what its error must say."""

    name: str
    functions: tuple[str, ...]
    arguments: dict[str, Any]
    error: type[Exception]
    said: tuple[str, ...]  # "{x}" stands for the name of the function's first argument


def first_argument(function: str) -> str:
    return next(iter(inspect.signature(FUNCTIONS[function][0]).parameters))


def ints(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.int32)


def floats(*shape: int) -> jax.Array:
    return jnp.zeros(shape)


def complexes(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.complex64)


LOGITS = [
    Misuse("integers", OPEN, {"x": ints(2, 3)}, TypeError, ("{x}", "floating", "got dtype int32")),
    Misuse("uint8", OPEN, {"x": jnp.uint8(X)}, TypeError, ("{x}", "floating", "got dtype uint8")),
    Misuse("bools", OPEN, {"x": X > 0}, TypeError, ("{x}", "floating", "got dtype bool")),
    Misuse("complex", OPEN, {"x": complexes(2, 3)}, TypeError, ("{x}", "floating", "complex64")),
    Misuse("list", OPEN, {"x": [[0.0, 1.0, 2.0]] * 2}, TypeError, ("{x}", "array", "got a list")),
    Misuse("tuple", OPEN, {"x": (0.0, 1.0)}, TypeError, ("{x}", "array", "got a tuple")),
    Misuse("None", OPEN, {"x": None}, TypeError, ("{x}", "array", "NoneType")),
    Misuse("string", OPEN, {"x": "logits"}, TypeError, ("{x}", "array", "got a str")),
    Misuse(
        "a Python number has no axis",
        WITH_AXIS,
        {"x": 1.0},
        ValueError,
        ("axis -1", "{x}", "shape []", "0 axes"),
    ),
    Misuse(
        "no class, last axis",
        OVER_CLASSES,
        {"x": floats(2, 0)},
        ValueError,
        ("{x}", "at least one class", "[2, 0]", "class axis 1"),
    ),
    Misuse(
        "no class, first axis",
        OVER_CLASSES,
        {"x": floats(0, 2), "axis": 0},
        ValueError,
        ("{x}", "at least one class", "[0, 2]", "class axis 0"),
    ),
    Misuse(
        "no class, two axes",
        OVER_CLASSES,
        {"x": floats(0, 2), "axis": (0, 1), "labels": floats(0, 2)},
        ValueError,
        ("{x}", "at least one class", "[0, 2]", "class axis 0"),
    ),
    Misuse("list", CLOSED, {"x": [[0.0, 1.0]]}, TypeError, ("{x}", "array", "list")),
    Misuse("integers", CLOSED, {"x": ints(2, 3)}, TypeError, ("{x}", "floating", "int32")),
    Misuse("no class", CLOSED, {"x": floats(2, 0)}, ValueError, ("{x}", "class", "[2, 0]")),
]

AXIS = [
    Misuse("too large", WITH_AXIS, {"axis": 2}, ValueError, ("axis 2", "[2, 3]", "2 axes")),
    Misuse("too small", WITH_AXIS, {"axis": -3}, ValueError, ("axis -3", "[2, 3]", "2 axes")),
    Misuse("float", WITH_AXIS, {"axis": 1.0}, TypeError, ("axis", "an int", "got 1.0")),
    Misuse("bool", WITH_AXIS, {"axis": True}, TypeError, ("axis", "an int", "got True")),
    Misuse("string", WITH_AXIS, {"axis": "C"}, TypeError, ("axis", "an int", "got 'C'")),
    Misuse("None", OVER_CLASSES, {"axis": None}, TypeError, ("axis", "an int", "got None")),
    Misuse("list", WITH_AXIS, {"axis": [0, 1]}, TypeError, ("axis", "an int", "got [0, 1]")),
    Misuse("array", WITH_AXIS, {"axis": jnp.int32(1)}, TypeError, ("axis", "an int", "got ")),
    Misuse("twice", WITH_AXIS, {"axis": (1, 1)}, ValueError, ("axis", "twice", "got (1, 1)")),
    Misuse("twice by sign", WITH_AXIS, {"axis": (1, -1)}, ValueError, ("axis", "(1, -1)")),
    Misuse("no axis", WITH_AXIS, {"axis": ()}, ValueError, ("axis", "at least one", "got ()")),
    Misuse("one too large", WITH_AXIS, {"axis": (0, 2)}, ValueError, ("axis 2", "[2, 3]")),
    Misuse("half a float", WITH_AXIS, {"axis": (0, 0.5)}, TypeError, ("axis", "int", "0.5")),
    Misuse(
        "several with class indices",
        OVER_CLASSES,
        {"axis": (0, 1), "labels": 1},
        ValueError,
        ("labels", "{x}", "[2, 3]", "several axes", "got shape []"),
    ),
]

WHERE = [
    Misuse("numbers", WITH_WHERE, {"where": X}, TypeError, ("where", "boolean", "dtype float32")),
    Misuse("integers", WITH_WHERE, {"where": ints(2, 3)}, TypeError, ("where", "boolean", "int32")),
    Misuse("list", WITH_WHERE, {"where": [True, False, True]}, TypeError, ("where", "got a list")),
    Misuse(
        "another length",
        WITH_WHERE,
        {"where": jnp.ones(2, jnp.bool_)},
        ValueError,
        ("where", "logits", "[2, 3]", "got shape [2]"),
    ),
    Misuse(
        "more axes than the logits",
        WITH_WHERE,
        {"where": jnp.ones((1, 2, 3), jnp.bool_)},
        ValueError,
        ("where", "logits", "[2, 3]", "got shape [1, 2, 3]"),
    ),
    Misuse("keepdims=1", ("logsumexp",), {"keepdims": 1}, TypeError, ("keepdims", "got 1", "True")),
    Misuse("keepdims=None", ("logsumexp",), {"keepdims": None}, TypeError, ("keepdims", "None")),
    Misuse(
        "keepdims traced", ("logsumexp",), {"keepdims": jnp.array(True)}, TypeError, ("keepdims",)
    ),
]

LABELS_ = [
    Misuse(
        "another batch",
        OVER_CLASSES,
        {"labels": ints(3)},
        ValueError,
        ("labels", "shape of the batch, [2]", "got shape [3]"),
    ),
    Misuse(
        "a batch of one is not broadcast",
        OVER_CLASSES,
        {"labels": ints(1)},
        ValueError,
        ("labels", "[2]", "got shape [1]"),
    ),
    Misuse(
        "scalar",
        OVER_CLASSES,
        {"labels": 1},
        ValueError,
        ("labels", "[2]", "got shape []"),
    ),
    Misuse(
        "a column, as from Keras",
        OVER_CLASSES,
        {"labels": ints(2, 1)},
        ValueError,
        ("labels", "{x}", "[2, 3]", "got shape [2, 1]"),
    ),
    Misuse(
        "distributions of another shape",
        OVER_CLASSES,
        {"labels": floats(3, 2)},
        ValueError,
        ("labels", "{x}", "[2, 3]", "got shape [3, 2]"),
    ),
    Misuse(
        "more axes than the logits",
        OVER_CLASSES,
        {"labels": floats(1, 2, 3)},
        ValueError,
        ("labels", "[2, 3]", "got shape [1, 2, 3]"),
    ),
    Misuse(
        "batch of another axis",
        OVER_CLASSES,
        {"labels": LABELS, "axis": 0},
        ValueError,
        ("labels", "[3]", "got shape [2]"),
    ),
    Misuse(
        "floating class indices",
        OVER_CLASSES,
        {"labels": jnp.array([2.0, 0.0])},
        TypeError,
        ("labels", "integer", "got dtype float32", "[2, 3]"),
    ),
    Misuse(
        "boolean class indices",
        OVER_CLASSES,
        {"labels": jnp.array([True, False])},
        TypeError,
        ("labels", "integer", "got dtype bool"),
    ),
    Misuse(
        "complex class indices",
        OVER_CLASSES,
        {"labels": complexes(2)},
        TypeError,
        ("labels", "integer", "got dtype complex64"),
    ),
    Misuse(
        "complex distributions",
        OVER_CLASSES,
        {"labels": complexes(2, 3)},
        TypeError,
        ("labels", "real", "complex64"),
    ),
    Misuse(
        "indices with an axis of one",
        OVER_CLASSES,
        {"labels": ints(2, 1)},
        ValueError,
        ("labels", "got shape [2, 1]", "use labels[..., 0]"),
    ),
    Misuse(
        "a batch that is flat in the logits",
        OVER_CLASSES,
        {"x": floats(6, 4), "labels": ints(2, 3)},
        ValueError,
        ("got shape [2, 3]", "class indices have shape [6]", "labels.reshape((6,))"),
    ),
    Misuse(
        "indices for another axis",
        OVER_CLASSES,
        {"x": floats(2, 4, 3), "labels": ints(2, 3)},
        ValueError,
        ("got shape [2, 3]", "did you mean axis=1?"),
    ),
    Misuse("list", LOSSES, {"labels": [2, 0]}, TypeError, ("labels", "array", "got a list")),
    Misuse("None", LOSSES, {"labels": None}, TypeError, ("labels", "array", "NoneType")),
    Misuse(
        "no entry for each logit",
        ("binary_cross_entropy",),
        {"labels": ints(2)},
        ValueError,
        ("labels", "shape of logits, [2, 3]", "got shape [2]"),
    ),
    Misuse(
        "a column of entries",
        ("binary_cross_entropy",),
        {"labels": ints(2, 1)},
        ValueError,
        ("labels", "shape of logits, [2, 3]", "got shape [2, 1]"),
    ),
    Misuse(
        "complex entries",
        ("binary_cross_entropy",),
        {"labels": complexes(2, 3)},
        TypeError,
        ("labels", "real", "complex64"),
    ),
    Misuse(
        "list",
        ("cross_entropy_gradient",),
        {"labels": [2, 0]},
        TypeError,
        ("labels", "array", "list"),
    ),
    Misuse(
        "another batch",
        ("cross_entropy_gradient",),
        {"labels": ints(3)},
        ValueError,
        ("labels", "[2]", "[3]"),
    ),
    Misuse(
        "floating class indices",
        ("cross_entropy_gradient",),
        {"labels": jnp.array([2.0, 0.0])},
        TypeError,
        ("labels", "integer", "float32"),
    ),
]

WEIGHTS = [
    Misuse(
        "one too many",
        OVER_CLASSES,
        {"class_weights": floats(4)},
        ValueError,
        ("class_weights", "3 classes", "[3]", "got shape [4]"),
    ),
    Misuse(
        "one for all is not broadcast",
        OVER_CLASSES,
        {"class_weights": floats(1)},
        ValueError,
        ("class_weights", "[3]", "got shape [1]"),
    ),
    Misuse(
        "scalar",
        OVER_CLASSES,
        {"class_weights": 2.0},
        ValueError,
        ("class_weights", "[3]", "got shape []"),
    ),
    Misuse(
        "one for each logit",
        OVER_CLASSES,
        {"class_weights": X},
        ValueError,
        ("class_weights", "[3]", "got shape [2, 3]"),
    ),
    Misuse(
        "length of the batch where the class axis is the first",
        OVER_CLASSES,
        {"class_weights": floats(3), "axis": 0, "labels": ints(3)},
        ValueError,
        ("class_weights", "2 classes", "[2]", "got shape [3]"),
    ),
    Misuse(
        "integers",
        OVER_CLASSES,
        {"class_weights": ints(3)},
        TypeError,
        ("class_weights", "floating", "got dtype int32"),
    ),
    Misuse(
        "complex",
        OVER_CLASSES,
        {"class_weights": complexes(3)},
        TypeError,
        ("class_weights", "floating", "got dtype complex64"),
    ),
    Misuse(
        "list",
        OVER_CLASSES,
        {"class_weights": [1.0, 2.0, 3.0]},
        TypeError,
        ("class_weights", "array", "got a list"),
    ),
    Misuse(
        "another batch",
        OVER_CLASSES,
        {"example_weights": floats(3)},
        ValueError,
        ("example_weights", "[2]", "got shape [3]"),
    ),
    Misuse(
        "one for each logit",
        OVER_CLASSES,
        {"example_weights": X},
        ValueError,
        ("example_weights", "[2]", "got shape [2, 3]"),
    ),
    Misuse(
        "not broadcastable",
        ("binary_cross_entropy",),
        {"example_weights": floats(2)},
        ValueError,
        ("example_weights", "logits", "[2, 3]", "got shape [2]"),
    ),
    Misuse(
        "complex",
        LOSSES,
        {"example_weights": complexes(2, 3)},
        TypeError,
        ("example_weights", "real", "got dtype complex64"),
    ),
    Misuse(
        "list",
        LOSSES,
        {"example_weights": [1.0, 0.0]},
        TypeError,
        ("example_weights", "array", "got a list"),
    ),
    Misuse(
        "not broadcastable",
        ("binary_cross_entropy",),
        {"pos_weight": floats(2)},
        ValueError,
        ("pos_weight", "logits", "[2, 3]", "got shape [2]"),
    ),
    Misuse(
        "more axes than the logits",
        ("binary_cross_entropy",),
        {"pos_weight": floats(1, 2, 3)},
        ValueError,
        ("pos_weight", "logits", "[2, 3]", "got shape [1, 2, 3]"),
    ),
    Misuse(
        "complex",
        ("binary_cross_entropy",),
        {"pos_weight": complexes(3)},
        TypeError,
        ("pos_weight", "real", "got dtype complex64"),
    ),
    Misuse(
        "list",
        ("binary_cross_entropy",),
        {"pos_weight": [1.0, 2.0, 3.0]},
        TypeError,
        ("pos_weight", "array", "got a list"),
    ),
]

DENOMINATOR = [
    Misuse(
        "sum",
        LOSSES,
        {"denominator": 2.0, "reduction": "sum"},
        ValueError,
        ("denominator", '"mean"', "got reduction='sum'"),
    ),
    Misuse(
        "none",
        LOSSES,
        {"denominator": jnp.array(2.0), "reduction": "none"},
        ValueError,
        ("denominator", '"mean"', "got reduction='none'"),
    ),
    Misuse(
        "one for each example",
        LOSSES,
        {"denominator": floats(2)},
        ValueError,
        ("denominator", "scalar", "got shape [2]"),
    ),
    Misuse(
        "an array of one number",
        LOSSES,
        {"denominator": floats(1)},
        ValueError,
        ("denominator", "scalar", "got shape [1]"),
    ),
    Misuse(
        "complex",
        LOSSES,
        {"denominator": complexes()},
        TypeError,
        ("denominator", "real", "got dtype complex64"),
    ),
    Misuse(
        "bool", LOSSES, {"denominator": True}, TypeError, ("denominator", "real", "got dtype bool")
    ),
    Misuse("list", LOSSES, {"denominator": [2.0]}, TypeError, ("denominator", "got a list")),
    Misuse("string", LOSSES, {"denominator": "2"}, TypeError, ("denominator", "got a str")),
]

IGNORE_INDEX = [
    Misuse(
        "with distributions",
        OVER_CLASSES,
        {"labels": SOFT, "ignore_index": -100},
        ValueError,
        ("ignore_index", "integer labels", "-100", "[2, 3]", "example_weights"),
    ),
    Misuse(
        "float",
        LOSSES,
        {"ignore_index": -100.0},
        TypeError,
        ("ignore_index", "int", "-100.0"),
    ),
    Misuse("bool", LOSSES, {"ignore_index": True}, TypeError, ("ignore_index", "int", "True")),
    Misuse("string", LOSSES, {"ignore_index": "pad"}, TypeError, ("ignore_index", "'pad'")),
    Misuse("list", LOSSES, {"ignore_index": [0, 1]}, TypeError, ("ignore_index", "[0, 1]")),
    Misuse("no index", LOSSES, {"ignore_index": ()}, TypeError, ("ignore_index", "got ()")),
    Misuse("one a float", LOSSES, {"ignore_index": (0, 1.0)}, TypeError, ("ignore_index", "1.0")),
]

ALL_REDUCTIONS = "'none', 'sum', 'mean'"
REDUCTION = [
    Misuse("unknown", LOSSES, {"reduction": "avg"}, ValueError, ("reduction", "'avg'")),
    Misuse("capitals", LOSSES, {"reduction": "Mean"}, ValueError, ("reduction", "'Mean'")),
    Misuse("None", LOSSES, {"reduction": None}, ValueError, ("reduction", "got None")),
    Misuse("list", LOSSES, {"reduction": ["mean"]}, ValueError, ("reduction", "['mean']")),
    Misuse(
        "every name is shown", LOSSES, {"reduction": "batchmean"}, ValueError, (ALL_REDUCTIONS,)
    ),
    Misuse(
        "unknown",
        ("cross_entropy_gradient",),
        {"reduction": "avg"},
        ValueError,
        ("reduction", ALL_REDUCTIONS, "'avg'"),
    ),
]

FOCAL = ("cross_entropy", "binary_cross_entropy")
# Options that are numbers: who takes them, the values out of range, and the range as errors say it.
NUMBERS = {
    "label_smoothing": (LOSSES, (-0.1, 1.5, NAN, INF, -INF), ValueError, "[0, 1]"),
    "z_loss": (("cross_entropy",), (-1e-4, NAN, INF, -INF), ValueError, ">= 0"),
    "temperature": (("cross_entropy",), (0, 0.0, -1.0, NAN, INF, -INF), ValueError, "> 0"),
    "soft_cap": (("cross_entropy",), (0, 0.0, -30.0, NAN, INF, -INF), ValueError, "> 0"),
    "focal_gamma": (
        ("cross_entropy", "binary_cross_entropy"),
        (-0.5, NAN, INF),
        ValueError,
        ">= 0",
    ),
    "poly_epsilon": (("cross_entropy",), (NAN, INF, -INF), ValueError, "finite"),
}
OUT_OF_RANGE = [
    Misuse(str(value), functions, {name: value}, error, (name, expected, f"got {float(value)}"))
    for name, (functions, values, error, expected) in NUMBERS.items()
    for value in values
]
NO_NUMBER = [
    Misuse(repr(value), functions, {name: value}, TypeError, (name, "number", f"got {value!r}"))
    for name, (functions, *_) in NUMBERS.items()
    for value in (True, "0.1", [0.1], 0.1j)
] + [
    Misuse("None", functions, {name: None}, TypeError, (name, "number", "got None"))
    for name, (functions, *_) in NUMBERS.items()
    if name != "soft_cap"  # where None is "off"
]

# Values that a program is compiled for: an array is refused and, traced, a tracer.
STATIC = {
    "focal_gamma": (FOCAL, 0.5, "number"),
    "poly_epsilon": (("cross_entropy",), 0.5, "number"),
    "ignore_index": (OVER_CLASSES, 1, "int"),
    "return_statistics": (OVER_CLASSES, True, "True or False"),
    "reduction": (LOSSES, 0, ALL_REDUCTIONS),
}
ARRAYS_FOR_OPTIONS = [
    Misuse(
        kind, functions, {name: make(value)}, TypeError, (name, expected, "got the array", "static")
    )
    for name, (functions, value, expected) in STATIC.items()
    for kind, make in {
        "jax array": jnp.array,
        "numpy array": np.array,
        "array of one": lambda v: np.array([v]),
    }.items()
]
# Those that may be arrays are scalars.
MAY_BE_ARRAYS = {
    name: functions
    for name, (functions, *_) in NUMBERS.items()
    if name not in ("focal_gamma", "poly_epsilon")
}
WRONG_ARRAYS = [
    Misuse(kind, functions, {name: value}, error, (name, "scalar array", said))
    for name, functions in MAY_BE_ARRAYS.items()
    for kind, value, error, said in (
        ("array of one", jnp.array([0.5]), ValueError, "got shape [1]"),
        ("numpy array of one", np.array([0.5]), ValueError, "got shape [1]"),
        ("complex array", jnp.array(0.5j), TypeError, "dtype complex64"),
        ("boolean array", jnp.array(True), TypeError, "dtype bool"),
    )
]
AXIS_NAMES = [
    Misuse(
        kind,
        [f for f, row in FUNCTIONS.items() if "axis_name" in inspect.signature(row[0]).parameters],
        {"axis_name": value},
        error,
        ("axis_name", "mesh axis", f"got {value!r}"),
    )
    for kind, value, error in [
        ("not bound", "model", ValueError),
        ("number", 1, TypeError),
        ("list", ["model"], TypeError),
        ("no names", (), TypeError),
    ]
]
FLAGS = [
    Misuse(
        repr(value),
        OVER_CLASSES,
        {"return_statistics": value},
        TypeError,
        ("return_statistics", "True or False", f"got {value!r}"),
    )
    for value in (1, 0, None, "yes")
]

TABLE = {
    f"{function}-{next(iter(misuse.arguments))}-{misuse.name}": (function, misuse)
    for misuse in [
        *LOGITS,
        *AXIS,
        *WHERE,
        *LABELS_,
        *WEIGHTS,
        *DENOMINATOR,
        *IGNORE_INDEX,
        *REDUCTION,
        *OUT_OF_RANGE,
        *NO_NUMBER,
        *ARRAYS_FOR_OPTIONS,
        *WRONG_ARRAYS,
        *FLAGS,
        *AXIS_NAMES,
    ]
    for function in misuse.functions
}


def call(function: str, arguments: dict[str, Any]) -> Any:
    """The function with the arguments of a row, the others as always."""
    ours, usual = FUNCTIONS[function]
    arguments = usual | arguments
    return ours(arguments.pop("x"), **arguments)


def call_traced(function: str, arguments: dict[str, Any]) -> Any:
    """The same under jit, everything that is an array being traced."""
    arguments = FUNCTIONS[function][1] | arguments
    arrays = {k: v for k, v in arguments.items() if isinstance(v, (jax.Array, np.ndarray))}
    static = {k: v for k, v in arguments.items() if k not in arrays}
    return jax.jit(lambda traced: call(function, traced | static))(arrays)


@pytest.mark.parametrize("how", [call, call_traced], ids=["called", "traced"])
@pytest.mark.parametrize("row", TABLE)
def test_misuse(row, how):
    function, misuse = TABLE[row]
    with pytest.raises(misuse.error) as caught:
        how(function, misuse.arguments)
    message = str(caught.value)
    for part in misuse.said:
        assert part.format(x=first_argument(function)) in message
    assert type(caught.value) is misuse.error


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_is_misused(function):
    misused = {name for f, misuse in TABLE.values() if f == function for name in misuse.arguments}
    arguments = set(inspect.signature(FUNCTIONS[function][0]).parameters)
    assert arguments - {first_argument(function)} | {"x"} == misused


@pytest.mark.exhaustive(every=4)
@pytest.mark.parametrize("how", [call, call_traced], ids=["called", "traced"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_usual_arguments_are_accepted(function, how):
    # Otherwise any row of the table could be raising for another reason than its own.
    assert np.isfinite(how(function, {})).all()


# --- what is no misuse ----------------------------------------------------------------------------


def loss(**options: Any) -> np.ndarray:
    return np.asarray(jaxsoftmax.cross_entropy(X, LABELS, **options))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing", np.float32(0.1)),
        ("label_smoothing", np.float64(0.1)),
        ("label_smoothing", np.float16(0.1)),
        ("label_smoothing", 0),
        ("z_loss", np.float32(1e-4)),
        ("z_loss", 1),
        ("soft_cap", np.float32(30.0)),
        ("soft_cap", np.int64(30)),
        ("temperature", np.float64(2.0)),
        ("temperature", np.int32(2)),
    ],
    ids=repr,
)
def test_numpy_scalars_and_ints_are_python_numbers(name, value):
    np.testing.assert_array_equal(loss(**{name: value}), loss(**{name: float(value)}))


@pytest.mark.parametrize("index", [np.int64(0), np.int8(0), np.uint8(0)], ids=repr)
def test_numpy_integers_are_ignore_indices(index):
    np.testing.assert_array_equal(
        loss(ignore_index=index, reduction="none"), loss(reduction="none") * np.array([1.0, 0.0])
    )


@pytest.mark.parametrize("index", [-(2**31) - 1, 2**31, 2**63, 10**30])
def test_an_ignore_index_that_no_label_can_hold_ignores_nothing(index):
    np.testing.assert_array_equal(loss(ignore_index=index), loss())


@pytest.mark.parametrize("axis", [np.int64(1), np.int8(-1)], ids=repr)
@pytest.mark.parametrize("function", WITH_AXIS)
def test_numpy_integers_are_axes(function, axis):
    np.testing.assert_array_equal(call(function, {"axis": axis}), call(function, {}))


@pytest.mark.exhaustive(every=4)
@pytest.mark.parametrize(
    "denominator", [4, 4.0, np.float64(4.0), np.int64(4), jnp.array(4), jnp.bfloat16(4.0)], ids=repr
)
@pytest.mark.parametrize("function", LOSSES)
def test_denominators(function, denominator):
    expected = np.asarray(call(function, {"reduction": "sum"})) / np.float32(4.0)
    for result in (
        call(function, {"denominator": denominator}),
        jax.jit(lambda d: call(function, {"denominator": d}))(denominator),
    ):
        np.testing.assert_allclose(result, expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bfloat16, jnp.float16], ids=repr)
def test_example_weights_of_any_real_dtype(dtype):
    weights = jnp.array([3, 1], dtype)
    np.testing.assert_array_equal(
        loss(example_weights=weights), loss(example_weights=jnp.array([3.0, 1.0]))
    )


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.bfloat16], ids=repr)
@pytest.mark.parametrize("function", OVER_CLASSES)
def test_distributions_of_any_real_dtype(function, dtype):
    one_hot = jnp.eye(3)[LABELS]
    np.testing.assert_array_equal(
        call(function, {"labels": one_hot.astype(dtype)}), call(function, {"labels": one_hot})
    )


def test_a_python_int_is_the_label_of_one_example():
    np.testing.assert_array_equal(
        jaxsoftmax.cross_entropy(X[0], 2), jaxsoftmax.cross_entropy(X[0], jnp.array(2))
    )


@pytest.mark.parametrize("pos_weight", [3.0, np.float32(3.0), 3, jnp.array([3])], ids=repr)
def test_pos_weights_of_any_real_dtype(pos_weight):
    np.testing.assert_array_equal(
        call("binary_cross_entropy", {"pos_weight": pos_weight}),
        call("binary_cross_entropy", {"pos_weight": jnp.full(3, 3.0)}),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", NAN),
        ("soft_cap", -1.0),
        ("z_loss", -1.0),
        ("z_loss", INF),
        ("label_smoothing", 1.5),
        ("label_smoothing", -0.5),
    ],
)
def test_an_array_out_of_bounds(name, value):
    """Raises as a Python number does where its value is known; under jit the loss is NaN."""
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        loss(**{name: jnp.array(value)})
    traced = jax.jit(lambda x: jaxsoftmax.cross_entropy(X, LABELS, **{name: x}))
    assert np.isnan(traced(jnp.array(value)))


def test_a_schedule_does_not_compile_again():
    """And its values are those of Python numbers."""
    compiled = jax.jit(lambda t, z: jaxsoftmax.cross_entropy(X, LABELS, temperature=t, z_loss=z))
    for step in range(3):
        t, z = 1.0 + step, 0.1 * step
        np.testing.assert_allclose(compiled(t, z), loss(temperature=t, z_loss=z), rtol=2e-6)
    assert compiled._cache_size() == 1


def test_a_traced_smoothing_of_0_is_no_smoothing():
    """Also where a class does not exist, and where the label is one of those."""
    x = X.at[:, 1].set(-jnp.inf)

    def losses(x, smoothing, y=LABELS):
        return jaxsoftmax.cross_entropy(x, y, label_smoothing=smoothing, reduction="none")

    for y in (LABELS, jnp.array([1, 0]), SOFT.at[:, 1].set(0.0)):
        found, expected = losses(x, jnp.array(0.0), y), losses(x, 0.0, y)
        np.testing.assert_allclose(found, expected, rtol=2e-6)
    gradient = jax.grad(lambda x: losses(x, jnp.array(0.0)).sum())(x)
    np.testing.assert_allclose(gradient, jax.grad(lambda x: losses(x, 0.0).sum())(x), rtol=2e-6)


@pytest.mark.parametrize("labels", [SOFT, LABELS])
def test_focal_gamma_is_for_integer_labels_without_smoothing(labels):
    smoothing = 0.1 if labels is LABELS else 0.0
    with pytest.raises(ValueError, match="focal_gamma is for integer labels without smoothing"):
        jaxsoftmax.cross_entropy(X, labels, focal_gamma=2.0, label_smoothing=smoothing)
    with pytest.raises(ValueError, match="focal_gamma is for labels without smoothing"):
        jaxsoftmax.binary_cross_entropy(X, ENTRIES, focal_gamma=2.0, label_smoothing=0.1)
