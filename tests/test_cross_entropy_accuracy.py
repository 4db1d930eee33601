"""Accuracy where plain formulas lose their digits, invariances, and random small problems."""

from __future__ import annotations

import math

import nearlinear
import pytest
import torch
from hypothesis import given
from layouts import read_only
from measure import Draw, evaluate, same, within_budget
from nearlinear import CrossEntropyLoss
from nearlinear.reference import cross_entropy as reference
from strategies import Problem, problems
from torch import Tensor


def rows_of(x: Tensor, y: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    value, (gradient,) = evaluate(nearlinear.cross_entropy, {"input": x, "target": y}, {"reduction": "none", **options}, ["input"])
    return value, gradient


@pytest.mark.parametrize("classes", [2, 70, 4100], ids=["tiles", "rows", "blocks"])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4, 1e6, -1e6])
def test_common_offset_changes_nothing(offset: float, classes: int, device: torch.device) -> None:
    """Logits that float32 holds exactly next to the offset: bits and gradients of the loss stay what they are at offset 0."""
    draw = Draw()
    x = (draw.normal(5, classes, scale=8.0).round() / 4).float().to(device)  # multiples of 1/4 fit beside 1e6
    y = draw.labels(classes, 5).to(device)
    value, gradient = rows_of(x + offset, y)
    exact, (exact_gradient,) = evaluate(
        reference.cross_entropy, {"input": x.double().cpu(), "target": y.cpu()}, {"reduction": "none"}, ["input"]
    )
    torch.testing.assert_close(value.double().cpu(), exact, rtol=1e-6, atol=0)
    assert (gradient.double().cpu() - exact_gradient).abs().max() <= 1e-6


@pytest.mark.parametrize("classes", [2, 70, 4100], ids=["two", "row", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=lambda d: str(d)[6:])
def test_common_offset_with_probabilities(dtype: torch.dtype, classes: int, device: torch.device) -> None:
    draw = Draw()
    x, t = (draw.normal(5, classes, scale=8.0).round() / 4).to(dtype), draw.normal(5, classes).softmax(1).to(dtype)
    exact, exact_gradients = evaluate(
        reference.cross_entropy, {"input": x.double(), "target": t.double()}, {"reduction": "none"}, ["input", "target"]
    )
    for offset in (0.0, 1e4, -1e6):
        inputs = {"input": (x + offset).to(device), "target": t.to(device)}
        value, gradients = evaluate(nearlinear.cross_entropy, inputs, {"reduction": "none"}, ["input", "target"])
        rtol = 1e-6 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(value.double().cpu(), exact, rtol=rtol, atol=0)
        for ours, theirs in zip(gradients, exact_gradients, strict=True):
            assert (ours.double().cpu() - theirs).abs().max() <= rtol * theirs.abs().max()


def test_offset_value_known_in_closed_form(device: torch.device) -> None:
    """log(1 + e^-3) = 0.0485873520 under an offset of a million, where log-softmax in float32 keeps one digit."""
    for offset in (0.0, 1e4, 1e6):
        loss = nearlinear.cross_entropy(torch.tensor([[2.0, -1.0]], device=device) + offset, torch.tensor([0], device=device))
        assert loss.item() == pytest.approx(math.log1p(math.exp(-3)), rel=2e-7)


@pytest.mark.parametrize("step", [30.0, 45.0, 1000.0], ids=["kept_shift", "moved_shift", "far"])
@pytest.mark.parametrize("rising", [True, False], ids=["rising", "falling_not_rising"])
def test_rising_rows(step: float, rising: bool, device: torch.device) -> None:
    """Blocks of a row whose maxima climb by ``step``: the running sum keeps its shift, or moves it, without losing a block."""
    draw = Draw()
    classes = 9000  # five blocks
    x = (draw.normal(4, classes) + step * (torch.arange(classes) // 2048)).float()
    x = x if rising else x.flip(1)
    y = torch.tensor([0, 2047, 5000, classes - 1])
    value, gradient = rows_of(x.to(device), y.to(device))
    exact, (exact_gradient,) = evaluate(reference.cross_entropy, {"input": x.double(), "target": y}, {"reduction": "none"}, ["input"])
    torch.testing.assert_close(value.double().cpu(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double().cpu(), exact_gradient, rtol=1e-4, atol=1e-6)


def test_weighted_halves_keep_their_order(device: torch.device) -> None:
    """Half rows are read in pairs where order is immaterial; class weights under smoothing make it material."""
    draw = Draw()
    x, y = draw.normal(3, 5000, scale=3.0).bfloat16(), draw.labels(5000, 3)
    weight = torch.arange(5000).double() / 5000
    options = {"reduction": "none", "label_smoothing": 0.5}
    value = nearlinear.cross_entropy(x.to(device), y.to(device), weight.float().to(device), **options)
    exact = reference.cross_entropy(x.double(), y, weight, **options)
    torch.testing.assert_close(value.double().cpu(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [2, 64, 65, 4100], ids=["two", "tile", "row", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=lambda d: str(d)[6:])
def test_confident_rows_keep_relative_accuracy(dtype: torch.dtype, classes: int, device: torch.device) -> None:
    """nll = log1p((V - 1) e^-g) for a target g above equal rivals: from 1e-30 to 100, and never below 0."""
    gaps = torch.tensor([-100.0, -20, -1, 0, 1, 5, 16, 30, 50, 69], dtype=torch.float64)
    x, y = torch.zeros(len(gaps), classes), torch.arange(len(gaps)) % classes
    x[torch.arange(len(gaps)), y] = gaps.float()
    value, gradient = rows_of(x.to(dtype).to(device), y.to(device))
    exact = torch.where(gaps > 0, torch.log1p((classes - 1) * torch.exp(-gaps)), torch.log(torch.exp(gaps) + classes - 1) - gaps)
    digits = 1e-6 if device.type == "cpu" else 1e-6 + 4 * torch.finfo(torch.float32).eps * gaps.abs()
    assert ((value.double().cpu() - exact).abs() <= digits * exact).all()
    assert (value >= 0).all()
    if dtype == torch.float16:
        return  # gradients below 6e-8 do not exist in half precision
    upstream = torch.randn(len(gaps), generator=torch.Generator().manual_seed(1), dtype=torch.float32).double()
    target_gradient = gradient[torch.arange(len(gaps)), y].double().cpu()
    expected = upstream * torch.expm1(-exact)
    assert ((target_gradient - expected).abs() <= 2 * digits * expected.abs()).all()


@pytest.mark.parametrize("classes", [7, 64, 131, 8195])
def test_gradient_rows_sum_to_zero(classes: int, device: torch.device) -> None:
    draw = Draw()
    x, y = draw.normal(9, classes, scale=4.0).float().to(device), draw.labels(classes, 9).to(device)
    for options in ({}, {"label_smoothing": 0.2}, {"row_loss": "gce"}):
        gradient = rows_of(x, y, **options)[1].double()
        assert (gradient.sum(1).abs() <= 1e-6 * gradient.abs().sum(1)).all()


def test_magnitudes_at_the_end_of_float32(device: torch.device) -> None:
    """1e38 against 2e38: the true loss is representable, so it is returned (log-softmax gives inf). Denormals and signed zeros are 0."""
    x = torch.tensor([[1e38, 2e38], [2e38, 1e38], [-3e38, 3e38], [1e-45, -0.0]], device=device)
    value, gradient = rows_of(x, torch.tensor([0, 0, 1, 0], device=device))
    torch.testing.assert_close(value.cpu(), torch.tensor([1e38, 0.0, 0.0, math.log(2)]))
    assert gradient.isfinite().all()


def test_float32_exponential_over_its_range(device: torch.device) -> None:
    """The backward op at lse = 0 and upstream 1 returns e^a itself, as exactly as simd.h says; a GPU rounds the argument first."""
    a = torch.cat([torch.linspace(-86, 0, 40001, dtype=torch.float64).float(), torch.tensor([-87.5, -90.0, -1e4, -3e38, -math.inf])])
    x = torch.cat([a, torch.zeros(1)])[None].to(device)
    zero, one, none = torch.zeros(1, device=device), torch.ones(1, device=device), torch.zeros(0, device=device)
    y = torch.tensor([len(a)], device=device)
    gradient = torch.ops.nearlinear.logit_stats_backward(one, zero, none, x, y, None, zero, zero, zero, -100, "identity", [], False)
    exact = a[:-5].double().exp()
    limit = 1.5e-7 + (3e-9 if device.type == "cpu" else 1.2e-7) * a[:-5].double().abs()
    assert ((gradient[0, :-6].double().cpu() - exact).abs() <= limit * exact).all()
    assert (gradient[0, -6:-1].double().cpu() <= 1.00001 * a[-5:].double().exp()).all()  # denormals may become 0, -inf must


def test_soft_capped_logits_keep_their_digits(device: torch.device) -> None:
    """All arguments of the kernel's tanh, to a few ulp."""
    small = torch.logspace(-20, 2, 2001, dtype=torch.float64).float()
    x = torch.stack([small, -small], 1).to(device)
    value = rows_of(x, torch.zeros(len(small), dtype=torch.int64, device=device), softcap=3.0)[0]
    exact = torch.nn.functional.softplus(-6 * torch.tanh(small.double() / 3))
    torch.testing.assert_close(value.double().cpu(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_half_gradients_are_rounded_once(dtype: torch.dtype, device: torch.device) -> None:
    """Half conversions both ways: exact logits in, gradients rounded to nearest (an ulp of float32 may cross a tie)."""
    draw = Draw()
    x, y = draw.normal(40, 131, scale=4.0).to(dtype), draw.labels(131, 40)
    gradient = rows_of(x.to(device), y.to(device))[1].cpu()
    exact = evaluate(reference.cross_entropy, {"input": x.double(), "target": y}, {"reduction": "none"}, ["input"])[1][0]
    nearest = exact.to(dtype)
    spacing = torch.nextafter(nearest.abs(), torch.tensor(math.inf, dtype=dtype)).double() - nearest.abs().double()
    assert ((gradient.double() - exact).abs() <= 0.501 * spacing).all()
    assert (gradient == nearest).double().mean() > 0.99


def test_every_half_value_is_read_exactly(device: torch.device) -> None:
    """All finite float16 bit patterns as logits against 0: subnormals and both signs included."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = x[x.isfinite()]
    pair = torch.stack([x, torch.zeros_like(x)], 1)
    y = torch.ones(len(x), dtype=torch.int64)
    value = rows_of(pair.to(device), y.to(device))[0].double().cpu()
    # atol: the vector exponential, like CUDA, flushes denormals of float32
    torch.testing.assert_close(value, torch.nn.functional.softplus(x.double()), rtol=1e-6, atol=1.2e-38)


# ---- invariances


@pytest.mark.parametrize("classes", [7, 131])
def test_row_permutation_and_repetition(classes: int, device: torch.device) -> None:
    draw = Draw()
    x, y = draw.normal(70, classes).float().to(device), draw.labels(classes, 70).to(device)
    order = torch.randperm(70, generator=draw.generator).to(device)
    same(rows_of(x[order], y[order])[0], rows_of(x, y)[0][order], "permutation of rows")
    counts = torch.randint(0, 4, (70,), generator=draw.generator).to(device)
    for reduction in ("sum", "mean"):
        weighted = nearlinear.cross_entropy(x, y, sample_weight=counts.float(), reduction=reduction, label_smoothing=0.1)
        repeated = nearlinear.cross_entropy(
            x.repeat_interleave(counts, 0), y.repeat_interleave(counts), reduction=reduction, label_smoothing=0.1
        )
        torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("classes", [7, 131])
def test_class_permutation(classes: int, device: torch.device) -> None:
    """Renaming the classes renames the gradient and changes the loss by rounding only."""
    draw = Draw()
    x, y = draw.normal(9, classes).to(device), draw.labels(classes, 9).to(device)
    order = torch.randperm(classes, generator=draw.generator).to(device)
    value, gradient = rows_of(x, y)
    renamed, renamed_gradient = rows_of(x[:, order], torch.argsort(order)[y])
    torch.testing.assert_close(renamed, value)
    torch.testing.assert_close(renamed_gradient, gradient[:, order])


def test_one_hot_probabilities_are_labels(device: torch.device) -> None:
    draw = Draw()
    x, y = draw.normal(9, 131).to(device), draw.labels(131, 9).to(device)
    hot = torch.nn.functional.one_hot(y, 131).double()
    for smoothing in (0.0, 0.3):
        by_label = nearlinear.cross_entropy(x, y, label_smoothing=smoothing, z_loss=0.1)
        torch.testing.assert_close(nearlinear.cross_entropy(x, hot, label_smoothing=smoothing, z_loss=0.1), by_label)


# ---- random problems


@given(problems())
def test_random_problems(problem: Problem) -> None:
    """Small shapes, every option, ties and extreme logits, against the definition: value and all gradients."""
    inputs, options, wrt = problem
    wide = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    stats = {name: t if t.dtype == torch.float64 else t.float() if t.is_floating_point() else t for name, t in inputs.items()}
    value, gradients = evaluate(nearlinear.cross_entropy, inputs, options, wrt)
    eager, eager_gradients = evaluate(reference.cross_entropy, stats, options, wrt)
    exact, exact_gradients = evaluate(reference.cross_entropy, wide, options, wrt)
    within_budget(value, eager, exact, 2, "value")
    for name, a, b, c in zip(wrt, gradients, eager_gradients, exact_gradients, strict=True):
        within_budget(a, b.to(a.dtype), c, 3, f"gradient of {name}")


def test_read_only_labels_and_shown_options() -> None:
    x, y = Draw().normal(5, 7), read_only(torch.arange(5))
    torch.testing.assert_close(nearlinear.cross_entropy(x, y), torch.nn.functional.cross_entropy(x, y))
    shown = repr(CrossEntropyLoss(label_smoothing=0.25, ignore_index=-1, reduction="sum"))
    for option in ("label_smoothing=0.25", "ignore_index=-1", "reduction='sum'"):
        assert option in shown
