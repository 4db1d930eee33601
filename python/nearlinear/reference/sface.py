"""Definition of SFace (Zhong et al. 2022, arXiv:2205.12010, eq. 5 to 12) in plain torch.

    loss_i = -s r_in(theta_y) cos(theta_y) + s sum_{j != y} r_out(theta_j) cos(theta_j)
    r_in(theta) = sigma(k (theta - a)),  r_out(theta) = sigma(-k (theta - b)), both constants in the gradient

so d loss_i / d cos(theta_j) is s r_out(theta_j), and -s r_in(theta_y) at the target. The value is not the integral of its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_logit_sum", "logit_sum", "sface_loss"]


def _constraint(cosine: Tensor, slope: float, centre: float) -> Tensor:
    """``sigma(slope (theta - centre))`` as a constant."""
    return torch.sigmoid(slope * (torch.acos(cosine.detach().clamp(-1, 1)) - centre))


def logit_sum(
    input: Tensor, target: Tensor, ignore_index: int, logit_map: str, map_params: list[float], first_class: int = 0
) -> Tensor:  # fmt: skip
    """``sum_{j != y} r_out(C_j) C_j`` of cosines [N, V]; 0 for ignored rows. ``map_params``: k, b."""
    k, b = map_params
    kept = target != ignore_index
    label = target - first_class
    here = kept & (label >= 0) & (label < input.shape[1])
    place = label.masked_fill(~here, 0).unsqueeze(1)
    own = torch.zeros_like(input, dtype=torch.bool).scatter(1, place, here.unsqueeze(1))
    return (_constraint(input, -k, b) * input).masked_fill(own | ~kept.unsqueeze(1), 0).sum(1)


def linear_logit_sum(
    input: Tensor, linear_weight: Tensor, target: Tensor, ignore_index: int, logit_map: str, map_params: list[float],
    max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """:func:`logit_sum` of the cosines of features [N, D] and class vectors [V, D]."""
    unit = [t / torch.linalg.vector_norm(t, dim=1, keepdim=True).clamp_min(1e-12) for t in (input, linear_weight)]
    return logit_sum(unit[0] @ unit[1].T, target, ignore_index, logit_map, map_params)


def sface_loss(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, scale: float = 64.0, k: float = 80.0, a: float = 0.8, b: float = 1.23,
    ignore_index: int = -100, reduction: str = "mean", sample_weight: Tensor | None = None, normalizer: float | Tensor | None = None,
    max_workspace_bytes: int | None = None, check_targets: bool = False,
) -> Tensor:  # fmt: skip
    """Same arguments as :func:`nearlinear.sface_loss`, the last two without effect; builds the cosines [N, V]."""
    x, y = input.reshape(-1, input.shape[-1]), target.reshape(-1)
    kept = y != ignore_index
    cosine = torch.nn.functional.normalize(x, eps=1e-12) @ torch.nn.functional.normalize(linear_weight, eps=1e-12).T
    own = cosine.gather(1, y.masked_fill(~kept, 0).unsqueeze(1)).squeeze(1)
    rows = scale * (logit_sum(cosine, y, ignore_index, "sface", [k, b]) - _constraint(own, k, a) * own)
    v = (torch.ones_like(rows) if sample_weight is None else sample_weight.reshape(-1)).masked_fill(~kept, 0)
    rows = (v * rows).masked_fill(~kept, 0)
    if reduction == "none":
        return rows.reshape(target.shape)
    return rows.sum() if reduction == "sum" else rows.sum() / (v.sum() if normalizer is None else normalizer)
