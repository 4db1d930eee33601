"""Class-parallel heads: every rank holds a shard of the class vectors, in rank order; features and labels are the same on all ranks.

    each rank     statistics (nll, lse, spread) over its own classes               no communication
    all ranks     merged by log-sum-exp, in float64                                all-gather of 4 N numbers
    backward      each rank: gradients from the merged statistics                  all-reduce of d_input (and of d_margin)

Only row statistics and the gradient of the features travel. Sums over ranks run in rank order, so all ranks get the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import gather, gathered_sum
from .ops.linear_cross_entropy import row_weight
from .reducers import Stats, merge
from .score_maps import ScoreMap

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ClassShard"]

_ops = torch.ops.nearlinear


@dataclass
class ClassShard:
    """The classes that this process holds: all of them, or ``first`` to ``first + len(weight)`` of ``num_classes``."""

    first: int
    held: int
    num_classes: int
    weight: Tensor | None
    mass: Tensor | float  # sum of the weights of all classes
    group: ProcessGroup | None

    @classmethod
    def of(cls, linear_weight: Tensor, weight: Tensor | None, group: ProcessGroup | None) -> ClassShard:
        held = linear_weight.shape[0]
        own: Tensor | float = float(held) if weight is None else weight.sum()
        if group is None:
            return cls(0, held, held, weight, own, None)
        sizes = [int(s) for s in gather(torch.tensor([held], device=linear_weight.device), group).flatten()]
        rank = dist.get_rank(group)
        mass = float(sum(sizes)) if isinstance(own, float) else gather(own.reshape(1), group).sum()
        return cls(sum(sizes[:rank]), held, sum(sizes), weight, mass, group)

    def class_weight(self, target: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
        """``w_y`` of each row, 0 where ignored."""
        if self.group is None or self.weight is None:
            return row_weight(target, self.weight, ignore_index, dtype)
        here = (target >= self.first) & (target < self.first + self.held)
        own = row_weight((target - self.first).masked_fill(~here, -1), self.weight, -1, dtype)
        return gathered_sum(own, self.group)

    def stats(
        self, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None,
        margin: Tensor | None, ignore_index: int, score_map: ScoreMap, spread: bool, max_workspace_bytes: int | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """(nll, lse, spread, lse_residual) over all classes; all but the last differentiable."""
        options = (ignore_index, score_map.map_name, score_map.params, spread, self.first, self.num_classes, max_workspace_bytes)
        tensors = (input, linear_weight, linear_bias, target, weight, margin)
        if self.group is None:
            found: tuple[Tensor, Tensor, Tensor, Tensor] = _ops.linear_logit_stats(*tensors, *options)
        else:
            found = _ShardedStats.apply(self, options, *tensors)
        return found


class _ShardedStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: ClassShard, options: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        own = Stats(*_ops.linear_logit_stats(*tensors, *options))
        own_mass = float(shard.held) if shard.weight is None else shard.weight.sum()
        assert shard.group is not None
        masses = gather(torch.as_tensor(own_mass, dtype=own.nll.dtype, device=own.nll.device).reshape(1), shard.group)
        spread = own.spread if own.spread.numel() else torch.zeros_like(own.nll)
        ranks = gather(torch.stack([own.nll, own.lse, spread, own.lse_residual]), shard.group)
        merged, mass = Stats(*ranks[0]), masses[0]
        for rank in range(1, len(ranks)):
            merged, mass = merge(merged, mass, Stats(*ranks[rank]), masses[rank]), mass + masses[rank]
        ignored = tensors[3] == options[0]
        merged = Stats(*(s.masked_fill(ignored, 0) for s in merged))
        ctx.shard, ctx.options, ctx.other_mass = shard, options, mass.squeeze() - own_mass
        ctx.save_for_backward(*tensors, merged.nll, merged.lse, merged.lse_residual)
        ctx.mark_non_differentiable(merged.lse_residual)
        return merged.nll, merged.lse, merged.spread if options[3] else merged.spread.new_empty(0), merged.lse_residual

    @staticmethod
    def backward(ctx: Any, d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("linear_cross_entropy: double backward is not implemented with process_group")
        if ctx.options[3]:
            d_lse = d_lse + d_spread * ctx.other_mass  # the op adds the weights that it sees
        places = (0, 1, 2, 5)
        wants = [ctx.needs_input_grad[2 + i] for i in places]
        found = _ops.linear_logit_stats_backward(d_nll, d_lse, d_spread, *ctx.saved_tensors, *ctx.options, wants)
        by_place = {i: d for i, d, wanted in zip(places, found, wants, strict=True) if wanted}
        for i in (0, 5):
            if i in by_place:
                by_place[i] = gathered_sum(by_place[i], ctx.shard.group)
        return None, None, *(by_place.get(i) for i in range(6))
