"""Definition of the fused linear heads in plain torch: the logits are built, then :mod:`.cross_entropy` is applied to them.

Letters: N rows, V classes, D features. ``z_ij = elementwise(<rows(x_i), classes(w_j)> + b_j)`` (:mod:`nearlinear.score_maps`), the target's
product first replaced by its value under the margin. With ``extra_lse`` u_i, a class of logit u_i is added that is never the target:

    lse' = log(e^lse + e^u)      nll' = nll + (lse' - lse)      spread' = spread + sum_j w_j (lse' - lse)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import row_losses
from ..logit_maps import Identity, LogitMap, SoftCap
from ..score_maps import Dot, ScoreMap, get_score_map
from . import cross_entropy as _logits

__all__ = ["linear_cross_entropy", "linear_logit_stats", "linear_row_loss", "linear_soft_logit_stats", "scores"]


def scores(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, margin: Tensor | None, score_map: ScoreMap
) -> Tensor:
    """Products [N, V] before the elementwise map; a label outside [0, V) has no margin."""
    product = score_map.product(input, linear_weight, linear_bias)
    here = (target >= 0) & (target < product.shape[1])
    place = target.clamp(0, product.shape[1] - 1).unsqueeze(1)
    moved = score_map.target(product.gather(1, place).squeeze(1), margin)
    if moved is None:
        return product
    own = torch.zeros_like(product, dtype=torch.bool).scatter(1, place, here.unsqueeze(1))
    return torch.where(own, moved[0].unsqueeze(1), product)


def linear_logit_stats(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, margin: Tensor | None,
    ignore_index: int, logit_map: str, map_params: list[float], spread: bool, first_class: int = 0, num_classes: int | None = None,
    max_workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``cross_entropy.logit_stats`` of the scores; ``linear_weight`` may hold a shard of the classes."""
    record = get_score_map(logit_map, map_params)
    product = scores(input, linear_weight, linear_bias, target - first_class, margin, record)
    elementwise = record.elementwise
    return _logits.logit_stats(
        product, target, weight, ignore_index, elementwise.name, elementwise.params, spread, first_class, num_classes
    )


def linear_soft_logit_stats(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, label_smoothing: float,
    logit_map: str, map_params: list[float], max_workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``cross_entropy.soft_logit_stats`` of the scores and class probabilities [N, V]."""
    record = get_score_map(logit_map, map_params)
    product = record.product(input, linear_weight, linear_bias)
    return _logits.soft_logit_stats(product, target, weight, label_smoothing, record.elementwise.name, record.elementwise.params)


def _soft_rows(
    z: Tensor, target: Tensor, weight: Tensor | None, extra_lse: Tensor | None, label_smoothing: float, z_loss: float
) -> Tensor:  # fmt: skip
    """Loss per row of logits z against class probabilities."""
    xent, lse, _, mass = _logits.soft_logit_stats(z, target, weight, label_smoothing, "identity", [])
    if extra_lse is not None:
        total = torch.logaddexp(lse, extra_lse.expand(len(z)))
        xent, lse = xent + mass * (total - lse), total
    return xent + z_loss * lse**2


def _rows(
    z: Tensor, target: Tensor, weight: Tensor | None, extra_lse: Tensor | None, ignore_index: int, record: row_losses.RowLoss,
    label_smoothing: float, z_loss: float,
) -> Tensor:  # fmt: skip
    """Loss per row of logits z, 0 where ignored."""
    kept = target != ignore_index
    nll, lse, spread, _ = _logits.logit_stats(z, target, weight, ignore_index, "identity", [], True)
    w = z.new_ones(z.shape[1]) if weight is None else weight
    if extra_lse is not None:
        total = torch.logaddexp(lse, extra_lse.expand(len(z)))
        nll, spread, lse = nll + (total - lse), spread + w.sum() * (total - lse), total
    psi = nll if record.name == "ce" else record.formula(torch.exp(-nll), z.shape[1])
    rows = (1 - label_smoothing) * w[target.masked_fill(~kept, 0)] * psi + label_smoothing / z.shape[1] * spread + z_loss * lse**2
    return rows.masked_fill(~kept, 0)


def linear_row_loss(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, margin: Tensor | None,
    row_scale: Tensor, extra_lse: Tensor | None, ignore_index: int, logit_map: str, map_params: list[float], row_loss: str,
    row_params: list[float], label_smoothing: float, z_loss: float, max_workspace_bytes: int | None, wants: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, rows): ``loss = sum_i row_scale_i rows_i``; the op's other results are gradients of loss."""
    score_map = get_score_map(logit_map, map_params)
    z = score_map.elementwise(scores(input, linear_weight, linear_bias, target, margin, score_map))
    record = row_losses.ROW_LOSSES[row_loss](*row_params)
    rows = _rows(z, target, weight, extra_lse, ignore_index, record, label_smoothing, z_loss)
    return (row_scale * rows).sum(), rows


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None, weight: Tensor | None = None,
    ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None,
    sample_weight: Tensor | None = None, normalizer: float | Tensor | None = None, row_loss: str | row_losses.RowLoss = "ce",
    logit_map: LogitMap | ScoreMap | None = None, margin: Tensor | None = None, extra_lse: Tensor | None = None,
    max_workspace_bytes: int | None = None, process_group: object = None, check_targets: bool = False,
) -> Tensor:  # fmt: skip
    """Same arguments as :func:`nearlinear.linear_cross_entropy`, the last three without effect; builds the logits [N, V]."""
    elementwise = SoftCap(softcap) if softcap is not None else Identity() if logit_map is None else logit_map
    score_map = elementwise if isinstance(elementwise, ScoreMap) else Dot(elementwise)
    soft = target.is_floating_point()
    x, y = input.reshape(-1, input.shape[-1]), target.reshape(-1, target.shape[-1]) if soft else target.reshape(-1)
    flat = [None if t is None or t.dim() == 0 else t.reshape(-1) for t in (margin, sample_weight, extra_lse)]
    extra = extra_lse if extra_lse is not None and extra_lse.dim() == 0 else flat[2]
    if soft:
        z = score_map(x, linear_weight, linear_bias)
        rows = _soft_rows(z, y, weight, extra, label_smoothing, z_loss)
        v = divisor_rows = torch.ones_like(rows) if flat[1] is None else flat[1]
    else:
        z = score_map.elementwise(scores(x, linear_weight, linear_bias, y, flat[0], score_map))
        record = row_losses.get_row_loss(row_loss, "linear_cross_entropy")
        rows = _rows(z, y, weight, extra, ignore_index, record, label_smoothing, z_loss)
        kept = y != ignore_index
        v = (torch.ones_like(rows) if flat[1] is None else flat[1]).masked_fill(~kept, 0)
        divisor_rows = v if weight is None else v * weight[y.masked_fill(~kept, 0)]
    rows = v * rows
    if reduction == "none":
        return rows.reshape(input.shape[:-1])
    if reduction == "sum":
        return rows.sum()
    divisor = divisor_rows.sum()
    return rows.sum() / (divisor.masked_fill(divisor == 0, math.nan) if normalizer is None else normalizer)
