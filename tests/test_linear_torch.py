"""PyTorch's own sample inputs for its linear_cross_entropy (2.13 and newer), through ours.

Its weight is [C, D], or [C, places, D] with classes to choose at several places: then ours is
mapped over the places. The comparison is that of `test_torch`.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import test_torch as reference

from jaxsoftmax import linear_cross_entropy

torch = reference.torch
NAME = "nn.functional.linear_cross_entropy"
ENTRIES = {e.variant_test_name: e for e in reference.op_db if e.name == NAME}
if not ENTRIES:
    pytest.skip(f"PyTorch {torch.__version__} has no {NAME}", allow_module_level=True)

# How many samples are compared at least. Those of PyTorch's chunks are the same calls again, taken
# where its chunks serve them (not for several places), in chunks of as many examples.
VARIANTS = [("", 110), ("chunked", 70), ("chunked_none", 40)]


def ours(
    x, kernel, target, *, linear_bias=None, weight=None, ignore_index=-100, label_smoothing=0.0,
    reduction="mean", options=None,
):  # fmt: skip
    classes, *places, features = kernel.shape
    soft = jnp.issubdtype(target.dtype, jnp.floating)
    loss = partial(
        linear_cross_entropy,
        kernel_layout="VD",
        class_weights=weight,
        ignore_index=None if soft else ignore_index,
        label_smoothing=label_smoothing,
        chunk_size=getattr(options, "batch_chunk_size", None) or 3,
    )
    if not places:
        return loss(x, kernel, target, linear_bias, reduction=reduction)
    count, batch = math.prod(places), x.shape[:-1]
    bias = linear_bias if linear_bias is None else linear_bias.reshape(classes, count)
    targets = target.reshape(*batch, classes, count) if soft else target.reshape(*batch, count)

    def at_one_place(kernel, bias, target):
        kept = "none" if reduction == "none" else "sum"
        result = loss(x, kernel, target, bias, reduction=kept, return_statistics=True)
        return result[0], result[1].weight_sum

    kernels = kernel.reshape(classes, count, features)
    losses, weights = jax.vmap(at_one_place, (1, None if bias is None else 1, -1))(
        kernels, bias, targets
    )
    if reduction == "none":
        return jnp.moveaxis(losses, 0, -1).reshape(*batch, *places)
    total = jnp.sum(losses)
    return total / jnp.sum(weights) if reduction == "mean" else total


def all_ignored(case: reference.Case) -> bool:
    """The mean is 0/0 = NaN in PyTorch: `test_torch`, DIFFERENCES."""
    (_, _, target), options = case.call
    return not target.is_floating_point() and bool(
        torch.all(target == options.get("ignore_index", -100))
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, where it falls back
@pytest.mark.parametrize(("variant", "minimum"), VARIANTS)
def test_sample_inputs(variant, minimum):
    """In float64, where nothing but a wrong formula shows; `test_linear` has the other dtypes."""
    cases = reference.samples(ENTRIES[variant], torch.float64)
    compared = [case for case in cases if not all_ignored(case)]
    if variant:
        compared = [case for case in compared if case.call[0][1].ndim == 2]
    wrong = reference.compare(ENTRIES[variant].op, ours, compared)
    assert not wrong, "\n\n".join(wrong)
    assert len(compared) >= minimum
