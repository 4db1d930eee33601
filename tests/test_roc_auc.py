"""The ROC metrics against their definition, rational numbers and scikit-learn; properties that no implementation detail may break."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import nearlinear
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import LAYOUTS
from measure import DTYPES, Draw, same, threads
from nearlinear.reference import roc_auc as reference
from torch import Tensor

ops = torch.ops.nearlinear
EXACT = {"rtol": 4e-15, "atol": 1e-15, "equal_nan": True}


def scores(kind: str, n: int, seed: int = 0) -> Tensor:
    values = Draw(seed).normal(n)
    if kind == "levels":
        return (3 * values).round()
    if kind == "tied":
        return torch.full_like(values, 2.5)
    if kind == "wide":
        return values * 10.0 ** (30 * Draw(seed + 1).normal(n)).clamp(-37, 37)
    if kind == "interval":  # one byte of all keys is the same: an odd number of passes
        return 1 + 0.9 * values.sigmoid()
    if kind == "offset":
        return values + 1e4
    return values


KINDS = ("normal", "levels", "tied", "wide", "interval", "offset")


def problem(n: int, kind: str = "levels", share: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    draw = Draw(seed + 7)
    return {
        "input": scores(kind, n, seed).float(),
        "target": draw.positive(n) < 0.25 + share,
        "sample_weight": draw.labels(4, n).float() / 4,
        "group": draw.labels(7, n),
    }


class TestOps:
    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        p = {name: t.to(device) for name, t in problem(40).items()}
        s, y, w, g = p["input"], p["target"], p["sample_weight"], p["group"]
        columns = torch.stack([s, -s, s * s], 1)
        return [
            (ops.roc_auc_counts.default, (s, y, g, 7), ()),
            (ops.roc_auc_counts.default, (s, y, None, 1), ()),
            (ops.roc_auc_sums.default, (s, y, w, g, 7, 0.4), ()),
            (ops.roc_auc_sums.default, (s, y, None, None, 1, 0.4), ()),
            (ops.roc_auc_class_sums.default, (columns, g % 3, w), ()),
        ]

    def test_opcheck(self) -> None:
        for op, arguments, _ in self.op_samples(torch.device("cpu")):
            torch.library.opcheck(op, arguments)

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
    def test_definition(self, dtype: torch.dtype) -> None:
        for op, arguments, _ in self.op_samples(torch.device("cpu")):
            name = op._schema.name.removeprefix("nearlinear::")
            arguments = (arguments[0].to(dtype), *arguments[1:])
            torch.testing.assert_close(op(*arguments), getattr(reference, name)(*arguments), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 40])
def test_definition(n: int, kind: str) -> None:
    s, y, w, g = problem(n, kind).values()
    for group, max_fpr in (({}, None), ({}, 0.07), ({"group": g}, None), ({"group": g, "num_groups": 9}, 0.5)):
        for weight in (None, w):
            for average in (None, "macro", "weighted"):
                options = {**group, "sample_weight": weight, "max_fpr": max_fpr, "average": average, "return_valid": True}
                got = nearlinear.roc_auc_score(s, y, **options)
                torch.testing.assert_close(got, reference.roc_auc_score(s, y, **options), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("n", [512, 513, 1500])
def test_definition_where_segments_are_sorted_by_radix(n: int, dtype: torch.dtype) -> None:
    """512 of one label are left to std::sort."""
    s, y, w, g = problem(2 * n, "normal", share=0.5).values()
    s = s.to(dtype)
    for weight in (None, w, w.double()):
        got = ops.roc_auc_sums(s, y, weight, None, 1, 0.3)
        torch.testing.assert_close(got, reference.roc_auc_sums(s, y, weight, None, 1, 0.3), **EXACT)
    same(ops.roc_auc_counts(s, y, g, 7), reference.roc_auc_counts(s, y, g, 7), "counts")


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 3, 50])
def test_definition_of_classes(n: int, classes: int) -> None:
    draw = Draw(n)
    s, y, w = (3 * draw.normal(n, classes)).round(), draw.labels(max(classes - 1, 1), n), draw.labels(3, n).double()
    for input in (s, s.float(), s.T.contiguous().T):
        for weight in (None, w):
            for options in ({"multi_class": "ovr", "average": None}, {"multi_class": "ovr"}, {"multi_class": "ovo", "average": "weighted"}):
                options = {**options, "sample_weight": weight, "return_valid": True}
                got, expected = (f(input, y, **options) for f in (nearlinear.roc_auc_score, reference.roc_auc_score))
                torch.testing.assert_close(got[0], expected[0], **EXACT)
                same(got[1], expected[1], "valid")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [5, 1000, 400_000])
def test_rational_number(n: int, kind: str) -> None:
    """Bit-equal to the quotient of integers, rounded once; 400000 takes several pieces of the sort."""
    p = problem(n, kind)
    s, y = p["input"], p["target"]
    ranks = torch.unique(s, return_inverse=True)[1]
    positive, negative = (torch.bincount(ranks[which], minlength=int(ranks.max()) + 1) for which in (y, ~y))
    twice = int((positive * (2 * (negative.cumsum(0) - negative) + negative)).sum())
    counts = ops.roc_auc_counts(s, y, None, 1)
    assert counts.tolist() == [[twice, int(y.sum()), int((~y).sum())]]
    assert float(nearlinear.roc_auc_score(s, y)) == float(Fraction(twice, 2 * int(y.sum()) * int((~y).sum())))


# ---- scikit-learn


@pytest.fixture
def metrics() -> Any:
    found = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the rival")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [20, 3000])
def test_scikit_learn(metrics: Any, n: int, kind: str) -> None:
    s, y, w, _ = problem(n, kind).values()
    s = s.double()
    for weight in (None, w):
        for max_fpr in (None, 0.001, 0.1, 0.5, 1.0):
            options = {"sample_weight": weight, "max_fpr": max_fpr}
            expected = metrics.roc_auc_score(y, s, **options)
            tolerance = 1e-15 if weight is None and max_fpr is None else 1e-14  # scikit-learn adds areas of trapezoids
            assert float(nearlinear.roc_auc_score(s, y, **options)) == pytest.approx(expected, abs=tolerance)
        for drop in (True, False):
            got = nearlinear.roc_curve(s, y, sample_weight=weight, drop_intermediate=drop)
            for ours, theirs in zip(got, metrics.roc_curve(y, s, sample_weight=weight, drop_intermediate=drop), strict=True):
                torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-14, atol=0)


@pytest.mark.parametrize("average", ["macro", "weighted"])
@pytest.mark.parametrize("multi_class", ["ovr", "ovo"])
def test_scikit_learn_classes(metrics: Any, multi_class: str, average: str) -> None:
    draw = Draw()
    s, y = (2 * draw.normal(600, 6)).round().softmax(1), draw.labels(6, 600)
    expected = metrics.roc_auc_score(y, s, multi_class=multi_class, average=average)
    assert float(nearlinear.roc_auc_score(s, y, multi_class=multi_class, average=average)) == pytest.approx(expected, abs=2e-15)
    for c, value in enumerate(nearlinear.roc_auc_score(s, y, multi_class="ovr", average=None)):
        assert float(value) == pytest.approx(metrics.roc_auc_score(y == c, s[:, c]), abs=1e-15)


# ---- properties


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    n = draw(st.sampled_from((2, 3, 9, 40, 600)))
    p = problem(n, draw(st.sampled_from(KINDS)), draw(st.sampled_from((0.1, 0.5))), draw(st.integers(0, 10_000)))
    return p["input"], p["target"]


@given(problems())
def test_monotone_maps_change_no_bit(p: tuple[Tensor, Tensor]) -> None:
    s, y = p
    ranks = torch.unique(s, return_inverse=True)[1]
    expected = nearlinear.roc_auc_score(s, y)
    for mapped in (ranks.float() - 5, 1 / (1 + ranks.double()).neg(), ranks.double().exp2(), 4 * s, s.double()):
        same(nearlinear.roc_auc_score(mapped, y), expected, "monotone map")


@given(problems())
def test_swapping_the_labels(p: tuple[Tensor, Tensor]) -> None:
    s, y = p
    for a, b in ((s, ~y), (-s, y)):
        (twice, n_p, n_q), (other, *_) = (ops.roc_auc_counts(*x, None, 1)[0].tolist() for x in ((s, y), (a, b)))
        assert twice + other == 2 * n_p * n_q


@given(problems(), st.integers(0, 100))
def test_a_weight_is_a_repetition_and_no_order_matters(p: tuple[Tensor, Tensor], seed: int) -> None:
    s, y = p
    draw = Draw(seed)
    k, order = draw.labels(4, len(s)), torch.randperm(len(s), generator=draw.generator)
    for max_fpr in (1.0, 0.25):
        repeated = ops.roc_auc_sums(s.repeat_interleave(k), y.repeat_interleave(k), None, None, 1, max_fpr)
        for i in (torch.arange(len(s)), order):
            same(ops.roc_auc_sums(s[i], y[i], k[i].float(), None, 1, max_fpr), repeated, "weights")
    same(ops.roc_auc_counts(s[order], y[order], None, 1), ops.roc_auc_counts(s, y, None, 1), "order")


@given(problems(), st.integers(0, 100))
def test_groups_are_a_loop(p: tuple[Tensor, Tensor], seed: int) -> None:
    """Ids of any size and sign, in any order, one per sample too."""
    s, y = p
    for ids in (Draw(seed).labels(5, len(s)) * 10**15 - 10**16, torch.arange(len(s)).flip(0), torch.zeros(len(s), dtype=torch.int64)):
        alone = torch.stack([nearlinear.roc_auc_score(s[ids == g], y[ids == g]) for g in ids.unique()])
        got, valid = nearlinear.roc_auc_score(s, y, group=ids, average=None, return_valid=True)
        torch.testing.assert_close(got, alone, rtol=0, atol=0, equal_nan=True)
        same(valid, ~alone.isnan(), "valid")


# ---- runtime


def test_layouts_threads_and_inputs() -> None:
    s, y, w, g = problem(300_000).values()
    options = {"sample_weight": w + 0.1, "group": g, "num_groups": 7, "average": None, "max_fpr": 0.3}
    torch.set_num_threads(1)
    calls = [lambda: nearlinear.roc_auc_score(s, y, **options), lambda: ops.roc_auc_counts(s, y, None, 1)]
    expected = [call() for call in calls]
    with threads(2):
        same([call() for call in calls], expected, "two threads")
    kept = s.clone()
    for name, make in LAYOUTS.items():
        view = make(s)
        same(nearlinear.roc_auc_score(view, y, **options), nearlinear.roc_auc_score(view.clone(), y, **options), name)
    same(s, kept, "input")


def test_compile() -> None:
    s, y, w, g = problem(64).values()

    def total(s: Tensor, y: Tensor) -> Tensor:
        grouped = nearlinear.roc_auc_score(s, y, group=g, num_groups=7, sample_weight=w)
        return grouped + nearlinear.roc_auc_score(s, y) + nearlinear.roc_auc_score(torch.stack([s, -s], 1), y.long(), multi_class="ovr")

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(s, y), total(s, y), rtol=0, atol=0)


def test_no_gradient() -> None:
    s, y, w, _ = problem(50).values()
    s, w = s.requires_grad_(), w.requires_grad_()
    for value in (
        nearlinear.roc_auc_score(s, y), nearlinear.roc_auc_score(s, y, sample_weight=w), *nearlinear.roc_curve(s, y, sample_weight=w)
    ):  # fmt: skip
        assert not value.requires_grad
