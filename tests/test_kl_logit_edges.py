"""Divergence of two logits: accuracy where plain formulas lose their digits, degenerate inputs, and the traps of the published code."""

from __future__ import annotations

import math
from typing import Any

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from measure import Draw, evaluate, same, threads
from nearlinear.reference import kl_logit as reference
from torch import Tensor

inf, nan = math.inf, math.nan
BOTH = ("input", "target_logits")


def rows_of(x: Tensor, t: Tensor, upstream: Tensor | None = None, **options: object) -> tuple[Tensor, list[Tensor]]:
    return evaluate(nearlinear.kl_logit_loss, {"input": x, "target_logits": t}, {"reduction": "none", **options}, BOTH, upstream)


def exact_rows(x: Tensor, t: Tensor, temperature: float, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """kl = log E_q e^u with E_q u = 0, in float64: no term cancels another, unlike in the definition."""
    x, t = x.double().cpu() / temperature, t.double().cpu() / temperature
    log_q = t.log_softmax(1)
    q, u = log_q.exp(), (x - t) - (log_q.exp() * (x - t)).sum(1, keepdim=True)
    series = u**2 / 2 * (1 + u / 3 * (1 + u / 4 * (1 + u / 5 * (1 + u / 6))))
    kl = torch.log1p((q * torch.where(u.abs() < 1e-2, series, torch.expm1(u) - u)).sum(1, keepdim=True))
    log_ratio, scale = u - kl, upstream.double().cpu()[:, None] / temperature
    return kl.squeeze(1), [scale * q * torch.expm1(log_ratio), -scale * q * (log_ratio + kl)]


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("step", [4.0, 0.5, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("classes", [2, 70, 4100], ids=["two", "row", "blocks"])
def test_neighbours_keep_relative_accuracy(classes: int, step: float, temperature: float, device: torch.device) -> None:
    """Divergences from 1 down to 1e-14 in float32, and their gradients, where log-softmax leaves noise (and negative values)."""
    draw = Draw()
    t = draw.normal(6, classes, scale=3.0).float()
    x = (t.double() + step * draw.normal(6, classes)).float()
    upstream = draw.positive(6).float()
    value, gradients = rows_of(x.to(device), t.to(device), upstream.to(device), temperature=temperature)
    exact, exact_gradients = exact_rows(x, t, temperature, upstream)
    torch.testing.assert_close(value.double().cpu(), exact, rtol=2e-6, atol=0)
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert (ours.double().cpu() - theirs).abs().max() <= 3e-6 * theirs.abs().max()


@pytest.mark.parametrize("classes", [2, 70, 4100], ids=["two", "row", "blocks"])
@pytest.mark.parametrize("offsets", [(1e6, 0.0), (0.0, -1e6), (1e6, -1e6), (1e4, 1e4)], ids=str)
def test_common_offsets_change_nothing(offsets: tuple[float, float], classes: int, device: torch.device) -> None:
    """Either logit has its own; multiples of 1/4 fit beside a million in float32."""
    draw = Draw()
    x, t = ((draw.normal(5, classes, scale=8.0).round() / 4).float() for _ in BOTH)
    upstream = draw.positive(5).float()
    value, gradients = rows_of((x + offsets[0]).to(device), (t + offsets[1]).to(device), upstream.to(device), temperature=3.0)
    exact, exact_gradients = exact_rows(x, t, 3.0, upstream)
    torch.testing.assert_close(value.double().cpu(), exact, rtol=2e-6, atol=0)
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert (ours.double().cpu() - theirs).abs().max() <= 3e-6 * theirs.abs().max()


@pytest.mark.parametrize("classes", [2, 70, 4100], ids=["two", "row", "blocks"])
def test_one_far_logit_leaves_the_others_digits(classes: int, device: torch.device) -> None:
    """An input at a million, in steps of 1/16, beside a target near 0: float32 does not hold their difference, the kernel does."""
    draw = Draw()
    t = draw.normal(5, classes).float()
    x = ((16 * draw.normal(5, classes)).round() / 16 + 1e6).float()
    upstream = draw.positive(5).float()
    value, gradients = rows_of(x.to(device), t.to(device), upstream.to(device))
    exact, exact_gradients = exact_rows(x, t, 1.0, upstream)
    torch.testing.assert_close(value.double().cpu(), exact, rtol=2e-6, atol=0)
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert (ours.double().cpu() - theirs).abs().max() <= 3e-6 * theirs.abs().max()


def test_never_negative_and_zero_for_equal_logits(device: torch.device) -> None:
    draw = Draw()
    t = draw.normal(2000, 30, scale=5.0).float().to(device)
    assert (nearlinear.kl_logit_loss(t, t.clone(), reduction="none", temperature=3.0) == 0).all()
    near = torch.nextafter(t, torch.full_like(t, inf))
    assert (nearlinear.kl_logit_loss(near, t, reduction="none") >= 0).all()
    plain = F.kl_div(near.log_softmax(1), t.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert (plain < 0).any()  # what the kernel's form avoids


def test_gradient_rows_sum_to_zero(device: torch.device) -> None:
    """To rounding: of the entries for the input; for the target, entries q (log(q / p) - kl), of the terms that cancel in them."""
    draw = Draw()
    x, t = (draw.normal(9, 5000, scale=4.0).float().to(device) for _ in BOTH)
    value, (d_input, d_target) = rows_of(x, t, torch.ones(9, device=device))
    d_input, d_target = d_input.double(), d_target.double()
    assert (d_input.sum(1).abs() <= 1e-6 * d_input.abs().sum(1)).all()
    assert (d_target.sum(1).abs() <= 1e-6 * (d_target.abs().sum(1) + value)).all()


# ---- degenerate inputs


@pytest.mark.parametrize("classes", [3, 2100])
def test_impossible_classes(classes: int, device: torch.device) -> None:
    """-inf in both: nothing; in the target: q log q = 0; in the input alone: +inf, with the finite gradient (p - q) / T for the input."""
    draw = Draw()
    x, t = draw.normal(4, classes), draw.normal(4, classes)
    x[0, 1] = t[0, 1] = t[1, 1] = x[2, 1] = x[3, -1] = -inf
    t[3, -1] = -900.0  # probability e^-900: 0 in float64 too, and yet the divergence is infinite
    for dtype in (torch.float64, torch.float32):
        value, (d_input, d_target) = rows_of(x.to(dtype).to(device), t.to(dtype).to(device), torch.ones(4, dtype=dtype, device=device))
        wide = [z.clone().requires_grad_() for z in (x, t)]
        exact = reference.kl_logit_loss(*wide, reduction="none")
        exact_gradients = torch.autograd.grad(exact[:2].sum(), wide)
        torch.testing.assert_close(value[:2].double().cpu(), exact[:2].detach(), rtol=2e-6, atol=0)
        assert (value[2:] == inf).all()
        for ours, theirs in zip((d_input, d_target), exact_gradients, strict=True):
            torch.testing.assert_close(ours[:2].double().cpu(), theirs[:2], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(d_input.double().cpu(), x.softmax(1) - t.softmax(1), rtol=1e-5, atol=1e-7)
        assert not d_target[2:].isfinite().all(1).any()


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("fill", ["nan", "inf", "whole row -inf"])
@pytest.mark.parametrize("pixels", [(), (3,)], ids=["rows", "image"])
@pytest.mark.parametrize("loss", [nearlinear.kl_logit_loss, nearlinear.js_logit_loss], ids=lambda f: f.__name__[:2])
def test_not_a_number_stays_in_its_row(loss: Any, which: str, fill: str, pixels: tuple[int, ...], device: torch.device) -> None:
    draw = Draw()
    inputs = {name: draw.normal(3, 70, *pixels).float().to(device) for name in BOTH}
    if fill == "whole row -inf":
        inputs[which][1] = -inf
    else:
        inputs[which][1, 40] = float(fill)
    value, gradients = evaluate(loss, inputs, {"reduction": "none"}, BOTH)
    assert value[1].isnan().all()
    assert value[::2].isfinite().all()
    for gradient in gradients:
        assert gradient[1].isnan().any()
        assert gradient[::2].isfinite().all()


@pytest.mark.parametrize("loss", [nearlinear.kl_logit_loss, nearlinear.js_logit_loss], ids=lambda f: f.__name__[:2])
def test_rows_outside_the_mask_may_hold_anything(loss: Any, device: torch.device) -> None:
    draw = Draw()
    x, t, v = (z.float().to(device) for z in (draw.normal(6, 70), draw.normal(6, 70), draw.positive(6)))
    mask = torch.tensor([True, False, True, False, False, True], device=device)
    inputs = {"input": x, "target_logits": t, "mask": mask, "sample_weight": v}
    wrt = (*BOTH, "sample_weight")
    expected = evaluate(loss, inputs, {}, wrt)
    for bad in (nan, inf, -inf):
        poisoned = {name: z.clone() for name, z in inputs.items()}
        for name in wrt:
            poisoned[name][~mask] = bad
        same(evaluate(loss, poisoned, {}, wrt), expected, f"rows of {bad} outside the mask")
    assert all((gradient[~mask] == 0).all() for gradient in expected[1])


@pytest.mark.parametrize("reduction", ["none", "batchmean", "sum"])
def test_no_row_is_kept(reduction: str, device: torch.device) -> None:
    """Trap of RAMP: the mean over an empty set of rows. 0 with a zero gradient, connected to the graph; the same without any rows."""
    draw = Draw()
    none = torch.zeros(4, dtype=torch.bool, device=device)
    x, t, v = (z.to(device) for z in (draw.normal(4, 5), draw.normal(4, 5), draw.positive(4)))
    for inputs in (
        {"input": x, "target_logits": t, "mask": none},
        {"input": x, "target_logits": t, "mask": none, "sample_weight": v},
        {"input": x[:0], "target_logits": t[:0]},
        {"input": x[:0], "target_logits": t[:0], "mask": none[:0]},
    ):
        value, gradients = evaluate(nearlinear.kl_logit_loss, inputs, {"reduction": reduction}, BOTH)
        assert (value == 0).all()
        assert all((gradient == 0).all() for gradient in gradients)


def test_weights_that_sum_to_zero(device: torch.device) -> None:
    """Rows are kept, so 0 / 0 is the caller's to see."""
    x, t = Draw().normal(4, 5).to(device), Draw(1).normal(4, 5).to(device)
    assert nearlinear.kl_logit_loss(x, t, sample_weight=torch.zeros(4, device=device)).isnan()


def test_one_class_and_no_class(device: torch.device) -> None:
    for classes in (0, 1):
        x, t = (Draw(seed).normal(3, classes).float().to(device) for seed in (0, 1))
        value, gradients = rows_of(x, t)
        assert (value == 0).all()
        assert all((gradient == 0).all() for gradient in gradients)


def test_rows_with_zero_upstream_are_not_read(device: torch.device) -> None:
    x, t = Draw().normal(3, 70).to(device), Draw(1).normal(3, 70).to(device)
    x[1, 2] = t[1, 3] = nan
    upstream = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64, device=device)
    for gradient in rows_of(x, t, upstream)[1]:
        assert (gradient[1] == 0).all()
        assert gradient[::2].isfinite().all()


def test_threads_share_no_scratch() -> None:
    """Many rows of several blocks on two threads: the bits of one thread."""
    x, t = Draw().normal(64, 5000).bfloat16(), Draw(1).normal(64, 5000).float()
    with threads(1):
        expected = rows_of(x, t)
    with threads(2):
        for _ in range(5):
            same(rows_of(x, t), expected, "two threads")


# ---- traps of the published code


def test_a_shrunken_softmax_underflows_and_the_logits_do_not(device: torch.device) -> None:
    """SAF's code takes log(softmax): probabilities below 1e-38 become 0 and the loss infinite. Ours is the true divergence."""
    x = torch.tensor([[0.0, 200.0, 1.0]], device=device)
    t = torch.tensor([[0.0, 1.0, 200.0]], device=device)
    published = F.kl_div(x.softmax(1).log(), t.softmax(1), reduction="batchmean")
    assert not published.isfinite()
    value, gradients = rows_of(x, t)
    torch.testing.assert_close(value.cpu(), torch.tensor([199.0]))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_class_axis_is_the_second(device: torch.device) -> None:
    """A softmax without ``dim`` takes the first axis of a 3-d tensor; here it is always axis 1."""
    draw = Draw()
    x, t = draw.normal(3, 4, 5).to(device), draw.normal(3, 4, 5).to(device)
    rows = nearlinear.kl_logit_loss(x, t, reduction="none")
    flat = nearlinear.kl_logit_loss(x.movedim(1, -1).reshape(15, 4), t.movedim(1, -1).reshape(15, 4), reduction="none")
    torch.testing.assert_close(rows, flat.view(3, 5))


def test_the_temperature_scales_no_loss(device: torch.device) -> None:
    """SAF's factor T^2 is the caller's: at a high temperature the loss falls with 1 / T^2."""
    x, t = Draw().normal(4, 50).to(device), Draw(1).normal(4, 50).to(device)
    hot, hotter = (nearlinear.kl_logit_loss(x, t, temperature=temperature) for temperature in (1e3, 1e4))
    torch.testing.assert_close(hot / hotter, torch.full_like(hot, 100.0), rtol=1e-2, atol=0)
