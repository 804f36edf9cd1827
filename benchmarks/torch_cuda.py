"""Fused losses for PyTorch on CUDA; each library is imported by the function that calls it.

Weights are [V, D]. If a library has changed its signature, the row fails with its message.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


@cache
def _compiled(name: str) -> Callable[..., Tensor]:
    functions: dict[str, Callable[..., Tensor]] = {
        "logits": F.cross_entropy,
        "linear": lambda hidden, weight, labels: F.cross_entropy(hidden @ weight.T, labels),
    }
    return torch.compile(functions[name])


def _liger_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerCrossEntropyLoss

    # It overwrites the logits with their gradient.
    return LigerCrossEntropyLoss()(logits.clone(), labels)


def _liger_linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(weight, hidden, labels)


def _cut_linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, labels)


def _quack_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from quack.cross_entropy import cross_entropy

    return cross_entropy(logits, labels, reduction="mean")


def _quack_linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(hidden, weight, labels, reduction="mean")


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "compiled_cross_entropy": lambda logits, labels: _compiled("logits")(logits, labels),
    "compiled_linear_cross_entropy": lambda *arrays: _compiled("linear")(*arrays),
    "liger_cross_entropy": _liger_cross_entropy,
    "liger_linear_cross_entropy": _liger_linear_cross_entropy,
    "cut_linear_cross_entropy": _cut_linear_cross_entropy,
    "quack_cross_entropy": _quack_cross_entropy,
    "quack_linear_cross_entropy": _quack_linear_cross_entropy,
}
