"""The rows of a call without their derivatives, by the implementation that was chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jax import lax

from jaxsoftmax import _logits, _loss
from jaxsoftmax._fused import chunked, mosaic_tpu
from jaxsoftmax._fused.chunked import Compute, Fixed, Moving
from jaxsoftmax._fused.plan import Blocks, Plan
from jaxsoftmax._fused.select import Choice
from jaxsoftmax._loss import RowLosses
from jaxsoftmax._options import LossOptions

# The axis is that of the features in the kernel as it lies in memory.
Forward = Callable[[Compute, Moving, Fixed, Plan, int], RowLosses]


def of(choice: Choice, options: LossOptions) -> Forward:
    """The chosen way from arrays to rows."""
    if choice.blocks is None:
        return chunked.rows
    blocks = choice.blocks

    def forward(compute: Compute, moving: Moving, fixed: Fixed, plan: Plan, axis: int) -> RowLosses:
        kernel = partial(_by_kernel, options, blocks, axis=axis)
        if not choice.portable:
            return kernel(moving, fixed)
        # Under jit the platform is not known before the program is lowered.
        elsewhere = partial(chunked.rows, compute, plan=plan, axis=axis)
        return lax.platform_dependent(moving, fixed, tpu=kernel, default=elsewhere)

    return forward


def _by_kernel(
    options: LossOptions, blocks: Blocks, moving: Moving, fixed: Fixed, axis: int
) -> RowLosses:
    assert fixed.label is not None
    smoothing = options.label_smoothing > 0.0
    carry = mosaic_tpu.rows(
        partial(_logits.transform, options=options),
        fixed.label,
        moving.hidden,
        moving.kernel,
        moving.bias,
        fixed.where_classes,
        moving.class_weights if smoothing else None,
        mosaic_tpu.Asked(options.return_statistics, smoothing),
        # A kernel that lies as [V, D] is read by its rows.
        blocks._replace(class_major=blocks.class_major or axis == 1),
    )
    return _loss.of_carry(carry, fixed.label, moving.class_weights, options)
