"""The divergence of two linear heads as ops: a walk over tiles of rows, shapes, derivatives. Schemas: csrc/schema.cpp.

A tile of rows has its logits of both heads at once; two_logit_stats reduces them, and its backward writes both gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..linear_plan import DEFAULT_WORKSPACE_BYTES
from ..linear_tiles import product, product_into
from ..reference import linear_kl_logit as reference
from ._register import register_second_derivative, stats_dtype

_ops = torch.ops.nearlinear
_KEY = "CompositeExplicitAutograd"
_ROWS = {"cpu": 512, "cuda": 4096}  # beyond, the products gain nothing


def _rows(
    input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor, beta: float, limit: int | None
) -> int:  # fmt: skip
    """Rows of a tile: logits and gradients of both heads, converted features and their gradients; beside them converted weights, and
    float32 accumulators of 16-bit ones."""
    wide = stats_dtype(input).itemsize
    device = input.device.type
    limit = DEFAULT_WORKSPACE_BYTES[device] if limit is None else limit
    columns = input.shape[1] + target_input.shape[1]
    fixed = sum(2 * w.numel() * wide for w in (linear_weight, target_weight) if w.dtype.itemsize == 2) + 16 * 8 * len(input)
    each = (4 * len(linear_weight) + 2 * columns) * wide
    if fixed + each > limit:
        function = f"linear_{'js' if beta else 'kl'}_logit_loss"
        raise ValueError(f"{function}: max_workspace_bytes must be >= {fixed + each}, got {limit}")
    return max(1, min((limit - fixed) // each, _ROWS[device], len(input)))


def _walk(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor], inv_temperature: float, beta: float, limit: int | None,
    d_divergence: Tensor | None, wants: list[bool],
) -> Any:  # fmt: skip
    """Divergence of every row, or the wanted gradients given ``d_divergence``."""
    input, linear_weight, target_input, target_weight = tensors
    wide, n = stats_dtype(input), len(input)
    # 16-bit operands are multiplied as they are on CUDA, with a float32 result; elsewhere they are converted
    half = input.is_cuda and input.dtype.itemsize == 2
    weights = [w if half else w.to(wide) for w in (linear_weight, target_weight)]
    divergence = input.new_empty(n, dtype=wide)
    found = [torch.empty_like(t, dtype=t.dtype if i % 2 == 0 else wide) if wants[i] else t.new_empty(0) for i, t in enumerate(tensors)]
    if n == 0 and d_divergence is not None:
        found = [f.zero_() for f in found]
    step = _rows(*tensors, beta, limit)
    for begin in range(0, n, step):
        rows = slice(begin, min(begin + step, n))
        features = [x[rows] if half else x[rows].to(wide) for x in (input, target_input)]
        logits = [product(x, w.t(), wide) for x, w in zip(features, weights, strict=True)]
        stats = _ops.two_logit_stats(*logits, inv_temperature, beta)
        divergence[rows] = stats[0]
        if d_divergence is None:
            continue
        sides = [wants[0] or wants[1], wants[2] or wants[3]]
        gradients = _ops.two_logit_stats_backward(d_divergence[rows], *logits, *stats, inv_temperature, beta, *sides)
        del logits
        for side, d in enumerate(gradients):
            d = d.to(input.dtype) if half else d
            if wants[2 * side]:
                found[2 * side][rows] = product(d, weights[side], wide).to(input.dtype)
            if wants[2 * side + 1]:
                product_into(found[2 * side + 1], d.t(), features[side], first=begin == 0)
        del gradients, d  # before the next tile's logits
    return divergence if d_divergence is None else tuple(f.to(t.dtype) for f, t in zip(found, tensors, strict=True))


@torch.library.impl("nearlinear::linear_two_logit_stats", _KEY)
def _(
    input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor, inv_temperature: float, beta: float = 0.0,
    max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    with torch.autocast(input.device.type, enabled=False):
        return _walk((input, linear_weight, target_input, target_weight), inv_temperature, beta, max_workspace_bytes, None, [False] * 4)


@torch.library.register_fake("nearlinear::linear_two_logit_stats")
def _(input: Tensor, *_: Any) -> Tensor:
    return input.new_empty(input.shape[0], dtype=stats_dtype(input))


@torch.library.impl("nearlinear::linear_two_logit_stats_backward", _KEY)
def _(
    d_divergence: Tensor, input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor, inv_temperature: float,
    beta: float, max_workspace_bytes: int | None, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = (input, linear_weight, target_input, target_weight)
    with torch.autocast(input.device.type, enabled=False):
        return _walk(tensors, inv_temperature, beta, max_workspace_bytes, d_divergence, wants)


@torch.library.register_fake("nearlinear::linear_two_logit_stats_backward")
def _(d_divergence: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) if wanted else t.new_empty(0) for t, wanted in zip(rest[:4], rest[-1], strict=True))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx: Any, d_divergence: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:4])
    found = _ops.linear_two_logit_stats_backward(d_divergence, *ctx.saved_tensors, *ctx.options, wants)
    return *(d if wanted else None for d, wanted in zip(found, wants, strict=True)), None, None, None


def _gradient(d_divergence: Tensor, *rest: Any) -> list[Tensor]:
    """The four gradients in differentiable torch."""
    tensors, (inv_temperature, beta, _, wants) = rest[:4], rest[4:]
    wide = stats_dtype(tensors[0])
    x, w, t, u = (leaf.to(wide) for leaf in tensors)
    divergence = reference.linear_two_logit_stats(x, w, t, u, inv_temperature, beta)
    leaves = [t for t, wanted in zip(tensors, wants, strict=True) if wanted]
    found = iter(torch.autograd.grad(divergence, leaves, d_divergence, create_graph=True))
    return [next(found) if wanted else d_divergence.new_zeros(0) for wanted in wants]


torch.library.register_autograd("nearlinear::linear_two_logit_stats", _backward, setup_context=_setup)
register_second_derivative("nearlinear::linear_two_logit_stats_backward", _gradient, differentiable=(0, 1, 2, 3, 4))
