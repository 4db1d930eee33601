"""Self-tests of the ops that count pairs after a sort; they have no derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .pair_kernels import logistic, logistic_coefficients, power
from .reference import pairwise_auc as pair_reference
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


_SLOPE = logistic_coefficients(1, 16)
# value and potential: log(1 + e^-x) and its slope; a squared hinge and its slope
_PAIR_KERNELS = (
    ("logistic", logistic(1, 0, -1, *2 * [logistic_coefficients(0, 16)]), logistic(1, -1, 0, [-e for e in _SLOPE], _SLOPE)),
    ("power", power(0, (0, 1, 1, 2)), power(0, (0, 1, -2, 1))),
)


def _pair_scan(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Sequence[Tensor]]:
    """Both families, three groups."""

    def outputs(input: Tensor) -> Sequence[Tensor]:
        place = torch.arange(len(input), device=input.device)
        arguments = (input, place % 4 == 0, wave(input, 2.0), place % 3, 3)
        return [out.to(input.dtype) for kernels in _PAIR_KERNELS for out in function(*arguments, *kernels, "scan")]

    return outputs


def _moments(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor) -> Sequence[Tensor]:
        place = torch.arange(len(input), device=input.device)
        return [function(input, place % 4 == 0, wave(input, 2.0), place % 3, 3, 2.0, -16, 32, 5).to(input.dtype)]

    return outputs


def _values(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor) -> Sequence[Tensor]:
        place = torch.arange(len(input), device=input.device)
        table = wave(torch.empty(3, 2, 32, 5, dtype=torch.float64, device=input.device))
        return [function(input, place % 4 == 0, place % 3, table, 2.0, -16)]

    return outputs


def _sums(function: Callable[..., Any], order: list[int]) -> Callable[..., Sequence[Tensor]]:
    """Bins and scan; the total with its slope, or the potential of an order."""

    def outputs(input: Tensor) -> Sequence[Tensor]:
        place = torch.arange(len(input), device=input.device)
        arguments = (input, place % 4 == 0, wave(input, 2.0), place % 3, 3, "logistic", [1.5], *order)
        options = [] if order else [False]
        found = [function(*arguments, method, limits, *options) for method, limits in (("bins", [-8.0, 8.0]), ("scan", []))]
        return found if order else [total.to(input.dtype) for total, _ in found]

    return outputs


RANK_TESTS: dict[str, SelfTest] = {
    "binned_moments": SelfTest(
        lambda: _scores(37), _moments(_ops.binned_moments), _moments(pair_reference.binned_moments), differentiable=False
    ),
    "binned_values": SelfTest(
        lambda: _scores(37), _values(_ops.binned_values), _values(pair_reference.binned_values), differentiable=False
    ),
    "pair_potential": SelfTest(lambda: _scores(37), _sums(_ops.pair_potential, [0]), _sums(pair_reference.pair_potential, [0])),
    "pairwise_sum": SelfTest(lambda: _scores(37), _sums(_ops.pairwise_sum, []), _sums(pair_reference.pairwise_sum, [])),
    "pair_scan": SelfTest(lambda: _scores(37), _pair_scan(_ops.pair_scan), _pair_scan(pair_reference.pair_scan), differentiable=False),
    "roc_auc_counts": SelfTest(lambda: _scores(37), _roc(_ops.roc_auc_counts), _roc(reference.roc_auc_counts), differentiable=False),
    "roc_auc_sums": SelfTest(lambda: _scores(37), _roc(_ops.roc_auc_sums, 0.4), _roc(reference.roc_auc_sums, 0.4), differentiable=False),
    "roc_auc_class_sums": SelfTest(
        lambda: _scores(37, 3), _classes(_ops.roc_auc_class_sums), _classes(reference.roc_auc_class_sums), differentiable=False
    ),
}
