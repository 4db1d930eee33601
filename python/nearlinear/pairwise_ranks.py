"""Samples over all ranks of a process group."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .pairwise_checks import Samples

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["gathered"]


def gathered(x: Samples, process_group: ProcessGroup) -> Samples:
    """The samples of all ranks, in rank order."""
    count = torch.tensor([len(x.input)], device=x.input.device)
    sizes = [int(size) for size in _gather(count, process_group).flatten()]
    parts = {
        name: _Gathered.apply(value, sizes, process_group)
        for name in ("input", "positive", "weight", "group", "level")
        if (value := getattr(x, name)) is not None
    }
    known = None if x.known is None else _gather(x.known.reshape(1), process_group).all()
    return replace(x, **parts, known=known)


def _gather(part: Tensor, process_group: ProcessGroup) -> Tensor:
    """The ranks' tensors of equal shape, stacked in rank order."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(parts, part.contiguous(), group=process_group)
    return torch.stack(parts)


class _Gathered(torch.autograd.Function):
    """Tensors of all ranks one after another; the gradient is the sum of what the ranks ask of this one's."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, sizes: list[int], process_group: ProcessGroup) -> Tensor:
        rank = dist.get_rank(process_group)
        ctx.own, ctx.process_group = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), process_group
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        ranks = _gather(padded, process_group)
        return torch.cat([rank_part[:size] for rank_part, size in zip(ranks, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, d_all: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError("pairwise_auc_loss: double backward is not implemented with process_group")
        return _gather(d_all, ctx.process_group).sum(0)[ctx.own], None, None
