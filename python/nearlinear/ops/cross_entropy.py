"""Shapes, derivatives and second derivatives of the cross-entropy ops. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import cross_entropy as reference
from ._register import register_second_derivative, stats_dtype

_ops = torch.ops.nearlinear


def _rows(input: Tensor) -> list[int]:
    torch._check(input.dim() in (2, 3), lambda: "input must have shape (N, V) or (N, V, P)")
    return [input.shape[0], *input.shape[2:]]


# ---- logit_stats(input, target, weight, ignore_index, logit_map, map_params, spread, first_class, num_classes)
#      -> nll, lse, spread, lse_residual; and logit_stats_backward_, its backward written over the logits of a workspace


@torch.library.register_fake("nearlinear::logit_stats")
def _(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, logit_map: str, map_params: list[float], spread: bool,
    first_class: int = 0, num_classes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shape, dtype = _rows(input), stats_dtype(input)
    torch._check(list(target.shape) == shape, lambda: "target must have one label per row")
    nll, lse, residual = (input.new_empty(shape, dtype=dtype) for _ in range(3))
    return nll, lse, input.new_empty(shape if spread else [0], dtype=dtype), residual


@torch.library.register_fake("nearlinear::logit_stats_backward")
def _(d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, input: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("nearlinear::logit_stats_backward_")
def _(*_: Any) -> None:
    return None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, target, weight, *ctx.options = inputs
    nll, lse, _, residual = output
    ctx.save_for_backward(input, target, weight, nll, lse, residual)
    ctx.mark_non_differentiable(residual)


def _backward(ctx: Any, d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _ops.logit_stats_backward(d_nll, d_lse, d_spread, *ctx.saved_tensors, *ctx.options), *[None] * 8


def _gradient(
    d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, nll: Tensor, lse: Tensor,
    lse_residual: Tensor, *options: Any,
) -> Tensor:  # fmt: skip
    """d_input in differentiable torch; nll, lse and residual are functions of input here."""
    spread = options[3]
    outputs = reference.logit_stats(input.to(stats_dtype(input)), target, weight, *options)[: 3 if spread else 2]
    return torch.autograd.grad(outputs, input, (d_nll, d_lse, d_spread)[: len(outputs)], create_graph=True)[0]


torch.library.register_autograd("nearlinear::logit_stats", _backward, setup_context=_setup)
register_second_derivative("nearlinear::logit_stats_backward", _gradient, differentiable=(0, 1, 2, 3))


# ---- soft_logit_stats(input, target, weight, label_smoothing, logit_map, map_params) -> xent, lse, lse_residual, mass


@torch.library.register_fake("nearlinear::soft_logit_stats")
def _(
    input: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, logit_map: str, map_params: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch._check(target.shape == input.shape, lambda: "target must have the shape of input")
    xent, lse, residual, mass = (input.new_empty(_rows(input), dtype=stats_dtype(input)) for _ in range(4))
    return xent, lse, residual, mass


@torch.library.register_fake("nearlinear::soft_logit_stats_backward")
def _(d_xent: Tensor, d_lse: Tensor, input: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(target) if rest[-1] else target.new_empty([0])


def _soft_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, target, weight, *ctx.options = inputs
    _, lse, residual, mass = output
    ctx.save_for_backward(input, target, weight, lse, residual, mass)
    ctx.mark_non_differentiable(residual, mass)


def _soft_backward(ctx: Any, d_xent: Tensor, d_lse: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wants_target = ctx.needs_input_grad[1]
    d_input, d_target = _ops.soft_logit_stats_backward(d_xent, d_lse, *ctx.saved_tensors, *ctx.options, wants_target)
    return d_input, d_target if wants_target else None, *[None] * 4


def _soft_gradient(
    d_xent: Tensor, d_lse: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, lse_residual: Tensor, mass: Tensor,
    label_smoothing: float, logit_map: str, map_params: list[float], target_gradient: bool,
) -> list[Tensor]:  # fmt: skip
    wide = stats_dtype(input)
    outputs = reference.soft_logit_stats(input.to(wide), target.to(wide), weight, label_smoothing, logit_map, map_params)[:2]
    leaves = [input, target] if target_gradient else [input]
    gradients = torch.autograd.grad(outputs, leaves, (d_xent, d_lse), create_graph=True)
    return [*gradients] if target_gradient else [gradients[0], target.new_zeros(0)]


torch.library.register_autograd("nearlinear::soft_logit_stats", _soft_backward, setup_context=_soft_setup)
register_second_derivative("nearlinear::soft_logit_stats_backward", _soft_gradient, differentiable=(0, 1, 2, 3))


# ---- first_invalid_target(target, num_classes, ignore_index) -> position


@torch.library.register_fake("nearlinear::first_invalid_target")
def _(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    return target.new_empty([])
