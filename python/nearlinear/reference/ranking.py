"""Soft ranks and ranking losses as they are written down: every pair is built."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lambda_rank_loss", "sigmoid_rank", "smooth_average_precision_loss"]


def sigmoid_rank(input: Tensor, *, temperature: float, group: Tensor | None = None, num_groups: int | None = None) -> Tensor:
    return 1 + (_wins(input, temperature) * _others(input, group)).sum(1)


def smooth_average_precision_loss(
    input: Tensor, target: Tensor, *, temperature: float = 0.01, group: Tensor | None = None, num_groups: int | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    positive = target == 1
    wins = _wins(input, temperature) * _others(input, group)
    precision = (1 + wins[:, positive].sum(1)) / (1 + wins.sum(1))
    ids, count = _lists(target, group, num_groups)
    lists = [precision[positive & (ids == one)] for one in range(count)]
    losses = torch.stack([1 - found.mean() if len(found) else input.new_zeros(()) for found in lists])
    return _reduced(losses, [len(found) > 0 for found in lists], reduction)


def lambda_rank_loss(
    input: Tensor, target: Tensor, *, num_levels: int, k: int | None = None, sigma: float = 1.0, gain: str = "exponential",
    group: Tensor | None = None, num_groups: int | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    losses, valid = [], []
    ids, count = _lists(target, group, num_groups)
    for one in range(count):
        s, y = input[ids == one], target[ids == one]
        n, gains = len(s), (2.0**y - 1 if gain == "exponential" else y).to(input.dtype)
        place = torch.arange(1, n + 1, device=s.device)
        discount = 1 / torch.log2(1 + place.to(input.dtype)) * (place <= (n if k is None else k))
        # equal scores: the later sample is ranked higher
        order = s.detach().sort(stable=True).indices.flip(0)
        d = torch.empty_like(discount).index_copy(0, order, discount)
        best = (gains.sort(descending=True).values * discount).sum()
        x = s[:, None] - s
        weight = torch.where(y[:, None] > y, (gains[:, None] - gains) * (d[:, None] - d).abs(), 0)
        loss = (weight * torch.logaddexp(-sigma * x, torch.zeros_like(x))).sum()
        losses.append(loss / torch.where(best > 0, best, 1))
        valid.append(len(y.unique()) > 1)
    return _reduced(torch.stack(losses), valid, reduction)


def _lists(target: Tensor, group: Tensor | None, num_groups: int | None) -> tuple[Tensor, int]:
    """The list of each sample, from 0, and the number of lists."""
    if group is None:
        return torch.zeros_like(target, dtype=torch.int64), 1
    if num_groups is not None:
        return group, num_groups
    ids, place = group.unique(return_inverse=True)
    return place, len(ids)


def _wins(input: Tensor, temperature: float) -> Tensor:
    """sigmoid((s_j - s_i) / t), [i, j]."""
    return torch.exp(-torch.nn.functional.softplus((input[:, None] - input) / temperature, threshold=800))


def _others(input: Tensor, group: Tensor | None) -> Tensor:
    other = ~torch.eye(len(input), dtype=torch.bool, device=input.device)
    return other if group is None else other & (group[:, None] == group)


def _reduced(losses: Tensor, valid: list[bool], reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / max(1, sum(valid))
