"""What the tests of the Triton kernels of tensor attention share: inputs, and ops against the definition in float64."""

from __future__ import annotations

from typing import Any

import torch
from nearlinear.reference import tensor_attention as reference
from torch import Tensor

OPEN, CAUSAL, NEAR = [-1] * 4, [-1, 0, -1, 0], [3, 0, -1, 5]
QUADRATIC = [1.0, 1.0, 0.5]
# (values, gradients) relative to the largest entry. Halves: a weight and the product of a query with a key are rounded once each, and the
# interpreter truncates to bfloat16 where a GPU rounds
TOLERANCE = {torch.float64: (1e-13, 1e-13), torch.float32: (1e-6, 2e-6), torch.float16: (2e-3, 4e-3), torch.bfloat16: (2e-2, 4e-2)}


def inputs(
    dtype: torch.dtype, shape: tuple[int, ...], *, biases: bool = True, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Of shape (B, H, G, N, N1, N2, D, E); with biases, some keys are masked and hold NaN."""
    batch, heads, groups, queries, n1, n2, dim, width = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=device).to(dtype)

    query, key1, key2 = normal(batch, heads, queries, dim), normal(batch, groups, n1, dim), normal(batch, groups, n2, dim)
    value1, value2 = normal(batch, groups, n1, width), normal(batch, groups, n2, width)
    if not biases:
        return query, key1, key2, value1, value2, None, None
    bias1, bias2 = normal(batch, groups, n1), normal(batch, groups, n2)
    for key, value, bias in ((key1, value1, bias1), (key2, value2, bias2)):
        absent = slice(key.shape[2] // 2, key.shape[2] // 2 + 2)
        bias[:, :, absent] = -torch.inf
        key[:, :, absent] = torch.nan
        value[:, :, absent] = torch.nan
    return query, key1, key2, value1, value2, bias1, bias2


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    finite = want[want.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * max(scale, 1e-30))


def check(
    tensors: tuple[Any, ...], scale: float = 0.3, window: list[int] = OPEN, coefficients: list[float] | None = None, excess: bool = False,
    ops: Any = torch.ops.nearlinear,
) -> None:  # fmt: skip
    """Values, and gradients of all inputs under a random upstream."""
    dtype = tensors[0].dtype
    values, slopes = TOLERANCE[dtype]
    leaves = [None if t is None else t.double().requires_grad_() for t in tensors]
    options: tuple[Any, ...] = (scale, window)
    if coefficients is None:
        wanted = reference.trilinear_softmax(*leaves, *options)
        got = ops.trilinear_softmax(*tensors, *options)
        upstream = [torch.randn_like(wanted[0]).to(dtype), torch.randn_like(wanted[1]).to(got[1].dtype)]
        gradients = ops.trilinear_softmax_backward(*upstream, *tensors, *got, *options, [True] * 7)
    else:
        options = (*options, coefficients, excess)
        wanted = [reference.trilinear_sums(*leaves, *options)]
        got = [ops.trilinear_sums(*tensors, *options)]
        upstream = [torch.randn_like(wanted[0]).to(got[0].dtype)]
        gradients = ops.trilinear_sums_backward(*upstream, *tensors, *options, [True] * 7)
    for value, definition in zip(got, wanted, strict=True):
        close(value, definition.detach(), values)
    given = [t for t in leaves if t is not None]
    expected = iter(torch.autograd.grad(wanted, given, [u.double() for u in upstream], materialize_grads=True))
    for gradient, tensor in zip(gradients, tensors, strict=True):
        if tensor is None:
            assert gradient.numel() == 0
            continue
        close(gradient, next(expected), slopes)
        assert gradient.dtype == dtype
        assert gradient.is_contiguous()
