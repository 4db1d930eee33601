"""The Triton launchers on CPU tensors against the definitions in float64. Collected by test_triton_interpreter.py, with TRITON_INTERPRET
set; bfloat16 results may be one unit in the last place off, because the interpreter truncates where a GPU rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from nearlinear.triton_kernels import common, cross_entropy
from torch import Tensor
from triton_oracle import MAPS, MARKS, check_hard, check_soft, labels, poison  # noqa: F401  a fixture

pytestmark = MARKS

# (name, input of V classes): every stride pattern, and through them every tile
LAYOUTS: dict[str, Callable[[int], Tensor]] = {
    "rows": lambda v: torch.randn(5, v),
    "transposed": lambda v: torch.randn(v, 70).t()[:7] if v > 40 else torch.randn(v, 270).t(),
    "same_row": lambda v: torch.randn(1, v).expand(4, v),
    "same_class": lambda v: torch.randn(4, 1).expand(4, v),
    "every_second": lambda v: torch.randn(8, 2 * v)[::2, ::2],
    "padded": lambda v: torch.randn(5, v + 3)[:, 1:-2],
    "pixels": lambda v: torch.randn(2, v, 3),
    "channels_last": lambda v: torch.randn(2, 3, v).transpose(1, 2),
    "one_pixel": lambda v: torch.randn(4, v, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_classes", [1, 2, 31, 33, 1000, 5000])
def test_layouts_and_sizes(layout: str, num_classes: int) -> None:
    torch.manual_seed(0)
    input = LAYOUTS[layout](num_classes)
    before = input.clone()
    check_hard(input, labels(input), torch.rand(num_classes))
    assert torch.equal(input, before)


@pytest.mark.parametrize("pixels", [2, 70, 300])
@pytest.mark.parametrize("num_classes", [2, 19])
def test_images(num_classes: int, pixels: int) -> None:
    input = torch.randn(2, num_classes, pixels)
    check_hard(input, labels(input).t().contiguous().t(), None, spread=False)
    check_soft(input, torch.rand(input.shape).softmax(1), None)


@pytest.mark.parametrize("map_", MAPS, ids=lambda m: m[0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(70, 10), (3, 40), (2, 300), (1, 2300), (2, 5, 66)], ids=str)
def test_every_tile_dtype_and_map(shape: tuple[int, ...], dtype: torch.dtype, map_: tuple[str, list[float]]) -> None:
    torch.manual_seed(1)
    input = (4 * torch.randn(shape)).to(dtype)
    weight = torch.rand(shape[1], dtype=cross_entropy.statistics_dtype(input))
    check_hard(input, labels(input, ignored=shape[0] > 1), weight, map_)
    check_hard(input, labels(input, ignored=shape[0] > 1), None, map_)
    target = torch.rand(shape).softmax(1)
    check_soft(input, target.to(dtype), weight, map_)
    check_soft(input, target, None, map_, smoothing=0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_soft_layouts(layout: str) -> None:
    torch.manual_seed(0)
    input = LAYOUTS[layout](33)
    check_soft(input, torch.rand(input.shape).softmax(1), torch.rand(33))
    check_soft(torch.randn(input.shape), input, None)


@triton.jit
def functions_kernel(p_x, p_out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(p_x + i, mask=i < n, other=0)
    t, slope = common.tanh(x)
    tl.store(p_out + i, common.log1p(tl.minimum(tl.abs(x), 1)), mask=i < n)
    tl.store(p_out + n + i, common.expm1(-tl.abs(x)), mask=i < n)
    tl.store(p_out + 2 * n + i, t, mask=i < n)
    tl.store(p_out + 3 * n + i, slope, mask=i < n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functions_keep_their_relative_accuracy(dtype: torch.dtype) -> None:
    x = torch.cat([torch.logspace(-30, 1.3, 400, dtype=dtype), torch.linspace(0.05, 8, 400, dtype=dtype)])
    x = torch.cat([x, -x, x.new_zeros(1)])
    out = x.new_zeros(4, len(x))
    functions_kernel[(1,)](x, out, len(x), BLOCK=2048)
    a = x.abs().double()
    slope = 4 * (-2 * a).exp() / (1 + (-2 * a).exp()) ** 2
    want = torch.stack([a.clamp(max=1).log1p(), (-a).expm1(), x.double().tanh(), slope])
    error = (out.double() - want).abs() / want.abs().clamp(min=1e-300)
    limit = 16 * torch.finfo(dtype).eps if dtype == torch.float64 else 6e-7
    # the argument of the exponential carries half a unit of 2 |x|
    assert float((error / (limit + torch.finfo(dtype).eps * a)).max()) < 1
