"""What the functions on segments return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["NeuralCollapse", "SegmentMoments"]


class SegmentMoments(NamedTuple):
    """``count`` int64 (S,); ``sum`` float64 (S, D); ``square`` float64 (S, D) or (S, D, D), None where it was not asked for."""

    count: Tensor  # type: ignore[assignment]  # the method of a tuple
    sum: Tensor
    square: Tensor | None


class NeuralCollapse(NamedTuple):
    """Three numbers, float64, each 0 where the collapse is complete; ``nc3`` is None without a weight."""

    nc1: Tensor
    nc2: Tensor
    nc3: Tensor | None
