"""Shapes, derivatives and second derivatives of the two-logit ops. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import kl_logit as reference
from ._register import register_second_derivative, stats_dtype

_ops = torch.ops.nearlinear


# ---- two_logit_stats(input, target, inv_temperature, beta) -> divergence, kl_input, lse_input, lse_target, residual_input, residual_target


@torch.library.register_fake("nearlinear::two_logit_stats")
def _(input: Tensor, target: Tensor, inv_temperature: float, beta: float = 0.0) -> tuple[Tensor, ...]:
    torch._check(input.dim() in (2, 3), lambda: "input must have shape (N, V) or (N, V, P)")
    torch._check(target.shape == input.shape, lambda: "target must have the shape of input")
    divergence, kl_input, *rest = (input.new_empty([input.shape[0], *input.shape[2:]], dtype=stats_dtype(input)) for _ in range(6))
    return divergence, kl_input.new_empty(0) if beta == 0 else kl_input, *rest


@torch.library.register_fake("nearlinear::two_logit_stats_backward")
def _(d_divergence: Tensor, input: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, input_gradient, target_gradient = rest
    return (
        torch.empty_like(input) if input_gradient else input.new_empty([0]),
        torch.empty_like(target) if target_gradient else target.new_empty([0]),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, target, *ctx.options = inputs
    ctx.save_for_backward(input, target, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, d_divergence: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:2]
    gradients = _ops.two_logit_stats_backward(d_divergence, *ctx.saved_tensors, *ctx.options, *wanted)
    return *(gradient if wants else None for gradient, wants in zip(gradients, wanted, strict=True)), None, None


def _gradient(d_divergence: Tensor, input: Tensor, target: Tensor, *rest: Any) -> list[Tensor]:
    """d_input and d_target in differentiable torch; the saved statistics are functions of the logits here."""
    *_, inv_temperature, beta, input_gradient, target_gradient = rest
    wide, wanted = stats_dtype(input), (input_gradient, target_gradient)
    divergence = reference.two_logit_stats(input.to(wide), target.to(wide), inv_temperature, beta)[0]
    leaves = [leaf for leaf, wants in zip((input, target), wanted, strict=True) if wants]
    found = iter(torch.autograd.grad(divergence, leaves, d_divergence, create_graph=True))
    return [next(found) if wants else input.new_zeros(0) for wants in wanted]


torch.library.register_autograd("nearlinear::two_logit_stats", _backward, setup_context=_setup)
register_second_derivative("nearlinear::two_logit_stats_backward", _gradient, differentiable=(0, 1, 2))
