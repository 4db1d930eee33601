"""Shapes, derivatives and second derivatives of the ops on all pairs of keys. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import tensor_attention as reference
from ._register import register_second_derivative, stats_dtype

_ops = torch.ops.nearlinear
_TENSORS = 7  # query, key1, key2, value1, value2, bias1, bias2


def check_shapes(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    torch._check(query.dim() == 4, lambda: "query must have shape (B, H, N, D)")
    batch, heads, _, dim = query.shape
    groups = keys[0].shape[1]
    torch._check(groups > 0 and heads % groups == 0, lambda: "the heads of key1 must divide those of query")
    for t, (key, value, bias) in enumerate(zip(keys, values, biases, strict=True), 1):
        shape = (batch, groups, key.shape[2])
        torch._check(list(key.shape) == [*shape, dim], lambda t=t: f"key{t} must have shape (B, G, N{t}, D)")
        torch._check(list(value.shape) == [*shape, values[0].shape[3]], lambda t=t: f"value{t} must have shape (B, G, N{t}, E)")
        torch._check(bias is None or list(bias.shape) == [*shape], lambda t=t: f"bias{t} must have shape (B, G, N{t})")


def empty_gradients(tensors: Sequence[Tensor | None], wants: Sequence[bool], like: Tensor) -> tuple[Tensor, ...]:
    """Fakes: contiguous, and of no elements where nobody asks."""
    return tuple(
        t.new_empty(t.shape) if wanted and t is not None else (like if t is None else t).new_empty([0])
        for t, wanted in zip(tensors, wants, strict=True)
    )


def given(gradients: Sequence[Tensor], wants: Sequence[bool]) -> list[Tensor | None]:
    return [g if wanted else None for g, wanted in zip(gradients, wants, strict=True)]


def gradients_of(
    definition: Callable[..., Any],
    options: Sequence[Any],
    upstream: Sequence[Tensor],
    tensors: Sequence[Tensor | None],
    wants: Sequence[bool],
) -> list[Tensor]:
    """Gradients of ``definition(*tensors, *options)``, themselves differentiable; of no elements where nobody asks."""
    wide = stats_dtype(upstream[-1])
    found = definition(*(t if t is None else t.to(wide) for t in tensors), *options)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    leaves = [t for t, wanted in zip(tensors, wants, strict=True) if wanted and t is not None]
    gradients = iter(torch.autograd.grad(outputs, leaves, [d.to(wide) for d in upstream], create_graph=True, materialize_grads=True))
    return [next(gradients) if wanted and t is not None else outputs[0].new_zeros(0) for t, wanted in zip(tensors, wants, strict=True)]


# ---- trilinear_softmax(query, key1, key2, value1, value2, bias1, bias2, scale, window) -> out, lse


@torch.library.register_fake("nearlinear::trilinear_softmax")
def _(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, scale: float,
    window: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_shapes(query, (key1, key2), (value1, value2), (bias1, bias2))
    return query.new_empty([*query.shape[:3], value1.shape[3]]), query.new_empty(query.shape[:3], dtype=stats_dtype(query))


@torch.library.register_fake("nearlinear::trilinear_softmax_backward")
def _(d_out: Tensor, d_lse: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return empty_gradients(rest[:_TENSORS], rest[-1], d_lse)


def _softmax_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _softmax_backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:_TENSORS])
    gradients = _ops.trilinear_softmax_backward(d_out, d_lse, *ctx.saved_tensors, ctx.scale, ctx.window, wants)
    return *given(gradients, wants), None, None


def _softmax_gradient(d_out: Tensor, d_lse: Tensor, *rest: Any) -> list[Tensor]:
    """The gradients in differentiable torch; out and lse are functions of the inputs here."""
    *tensors, _, _, scale, window, wants = rest
    return gradients_of(reference.trilinear_softmax, (scale, window), (d_out, d_lse), tensors, wants)


torch.library.register_autograd("nearlinear::trilinear_softmax", _softmax_backward, setup_context=_softmax_setup)
register_second_derivative("nearlinear::trilinear_softmax_backward", _softmax_gradient, differentiable=range(2 + _TENSORS))


# ---- trilinear_sums(query, key1, key2, value1, value2, bias1, bias2, scale, window, coefficients, excess) -> sums


@torch.library.register_fake("nearlinear::trilinear_sums")
def _(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, scale: float,
    window: list[int], coefficients: list[float], excess: bool,
) -> Tensor:  # fmt: skip
    check_shapes(query, (key1, key2), (value1, value2), (bias1, bias2))
    return query.new_empty([*query.shape[:3], value1.shape[3] + 1], dtype=stats_dtype(query))


@torch.library.register_fake("nearlinear::trilinear_sums_backward")
def _(d_sums: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return empty_gradients(rest[:_TENSORS], rest[-1], d_sums)


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[_TENSORS:]
    ctx.save_for_backward(*inputs[:_TENSORS])


def _sums_backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:_TENSORS])
    gradients = _ops.trilinear_sums_backward(d_sums, *ctx.saved_tensors, *ctx.options, wants)
    return *given(gradients, wants), None, None, None, None


def _sums_gradient(d_sums: Tensor, *rest: Any) -> list[Tensor]:
    *inputs, wants = rest
    tensors, options = inputs[:_TENSORS], inputs[_TENSORS:]
    return gradients_of(reference.trilinear_sums, options, [d_sums], tensors, wants)


torch.library.register_autograd("nearlinear::trilinear_sums", _sums_backward, setup_context=_sums_setup)
register_second_derivative("nearlinear::trilinear_sums_backward", _sums_gradient, differentiable=range(1 + _TENSORS))
