"""Degenerate inputs of the all-pairs losses, what other implementations get wrong, groups, columns, levels, tails, sizes and ranks."""

from __future__ import annotations

import math
import socket
import time

import nearlinear
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import Draw, same
from nearlinear import surrogates
from nearlinear.reference import pairwise_auc as reference
from torch import Tensor

NAN, INF = float("nan"), float("inf")
RECORDS = {name: record() for name, record in surrogates.SURROGATES.items()}
METHODS = [(name, method) for name, record in RECORDS.items() for method in ("auto", *record.methods)]
each_method = pytest.mark.parametrize(("name", "method"), METHODS)


def loss_and_gradient(s: Tensor, y: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    leaf = s.detach().requires_grad_()
    loss = nearlinear.pairwise_auc_loss(leaf, y, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def problem(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    s = Draw(seed).normal(count).to(dtype)
    return s, torch.arange(count) * 7 % 10 < 3


# ---- degenerate


@each_method
def test_one_class_and_nothing(name: str, method: str) -> None:
    """0 with a gradient of 0 that is connected. LibAUC asserts without a positive and gives NaN without a negative."""
    for s in (torch.tensor([0.5, -1.0, 2.0]), torch.zeros(0), torch.tensor([3.0])):
        for y in (torch.ones_like(s).bool(), torch.zeros_like(s).bool()):
            value, gradient = loss_and_gradient(s, y, surrogate=name, method=method)
            assert value == 0
            assert torch.equal(gradient, torch.zeros_like(s))
    s, y = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1, 0, 1])
    value, gradient = loss_and_gradient(s, y, surrogate=name, method=method, sample_weight=torch.zeros(3))
    assert (float(value), gradient.abs().sum()) == (0, 0)
    value, valid = nearlinear.pairwise_auc_loss(s, y, surrogate=name, method=method, group=torch.tensor([5, 5, 1]), return_valid=True)
    assert valid.tolist() == [False, True]
    same(value, nearlinear.pairwise_auc_loss(s[:2], y[:2], surrogate=name, method=method), "a group of one class is left out")


@each_method
def test_not_a_number(name: str, method: str) -> None:
    s, y = problem(40, dtype=torch.float32)
    for place in (0, 5):
        bad = s.clone()
        bad[place] = NAN
        assert loss_and_gradient(bad, y, surrogate=name, method=method)[0].isnan()
        weight = torch.ones(40)
        weight[place] = 0
        value, gradient = loss_and_gradient(bad, y, surrogate=name, method=method, sample_weight=weight)
        clean, clean_gradient = loss_and_gradient(s, y, surrogate=name, method=method, sample_weight=weight)
        torch.testing.assert_close(value, clean)
        torch.testing.assert_close(gradient, clean_gradient)
        assert gradient[place] == 0


@pytest.mark.parametrize("method", ["scan", "direct", "auto"])
def test_infinities(method: str) -> None:
    for high, low, expected in ((INF, -INF, 0.0), (-INF, INF, INF), (INF, INF, math.log(2)), (-INF, -INF, math.log(2)), (INF, 0.0, 0.0)):
        value = nearlinear.pairwise_auc_loss(torch.tensor([high, low]), torch.tensor([1, 0]), method=method)
        torch.testing.assert_close(value, torch.tensor(expected))
    value = nearlinear.pairwise_auc_loss(torch.tensor([INF, -1.0]), torch.tensor([1, 0]), surrogate="hinge", method=method)
    assert value == 0


@pytest.mark.parametrize("method", ["scan", "direct", "auto"])
@pytest.mark.parametrize("difference", [110.0, 1e4, 3e38])
def test_far_apart(difference: float, method: str) -> None:
    """LibAUC's logistic loss at a difference of -110 is infinite and its gradient all NaN."""
    s = torch.tensor([-difference, 0.0])
    value, gradient = loss_and_gradient(s, torch.tensor([1, 0]), method=method)
    torch.testing.assert_close(value, torch.tensor(difference))
    torch.testing.assert_close(gradient, torch.tensor([-1.0, 1.0]))
    value, gradient = loss_and_gradient(-s, torch.tensor([1, 0]), method=method)
    assert value == 0 or difference == 110.0
    assert gradient.isfinite().all()


@each_method
def test_zeros_have_no_sign(name: str, method: str) -> None:
    y = torch.tensor([1, 0, 0, 1])
    plus, minus = (loss_and_gradient(torch.tensor([zero, 0.0, 1.0, 1.0]), y, surrogate=name, method=method) for zero in (0.0, -0.0))
    same(plus, minus, "-0.0")


@pytest.mark.parametrize("method", ["scan", "direct"])
def test_knots(method: str) -> None:
    """At a knot the term that bends there counts for 0, as in relu; torch.maximum, which LibAUC uses, takes half."""
    for name, x, slope in (
        ("hinge", 1.0, 0.0), ("squared_hinge", 1.0, 0.0), ("ramp", 1.0, 0.0), ("ramp", 0.0, -1.0), ("huber_hinge", 0.0, -1.0),
        ("barrier_hinge", 1.0, 0.0), ("barrier_hinge", -2.0, -1.0),
    ):  # fmt: skip
        _, gradient = loss_and_gradient(torch.tensor([x, 0.0]), torch.tensor([1, 0]), surrogate=name, method=method)
        assert gradient.tolist() == [slope, -slope], name


@each_method
def test_constant_scores(name: str, method: str) -> None:
    value, gradient = loss_and_gradient(torch.full((50,), 0.3), torch.arange(50) % 3 == 0, surrogate=name, method=method)
    exact = 0.0 if name == "log_exponential" else float(RECORDS[name].value(torch.zeros(())))
    assert float(value) == pytest.approx(exact, rel=1e-6)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-6)


# ---- invariances


@each_method
def test_invariances(name: str, method: str) -> None:
    s, y = problem(400)
    s = (s * 1024).round() / 1024  # so that a shift is exact
    options = {"surrogate": name, "method": method}
    value, gradient = loss_and_gradient(s, y, **options)
    scale = float(gradient.abs().max())
    assert abs(float(gradient.sum())) <= 1e-12 * float(gradient.abs().sum())
    order = torch.randperm(400, generator=Draw(1).generator)
    for moved, labels, back, sign in ((s[order], y[order], order, 1), (s + 1024, y, slice(None), 1), (-s, ~y, slice(None), -1)):
        got, got_gradient = loss_and_gradient(moved, labels, **options)
        torch.testing.assert_close(got, value, rtol=1e-12, atol=0)
        torch.testing.assert_close(sign * got_gradient, gradient[back], rtol=0, atol=1e-12 * scale)
    twice = torch.where(torch.arange(400) % 5 == 0, 2.0, 1.0).double()
    repeated = torch.cat([torch.arange(400), torch.arange(0, 400, 5)])
    torch.testing.assert_close(
        nearlinear.pairwise_auc_loss(s, y, sample_weight=twice, **options),
        nearlinear.pairwise_auc_loss(s[repeated], y[repeated], **options), rtol=1e-12, atol=0,
    )  # fmt: skip


def test_labels_of_every_kind() -> None:
    s, y = problem(30)
    expected = nearlinear.pairwise_auc_loss(s, y)
    for labels in (y.long(), y.float(), 2 * y.int() - 1, y.to(torch.uint8), (2 * y.int() - 1).half()):
        same(nearlinear.pairwise_auc_loss(s, labels), expected, str(labels.dtype))


# ---- groups, columns, levels, tails


@pytest.mark.parametrize("name", ["logistic", "squared_hinge", "square", "exponential"])
def test_groups_are_a_loop(name: str) -> None:
    s, y = problem(300)
    for group in (torch.arange(300), torch.zeros(300).long(), torch.arange(300) * 11 % 17, (torch.arange(300) ** 0.5).long()):
        value, valid = nearlinear.pairwise_auc_loss(s, y, surrogate=name, group=group, reduction="none", return_valid=True)
        for k, one in enumerate(group.unique()):
            here = group == one
            assert bool(valid[k]) == bool(0 < y[here].sum() < here.sum())
            torch.testing.assert_close(value[k], nearlinear.pairwise_auc_loss(s[here], y[here], surrogate=name), rtol=1e-12, atol=1e-14)
        mean = nearlinear.pairwise_auc_loss(s, y, surrogate=name, group=group)
        torch.testing.assert_close(mean, value.sum() / valid.sum().clamp(min=1))
        spread = nearlinear.pairwise_auc_loss(s, y, surrogate=name, group=group + 5, num_groups=400)
        torch.testing.assert_close(spread, mean, rtol=1e-14, atol=0)


def test_columns_are_tasks() -> None:
    draw = Draw()
    s, y, w, g = draw.normal(60, 3), draw.labels(2, 60, 3), draw.positive(60), draw.labels(4, 60)
    each = torch.stack([nearlinear.pairwise_auc_loss(s[:, c], y[:, c], sample_weight=w) for c in range(3)])
    torch.testing.assert_close(nearlinear.pairwise_auc_loss(s, y, sample_weight=w, reduction="none"), each)
    torch.testing.assert_close(nearlinear.pairwise_auc_loss(s, y, sample_weight=w[:, None].expand(60, 3)), each.mean())
    grouped = nearlinear.pairwise_auc_loss(s, y, group=g, num_groups=5, reduction="none")
    assert grouped.shape == (5, 3)
    torch.testing.assert_close(grouped[2, 1], nearlinear.pairwise_auc_loss(s[g == 2, 1], y[g == 2, 1]))


@pytest.mark.parametrize("name", ["logistic", "hinge"])
def test_levels(name: str) -> None:
    draw = Draw()
    s, y, g, w = draw.normal(90), draw.labels(4, 90), draw.labels(5, 90), draw.positive(90)
    for options in ({}, {"group": g}, {"group": g, "sample_weight": w, "reduction": "weighted"}):
        got = nearlinear.pairwise_auc_loss(s, y, surrogate=name, num_levels=4, **options)
        torch.testing.assert_close(got, reference.pairwise_auc_loss(s, y, surrogate=name, num_levels=4, **options), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["logistic", "squared_hinge", "exponential", "sigmoid"])
@pytest.mark.parametrize(("max_fpr", "min_tpr"), [(0.25, None), (None, 0.6), (0.31, 0.17), (1.0, 0.0)])
def test_tails(name: str, max_fpr: float | None, min_tpr: float | None) -> None:
    """Equal to the loss of the subset, whose boundary may cut a run of equal scores."""
    s, y = problem(120)
    for scores in (s, (2 * s).round() / 2):
        options = {"surrogate": name, "max_fpr": max_fpr, "min_tpr": min_tpr}
        got = nearlinear.pairwise_auc_loss(scores, y, **options)
        torch.testing.assert_close(got, reference.pairwise_auc_loss(scores, y, **options), rtol=1e-12, atol=0)
    if max_fpr == 1.0:
        torch.testing.assert_close(got, nearlinear.pairwise_auc_loss(scores, y, surrogate=name))
    if max_fpr == 0.25 and name == "logistic":  # 84 negatives, of which the 21 highest
        hardest = torch.cat([s[y], s[~y].sort(descending=True).values[:21]])
        labels = torch.arange(len(hardest)) < int(y.sum())
        torch.testing.assert_close(nearlinear.pairwise_auc_loss(s, y, max_fpr=0.25), nearlinear.pairwise_auc_loss(hardest, labels))


def test_score_range() -> None:
    s, y = problem(100, dtype=torch.float32)
    expected = nearlinear.pairwise_auc_loss(s, y, method="bins")
    torch.testing.assert_close(nearlinear.pairwise_auc_loss(s, y, method="bins", score_range=(-9, 9)), expected)
    value, gradient = loss_and_gradient(s, y, method="bins", score_range=(-9.0, 0.5))
    assert value.isnan()
    assert gradient.isnan().any()
    with pytest.raises(ValueError, match="more than 512 / scale apart"):
        nearlinear.pairwise_auc_loss(1000 * s, y, method="bins")


# ---- sizes


def test_many_small_groups_in_one_pass() -> None:
    """1e5 groups of zipf sizes, against a loop over a few of them."""
    count = 300_000
    draw = Draw()
    group = (100_000 * draw.positive(count).sub(0.25) ** 4).long()
    s, y = draw.normal(count).float(), draw.labels(3, count) == 0
    start = time.perf_counter()
    value, valid = nearlinear.pairwise_auc_loss(s, y, group=group, num_groups=100_000, reduction="none", return_valid=True)
    assert time.perf_counter() - start < 20
    for k in (0, 1, 7, 77_777):
        here = group == k
        torch.testing.assert_close(value[k], nearlinear.pairwise_auc_loss(s[here], y[here]), rtol=1e-6, atol=1e-7)
    assert not value[~valid].any()


@pytest.mark.parametrize(("name", "method"), [("logistic", "bins"), ("logistic", "scan"), ("squared_hinge", "scan")])
def test_error_does_not_grow(name: str, method: str) -> None:
    """2^24 + 3 tied and untied samples in float32, where counts and sums in float32 have stopped."""
    count = (1 << 24) + 3 if method == "bins" else (1 << 20) + 3
    for s in (torch.zeros(count), torch.arange(count) % 1001 / 1000.0):
        y = torch.arange(count) % 3 == 0
        value, gradient = loss_and_gradient(s, y, surrogate=name, method=method)
        levels, index = s.unique(return_inverse=True)
        weights = torch.zeros(2, len(levels), dtype=torch.float64).index_put_((y.long(), index), torch.ones((), dtype=torch.float64), True)
        x = levels[:, None].double() - levels
        pairs = weights[1][:, None] * weights[0]
        exact = float((RECORDS[name].value(x) * pairs).sum() / pairs.sum())
        assert float(value) == pytest.approx(exact, rel=3e-7)
        assert float(gradient.double().sum()) == pytest.approx(0, abs=1e-6 * float(gradient.abs().sum()))


# ---- ranks


WAYS = (("logistic", "bins"), ("sigmoid", "auto"), ("logistic", "scan"), ("squared_hinge", "scan"), ("square", "closed"))


def work(rank: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    s, y = problem(600)
    # rank 0: no positives; rank 1: no samples
    owner = torch.where(y, 2 + torch.arange(600) % 2, torch.tensor([0, 2, 3])[torch.arange(600) % 3])
    here = owner == rank
    weight, group = Draw(5).positive(600), torch.arange(600) % 4
    for name, method in WAYS:
        for options in ({}, {"sample_weight": weight}, {"group": group}, {"group": group, "num_groups": 4, "reduction": "weighted"}):
            whole = {**options, "surrogate": name, "method": method}
            leaves = [t.clone().requires_grad_() for t in (s, weight)]
            whole |= {"sample_weight": leaves[1]} if "sample_weight" in options else {}
            expected = nearlinear.pairwise_auc_loss(leaves[0], y, **whole)
            gradients = torch.autograd.grad(expected, leaves, allow_unused=True)
            own = [t[here].clone().requires_grad_() for t in (s, weight)]
            part = {n: t[here] if isinstance(t, Tensor) else t for n, t in whole.items()}
            part |= {"sample_weight": own[1]} if "sample_weight" in options else {}
            loss = nearlinear.pairwise_auc_loss(own[0], y[here], process_group=dist.group.WORLD, **part)
            torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
            # every rank asks for the gradient of the loss: their sum is 4 times it, the mean of DDP is it
            for got, exact in zip(torch.autograd.grad(loss, own, allow_unused=True), gradients, strict=True):
                if exact is not None:
                    torch.testing.assert_close(got, 4 * exact[here], rtol=1e-11, atol=1e-16)
    whole = nearlinear.PairwiseAUCAccumulator(score_range=(-9, 9), dtype=torch.float64)
    whole.update(s[here], y[here])
    whole.merge(dist.group.WORLD)
    share = whole.loss(s[here], y[here]).reshape(1)
    dist.all_reduce(share)
    torch.testing.assert_close(share[0], nearlinear.pairwise_auc_loss(s, y), rtol=1e-13, atol=0)
    dist.destroy_process_group()


def test_four_ranks_are_one() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (port,), nprocs=4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "scale"), [("logistic", 1.7), ("sigmoid", None)])
def test_micro_batches_have_the_gradient_of_the_whole(name: str, scale: float | None, weighted: bool) -> None:
    s, y = problem(500)
    leaves = [t.clone().requires_grad_() for t in (s, Draw(5).positive(500))]
    options = {"surrogate": name, "scale": scale}
    expected = nearlinear.pairwise_auc_loss(leaves[0], y, sample_weight=leaves[1] if weighted else None, **options)
    gradients = torch.autograd.grad(expected, leaves[: 1 + weighted])
    whole = nearlinear.PairwiseAUCAccumulator(score_range=(-9, 9), dtype=torch.float64, **options)
    with pytest.raises(RuntimeError, match="call update"):
        whole.loss(s, y)
    parts = [torch.arange(k, 500, 3) for k in range(3)]
    weight = leaves[1] if weighted else None
    for part in parts:
        whole.update(s[part], y[part], sample_weight=None if weight is None else weight[part])
    loss = sum(whole.loss(leaves[0][part], y[part], sample_weight=None if weight is None else weight[part]) for part in parts)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for got, exact in zip(torch.autograd.grad(loss, leaves[: 1 + weighted], create_graph=False), gradients, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-16)
