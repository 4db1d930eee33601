"""Losses over pairs of embeddings. The rivals hold all scores; the floor of the work is three matrix products (``flops``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import pair_loss as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register


def scores(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines, positives, and everything but the diagonal."""
    u = F.normalize(input.float(), dim=1)
    other = ~torch.eye(len(u), dtype=torch.bool, device=u.device)
    return u @ u.T, (target.unsqueeze(1) == target) & other, other


def eager_supcon(input: Tensor, target: Tensor) -> Tensor:
    s, positive, other = scores(input, target)
    log_p = s / 0.1 - (s / 0.1).masked_fill(~other, -torch.inf).logsumexp(1, keepdim=True)
    count = positive.sum(1)
    return -((log_p * positive).sum(1) / count.clamp(min=1)).sum() / (count > 0).sum()


def eager_multi_similarity(input: Tensor, target: Tensor) -> Tensor:
    s, positive, other = scores(input, target)
    of_positive = (torch.exp(-2 * (s - 0.5)) * positive).sum(1)
    of_negative = (torch.exp(50 * (s - 0.5)) * (other & ~positive)).sum(1)
    return (of_positive.log1p() / 2 + of_negative.log1p() / 50).mean()


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    input = torch.randn(sizes["N"], sizes["D"], device=device, dtype=dtype).requires_grad_()
    return input, torch.arange(sizes["N"], device=device) % max(sizes["N"] // 16, 2)


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    x = sizes["N"] * sizes["D"] * itemsize
    return {"fwd": x, "full": 2 * x}


def moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Every score is written, read, and in the backward replaced and read again, in float32."""
    s = 4 * sizes["N"] ** 2
    return {"fwd": 2 * s, "full": 6 * s}


def flops(sizes: Sizes) -> dict[str, int]:
    product = 2 * sizes["N"] ** 2 * sizes["D"]
    return {"fwd": product, "full": 3 * product}


def add(op: str, name: str, eager: Callable[..., Tensor], **options: Any) -> None:
    register(
        Case(
            family="pair_loss",
            op=op,
            name=name,
            inputs=inputs,
            sizes={"cpu": [{"N": 8192, "D": 128}], "cuda": [{"N": 16384, "D": 128}]},
            tiny={"N": 24, "D": 5},
            baselines={"eager": Baseline(eager), "compiled": compiled(eager)},
            ours=partial(getattr(nearlinear, op), **options),
            definition=partial(getattr(reference, op), **options),
            bytes=floor,
            moved=moved,
            flops=flops,
            error_rows={"N": 256},
        )
    )


add("supcon_loss", "cosine", eager_supcon)
add("multi_similarity_loss", "all pairs", eager_multi_similarity)
