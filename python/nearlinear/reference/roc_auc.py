"""Definition of the area under the ROC curve in plain torch, by all pairs: the oracle, the mathematics.

Letters: N samples with scores ``s`` and weights ``w`` >= 0 (1 unless given), positives P and negatives Q, G groups, C classes::

    U     = sum_{i in P, j in Q} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2)       2 U is an integer without weights
    AUC   = U / (W_P W_Q),   W = sum w                                         U(s, y) + U(-s, y) = W_P W_Q

    U_b   = the same with the weights of the negatives of highest score alone, up to b W_Q of them; of a run of equal scores that
            does not fit, the share f that fits, and then the same share of the run's positives: the ROC curve is a line across a run
    pAUC  = (1 + (U_b / (W_P W_Q) - b^2 / 2) / (b - b^2 / 2)) / 2              McClish 1989: 1/2 for chance, 1 at best

    U_cj  = U of the samples of class c against those of class j, by the scores of column c
    ovr   : AUC_c = sum_{j != c} U_cj / (W_c sum_{j != c} W_j)
    ovo   : AUC_cj = (U_cj + U_jc) / (2 W_c W_j),  c < j                       Hand and Till 2001

Edges: -0.0 = 0.0, equal infinities are ties. A sample of weight 0 counts nowhere, whatever its score. NaN among the scores of a group that
has both labels gives NaN; a group or class with one label alone has no AUC (NaN) and is left out of averages. There is no derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["roc_auc_class_sums", "roc_auc_counts", "roc_auc_score", "roc_auc_sums", "roc_curve"]


def _half_wins(p: Tensor, q: Tensor) -> Tensor:
    """2 [p_i > q_j] + [p_i = q_j], NaN where one of them is."""
    twice = 2.0 * (p[:, None] > q[None, :]) + (p[:, None] == q[None, :])
    return twice.masked_fill(p.isnan()[:, None] | q.isnan()[None, :], torch.nan)


def _sides(target: Tensor, sample_weight: Tensor | None, group: Tensor | None, g: int) -> tuple[Tensor, Tensor]:
    """Positions of the positives and of the negatives of group ``g`` that count."""
    kept = torch.ones_like(target) if group is None else group == g
    kept = kept if sample_weight is None else kept & (sample_weight != 0)
    return (kept & target).nonzero().flatten(), (kept & ~target).nonzero().flatten()


def roc_auc_counts(input: Tensor, target: Tensor, group: Tensor | None, num_groups: int) -> Tensor:
    """(2 U, positives, negatives) of every group, int64 [G, 3]; 2 U is -1 where a score is NaN."""
    rows = []
    for g in range(num_groups):
        p, q = _sides(target, None, group, g)
        nan = bool(input[p].isnan().any() | input[q].isnan().any())
        rows.append([-1 if nan else int(_half_wins(input[p], input[q]).sum()), len(p), len(q)])
    return torch.tensor(rows, dtype=torch.int64, device=input.device).view(num_groups, 3)


def roc_auc_sums(
    input: Tensor, target: Tensor, sample_weight: Tensor | None, group: Tensor | None, num_groups: int, max_fpr: float
) -> Tensor:
    """(U_b, W_P, W_Q) of every group, float64 [G, 3]; U_b is NaN where a score is."""
    weight = torch.ones_like(input, dtype=torch.float64) if sample_weight is None else sample_weight.double()
    rows = []
    for g in range(num_groups):
        p, q = _sides(target, sample_weight, group, g)
        s, w = input[q], weight[q]
        above = (w[None, :] * (s[None, :] > s[:, None])).sum(1)  # of the negatives
        tied = (w[None, :] * (s[None, :] == s[:, None])).sum(1)
        share = ((max_fpr * w.sum() - above) / tied).clamp(0, 1)
        half = _half_wins(input[p], s) / 2
        part = torch.where(half == 0.5, share / 2, half)
        u = (weight[p][:, None] * w[None, :] * share[None, :] * part).sum()
        nan = input[p].isnan().any() | s.isnan().any()
        rows.append(torch.stack([u.masked_fill(nan, torch.nan), weight[p].sum(), w.sum()]))
    return torch.stack(rows) if rows else weight.new_zeros(0, 3)


def roc_auc_class_sums(input: Tensor, target: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """U_cj [C, C] and W_c [C] in float64; the diagonal is a class against itself, W_c^2 / 2."""
    weight = torch.ones(len(target), dtype=torch.float64, device=input.device) if sample_weight is None else sample_weight.double()
    classes = input.shape[1]
    members = [((target == c) & (weight != 0)).nonzero().flatten() for c in range(classes)]
    sums = torch.zeros(classes, classes, dtype=torch.float64, device=input.device)
    for c, p in enumerate(members):
        for j, q in enumerate(members):
            alone = input[p, c].isnan().any() | input[q, c].isnan().any()
            u = (weight[p][:, None] * weight[q][None, :] * _half_wins(input[p, c], input[q, c]) / 2).sum()
            sums[c, j] = u.masked_fill(alone, torch.nan)
    return sums, torch.stack([weight[p].sum() for p in members]) if members else weight.new_zeros(0)


def roc_auc_score(
    input: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    group: Tensor | None = None,
    num_groups: int | None = None,
    max_fpr: float | None = None,
    multi_class: str | None = None,
    average: str | None = "macro",
    return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Same arguments as :func:`nearlinear.roc_auc_score`, without its checks."""
    if multi_class is not None:
        value, valid, share = _classes(input, target, sample_weight, multi_class)
    else:
        if group is not None and num_groups is None:
            ids, group = group.unique(return_inverse=True)
            num_groups = len(ids)
        b = 1.0 if max_fpr is None else max_fpr
        u, w_p, w_q = roc_auc_sums(input, target > 0, sample_weight, group, 1 if group is None else num_groups or 0, b).unbind(1)
        value = u / (w_p * w_q)
        value = value if b == 1 else 0.5 * (1 + (value - b * b / 2) / (b - b * b / 2))
        valid, share = w_p * w_q > 0, w_p + w_q
    if multi_class is None and group is None:
        value, valid = value[0], valid[0]
    elif average is not None:
        share = share if average == "weighted" else torch.ones_like(share)
        value = (value * share)[valid].sum() / share[valid].sum()
    return (value, valid) if return_valid else value


def _classes(input: Tensor, target: Tensor, sample_weight: Tensor | None, multi_class: str) -> tuple[Tensor, Tensor, Tensor]:
    """(AUC, has both sides, weight) of every class, or of every pair c < j."""
    sums, mass = roc_auc_class_sums(input, target, sample_weight)
    values, products, shares = [], [], []
    for c in range(len(mass)):
        for j in range(c + 1, len(mass)) if multi_class == "ovo" else (c,):
            rest = mass[j] if multi_class == "ovo" else mass.sum() - mass[c]
            u = (sums[c, j] + sums[j, c]) / 2 if multi_class == "ovo" else sums[c, torch.arange(len(mass)) != c].sum()
            values.append(u / (mass[c] * rest))
            products.append(mass[c] * rest)
            shares.append(mass[c] + mass[j] if multi_class == "ovo" else mass[c])
    value, product, share = (torch.stack(t) if t else mass.new_zeros(0) for t in (values, products, shares))
    return value, product > 0, share


def roc_curve(
    input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, drop_intermediate: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments as :func:`nearlinear.roc_curve`, without its checks: a point for every distinct score, counted one by one."""
    weight = torch.ones_like(input, dtype=torch.float64) if sample_weight is None else sample_weight.double()
    kept = weight != 0
    s, y, w = input[kept], target[kept] > 0, weight[kept]
    thresholds = s.unique().flip(0)
    reached = (s[None, :] >= thresholds[:, None]).double() * w[None, :]
    tps, fps = (reached * y).sum(1), (reached * ~y).sum(1)
    if drop_intermediate and len(thresholds) > 2:
        corner = torch.ones(len(thresholds), dtype=torch.bool, device=input.device)
        corner[1:-1] = (tps.diff(n=2) != 0) | (fps.diff(n=2) != 0)
        thresholds, tps, fps = thresholds[corner], tps[corner], fps[corner]
    zero = torch.zeros_like(tps[:1]) if len(tps) else weight.new_zeros(1)
    tpr, fpr = torch.cat([zero, tps]) / (w * y).sum(), torch.cat([zero, fps]) / (w * ~y).sum()
    if bool(s.isnan().any()):
        tpr, fpr = tpr * torch.nan, fpr * torch.nan
    return fpr, tpr, torch.cat([s.new_full([1], torch.inf), thresholds])
