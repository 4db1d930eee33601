"""Soft ranks, smooth average precision and LambdaRank: the battery, ties, lists, and what a truncated loss leaves out."""

from __future__ import annotations

from typing import Any, ClassVar

import nearlinear
import pytest
import torch
from battery import Battery
from measure import Case, Draw, Inputs
from nearlinear.reference import ranking as reference


def ranked(levels: int = 0) -> Any:
    """Four lists; ``levels`` of relevance, or none."""

    def make(draw: Draw, rows: int) -> Inputs:
        made = {"input": draw.normal(rows), "group": torch.arange(rows) * 3 // 2 % 4}
        return made if not levels else {**made, "target": torch.arange(rows) // 4 % levels}

    return make


class RankBattery(Battery):
    few_terms = True
    common_roundings = 4
    casts_under_autocast = False

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        return []

    def saved_bytes(self, case: Case, rows: int) -> int:
        return 1000 * case.rows + 4096  # twice the scores, weights, ids, for each sum


class TestSigmoidRank(RankBattery):
    function = staticmethod(nearlinear.sigmoid_rank)
    definition = staticmethod(reference.sigmoid_rank)
    rowwise: ClassVar[dict[str, Any]] = {}
    reductions = ()
    cases = (
        Case("soft", ranked(), "all are near each other", options={"temperature": 1.0, "num_groups": 4}, rows=13, checked=True),
        Case("sharp", ranked(), "most are far from each other", options={"temperature": 0.05}, rows=40),
    )
    compiled: ClassVar[dict[str, str]] = {"soft": "aot_eager"}


class TestSmoothAveragePrecision(RankBattery):
    function = staticmethod(nearlinear.smooth_average_precision_loss)
    definition = staticmethod(reference.smooth_average_precision_loss)
    cases = (
        Case("soft", ranked(2), "gradcheck", options={"temperature": 0.7, "num_groups": 4}, rows=13, checked=True),
        Case("sharp", ranked(2), "a temperature of use", options={"temperature": 0.05}, rows=40),
    )
    compiled: ClassVar[dict[str, str]] = {"soft": "aot_eager"}
    modules = (
        (nearlinear.SmoothAveragePrecisionLoss, nearlinear.smooth_average_precision_loss, {"temperature": 0.1, "reduction": "none"}),
    )


class TestLambdaRank(RankBattery):
    function = staticmethod(nearlinear.lambda_rank_loss)
    definition = staticmethod(reference.lambda_rank_loss)
    cases = (
        Case("three", ranked(3), "gradcheck", options={"num_levels": 3, "num_groups": 4}, rows=13, checked=True),
        Case("at", ranked(5), "NDCG at 3", options={"num_levels": 5, "k": 3, "sigma": 1.7, "gain": "linear"}, rows=60),
    )
    compiled: ClassVar[dict[str, str]] = {"three": "aot_eager"}
    modules = ((nearlinear.LambdaRankLoss, nearlinear.lambda_rank_loss, {"num_levels": 3, "k": 2, "reduction": "sum"}),)


def test_ranks_of_tied_and_far_scores() -> None:
    s = torch.tensor([1.0, 3.0, 3.0, -0.0, 0.0])
    assert nearlinear.sigmoid_rank(s, temperature=1e-3).tolist() == [3, 1.5, 1.5, 4.5, 4.5]
    assert nearlinear.sigmoid_rank(s * 1e30, temperature=1.0).tolist() == [3, 1.5, 1.5, 4.5, 4.5]
    assert nearlinear.sigmoid_rank(s[:1], temperature=1.0).tolist() == [1]
    assert nearlinear.sigmoid_rank(s[:0], temperature=1.0).shape == (0,)
    nan = torch.tensor([0.0, float("nan"), 1.0, 2.0])
    assert nearlinear.sigmoid_rank(nan, temperature=1.0, group=torch.tensor([0, 0, 1, 1])).isnan().tolist() == [True, True, False, False]


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_ranks_of_many(temperature: float) -> None:
    """By bins and by the scan, against all pairs of a few."""
    s = Draw().normal(50_000).float()
    ranks = nearlinear.sigmoid_rank(s, temperature=temperature)
    few = slice(0, 50)
    exact = 0.5 + torch.sigmoid((s.double() - s[few, None].double()) / temperature).sum(1)
    torch.testing.assert_close(ranks[few].double(), exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize("levels", [2, 5])
def test_lambda_rank_with_ties(levels: int) -> None:
    """Tied scores have ranks all the same, in the reverse order of the samples, and their pairs a weight."""
    draw = Draw()
    s, y, g = (2 * draw.normal(200)).round() / 2, draw.labels(levels, 200), draw.labels(6, 200)
    for options in ({}, {"k": 4}, {"sigma": 3.0}, {"gain": "linear"}):
        leaves = [s.clone().requires_grad_() for _ in range(2)]
        ours = nearlinear.lambda_rank_loss(leaves[0], y, num_levels=levels, group=g, **options)
        exact = reference.lambda_rank_loss(leaves[1], y, num_levels=levels, group=g, **options)
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)
        gradients = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in ((ours, leaves[0]), (exact, leaves[1]))]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)


def test_lambda_rank_counts_every_pair() -> None:
    """A relevant document at the bottom of a long list is pulled up, where a loss of the top pairs alone leaves it."""
    s = torch.linspace(5, -5, 1000, requires_grad=True)
    y = torch.zeros(1000, dtype=torch.int64)
    y[-1] = 1
    (gradient,) = torch.autograd.grad(nearlinear.lambda_rank_loss(s, y, num_levels=2), s)
    assert gradient[-1] < -0.1
    assert (gradient[:-1] > 0).all()


def test_lists_without_pairs_are_left_out() -> None:
    s, g = torch.tensor([0.3, 0.1, 0.2, 0.5, 0.4], requires_grad=True), torch.tensor([0, 0, 1, 1, 3])
    y = torch.tensor([1, 0, 1, 1, 0])
    value = nearlinear.lambda_rank_loss(s, y, num_levels=2, group=g, num_groups=5, reduction="none")
    assert (value[1:] == 0).all()
    torch.testing.assert_close(nearlinear.lambda_rank_loss(s, y, num_levels=2, group=g), value[0])
    value = nearlinear.smooth_average_precision_loss(s, y, group=g, num_groups=5, reduction="none")
    assert value.shape == (5,)
    assert (value[2:] == 0).all()
    (gradient,) = torch.autograd.grad(value.sum(), s)
    assert gradient.isfinite().all()
    for empty in (nearlinear.smooth_average_precision_loss(s[:0], y[:0]), nearlinear.lambda_rank_loss(s[:0], y[:0], num_levels=2)):
        assert empty == 0
