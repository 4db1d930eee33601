"""Definition of the two-logit family in plain torch: the oracle (in float64), the baseline (in native dtype), the mathematics.

Letters: N rows, V classes, P pixels of a row of images. ``q = softmax(target / T)``, ``p = softmax(input / T)`` over the V classes.

    kl_i = sum_j q_j (log q_j - log p_j) >= 0
    d kl / d input_j  = (p_j - q_j) / T
    d kl / d target_j = q_j (log q_j - log p_j - kl) / T

    lse = T log sum_j e^(z_j / T), the soft maximum of the logits, in their units

Edges: -inf in both logits of a class adds 0; -inf in the input alone makes kl +inf, its gradient (p - q) / T stays finite, and the gradient
of the target is NaN or infinite; -inf in the target alone adds 0; NaN or +inf in a row, or a row of -inf: NaN; V = 1: 0; no class: 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kl_logit_loss", "two_logit_stats"]


def two_logit_stats(input: Tensor, target: Tensor, inv_temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(kl, lse_input, lse_target, residual_input, residual_target) of logits [N, V] or [N, V, P] of one shape."""
    b, a = input * inv_temperature, target * inv_temperature
    log_p, log_q = b.log_softmax(1), a.log_softmax(1)
    impossible = target == -torch.inf
    ratio = log_q.masked_fill(impossible, 0) - log_p.masked_fill(impossible, 0)
    lse_input, lse_target = b.logsumexp(1) / inv_temperature, a.logsumexp(1) / inv_temperature
    return (log_q.exp() * ratio).sum(1), lse_input, lse_target, torch.zeros_like(lse_input), torch.zeros_like(lse_target)


def kl_logit_loss(
    input: Tensor,
    target_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Same arguments as :func:`nearlinear.kl_logit_loss`."""
    kl = two_logit_stats(input, target_logits, 1 / temperature)[0]
    kept = torch.ones_like(kl, dtype=torch.bool) if mask is None else mask
    weight = (torch.ones_like(kl) if sample_weight is None else sample_weight).masked_fill(~kept, 0)
    rows = (weight * kl).masked_fill(~kept, 0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / (weight.sum().masked_fill(~kept.any(), 1) if normalizer is None else normalizer)
