"""The least work of a case, in bytes and operations, and the time the device needs for it."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from benchmarks.cases import LINEAR, Case
from benchmarks.limits import Limits

# A matrix product of [N, D] and [D, V] is N·D·V multiplications and as many additions.
_FLOPS_OF_PRODUCT = 2
# One for the logits, and one for each of the two gradients.
_PRODUCTS = {"forward": 1, "value_and_grads": 3}


class Work(NamedTuple):
    """Each input read once, each result written once: a lower bound for every implementation."""

    read_bytes: int
    written_bytes: int
    flops: int  # of matrix products


def of(case: Case) -> Work:
    """The least work of a case."""
    width = jnp.dtype(case.dtype).itemsize
    if case.operation in LINEAR:
        tokens, features, classes = case.shape
        arrays = (tokens + classes) * features * width
        products = _PRODUCTS[case.direction]
        flops = products * _FLOPS_OF_PRODUCT * tokens * features * classes
        return Work(arrays, arrays if products > 1 else 0, flops)
    whole = math.prod(case.shape) * width
    rows = math.prod(case.shape[:-1]) * width
    if case.operation == "kl_divergence":
        return Work(2 * whole, rows if case.direction == "forward" else whole, 0)
    if case.direction == "forward":
        writes = case.operation in ("softmax", "log_softmax")
        return Work(whole, whole if writes else rows, 0)
    reads_two = case.operation in ("softmax", "log_softmax")  # the logits and the cotangent
    return Work(2 * whole if reads_two else whole, whole, 0)


def limit(case: Case, limits: Limits) -> tuple[str, float]:
    """The resource that limits a case, and the seconds that the case needs of it."""
    least = of(case)
    # Written bytes count as copied, and the reads in excess of them as reads.
    copied = min(least.read_bytes, least.written_bytes)
    memory = 2 * copied / limits.copy_bytes_per_s
    memory += (least.read_bytes - copied) / limits.read_bytes_per_s
    products = least.flops / limits.matmul_flops_per_s[case.dtype]
    return ("matmul", products) if products > memory else ("memory", memory)
