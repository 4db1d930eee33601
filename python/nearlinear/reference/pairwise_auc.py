"""All-pairs AUC losses as they are written down: every pair is built. O(N^2) time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import pair_kernels
from ..pairwise_checks import check_samples
from ..surrogates import KERNELS, Surrogate, get_surrogate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["binned_moments", "binned_values", "pair_potential", "pair_scan", "pairwise_auc_loss", "pairwise_sum"]


def pairwise_auc_loss(
    input: Tensor, target: Tensor, *, surrogate: str | Surrogate = "logistic", margin: float | None = None, scale: float | None = None,
    sample_weight: Tensor | None = None, group: Tensor | None = None, num_groups: int | None = None, num_levels: int | None = None,
    max_fpr: float | None = None, min_tpr: float | None = None, reduction: str = "mean", process_group: ProcessGroup | None = None,
    method: str = "auto", score_range: tuple[float, float] | None = None, return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """On one process; ``method`` and ``score_range`` do not change what it is."""
    record = get_surrogate(surrogate, "pairwise_auc_loss", margin=margin, scale=scale)
    x = check_samples("pairwise_auc_loss", input, target, sample_weight, group, num_groups, num_levels).flat()
    weights = torch.ones_like(x.input) if x.weight is None else x.weight
    ids = torch.zeros_like(x.positive, dtype=torch.int64) if x.group is None else x.group
    levels = x.positive.long() if x.level is None else x.level
    if max_fpr is not None:
        weights = torch.where(levels == 0, weights * _hardest(x.input, weights * (levels == 0), ids, max_fpr), weights)
    if min_tpr is not None:
        weights = torch.where(levels == 1, weights * _hardest(-x.input, weights * (levels == 1), ids, 1 - min_tpr), weights)
    totals, masses = [], []
    for one in range(x.num_groups):
        here = (ids == one) & (weights != 0)
        s, w, y = x.input[here], weights[here], levels[here]
        # equal infinities are ties; the difference of other equal scores has a gradient
        difference = torch.where((s[:, None] == s) & s.isinf(), 0, s[:, None] - s)
        pairs = torch.where(y[:, None] > y, w[:, None] * w, 0)
        total = torch.where(pairs > 0, record.value(difference) * pairs, 0).sum()
        totals.append(total.log() if record.name == "log_exponential" and pairs.any() else total)
        masses.append(pairs.sum())
    total, mass = (torch.stack(parts) if parts else x.input.new_zeros(0) for parts in (totals, masses))
    valid = mass > 0
    means = torch.where(valid, record.mean(total, torch.where(valid, mass, 1)), 0)
    loss = {
        "sum": total.sum(),
        "weighted": total.sum() / torch.where(valid.any(), mass.sum(), 1),
        "none": means.view(x.shape),
        "mean": means.sum() / valid.sum().clamp(min=1),
    }[reduction]
    return (loss, valid.view(x.shape)) if return_valid else loss


def _hardest(scores: Tensor, weight: Tensor, ids: Tensor, share: float) -> Tensor:
    """Part of each sample among the highest ``share`` of the weight of its group: 1 above the boundary, the rest of the run at it."""
    scores, weight = scores.detach(), weight.detach()
    together = ids[:, None] == ids
    above = torch.where(together & (scores > scores[:, None]), weight, 0).sum(1)
    equal = torch.where(together & (scores == scores[:, None]), weight, 0).sum(1)
    limit = share * torch.where(together, weight, 0).sum(1)
    return ((limit - above) / equal.clamp(min=torch.finfo(weight.dtype).tiny)).clamp(0, 1)


def pairwise_sum(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, surrogate: str,
    surrogate_params: Sequence[float], method: str, score_range: Sequence[float], wants_slope: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The method and its options do not change what it is."""
    record = KERNELS[surrogate](*surrogate_params)
    c = torch.ones_like(input) if coefficient is None else coefficient
    p, q, x, together = _pairs(input, target, group)
    rows = torch.where(together, record.value(x) * c[p, None] * c[None, q], 0).sum(1).double()
    total = input.new_zeros(num_groups, dtype=torch.float64).index_add(0, group[p] if group is not None else torch.zeros_like(p), rows)
    if not wants_slope:
        return total, input.new_zeros(0)
    potential = pair_potential(input, target, c, group, num_groups, surrogate, surrogate_params, 1, method, score_range)
    return total, (c * torch.where(target, potential, -potential)).detach()


def pair_potential(
    input: Tensor, target: Tensor, coefficient: Tensor, group: Tensor | None, num_groups: int, surrogate: str,
    surrogate_params: Sequence[float], order: int, method: str, score_range: Sequence[float],
) -> Tensor:  # fmt: skip
    """The method and its options do not change what it is."""
    record = KERNELS[surrogate](*surrogate_params)
    p, q, x, together = _pairs(input, target, group)
    kernel = record.value(x) if order == 0 else pair_kernels.evaluate(*record.kernel(order, torch.float64), x)
    values = torch.where(together, kernel, 0)
    return torch.zeros_like(input).index_add(0, p, values @ coefficient[q]).index_add(0, q, values.T @ coefficient[p])


def _pairs(input: Tensor, target: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions of the positives and of the negatives, x of every pair of them (0 for two equal infinities), whether it counts."""
    p, q = target.nonzero().flatten(), (~target).nonzero().flatten()
    high, low = input[p, None], input[None, q]
    x = torch.where((high == low) & low.isinf(), 0, high - low)
    together = torch.ones_like(x, dtype=torch.bool) if group is None else group[p, None] == group[None, q]
    return p, q, x, together


def pair_scan(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, family: str, value: Sequence[float],
    potential: Sequence[float], method: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sum over the pairs of each group of value(x), and for each sample that of potential(x) over its partners."""
    c = torch.ones_like(input) if coefficient is None else coefficient
    p, q, x, together = _pairs(input, target, group)

    def weighed(kernel: Sequence[float], weight: Tensor) -> Tensor:
        """k(x) times a weight, of the pairs that count; a weight of 0 removes even what is not a number"""
        return torch.where(together & (weight != 0), pair_kernels.evaluate(family, kernel, x) * weight, 0)

    total = input.new_zeros(num_groups if value else 0, dtype=torch.float64)
    if value:
        rows = weighed(value, c[p, None] * c[None, q]).sum(1).double()
        total = total.index_add(0, group[p] if group is not None else torch.zeros_like(p), rows)
    out = torch.zeros_like(input) if potential else input.new_zeros(0)
    if potential:
        out = out.index_add(0, p, weighed(potential, c[None, q]).sum(1)).index_add(0, q, weighed(potential, c[p, None]).sum(0))
    return total, out


def _place(input: Tensor, inv_width: float, first_bin: int) -> tuple[Tensor, Tensor]:
    """Bin of each score, and its place t in [-1, 1) there."""
    x = input.double() * inv_width
    return x.floor().long() - first_bin, 2 * (x - x.floor()) - 1


def _chebyshev(t: Tensor, terms: int) -> Tensor:
    return torch.cos(torch.arange(terms, dtype=t.dtype, device=t.device) * torch.acos(t)[:, None])


def binned_moments(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, inv_width: float, first_bin: int,
    bins: int, terms: int,
) -> Tensor:  # fmt: skip
    """Sums of c T_k(t) of each group, label and bin."""
    place, t = _place(input, inv_width, first_bin)
    channel = target.long() if group is None else 2 * group + target
    rows = _chebyshev(t, terms) * (1.0 if coefficient is None else coefficient.double()[:, None])
    flat = input.new_zeros(num_groups * 2 * bins, terms, dtype=torch.float64).index_add(0, channel * bins + place, rows)
    return flat.view(num_groups, 2, bins, terms)


def binned_values(input: Tensor, target: Tensor, group: Tensor | None, table: Tensor, inv_width: float, first_bin: int) -> Tensor:
    """The expansion of each sample's bin, at its place there."""
    place, t = _place(input, inv_width, first_bin)
    rows = table[0 if group is None else group, target.long(), place]
    return (rows * _chebyshev(t, table.shape[-1])).sum(-1).to(input.dtype)
