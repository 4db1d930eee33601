"""All-pairs AUC losses as they are written down: every pair is built. O(N^2) time and memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import pair_kernels

__all__ = ["binned_moments", "binned_values", "pair_scan"]


def _pairs(input: Tensor, target: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions of the positives and of the negatives, x of every pair of them (0 for two equal infinities), whether it counts."""
    p, q = target.nonzero().flatten(), (~target).nonzero().flatten()
    high, low = input[p, None], input[None, q]
    x = torch.where(high == low, 0, high - low)
    together = torch.ones_like(x, dtype=torch.bool) if group is None else group[p, None] == group[None, q]
    return p, q, x, together


def pair_scan(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, family: str, value: Sequence[float],
    potential: Sequence[float], method: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    c = torch.ones_like(input) if coefficient is None else coefficient
    p, q, x, together = _pairs(input, target, group)

    def weighed(kernel: Sequence[float], weight: Tensor) -> Tensor:
        """k(x) times a weight, of the pairs that count; a weight of 0 removes even what is not a number"""
        return torch.where(together & (weight != 0), pair_kernels.evaluate(family, kernel, x) * weight, 0)

    total = input.new_zeros(num_groups if value else 0, dtype=torch.float64)
    if value:
        rows = weighed(value, c[p, None] * c[None, q]).sum(1).double()
        total = total.index_add(0, group[p] if group is not None else torch.zeros_like(p), rows)
    out = torch.zeros_like(input) if potential else input.new_zeros(0)
    if potential:
        out = out.index_add(0, p, weighed(potential, c[None, q]).sum(1)).index_add(0, q, weighed(potential, c[p, None]).sum(0))
    return total, out


def _place(input: Tensor, inv_width: float, first_bin: int) -> tuple[Tensor, Tensor]:
    """Bin of each score, and its place t in [-1, 1) there."""
    x = input.double() * inv_width
    return x.floor().long() - first_bin, 2 * (x - x.floor()) - 1


def _chebyshev(t: Tensor, terms: int) -> Tensor:
    return torch.cos(torch.arange(terms, dtype=t.dtype, device=t.device) * torch.acos(t)[:, None])


def binned_moments(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, inv_width: float, first_bin: int,
    bins: int, terms: int,
) -> Tensor:  # fmt: skip
    place, t = _place(input, inv_width, first_bin)
    channel = target.long() if group is None else 2 * group + target
    rows = _chebyshev(t, terms) * (1.0 if coefficient is None else coefficient.double()[:, None])
    flat = input.new_zeros(num_groups * 2 * bins, terms, dtype=torch.float64).index_add(0, channel * bins + place, rows)
    return flat.view(num_groups, 2, bins, terms)


def binned_values(input: Tensor, target: Tensor, group: Tensor | None, table: Tensor, inv_width: float, first_bin: int) -> Tensor:
    place, t = _place(input, inv_width, first_bin)
    rows = table[0 if group is None else group, target.long(), place]
    return (rows * _chebyshev(t, table.shape[-1])).sum(-1).to(input.dtype)
