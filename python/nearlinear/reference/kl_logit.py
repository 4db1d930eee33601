"""Definition of the two-logit family in plain torch: the oracle (in float64), the baseline (in native dtype), the mathematics.

Letters: N rows, V classes, P pixels of a row of images. ``q = softmax(target / T)``, ``p = softmax(input / T)`` over the V classes.

    KL_i(q || m) = sum_j q_j (log q_j - log m_j) >= 0

beta = 0, the Kullback-Leibler divergence:

    kl_i = KL_i(q || p)
    d kl / d input_j  = (p_j - q_j) / T
    d kl / d target_j = q_j (log q_j - log p_j - kl) / T

0 < beta < 1, the Jensen-Shannon divergence with the mixture m = beta q + (1 - beta) p:

    js_i = beta KL_i(q || m) + (1 - beta) KL_i(p || m)
    d js / d input_j  = (1 - beta) p_j (log p_j - log m_j - KL(p || m)) / T
    d js / d target_j = beta q_j (log q_j - log m_j - KL(q || m)) / T

It is at most -beta log beta - (1 - beta) log(1 - beta), and tends to 0 with beta or 1 - beta: js / beta to KL(q || p) as beta -> 0, and
js / (1 - beta) to KL(p || q) as beta -> 1.

    lse = T log sum_j e^(z_j / T), the soft maximum of the logits, in their units

Edges: -inf in both logits of a class adds 0; -inf in the input alone makes kl +inf, its gradient (p - q) / T stays finite, and the gradient
of the target is NaN or infinite; -inf in the target alone adds 0 to kl; js and its gradients are finite in either case; NaN or +inf in a
row, or a row of -inf: NaN; V = 1: 0; no class: 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["js_logit_loss", "kl_logit_loss", "two_logit_stats"]


def two_logit_stats(
    input: Tensor, target: Tensor, inv_temperature: float, beta: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(divergence, kl_input, lse_input, lse_target, residual_input, residual_target) of logits [N, V] or [N, V, P] of one shape;
    kl_input is KL(p || m), empty where m is p."""
    b, a = input * inv_temperature, target * inv_temperature
    log_p, log_q = b.log_softmax(1), a.log_softmax(1)
    not_input, not_target = input == -torch.inf, target == -torch.inf
    lse_input, lse_target = b.logsumexp(1) / inv_temperature, a.logsumexp(1) / inv_temperature
    rest = lse_input, lse_target, torch.zeros_like(lse_input), torch.zeros_like(lse_target)
    if beta == 0:
        return _kl(log_q, log_p, not_target), input.new_empty(0), *rest
    neither = not_input & not_target
    log_m = torch.logaddexp(log_q.masked_fill(neither, 0) + math.log(beta), log_p.masked_fill(neither, 0) + math.log1p(-beta))
    kl_input = _kl(log_p, log_m, not_input)
    return beta * _kl(log_q, log_m, not_target) + (1 - beta) * kl_input, kl_input, *rest


def _kl(log_q: Tensor, log_m: Tensor, impossible: Tensor) -> Tensor:
    return (log_q.exp() * (log_q.masked_fill(impossible, 0) - log_m.masked_fill(impossible, 0))).sum(1)


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
    divergence = two_logit_stats(input, target_logits, 1 / temperature)[0]
    return _reduce(divergence, mask, sample_weight, reduction, normalizer)


def js_logit_loss(
    input: Tensor,
    target_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Same arguments as :func:`nearlinear.js_logit_loss`."""
    divergence = two_logit_stats(input, target_logits, 1 / temperature, beta)[0]
    return _reduce(divergence, mask, sample_weight, reduction, normalizer)


def _reduce(
    divergence: Tensor, mask: Tensor | None, sample_weight: Tensor | None, reduction: str, normalizer: float | Tensor | None
) -> Tensor:
    kept = torch.ones_like(divergence, dtype=torch.bool) if mask is None else mask
    weight = (torch.ones_like(divergence) if sample_weight is None else sample_weight).masked_fill(~kept, 0)
    rows = (weight * divergence).masked_fill(~kept, 0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / (weight.sum().masked_fill(~kept.any(), 1) if normalizer is None else normalizer)
