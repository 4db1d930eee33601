"""What the tests of the Triton kernels of polynomial attention share, on CPU and GPU: inputs, and the comparison with a definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import torch
from torch import Tensor

# values and gradients, relative to the largest entry. Halves: products take both factors to 11 bits for float16, which cuts off, and to 8
# for bfloat16, which rounds; a gradient of channels does that to three factors, and gradients of halves are rounded once more
TOLERANCE = {
    torch.float64: (1e-13, 1e-13), torch.float32: (2e-6, 2e-6), torch.float16: (2e-3, 4e-3), torch.bfloat16: (8e-3, 1.6e-2),
}  # fmt: skip


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    scale = float(want.abs().max()) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * max(scale, 1e-30))


def tensors(dim: int, columns: int, tokens: int, heads: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """key, value and bias [1, heads, tokens, ...]; the third of the keys takes no part and is NaN."""
    generator = torch.Generator().manual_seed(dim + 10 * columns + tokens)
    key, value, bias = (torch.randn(1, heads, tokens, *shape, generator=generator).double() for shape in ([dim], [columns], []))
    if tokens > 2:
        key[:, :, 2], value[:, :, 2], bias[:, :, 2] = torch.nan, torch.nan, -torch.inf
    stats = torch.float64 if dtype == torch.float64 else torch.float32
    return key.to(device, dtype), value.to(device, dtype), bias.to(device, stats)


def scan_inputs(
    dim: int, columns: int, tokens: int, degree: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The seven of taylor_scan, four query heads on two of keys, and its weight."""
    query = tensors(dim, 1, tokens, 4, dtype, device)[0].nan_to_num(0.5)
    key1, value1, bias1 = tensors(dim, columns, tokens, 2, dtype, device)
    key2, value2, bias2 = (t.flip(1) for t in (key1, value1, bias1))
    weight = torch.rand(comb(dim + degree, degree), generator=torch.Generator().manual_seed(0)).to(device, bias1.dtype)
    return (query, key1, key2, value1, value2, bias1, bias2), weight


def differ(
    launchers: tuple[Callable[..., Any], Callable[..., Any]], definition: Callable[..., Tensor], inputs: Sequence[Tensor],
    options: Sequence[Any], tolerance: tuple[float, float], upstream: Tensor | None = None,
) -> None:  # fmt: skip
    """Value and every gradient of ``launchers`` (op and its backward) against the definition in float64."""
    forward, backward = launchers
    wide = [t.detach().double().requires_grad_() for t in inputs]
    want = definition(*wide, *(o.double() if isinstance(o, Tensor) else o for o in options))
    got = forward(*inputs, *options)
    assert got.dtype == (torch.float64 if inputs[0].dtype == torch.float64 else torch.float32)
    close(got, want.detach(), tolerance[0])
    d_out = torch.randn(want.shape, dtype=torch.float64).to(want.device) if upstream is None else upstream.expand(want.shape)
    d_out = d_out.to(got.dtype)
    expected = torch.autograd.grad(want, wide, d_out.double(), materialize_grads=True)
    found = backward(d_out, *inputs, *options, [True] * len(inputs))
    for d, gradient, t in zip(found, expected, inputs, strict=True):
        assert d.dtype == t.dtype
        close(d, gradient, tolerance[1])
