"""SFace: a head whose classes are added up under a sigmoid of their angle, without a softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from .linear_cross_entropy import check_head
from .ops._register import stats_dtype

__all__ = ["SFaceLoss", "sface_loss"]

_NAME = "sface_loss"


def sface_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    scale: float = 64.0,
    k: float = 80.0,
    a: float = 0.8,
    b: float = 1.23,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    max_workspace_bytes: int | None = None,
    check_targets: bool = False,
) -> Tensor:
    r"""Sigmoid-constrained hypersphere loss (SFace, arXiv:2205.12010, eq. 5 to 12); cosines exist one tile at a time.

        ``loss_i = -scale r_in(theta_y) cos(theta_y) + scale sum_{j != y} r_out(theta_j) cos(theta_j)``

    with ``r_in(theta) = sigmoid(k (theta - a))`` and ``r_out(theta) = sigmoid(-k (theta - b))``, which are weights: constants in the
    gradient. Cosines beyond +-1 count as +-1 in the angle (the public code gives NaN there).

    Args:
        input: features (..., D); float32, float64, bfloat16 or float16. Computed in float32 under autocast too.
        linear_weight: class vectors (V, D), dtype of ``input``.
        target: class indices in [0, V), int64 or uint8, of the shape of ``input`` without its last dim.
        scale, k, a, b: the paper's s, k, a, b (its values for CASIA-WebFace: a = 0.87, b = 1.2).
        ignore_index, reduction, sample_weight, normalizer, check_targets: as in :func:`nearlinear.cross_entropy`.
        max_workspace_bytes: as in :func:`nearlinear.linear_cross_entropy`.

    Returns, raises: as :func:`nearlinear.linear_cross_entropy`. The value may be negative, and is not the integral of the gradient.
    Cost: 8 N V D FLOP forward and backward together; O(N) saved. Determinism: run_to_run.
    """
    if isinstance(input, Tensor) and torch.is_autocast_enabled(input.device.type):
        input, linear_weight = (t if t.dtype == torch.float64 else t.float() for t in (input, linear_weight))
    check_head(_NAME, input, linear_weight, target, sample_weight=sample_weight)
    _checks.check_reduction(_NAME, reduction)
    unused = f"normalizer must be None unless reduction='mean', got reduction={reduction!r}"
    _checks.require(normalizer is None or reduction == "mean", ValueError, _NAME, unused)
    dtype = stats_dtype(input)
    x, y = input.reshape(-1, input.shape[-1]), target.reshape(-1).long()
    kept = y != ignore_index
    if check_targets:
        _checks.raise_invalid_target(_NAME, target.long(), len(linear_weight), ignore_index)
    try:
        others = torch.ops.nearlinear.linear_logit_sum(x, linear_weight, y, ignore_index, "sface", [k, b], max_workspace_bytes)
    except RuntimeError as error:
        if "is out of range" in str(error):
            _checks.raise_invalid_target(_NAME, target.long(), len(linear_weight), ignore_index)
        raise
    inside = (y >= 0) & (y < len(linear_weight))
    own = nn.functional.cosine_similarity(x.to(dtype), linear_weight[y.masked_fill(~inside, 0)].to(dtype), dim=1, eps=1e-12)
    weight = torch.sigmoid(k * (torch.acos(own.detach().clamp(-1, 1)) - a))
    rows = scale * (others - weight * own)
    rows = rows.masked_fill(kept & ~inside, math.nan)  # CUDA only: CPU has raised
    v = (torch.ones_like(rows) if sample_weight is None else sample_weight.to(dtype).reshape(-1)).masked_fill(~kept, 0)
    rows = (v * rows).masked_fill(~kept, 0)
    if reduction == "none":
        return rows.reshape(target.shape)
    return rows.sum() if reduction == "sum" else rows.sum() / (v.sum() if normalizer is None else normalizer)


class SFaceLoss(nn.Module):
    """Module form of :func:`sface_loss`: numbers at construction, tensors in the call."""

    def __init__(
        self,
        *,
        scale: float = 64.0,
        k: float = 80.0,
        a: float = 0.8,
        b: float = 1.23,
        ignore_index: int = -100,
        reduction: str = "mean",
        max_workspace_bytes: int | None = None,
        check_targets: bool = False,
    ) -> None:
        super().__init__()
        _checks.check_reduction(type(self).__name__, reduction)
        self.options: dict[str, Any] = {
            "scale": scale, "k": k, "a": a, "b": b, "ignore_index": ignore_index, "reduction": reduction,
            "max_workspace_bytes": max_workspace_bytes, "check_targets": check_targets,
        }  # fmt: skip

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        return sface_loss(input, linear_weight, target, sample_weight=sample_weight, normalizer=normalizer, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items())
