"""PyTorch as the reference: its own sample inputs and every mix of options, through both libraries.

Values and gradients of all that PyTorch differentiates, against PyTorch in the same dtype and in
float64. Where the two differ on purpose, the case has a name in `DIFFERENCES` and a test of its own
that asserts what either library does. How many cases of each operator were compared:

    python -m pytest -q -s tests/test_torch.py
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import compiled

import jaxsoftmax as js

torch = pytest.importorskip("torch", reason="PyTorch is the reference of this file; extra `torch`")
pytest.importorskip("expecttest", reason="torch.testing._internal imports it; extra `torch`")

import torch.nn.functional as F  # noqa: E402
from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

INF, NAN = math.inf, math.nan

# Where we differ on purpose, and why; `test_difference_<name>` holds both sides to it.
DIFFERENCES = {
    "all_targets_ignored": "PyTorch's mean is 0/0 = NaN, ours 0 with gradient 0",
    "no_examples": "the same for an empty batch",
    "class_weights_of_sum_zero": "the same where the labels' weights sum to 0",
    "ignored_example_without_numbers": "NaN or inf in an ignored row is NaN in PyTorch's gradient",
    "soft_labels_beside_an_absent_class": "PyTorch's 0 · log 0 is NaN, ours 0",
    "smoothing_beside_an_absent_class": "PyTorch smooths onto a class at -inf: inf, ours is finite",
    "label_on_an_absent_class": "loss inf in both; a logit of -inf gets gradient 0 from us, not -1",
    "confident_prediction": "PyTorch rounds a small loss and its gradient to 0",
    "confident_logsumexp": "PyTorch rounds away all but the largest logit",
    "no_logit_left": "softmax of nothing but -inf: PyTorch NaN, ours 0",
    "infinite_logit": "softmax beside +inf: PyTorch NaN, ours probability 1",
    "label_outside_the_classes": "PyTorch raises, ours is NaN in that example alone",
    "binary_label_outside_0_1": "PyTorch extrapolates, ours is NaN in that entry alone",
    "binary_weighted_mean": "PyTorch divides by the number of entries, we by the sum of weights",
    "loss_of_low_precision": "PyTorch rounds a bfloat16 loss to bfloat16, ours is float32",
    "one_hot_integers": "PyTorch wants distributions as floats, ours takes any real dtype",
    "ignore_index_with_soft_labels": "PyTorch drops a negative one silently, ours is an error",
    "integer_logits": "PyTorch's logsumexp takes them, ours is an error; so are complex logits",
    "no_class_axis": "PyTorch gives a scalar a class axis of length 1, ours is an error",
}


# (relative, absolute), by the dtype of the result. Against float32 PyTorch's own tolerances, since
# both sides round. Against float64 only we do: logits and log-probabilities of up to 18 are rounded
# by 2^-20 = 1e-6; a bfloat16 result is rounded once, by 2^-8.
SAME_DTYPE = {"float32": (1.3e-6, 1e-5), "float64": (1e-13, 1e-13)}
IN_FLOAT64 = {"float32": (2e-6, 2e-6), "float64": (1e-13, 1e-13), "bfloat16": (2**-8, 2e-6)}


@dataclasses.dataclass
class Tally:
    """What became of the cases of one row of the summary."""

    compared: int = 0
    named: int = 0
    unexplained: int = 0


@pytest.fixture(scope="module")
def tallies():
    """Tallies by row of the summary, printed when the last test of this file is done."""
    rows: dict[str, Tally] = {}
    yield rows
    print(f"\n\n{'PyTorch ' + torch.__version__:<64}compared  named  unexplained")
    for name, row in rows.items():
        print(f"{name:<64}{row.compared:8}{row.named:7}{row.unexplained:13}")
    compared, unexplained = (
        sum(getattr(row, what) for row in rows.values()) for what in ("compared", "unexplained")
    )
    print(f"{compared} cases compared, {unexplained} unexplained differences")


# --- one case through both libraries --------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """One call, as PyTorch writes it: (args, kwargs), tensors with requires_grad among them."""

    call: tuple[tuple[Any, ...], dict[str, Any]]

    @functools.cached_property
    def leaves(self) -> list[Any]:
        return jax.tree.leaves(self.call)

    @property
    def differentiable(self) -> list[int]:
        return [i for i, leaf in enumerate(self.leaves) if is_tensor(leaf) and leaf.requires_grad]

    def replace(self, leaves: list[Any]) -> "Case":
        return Case(jax.tree.unflatten(jax.tree.structure(self.call), leaves))

    def in_float64(self) -> "Case":
        """The same numbers in float64."""

        def convert(leaf):
            if is_tensor(leaf) and leaf.is_floating_point():
                return leaf.detach().double().requires_grad_(leaf.requires_grad)
            return leaf

        return self.replace([convert(leaf) for leaf in self.leaves])

    def __str__(self) -> str:
        def describe(leaf):
            return f"{list(leaf.shape)} {leaf.dtype}" if is_tensor(leaf) else repr(leaf)

        return str(self.replace([describe(leaf) for leaf in self.leaves]).call)


def is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # which NumPy does not have of itself
        return tensor.detach().float().numpy().astype(jnp.bfloat16)
    return tensor.detach().numpy()


def cotangent_of(output: torch.Tensor) -> torch.Tensor:
    """Any numbers but ones, whose gradient through a softmax would be 0; exact in bfloat16."""
    eighths = np.random.default_rng(output.numel()).integers(4, 13, tuple(output.shape))
    return torch.tensor(eighths / 8).to(output.dtype)


def by_torch(function: Callable, case: Case) -> list[np.ndarray]:
    """PyTorch's value and gradients."""
    args, kwargs = case.call
    output = function(*args, **kwargs)
    inputs = [case.leaves[i] for i in case.differentiable]
    gradients = torch.autograd.grad(output, inputs, cotangent_of(output))
    return [to_numpy(tensor) for tensor in (output, *gradients)]


def by_us(function: Callable, cases: list[Case], cotangents: list[np.ndarray]) -> list[Any]:
    """Our values and gradients, all cases in one program: most of the time goes to compiling."""
    arrays = [[to_numpy(leaf) for leaf in case.leaves if is_tensor(leaf)] for case in cases]

    def one(case: Case, arrays: list[Any], cotangent: Any) -> list[Any]:
        remaining = iter(arrays)
        leaves = [next(remaining) if is_tensor(leaf) else leaf for leaf in case.leaves]

        def evaluate(*inputs):
            for i, value in zip(case.differentiable, inputs, strict=True):
                leaves[i] = value
            args, kwargs = case.replace(leaves).call
            return function(*args, **kwargs)

        output, pull_back = jax.vjp(evaluate, *[leaves[i] for i in case.differentiable])
        return [output, *pull_back(cotangent.astype(output.dtype))]

    @compiled
    def all_of_them(arrays, cotangents):
        return [one(*each) for each in zip(cases, arrays, cotangents, strict=True)]

    return all_of_them(arrays, cotangents)


def compare(theirs: Callable, ours: Callable, cases: list[Case]) -> list[str]:
    """A line for every case in which a value or a gradient is not PyTorch's."""
    same_dtype = [by_torch(theirs, case) for case in cases]
    in_float64 = [by_torch(theirs, case.in_float64()) for case in cases]
    cotangents = [to_numpy(cotangent_of(torch.tensor(output))) for output, *_ in in_float64]
    results = by_us(ours, cases, cotangents)
    wrong = []
    for case, got, same, exact in zip(cases, results, same_dtype, in_float64, strict=True):
        try:
            assert_same(got, same, exact)
        except AssertionError as error:
            wrong.append(f"{case}\n{error}")
    return wrong


def assert_same(got: list[Any], same_dtype: list[Any], in_float64: list[Any]) -> None:
    for ours, same, exact in zip(got, same_dtype, in_float64, strict=True):
        assert np.all(np.isfinite(exact))
        assert_close(ours, exact, IN_FLOAT64[ours.dtype.name])
        # What PyTorch rounds to bfloat16 is no reference; `test_difference_loss_of_low_precision`.
        if same.dtype != jnp.bfloat16:
            assert ours.dtype == same.dtype
            assert_close(ours, same, SAME_DTYPE[same.dtype.name])


def assert_close(got: Any, expected: Any, tolerance: tuple[float, float]) -> None:
    assert got.shape == expected.shape
    relative, absolute = tolerance
    np.testing.assert_allclose(oracles.f64(got), oracles.f64(expected), relative, absolute)


# --- our functions, called as PyTorch's are -------------------------------------------------------


def softmax(x, dim, dtype=None):
    return js.softmax(x if dtype is None else x.astype(jnp.float64), dim)


def log_softmax(x, dim, dtype=None):
    return js.log_softmax(x if dtype is None else x.astype(jnp.float64), dim)


def logsumexp(x, dim, keepdim=False):
    return js.logsumexp(x, dim, keepdims=keepdim)


def cross_entropy(x, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    distributions = target.ndim == x.ndim
    return js.cross_entropy(
        x,
        target,
        axis=0 if x.ndim == 1 else 1,
        class_weights=weight,
        ignore_index=None if distributions else ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def nll_loss(x, target, weight=None, ignore_index=-100, reduction="mean"):
    return js.nll_loss(
        x,
        target,
        axis=0 if x.ndim == 1 else 1,
        class_weights=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def binary_cross_entropy(x, target, weight=None, pos_weight=None, reduction="mean"):
    return js.binary_cross_entropy(
        x,
        target,
        example_weights=weight,
        pos_weight=pos_weight,
        reduction=reduction,
        denominator=x.size if reduction == "mean" else None,
    )


# --- PyTorch's sample inputs ----------------------------------------------------------------------

BOTH = (torch.float32, torch.float64)
LOW_TOO = (*BOTH, torch.bfloat16)


class Operator(NamedTuple):
    """What an entry of PyTorch's is compared with."""

    ours: Callable
    dtypes: tuple[torch.dtype, ...]
    minimum: int  # how many of PyTorch 2.13's samples are compared, in each dtype at least


OPERATORS = {
    ("softmax", ""): Operator(softmax, LOW_TOO, 5),
    ("softmax", "with_dtype"): Operator(softmax, LOW_TOO, 5),
    ("log_softmax", ""): Operator(log_softmax, LOW_TOO, 5),
    ("log_softmax", "with_dtype"): Operator(log_softmax, LOW_TOO, 5),
    ("logsumexp", ""): Operator(logsumexp, BOTH, 12),
    ("nn.functional.cross_entropy", ""): Operator(cross_entropy, BOTH, 21),
    ("nn.functional.nll_loss", ""): Operator(nll_loss, BOTH, 61),
    ("nn.functional.binary_cross_entropy_with_logits", ""): Operator(
        binary_cross_entropy, BOTH, 26
    ),
}
ENTRIES = {
    (entry.name, entry.variant_test_name): entry
    for entry in op_db
    if (entry.name, entry.variant_test_name) in OPERATORS
}
DISTRIBUTIONS = (softmax, log_softmax, logsumexp)


def samples(entry: Any, dtype: torch.dtype) -> list[Case]:
    """PyTorch's sample inputs, the same ones every time."""
    torch.manual_seed(0)
    inputs = entry.sample_inputs("cpu", dtype, requires_grad=True)
    return [Case(((s.input, *s.args), dict(s.kwargs))) for s in inputs]


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_kl_div(dtype, tallies):
    """The arrays of PyTorch's samples as logits, both sides of `F.kl_div` through log_softmax."""
    (entry,) = (e for e in op_db if e.name == "nn.functional.kl_div")
    torch.manual_seed(0)
    inputs = entry.sample_inputs("cpu", dtype, requires_grad=True)
    cases = [
        Case(((s.input, s.args[0].detach().requires_grad_()), {"reduction": reduction}))
        for s in inputs
        if s.input.ndim  # a scalar has no classes
        for reduction in ("none", "mean", "sum")
    ]

    def theirs(x, target, reduction):
        pair = F.log_softmax(x, -1), F.log_softmax(target, -1)
        each = F.kl_div(*pair, reduction="none", log_target=True).sum(-1)
        return {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]

    with jax.enable_x64(dtype == torch.float64):
        wrong = compare(theirs, js.kl_divergence, cases)
    tallies[f"nn.functional.kl_div, {dtype}"] = Tally(len(cases), 0, len(wrong))
    assert not wrong, "\n\n".join(wrong)
    assert len(cases) >= 30


def named_difference(ours: Callable, case: Case) -> str | None:
    """The name under which a sample is a case of its own, told from what goes in."""
    if ours not in DISTRIBUTIONS:
        return None
    return "no_class_axis" if case.call[0][0].ndim == 0 else None


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, id=f"{' '.join(name).strip()}-{dtype}")
        for name, operator in OPERATORS.items()
        for dtype in operator.dtypes
    ],
)
@pytest.mark.usefixtures("x64")
def test_sample_inputs(name, dtype, tallies, record_property):
    ours, _, minimum = OPERATORS[name]
    cases = samples(ENTRIES[name], dtype)
    names = [named_difference(ours, case) for case in cases]
    compared = [case for case, name in zip(cases, names, strict=True) if name is None]
    wrong = compare(ENTRIES[name].op, ours, compared)
    tally = Tally(len(compared), len(cases) - len(compared), len(wrong))
    tallies[f"{' '.join(name).strip()}, {dtype}"] = tally
    record_property("compared", tally.compared)
    assert not wrong, "\n\n".join(wrong)
    assert tally.compared >= minimum
    assert {name for name in names if name} <= set(DIFFERENCES)


# --- every mix of cross entropy's options ---------------------------------------------------------

SHAPES = {"2d": (6, 4), "images": (2, 4, 3, 2), "unbatched": (4,)}
MIXES = [("2d", torch.float64), ("images", torch.float32), ("unbatched", torch.float32)]


def option_cases(shape: tuple[int, ...], soft: bool, dtype: torch.dtype) -> list[Case]:
    """Class weights × ignored label × label smoothing × reduction, for one shape of logits."""
    rng = np.random.default_rng(len(shape))
    axis = min(1, len(shape) - 1)

    def uniform(low, high, shape, requires_grad):
        numbers = torch.tensor(rng.uniform(low, high, shape), dtype=dtype)
        return numbers.requires_grad_(requires_grad)

    def distributions():
        return uniform(-2, 2, shape, False).softmax(axis).requires_grad_()

    def labels(ignored):
        label = np.asarray(rng.integers(0, shape[axis], np.delete(shape, axis)))
        label.flat[-1] = 2
        if ignored is not None:
            label.flat[0] = ignored
        return torch.tensor(label)

    cases = []
    for weighted, ignored, smoothing, reduction in itertools.product(
        (False, True), ((None,) if soft else (None, -100, 1)), (0.0, 0.1), ("none", "sum", "mean")
    ):
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
        if weighted:
            options["weight"] = uniform(0.2, 2, shape[axis], requires_grad=soft)
        if ignored is not None:
            options["ignore_index"] = ignored
        target = distributions() if soft else labels(ignored)
        all_ignored = target.ndim == 0 and ignored is not None
        if not (all_ignored and reduction == "mean"):  # test_difference_all_targets_ignored
            cases.append(Case(((uniform(-5, 5, shape, True), target), options)))
    return cases


@pytest.mark.parametrize("soft", [False, True], ids=["integer", "soft"])
@pytest.mark.parametrize(("shape", "dtype"), MIXES, ids=str)
def test_every_mix_of_options(shape, dtype, soft, tallies, record_property):
    cases = option_cases(SHAPES[shape], soft, dtype)
    with jax.enable_x64(dtype == torch.float64):
        wrong = compare(F.cross_entropy, cross_entropy, cases)
    kind = "soft" if soft else "integer"
    tallies[f"every mix of options, {shape}, {kind}, {dtype}"] = Tally(len(cases), 0, len(wrong))
    record_property("compared", len(cases))
    assert not wrong, "\n\n".join(wrong)
    assert len(cases) == (12 if soft else 28 if shape == "unbatched" else 36)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("soft", [False, True], ids=["integer", "soft"])
def test_second_derivatives(soft):
    """Products with the Hessian, for every mix of options under the mean."""
    cases = option_cases(SHAPES["2d"], soft, torch.float64)
    cases = [case for case in cases if case.call[1]["reduction"] == "mean"]
    directions = np.random.default_rng(0).normal(size=(len(cases), *SHAPES["2d"]))

    def by_torch(case, direction):
        (x, target), options = case.call
        loss = F.cross_entropy(x, target, **options)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return to_numpy(torch.autograd.grad(gradient, x, torch.tensor(direction))[0])

    def by_us(case, direction):
        arrays = [to_numpy(leaf) if is_tensor(leaf) else leaf for leaf in case.leaves]
        (x, target), options = case.replace(arrays).call
        gradient = jax.grad(lambda x: cross_entropy(x, target, **options))
        return jax.jvp(gradient, (jnp.asarray(x),), (direction,))[1]

    @compiled
    def all_of_ours(directions):
        return [by_us(*each) for each in zip(cases, directions, strict=True)]

    assert len(cases) == (4 if soft else 12)
    for case, direction, got in zip(cases, directions, all_of_ours(directions), strict=True):
        expected = by_torch(case, direction)
        np.testing.assert_allclose(got, expected, 1e-12, 1e-12, err_msg=str(case))


# --- gradients that PyTorch does not have ---------------------------------------------------------

LABELS = np.array([0, 2, 1, 2])
SCORES = np.random.default_rng(1).uniform(-3, 3, (4, 3))
PROBABILITIES = np.random.default_rng(2).uniform(0, 1, (4, 3))
SMOOTHED = {"label_smoothing": 0.2}
BINARY = F.binary_cross_entropy_with_logits
WEIGHTS_OF = {
    "cross_entropy": (F.cross_entropy, cross_entropy, LABELS, {}, "weight", (3,)),
    "smoothed": (F.cross_entropy, cross_entropy, LABELS, SMOOTHED, "weight", (3,)),
    "nll_loss": (F.nll_loss, nll_loss, LABELS, {}, "weight", (3,)),
    "binary": (BINARY, binary_cross_entropy, PROBABILITIES, {}, "weight", (4, 3)),
    "binary, positive": (BINARY, binary_cross_entropy, PROBABILITIES, {}, "pos_weight", (3,)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("which", WEIGHTS_OF)
def test_gradients_of_weights_by_differences_of_pytorchs_values(which):
    theirs, ours, target, options, keyword, shape = WEIGHTS_OF[which]
    weights = np.random.default_rng(3).uniform(0.5, 2, shape)

    def value(weights, reduction):
        their_options = {keyword: torch.tensor(weights), "reduction": reduction, **options}
        return theirs(torch.tensor(SCORES), torch.tensor(target), **their_options)

    @compiled
    def gradients(weights):
        def loss(weights, reduction):
            return ours(SCORES, target, **{keyword: weights}, reduction=reduction, **options)

        return [jax.grad(loss)(weights, reduction) for reduction in ("sum", "mean")]

    for reduction, got in zip(("sum", "mean"), gradients(weights), strict=True):
        by_differences = functools.partial(value, reduction=reduction)
        expected = oracles.numerical_gradient(by_differences, weights)
        np.testing.assert_allclose(got, expected, 1e-8, 1e-9)


# --- where we differ on purpose -------------------------------------------------------------------


def torchs(function: Callable, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's value and the gradient of its sum, in float32."""
    x = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    output = function(x)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    return to_numpy(output), to_numpy(gradient)


def ours(function: Callable, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Our value and the gradient of its sum, in float32."""

    @compiled
    def value_and_gradient(x):
        output, pull_back = jax.vjp(function, x)
        return output, *pull_back(jnp.ones_like(output))

    return jax.device_get(value_and_gradient(np.asarray(x, np.float32)))


def assert_zero_with_gradient_zero(value: np.ndarray, gradient: np.ndarray) -> None:
    assert value.item() == 0
    assert not gradient.any()


def assert_results(got: tuple[Any, Any], value: Any, gradient: Any) -> None:
    np.testing.assert_allclose(got[0], value, 1e-6, 0)
    np.testing.assert_allclose(got[1], gradient, 1e-6, 1e-7)


def index(*labels: int) -> tuple[torch.Tensor, np.ndarray]:
    return torch.tensor(labels), np.array(labels)


ABSENT = [[1.0, 2.0, -INF]]  # a row whose last class does not exist
P = oracles.softmax(ABSENT[0])


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_difference_has_its_test(name):
    assert f"test_difference_{name}" in globals()


def test_difference_all_targets_ignored():
    theirs, labels = index(-100, -100)
    x = np.ones((2, 3))
    assert np.isnan(torchs(lambda x: F.cross_entropy(x, theirs), x)[0])
    assert np.isnan(torchs(lambda x: F.nll_loss(x, theirs), x)[0])
    for function in (cross_entropy, nll_loss):
        assert_zero_with_gradient_zero(*ours(lambda x, f=function: f(x, labels), x))


def test_difference_no_examples():
    x = np.ones((0, 3))
    assert np.isnan(torchs(lambda x: F.cross_entropy(x, torch.zeros(0, dtype=torch.long)), x)[0])
    assert np.isnan(torchs(lambda x: F.binary_cross_entropy_with_logits(x, torch.ones(0, 3)), x)[0])
    assert js.cross_entropy(jnp.asarray(x, jnp.float32), np.zeros(0, np.int32)) == 0
    assert js.binary_cross_entropy(jnp.asarray(x, jnp.float32), x) == 0


def test_difference_class_weights_of_sum_zero():
    theirs, labels = index(0, 1)
    x, w = np.ones((2, 3)), np.array([0, 0, 1], np.float32)
    assert np.isnan(torchs(lambda x: F.cross_entropy(x, theirs, torch.tensor(w)), x)[0])
    assert_zero_with_gradient_zero(*ours(lambda x: cross_entropy(x, labels, w), x))


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_difference_ignored_example_without_numbers(broken):
    theirs, labels = index(0, -100)
    x = [[1.0, 2.0, 3.0], [broken] * 3]
    value, gradient = torchs(lambda x: F.cross_entropy(x, theirs), x)
    assert np.isfinite(value)
    assert np.all(np.isnan(gradient[1]))
    expected = np.zeros((2, 3))
    expected[0] = oracles.cross_entropy_gradient(x[0], 0)
    assert_results(ours(lambda x: cross_entropy(x, labels), x), value, expected)


def test_difference_soft_labels_beside_an_absent_class():
    y = np.array([[0.25, 0.75, 0.0]], np.float32)
    assert np.isnan(torchs(lambda x: F.cross_entropy(x, torch.tensor(y)), ABSENT)[0])
    value = -0.25 * np.log(P[0]) - 0.75 * np.log(P[1])
    assert_results(ours(lambda x: cross_entropy(x, y), ABSENT), value, [P - y[0]])


def test_difference_smoothing_beside_an_absent_class():
    theirs, labels = index(0)
    assert torchs(lambda x: F.cross_entropy(x, theirs, label_smoothing=0.1), ABSENT)[0] == INF
    # ε/C over the two classes that exist: the target is (0.95, 0.05, 0).
    value = -0.95 * np.log(P[0]) - 0.05 * np.log(P[1])
    gradient = [P - [0.95, 0.05, 0.0]]
    got = ours(lambda x: cross_entropy(x, labels, label_smoothing=0.1), ABSENT)
    assert_results(got, value, gradient)


def test_difference_label_on_an_absent_class():
    theirs, labels = index(2)
    value, gradient = torchs(lambda x: F.cross_entropy(x, theirs), ABSENT)
    assert value == INF
    np.testing.assert_allclose(gradient, [P - [0, 0, 1]], 1e-6)
    assert_results(ours(lambda x: cross_entropy(x, labels), ABSENT), INF, [P])


def test_difference_confident_prediction():
    theirs, labels = index(0)
    x = [[20.0, 0.0, 0.0]]
    value, gradient = torchs(lambda x: F.cross_entropy(x, theirs), x)
    assert value == gradient[0, 0] == 0
    value, gradient = ours(lambda x: cross_entropy(x, labels), x)
    np.testing.assert_allclose(value, np.log1p(2 * np.exp(-20.0)), 1e-6)
    np.testing.assert_allclose(gradient, [oracles.cross_entropy_gradient(x[0], 0)], 1e-6)

    one = np.ones(1, np.float32)
    gradient = torchs(lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(one)), [30.0])[1]
    assert gradient == 0
    gradient = ours(lambda x: binary_cross_entropy(x, one), [30.0])[1]
    np.testing.assert_allclose(gradient, [-1 / (1 + np.exp(30.0))], 1e-6)


def test_difference_confident_logsumexp():
    assert torchs(lambda x: torch.logsumexp(x, 0), [0.0, -40.0])[0] == 0
    np.testing.assert_allclose(ours(js.logsumexp, [0.0, -40.0])[0], np.exp(-40.0), 1e-6)


def test_difference_no_logit_left():
    x = [-INF, -INF]
    assert np.all(np.isnan(torchs(lambda x: torch.softmax(x, 0), x)))
    assert np.all(np.isnan(torchs(lambda x: torch.log_softmax(x, 0), x)))
    assert not np.any(ours(js.softmax, x))
    np.testing.assert_array_equal(ours(js.log_softmax, x), [x, [0, 0]])


def test_difference_infinite_logit():
    x = [0.0, INF, 1.0]
    assert np.all(np.isnan(torchs(lambda x: torch.softmax(x, 0), x)))
    np.testing.assert_array_equal(ours(js.softmax, x), [[0, 1, 0], [0, 0, 0]])

    theirs, labels = index(1)
    assert np.isnan(torchs(lambda x: F.cross_entropy(x, theirs), [x])[0])
    assert_zero_with_gradient_zero(*ours(lambda x: cross_entropy(x, labels), [x]))

    one = np.ones(1, np.float32)
    value = torchs(lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(one)), [INF])[0]
    assert np.isnan(value)
    assert_zero_with_gradient_zero(*ours(lambda x: binary_cross_entropy(x, one), [INF]))


@pytest.mark.parametrize("label", [3, -1])
def test_difference_label_outside_the_classes(label):
    theirs, labels = index(0, label)
    x = np.zeros((2, 3))
    with pytest.raises(IndexError, match="out of bounds"):
        torchs(lambda x: F.cross_entropy(x, theirs), x)
    losses = ours(lambda x: cross_entropy(x, labels, reduction="none"), x)[0]
    np.testing.assert_allclose(losses, [np.log(3), NAN], 1e-6)


def test_difference_binary_label_outside_0_1():
    x, y = [1.0, 1.0], np.array([2, 1], np.float32)
    theirs = torchs(
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(y), reduction="none"), x
    )[0]
    np.testing.assert_allclose(theirs, oracles.softplus(1.0) - y, 1e-6)
    got = ours(lambda x: binary_cross_entropy(x, y, reduction="none"), x)[0]
    np.testing.assert_allclose(got, [NAN, oracles.softplus(-1.0)], 1e-6)


def test_difference_binary_weighted_mean():
    x, y, w = [0.5, -1.0, 2.0], np.array([1, 0, 0], np.float32), np.array([2, 0.5, 0], np.float32)
    losses = w * np.where(y == 1, oracles.softplus(-oracles.f64(x)), oracles.softplus(x))
    theirs = F.binary_cross_entropy_with_logits(*map(torch.tensor, (x, y, w)))
    np.testing.assert_allclose(theirs, losses.sum() / 3, 1e-6)
    got = ours(lambda x: js.binary_cross_entropy(x, y, example_weights=w), x)[0]
    np.testing.assert_allclose(got, losses.sum() / w.sum(), 1e-6)


def test_difference_loss_of_low_precision():
    theirs, labels = index(2)
    x = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.bfloat16)
    exact = oracles.cross_entropy(to_numpy(x), labels)
    loss = F.cross_entropy(x, theirs)
    assert loss.dtype == torch.logsumexp(x, 1).dtype == torch.bfloat16
    assert abs(loss.item() - exact) > 1e-3
    got = cross_entropy(to_numpy(x), labels)
    assert got.dtype == js.logsumexp(to_numpy(x)).dtype == jnp.float32
    np.testing.assert_allclose(got, exact, 1e-6)


def test_difference_one_hot_integers():
    x, y = np.zeros((1, 3)), np.array([[0, 1, 0]])
    with pytest.raises(RuntimeError, match="Expected floating point type"):
        torchs(lambda x: F.cross_entropy(x, torch.tensor(y)), x)
    np.testing.assert_allclose(ours(lambda x: cross_entropy(x, y), x)[0], np.log(3), 1e-6)


def test_difference_ignore_index_with_soft_labels():
    x, y = np.zeros((1, 3)), np.array([[0, 1, 0]], np.float32)
    value = torchs(lambda x: F.cross_entropy(x, torch.tensor(y), ignore_index=-1), x)[0]
    np.testing.assert_allclose(value, np.log(3), 1e-6)
    with pytest.raises(ValueError, match="ignore_index is for integer labels"):
        js.cross_entropy(y, y, ignore_index=-1)


def test_smoothing_of_one():
    theirs, labels = index(0)
    x = [[1.0, 2.0, 4.0]]
    value = torchs(lambda x: F.cross_entropy(x, theirs, label_smoothing=1.0), x)[0]
    np.testing.assert_allclose(value, -oracles.log_softmax(x).mean(), 1e-6)
    found = ours(lambda x: cross_entropy(x, labels, label_smoothing=1.0), x)
    np.testing.assert_allclose(found[0], value, 1e-6)


def test_difference_integer_logits():
    """On all samples of logsumexp in dtypes that are not real floating point."""
    entry = ENTRIES["logsumexp", ""]
    dtypes = [dtype for dtype in entry.dtypes if not dtype.is_floating_point]
    count = 0
    for dtype in dtypes:
        for sample in entry.sample_inputs("cpu", dtype):
            theirs = entry.op(sample.input, *sample.args)
            assert theirs.is_floating_point() or theirs.is_complex()
            with pytest.raises(TypeError, match="logits must be a floating point array"):
                logsumexp(to_numpy(sample.input), *sample.args)
            count += 1
    assert count >= 50


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_difference_no_class_axis(name):
    expected = {"softmax": 1, "log_softmax": 0, "logsumexp": 7}[name]
    assert torchs(lambda x: getattr(torch, name)(x, 0), 7.0)[0] == expected
    with pytest.raises(ValueError, match="axis 0 is out of range"):
        ours(lambda x: getattr(js, name)(x, 0), 7.0)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_no_class(name):
    x = np.zeros((2, 0))
    expected = np.full(2, -INF) if name == "logsumexp" else x
    np.testing.assert_array_equal(torchs(lambda x: getattr(torch, name)(x, 1), x)[0], expected)
    np.testing.assert_array_equal(getattr(js, name)(jnp.asarray(x, jnp.float32), 1), expected)
