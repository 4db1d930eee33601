"""Distances of every row to every class. Baselines are torch.cdist where it has the metric, and the broadcast that a torch user writes,
eager and compiled. The result is reduced to a mean; the work is R C D terms, which a roof of bytes does not show."""

from __future__ import annotations

from typing import Any

import nearlinear
import torch
from nearlinear.distances import BrayCurtis, Canberra, Chebyshev, DistanceMetric, Manhattan, Minkowski, SmoothChebyshev
from nearlinear.reference import distance as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register


def vectors(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Features and classes, both trained."""
    made = [torch.randn(sizes[n], sizes["D"], device=device, dtype=dtype).add_(0.5) for n in "RC"]
    return tuple(t.requires_grad_() for t in made)


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Vectors read, distances written; backward: distances' gradient and vectors read, gradients written."""
    r, c, d = sizes["R"], sizes["C"], sizes["D"]
    ends, tile = (r + c) * d * itemsize, r * c * itemsize
    return {"fwd": ends + tile, "full": 3 * ends + 2 * tile}


def add(name: str, metric: DistanceMetric, **more: Baseline) -> None:
    def ours(input: Tensor, other: Tensor) -> Tensor:
        return nearlinear.distance_matrix(input, other, metric).mean()

    def broadcast(input: Tensor, other: Tensor) -> Tensor:
        return reference.distance_matrix(input, other, metric).mean()

    fields: dict[str, Any] = {
        "family": "distance",
        "op": "distance_matrix",
        "name": name,
        "inputs": vectors,
        "bytes": floor,
        "moved": floor,
    }
    register(
        Case(
            ours=ours,
            definition=broadcast,
            baselines={**more, "eager": Baseline(broadcast), "compiled": compiled(broadcast)},
            sizes={"cpu": [{"R": 256, "C": 1000, "D": 256}], "cuda": [{"R": 1024, "C": 1000, "D": 768}]},
            tiny={"R": 5, "C": 7, "D": 9},
            dtypes=(torch.float32,),
            error_rows={"R": 32},
            **fields,
        )
    )


add("manhattan", Manhattan(), cdist=Baseline(lambda input, other: torch.cdist(input, other, p=1).mean()))
add("minkowski, p 1.5", Minkowski(1.5), cdist=Baseline(lambda input, other: torch.cdist(input, other, p=1.5).mean()))
add("chebyshev", Chebyshev(), cdist=Baseline(lambda input, other: torch.cdist(input, other, p=torch.inf).mean()))
add("smooth chebyshev", SmoothChebyshev())
add("canberra", Canberra())
add("bray-curtis", BrayCurtis())
