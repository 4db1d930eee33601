"""Sums of the rows of each segment against index_add, and the projection loss against the matrix of pairs that its code builds."""

from __future__ import annotations

import nearlinear
import torch
from nearlinear.reference import segment_moments as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register


def rows(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    x = torch.randn(sizes["N"], sizes["D"], device=device, dtype=dtype)
    return x.requires_grad_(), torch.randint(sizes["S"], (sizes["N"],), device=device)


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Rows and their segments read; backward: rows and segments read, gradients written."""
    rows = sizes["N"] * sizes["D"] * itemsize
    return {"fwd": rows + 8 * sizes["N"], "full": 3 * rows + 16 * sizes["N"]}


def add(name: str, second_moment: str | None, largest: int) -> None:
    def ours(input: Tensor, index: Tensor) -> Tensor:
        found = nearlinear.segment_moments(input, index, largest, second_moment=second_moment)
        return (found.sum.sum() + (0 if found.square is None else found.square.sum())) / len(input)

    def definition(input: Tensor, index: Tensor) -> Tensor:
        total, square, _ = reference.segment_moments(input, index, largest, second_moment or "none")
        return (total.sum() + square.sum()) / len(input)

    def index_add(input: Tensor, index: Tensor) -> Tensor:
        x = input.double() if second_moment else input
        empty = x.new_zeros(largest, x.shape[1])
        total = empty.index_add(0, index, x).sum()
        return (total + (empty.index_add(0, index, x**2).sum() if second_moment else 0)) / len(input)

    register(
        Case(
            family="segment_moments",
            op="segment_moments",
            name=name,
            inputs=rows,
            ours=ours,
            definition=definition,
            baselines={"index_add": Baseline(index_add)},
            bytes=floor,
            moved=floor,
            sizes={"cpu": [{"N": 100_000, "D": 128, "S": largest}], "cuda": [{"N": 1_000_000, "D": 256, "S": largest}]},
            tiny={"N": 9, "D": 4, "S": largest},
            dtypes=(torch.float32,),
            error_rows={"N": 512},
        )
    )


add("sums", None, 100)
add("squares", "diag", 100)


register(
    Case(
        family="segment_moments",
        op="orthogonal_projection_loss",
        name="projection loss",
        inputs=rows,
        ours=nearlinear.orthogonal_projection_loss,
        definition=reference.orthogonal_projection_loss,
        baselines={
            "eager": Baseline(reference.orthogonal_projection_loss),
            "compiled": compiled(reference.orthogonal_projection_loss),
        },
        bytes=floor,
        moved=floor,
        sizes={"cpu": [{"N": 4096, "D": 256, "S": 100}], "cuda": [{"N": 16384, "D": 512, "S": 1000}]},
        tiny={"N": 9, "D": 4, "S": 3},
        dtypes=(torch.float32,),
        error_rows={"N": 512},
    )
)
