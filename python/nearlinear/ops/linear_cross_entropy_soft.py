"""Fused linear heads against class probabilities as ops: the walk over tiles of rows, shapes, derivatives. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..linear_head import Head
from ..linear_tiles import walk
from ..reducers import SoftStats, SoftTarget, SoftUpstream
from ..reference import linear_cross_entropy as reference
from ..score_maps import get_score_map
from ._register import register_second_derivative, stats_dtype

_ops = torch.ops.nearlinear
_KEY = "CompositeExplicitAutograd"


def _head(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, label_smoothing: float,
    logit_map: str, map_params: list[float], max_workspace_bytes: int | None = None,
) -> Head:  # fmt: skip
    shape = len(input), len(linear_weight)
    if target.shape != shape:
        raise RuntimeError(f"linear_soft_logit_stats: target must have shape (N, V), {shape}, got {tuple(target.shape)}")
    score_map = get_score_map(logit_map, map_params)
    return Head(
        input, linear_weight, linear_bias, target, weight, None, -1, score_map, False, max_workspace_bytes=max_workspace_bytes
    )  # fmt: skip


# ---- linear_soft_logit_stats(input, linear_weight, linear_bias, target, weight, label_smoothing, logit_map, map_params,
#      max_workspace_bytes) -> xent, lse, lse_residual, mass


@torch.library.impl("nearlinear::linear_soft_logit_stats", _KEY)
def _(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, label_smoothing: float,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.autocast(input.device.type, enabled=False):
        head = _head(input, linear_weight, linear_bias, target, weight, label_smoothing, *rest)
        return walk(head, SoftTarget(head, label_smoothing), None, [False] * 4)[0]


@torch.library.register_fake("nearlinear::linear_soft_logit_stats")
def _(input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    xent, lse, residual, mass = (input.new_empty(input.shape[0], dtype=stats_dtype(input)) for _ in range(4))
    return xent, lse, residual, mass


@torch.library.impl("nearlinear::linear_soft_logit_stats_backward", _KEY)
def _(
    d_xent: Tensor, d_lse: Tensor, d_mass: Tensor | None, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
    weight: Tensor | None, lse: Tensor, lse_residual: Tensor, mass: Tensor, label_smoothing: float, logit_map: str,
    map_params: list[float], max_workspace_bytes: int | None, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    *of_head, wants_target = wants
    d_target = torch.empty_like(target) if wants_target else target.new_empty(0)

    def upstream(_: SoftStats, index: slice | Tensor) -> SoftUpstream:
        of_mass = None if d_mass is None else d_mass[index]
        return SoftUpstream(d_xent[index], d_lse[index], of_mass, d_target[index] if wants_target else d_target)

    with torch.autocast(input.device.type, enabled=False):
        head = _head(
            input, linear_weight, linear_bias, target, weight, label_smoothing, logit_map, map_params, max_workspace_bytes
        )  # fmt: skip
        given = SoftStats(d_xent, lse, lse_residual, mass)
        d_input, d_weight, d_bias, _ = walk(head, SoftTarget(head, label_smoothing), upstream, [*of_head, False], given)[1]
    return d_input, d_weight, d_bias, d_target


@torch.library.register_fake("nearlinear::linear_soft_logit_stats_backward")
def _(
    d_xent: Tensor, d_lse: Tensor, d_mass: Tensor | None, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    tensors = zip((input, linear_weight, linear_bias, target), rest[-1], strict=True)
    return tuple(torch.empty_like(t) if t is not None and wanted else input.new_empty(0) for t, wanted in tensors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, lse, residual, mass = output
    ctx.options = inputs[5:]
    ctx.save_for_backward(*inputs[:5], lse, residual, mass)
    ctx.mark_non_differentiable(residual)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_xent: Tensor | None, d_lse: Tensor | None, _: None, d_mass: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    d_xent, d_lse = (torch.zeros_like(tensors[5]) if d is None else d for d in (d_xent, d_lse))
    wants = list(ctx.needs_input_grad[:4])
    found = _ops.linear_soft_logit_stats_backward(d_xent, d_lse, d_mass, *tensors, *ctx.options, wants)
    return *(d if wanted else None for d, wanted in zip(found, wants, strict=True)), *[None] * 5


def _gradient(
    d_xent: Tensor, d_lse: Tensor, d_mass: Tensor | None, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
    weight: Tensor | None, lse: Tensor, lse_residual: Tensor, mass: Tensor, *rest: Any,
) -> list[Tensor]:  # fmt: skip
    *options, wants = rest
    wide = stats_dtype(input)
    leaves = [input, linear_weight, linear_bias, target]
    b = None if linear_bias is None else linear_bias.to(wide)
    outputs = reference.linear_soft_logit_stats(input.to(wide), linear_weight.to(wide), b, target.to(wide), weight, *options)
    wanted = [leaf for leaf, flag in zip(leaves, wants, strict=True) if flag and leaf is not None]
    pairs = [(y, d) for y, d in ((outputs[0], d_xent), (outputs[1], d_lse), (outputs[3], d_mass)) if d is not None and y.requires_grad]
    found = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [d for _, d in pairs], create_graph=True, materialize_grads=True))
    return [next(found) if flag and leaf is not None else input.new_zeros(0) for leaf, flag in zip(leaves, wants, strict=True)]


torch.library.register_autograd("nearlinear::linear_soft_logit_stats", _backward, setup_context=_setup)
register_second_derivative("nearlinear::linear_soft_logit_stats_backward", _gradient, differentiable=(0, 1, 2, 3, 4, 5, 6))
