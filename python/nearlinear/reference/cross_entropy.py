"""Definition of the cross-entropy family in plain torch: the oracle (in float64), the baseline (in native dtype), the mathematics.

Letters: N rows, V classes, P pixels of a row of images. ``z = map(input)``, ``p = softmax(z)`` over the V classes.

    nll    = -log p_y                              d nll / d z_j    = p_j - [j = y]
    lse    = log sum_j e^(z_j)                     d lse / d z_j    = p_j
    spread = sum_j w_j (lse - z_j)                 d spread / d z_j = W p_j - w_j,   W = sum_j w_j
    xent   = sum_j c_j (lse - z_j)                 c_j = w_j ((1 - e) t_j + e / V),  e = label_smoothing

    loss_i = v_i ([(1 - e) w_y psi(nll) + e / V spread] + z_loss lse^2)        mean: divided by sum_i v_i w_y over the kept rows

Edges: an ignored row contributes 0 and gets a zero gradient, whatever its logits are; all rows ignored, N = 0, a zero divisor: mean is NaN;
NaN or +inf in a row, or a row of -inf: NaN; -inf at the target: +inf; V = 1: 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import row_losses
from ..logit_maps import LOGIT_MAPS, LogitMap, SoftCap

__all__ = ["cross_entropy", "first_invalid_target", "logit_stats", "soft_logit_stats"]


def _per_class(weight: Tensor | None, z: Tensor) -> Tensor:
    """Class weights (ones if none) shaped to multiply z [N, V, ...]."""
    w = z.new_ones(z.shape[1]) if weight is None else weight
    return w.view(1, -1, *[1] * (z.dim() - 2))


def logit_stats(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, logit_map: str, map_params: list[float], spread: bool,
    first_class: int = 0, num_classes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(nll, lse, spread, lse_residual) of input [N, V] or [N, V, P] and labels [N] or [N, P]; ignored rows give 0.

    ``input`` may hold only the classes from ``first_class`` on, of ``num_classes`` in all: lse and spread are those of its own classes,
    and nll is +inf where the label is another's.
    """
    z = LOGIT_MAPS[logit_map](*map_params)(input)
    log_p = z.log_softmax(1)
    ignored = target == ignore_index
    elsewhere = (target < first_class) | (target >= first_class + z.shape[1])
    labels = (target - first_class).masked_fill(ignored | elsewhere, 0)
    rows = [
        -log_p.gather(1, labels.unsqueeze(1)).squeeze(1).masked_fill(elsewhere, -math.inf),
        z.logsumexp(1),
        -(log_p * _per_class(weight, z)).sum(1) if spread else None,
    ]
    nll, lse, deviation = (z.new_zeros(0) if row is None else row.masked_fill(ignored, 0) for row in rows)
    return nll, lse, deviation, torch.zeros_like(lse)


def soft_logit_stats(
    input: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, logit_map: str, map_params: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(xent, lse, lse_residual, mass) of input and class probabilities of the same shape."""
    z = LOGIT_MAPS[logit_map](*map_params)(input)
    c = _per_class(weight, z) * ((1 - label_smoothing) * target + label_smoothing / z.shape[1])
    lse = z.logsumexp(1)
    return -(c * z.log_softmax(1)).sum(1), lse, torch.zeros_like(lse), c.sum(1)


def first_invalid_target(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Position of the first label that is neither in [0, num_classes) nor ignore_index; -1 if there is none. 0-d int64."""
    bad = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
    positions = bad.flatten().nonzero().flatten()
    return positions[0] if len(positions) else target.new_tensor(-1)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    row_loss: str | row_losses.RowLoss = "ce",
    logit_map: LogitMap | None = None,
    check_targets: bool = False,
) -> Tensor:
    """Same arguments as :func:`nearlinear.cross_entropy`; the row loss is the record's ``formula`` in probabilities."""
    if input.dim() == 1:
        loss = cross_entropy(
            input.unsqueeze(0), target.unsqueeze(0), weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing,
            z_loss=z_loss, softcap=softcap, sample_weight=None if sample_weight is None else sample_weight.unsqueeze(0),
            row_loss=row_loss, logit_map=logit_map,
        )  # fmt: skip
        rows, kept = loss.squeeze(0), (target != ignore_index) if not target.is_floating_point() else torch.ones(())
        divisor = kept.to(rows.dtype) * (1 if weight is None or target.is_floating_point() else weight[target.clamp(min=0)])
        divisor = divisor * (1 if sample_weight is None else sample_weight)
        divisor = divisor.masked_fill(divisor == 0, math.nan)
        return rows / (divisor if normalizer is None else normalizer) if reduction == "mean" else rows
    record = row_losses.get_row_loss(row_loss, "cross_entropy")
    z = input if logit_map is None else logit_map(input)
    z = z if softcap is None else SoftCap(softcap)(z)
    log_p, lse, w = z.log_softmax(1), z.logsumexp(1), _per_class(weight, z)
    smoothing, num_classes = label_smoothing, z.shape[1]
    if target.is_floating_point():
        t = (1 - smoothing) * target + smoothing / num_classes
        rows, row_weight = -(t * w * log_p).sum(1), torch.ones_like(lse)
        kept = torch.ones_like(lse, dtype=torch.bool)
    else:
        kept = target != ignore_index
        labels = target.masked_fill(~kept, 0).unsqueeze(1)
        log_p_y = log_p.gather(1, labels).squeeze(1)
        row_weight = w.expand_as(z).gather(1, labels).squeeze(1) * kept
        psi = -log_p_y if record.name == "ce" else record.formula(log_p_y.exp(), num_classes)
        rows = (1 - smoothing) * row_weight * psi
        if smoothing:
            rows = rows + smoothing / num_classes * -(w * log_p).sum(1)
    v = (torch.ones_like(lse) if sample_weight is None else sample_weight).masked_fill(~kept, 0)
    rows = (v * (rows + z_loss * lse**2)).masked_fill(~kept, 0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    divisor = (v * row_weight).sum()
    return rows.sum() / (divisor.masked_fill(divisor == 0, math.nan) if normalizer is None else normalizer)
