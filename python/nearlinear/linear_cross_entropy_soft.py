"""The fused linear head against class probabilities: mixed or smoothed labels, a teacher's distribution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _checks
from .ops._register import stats_dtype
from .row_losses import RowLoss
from .score_maps import ScoreMap

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NAME = "linear_cross_entropy"


def soft_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None, ignore_index: int,
    reduction: str, label_smoothing: float, z_loss: float, sample_weight: Tensor | None, normalizer: float | Tensor | None,
    record: RowLoss, score_map: ScoreMap, extra_lse: Tensor | None, max_workspace_bytes: int | None, process_group: ProcessGroup | None,
) -> Tensor:  # fmt: skip
    """:func:`nearlinear.linear_cross_entropy` of checked tensors, ``target`` class probabilities. No row is ignored."""
    require = _checks.require
    require(record.name == "ce", ValueError, _NAME, f"row_loss must be 'ce' with class probabilities, got {record.name!r}")
    label = f"target must be class indices with logit_map={score_map}: its margin belongs to one class"
    require(not score_map.takes_margin, ValueError, _NAME, label)
    no_effect = f"ignore_index must be negative with class probabilities (it has no effect there), got {ignore_index}"
    require(ignore_index < 0, ValueError, _NAME, no_effect)
    if process_group is not None:
        raise NotImplementedError(f"{_NAME}: target must be class indices with process_group")
    dtype, rows_shape = stats_dtype(input), input.shape[:-1]
    x, t = input.reshape(-1, input.shape[-1]), target.reshape(-1, target.shape[-1])
    weight = None if weight is None else weight.to(dtype).contiguous()
    rows, lse, residual, mass = torch.ops.nearlinear.linear_soft_logit_stats(
        x, linear_weight, linear_bias, t, weight, label_smoothing, score_map.map_name, score_map.params, max_workspace_bytes
    )
    if extra_lse is not None:
        extra = extra_lse.to(dtype).reshape(-1 if extra_lse.dim() else ())
        gain = torch.logaddexp((extra - lse) - residual, torch.zeros_like(lse))
        rows, lse = rows + mass * gain, lse + gain
    rows = rows + z_loss * lse**2 if z_loss else rows
    v = None if sample_weight is None else sample_weight.to(dtype).reshape(-1)
    rows = rows if v is None else rows * v
    if reduction == "none":
        return rows.reshape(rows_shape)
    if reduction == "sum":
        return rows.sum()
    if normalizer is not None:
        return rows.sum() / normalizer
    if v is None:
        return rows.sum() / rows.numel()
    divisor = v.sum()
    return rows.sum() / divisor.masked_fill(divisor == 0, math.nan)
