"""logit_sum and its fused head as ops: the walk over tiles, shapes, derivatives. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..embeddings import Normalised, Plain
from ..linear_head import Head
from ..linear_tiles import walk
from ..logit_maps import LogitMap
from ..reducers import PlainSum, Total
from ..reference import sface as reference
from ..score_maps import ScoreMap
from ._register import register_second_derivative, stats_dtype

_ops = torch.ops.nearlinear
_KEY = "CompositeExplicitAutograd"


@dataclass(frozen=True)
class _Constraint(LogitMap):
    """What logit_sum calls its map; no softmax takes it."""

    k: float
    b: float
    name: ClassVar[str] = "sface"


@dataclass(frozen=True)
class _Cosines(ScoreMap):
    constraint: _Constraint
    name: ClassVar[str] = "sface"

    @property
    def embedding(self) -> Plain:
        return Normalised()

    @property
    def elementwise(self) -> LogitMap:
        return self.constraint


# ---- logit_sum(input, target, ignore_index, logit_map, map_params, first_class) -> total


@torch.library.register_fake("nearlinear::logit_sum")
def _(input: Tensor, target: Tensor, *_: Any) -> Tensor:
    torch._check(input.dim() == 2 and target.shape == input.shape[:1], lambda: "target must have one label per row")
    return input.new_empty(input.shape[0], dtype=stats_dtype(input))


@torch.library.register_fake("nearlinear::logit_sum_backward")
def _(d_total: Tensor, input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("nearlinear::logit_sum_backward_")
def _(*_: Any) -> None:
    return None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, target, *ctx.options = inputs
    ctx.save_for_backward(input, target)


def _backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
    return _ops.logit_sum_backward(d_total, *ctx.saved_tensors, *ctx.options), *[None] * 5


def _gradient(d_total: Tensor, input: Tensor, *rest: Any) -> Tensor:
    total = reference.logit_sum(input.to(stats_dtype(input)), *rest)
    return torch.autograd.grad(total, input, d_total, create_graph=True)[0]


torch.library.register_autograd("nearlinear::logit_sum", _backward, setup_context=_setup)
register_second_derivative("nearlinear::logit_sum_backward", _gradient, differentiable=(0, 1))


# ---- linear_logit_sum(input, linear_weight, target, ignore_index, logit_map, map_params, max_workspace_bytes) -> total


def _head(
    input: Tensor, linear_weight: Tensor, target: Tensor, ignore_index: int, logit_map: str, map_params: list[float],
    max_workspace_bytes: int | None = None,
) -> Head:  # fmt: skip
    if not target.is_cuda and (bad := int(_ops.first_invalid_target(target, len(linear_weight), ignore_index))) >= 0:
        label = f"target[{bad}] = {int(target[bad])}"
        raise RuntimeError(f"linear_logit_sum: {label} is out of range [0, {len(linear_weight)}) and is not ignore_index={ignore_index}")
    score_map = _Cosines(_Constraint(*map_params))
    return Head(
        input, linear_weight, None, target, None, None, ignore_index, score_map, False, max_workspace_bytes=max_workspace_bytes
    )  # fmt: skip


@torch.library.impl("nearlinear::linear_logit_sum", _KEY)
def _(input: Tensor, *rest: Any) -> Tensor:
    head = _head(input, *rest)
    with torch.autocast(input.device.type, enabled=False):
        return walk(head, PlainSum(head), None, [False] * 4)[0].total


@torch.library.register_fake("nearlinear::linear_logit_sum")
def _(input: Tensor, *_: Any) -> Tensor:
    return input.new_empty(input.shape[0], dtype=stats_dtype(input))


@torch.library.impl("nearlinear::linear_logit_sum_backward", _KEY)
def _(d_total: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *arguments, wants = rest
    head = _head(input, *arguments)
    with torch.autocast(input.device.type, enabled=False):
        gradients = walk(head, PlainSum(head), lambda _, index: Total(d_total[index]), [*wants, False, False], Total(d_total))[1]
    return gradients[0], gradients[1]


@torch.library.register_fake("nearlinear::linear_logit_sum_backward")
def _(d_total: Tensor, input: Tensor, linear_weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    found = [torch.empty_like(t) if wanted else t.new_empty(0) for t, wanted in zip((input, linear_weight), rest[-1], strict=True)]
    return found[0], found[1]


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


def _linear_backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:2])
    found = _ops.linear_logit_sum_backward(d_total, *ctx.saved_tensors, *ctx.options, wants)
    return *(d if wanted else None for d, wanted in zip(found, wants, strict=True)), *[None] * 5


def _linear_gradient(d_total: Tensor, input: Tensor, linear_weight: Tensor, *rest: Any) -> list[Tensor]:
    *arguments, wants = rest
    wide = stats_dtype(input)
    total = reference.linear_logit_sum(input.to(wide), linear_weight.to(wide), *arguments)
    leaves = [t for t, wanted in zip((input, linear_weight), wants, strict=True) if wanted]
    found = iter(torch.autograd.grad(total, leaves, d_total, create_graph=True))
    return [next(found) if wanted else input.new_zeros(0) for wanted in wants]


torch.library.register_autograd("nearlinear::linear_logit_sum", _linear_backward, setup_context=_linear_setup)
register_second_derivative("nearlinear::linear_logit_sum_backward", _linear_gradient, differentiable=(0, 1, 2))
