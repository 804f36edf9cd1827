"""Is this installation right, on the devices that JAX sees? Float64 NumPy references and a table.

Every loss and gradient is computed on every device, in each dtype, and compared with the chapter's
formulas in NumPy float64 at the very numbers that the device was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import DTypeLike

from jaxsoftmax import binary, distributions, losses
from jaxsoftmax._options import Implementation, LinearKeywords, Reduction
from jaxsoftmax._xla.dtypes import accumulator, is_narrow
from jaxsoftmax.linear import linear_cross_entropy

ROWS, CLASSES, FEATURES, SEED = 64, 300, 384, 0
DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float64")

# What rounding may take, in epsilons of the result's dtype: of the differences of logits (8 at a
# margin of 30), the device's exp, the sum over 300 classes, and for float64 of the reference.
_EPSILONS = 32.0

_Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
_Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Check(NamedTuple):
    """A function of logits and labels, and what it and its gradient should be, in float64."""

    name: str
    function: Callable[[Array, Array], Array]
    value: Callable[[_Numbers, _Indices], _Numbers]
    gradient: Callable[[_Numbers, _Indices, _Numbers], _Numbers]  # the third is the cotangent
    rounds_to_input: bool = False  # the value comes back in the input's dtype
    cancels: bool = False  # the gradient is a difference of numbers as large as the cotangent


# JAX's debugging modes, none of which should find anything; and whether jit is off.
MODES = {"debug_nans": False, "debug_nans, no jit": True}
MODES_OF = ("cross_entropy, smoothed", "log_softmax", "linear loss, summed")


class Outcome(NamedTuple):
    """One line of the table: the errors of the value and of the gradient."""

    device: str
    dtype: str
    name: str
    errors: tuple[float, float]
    allowed: tuple[float, float]  # what rounding explains; a NaN is beyond it

    @property
    def passed(self) -> bool:
        """Whether both errors are within it."""
        return all(e <= a for e, a in zip(self.errors, self.allowed, strict=True))


# --- the chapter, in float64 ----------------------------------------------------------------------


def _p(x: _Numbers) -> _Numbers:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _lse(x: _Numbers) -> _Numbers:
    m = x.max(-1, keepdims=True)
    return (m + np.log(np.exp(x - m).sum(-1, keepdims=True)))[..., 0]


def _one_hot(y: _Indices) -> _Numbers:
    return np.eye(CLASSES)[y]


def _nll(x: _Numbers, y: _Indices) -> _Numbers:
    """log(1 + Σ_{j≠y} exp(x_j − x_y)): right for confident rows in float64, too."""
    gaps = np.where(_one_hot(y) == 1.0, -np.inf, x - np.take_along_axis(x, y[:, None], -1))
    top = np.maximum(gaps.max(-1), 0.0)
    rest = np.exp(gaps - top[:, None]).sum(-1)
    return np.where(top == 0.0, np.log1p(rest), top + np.log(np.exp(-top) + rest))


def _residual(x: _Numbers, y: _Indices, cotangent: _Numbers) -> _Numbers:
    """softmax − y, whose entry at the label is −Σ_{j≠y} p_j."""
    p = np.where(_one_hot(y) == 1.0, 0.0, _p(x))
    return cotangent[:, None] * (p - _one_hot(y) * p.sum(-1, keepdims=True))


def _sigmoid(x: _Numbers) -> _Numbers:
    return np.exp(-np.logaddexp(0.0, -x))


def _checks() -> Iterator[Check]:
    yield Check(
        "softmax",
        lambda x, y: distributions.softmax(x),
        lambda x, y: _p(x),
        lambda x, y, c: _p(x) * (c - (_p(x) * c).sum(-1, keepdims=True)),
        rounds_to_input=True,
        cancels=True,
    )
    yield Check(
        "log_softmax",
        lambda x, y: distributions.log_softmax(x),
        lambda x, y: x - _lse(x)[:, None],
        lambda x, y, c: -_residual(x, y, c.sum(-1)),  # c is 0 but at the label
        rounds_to_input=True,
    )
    yield Check(
        "logsumexp",
        lambda x, y: distributions.logsumexp(x),
        lambda x, y: _lse(x),
        lambda x, y, c: c[:, None] * _p(x),
    )
    yield Check("cross_entropy, classes", _cross_entropy, _nll, _residual)
    yield Check("cross_entropy, soft labels", _of_one_hot, _nll, _residual)
    yield Check(
        "cross_entropy, smoothed",
        partial(_cross_entropy, label_smoothing=0.1),
        lambda x, y: 0.9 * _nll(x, y) + 0.1 * (_lse(x) - x.mean(-1)),
        lambda x, y, c: c[:, None] * (_p(x) - 0.9 * _one_hot(y) - 0.1 / CLASSES),
    )
    yield Check("nll_loss of log_softmax", _nll_of_log_softmax, _nll, _residual)
    yield Check(
        "binary_cross_entropy",
        lambda x, y: binary.binary_cross_entropy(x, _binary(x, y), reduction="none"),
        lambda x, y: np.logaddexp(0.0, np.where(y[:, None] % 2 == 1, -x, x)),
        lambda x, y, c: c * np.where(y[:, None] % 2 == 1, -_sigmoid(-x), _sigmoid(x)),
    )
    # Each implementation, and both rules of the fused one: of rows, and of their sum.
    yield Check("linear loss, reference", partial(_linear, "reference", "none"), _nll, _residual)
    yield Check("linear loss, chunked", partial(_linear, "chunked", "none"), _nll, _residual)
    yield Check(
        "linear loss, summed",
        partial(_linear, "auto", "sum"),
        lambda x, y: np.asarray(_nll(x, y).sum()),
        lambda x, y, c: c * _residual(x, y, np.ones(len(x))),
    )


def _cross_entropy(x: Array, y: Array, label_smoothing: float = 0.0) -> Array:
    return losses.cross_entropy(x, y, reduction="none", label_smoothing=label_smoothing)


def _of_one_hot(x: Array, y: Array) -> Array:
    return _cross_entropy(x, jax.nn.one_hot(y, CLASSES, dtype=jnp.float32))


def _linear(implementation: Implementation, reduction: Reduction, x: Array, y: Array) -> Array:
    """The identity for a kernel: the logits are the hidden states, in any dtype, exactly."""
    hidden = jnp.pad(x, [(0, 0), (0, FEATURES - CLASSES)])
    kernel = jnp.eye(FEATURES, CLASSES, dtype=x.dtype)
    named: LinearKeywords = {"implementation": implementation, "reduction": reduction}
    return linear_cross_entropy(hidden, kernel, y, **named)


def _nll_of_log_softmax(x: Array, y: Array) -> Array:
    log_probs = distributions.log_softmax(x.astype(accumulator(x.dtype)))
    return losses.nll_loss(log_probs, y, reduction="none")


def _binary(x: Array, y: Array) -> Array:
    return jnp.broadcast_to(y[:, None] % 2, x.shape)


# --- running them ---------------------------------------------------------------------------------


def run(dtypes: tuple[str, ...] = DTYPES) -> Iterator[Outcome]:
    """Every check on every device that JAX sees, in each of these dtypes."""
    for device in jax.devices():
        for dtype in dtypes:
            if dtype == "float64" and device.platform == "tpu":
                continue  # emulated there, and not a dtype that anyone trains in
            with jax.enable_x64(dtype == "float64"), jax.default_device(device):
                yield from (_run_one(check, device, dtype) for check in _checks())
        for mode in MODES if "float32" in dtypes else ():
            with jax.default_device(device):
                some = (check for check in _checks() if check.name in MODES_OF)
                yield from (_run_in_mode(check, device, mode) for check in some)


def _run_in_mode(check: Check, device: jax.Device, mode: str) -> Outcome:
    """The check in float32; an alarm of the mode is a failure."""
    named = check._replace(name=f"{check.name}; {mode}")
    try:
        with jax.debug_nans(True), jax.disable_jit(MODES[mode]):
            return _run_one(named, device, "float32")
    except FloatingPointError:
        nan = float("nan")
        return Outcome(str(device), "float32", named.name, (nan, nan), (0.0, 0.0))


def _run_one(check: Check, device: jax.Device, dtype: str) -> Outcome:
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, CLASSES, ROWS)
    numbers = 3.0 * rng.standard_normal((ROWS, CLASSES))
    numbers[np.arange(ROWS // 4), labels[: ROWS // 4]] += 30.0  # a quarter of the rows is confident
    x, y = jnp.asarray(numbers, dtype), jnp.asarray(labels, jnp.int32)
    exact = np.asarray(x, np.float64)
    found = jax.eval_shape(check.function, x, y)
    weights = rng.uniform(0.5, 1.5, found.shape)
    if check.rounds_to_input:  # softmax and its logarithm: the label alone, so that nothing cancels
        weights *= _one_hot(labels)
    cotangent = jnp.asarray(weights, found.dtype)

    @jax.jit
    def value_and_pullback(x: Array, cotangent: Array) -> tuple[Array, Array]:
        value, pull = jax.vjp(lambda x: check.function(x, y), x)
        return value, pull(cotangent)[0]

    value, gradient = value_and_pullback(x, cotangent)
    expected = check.value(exact, labels)
    slope = check.gradient(exact, labels, np.asarray(cotangent, np.float64))
    scale = np.asarray(cotangent, np.float64) if check.cancels else slope
    errors = (_distance(value, expected, expected), _distance(gradient, slope, scale))
    own_dtype = dtype if check.rounds_to_input else accumulator(dtype)
    return Outcome(str(device), dtype, check.name, errors, (_allowed(own_dtype), _allowed(dtype)))


def _allowed(dtype: DTypeLike) -> float:
    # Of 8 bits the epsilon is larger than all else.
    return (1.0 if is_narrow(dtype) else _EPSILONS) * float(jnp.finfo(dtype).eps)


def _distance(got: Array, expected: _Numbers, scale: _Numbers) -> float:
    """Largest error of an entry, relative to the largest entry of the scale's row.

    Row by row, so that a confident row's tiny loss and gradient are held to their own size.
    """
    numbers = np.asarray(got, np.float64)
    if numbers.shape != expected.shape or not np.isfinite(numbers).all():
        return float("nan")
    size = np.abs(scale)
    if size.ndim == 2:
        size = size.max(-1, keepdims=True)
    # Below its smallest number a dtype has only 0 (float16 ends at 6e-8).
    error = np.maximum(np.abs(numbers - expected) - float(jnp.finfo(got.dtype).tiny), 0.0)
    return float(np.max(error / np.maximum(size, np.finfo(np.float64).tiny)))
