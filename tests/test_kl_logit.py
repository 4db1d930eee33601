"""Divergence of two logits: the battery on its cases, torch's own expression, and the sizes at which kernels change course."""

from __future__ import annotations

from typing import Any, ClassVar

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from battery import Battery
from measure import DTYPES, Case, Draw, Inputs, evaluate, random_like, same, within_budget
from nearlinear.reference import kl_logit as reference
from torch import Tensor

ops = torch.ops.nearlinear
BOTH = ("input", "target_logits")


def logits(classes: int, *pixels: int, weighted: bool = False, masked: bool = False) -> Any:
    """Two logits of a spread that gives a divergence near 1; every third row is outside the mask."""

    def make(draw: Draw, rows: int) -> Inputs:
        shape = (rows, classes, *pixels)
        made = {"input": draw.normal(*shape), "target_logits": draw.normal(*shape)}
        if masked:
            made["mask"] = torch.arange(rows * max(1, *pixels, 0)).view(rows, *pixels) % 3 != 0
        if weighted:
            made["sample_weight"] = draw.positive(rows, *pixels)
        return made

    return make


def case(name: str, make: Any, reason: str, **fields: Any) -> Case:
    return Case(name, make, reason, **{"native": BOTH, "differentiable": BOTH, **fields})


CASES = (
    case("rows", logits(131), "less than a block, prime"),
    case("blocks", logits(4099), "two full cache blocks of classes and three left over", rows=3),
    case("even_blocks", logits(2050), "halves read in pairs", rows=3),
    case("few", logits(5), "few classes", rows=9, checked=True),
    case(
        "everything", logits(6, weighted=True, masked=True), "every option at once", rows=9, options={"temperature": 2.5},
        differentiable=(*BOTH, "sample_weight"), checked=True,
    ),
    case("image", logits(5, 7, masked=True), "classes with a stride", rows=3, options={"temperature": 0.5}),
    case("one_logit", logits(70), "no gradient for the reference distribution", rows=7, differentiable=("input",)),
    case("other_logit", logits(70), "a gradient for the reference distribution alone", rows=7, differentiable=("target_logits",)),
)  # fmt: skip


class TestKLLogit(Battery):
    function = staticmethod(nearlinear.kl_logit_loss)
    definition = staticmethod(reference.kl_logit_loss)
    cases = CASES
    reductions = ("batchmean", "sum")
    common_roundings = 2
    compiled: ClassVar[dict[str, str]] = {"everything": "inductor", "rows": "aot_eager", "one_logit": "aot_eager"}
    modules = ((nearlinear.KLLogitLoss, nearlinear.kl_logit_loss, {"temperature": 3.0, "reduction": "sum"}),)

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        return not view.is_cuda and view.stride(1) == 1

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        pairs = [(draw.normal(5, 7).float(), draw.normal(5, 7).float()), (draw.normal(2, 7, 3).bfloat16(), draw.normal(2, 7, 3).float())]
        samples: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = []
        for x, t in pairs:
            arguments = (x.to(device), t.to(device), 0.4)
            stats = ops.two_logit_stats(*arguments)
            samples.append((ops.two_logit_stats.default, arguments, (0, 1)))
            for wanted in ((True, True), (True, False), (False, True)):
                saved = (torch.ones_like(stats[0]), *arguments[:2], *stats, 0.4, 0.0, *wanted)
                samples.append((ops.two_logit_stats_backward.default, saved, ()))
        return samples


# 0 and 1 rows and classes; a cache block and a pair of halves, each with its neighbours; a GPT-2 vocabulary
SIZES = ((0, 7), (1, 1), (3, 2), (65, 33), (2, 2047), (2, 2048), (2, 2049), (2, 4096), (2, 50257))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_sizes(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> None:
    inputs = case("size", logits(classes), "", rows=rows).inputs(dtype, device)
    options = {"reduction": "none"}
    value, gradients = evaluate(nearlinear.kl_logit_loss, inputs, options, BOTH)
    eager, eager_gradients = evaluate(reference.kl_logit_loss, {n: t.float() for n, t in inputs.items()}, options, BOTH)
    exact, exact_gradients = evaluate(reference.kl_logit_loss, {n: t.double().cpu() for n, t in inputs.items()}, options, BOTH)
    within_budget(value, eager, exact, 2, "value")
    if classes > 1:  # of one class the definition keeps a rounding error
        for a, b, c in zip(gradients, eager_gradients, exact_gradients, strict=True):
            within_budget(a, b.to(dtype), c, 3, "gradient")


@pytest.mark.parametrize("pixels", [(), (3,), (2, 3)], ids=["2d", "3d", "4d"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_torchs_expression(temperature: float, pixels: tuple[int, ...], device: torch.device) -> None:
    """Values and both gradients; torch's batchmean divides by N, ours by the rows, pixels included."""
    draw = Draw()
    inputs = {name: draw.normal(4, 5, *pixels).to(device) for name in BOTH}

    def torchs(input: Tensor, target_logits: Tensor) -> Tensor:
        log_p, log_q = (input / temperature).log_softmax(1), (target_logits / temperature).log_softmax(1)
        per_element = F.kl_div(log_p, log_q, log_target=True, reduction="none")
        if not pixels:
            torch.testing.assert_close(F.kl_div(log_p, log_q, log_target=True, reduction="batchmean"), per_element.sum() / 4)
        return per_element.sum() / (per_element.numel() / 5)

    def ours(**leaves: Tensor) -> Tensor:
        return nearlinear.kl_logit_loss(**leaves, temperature=temperature)

    torch.testing.assert_close(evaluate(ours, inputs, {}, BOTH), evaluate(torchs, inputs, {}, BOTH), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("other", DTYPES[1:], ids=lambda d: str(d)[6:])
def test_each_logit_has_its_dtype(dtype: torch.dtype, other: torch.dtype, device: torch.device) -> None:
    """A bfloat16 teacher beside a float32 student: nothing is converted, and each gradient has its logit's dtype."""
    draw = Draw()
    inputs = {"input": draw.normal(3, 2050).to(dtype).to(device), "target_logits": draw.normal(3, 2050).to(other).to(device)}
    value, gradients = evaluate(nearlinear.kl_logit_loss, inputs, {"reduction": "none"}, BOTH)
    exact, exact_gradients = evaluate(
        reference.kl_logit_loss, {n: t.double().cpu() for n, t in inputs.items()}, {"reduction": "none"}, BOTH
    )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double().cpu(), exact, rtol=1e-6, atol=0)
    for gradient, wanted, leaf in zip(gradients, exact_gradients, inputs.values(), strict=True):
        assert gradient.dtype == leaf.dtype
        eps = max(torch.finfo(leaf.dtype).eps, 2e-6)
        assert (gradient.double().cpu() - wanted).abs().max() <= eps * wanted.abs().max()


def test_mask_weights_and_normalizer(device: torch.device) -> None:
    """A row outside the mask does not exist; weight k repeats a row k times; a normalizer replaces the count."""
    draw = Draw()
    x, t = draw.normal(8, 9).to(device), draw.normal(8, 9).to(device)
    mask = torch.tensor([True, False, True, True, False, False, True, True], device=device)
    loss = nearlinear.kl_logit_loss
    torch.testing.assert_close(loss(x, t, mask=mask), loss(x[mask], t[mask]))
    counts = torch.tensor([0, 1, 2, 3, 0, 1, 1, 2], device=device)
    repeated = loss(x.repeat_interleave(counts, 0), t.repeat_interleave(counts, 0))
    torch.testing.assert_close(loss(x, t, sample_weight=counts.double()), repeated)
    both = loss(x, t, mask=mask, sample_weight=counts.double())
    torch.testing.assert_close(both, loss(x[mask], t[mask], sample_weight=counts[mask].double()))
    for normalizer in (7, torch.tensor(7.0, device=device)):  # 5 rows are kept
        torch.testing.assert_close(loss(x, t, mask=mask, normalizer=normalizer), loss(x, t, mask=mask, reduction="sum") / 7)


def test_both_may_be_one_tensor(device: torch.device) -> None:
    """Divergence 0 and gradient 0, through the two places of one leaf."""
    leaf = Draw().normal(4, 300).float().to(device).requires_grad_()
    value = nearlinear.kl_logit_loss(leaf, leaf, reduction="none")
    assert (value == 0).all()
    assert (torch.autograd.grad(value, leaf, random_like(value))[0] == 0).all()


def test_a_gradient_goes_where_it_is_required(device: torch.device) -> None:
    """No stop-gradient inside: neither argument is detached, and one that needs no gradient costs none."""
    draw = Draw()
    inputs = {name: draw.normal(3, 40).float().to(device) for name in BOTH}
    both = evaluate(nearlinear.kl_logit_loss, inputs, {}, BOTH)[1]
    for i, name in enumerate(BOTH):
        same(evaluate(nearlinear.kl_logit_loss, inputs, {}, [name])[1][0], both[i], name)
        assert both[i].abs().max() > 0
    assert not nearlinear.kl_logit_loss(**inputs).requires_grad
