"""What the losses over several ranks exchange: always in rank order, so that all ranks get the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["gather", "gathered_sum", "summed_over_ranks"]


def gather(part: Tensor, process_group: ProcessGroup) -> Tensor:
    """The ranks' tensors of equal shape, stacked in rank order."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(parts, part.contiguous(), group=process_group)
    return torch.stack(parts)


def gathered_sum(part: Tensor, process_group: ProcessGroup) -> Tensor:
    """The sum of the ranks' tensors, in rank order."""
    return gather(part, process_group).sum(0)


def summed_over_ranks(part: Tensor, process_group: ProcessGroup) -> Tensor:
    """:func:`gathered_sum` with derivatives of any order, of the sum of the ranks' losses: all ranks must run the backward."""
    total: Tensor = _SummedOverRanks.apply(part, process_group)
    return total


class _SummedOverRanks(torch.autograd.Function):
    """Every rank's result is the sum, so the gradient of a part is the sum of the gradients that the ranks have for it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group = process_group
        return gathered_sum(part, process_group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed_over_ranks(gradient, ctx.process_group), None
