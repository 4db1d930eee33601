"""The samples of the highest scores that make up a share of the weight of their group."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairwise_checks import group_sum

__all__ = ["tail_fraction"]


def tail_fraction(scores: Tensor, weight: Tensor, group: Tensor | None, num_groups: int, share: float) -> Tensor:
    """Part in [0, 1] of every sample that belongs to the highest ``share`` of the weight of its group, [N] in float64; equal scores at the
    boundary share alike. Cost: two stable sorts (one without groups), running sums in float64."""
    order = scores.sort(descending=True, stable=True).indices
    group = torch.zeros_like(order) if group is None else group
    order = order[group[order].sort(stable=True).indices] if num_groups > 1 else order
    s, w, g = scores[order], weight[order].double(), group[order]
    first = torch.ones_like(s, dtype=torch.bool)
    first[1:] = (s[1:] != s[:-1]) | (g[1:] != g[:-1])
    run = first.cumsum(0) - 1
    of_run = group_sum(w, run, len(s))  # weight of each run of equal scores
    groups = group_sum(w, g, num_groups)
    before = (of_run.cumsum(0) - of_run)[run] - (groups.cumsum(0) - groups)[g]
    left = (share * groups[g] - before) / of_run[run].clamp(min=torch.finfo(torch.float64).tiny)
    return torch.empty_like(w).index_copy(0, order, left.clamp(0, 1))
