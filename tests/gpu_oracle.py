"""What the GPU tests of cross_entropy share: inputs, and the comparison with the definition in float64."""

from __future__ import annotations

from typing import Any

import nearlinear
import pytest
import torch
from nearlinear import _C, reference
from torch import Tensor

MARKS = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"
# (loss relative to the largest, gradient relative to its largest entry: the rounding of the dtype)
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 2e-6), torch.float16: (1e-6, 6e-4), torch.bfloat16: (1e-6, 5e-3)}
compiled_cuda = pytest.mark.skipif(bool(_C.build_info()["cuda_skipped"]), reason="the build has no compiled CUDA kernels")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def labels(input: Tensor, ignored: bool = True) -> Tensor:
    target = torch.randint(0, input.shape[1], [input.shape[0], *input.shape[2:]], device=DEVICE)
    if ignored and target.numel() > 2:
        target.view(-1)[1] = -100
    return target


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    scale = max(float(want.abs().max()), 1e-30)
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * scale)


def check(input: Tensor, target: Tensor, **options: Any) -> None:
    """Loss for every reduction, and the gradient under a random upstream, against the definition."""
    value, slope = TOLERANCE[input.dtype]
    wide = input.detach().double().requires_grad_()
    input = input.detach().requires_grad_()
    wide_options = {name: o.double() if isinstance(o, Tensor) and o.is_floating_point() else o for name, o in options.items()}
    wide_target = target.double() if target.is_floating_point() else target
    for reduction in ("none", "mean", "sum"):
        loss = nearlinear.cross_entropy(input, target, reduction=reduction, **options)
        want = reference.cross_entropy.cross_entropy(wide, wide_target, reduction=reduction, **wide_options)
        close(loss.detach(), want.detach(), value)
        upstream = torch.randn_like(want)
        (got,) = torch.autograd.grad(loss, input, upstream.to(loss.dtype))
        (gradient,) = torch.autograd.grad(want, wide, upstream.to(loss.dtype).double())
        close(got, gradient, slope)
