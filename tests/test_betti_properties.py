"""What Betti matching must satisfy on any image, under hypothesis; not transposition, because equal entries are ordered by their index."""

from __future__ import annotations

from collections import Counter
from typing import Any

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from betti_data import groups, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

ops = torch.ops.nearlinear
Problem = tuple[Tensor, Tensor, bool, bool]


@st.composite
def problems(draw: st.DrawFn, finite: bool = True) -> Problem:
    """Two images of a batch of one, superlevel, positive."""
    nd = draw(st.sampled_from((1, 2, 2, 3)))
    shape = draw(st.tuples(*[st.integers(1, {1: 40, 2: 10, 3: 5}[nd])] * nd))
    kinds = ("distinct", "levels", "binary", "soft_and_binary", "near", *(() if finite else ("infinite",)))
    f, g = pair(draw(st.sampled_from(kinds)), (1, *shape), draw(st.integers(0, 2**31)))
    return f, g, draw(st.booleans()), draw(st.booleans())


def match(f: Tensor, g: Tensor, superlevel: bool, positive: bool) -> list[Any]:
    """Multisets of matched, input's and target's rows of every dimension."""
    nd = f.dim() - 1
    *tables, offsets = ops.betti_matching(f, g, list(range(nd)), superlevel, positive)
    found = groups(tables, offsets)
    return [found[i * nd : (i + 1) * nd] for i in range(3)]


def bars(f: Tensor, superlevel: bool) -> list[Counter[tuple[int, ...]]]:
    pairs, offsets = ops.persistence_barcode(f, list(range(f.dim() - 1)), superlevel)
    return groups([pairs], offsets)


def exchanged(rows: Counter[tuple[int, ...]]) -> Counter[tuple[int, ...]]:
    return Counter({(*row[2:], *row[:2]): count for row, count in rows.items()})


@given(problems(finite=False))
def test_roles_are_exchanged_with_the_images(problem: Problem) -> None:
    f, g, *options = problem
    matched, mine, other = match(f, g, *options)
    assert match(g, f, *options) == [[exchanged(rows) for rows in matched], other, mine]


@given(problems(finite=False))
def test_matched_and_unmatched_bars_are_the_barcode(problem: Problem) -> None:
    """Whatever the other image is. Two bars may share both pixels: several cells enter with one."""
    f, g, *options = problem
    matched, mine, other = match(f, g, *options)
    for image, half, alone in ((f, slice(0, 2), mine), (g, slice(2, 4), other)):
        whole = bars(image, options[0])
        assert [Counter(row[half] for row in rows) + alone[d] for d, rows in enumerate(matched)] == whole


@given(problems(), st.sampled_from([torch.exp, lambda x: x**3 + x, lambda x: 1e-3 * x - 7, torch.atan]))
def test_only_the_order_of_values_counts(problem: Problem, function: Any) -> None:
    f, g, *options = problem
    assert match(*(function(image.double()) for image in (f, g)), *options) == match(f, g, *options)


@given(problems(finite=False))
def test_superlevel_is_sublevel_of_the_negated(problem: Problem) -> None:
    f, g, superlevel, positive = problem
    assert match(f, g, superlevel, positive) == match(-f, -g, not superlevel, positive)


@given(problems())
def test_dtypes_change_nothing(problem: Problem) -> None:
    f, g, *options = problem
    expected = match(f, g, *options)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert match(f.to(dtype), g.to(dtype), *options) == expected
    levels = [(image * 64).clamp(-4, 250).round() for image in (f, g)]
    f, g = (x - x.amin() for x in levels)
    expected = match(f, g, *options)
    assert match(f.byte(), g.byte(), *options) == expected
    assert match(f > 1, g > 1, *options) == match((f > 1).float(), (g > 1).float(), *options)


@given(problems(), st.integers(0, 2))
def test_a_side_of_one_pixel_adds_nothing(problem: Problem, place: int) -> None:
    f, g, *options = problem
    if f.dim() == 4:
        f, g = f[..., 0], g[..., 0]
    nd = f.dim() - 1
    thicker = match(*(image.unsqueeze(1 + place % (nd + 1)) for image in (f, g)), *options)
    for ours, more in zip(match(f, g, *options), thicker, strict=True):
        assert [*ours, Counter()] == more


@given(problems(finite=False))
def test_identical_and_constant_images(problem: Problem) -> None:
    f, _, *options = problem
    matched, mine, other = match(f, f, *options)
    assert [Counter(row[:2] for row in rows) for rows in matched] == bars(f, options[0])
    assert all(row[:2] == row[2:] for rows in matched for row in rows)
    assert not any([*mine, *other])
    finite = f[None].clamp(max=9)
    assert float(nearlinear.betti_matching_loss(finite, finite, filtration="both", essential=True)) == 0
    matched, mine, other = match(f, torch.full_like(f, 0.25), *options)
    assert not any([*matched, *other])
    assert mine == bars(f, options[0])


def euler(inside: Tensor) -> Tensor:
    """Euler characteristic of the cells whose corners are all inside, of (N, *S)."""
    total = torch.zeros(len(inside), dtype=torch.int64)
    for axes in range(2 ** (inside.dim() - 1)):
        cells = inside
        for axis in (a for a in range(inside.dim() - 1) if axes >> a & 1):
            n = cells.shape[axis + 1] - 1
            cells = cells.narrow(axis + 1, 0, n) & cells.narrow(axis + 1, 1, n)
        total += (-1) ** axes.bit_count() * cells.flatten(1).sum(1)
    return total


@pytest.mark.parametrize("shape", [(5000,), (96, 80), (1, 700), (14, 16, 12), (3, 30, 30)], ids=str)
def test_euler_characteristic(shape: tuple[int, ...]) -> None:
    """At every threshold the living bars, with alternating signs, are V - E + F - ..., at sizes that no definition reaches."""
    torch.manual_seed(3)
    noise = torch.rand(1, 1, *shape)
    smooth = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(shape)](noise, 3, 1, 1)
    for image in (noise[0], smooth[0], (8 * noise[0]).floor() / 8):
        found = nearlinear.persistence_barcode(image, spatial_dims=len(shape), filtration="sublevel", essential=True)
        values = image.reshape(1, -1)[found.image[:, None], found.pairs]
        assert (values[:, 0] < values[:, 1]).all()
        for t in (0.05, 0.25, 0.45, 0.5, 0.55, 0.75, 1.0):
            alive = (values[:, 0] <= t) & (t < values[:, 1])
            signs = 1 - 2 * (found.dim[alive] % 2)
            first = int(image.flatten()[found.essential[0]] <= t)
            assert int(signs.sum()) + first == int(euler(image <= t))
            numbers = nearlinear.betti_numbers(-image, spatial_dims=len(shape), threshold=-t)[0]
            assert numbers.tolist() == [int((found.dim[alive] == d).sum()) + first * (d == 0) for d in range(len(shape))]


@given(problems())
@settings(max_examples=60)
def test_losses_of_parts_add_up(problem: Problem) -> None:
    """Dimensions, kinds of bars and filtrations are separate terms."""
    f, g, _, positive = problem
    x, y, nd = f[None].double(), g[None].double(), f.dim() - 1
    options = {"image_intervals": "positive" if positive else "all", "filtration": "both"}
    whole = nearlinear.betti_matching_loss(x, y, **options)
    parts = [
        {"dim_weight": [float(d == k) for k in range(nd)], "matched_weight": w0, "unmatched_input_weight": w1,
         "include_unmatched_target": w2} for d in range(nd) for w0, w1, w2 in ((1.0, 0.0, False), (0.0, 1.0, False), (0.0, 0.0, True))
    ]  # fmt: skip
    total = sum(nearlinear.betti_matching_loss(x, y, **options, **part) for part in parts)
    torch.testing.assert_close(whole, total)
    each = sum(nearlinear.betti_matching_loss(x, y, **{**options, "filtration": name}) for name in ("superlevel", "sublevel")) / 2
    torch.testing.assert_close(whole, each)
