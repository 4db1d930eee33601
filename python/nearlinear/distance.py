"""Distances of every vector of one set to every vector of another, without the (R, C, D) tensor of differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from .distances import DistanceMetric, Manhattan
from .ops._register import stats_dtype

__all__ = ["DistanceMatrix", "distance_matrix"]

_NAME = "distance_matrix"


def distance_matrix(input: Tensor, other: Tensor, metric: DistanceMetric = Manhattan()) -> Tensor:  # noqa: B008  frozen
    r"""``out[..., i, j] = metric(input[..., i, :], other[..., j, :])``, as :func:`torch.cdist` for metrics that it has not or not fast.

    Args:
        input: vectors of shape (..., R, D); float32, float64, bfloat16 or float16; any strides.
        other: vectors of shape (..., C, D), of the dtype of ``input``; leading dimensions broadcast.
        metric: a record of :mod:`nearlinear.distances`.

    Returns:
        Distances of shape (..., R, C). float32 (float64 for float64): halves are converted to float32 first, which takes a copy of both.

    Raises:
        TypeError, ValueError: a dtype, a shape or a metric that does not fit, with what was expected.
        NotImplementedError: forward-mode AD.

    Cost: R C D terms forward, twice to four times that backward; saves nothing beyond its inputs. The broadcast stores R C D differences.
    Determinism: run_to_run, the same bits for any number of CPU threads. Double backward is exact, at the cost of the broadcast.

    Example:
        >>> import torch, nearlinear
        >>> x, w = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 2.0], [0.0, 0.0]])
        >>> nearlinear.distance_matrix(x, w)
        tensor([[3., 1.]])
        >>> nearlinear.distance_matrix(x, w, nearlinear.Chebyshev())
        tensor([[2., 1.]])
    """
    _check(input, other)
    check_metric(_NAME, metric)
    x, w = input.to(stats_dtype(input)), other.to(stats_dtype(input))
    if w.dim() == 2:  # one set of classes for all: more rows, no copies of it
        rows = x.reshape(1, x.shape[:-1].numel(), x.shape[-1])
        distances = torch.ops.nearlinear.pair_distances(rows, w.unsqueeze(0), metric.name, metric.params)
        return distances.view(*x.shape[:-1], w.shape[0])
    leading = torch.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    count = leading.numel()
    x, w = (t.expand(*leading, *t.shape[-2:]).reshape(count, *t.shape[-2:]) for t in (x, w))
    return torch.ops.nearlinear.pair_distances(x, w, metric.name, metric.params).view(*leading, x.shape[1], w.shape[1])


def check_metric(function: str, metric: Any) -> None:
    _checks.require(
        isinstance(metric, DistanceMetric), TypeError, function,
        f"metric must be a DistanceMetric, got {type(metric).__name__}; take a record of nearlinear.distances",
    )  # fmt: skip


def _check(input: Tensor, other: Tensor) -> None:
    require = _checks.require
    for name, value in (("input", input), ("other", other)):
        _checks.check_tensor(_NAME, name, value)
        _checks.check_floating(_NAME, name, value)
    x, w = tuple(input.shape), tuple(other.shape)
    require(
        other.dtype == input.dtype, TypeError, _NAME,
        f"other must have the dtype of input, {input.dtype}, got {other.dtype}; convert one of them",
    )  # fmt: skip
    require(other.device == input.device, ValueError, _NAME, f"other must be on the device of input, {input.device}, got {other.device}")
    require(input.dim() >= 2, ValueError, _NAME, f"input must have shape (..., R, D), got {x}")
    require(other.dim() >= 2 and w[-1] == x[-1], ValueError, _NAME, f"other must have shape (..., C, D) with D={x[-1]}, got {w}")
    fits = all(a == b or 1 in (a, b) for a, b in zip(reversed(x[:-2]), reversed(w[:-2]), strict=False))
    require(fits, ValueError, _NAME, f"other must have leading dimensions that broadcast with {x[:-2]}, got {w[:-2]}")


class DistanceMatrix(nn.Module):
    """Module form of :func:`distance_matrix`."""

    def __init__(self, metric: DistanceMetric = Manhattan()) -> None:  # noqa: B008  frozen
        super().__init__()
        check_metric(type(self).__name__, metric)
        self.metric = metric

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        return distance_matrix(input, other, self.metric)

    def extra_repr(self) -> str:
        return f"metric={self.metric}"
