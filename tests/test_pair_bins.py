"""Moments of scores in bins, and what is read off a table of moments, against the definition; what counts, and what is no number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layouts import LAYOUTS
from measure import Draw
from nearlinear.reference import pairwise_auc as reference
from torch import Tensor

ops = torch.ops.nearlinear
NAN, INF = float("nan"), float("inf")
WIDTH = 4.0  # bins of 1/4
GRID = (-72, 160)  # first bin, bins: scores from -18 to 22
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
SCORES = {
    "normal": lambda z: 2 * z,
    "tied": lambda z: torch.full_like(z, 1.3),
    "levels": lambda z: z.round(),  # all on borders of bins
    "separated": lambda z: z + 10 * z.sign(),
    "negative zero": lambda z: torch.where(z > 0, -0.0, 0.0),
    "tiny": lambda z: z * 1e-42,
}
COEFFICIENTS = {
    "none": lambda z: None,
    "positive": lambda z: z.abs() + 0.1,
    "signed": lambda z: z.round(),  # with zeros
    "decades": lambda z: 10 ** (2 * z),
    "large": lambda z: 1e30 * z,
    "small": lambda z: 1e-30 * z,
}


def samples(n: int, scores: str, coefficients: str, groups: int, dtype: torch.dtype, device: torch.device) -> list[Any]:
    draw = Draw(n)
    s, c = SCORES[scores](draw.normal(n)), COEFFICIENTS[coefficients](draw.normal(n))
    g = draw.labels(groups, n).to(device) if groups else None
    return [s.to(device, dtype), draw.positive(n).to(device) < 0.6, None if c is None else c.to(device, dtype), g, max(groups, 1)]


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the largest element."""
    assert got.shape == want.shape
    scale = float(want.abs().max()) if want.numel() else 0.0
    torch.testing.assert_close(got.cpu().double(), want.cpu().double(), rtol=0, atol=tolerance * scale)


def check(arguments: list[Any], terms: int) -> None:
    """Moments, and values of a random table, against the definition; the table is so large or small as the moments."""
    s, y, c, g, groups = arguments
    before = s.clone()
    moments = ops.binned_moments(s, y, c, g, groups, WIDTH, *GRID, terms)
    assert moments.dtype == torch.float64
    close(moments, reference.binned_moments(s, y, c, g, groups, WIDTH, *GRID, terms), TOLERANCE[s.dtype])
    table = Draw(terms).normal(groups, 2, GRID[1], terms).to(s.device)
    values = ops.binned_values(s, y, g, table, WIDTH, GRID[0])
    assert values.dtype == s.dtype
    close(values, reference.binned_values(s, y, g, table, WIDTH, GRID[0]), TOLERANCE[s.dtype])
    assert torch.equal(s, before)


@each_dtype
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_definition(scores: str, coefficients: str, dtype: torch.dtype, device: torch.device) -> None:
    check(samples(600, scores, coefficients, 0, dtype, device), 5)


@each_dtype
@pytest.mark.parametrize("terms", range(1, 13))
def test_terms(terms: int, dtype: torch.dtype, device: torch.device) -> None:
    check(samples(200, "normal", "signed", 0, dtype, device), terms)
    check(samples(50, "tied", "none", 0, dtype, device), terms)


@each_dtype
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 513, 3000])
@pytest.mark.parametrize("groups", [0, 1, 7])
def test_sizes(groups: int, n: int, dtype: torch.dtype, device: torch.device) -> None:
    check(samples(n, "normal", "signed", groups, dtype, device), 4)


@each_dtype
def test_every_sample_is_a_group(dtype: torch.dtype, device: torch.device) -> None:
    s, y, c, _, _ = samples(40, "normal", "decades", 0, dtype, device)
    check([s, y, c, torch.arange(40, device=device).flip(0), 40], 3)


def test_no_groups(device: torch.device) -> None:
    s, y, c, g, _ = samples(0, "normal", "signed", 1, torch.float32, device)
    assert ops.binned_moments(s, y, c, g, 0, WIDTH, *GRID, 3).shape == (0, 2, GRID[1], 3)
    assert ops.binned_values(s, y, g, torch.zeros(0, 2, 5, 3, dtype=torch.float64, device=device), WIDTH, 0).shape == (0,)


@each_dtype
def test_groups_keep_the_scale_of_their_coefficients(dtype: torch.dtype, device: torch.device) -> None:
    """Each group, and each label, is right relative to itself, however large the others are."""
    s, y, c, g, groups = samples(300, "normal", "positive", 3, dtype, device)
    c = c * (10.0 ** (12 * (g - 1)) * torch.where(y, 1e6, 1.0)).to(dtype)
    got = ops.binned_moments(s, y, c, g, groups, WIDTH, *GRID, 4)
    want = reference.binned_moments(s, y, c, g, groups, WIDTH, *GRID, 4)
    for channel, definition in zip(got.flatten(0, 1), want.flatten(0, 1), strict=True):
        close(channel, definition, TOLERANCE[dtype])


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    s, y, c, g, groups = samples(60, "normal", "signed", 3, dtype, device)
    strided = LAYOUTS[layout]
    if layout in ("transposed", "channels_last", "padded"):  # of a column
        s, c = (strided(torch.stack([t, t], 1))[:, 1] for t in (s, c))
    else:
        s, c = strided(s), strided(c)
    y, g = torch.stack([y, ~y], 1)[:, 0], torch.stack([g, g + 100], 1)[:, 0]
    check([s, y, c, g, groups], 4)
    table = Draw(1).normal(groups, GRID[1], 3, 2).to(device).permute(0, 3, 1, 2)
    close(ops.binned_values(s, y, g, table, WIDTH, GRID[0]), reference.binned_values(s, y, g, table, WIDTH, GRID[0]), TOLERANCE[dtype])


@each_dtype
def test_same_bits(dtype: torch.dtype, device: torch.device) -> None:
    arguments = samples(2000, "normal", "signed", 2, dtype, device)
    runs = [ops.binned_moments(*arguments, WIDTH, *GRID, 4) for _ in range(2)]
    assert torch.equal(*runs)
    read = [ops.binned_values(*arguments[:2], arguments[3], runs[0], WIDTH, GRID[0]) for _ in range(2)]
    assert torch.equal(*read)


# scores that no bin of eight, from -4 to 4, holds
OUTSIDE = (NAN, INF, -INF, 4.0, -4.0000005, 3e38, -3e38)


@each_dtype
@pytest.mark.parametrize("score", OUTSIDE)
@pytest.mark.parametrize("coefficient", [None, 1.0, -2.0, 0.0])
def test_a_score_outside_the_bins(coefficient: float | None, score: float, dtype: torch.dtype, device: torch.device) -> None:
    """Its group and label are marked, by one element that is no number; with a coefficient of 0 it counts for nothing."""
    s = torch.tensor([0.5, score, -4.0, 3.999999], dtype=dtype, device=device)
    y, g = torch.tensor([True, True, False, True], device=device), torch.tensor([1, 1, 1, 0], device=device)
    c = None if coefficient is None else torch.tensor([1, coefficient, 1, 1], dtype=dtype, device=device)
    moments = ops.binned_moments(s, y, c, g, 2, 1.0, -4, 8, 3)
    marked = coefficient != 0
    assert bool(moments[1, 1, 0, 0].isnan()) == marked
    assert int(moments.isnan().sum()) == marked
    kept = torch.tensor([0, 2, 3], device=device)
    want = reference.binned_moments(s[kept], y[kept], None, g[kept], 2, 1.0, -4, 8, 3)
    close(moments[0], want[0], TOLERANCE[dtype])
    close(moments[1, 0], want[1, 0], TOLERANCE[dtype])
    close(moments[1, 1, 1:], want[1, 1, 1:], TOLERANCE[dtype])
    values = ops.binned_values(s, y, g, torch.ones(2, 2, 8, 3, dtype=torch.float64, device=device), 1.0, -4)
    assert values.isnan().tolist() == [False, True, False, False]


@each_dtype
def test_zero_coefficients_alone(dtype: torch.dtype, device: torch.device) -> None:
    s = torch.tensor([NAN, 1.0, INF], dtype=dtype, device=device)
    y = torch.tensor([True, False, False], device=device)
    for zero in (0.0, -0.0):
        moments = ops.binned_moments(s, y, torch.full_like(s, zero), None, 1, 1.0, 0, 2, 2)
        assert torch.equal(moments, torch.zeros_like(moments))


@each_dtype
def test_a_cell_of_one_sample(dtype: torch.dtype, device: torch.device) -> None:
    """At the left border of a bin t = -1: the terms are 1, -1, 1."""
    s, y = torch.tensor([-0.0, 0.5], dtype=dtype, device=device), torch.tensor([False, True], device=device)
    c = torch.tensor([3.0, -0.25], dtype=dtype, device=device)
    moments = ops.binned_moments(s, y, c, None, 1, 2.0, -1, 3, 3)
    assert moments[0, 0].tolist() == [[0, 0, 0], [3, -3, 3], [0, 0, 0]]
    assert moments[0, 1].tolist() == [[0, 0, 0], [0, 0, 0], [-0.25, 0.25, -0.25]]
