"""The distance launchers on CPU tensors against the definition in float64. Collected by test_triton_interpreter.py, with TRITON_INTERPRET
set; the tests of the CPU kernels in test_distance_tile.py run through the launchers too."""

from __future__ import annotations

import math

import pytest
import torch
from nearlinear.distances import DistanceMetric
from nearlinear.triton_kernels import distance
from test_distance import METRICS
from torch import Tensor
from triton_oracle import MARKS, close

pytestmark = MARKS
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def tile(rows: int, classes: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Strided rows with NaN between them."""
    views = []
    for shape in ((rows, dim), (classes, dim), (rows, classes)):
        view = torch.full((shape[0] + 1, shape[1] + 3), math.nan, dtype=dtype)[1:, 1:-2]
        views.append(view.copy_(torch.randn(shape) + 0.5))
    return views[0], views[1], views[2]


@each_metric
@pytest.mark.parametrize("size", [(33, 34, 3), (2, 3, 34), (1, 1, 1), (3, 2, 0), (0, 2, 3), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_tiles_within_a_workspace(metric: DistanceMetric, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Two tiles, or two partial sums, of each kind; the gradients are added to what the accumulators hold."""
    torch.manual_seed(0)
    x, w, grad = tile(*size, dtype)
    named, tolerance = (metric.name, metric.params), 2e-6 if dtype == torch.float32 else 1e-11
    whole = torch.full((size[0] + 1, size[1] + 4), math.nan, dtype=dtype)
    distance.distance_tile(x, w, *named, whole[:-1, 1:-3])
    wide = [t.double().requires_grad_() for t in (x, w)]
    want = metric(*wide)
    close(whole[:-1, 1:-3], want.detach(), tolerance)
    assert whole.isnan().sum() == whole.numel() - want.numel()
    sums = [torch.full_like(t, 2.0) for t in (x, w)]
    distance.distance_tile_backward(*sums, grad, x, w, *named, True, True)
    for total, gradient in zip(sums, torch.autograd.grad(want, wide, grad.double()), strict=True):
        close(total - 2, gradient, 4 * tolerance)


@each_metric
def test_a_pair_without_upstream_may_hold_anything(metric: DistanceMetric) -> None:
    x, w, grad = tile(5, 4, 6, torch.float64)
    grad[2] = 0
    results = []
    for value in (1.0, math.nan):
        x[2] = value
        sums = [torch.zeros_like(t) for t in (x, w)]
        distance.distance_tile_backward(*sums, grad, x, w, metric.name, metric.params, True, True)
        results.append(sums)
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    out = torch.empty(5, 4, dtype=torch.float64)
    distance.distance_tile(x, w, metric.name, metric.params, out)
    assert out.isnan().any(1).tolist() == [False, False, True, False, False]


def test_the_first_of_equal_largest_coordinates_has_the_gradient() -> None:
    x, w = torch.tensor([[0.0, 2.0, -2.0]]), torch.zeros(1, 3)
    sums = [torch.zeros_like(t) for t in (x, w)]
    distance.distance_tile_backward(*sums, torch.ones(1, 1), x, w, "chebyshev", [], True, True)
    assert [total.tolist() for total in sums] == [[[0.0, 1.0, 0.0]], [[0.0, -1.0, 0.0]]]
