"""The PyTorch peers; imported only in the worker process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_cuda, workers

Tensor = torch.Tensor


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), labels)


def _chunked_linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, options=options)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "softmax": lambda logits: torch.softmax(logits, -1),
    "log_softmax": lambda logits: torch.log_softmax(logits, -1),
    "logsumexp": lambda logits: torch.logsumexp(logits, -1),
    "cross_entropy": F.cross_entropy,
    "kl_divergence": lambda logits, target: F.kl_div(
        torch.log_softmax(logits, -1),
        torch.log_softmax(target, -1),
        log_target=True,
        reduction="batchmean",
    ),
    "example_losses": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    "linear_cross_entropy": _linear_cross_entropy,
    "chunked_linear_cross_entropy": _chunked_linear_cross_entropy,
    **torch_cuda.FUNCTIONS,
}
# The number of leading inputs to differentiate (default 1).
_DIFFERENTIATED = {"forward": 0, "value_and_grads": 2}

_ON_CUDA = torch.cuda.is_available()
_DEVICE = torch.device("cuda" if _ON_CUDA else "cpu")

# As many threads as XLA uses: one per processor available to this process.
torch.set_num_threads(workers.processors())


def prepare(
    function: str, direction: str, arrays: Sequence[Any]
) -> tuple[Callable[[], list[Tensor]], Callable[[list[Tensor]], list[Any]]]:
    """The computation as a function without arguments, and the conversion to NumPy."""
    compute = _FUNCTIONS[function]
    linear = "linear" in function
    inputs = [_to_torch(array).to(_DEVICE) for array in arrays]
    if linear:
        inputs[1] = inputs[1].T.contiguous()  # [V, D], the layout of PyTorch's layers
    cotangent = inputs.pop() if direction == "vjp" else None
    by = inputs[: _DIFFERENTIATED.get(direction, 1)]

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return _waited_for([compute(*inputs)])

    def with_gradients() -> list[Tensor]:
        values = compute(*inputs)
        ones = torch.ones_like(values) if cotangent is None else cotangent.to(values.dtype)
        gradients = torch.autograd.grad(values, by, ones)
        return _waited_for([*([values] if cotangent is None else []), *gradients])

    def to_numpy(tensors: list[Tensor]) -> list[Any]:
        outputs = [_to_numpy(tensor) for tensor in tensors]
        if linear and direction == "value_and_grads":
            outputs[2] = outputs[2].T
        return outputs

    for tensor in by:
        tensor.requires_grad_()
    return (with_gradients if by else forward), to_numpy


def _waited_for(tensors: list[Tensor]) -> list[Tensor]:
    if _ON_CUDA:
        torch.cuda.synchronize()
    return tensors


def _to_torch(array: Any) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    # PyTorch accepts only int64 labels.
    return torch.from_numpy(array).long() if array.dtype == np.int32 else torch.from_numpy(array)


def _to_numpy(tensor: Tensor) -> Any:
    here = tensor.detach().cpu()
    if here.dtype == torch.bfloat16:
        return here.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return here.numpy()
