"""Sums over all pairs of a positive and a negative as ops: kernels, shapes, derivatives. Schemas: csrc/schema.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

_ops = torch.ops.nearlinear


def _check(input: Tensor, target: Tensor) -> None:
    torch._check(input.dim() == 1 and target.shape == input.shape, lambda: "target must have shape (N,)")


# ---- kernels; of one order of derivative, so without a derivative of their own


@torch.library.register_fake("nearlinear::pair_scan")
def _(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, family: str, value: list[float],
    potential: list[float], method: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(input, target)
    return input.new_empty(num_groups if value else 0, dtype=torch.float64), input.new_empty(input.shape if potential else [0])


@torch.library.register_fake("nearlinear::binned_moments")
def _(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, inv_width: float, first_bin: int,
    bins: int, terms: int,
) -> Tensor:  # fmt: skip
    _check(input, target)
    return input.new_empty(num_groups, 2, bins, terms, dtype=torch.float64)


@torch.library.register_fake("nearlinear::binned_values")
def _(input: Tensor, target: Tensor, group: Tensor | None, table: Tensor, inv_width: float, first_bin: int) -> Tensor:
    _check(input, target)
    return torch.empty_like(input)
