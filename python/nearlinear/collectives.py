"""What the losses over several ranks exchange: always in rank order, so that all ranks get the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["gather", "gathered_sum"]


def gather(part: Tensor, process_group: ProcessGroup) -> Tensor:
    """The ranks' tensors of equal shape, stacked in rank order."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(parts, part.contiguous(), group=process_group)
    return torch.stack(parts)


def gathered_sum(part: Tensor, process_group: ProcessGroup) -> Tensor:
    """The sum of the ranks' tensors, in rank order."""
    return gather(part, process_group).sum(0)
