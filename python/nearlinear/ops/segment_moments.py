"""Shapes, derivatives and second derivatives of the op on segments. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._register import register_second_derivative

_ops = torch.ops.nearlinear


# ---- segment_moments(input, index, num_segments, second_moment) -> sum, square, count


@torch.library.register_fake("nearlinear::segment_moments")
def _(input: Tensor, index: Tensor, num_segments: int | None, second_moment: str) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(input.dim() == 2 and index.dim() == 1, lambda: "input and index must have shapes (N, D) and (N,)")
    torch._check(index.shape[0] == input.shape[0], lambda: "index must have shape (N,)")
    dim = input.shape[1]
    segments = input.shape[0] if num_segments is None else num_segments
    shape = {"none": [0], "diag": [segments, dim], "full": [segments, dim, dim]}[second_moment]
    count = index.new_empty(segments)
    return input.new_empty([segments, dim], dtype=torch.float64), input.new_empty(shape, dtype=torch.float64), count


@torch.library.register_fake("nearlinear::segment_moments_backward")
def _(d_sum: Tensor, d_square: Tensor, input: Tensor, index: Tensor, num_segments: int | None, second_moment: str) -> Tensor:
    return input.new_empty(input.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, index, *ctx.options = inputs
    ctx.save_for_backward(input, index)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, d_sum: Tensor, d_square: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _ops.segment_moments_backward(d_sum, d_square, *ctx.saved_tensors, *ctx.options), None, None, None


def _gradient(d_sum: Tensor, d_square: Tensor, input: Tensor, index: Tensor, num_segments: int | None, second_moment: str) -> Tensor:
    """d_input in differentiable torch."""
    d_input = d_sum[index]
    if second_moment == "diag":
        d_input = d_input + 2 * input * d_square[index]
    if second_moment == "full":
        d_input = d_input + torch.einsum("nd,nde->ne", input.to(d_square.dtype), (d_square + d_square.mT)[index])
    return d_input.to(input.dtype)


torch.library.register_autograd("nearlinear::segment_moments", _backward, setup_context=_setup)
register_second_derivative("nearlinear::segment_moments_backward", _gradient, differentiable=(0, 1, 2))
