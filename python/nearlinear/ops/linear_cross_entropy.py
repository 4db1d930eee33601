"""The fused linear heads as ops: kernels (one walk over tiles for every device), shapes, derivatives. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import row_losses
from ..linear_head import Head
from ..linear_tiles import walk
from ..reducers import Softmax, Stats, Upstream
from ..reference import linear_cross_entropy as reference
from ..score_maps import get_score_map
from ._register import register_second_derivative, scaled, stats_dtype

_ops = torch.ops.nearlinear
# the walk is torch's matrix products and the row kernels of the family cross_entropy, which have a kernel per device
_KEY = "CompositeExplicitAutograd"


def _head(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, margin: Tensor | None,
    ignore_index: int, logit_map: str, map_params: list[float], spread: bool, *shard: Any,
) -> Head:  # fmt: skip
    score_map = get_score_map(logit_map, map_params)
    head = Head(input, linear_weight, linear_bias, target, weight, margin, ignore_index, score_map, spread, *shard)
    op, shapes = "linear_logit_stats", (tuple(input.shape), tuple(linear_weight.shape))
    _require(input.dim() == linear_weight.dim() == 2 and shapes[0][1] == shapes[1][1], op, f"got input {shapes[0]}, weight {shapes[1]}")
    _require(
        linear_weight.dtype == input.dtype, op, f"linear_weight must have the dtype of input, {input.dtype}, got {linear_weight.dtype}"
    )
    _require(target.shape == input.shape[:1], op, f"target must have shape (N,) with N={len(input)}, got {tuple(target.shape)}")
    if not target.is_cuda and (bad := int(_ops.first_invalid_target(target, head.classes_in_all, ignore_index))) >= 0:
        place = f"target[{bad}] = {int(target[bad])}"
        _require(False, op, f"{place} is out of range [0, {head.classes_in_all}) and is not ignore_index={ignore_index}")
    return head


def _require(ok: bool, op: str, text: str) -> None:
    """What a kernel in C++ raises; the public function has checked the same in its own words."""
    if not ok:
        raise RuntimeError(f"{op}: {text}")


def _without_autocast(input: Tensor) -> torch.autocast:
    """The products are the kernel's own; autocast must not change their dtype."""
    return torch.autocast(input.device.type, enabled=False)


# ---- linear_logit_stats(input, linear_weight, linear_bias, target, weight, margin, ignore_index, logit_map, map_params, spread,
#      first_class, num_classes, max_workspace_bytes) -> nll, lse, spread, lse_residual


@torch.library.impl("nearlinear::linear_logit_stats", _KEY)
def _(input: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with _without_autocast(input):
        head = _head(input, *rest)
        return walk(head, Softmax(head), None, [False] * 4)[0]


@torch.library.register_fake("nearlinear::linear_logit_stats")
def _(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, margin: Tensor | None,
    ignore_index: int, logit_map: str, map_params: list[float], spread: bool, *shard: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, dtype = input.shape[0], stats_dtype(input)
    nll, lse, residual = (input.new_empty(n, dtype=dtype) for _ in range(3))
    return nll, lse, input.new_empty(n if spread else 0, dtype=dtype), residual


@torch.library.impl("nearlinear::linear_logit_stats_backward", _KEY)
def _(
    d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
    weight: Tensor | None, margin: Tensor | None, nll: Tensor, lse: Tensor, lse_residual: Tensor, ignore_index: int, logit_map: str,
    map_params: list[float], spread: bool, first_class: int, num_classes: int | None, max_workspace_bytes: int | None, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    head = _head(
        input, linear_weight, linear_bias, target, weight, margin, ignore_index, logit_map, map_params, spread, first_class, num_classes,
        max_workspace_bytes,
    )  # fmt: skip

    def upstream(_: Stats, index: slice | Tensor) -> Upstream:
        return Upstream(*(d[index] if d.numel() else d for d in (d_nll, d_lse, d_spread)))

    with _without_autocast(input):
        return walk(head, Softmax(head), upstream, wants, Stats(nll, lse, d_spread, lse_residual))[1]


def _like(wants: list[bool], *tensors: Tensor | None) -> list[Tensor]:
    empty = tensors[0].new_empty  # type: ignore[union-attr]
    return [torch.empty_like(t) if t is not None and wanted else empty(0) for t, wanted in zip(tensors, wants, strict=True)]


@torch.library.register_fake("nearlinear::linear_logit_stats_backward")
def _(
    d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
    weight: Tensor | None, margin: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(_like(rest[-1], input, linear_weight, linear_bias, margin))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options = inputs[6:]
    nll, lse, _, residual = output
    ctx.save_for_backward(*inputs[:6], nll, lse, residual)
    ctx.mark_non_differentiable(residual)


def _backward(ctx: Any, d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    wants = [ctx.needs_input_grad[i] for i in (0, 1, 2, 5)]
    found = _ops.linear_logit_stats_backward(d_nll, d_lse, d_spread, *ctx.saved_tensors, *ctx.options, wants)
    d_input, d_weight, d_bias, d_margin = (d if wanted else None for d, wanted in zip(found, wants, strict=True))
    return d_input, d_weight, d_bias, None, None, d_margin, *[None] * 7


def _gradient(
    d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
    weight: Tensor | None, margin: Tensor | None, nll: Tensor, lse: Tensor, lse_residual: Tensor, *options: Any,
) -> list[Tensor]:  # fmt: skip
    """The four gradients in differentiable torch."""
    *options, wants = options  # type: ignore[assignment]
    wide, spread = stats_dtype(input), options[3]
    leaves = [input, linear_weight, linear_bias, margin]
    x, w, b, m = (None if leaf is None else leaf.to(wide) for leaf in leaves)
    outputs = reference.linear_logit_stats(x, w, b, target, weight, m, *options)[: 3 if spread else 2]  # type: ignore[arg-type]
    wanted = [leaf for leaf, flag in zip(leaves, wants, strict=True) if flag and leaf is not None]
    found = iter(torch.autograd.grad(outputs, wanted, (d_nll, d_lse, d_spread)[: len(outputs)], create_graph=True))
    return [next(found) if flag and leaf is not None else input.new_zeros(0) for leaf, flag in zip(leaves, wants, strict=True)]


torch.library.register_autograd("nearlinear::linear_logit_stats", _backward, setup_context=_setup)
register_second_derivative("nearlinear::linear_logit_stats_backward", _gradient, differentiable=(0, 1, 2, 3, 4, 5, 8))


# ---- linear_row_loss(input, linear_weight, linear_bias, target, weight, margin, row_scale, extra_lse, ignore_index, logit_map,
#      map_params, row_loss, row_params, label_smoothing, z_loss, max_workspace_bytes, wants)
#      -> loss, rows, d_extra_lse, d_input, d_weight, d_bias, d_margin


def row_weight(target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """``w_y`` of each row, 0 where ignored. A label out of range, which CUDA has to let through, forms no address."""
    kept = target != ignore_index
    if weight is None:
        return kept.to(dtype)
    return weight[target.masked_fill(~kept, 0).clamp(0, len(weight) - 1)] * kept


def row_terms(
    nll: Tensor, lse: Tensor, spread: Tensor, lse_residual: Tensor, w_y: Tensor, mass: Tensor | float, extra_lse: Tensor | None,
    record: row_losses.RowLoss, num_classes: int, label_smoothing: float, z_loss: float,
) -> Tensor:  # fmt: skip
    """Loss per row from its statistics; differentiable."""
    if extra_lse is not None:
        gain = torch.logaddexp((extra_lse - lse) - lse_residual, torch.zeros_like(lse))
        nll, lse, spread = nll + gain, lse + gain, spread + mass * gain if spread.numel() else spread
    rows = w_y * record.value(nll, num_classes)
    if label_smoothing:
        rows = (1 - label_smoothing) * rows + (label_smoothing / num_classes) * spread
    return rows + z_loss * lse**2 if z_loss else rows


@torch.library.impl("nearlinear::linear_row_loss", _KEY)
def _(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, margin: Tensor | None,
    row_scale: Tensor, extra_lse: Tensor | None, ignore_index: int, logit_map: str, map_params: list[float], row_loss: str,
    row_params: list[float], label_smoothing: float, z_loss: float, max_workspace_bytes: int | None, wants: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    head = _head(
        input, linear_weight, linear_bias, target, weight, margin, ignore_index, logit_map, map_params, label_smoothing > 0, 0, None,
        max_workspace_bytes,
    )  # fmt: skip
    n, num_classes, record = len(input), head.held, row_losses.ROW_LOSSES[row_loss](*row_params)
    w_y, mass = row_weight(target, weight, ignore_index, head.wide), head.weight_sum
    scale = row_scale.expand(n)
    extra = None if extra_lse is None else extra_lse.to(head.wide).expand(n)
    kept = target != ignore_index
    rows, d_extra = input.new_zeros(n, dtype=head.wide), input.new_zeros(0 if extra is None else n, dtype=head.wide)

    def upstream(stats: Stats, index: slice | Tensor) -> Upstream:
        nll, lse, spread, residual = stats
        u = None if extra is None else extra[index]
        terms = row_terms(nll, lse, spread, residual, w_y[index], mass, u, record, num_classes, label_smoothing, z_loss)
        rows[index] = torch.where(kept[index], terms, 0.0)
        c = torch.where(kept[index], scale[index], 0.0)
        above = None if u is None else (u - lse) - residual
        gain = 0.0 if above is None else torch.logaddexp(above, torch.zeros_like(lse))
        d_nll = c * (1 - label_smoothing) * w_y[index] * record.slope(nll + gain, num_classes)
        d_spread = c * (label_smoothing / num_classes) if label_smoothing else c.new_empty(0)
        d_lse = 2 * z_loss * c * (lse + gain) if z_loss else torch.zeros_like(c)
        if above is not None:
            through = torch.sigmoid(above) * (d_nll + d_lse + (mass * d_spread if label_smoothing else 0.0))
            d_extra[index] = through
            d_lse = d_lse - through
        return Upstream(d_nll, d_lse, d_spread)

    with _without_autocast(input):
        _, gradients = walk(head, Softmax(head), upstream, wants)
    loss = (scale * rows).sum()
    return loss, rows, d_extra if extra_lse is None or extra_lse.dim() else d_extra.sum(), *gradients


@torch.library.register_fake("nearlinear::linear_row_loss")
def _(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, margin: Tensor | None,
    row_scale: Tensor, extra_lse: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    dtype = stats_dtype(input)
    rows = input.new_empty(input.shape[0], dtype=dtype)
    d_extra = input.new_empty(0 if extra_lse is None else extra_lse.shape, dtype=dtype)
    return input.new_empty([], dtype=dtype), rows, d_extra, *_like(rest[-1], input, linear_weight, linear_bias, margin)


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *rest = output
    ctx.save_for_backward(*inputs[:8], *rest)
    ctx.options, ctx.wants = inputs[8:16], inputs[16]
    ctx.mark_non_differentiable(*rest)
    ctx.set_materialize_grads(False)


def _loss_backward(ctx: Any, d_loss: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    nothing = [None] * 9
    if d_loss is None:
        return None, *[None] * 7, *nothing
    saved = ctx.saved_tensors  # unpacked once, as checkpointing demands
    inputs, (rows, *stash) = saved[:8], saved[8:]
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled():  # create_graph: the stash is a constant, so the gradients come from the ops that have a derivative
        places = [i for i in (0, 1, 2, 5, 6, 7) if needs[i]]
        # aliases, not the tensors: d_loss may itself depend on them
        aliases = [t.view_as(t) if i in places else t for i, t in enumerate(inputs)]
        found = torch.autograd.grad(_composed(*aliases, *ctx.options), [aliases[i] for i in places], d_loss, create_graph=True)
        by_place = dict(zip(places, found, strict=True))
        return *(by_place.get(i) for i in range(8)), *nothing
    d_extra, d_input, d_weight, d_bias, d_margin = (scaled(t, d_loss) for t in stash)
    row_scale = inputs[6]
    d_scale = (d_loss * rows).sum_to_size(row_scale.shape) if needs[6] else None
    found_ = (d_input, d_weight, d_bias, None, None, d_margin, d_scale, None if inputs[7] is None else d_extra.to(inputs[7].dtype))
    return *(d if needed else None for d, needed in zip(found_, needs[:8], strict=True)), *nothing


def _composed(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, margin: Tensor | None,
    row_scale: Tensor, extra_lse: Tensor | None, ignore_index: int, logit_map: str, map_params: list[float], row_loss: str,
    row_params: list[float], label_smoothing: float, z_loss: float, max_workspace_bytes: int | None,
) -> Tensor:  # fmt: skip
    """linear_row_loss on the differentiable statistics."""
    dtype = stats_dtype(input)
    stats = _ops.linear_logit_stats(
        input, linear_weight, linear_bias, target, weight, margin, ignore_index, logit_map, map_params, label_smoothing > 0, 0, None,
        max_workspace_bytes,
    )  # fmt: skip
    num_classes = linear_weight.shape[0]
    mass = float(num_classes) if weight is None else weight.sum()
    record = row_losses.ROW_LOSSES[row_loss](*row_params)
    w_y = row_weight(target, weight, ignore_index, dtype)
    extra = None if extra_lse is None else extra_lse.to(dtype)
    nll, lse, spread, residual = stats
    rows = row_terms(nll, lse, spread, residual, w_y, mass, extra, record, num_classes, label_smoothing, z_loss)
    return (row_scale * rows.masked_fill(target == ignore_index, 0)).sum()


torch.library.register_autograd("nearlinear::linear_row_loss", _loss_backward, setup_context=_loss_setup)
