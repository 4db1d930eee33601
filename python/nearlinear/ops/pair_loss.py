"""The pair statistics as ops: kernels (one walk over tiles for every device), shapes, derivatives. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import pair_tiles
from ..reference import pair_loss as reference
from ..score_maps import get_score_map
from ._register import register_second_derivative, stats_dtype

_ops = torch.ops.nearlinear
# the walk is torch's matrix products and the kernels of a tile, which exist for each device
_KEY = "CompositeExplicitAutograd"


def _without_autocast(input: Tensor) -> torch.autocast:
    """The products are the kernel's own; autocast must not change their dtype."""
    return torch.autocast(input.device.type, enabled=False)


# ---- kernels of one tile: of a workspace, so without a derivative of their own


@torch.library.register_fake("nearlinear::pair_tile_stats")
def _(tile: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse, total, mass = (tile.new_empty(2, tile.shape[0], dtype=torch.float64) for _ in range(3))
    return lse, total, mass


@torch.library.register_fake("nearlinear::pair_tile_stats_backward_")
def _(*_: Any) -> None:
    return None


@torch.library.register_fake("nearlinear::pair_tile_extremes")
def _(tile: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return tile.new_empty(2, tile.shape[0]), tile.new_empty(2, tile.shape[0], dtype=torch.int64)


# ---- pair_extremes(input, key, target, key_target, logit_map, map_params, max_workspace_bytes) -> value, index; not differentiable


@torch.library.impl("nearlinear::pair_extremes", _KEY)
def _(
    input: Tensor, key: Tensor | None, target: Tensor, key_target: Tensor | None, logit_map: str, map_params: list[float],
    max_workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with _without_autocast(input):
        score_map = get_score_map(logit_map, map_params)
        return pair_tiles.extremes(pair_tiles.Pairs(input, key, target, key_target, None, None, score_map, max_workspace_bytes))


@torch.library.register_fake("nearlinear::pair_extremes")
def _(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = [2, input.shape[0]]
    return input.new_empty(shape, dtype=stats_dtype(input)), input.new_empty(shape, dtype=torch.int64)


# ---- pair_stats(input, key, target, key_target, other_target, mixing, limit, logit_map, map_params, scale, max_workspace_bytes)
#      -> lse, sum, mass; the labels, the share of their mixture and the limits are constants


@torch.library.impl("nearlinear::pair_stats", _KEY)
def _(
    input: Tensor, key: Tensor | None, target: Tensor, key_target: Tensor | None, other_target: Tensor | None, mixing: Tensor | None,
    limit: Tensor | None, logit_map: str, map_params: list[float], scale: list[float], max_workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with _without_autocast(input):
        score_map = get_score_map(logit_map, map_params)
        pairs = pair_tiles.Pairs(input, key, target, key_target, other_target, mixing, score_map, max_workspace_bytes)
        return pair_tiles.stats(pairs, limit, scale)


@torch.library.register_fake("nearlinear::pair_stats")
def _(input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse, total, mass = (input.new_empty([2, input.shape[0]], dtype=torch.float64) for _ in range(3))
    return lse, total, mass


@torch.library.impl("nearlinear::pair_stats_backward", _KEY)
def _(
    d_lse: Tensor, d_sum: Tensor, input: Tensor, key: Tensor | None, target: Tensor, key_target: Tensor | None, other_target: Tensor | None,
    mixing: Tensor | None, limit: Tensor | None, lse: Tensor, logit_map: str, map_params: list[float], scale: list[float],
    max_workspace_bytes: int | None, wants: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with _without_autocast(input):
        score_map = get_score_map(logit_map, map_params)
        pairs = pair_tiles.Pairs(input, key, target, key_target, other_target, mixing, score_map, max_workspace_bytes)
        return pair_tiles.gradient(pairs, d_lse, d_sum, lse, limit, scale, wants)


@torch.library.register_fake("nearlinear::pair_stats_backward")
def _(d_lse: Tensor, d_sum: Tensor, input: Tensor, key: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    pair = (input, key)
    d_input, d_key = (input.new_empty(t.shape if t is not None and wanted else [0]) for t, wanted in zip(pair, rest[-1], strict=True))
    return d_input, d_key


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    lse, _, mass = output
    ctx.options = inputs[7:]
    ctx.save_for_backward(*inputs[:7], lse)
    ctx.mark_non_differentiable(mass)


def _backward(ctx: Any, d_lse: Tensor, d_sum: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    wants = [ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
    d_input, d_key = _ops.pair_stats_backward(d_lse, d_sum, *ctx.saved_tensors, *ctx.options, wants)
    return d_input if wants[0] else None, d_key if wants[1] else None, *[None] * 9


def _gradient(
    d_lse: Tensor, d_sum: Tensor, input: Tensor, key: Tensor | None, target: Tensor, key_target: Tensor | None, other_target: Tensor | None,
    mixing: Tensor | None, limit: Tensor | None, lse: Tensor, *options: Any,
) -> list[Tensor]:  # fmt: skip
    """The two gradients in differentiable torch."""
    *options, wants = options  # type: ignore[assignment]
    wide = stats_dtype(input)
    x, w = input.to(wide), None if key is None else key.to(wide)
    outputs = reference.pair_stats(x, w, target, key_target, other_target, mixing, limit, *options)[:2]
    leaves = [leaf for leaf, wanted in zip((input, key), wants, strict=True) if wanted and leaf is not None]
    upstream = [d.to(y.dtype) for d, y in zip((d_lse, d_sum), outputs, strict=True)]
    found = iter(torch.autograd.grad(outputs, leaves, upstream, create_graph=True))
    return [next(found) if wanted else input.new_zeros(0) for wanted in wants]


torch.library.register_autograd("nearlinear::pair_stats", _backward, setup_context=_setup)
register_second_derivative("nearlinear::pair_stats_backward", _gradient, differentiable=(0, 1, 2, 3))
