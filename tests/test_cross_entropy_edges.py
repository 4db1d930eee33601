"""Degenerate inputs, one test per row of the documented table: torch is the judge where torch defines the case."""

from __future__ import annotations

import math
from typing import Any

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from measure import Draw, evaluate, same
from torch import Tensor

inf, nan = math.inf, math.nan
REDUCTIONS = ("none", "mean", "sum")


def ours_and_torch(
    x: Tensor, y: Tensor, wrt: tuple[str, ...] = ("input",), **options: Any
) -> tuple[tuple[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]:
    inputs = {"input": x, "target": y}
    options = {"reduction": "none", **options}
    return evaluate(nearlinear.cross_entropy, inputs, options, wrt), evaluate(F.cross_entropy, inputs, options, wrt)


def as_torch(x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """Our value and gradients, after comparing them with torch's."""
    ours, theirs = ours_and_torch(x, y, **options)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    return ours


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [5, 70])
def test_all_rows_ignored(classes: int, smoothing: float, device: torch.device) -> None:
    x, y = Draw().normal(4, classes).to(device), torch.full((4,), -100, device=device)
    for reduction, value in (("mean", nan), ("sum", 0.0), ("none", torch.zeros(4))):
        loss, (gradient,) = as_torch(x, y, reduction=reduction, label_smoothing=smoothing)
        same(loss.cpu(), torch.as_tensor(value).double(), reduction)
        assert (gradient == 0).all()


@pytest.mark.parametrize("classes", [5, 70])
def test_all_rows_ignored_with_every_option(classes: int, device: torch.device) -> None:
    """The terms that torch does not have keep the rule: NaN mean, zero gradients, also for the row weights."""
    draw = Draw()
    inputs = {
        "input": draw.normal(4, classes), "target": torch.full((4,), 1),
        "weight": draw.positive(classes), "sample_weight": draw.positive(4),
    }  # fmt: skip
    options = {"ignore_index": 1, "z_loss": 0.1, "label_smoothing": 0.1}
    inputs = {name: t.to(device) for name, t in inputs.items()}
    loss, gradients = evaluate(nearlinear.cross_entropy, inputs, options, ["input", "sample_weight"])
    assert loss.isnan()
    assert all((g == 0).all() for g in gradients)
    loss, gradients = evaluate(nearlinear.cross_entropy, inputs, {**options, "normalizer": 3.0}, ["input", "sample_weight"])
    assert loss == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("classes", [5, 70])
def test_ignored_rows_may_hold_anything(classes: int, bad: float, device: torch.device) -> None:
    """torch's gradient of such a row is NaN; ours is zero, because the row is never read."""
    x = Draw().normal(4, classes).to(device)
    y = torch.tensor([0, -100, 2, -100], device=device)
    expected = evaluate(nearlinear.cross_entropy, {"input": x, "target": y}, {"label_smoothing": 0.1}, ["input"])
    poisoned = x.clone()
    poisoned[1::2] = bad
    same(
        evaluate(nearlinear.cross_entropy, {"input": poisoned, "target": y}, {"label_smoothing": 0.1}, ["input"]), expected, "ignored rows"
    )
    assert (expected[1][0][1::2] == 0).all()


@pytest.mark.parametrize("classes", [5, 70])
def test_zero_upstream_gives_zero_gradient_of_a_poisoned_row(classes: int, device: torch.device) -> None:
    x = Draw().normal(3, classes).to(device)
    x[1, 2] = nan
    y, upstream = torch.tensor([0, 1, 2], device=device), torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64, device=device)
    gradient = evaluate(nearlinear.cross_entropy, {"input": x, "target": y}, {"reduction": "none"}, ["input"], upstream)[1][0]
    assert (gradient[1] == 0).all()
    assert gradient[::2].isfinite().all()
    t = Draw().normal(3, classes).softmax(1).to(device)
    t[1, 0] = nan  # makes the row's mass NaN too
    options = {"reduction": "none", "label_smoothing": 0.1}
    gradients = evaluate(nearlinear.cross_entropy, {"input": x, "target": t}, options, ["input", "target"], upstream)[1]
    assert all((g[1] == 0).all() and g[::2].isfinite().all() for g in gradients)


def test_zero_upstream_with_a_poisoned_probability(device: torch.device) -> None:
    """The mass of the row is NaN too: it must not make the row live."""
    draw = Draw()
    x, t = draw.normal(2, 5).to(device), draw.normal(2, 5).softmax(1).to(device)
    t[0, 1] = nan
    upstream = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    inputs = {"input": x, "target": t}
    for gradient in evaluate(nearlinear.cross_entropy, inputs, {"reduction": "none"}, ["input", "target"], upstream)[1]:
        assert (gradient[0] == 0).all()
        assert gradient[1].isfinite().all()


def test_no_rows(device: torch.device) -> None:
    for shape, rows in (((0, 7), (0,)), ((0, 7, 3), (0, 3)), ((2, 7, 0), (2, 0)), ((0, 70), (0,)), ((0, 0), (0,))):
        x, y = torch.zeros(shape, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
        for reduction in REDUCTIONS:
            for target in (y, torch.zeros_like(x)):
                loss, (gradient,) = as_torch(x, target, reduction=reduction)
                assert gradient.shape == shape
                if reduction == "mean":
                    assert loss.isnan()


def test_no_classes(device: torch.device) -> None:
    x, y = torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64)
    for function in (F.cross_entropy, nearlinear.cross_entropy):
        with pytest.raises(IndexError):
            function(x, y)
    as_torch(x.to(device), torch.full((3,), -100, device=device), reduction="sum")


def test_one_class(device: torch.device) -> None:
    for value in (0.0, 1e30, -5.0):
        for reduction in REDUCTIONS:
            loss, (gradient,) = as_torch(torch.full((3, 1), value, device=device), torch.zeros(3, dtype=torch.int64, device=device))
            assert (loss == 0).all(), reduction
            assert (gradient == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_that_sum_to_zero(smoothing: float, device: torch.device) -> None:
    """Every row has a class of weight 0: 0 / 0 without smoothing, and NaN with it too, because torch adds the two terms' means."""
    x, y = Draw().normal(4, 3).to(device), torch.tensor([0, 0, 2, 2], device=device)
    weight = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device=device)
    inputs, options = {"input": x, "target": y, "weight": weight}, {"label_smoothing": smoothing}
    for function in (F.cross_entropy, nearlinear.cross_entropy):
        assert evaluate(function, inputs, options, ["input"])[0].isnan()
    assert evaluate(nearlinear.cross_entropy, inputs, options, ["input"])[1][0].isnan().all()
    assert nearlinear.cross_entropy(**inputs, **options, z_loss=0.1).isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("classes", [2, 5, 70, 4100])
def test_minus_infinity(classes: int, dtype: torch.dtype, device: torch.device) -> None:
    """Beside the target: probability 0. At the target: +inf with the finite gradient p - e_y."""
    x, y = Draw().normal(6, classes).to(dtype).to(device), torch.zeros(6, dtype=torch.int64, device=device)
    x[0, 1:] = -inf  # only the target is left
    x[1, 1] = -inf
    x[2, 0] = -inf  # the target
    x[3, 0], x[3, -1] = -inf, 50.0
    exact = evaluate(F.cross_entropy, {"input": x.double(), "target": y}, {"reduction": "none"}, ["input"])
    loss, (gradient,) = evaluate(nearlinear.cross_entropy, {"input": x, "target": y}, {"reduction": "none"}, ["input"])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient.double(), exact[1][0], rtol=eps, atol=eps)
    assert gradient.isfinite().all()
    assert loss[0] == 0
    assert loss[2] == inf
    assert (gradient[0] == 0).all()  # probability 0 exactly, not the smallest exponential
    assert gradient[1, 1] == 0


@pytest.mark.parametrize("classes", [5, 70])
def test_minus_infinity_with_smoothing(classes: int, device: torch.device) -> None:
    """An impossible class that smoothing asks for: +inf loss, finite gradients."""
    x, y = Draw().normal(3, classes).to(device), torch.tensor([0, 1, 2], device=device)
    x[1, 3] = -inf  # not the target
    x[2, 2] = -inf  # the target
    loss, (gradient,) = as_torch(x, y, label_smoothing=0.1)
    assert loss[0].isfinite()
    assert (loss[1:] == inf).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [5, 70, 4100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("fill", ["nan", "-nan", "nan at target", "inf", "inf at target", "whole row -inf", "whole row nan"])
def test_not_a_number_stays_in_its_row(fill: str, smoothing: float, classes: int, device: torch.device) -> None:
    x, y = Draw().normal(3, classes).to(device), torch.tensor([0, 1, 2], device=device)
    row = x[1]
    if fill.startswith("whole"):
        row.fill_(-inf if "inf" in fill else nan)
    else:
        row[1 if "target" in fill else -1] = {"n": nan, "-": -nan, "i": inf}[fill[0]]
    loss, (gradient,) = as_torch(x, y, label_smoothing=smoothing)
    assert loss[1].isnan()
    assert gradient[1].isnan().all()
    assert loss[::2].isfinite().all()
    assert gradient[::2].isfinite().all()


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("pixels", [(), (3,)])
def test_not_a_number_with_probabilities(pixels: tuple[int, ...], bad: float, device: torch.device) -> None:
    draw = Draw()
    x, t = draw.normal(3, 5, *pixels).to(device), draw.normal(3, 5, *pixels).softmax(1).to(device)
    x[1, 2] = bad
    loss, (gradient,) = as_torch(x, t, label_smoothing=0.1)
    assert loss[1].isnan().all()
    assert gradient[1].isnan().all()
    assert loss[::2].isfinite().all()


def test_impossible_class_with_probabilities(device: torch.device) -> None:
    """A class of probability > 0 at -inf costs +inf; of probability 0, 0 * inf is NaN, as torch says."""
    x, t = torch.tensor([[0.0, -inf, 1.0]] * 2, device=device), torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.0, 0.5]], device=device)
    loss, _ = as_torch(x, t)
    assert loss[0] == inf
    assert loss[1].isnan()


def test_negative_and_unnormalised_probabilities(device: torch.device) -> None:
    draw = Draw()
    as_torch(draw.normal(4, 5).to(device), draw.normal(4, 5).to(device), wrt=("input", "target"), label_smoothing=0.2)


def test_infinite_loss_of_a_row_loss(device: torch.device) -> None:
    """Bounded members stay finite at p = 0, where cross-entropy is +inf; gradients are finite for both."""
    x, y = torch.tensor([[-inf, 0.0, 1.0]], device=device), torch.tensor([0], device=device)
    limits = {"mae": 1.0, "gce": 1 / 0.7, "truncated_gce": (1 - 0.5**0.7) / 0.7, "ce": inf, "focal": inf, "poly1": inf}
    for name, value in limits.items():
        loss, (gradient,) = evaluate(nearlinear.cross_entropy, {"input": x, "target": y}, {"row_loss": name, "reduction": "sum"}, ["input"])
        torch.testing.assert_close(loss.item(), value, rtol=1e-6, atol=0)
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("label", [7, -1, 2**31, -(2**63)])
@pytest.mark.parametrize("classes", [7, 70])
def test_invalid_labels_raise_on_cpu(classes: int, label: int) -> None:
    x, y = torch.zeros(4, classes), torch.tensor([0, 1, 2, 3])
    y[2] = label if label != 7 else classes
    for reduction in REDUCTIONS:
        for smoothing in (0.0, 0.1):
            with pytest.raises(IndexError, match=rf"target\[2\] = {int(y[2])} is out of range \[0, {classes}\)"):
                nearlinear.cross_entropy(x, y, reduction=reduction, label_smoothing=smoothing)
    with pytest.raises(IndexError, match=r"target\[1, 0\]"):
        nearlinear.cross_entropy(x[:, :, None].expand(4, classes, 2)[:2], torch.tensor([[0, 1], [int(y[2]), 0]]))
    with pytest.raises(RuntimeError, match="is out of range"):
        torch.ops.nearlinear.logit_stats(x, y, None, -100, "identity", [], False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_invalid_labels_poison_their_row_on_cuda(reduction: str) -> None:
    x, y = Draw().normal(4, 7).cuda(), torch.tensor([0, 9, -1, 2**40], device="cuda")
    loss, (gradient,) = evaluate(nearlinear.cross_entropy, {"input": x, "target": y}, {"reduction": reduction}, ["input"])
    assert loss.isnan().flatten()[-1]
    assert (gradient[1:] == 0).all()
    with pytest.raises(IndexError, match=r"target\[1\] = 9"):
        nearlinear.cross_entropy(x, y, check_targets=True)


def test_ignore_index_inside_and_outside_the_classes(device: torch.device) -> None:
    x, y = Draw().normal(6, 5).to(device), torch.tensor([0, 3, 3, 1, -7, 255], device=device)
    for ignored, rows in ((3, slice(0, 4)), (-7, [0, 1, 2, 4]), (255, [0, 1, 2, 5])):
        for reduction in REDUCTIONS:
            as_torch(x[rows], y[rows], ignore_index=ignored, reduction=reduction)


def test_one_positive_among_many(device: torch.device) -> None:
    """20,000 rows, one kept: the divisor is 1 and every other gradient is zero."""
    x, y = Draw().normal(20000, 3).to(device), torch.full((20000,), -100, device=device)
    y[777] = 1
    _, (gradient,) = as_torch(x, y, reduction="mean")
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [777]
