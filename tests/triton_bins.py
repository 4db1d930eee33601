"""The launchers of moments and values in bins on CPU tensors: the definition with fresh memory poisoned, and what integers promise.
Collected by test_triton_interpreter.py, with TRITON_INTERPRET set; test_pair_bins.py runs through the launchers too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from measure import Draw
from nearlinear.reference import pairwise_auc as reference
from nearlinear.triton_kernels import pair_bins
from test_pair_bins import GRID, NAN, TOLERANCE, WIDTH, close, each_dtype, samples
from triton_oracle import MARKS, poison  # noqa: F401  a fixture

pytestmark = MARKS
ops = torch.ops.nearlinear
CPU = torch.device("cpu")


@each_dtype
@pytest.mark.parametrize("n", [0, 3, 1200])
@pytest.mark.parametrize("coefficients", ["none", "signed"])
@pytest.mark.parametrize("groups", [0, 3])
def test_definition(groups: int, coefficients: str, n: int, dtype: torch.dtype) -> None:
    arguments = samples(n, "normal", coefficients, groups, dtype, CPU)
    s, y, _, g, count = arguments
    close(pair_bins.binned_moments(*arguments, WIDTH, *GRID, 5), reference.binned_moments(*arguments, WIDTH, *GRID, 5), TOLERANCE[dtype])
    table = Draw(1).normal(count, 2, GRID[1], 5)
    values = pair_bins.binned_values(s, y, g, table, WIDTH, GRID[0])
    close(values, reference.binned_values(s, y, g, table, WIDTH, GRID[0]), TOLERANCE[dtype])


@each_dtype
@pytest.mark.parametrize("coefficients", ["none", "decades"])
def test_same_bits_in_any_order(coefficients: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the samples are dealt out to programs and to tables."""
    s, y, c, g, groups = samples(1000, "normal", coefficients, 2, dtype, CPU)
    order = torch.randperm(1000)
    first = pair_bins.binned_moments(s, y, c, g, groups, WIDTH, *GRID, 4)
    monkeypatch.setattr(pair_bins, "CELLS", 0)
    c = None if c is None else c[order]
    assert torch.equal(pair_bins.binned_moments(s[order], y[order], c, g[order], groups, WIDTH, *GRID, 4), first)


@each_dtype
@pytest.mark.parametrize("value", [None, 0.3, -1e-41, 3e38])
@pytest.mark.parametrize("n", [1, 3, 7, 1023])
def test_a_full_cell_is_exact(n: int, value: float | None, dtype: torch.dtype) -> None:
    """Of equal coefficients: the largest sum that a cell can hold."""
    s, y = torch.full((n,), 0.25, dtype=dtype), torch.ones(n, dtype=torch.bool)
    c = None if value is None else torch.full_like(s, value)
    moments = pair_bins.binned_moments(s, y, c, None, 1, 1.0, 0, 1, 3)
    factor = n if c is None else n * float(c[0])
    assert moments.tolist() == [[[[0.0, 0.0, 0.0]], [[factor, -0.5 * factor, -0.5 * factor]]]]


def test_float64_keeps_its_digits_however_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bits that 2^37 samples would leave, all at one score: every sample is rounded to the same side."""
    monkeypatch.setattr(pair_bins, "fraction_bits", lambda count, dtype: 25)
    arguments = samples(500, "tied", "positive", 0, torch.float64, CPU)
    close(pair_bins.binned_moments(*arguments, WIDTH, *GRID, 8), reference.binned_moments(*arguments, WIDTH, *GRID, 8), 1e-14)


@each_dtype
def test_labels_keep_the_scale_of_their_coefficients(dtype: torch.dtype) -> None:
    s, y, c, _, _ = samples(300, "normal", "positive", 0, dtype, CPU)
    for factor in (1e15, 1e-15):
        scaled = torch.where(y, factor * c, c).to(dtype)
        got = pair_bins.binned_moments(s, y, scaled, None, 1, WIDTH, *GRID, 4)
        want = reference.binned_moments(s, y, scaled, None, 1, WIDTH, *GRID, 4)
        for label in (0, 1):
            close(got[0, label], want[0, label], TOLERANCE[dtype])


def test_what_counts_nowhere() -> None:
    """Groups out of range and coefficients of 0: nor do they set a scale, nor their scores a mark."""
    s, y = torch.tensor([0.5, NAN, 0.5, 0.5, NAN]), torch.tensor([True, True, False, True, True])
    g, c = torch.tensor([1, -1, 2, 2**62, 1]), torch.tensor([1.0, 1e30, -1e30, 1e30, 0.0])
    moments = pair_bins.binned_moments(s, y, c, g, 2, 1.0, 0, 1, 2)
    assert moments.flatten().tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    values = pair_bins.binned_values(s, y, g, torch.ones(2, 2, 1, 2, dtype=torch.float64), 1.0, 0)
    assert values.isnan().tolist() == [False, True, True, True, True]


@each_dtype
@pytest.mark.parametrize("coefficient", [math.nan, math.inf, -math.inf])
def test_a_coefficient_that_is_not_finite(coefficient: float, dtype: torch.dtype) -> None:
    """Marks its group and label, and leaves the others and their scale alone."""
    s, y = torch.tensor([0.5, 0.5, 1.5], dtype=dtype), torch.tensor([True, True, False])
    moments = pair_bins.binned_moments(s, y, torch.tensor([coefficient, 2, 3], dtype=dtype), None, 1, 1.0, 0, 2, 1)
    torch.testing.assert_close(moments.flatten(), torch.tensor([0, 3, NAN, 0], dtype=torch.float64), rtol=0, atol=0, equal_nan=True)


def test_errors_are_those_of_the_cpu_kernel() -> None:
    s, y, g = torch.zeros(3), torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    table = torch.zeros(1, 2, 4, 3, dtype=torch.float64)
    calls: dict[str, list[Any]] = {"binned_moments": [s, y, None, None, 1, 1.0, 0, 4, 3], "binned_values": [s, y, None, table, 1.0, 0]}
    for op, place, value, text in (
        ("binned_moments", 0, s[None], "input must have shape"), ("binned_moments", 0, s.half(), "input must be float32"),
        ("binned_moments", 1, g, "target must be bool of shape"), ("binned_moments", 1, y[1:], "target must be bool of shape"),
        ("binned_moments", 2, s.double(), "coefficient must have the shape and dtype of input"),
        ("binned_moments", 2, s[1:], "coefficient must have the shape and dtype of input"),
        ("binned_moments", 3, g[1:], "group must be int64 of shape"), ("binned_moments", 3, s, "group must be int64 of shape"),
        ("binned_moments", 4, 2, "num_groups must be >= 0, and 1 without group, got 2"),
        ("binned_moments", 6, -(2**24), "first_bin must be within"),
        ("binned_moments", 7, 0, "bins must be > 0 and terms in 1 to 32, got 0 and 3"),
        ("binned_moments", 8, 33, "bins must be > 0 and terms in 1 to 32, got 4 and 33"),
        ("binned_values", 3, table.float(), "table must be float64 of shape"), ("binned_values", 3, table[0], "table must be float64"),
        ("binned_values", 3, table.expand(2, 2, 4, 3), "num_groups must be >= 0, and 1 without group, got 2"),
        ("binned_values", 5, 2**24, "first_bin must be within"),
    ):  # fmt: skip
        arguments = calls[op]
        for call in (getattr(pair_bins, op), getattr(ops, op)):
            with pytest.raises(RuntimeError, match=text):
                call(*arguments[:place], value, *arguments[place + 1 :])
