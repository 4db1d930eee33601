"""Shapes, derivatives and second derivatives of the distance ops. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import distance as reference
from ._register import register_second_derivative

_ops = torch.ops.nearlinear


# ---- distance_tile(input, other, metric, metric_params, out): inside the ops of others, which have the derivatives


@torch.library.register_fake("nearlinear::distance_tile")
def _(input: Tensor, other: Tensor, metric: str, metric_params: list[float], out: Tensor) -> None:
    torch._check(list(out.shape) == [input.shape[0], other.shape[0]], lambda: "out must have shape (R, C)")


@torch.library.register_fake("nearlinear::distance_tile_backward")
def _(d_input: Tensor, d_other: Tensor, grad: Tensor, input: Tensor, other: Tensor, *rest: Any) -> None:
    torch._check(list(grad.shape) == [input.shape[0], other.shape[0]], lambda: "grad must have shape (R, C)")


# ---- pair_distances(input, other, metric, metric_params) -> distances


@torch.library.register_fake("nearlinear::pair_distances")
def _(input: Tensor, other: Tensor, metric: str, metric_params: list[float]) -> Tensor:
    torch._check(input.dim() == 3 and other.dim() == 3, lambda: "input and other must have shapes (B, R, D) and (B, C, D)")
    return input.new_empty(input.shape[0], input.shape[1], other.shape[1])


@torch.library.register_fake("nearlinear::pair_distances_backward")
def _(
    grad: Tensor, input: Tensor, other: Tensor, metric: str, metric_params: list[float], wants_input: bool, wants_other: bool
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape if wants_input else [0]), other.new_empty(other.shape if wants_other else [0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, other, *ctx.options = inputs
    ctx.save_for_backward(input, other)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:2]
    gradients = _ops.pair_distances_backward(grad, *ctx.saved_tensors, *ctx.options, *wanted)
    return *(g if wants else None for g, wants in zip(gradients, wanted, strict=True)), None, None


def _gradient(
    grad: Tensor, input: Tensor, other: Tensor, metric: str, metric_params: list[float], wants_input: bool, wants_other: bool
) -> list[Tensor]:
    """(d_input, d_other) in differentiable torch."""
    wanted = [leaf for leaf, wants in ((input, wants_input), (other, wants_other)) if wants]
    distances = reference.pair_distances(input, other, metric, metric_params)
    found = iter(torch.autograd.grad(distances, wanted, grad, create_graph=True))
    return [next(found) if wants else input.new_zeros(0) for wants in (wants_input, wants_other)]


torch.library.register_autograd("nearlinear::pair_distances", _backward, setup_context=_setup)
register_second_derivative("nearlinear::pair_distances_backward", _gradient, differentiable=(0, 1, 2))
