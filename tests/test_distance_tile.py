"""The distance tiles inside a workspace, and degenerate pairs: ties, signed zeros, NaN and infinity, zero upstream, huge numbers."""

from __future__ import annotations

import math
from typing import Any

import nearlinear
import pytest
import torch
from measure import Draw, evaluate, same, threads
from nearlinear import BrayCurtis, Canberra, Chebyshev, Manhattan, Minkowski, SmoothChebyshev
from nearlinear.distances import DistanceMetric
from nearlinear.reference import distance as reference
from test_distance import BOTH, METRICS
from torch import Tensor

ops = torch.ops.nearlinear
nan, inf = math.nan, math.inf
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])


def inside(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, fill: float = nan) -> tuple[Tensor, Tensor]:
    """A workspace and a slice of it with room on every side."""
    whole = torch.full((shape[0] + 3, shape[1] + 5), fill, dtype=dtype, device=device)
    return whole, whole[1:-2, 2:-3]


def tile(device: torch.device, dtype: torch.dtype = torch.float32, rows: int = 35, classes: int = 37, dim: int = 41) -> tuple[Tensor, ...]:
    """input and other as strided rows of wider buffers, and an upstream gradient in a slice of a workspace."""
    draw = Draw()
    made = []
    for shape in ((rows, dim), (classes, dim), (rows, classes)):
        view = inside(shape, dtype, device)[1]
        made.append(view.copy_(draw.normal(*shape) + 0.5))
    return tuple(made)


def gradients(grad: Tensor, x: Tensor, w: Tensor, metric: DistanceMetric) -> tuple[Tensor, Tensor]:
    return ops.pair_distances_backward(grad[None], x[None], w[None], metric.name, metric.params, True, True)


@each_metric
@DTYPES
def test_tile_layouts(metric: DistanceMetric, dtype: torch.dtype, device: torch.device) -> None:
    """A slice of a workspace is written, all of it and nothing beside it; the bits are those of dense tensors."""
    x, w, _ = tile(device, dtype)
    whole, out = inside((35, 37), dtype, device)
    assert ops.distance_tile(x, w, metric.name, metric.params, out) is None
    same(out.contiguous(), nearlinear.distance_matrix(x.contiguous(), w.contiguous(), metric), "slice")
    assert whole.isnan().sum() == whole.numel() - out.numel()
    exact = reference.distance_matrix(x.double().cpu(), w.double().cpu(), metric)
    torch.testing.assert_close(out.double().cpu(), exact, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)


@each_metric
@DTYPES
def test_accumulators_keep_what_they_hold_layouts(metric: DistanceMetric, dtype: torch.dtype, device: torch.device) -> None:
    """The gradients are added, to slices; a side that is not wanted is left alone."""
    x, w, grad = tile(device, dtype)
    d_x, d_w = (g[0] for g in gradients(*(t.contiguous() for t in (grad, x, w)), metric))
    for wants in ((True, True), (True, False), (False, True)):
        (whole_x, sum_x), (whole_w, sum_w) = (inside(tuple(t.shape), dtype, device, 3.0) for t in (x, w))
        ops.distance_tile_backward(sum_x, sum_w, grad, x, w, metric.name, metric.params, *wants)
        for wanted, whole, total, gradient in ((wants[0], whole_x, sum_x, d_x), (wants[1], whole_w, sum_w, d_w)):
            same(total.contiguous(), 3 + gradient if wanted else torch.full_like(gradient, 3), f"{wants}")
            total.fill_(3)
            assert (whole == 3).all()


@each_metric
def test_any_number_of_threads_gives_the_same_numbers(metric: DistanceMetric) -> None:
    """Enough blocks for the work to be split, which the small cases are not."""
    draw = Draw()
    inputs = {"input": draw.normal(300, 129).float(), "other": draw.normal(70, 129).float()}
    with threads(1):
        expected = evaluate(nearlinear.distance_matrix, inputs, {"metric": metric}, BOTH)
    for count in (2, 3, 4):
        with threads(count):
            same(evaluate(nearlinear.distance_matrix, inputs, {"metric": metric}, BOTH), expected, f"{count} threads")


# ---- degenerate pairs; "edges" in a name makes it run in Triton's interpreter too


@each_metric
def test_edges_equal_vectors_and_signed_zeros(metric: DistanceMetric, device: torch.device) -> None:
    """x = w: distance 0 with gradient 0, and no NaN from a root or a power at 0. -0.0 is 0.0."""
    x = torch.tensor([[0.0, -0.0, 0.0], [1.0, -2.0, 3.0]], device=device)
    value, (d_x, d_w) = evaluate(nearlinear.distance_matrix, {"input": x, "other": x.clone()}, {"metric": metric}, BOTH)
    low = math.log(3) / metric.alpha if isinstance(metric, SmoothChebyshev) else 0.0
    torch.testing.assert_close(value.diagonal(), torch.full((2,), low, device=device), rtol=1e-6, atol=0)
    definition, defined = evaluate(reference.distance_matrix, {"input": x, "other": x.clone()}, {"metric": metric}, BOTH)
    assert all(t.isfinite().all() for t in (value, d_x, d_w))
    torch.testing.assert_close([value, d_x, d_w], [definition, *defined])
    _, (d_alone, _) = evaluate(nearlinear.distance_matrix, {"input": x[1:], "other": x[1:].clone()}, {"metric": metric}, BOTH)
    assert (d_alone == 0).all()
    negative = nearlinear.distance_matrix(-x[:1], x, metric)
    same(negative, nearlinear.distance_matrix(x[:1].abs(), x, metric), "-0.0")


def test_edges_first_of_equal_largest_coordinates_has_the_gradient(device: torch.device) -> None:
    x = torch.tensor([[0.0, 2.0, -2.0, 2.0], [0.0, 0.0, 0.0, 0.0]], device=device)
    w = torch.zeros(1, 4, device=device)
    _, (d_x, d_w) = evaluate(nearlinear.distance_matrix, {"input": x, "other": w}, {"metric": Chebyshev()}, BOTH, x.new_ones(2, 1))
    assert d_x.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert d_w.tolist() == [[0.0, -1.0, 0.0, 0.0]]


@each_metric
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_edges_not_a_number_stays_in_its_row_and_column(metric: DistanceMetric, bad: float, device: torch.device) -> None:
    x, w, _ = tile(device, rows=9, classes=18, dim=5)
    expected = nearlinear.distance_matrix(x, w, metric)
    x[3, 4], w[7, 0] = bad, bad
    got = nearlinear.distance_matrix(x, w, metric)
    hit = torch.zeros_like(got, dtype=torch.bool)
    hit[3], hit[:, 7] = True, True
    same(got[~hit], expected[~hit], "elsewhere")
    if math.isnan(bad):
        assert got[hit].isnan().all()
    else:
        exact = reference.distance_matrix(x.double().cpu(), w.double().cpu(), metric)
        torch.testing.assert_close(got[hit].double().cpu(), exact[hit.cpu()], equal_nan=True)


@each_metric
def test_edges_zero_upstream_adds_nothing(metric: DistanceMetric, device: torch.device) -> None:
    """Ignored rows may hold anything: their gradient is 0, and the gradients of the classes are those without the row."""
    x, w, grad = (t.contiguous() for t in tile(device))
    grad[3], grad[:, 20] = 0, 0
    kept = torch.arange(35, device=device) != 3
    expected_x, expected_w = (g[0] for g in gradients(grad, x, w, metric))
    for bad in (nan, inf):
        x[3], w[20] = bad, bad
        d_x, d_w = (g[0] for g in gradients(grad, x, w, metric))
        assert (d_x[3] == 0).all()
        assert (d_w[20] == 0).all()
        same(d_x[kept], expected_x[kept], "rows")
        same(d_w[:20], expected_w[:20], "classes")


@pytest.mark.parametrize("metric", [Manhattan(), Minkowski(2), Chebyshev(), SmoothChebyshev(), Canberra(), BrayCurtis()], ids=str)
def test_edges_huge_and_tiny_numbers(metric: DistanceMetric, device: torch.device) -> None:
    """Whatever the sums can hold; the squares of Minkowski(2) end at 1e19."""
    draw = Draw()
    largest = 1e18 if isinstance(metric, Minkowski) else 1e36
    for size in (largest, 1e-18):
        inputs = {name: size * (draw.normal(5, 7) + 3).float().to(device) for name in BOTH}
        value, found = evaluate(nearlinear.distance_matrix, inputs, {"metric": metric}, BOTH)
        wide = {name: t.double().cpu() for name, t in inputs.items()}
        exact, exact_gradients = evaluate(reference.distance_matrix, wide, {"metric": metric}, BOTH)
        for got, want in zip([value, *found], [exact, *exact_gradients], strict=True):
            assert (got.double().cpu() - want).abs().max() <= 3e-6 * want.abs().max()


def test_smooth_chebyshev_is_exact_where_one_coordinate_leads(device: torch.device) -> None:
    """log(1 + e^-g) / alpha beside a maximum of 1: the shift by the maximum keeps it down to the rounding of the maximum."""
    x = torch.tensor([[1.0, 0.5], [1000.0, 999.0]], dtype=torch.float64, device=device)
    for dtype, rtol in ((torch.float32, 1e-7), (torch.float64, 1e-15)):
        got = nearlinear.distance_matrix(x.to(dtype), x.new_zeros(1, 2).to(dtype), SmoothChebyshev(10.0))
        expected = [1 + math.log1p(math.exp(-5)) / 10, 1000 + math.log1p(math.exp(-10)) / 10]
        torch.testing.assert_close(got.double().flatten().cpu(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=0)


@pytest.mark.parametrize("dim", [768, 8192])
def test_long_sums_keep_their_digits(dim: int, device: torch.device) -> None:
    """One running float32 sum of 8192 positive terms is off by 5e-6 (torch.cdist); partial sums added in float64 are not."""
    draw = Draw()
    x, w = draw.normal(40, dim).float().to(device), draw.normal(17, dim).float().to(device)
    exact = reference.distance_matrix(x.double().cpu(), w.double().cpu())
    error = nearlinear.distance_matrix(x, w).double().cpu() / exact - 1
    assert error.abs().max() <= (2e-7 if device.type == "cpu" else 1e-6)
    assert error.mean().abs() <= 5e-8


def test_op_messages(device: torch.device) -> None:
    """The ops check what their callers could get wrong; the Triton launchers have the same texts."""
    x, w, g = torch.zeros(3, 5, device=device), torch.zeros(4, 5, device=device), torch.zeros(3, 4, device=device)
    rows: list[tuple[tuple[Any, ...], str]] = [
        ((x[0], w, "manhattan", [], g), "input must have shape (R, D), got 1 dimensions"),
        ((x, w[None], "manhattan", [], g), "other must have 2 dimensions, got 3"),
        ((x.half(), w.half(), "manhattan", [], g), "input must be float32 or float64"),
        ((x, w.double(), "manhattan", [], g), "other must have the dtype of input"),
        ((x, w[:, :4], "manhattan", [], g), "other must have shape (4, 5)"),
        ((x[:, ::2], w[:, :3], "manhattan", [], g), "input must be contiguous along its last dimension"),
        ((x, w, "manhattan", [], g[:2]), "out must have shape (3, 4)"),
        ((x, w, "manhattan", [], g.t().contiguous().t()), "out must be contiguous along its last dimension"),
        ((x, w, "manhattan", [1.0], g), "metric_params has the wrong length for metric=manhattan"),
        (
            (x, w, "euclid", [], g),
            "metric must be manhattan, minkowski, chebyshev, smooth_chebyshev, canberra, bray_curtis or bray_curtis_abs, got euclid",
        ),
    ]
    for arguments, text in rows:
        with pytest.raises(RuntimeError, match="distance_tile: ") as caught:
            ops.distance_tile(*arguments)
        assert str(caught.value).splitlines()[0].endswith(text), text
    for d_x, d_w, grad, text in (
        (x, w, g[:2], "grad must have shape (3, 4)"), (w, w, g, "d_input must have shape (3, 5)"),
        (x, x, g, "d_other must have shape (4, 5)"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="distance_tile_backward: ") as caught:
            ops.distance_tile_backward(d_x.clone(), d_w.clone(), grad, x, w, "manhattan", [], True, True)
        assert str(caught.value).splitlines()[0].endswith(text), text
