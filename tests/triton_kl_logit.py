"""The Triton launchers of kl_logit on CPU tensors against the definition in float64: layouts, tiles, dtypes, temperatures, special values.
Collected by test_triton_interpreter.py, with TRITON_INTERPRET set."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nearlinear.reference import kl_logit as reference
from nearlinear.triton_kernels import kl_logit
from torch import Tensor
from triton_cases import LAYOUTS
from triton_oracle import MARKS, TOLERANCE, close, poison, upstream  # noqa: F401  a fixture

pytestmark = MARKS
NAN, INF = math.nan, math.inf


def check_two(input: Tensor, target: Tensor, inv_temperature: float = 1.0, beta: float = 0.0) -> tuple[Tensor, ...]:
    """Values and gradients against the definition; returns the statistics."""
    got = kl_logit.two_logit_stats(input, target, inv_temperature, beta)
    leaves = [input.double().requires_grad_(), target.double().requires_grad_()]
    want = reference.two_logit_stats(*leaves, inv_temperature, beta)
    value = min(TOLERANCE[input.dtype], 1e-6)
    for i in range(4):
        close(got[i], want[i].detach(), value)
    (up,) = upstream(input, 1)
    up = 1024 * up  # so that float16 holds the gradients of a softmax of thousands of classes as normal numbers
    wanted = torch.autograd.grad(want[0], leaves, up.double())
    both = kl_logit.two_logit_stats_backward(up, input, target, *got, inv_temperature, beta, True, True)
    for gradient, expected, leaf in zip(both, wanted, (input, target), strict=True):
        assert gradient.dtype == leaf.dtype
        if input.shape[1] > 1:  # the definition leaves a rounding error of one class
            close(gradient, expected, max(TOLERANCE[leaf.dtype], 2 * value))
    for i, flags in enumerate(((True, False), (False, True))):
        alone = kl_logit.two_logit_stats_backward(up, input, target, *got, inv_temperature, beta, *flags)
        assert torch.equal(alone[i], both[i])
        assert alone[1 - i].numel() == 0
    return got


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_classes", [1, 33, 5000])
def test_two_logit_layouts(layout: str, num_classes: int) -> None:
    torch.manual_seed(0)
    view = LAYOUTS[layout](num_classes)
    check_two(view, torch.randn(view.shape), 0.5)
    check_two(view, torch.randn(view.shape), 0.5, 0.3)
    check_two(torch.randn(view.shape), view)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(70, 10), (3, 40), (2, 300), (1, 2300), (2, 5, 66)], ids=str)
def test_two_logit_tiles_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    input, target = (4 * torch.randn(shape)).to(dtype), (4 * torch.randn(shape)).to(dtype)
    check_two(input, target)
    check_two(input, target, 0.2)
    check_two(input, target, 0.2, 0.9)
    if dtype != torch.float64:
        check_two(input.float(), target)


@pytest.mark.parametrize("offsets", [(0.0, 1e6), (1e6, 0.0), (-1e6, 1e6)])
def test_two_logit_offsets(offsets: tuple[float, float]) -> None:
    exact = [torch.tensor([[2.0, -1.0, 0.5], [-4.0, 3.0, 3.5]]), torch.tensor([[1.0, 0.0, 0.5], [-4.0, 2.0, 3.5]])]
    got = check_two(*(z + c for z, c in zip(exact, offsets, strict=True)), 0.2)
    want = reference.two_logit_stats(exact[0].double(), exact[1].double(), 0.2)[0]
    torch.testing.assert_close(got[0].double(), want, rtol=2e-6, atol=0)
    target = torch.randn(1, 3)  # float32 does not hold its difference from an input at a million
    check_two(exact[0][:1] + offsets[0], target)


@pytest.mark.parametrize("step", [2.0**-4, 2.0**-10, 2.0**-18])
def test_two_logit_neighbours(step: float) -> None:
    """Two classes at 0, moved apart by 2 h: log cosh h, and gradients (1/2) tanh h."""
    target, input = torch.zeros(1, 2), torch.tensor([[step, -step]])
    stats = kl_logit.two_logit_stats(input, target, 1.0)
    exact = step**2 / 2 - step**4 / 12 + step**6 / 45
    assert abs(float(stats[0]) / exact - 1) <= 2e-6
    d_input, d_target = kl_logit.two_logit_stats_backward(torch.ones(1), input, target, *stats, 1.0, 0.0, True, True)
    torch.testing.assert_close(d_input, math.tanh(step) / 2 * torch.tensor([[1.0, -1.0]]), rtol=2e-6, atol=0)
    torch.testing.assert_close(d_target, step / 2 * torch.tensor([[-1.0, 1.0]]), rtol=2e-6, atol=0)


# (input, target) -> kl
SPECIAL = {
    "plain": ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0], None),
    "nan_in_input": ([NAN, 0.0, 1.0], [0.0, 0.0, 0.0], NAN),
    "nan_in_target": ([0.0, 0.0, 1.0], [0.0, NAN, 0.0], NAN),
    "inf_in_input": ([0.0, INF, 1.0], [0.0, 0.0, 0.0], NAN),
    "inf_in_target": ([0.0, 0.0, 1.0], [INF, 0.0, 0.0], NAN),
    "row_of_minus_inf": ([-INF, -INF, -INF], [0.0, 0.0, 0.0], NAN),
    "both_minus_inf": ([0.0, -INF, 1.0], [1.0, -INF, 0.0], None),
    "target_minus_inf": ([0.0, 2.0, 1.0], [1.0, -INF, 0.0], None),
    "input_minus_inf": ([0.0, -INF, 1.0], [1.0, 0.0, 0.0], INF),
    "input_minus_inf_at_underflow": ([0.0, -INF, 1.0], [1.0, -500.0, 0.0], INF),
    "equal": ([3.0, 1.0, -2.0], [3.0, 1.0, -2.0], 0.0),
}
FINITE_MIXTURE = ("target_minus_inf", "input_minus_inf", "input_minus_inf_at_underflow", "both_minus_inf", "equal", "plain")


@pytest.mark.parametrize("images", [False, True])
def test_two_logit_special_values_stay_in_their_row(images: bool) -> None:
    input, target = (torch.tensor([row[i] for row in SPECIAL.values()]) for i in (0, 1))
    want = reference.two_logit_stats(input.double(), target.double(), 1.0)[0]
    for i, (_, _, value) in enumerate(SPECIAL.values()):
        want[i] = want[i] if value is None else value
    if images:
        input, target = input.t().contiguous().t(), target.t().contiguous().t()
    stats = kl_logit.two_logit_stats(input, target, 1.0)
    torch.testing.assert_close(stats[0].double(), want, rtol=2e-6, atol=0, equal_nan=True)
    d_input, d_target = kl_logit.two_logit_stats_backward(torch.ones(len(want)), input, target, *stats, 1.0, 0.0, True, True)
    assert d_input[~want.isnan()].isfinite().all()
    assert d_target[want.isfinite()].isfinite().all()
    assert d_input[want.isnan()].isnan().any(1).all()
    zero = kl_logit.two_logit_stats_backward(torch.zeros(len(want)), input, target, *stats, 1.0, 0.0, True, True)
    assert all((gradient == 0).all() for gradient in zero)


@pytest.mark.parametrize("beta", [0.5, 0.02])
def test_two_logit_mixtures_of_special_values(beta: float) -> None:
    """A class that is impossible on one side leaves the mixture's divergence and both gradients finite; NaN stays in its row."""
    input, target = (torch.tensor([row[i] for row in SPECIAL.values()]) for i in (0, 1))
    leaves = [input.double().requires_grad_(), target.double().requires_grad_()]
    want = reference.two_logit_stats(*leaves, 1.0, beta)[0]
    stats = kl_logit.two_logit_stats(input, target, 1.0, beta)
    torch.testing.assert_close(stats[0].double(), want.detach(), rtol=2e-6, atol=1e-16, equal_nan=True)  # of equal logits it keeps 5e-17
    got = kl_logit.two_logit_stats_backward(torch.ones(len(want)), input, target, *stats, 1.0, beta, True, True)
    finite = torch.tensor([name in FINITE_MIXTURE for name in SPECIAL])
    assert torch.equal(want.isfinite(), finite)
    for ours, theirs in zip(got, torch.autograd.grad(want[finite].sum(), leaves), strict=True):
        torch.testing.assert_close(ours[finite].double(), theirs[finite], rtol=1e-5, atol=1e-7)
        assert ours[~finite].isnan().any(1).all()


@pytest.mark.parametrize("step", [2.0**-4, 2.0**-10, 2.0**-18])
def test_two_logit_mixture_of_neighbours(step: float) -> None:
    """Two classes at 0, moved apart by 2 h: with t = tanh h the halves' divergence is that of (1 + t) / 2 and 1 / 2."""
    target, input = torch.zeros(1, 2), torch.tensor([[step, -step]])
    stats = kl_logit.two_logit_stats(input, target, 1.0, 0.5)
    t = math.tanh(step)
    exact = t**2 / 8 + 7 * t**4 / 192 + 31 * t**6 / 1920
    assert abs(float(stats[0]) / exact - 1) <= 2e-6


@pytest.mark.parametrize("shape", [(0, 5), (3, 5, 0), (3, 0)], ids=str)
def test_two_logit_without_rows_or_classes(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape)
    stats = kl_logit.two_logit_stats(input, input, 1.0)
    assert (stats[0] == 0).all()
    d_input, d_target = kl_logit.two_logit_stats_backward(stats[0], input, input, *stats, 1.0, 0.0, True, True)
    assert d_input.shape == d_target.shape == input.shape


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"target": torch.zeros(3, 4)}, "two_logit_stats: target must be floating, with the shape of input"),
    ({"target": torch.zeros(3, 5).double()}, "two_logit_stats: target must be float64 exactly if input is"),
    ({"beta": 1.0}, r"two_logit_stats: beta must be 0 for KL, or lie between 0 and 1, got 1\.0"),
    ({"inv_temperature": 0.0}, r"two_logit_stats: inv_temperature must be finite and > 0, got 0\.0"),
]


@pytest.mark.parametrize(("change", "text"), ERRORS, ids=[text for _, text in ERRORS])
def test_two_logit_errors(change: dict[str, Any], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        kl_logit.two_logit_stats(**({"input": torch.zeros(3, 5), "target": torch.zeros(3, 5), "inv_temperature": 1.0} | change))


def test_the_cuda_key_leads_to_the_two_logit_launchers() -> None:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    arguments, ops = (torch.randn(3, 4), torch.randn(3, 4)), torch.ops.nearlinear
    got = ops.two_logit_stats.default.redispatch(keys, *arguments, 0.5)
    assert all(map(torch.equal, got, kl_logit.two_logit_stats(*arguments, 0.5)))
    rest = (torch.ones(3), *arguments, *got, 0.5, 0.0, True, True)
    pair = ops.two_logit_stats_backward.default.redispatch(keys, *rest)
    assert all(map(torch.equal, pair, kl_logit.two_logit_stats_backward(*rest)))
