"""Samples over all ranks of a process group."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import gather, gathered_sum, summed_over_ranks
from .pair_bins import Grid
from .pairwise_checks import Samples
from .pairwise_moments import moments_of, share_of_loss
from .surrogates import LogisticFamily, Surrogate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["binned_sum", "gathered"]


def gathered(x: Samples, process_group: ProcessGroup) -> Samples:
    """The samples of all ranks, in rank order."""
    count = torch.tensor([len(x.input)], device=x.input.device)
    sizes = [int(size) for size in gather(count, process_group).flatten()]
    parts = {
        name: _Gathered.apply(value, sizes, process_group)
        for name in ("input", "positive", "weight", "group", "level")
        if (value := getattr(x, name)) is not None
    }
    known = None if x.known is None else gather(x.known.reshape(1), process_group).all()
    return replace(x, **parts, known=known)


def binned_sum(
    x: Samples, surrogate: Surrogate, method: str, score_range: list[float], process_group: ProcessGroup
) -> tuple[Tensor, Tensor] | None:
    """Sum over the pairs of all ranks, and their weight, of which only the moments of the bins travel; None where ``method`` and the range
    of the scores over all ranks ask for another way."""
    if x.known is not None:
        x = replace(x, input=x.input.masked_fill(~x.known, torch.nan))
    bins = isinstance(surrogate, LogisticFamily) and method in ("auto", "bins") and x.group is None and x.input.dim() == 1
    if not bins:
        return None
    assert isinstance(surrogate, LogisticFamily)
    none = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64, device=x.input.device)
    ends = torch.stack(x.input.detach().aminmax()).double() if len(x.input) else none
    ranks = gather(torch.cat([ends, ends.new_tensor([len(x.input)])]), process_group)
    low, high = score_range or (float(ranks[:, 0].min()), float(ranks[:, 1].max()))
    count = int(ranks[:, 2].sum())
    grid = Grid.over(low, high, surrogate.scale, x.input.dtype, count)
    if grid is None or (method == "auto" and count < 4 * grid.bins):
        return None
    moments = gathered_sum(moments_of(x, grid), process_group)
    mass = moments[0, :, :, 0].sum(1)
    share = share_of_loss(x, moments, grid, surrogate)
    pairs = (mass[0] * mass[1]).reshape(1)
    return summed_over_ranks(share, process_group) * pairs, pairs


class _Gathered(torch.autograd.Function):
    """Tensors of all ranks one after another; the gradient is the sum of what the ranks ask of this one's."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, sizes: list[int], process_group: ProcessGroup) -> Tensor:
        rank = dist.get_rank(process_group)
        ctx.own, ctx.process_group = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), process_group
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        ranks = gather(padded, process_group)
        return torch.cat([rank_part[:size] for rank_part, size in zip(ranks, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, d_all: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError("pairwise_auc_loss: double backward is not implemented with process_group")
        return gathered_sum(d_all, ctx.process_group)[ctx.own], None, None
