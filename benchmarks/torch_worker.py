"""PyTorch's part of the benchmarks, eager, on the CPU; only ever imported in a worker's process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import workers

_OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "example_losses": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
}

# As many threads as XLA takes: one for each processor that this process may use.
torch.set_num_threads(workers.processors())


def prepare(
    operation: str, direction: str, arrays: Sequence[Any]
) -> tuple[Callable[[], list[torch.Tensor]], Callable[[list[torch.Tensor]], list[Any]]]:
    """The computation as a function without arguments, and the way back to NumPy."""
    function = _OPERATIONS[operation]
    logits, labels = (_to_torch(array) for array in arrays)
    labels = labels.long()  # the only integer type that it takes

    def forward() -> list[torch.Tensor]:
        with torch.no_grad():
            return [function(logits, labels)]

    def with_gradient() -> list[torch.Tensor]:
        values = function(logits, labels)
        (gradient,) = torch.autograd.grad(values, logits, torch.ones_like(values))
        return [values, gradient]

    if direction == "forward":
        return forward, _to_numpy
    logits.requires_grad_()
    return with_gradient, _to_numpy


def _to_torch(array: Any) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensors: list[torch.Tensor]) -> list[Any]:
    return [
        t.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if t.dtype == torch.bfloat16
        else t.detach().numpy()
        for t in tensors
    ]
