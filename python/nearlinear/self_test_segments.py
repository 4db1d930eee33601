"""Self-tests of the op on segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .ops import segment_moments as ops
from .reference import segment_moments as reference
from .self_test_cases import SelfTest, wave

__all__ = ["SEGMENT_TESTS"]

_ops = torch.ops.nearlinear
_KINDS = ("none", "diag", "full")


def _rows() -> list[Tensor]:
    return [wave(torch.empty(11, 3))]


def _index(input: Tensor) -> Tensor:
    return torch.arange(len(input), device=input.device) * 7 % 3


def _moments(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    """All three kinds, and a segment without rows."""

    def outputs(input: Tensor) -> Sequence[Tensor]:
        found = [function(input, _index(input), 4, kind) for kind in _KINDS]
        return [found[0][0], found[1][1], found[2][1].flatten(1)]

    return outputs


def _gradient(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor) -> Sequence[Tensor]:
        made: list[Any] = []
        for kind, shape in zip(_KINDS, ([0], [4, 3], [4, 3, 3]), strict=True):
            d_sum, d_square = (wave(input.new_empty(s, dtype=torch.float64)) for s in ([4, 3], shape))
            made.append(function(d_sum, d_square, input, _index(input), 4, kind))
        return made

    return outputs


SEGMENT_TESTS = {
    "segment_moments": SelfTest(_rows, _moments(_ops.segment_moments), _moments(reference.segment_moments)),
    "segment_moments_backward": SelfTest(_rows, _gradient(_ops.segment_moments_backward), _gradient(ops._gradient)),
}
