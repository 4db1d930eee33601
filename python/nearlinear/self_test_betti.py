"""Self-tests of Betti matching: two pictures of two channels, as values that have no ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference import betti_matching as reference
from .self_test_cases import SelfTest, wave

__all__ = ["BETTI_TESTS"]

_ops = torch.ops.nearlinear
_DIMS = [0, 1]


def _images() -> list[Tensor]:
    return [wave(torch.empty(2, 7, 6), phase).abs() for phase in (0.4, 2.0)]


def _rows(tables: Sequence[Tensor], offsets: Tensor) -> Sequence[Tensor]:
    """Rows with their group, in an order of their own: that of a table is not part of the definition."""
    starts = offsets.view(len(offsets), -1)
    group = torch.arange(len(starts) - 1, device=offsets.device)
    found = [torch.cat([group.repeat_interleave(starts[:, i].diff())[:, None], rows], 1) for i, rows in enumerate(tables)]
    return [rows.unique(dim=0).float() for rows in found]


def _matching(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, target: Tensor) -> Sequence[Tensor]:
        *tables, offsets = function(input, target, _DIMS, True, False)
        return _rows(tables, offsets)

    return outputs


def _barcode(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, target: Tensor) -> Sequence[Tensor]:
        pairs, offsets = function(input + target, _DIMS, False)
        return _rows([pairs], offsets)

    return outputs


def _loss(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    weights = [1.0, 0.5, 2.0, 3.0, 0.25, 1.0]
    return lambda input, target: [function(input, target, weights, True, True, 0.01, push, True, True, True)[0] for push in (False, True)]


BETTI_TESTS: dict[str, SelfTest] = {
    "betti_matching": SelfTest(_images, _matching(_ops.betti_matching), _matching(reference.betti_matching), differentiable=False),
    "betti_matching_loss": SelfTest(_images, _loss(_ops.betti_matching_loss), _loss(reference.betti_matching_loss)),
    "persistence_barcode": SelfTest(
        _images, _barcode(_ops.persistence_barcode), _barcode(reference.persistence_barcode), differentiable=False
    ),
}
