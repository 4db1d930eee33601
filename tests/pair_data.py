"""Scores and labels of the kinds that all-pairs sums must survive."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def distributions(count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Eleven distributions of float64 scores and labels, and one far from 0."""
    generator = torch.Generator().manual_seed(count)

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    y = torch.rand(count, generator=generator) < 0.3
    y[:2] = torch.tensor([True, False])
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    rare = torch.rand(count, generator=generator) < 0.002
    rare[0] = True
    chi = normal().abs().clamp(min=1e-3)
    levels = torch.randint(7, (count,), generator=generator).double()
    clusters = 7 * torch.randint(-2, 3, (count,), generator=generator) + 1e-4 * normal()
    return {
        "normal": (normal() + y, y),
        "wide": (5 * (normal() + y), y),
        "cauchy": (torch.tan(math.pi * (u - 0.5)), y),
        "student": (normal() / chi ** (2 / 3), y),
        "clusters": (clusters, y),
        "uniform": ((u - 0.5) * 2e4, y),
        "tied": (torch.full_like(u, 0.7), y),
        "levels": (levels, y),
        "separated": (normal() + 40 * y - 20, y),
        "inverted": (normal() - 40 * y + 20, y),
        "rare": (normal() + rare, rare),
        "offset": (1e4 + normal(), y),
    }
