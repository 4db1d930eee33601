"""What the interpreter's test modules share: launchers against the definitions in float64, and the poison of fresh memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nearlinear.reference import cross_entropy as reference
from nearlinear.triton_kernels import cross_entropy, cross_entropy_soft
from torch import Tensor

MARKS = [
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow) encountered"),  # numpy's word for inf and NaN
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
IGNORE = -100
MAPS = [("identity", []), ("scale", [0.3]), ("soft_cap", [2.5])]
IDENTITY = MAPS[0]
# relative to the largest entry; half dtypes: their rounding of the gradient
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 9e-3}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN (7777 for integers), so that an element which no kernel writes is seen."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def fresh(*args: Any, **kwargs: Any) -> Tensor:
            made = make(*args, **kwargs)
            return made.fill_(math.nan if made.is_floating_point() else 7777)

        return fresh

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    scale = float(want.abs().max()) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * max(scale, 1e-30))


def upstream(input: Tensor, count: int) -> list[Tensor]:
    shape = [input.shape[0], *input.shape[2:]]
    return [torch.randn(shape, dtype=cross_entropy.statistics_dtype(input)) for _ in range(count)]


def check_hard(
    input: Tensor, target: Tensor, weight: Tensor | None, map_: tuple[str, list[float]] = IDENTITY, spread: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values and gradient against the definition; returns the statistics."""
    got = cross_entropy.logit_stats(input, target, weight, IGNORE, *map_, spread)
    count = 3 if spread else 2
    wide, wide_weight = input.double().requires_grad_(), None if weight is None else weight.double()
    want = reference.logit_stats(wide, target, wide_weight, IGNORE, *map_, spread)[:count]
    for value, definition in zip(got, want, strict=False):
        close(value, definition.detach(), min(TOLERANCE[input.dtype], 1e-6))
    up = upstream(input, 3)
    (gradient,) = torch.autograd.grad(want, wide, [u.double() for u in up[:count]])
    d_spread = up[2] if spread else input.new_empty(0)
    d_input = cross_entropy.logit_stats_backward(
        up[0], up[1], d_spread, input, target, weight, got[0], got[1], got[3], IGNORE, *map_, spread
    )
    close(d_input, gradient, TOLERANCE[input.dtype])
    assert d_input.dtype == input.dtype
    return got


def check_soft(
    input: Tensor, target: Tensor, weight: Tensor | None, map_: tuple[str, list[float]] = IDENTITY, smoothing: float = 0.1
) -> None:
    got = cross_entropy_soft.soft_logit_stats(input, target, weight, smoothing, *map_)
    wide, wide_target = input.double().requires_grad_(), target.double().requires_grad_()
    want = reference.soft_logit_stats(wide, wide_target, None if weight is None else weight.double(), smoothing, *map_)
    for i in (0, 1, 3):
        close(got[i], want[i].detach(), min(TOLERANCE[input.dtype], 1e-6))
    up = upstream(input, 2)
    gradients = torch.autograd.grad(want[:2], (wide, wide_target), [u.double() for u in up])
    arguments = (*up, input, target, weight, got[1], got[2], got[3], smoothing, *map_)
    d_input, d_target = cross_entropy_soft.soft_logit_stats_backward(*arguments, True)
    close(d_input, gradients[0], TOLERANCE[input.dtype])
    if input.shape[1] == 1 and smoothing == 0.1:  # log p = 0: the definition leaves a rounding error
        assert float(d_target.abs().max()) <= 1e-6
    else:
        close(d_target, gradients[1], max(TOLERANCE[target.dtype], min(TOLERANCE[input.dtype], 1e-6)))
    without, none = cross_entropy_soft.soft_logit_stats_backward(*arguments, False)
    assert torch.equal(without, d_input)
    assert none.numel() == 0


def labels(input: Tensor, ignored: bool = True) -> Tensor:
    target = torch.randint(0, input.shape[1], [input.shape[0], *input.shape[2:]])
    if ignored and target.numel() > 2:
        target.flatten()[1] = IGNORE
        target.view(-1)[-1] = IGNORE
    return target
