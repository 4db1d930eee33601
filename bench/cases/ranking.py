"""Ranking losses over lists. The rivals hold every pair of a list, [Q, L, L] for Q lists of L documents."""

from __future__ import annotations

from typing import Any

import nearlinear
import torch
from nearlinear.reference import ranking as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register

LEVELS, TEMPERATURE = 5, 0.1


def lists(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Scores, levels of relevance and ids of the lists."""
    shape = (sizes["Q"], sizes["L"])
    target = torch.randint(LEVELS, shape, device=device)
    group = torch.arange(shape[0], device=device).unsqueeze(1).expand(shape)
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_(), target, group


def relevant(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The same, with the highest level as the relevant one."""
    input, target, group = lists(sizes, dtype, device)
    return input, target == LEVELS - 1, group


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Scores, labels (a byte) and ids are read, gradients written."""
    n = sizes["Q"] * sizes["L"]
    return {"fwd": n * (itemsize + 9), "full": n * (2 * itemsize + 9)}


def moved_by(sums: int) -> Any:
    """Each of the sums sorts records of a score in float64 and a position, read by the merges, and writes a slope."""
    return lambda sizes, itemsize: {"fwd": sizes["Q"] * sizes["L"] * sums * 432, "full": sizes["Q"] * sizes["L"] * sums * 448}


def eager_lambda_rank(input: Tensor, target: Tensor, group: Tensor) -> Tensor:
    gain = (2.0**target - 1).to(input.dtype)
    place = torch.arange(1, input.shape[1] + 1, device=input.device)
    discount = 1 / torch.log2(1 + place.to(input.dtype))
    rank = input.detach().argsort(dim=1, descending=True, stable=True).argsort(1)
    d = discount[rank]
    best = (gain.sort(1, descending=True)[0] * discount).sum(1)
    better = target.unsqueeze(2) > target.unsqueeze(1)
    weight = (gain.unsqueeze(2) - gain.unsqueeze(1)) * (d.unsqueeze(2) - d.unsqueeze(1)).abs()
    x = input.unsqueeze(2) - input.unsqueeze(1)
    loss = torch.where(better, weight * torch.logaddexp(-x, torch.zeros_like(x)), 0).sum((1, 2)) / best.clamp(min=1)
    return loss.sum() / better.any(2).any(1).sum().clamp(min=1)


def eager_smooth_ap(input: Tensor, target: Tensor, group: Tensor) -> Tensor:
    wins = torch.sigmoid((input.unsqueeze(1) - input.unsqueeze(2)) / TEMPERATURE)
    wins = wins * ~torch.eye(input.shape[1], dtype=torch.bool, device=input.device)
    precision = (1 + (wins * target.unsqueeze(1)).sum(2)) / (1 + wins.sum(2))
    count = target.sum(1)
    loss = 1 - (precision * target).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, loss, 0).sum() / (count > 0).sum().clamp(min=1)


def add(op: str, name: str, eager: Any, sums: int, inputs: Any, **options: Any) -> None:
    def flat(function: Any) -> Any:
        return lambda input, target, group: function(input.flatten(), target.flatten(), group=group.flatten(), **options)

    def ours(input: Tensor, target: Tensor, group: Tensor) -> Tensor:
        loss: Tensor = getattr(nearlinear, op)(
            input.flatten(), target.flatten(), group=group.flatten(), num_groups=len(group), **options
        )  # fmt: skip
        return loss

    register(
        Case(
            family="ranking",
            op=op,
            name=name,
            ours=ours,
            definition=flat(getattr(reference, op)),
            baselines={"eager": Baseline(eager), "compiled": compiled(eager)},
            inputs=inputs,
            sizes={
                "cpu": [{"Q": 1000, "L": 100}, {"Q": 10, "L": 2000}],
                "cuda": [{"Q": 10**4, "L": 100}, {"Q": 100, "L": 2000}],
                "sweep": [{"Q": 10, "L": length} for length in (100, 300, 1000, 3000)],
            },
            tiny={"Q": 3, "L": 20},
            bytes=floor,
            moved=moved_by(sums),
            dtypes=(torch.float32,),
            error_rows={"Q": 10, "L": 300},
        )
    )


add("lambda_rank_loss", "LambdaRank", eager_lambda_rank, 2 * (LEVELS - 1), lists, num_levels=LEVELS)
add("smooth_average_precision_loss", "smooth AP", eager_smooth_ap, 4, relevant, temperature=TEMPERATURE)
