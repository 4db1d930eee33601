"""Self-tests of the ops that count pairs after a sort; they have no derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference import roc_auc as reference
from .self_test_cases import SelfTest, wave

__all__ = ["RANK_TESTS"]

_ops = torch.ops.nearlinear


def _scores(*shape: int) -> list[Tensor]:
    return [(4 * wave(torch.empty(shape))).round()]


def _roc(function: Callable[..., Tensor], *options: float) -> Callable[..., Sequence[Tensor]]:
    """Three groups; ``options``: max_fpr of the weighted form."""

    def outputs(input: Tensor) -> Sequence[Tensor]:
        place = torch.arange(len(input), device=input.device)
        weight = [wave(input, 2.0).abs()] if options else []
        return [function(input, place % 4 == 0, *weight, place % 3, 3, *options).double()]

    return outputs


def _classes(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    return lambda input: function(input, torch.arange(len(input), device=input.device) % 3, None)


RANK_TESTS: dict[str, SelfTest] = {
    "roc_auc_counts": SelfTest(lambda: _scores(37), _roc(_ops.roc_auc_counts), _roc(reference.roc_auc_counts), differentiable=False),
    "roc_auc_sums": SelfTest(lambda: _scores(37), _roc(_ops.roc_auc_sums, 0.4), _roc(reference.roc_auc_sums, 0.4), differentiable=False),
    "roc_auc_class_sums": SelfTest(
        lambda: _scores(37, 3), _classes(_ops.roc_auc_class_sums), _classes(reference.roc_auc_class_sums), differentiable=False
    ),
}
