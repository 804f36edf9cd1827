"""Is this installation right, on the devices that JAX sees? Float64 NumPy oracles and a table.

Every loss and gradient is computed on every device, in each dtype, and compared with the chapter's
formulas in NumPy float64 at the very numbers that the device was given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import distributions, losses
from jaxsoftmax._precision import accumulator
from jaxsoftmax.linear import linear_cross_entropy

ROWS, CLASSES, SEED = 64, 300, 0
FEATURES = 384  # of the linear loss: as many as the kernels for accelerators ask for
DTYPES = ("float32", "bfloat16", "float16", "float64")

# What may be lost, in epsilons of the dtype of the result: the differences of logits round (at a
# margin of 30 by 8 epsilons of the result), the device's exp and the sum over 300 classes as well,
# and for float64 the oracle's own.
_EPSILONS = 32.0

_Numbers = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Check:
    """A function of logits, and what it and its gradient should be, in float64."""

    name: str
    function: Callable[..., Array]  # (logits, labels) -> array or scalar
    value: Callable[[_Numbers, _Numbers], _Numbers]
    # What a cotangent of the value is pulled back to.
    gradient: Callable[[_Numbers, _Numbers, _Numbers], _Numbers]  # (logits, labels, cotangent)
    rounds_to_input: bool = False  # the value comes back in the input's dtype


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    device: str
    dtype: str
    name: str
    value_error: float
    gradient_error: float
    allowed_value: float
    allowed_gradient: float

    @property
    def passed(self) -> bool:
        """Both errors are within what rounding explains (a NaN is not)."""
        return (
            self.value_error <= self.allowed_value and self.gradient_error <= self.allowed_gradient
        )


# --- the chapter, in float64 ----------------------------------------------------------------------


def _p(x: _Numbers) -> _Numbers:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _lse(x: _Numbers) -> _Numbers:
    m = x.max(-1, keepdims=True)
    return (m + np.log(np.exp(x - m).sum(-1, keepdims=True)))[..., 0]


def _one_hot(x: _Numbers, y: _Numbers) -> _Numbers:
    return np.eye(x.shape[-1])[y]


def _nll(x: _Numbers, y: _Numbers) -> _Numbers:
    """log(1 + Σ_{j≠y} exp(x_j − x_y)): right for confident rows in float64, too."""
    gaps = np.where(_one_hot(x, y) == 1.0, -np.inf, x - np.take_along_axis(x, y[:, None], -1))
    top = np.maximum(gaps.max(-1), 0.0)
    rest = np.exp(gaps - top[:, None]).sum(-1)
    return np.where(top == 0.0, np.log1p(rest), top + np.log(np.exp(-top) + rest))


def _residual(x: _Numbers, y: _Numbers, cotangent: _Numbers) -> _Numbers:
    """softmax − y, whose entry at the label is −Σ_{j≠y} p_j."""
    p = np.where(_one_hot(x, y) == 1.0, 0.0, _p(x))
    return cotangent[:, None] * (p - _one_hot(x, y) * p.sum(-1, keepdims=True))


def _sigmoid(x: _Numbers) -> _Numbers:
    return np.exp(-np.logaddexp(0.0, -x))


def _checks(platform: str, dtype: str) -> Iterator[Check]:
    yield Check(
        "softmax",
        lambda x, y: distributions.softmax(x),
        lambda x, y: _p(x),
        # p_i (c_i − Σ_j p_j c_j), by differences: at a confident p_i the two cancel.
        lambda x, y, c: _p(x) * np.einsum("rj,rij->ri", _p(x), c[:, :, None] - c[:, None, :]),
        rounds_to_input=True,
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
    none = partial(losses.cross_entropy, reduction="none")
    yield Check("cross_entropy, classes", none, _nll, _residual)
    yield Check(
        "cross_entropy, distributions",
        lambda x, y: none(x, jax.nn.one_hot(y, CLASSES, dtype=jnp.float32)),
        _nll,
        _residual,
    )
    yield Check(
        "cross_entropy, smoothed",
        partial(none, label_smoothing=0.1),
        lambda x, y: 0.9 * _nll(x, y) + 0.1 * (_lse(x) - x.mean(-1)),
        lambda x, y, c: c[:, None] * (_p(x) - 0.9 * _one_hot(x, y) - 0.1 / CLASSES),
    )
    yield Check("nll_loss of log_softmax", _nll_of_log_softmax, _nll, _residual)
    yield Check(
        "binary_cross_entropy",
        lambda x, y: losses.binary_cross_entropy(x, _binary(x, y), reduction="none"),
        lambda x, y: np.logaddexp(0.0, np.where(y[:, None] % 2 == 1, -x, x)),
        lambda x, y, c: c * np.where(y[:, None] % 2 == 1, -_sigmoid(-x), _sigmoid(x)),
    )

    yield from _linear_checks(platform, dtype)


def _linear_checks(platform: str, dtype: str) -> Iterator[Check]:
    """Each implementation, and both rules of the fused one: of rows, and of their sum."""
    implementations = ["reference", "chunked"]
    if platform == "tpu" and dtype in ("float32", "bfloat16"):
        implementations.append("mosaic_tpu")
    for name in implementations:
        rows = partial(_linear, implementation=name, reduction="none")
        yield Check(f"linear loss, {name}", rows, _nll, _residual)
    yield Check(
        "linear loss, summed",
        partial(_linear, reduction="sum"),
        lambda x, y: _nll(x, y).sum(),
        lambda x, y, c: c * _residual(x, y, np.ones(len(x))),
    )


def _linear(x: Array, y: Array, **options: str) -> Array:
    """The identity for a kernel: the logits are the hidden states, in any dtype, exactly."""
    hidden = jnp.pad(x, [(0, 0), (0, FEATURES - CLASSES)])
    kernel = jnp.eye(FEATURES, CLASSES, dtype=x.dtype)
    return linear_cross_entropy(hidden, kernel, y, **options)  # type: ignore[arg-type]


def _nll_of_log_softmax(x: Array, y: Array) -> Array:
    log_probs = distributions.log_softmax(x.astype(accumulator(x.dtype)))
    return losses.nll_loss(log_probs, y, reduction="none")


def _binary(x: Array, y: Array) -> Array:
    return jnp.broadcast_to(y[:, None] % 2, x.shape)


# --- running them ---------------------------------------------------------------------------------


def run() -> Iterator[Outcome]:
    """Every check on every device that JAX sees, in every dtype."""
    for device in jax.devices():
        for dtype in DTYPES:
            if dtype == "float64" and device.platform == "tpu":
                continue  # emulated there, and not a dtype that anyone trains in
            with jax.enable_x64(dtype == "float64"), jax.default_device(device):
                yield from (
                    _run_one(check, device, jnp.dtype(dtype))
                    for check in _checks(device.platform, dtype)
                )


def _run_one(check: Check, device: jax.Device, dtype: jnp.dtype) -> Outcome:
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, CLASSES, ROWS)
    numbers = 3.0 * rng.standard_normal((ROWS, CLASSES))
    numbers[np.arange(ROWS // 4), labels[: ROWS // 4]] += 30.0  # a quarter of the rows is confident
    x = jnp.asarray(numbers, dtype)
    exact = np.asarray(x, np.float64)
    y = jnp.asarray(labels, jnp.int32)
    found = jax.eval_shape(check.function, x, y)
    weights = rng.uniform(0.5, 1.5, found.shape)
    if check.rounds_to_input:  # softmax and its logarithm: the label alone, so that nothing cancels
        weights *= _one_hot(numbers, labels)
    cotangent = jnp.asarray(weights, found.dtype)

    @jax.jit
    def value_and_pullback(x: Array, cotangent: Array) -> tuple[Array, Array]:
        value, pull = jax.vjp(lambda x: check.function(x, y), x)
        return value, pull(cotangent)[0]

    value, gradient = value_and_pullback(x, cotangent)
    slope = check.gradient(exact, labels, np.asarray(cotangent, np.float64))
    input_eps = float(jnp.finfo(dtype).eps)
    own_eps = float(jnp.finfo(accumulator(dtype)).eps)
    return Outcome(
        device=str(device),
        dtype=dtype.name,
        name=check.name,
        value_error=_distance(value, check.value(exact, labels)),
        gradient_error=_distance(gradient, slope),
        allowed_value=_EPSILONS * (input_eps if check.rounds_to_input else own_eps),
        allowed_gradient=_EPSILONS * input_eps,
    )


def _distance(got: Array, expected: _Numbers) -> float:
    """Largest error of an entry, relative to the largest entry of its row.

    Row by row, so that a confident row's tiny loss and gradient are held to their own size.
    """
    numbers = np.asarray(got, np.float64)
    if numbers.shape != expected.shape or not np.isfinite(numbers).all():
        return float("nan")
    size = np.abs(expected)
    if expected.ndim == 2:
        size = size.max(-1, keepdims=True)
    # Below its smallest number a dtype has only 0 (float16 ends at 6e-8).
    error = np.maximum(np.abs(numbers - expected) - float(jnp.finfo(got.dtype).tiny), 0.0)
    return float((error / np.maximum(size, np.finfo(np.float64).tiny)).max())
