"""Shapes, derivatives and second derivatives of the ops on moments of monomials. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import taylor_attention as reference
from ..taylor_features import feature_count
from ._register import register_second_derivative, stats_dtype
from .tensor_attention import check_shapes, empty_gradients, given, gradients_of

_ops = torch.ops.nearlinear


# ---- taylor_moments(key, value, bias, degree) -> moments


@torch.library.register_fake("nearlinear::taylor_moments")
def _(key: Tensor, value: Tensor, bias: Tensor | None, degree: int) -> Tensor:
    torch._check(key.dim() == 4, lambda: "key must have shape (B, G, N, D)")
    torch._check(value.dim() == 4 and value.shape[:3] == key.shape[:3], lambda: "value must have shape (B, G, N, E)")
    torch._check(bias is None or bias.shape == key.shape[:3], lambda: "bias must have shape (B, G, N)")
    return key.new_empty([*key.shape[:2], feature_count(key.shape[3], degree), value.shape[3] + 1], dtype=stats_dtype(key))


@torch.library.register_fake("nearlinear::taylor_moments_backward")
def _(d_moments: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, degree: int, wants: list[bool]) -> tuple[Tensor, ...]:
    return empty_gradients((key, value, bias), wants, d_moments)


def _moments_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.degree = inputs
    ctx.save_for_backward(*tensors)


def _moments_backward(ctx: Any, d_moments: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:3])
    return *given(_ops.taylor_moments_backward(d_moments, *ctx.saved_tensors, ctx.degree, wants), wants), None


def _moments_gradient(d_moments: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, degree: int, wants: list[bool]) -> list[Tensor]:
    return gradients_of(reference.taylor_moments, [degree], [d_moments], (key, value, bias), wants)


torch.library.register_autograd("nearlinear::taylor_moments", _moments_backward, setup_context=_moments_setup)
register_second_derivative("nearlinear::taylor_moments_backward", _moments_gradient, differentiable=range(4))


# ---- taylor_apply(query, moments, degree) -> sums


@torch.library.register_fake("nearlinear::taylor_apply")
def _(query: Tensor, moments: Tensor, degree: int) -> Tensor:
    torch._check(query.dim() == 4 and moments.dim() == 4, lambda: "query must have shape (B, H, N, D), moments (B, G, R, E + 1)")
    torch._check(moments.shape[0] == query.shape[0], lambda: "moments must have the batch of query")
    torch._check(query.shape[1] % moments.shape[1] == 0, lambda: "the heads of moments must divide those of query")
    torch._check(moments.shape[2] == feature_count(query.shape[3], degree), lambda: "moments must have a row for each feature")
    return query.new_empty([*query.shape[:3], moments.shape[3]], dtype=stats_dtype(query))


@torch.library.register_fake("nearlinear::taylor_apply_backward")
def _(d_sums: Tensor, query: Tensor, moments: Tensor, degree: int, wants: list[bool]) -> tuple[Tensor, ...]:
    return empty_gradients((query, moments), wants, d_sums)


def _apply_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.degree = inputs
    ctx.save_for_backward(*tensors)


def _apply_backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:2])
    return *given(_ops.taylor_apply_backward(d_sums, *ctx.saved_tensors, ctx.degree, wants), wants), None


def _apply_gradient(d_sums: Tensor, query: Tensor, moments: Tensor, degree: int, wants: list[bool]) -> list[Tensor]:
    return gradients_of(reference.taylor_apply, [degree], [d_sums], (query, moments), wants)


torch.library.register_autograd("nearlinear::taylor_apply", _apply_backward, setup_context=_apply_setup)
register_second_derivative("nearlinear::taylor_apply_backward", _apply_gradient, differentiable=range(3))


# ---- taylor_scan(query, key1, key2, value1, value2, bias1, bias2, weight, degree) -> sums


@torch.library.register_fake("nearlinear::taylor_scan")
def _(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, weight: Tensor,
    degree: int,
) -> Tensor:  # fmt: skip
    check_shapes(query, (key1, key2), (value1, value2), (bias1, bias2))
    for t, key in enumerate((key1, key2), 1):
        torch._check(key.shape[2] == query.shape[2], lambda t=t: f"key{t} must have as many rows as query")
    torch._check(list(weight.shape) == [feature_count(query.shape[3], degree)], lambda: "weight must have an element for each feature")
    return query.new_empty([*query.shape[:3], value1.shape[3] + 1], dtype=stats_dtype(query))


@torch.library.register_fake("nearlinear::taylor_scan_backward")
def _(d_sums: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return empty_gradients(rest[:7], rest[-1], d_sums)


def _scan_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.degree = inputs
    ctx.save_for_backward(*tensors)


def _scan_backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:7])
    return *given(_ops.taylor_scan_backward(d_sums, *ctx.saved_tensors, ctx.degree, wants), wants), None, None


def _scan_gradient(d_sums: Tensor, *rest: Any) -> list[Tensor]:
    *tensors, weight, degree, wants = rest
    return gradients_of(reference.taylor_scan, (weight, degree), [d_sums], tensors, wants)


torch.library.register_autograd("nearlinear::taylor_scan", _scan_backward, setup_context=_scan_setup)
register_second_derivative("nearlinear::taylor_scan_backward", _scan_gradient, differentiable=range(8))
