"""Jensen-Shannon divergence of two logits: the battery, the published definition, accuracy near and far, degenerate inputs."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from battery import Battery
from measure import Draw, evaluate
from nearlinear.reference import kl_logit as reference
from test_kl_logit import BOTH, case, logits
from torch import Tensor

ops = torch.ops.nearlinear
inf, nan = math.inf, math.nan

CASES = (
    case("rows", logits(131), "less than a block, prime"),
    case("blocks", logits(4099), "two full cache blocks of classes and three left over", rows=3, options={"beta": 0.9}),
    case("even_blocks", logits(2050), "halves read in pairs", rows=3, options={"beta": 0.2}),
    case(
        "everything", logits(6, weighted=True, masked=True), "every option at once", rows=9, options={"temperature": 2.5, "beta": 0.3},
        differentiable=(*BOTH, "sample_weight"), checked=True,
    ),
    case("image", logits(5, 7, masked=True), "classes with a stride", rows=3, options={"temperature": 0.5}),
    case("other_logit", logits(70), "a gradient for the reference distribution alone", rows=7, differentiable=("target_logits",)),
)  # fmt: skip


class TestJSLogit(Battery):
    function = staticmethod(nearlinear.js_logit_loss)
    definition = staticmethod(reference.js_logit_loss)
    cases = CASES
    reductions = ("batchmean", "sum")
    common_roundings = 2
    compiled: ClassVar[dict[str, str]] = {"everything": "inductor", "rows": "aot_eager"}
    modules = ((nearlinear.JSLogitLoss, nearlinear.js_logit_loss, {"beta": 0.2, "temperature": 3.0, "reduction": "sum"}),)

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        return not view.is_cuda and view.stride(1) == 1

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        arguments = (draw.normal(5, 7).float().to(device), draw.normal(5, 7).float().to(device), 0.4, 0.3)
        stats = ops.two_logit_stats(*arguments)
        saved = (torch.ones_like(stats[0]), *arguments[:2], *stats, *arguments[2:], True, True)
        return [(ops.two_logit_stats.default, arguments, (0, 1)), (ops.two_logit_stats_backward.default, saved, ())]


def rows_of(x: Tensor, t: Tensor, upstream: Tensor | None = None, **options: object) -> tuple[Tensor, list[Tensor]]:
    return evaluate(nearlinear.js_logit_loss, {"input": x, "target_logits": t}, {"reduction": "none", **options}, BOTH, upstream)


def excess(y: Tensor) -> Tensor:
    """y - log(1 + y) in float64, by its series where that cancels."""
    series = y**2 * (1 / 2 - y * (1 / 3 - y * (1 / 4 - y * (1 / 5 - y * (1 / 6 - y / 7)))))
    return torch.where(y.abs() < 1e-2, series, y - torch.log1p(y))


def exact_rows(x: Tensor, t: Tensor, beta: float, temperature: float, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """In float64, as sums of terms without a sign; log(p / q) from E_q of the difference of the logits."""
    x, t = x.double().cpu() / temperature, t.double().cpu() / temperature
    q = t.softmax(1)
    v = (x - t) - (q * (x - t)).sum(1, keepdim=True)
    u = v - torch.log1p(
        (q * torch.where(v.abs() < 1e-2, v**2 / 2 * (1 + v / 3 * (1 + v / 4 * (1 + v / 5))), torch.expm1(v) - v)).sum(1, True)
    )
    p = q * u.exp()
    y, z = (1 - beta) * torch.expm1(u), beta * torch.expm1(-u)
    kl_target, kl_input = (q * excess(y)).sum(1, True), (p * excess(z)).sum(1, True)
    scale = upstream.double().cpu()[:, None] / temperature
    gradients = [-scale * (1 - beta) * p * (torch.log1p(z) + kl_input), -scale * beta * q * (torch.log1p(y) + kl_target)]
    return (beta * kl_target + (1 - beta) * kl_input).squeeze(1), gradients


# ---- the published definition


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_it_is_the_divergence_of_gkd(beta: float, device: torch.device) -> None:
    """TRL's expression: the share beta of the teacher in the mixture, and beta times the teacher's divergence from it."""
    draw = Draw()
    inputs = {name: draw.normal(4, 9, scale=3.0).to(device) for name in BOTH}

    def published(input: Tensor, target_logits: Tensor) -> Tensor:
        student, teacher = (input / 2).log_softmax(1), (target_logits / 2).log_softmax(1)
        mixture = torch.logsumexp(torch.stack([student + math.log(1 - beta), teacher + math.log(beta)]), dim=0)
        of_teacher, of_student = (F.kl_div(mixture, z, reduction="batchmean", log_target=True) for z in (teacher, student))
        return beta * of_teacher + (1 - beta) * of_student

    ours = evaluate(nearlinear.js_logit_loss, inputs, {"beta": beta, "temperature": 2}, BOTH)
    torch.testing.assert_close(ours, evaluate(published, inputs, {}, BOTH), rtol=1e-11, atol=1e-13)


def test_the_sides_may_be_exchanged_with_their_shares(device: torch.device) -> None:
    draw = Draw()
    x, t = draw.normal(5, 70).float().to(device), draw.normal(5, 70).float().to(device)
    value, gradients = rows_of(x, t, beta=0.3)
    exchanged, exchanged_gradients = rows_of(t, x, beta=0.7)
    torch.testing.assert_close(value, exchanged)
    torch.testing.assert_close(gradients, exchanged_gradients[::-1])


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_the_ends_are_kl_with_a_vanishing_factor(beta: float, device: torch.device) -> None:
    x, t = Draw().normal(4, 50).to(device), Draw(1).normal(4, 50).to(device)
    sides, factor = ((x, t), beta) if beta < 0.5 else ((t, x), 1 - beta)
    kl = nearlinear.kl_logit_loss(*sides, reduction="none")
    torch.testing.assert_close(nearlinear.js_logit_loss(x, t, beta=beta, reduction="none") / factor, kl, rtol=2e-5, atol=0)


# ---- accuracy


@pytest.mark.parametrize("beta", [0.5, 0.02, 0.98])
@pytest.mark.parametrize("step", [4.0, 0.5, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("classes", [2, 70, 4100], ids=["two", "row", "blocks"])
def test_neighbours_keep_relative_accuracy(classes: int, step: float, beta: float, device: torch.device) -> None:
    """Divergences down to 1e-15 in float32, and their gradients, relative to the largest term before the mean is subtracted from it."""
    draw = Draw()
    t = draw.normal(6, classes, scale=3.0).float()
    x = (t.double() + step * draw.normal(6, classes)).float()
    upstream = draw.positive(6).float()
    value, gradients = rows_of(x.to(device), t.to(device), upstream.to(device), beta=beta, temperature=2.0)
    exact, exact_gradients = exact_rows(x, t, beta, 2.0, upstream)
    torch.testing.assert_close(value.double().cpu(), exact, rtol=2e-6, atol=0)
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert (ours.double().cpu() - theirs).abs().max() <= 3e-6 * theirs.abs().max()


@pytest.mark.parametrize("offsets", [(1e6, 0.0), (0.0, -1e6), (1e4, 1e4)], ids=str)
def test_common_offsets_change_nothing(offsets: tuple[float, float], device: torch.device) -> None:
    """Multiples of 1/4 fit beside a million in float32."""
    draw = Draw()
    x, t = ((draw.normal(5, 70, scale=8.0).round() / 4).float() for _ in BOTH)
    upstream = draw.positive(5).float()
    value, gradients = rows_of((x + offsets[0]).to(device), (t + offsets[1]).to(device), upstream.to(device), beta=0.3)
    exact, exact_gradients = exact_rows(x, t, 0.3, 1.0, upstream)
    torch.testing.assert_close(value.double().cpu(), exact, rtol=2e-6, atol=0)
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert (ours.double().cpu() - theirs).abs().max() <= 3e-6 * theirs.abs().max()


def test_never_negative_and_zero_for_equal_logits(device: torch.device) -> None:
    t = Draw().normal(2000, 30, scale=5.0).float().to(device)
    value, gradients = rows_of(t, t.clone(), beta=0.3)
    assert (value == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)
    near = torch.nextafter(t, torch.full_like(t, inf))
    assert (nearlinear.js_logit_loss(near, t, reduction="none") >= 0).all()
    log_p, log_q = near.log_softmax(1), t.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    assert ((log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) < 0).any()  # what the kernel's form avoids


@pytest.mark.parametrize("beta", [0.5, 0.1, 0.999])
@pytest.mark.parametrize("far", [80.0, 150.0, 3000.0, inf])
def test_softmaxes_that_do_not_meet_reach_the_bound(far: float, beta: float, device: torch.device) -> None:
    x = torch.tensor([[0.0, -far]], device=device)
    value, gradients = rows_of(x, x.flip(1), beta=beta)
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    torch.testing.assert_close(value.cpu(), torch.tensor([bound]), rtol=2e-6, atol=0)
    assert all(gradient.abs().max() <= 1e-6 for gradient in gradients)


# ---- degenerate inputs


@pytest.mark.parametrize("classes", [3, 2100])
@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_impossible_classes(beta: float, classes: int, device: torch.device) -> None:
    """-inf in both adds 0; in one alone, and in a class that underflows beside it, everything stays finite and is the definition's."""
    draw = Draw()
    x, t = draw.normal(4, classes), draw.normal(4, classes)
    x[0, 1] = t[0, 1] = t[1, 1] = x[2, 1] = x[3, -1] = -inf
    t[3, -1] = -900.0
    upstream = draw.positive(4)
    wide = evaluate(reference.js_logit_loss, {"input": x, "target_logits": t}, {"reduction": "none", "beta": beta}, BOTH, upstream)
    value, gradients = rows_of(x.float().to(device), t.float().to(device), upstream.float().to(device), beta=beta)
    torch.testing.assert_close(value.double().cpu(), wide[0], rtol=2e-6, atol=0)
    for ours, theirs in zip(gradients, wide[1], strict=True):
        torch.testing.assert_close(ours.double().cpu(), theirs, rtol=1e-5, atol=1e-7)
    assert gradients[0][2, 1] == gradients[1][1, 1] == 0


def test_one_class_and_no_class(device: torch.device) -> None:
    for classes in (0, 1):
        x, t = (Draw(seed).normal(3, classes).float().to(device) for seed in (0, 1))
        value, gradients = rows_of(x, t)
        assert (value == 0).all()
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("beta", [0, 1.0, -0.1, 1.5, nan, None])
def test_messages(beta: Any) -> None:
    x = torch.zeros(3, 5)
    text = f"beta must be a number between 0 and 1, got {beta!r}; for the ends call"
    with pytest.raises(ValueError, match=f"^js_logit_loss: {text} kl_logit_loss, with the two sides exchanged for beta=1$"):
        nearlinear.js_logit_loss(x, x, beta=beta)
    with pytest.raises(ValueError, match=f"^linear_js_logit_loss: {text} linear_kl_logit_loss, "):
        nearlinear.linear_js_logit_loss(x, x, x, x, beta=beta)
    with pytest.raises(ValueError, match=r"^js_logit_loss: temperature must be a finite number > 0, got 0$"):
        nearlinear.js_logit_loss(x, x, temperature=0)
    if beta == 1.5:
        with pytest.raises(RuntimeError, match=r"two_logit_stats: beta must be 0 for KL, or lie between 0 and 1, got 1\.5"):
            ops.two_logit_stats(x, x, 1.0, beta)
