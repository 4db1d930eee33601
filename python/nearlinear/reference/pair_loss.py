"""Definition of the pair family in plain torch, on the matrix of all scores.

Letters: N rows, M columns (the rows themselves, or keys), D features. ``s_ij = elementwise(<rows(x_i), classes(w_j)>)``, y_ij the share
of the pair that is positive: 1 for equal labels, else 0; for a column with two labels the share of those that are the row's. Without
keys the pair of a row with itself, by position, is left out.

    lse = log sum_j w_ij e^(scale s_ij)     sum = sum_j w_ij scale s_ij     mass = sum_j w_ij       w = y, and w = 1 - y
    d lse / d s_ij = scale w_ij e^(scale s_ij - lse)                  d sum / d s_ij = scale w_ij

Edges: without a pair of one kind lse is -inf, an extreme is infinite and its column -1; NaN gives NaN; a mean over no rows is 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pair_forms
from ..logit_maps import LOGIT_MAPS, LogitMap
from ..score_maps import Cosine, Dot, ScoreMap, get_score_map, tempered
from . import linear_cross_entropy as _heads

__all__ = [
    "batch_hard_triplet_loss", "info_nce_loss", "multi_similarity_loss", "pair_extremes", "pair_loss", "pair_stats", "pair_tile_extremes",
    "pair_tile_stats", "proto_triplet_loss", "proxy_anchor_loss", "supcon_loss",
]  # fmt: skip


def _share(row_label: Tensor, column_label: Tensor, other_label: Tensor | None, mixing: Tensor | None) -> Tensor:
    """y [N, M]; bool for hard labels."""
    same = row_label.unsqueeze(1) == column_label
    if other_label is None or mixing is None:
        return same
    other = row_label.unsqueeze(1) == other_label
    return torch.where(same, torch.where(other, 1.0, mixing), torch.where(other, 1 - mixing, 0.0))


def _counted(tile: Tensor, self_column: int | None) -> Tensor:
    rows, columns = (torch.arange(n, device=tile.device) for n in tile.shape)
    return torch.ones_like(tile, dtype=torch.bool) if self_column is None else columns != rows.unsqueeze(1) + self_column


def _masked_lse(z: Tensor, w: Tensor) -> Tensor:
    """``log sum_j w e^z`` with derivatives of any order, -inf where every w is 0."""
    some = (w > 0).any(1, keepdim=True)
    kept = torch.where(w > 0, torch.where(w > 0, z, 0.0) + torch.log(torch.where(w > 0, w, 1.0)), -math.inf)
    return torch.where(some.squeeze(1), torch.where(some, kept, 0.0).logsumexp(1), -math.inf)


def pair_tile_stats(
    tile: Tensor, row_label: Tensor, column_label: Tensor, other_label: Tensor | None, mixing: Tensor | None, limit: Tensor | None,
    self_column: int | None, logit_map: str, map_params: list[float], scale: list[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(lse, sum, mass), each [2, R]: over the positive, over the negative pairs; within ``limit`` if given."""
    counted = _counted(tile, self_column)
    s = LOGIT_MAPS[logit_map](*map_params)(tile)
    s = torch.where(counted, s, 0.0)
    y = _share(row_label, column_label, other_label, mixing).to(s.dtype)
    sides = []
    for side, (weight, order) in enumerate(((y, s), (1 - y, -s))):
        kept = counted if limit is None else counted & ~(order >= limit[side].unsqueeze(1))
        w = torch.where(kept, weight, 0.0)
        sides.append((_masked_lse(scale[side] * s, w), torch.where(w != 0, w * scale[side] * s, 0.0).sum(1), w.sum(1)))
    lse, total, mass = (torch.stack(both) for both in zip(*sides, strict=True))
    return lse, total, mass


def pair_tile_extremes(
    tile: Tensor, row_label: Tensor, column_label: Tensor, self_column: int | None, logit_map: str, map_params: list[float]
) -> tuple[Tensor, Tensor]:
    """(value, column), each [2, R]: the smallest score of the positive pairs, the largest of the negative ones."""
    counted, same = _counted(tile, self_column), _share(row_label, column_label, None, None)
    s = LOGIT_MAPS[logit_map](*map_params)(tile)
    found = []
    for members, sign in ((counted & same, 1), (counted & ~same, -1)):
        if not tile.shape[1]:
            found.append((s.new_full([len(s)], sign * math.inf), row_label.new_full([len(s)], -1)))
            continue
        candidates = torch.where(members, sign * s, math.inf)
        best = candidates.amin(1)
        column = (members & (candidates == best.unsqueeze(1))).int().argmax(1)
        empty, invalid = ~members.any(1), torch.where(counted, s, 0.0).isnan().any(1)
        found.append((torch.where(invalid, math.nan, sign * best), column.masked_fill(empty | invalid, -1)))
    value, index = (torch.stack(both) for both in zip(*found, strict=True))
    return value, index


def _scores(input: Tensor, key: Tensor | None, score_map: ScoreMap) -> Tensor:
    """Products [N, M] before the elementwise map."""
    return score_map.embedding.rows(input) @ score_map.embedding.classes(input if key is None else key).T


def pair_stats(
    input: Tensor, key: Tensor | None, target: Tensor, key_target: Tensor | None, other_target: Tensor | None, mixing: Tensor | None,
    limit: Tensor | None, logit_map: str, map_params: list[float], scale: list[float], max_workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``pair_tile_stats`` of all scores in one tile."""
    score_map = get_score_map(logit_map, map_params)
    elementwise, columns = score_map.elementwise, target if key_target is None else key_target
    return pair_tile_stats(
        _scores(input, key, score_map), target, columns, other_target, mixing, limit, 0 if key is None else None, elementwise.name,
        elementwise.params, scale,
    )  # fmt: skip


def pair_extremes(
    input: Tensor, key: Tensor | None, target: Tensor, key_target: Tensor | None, logit_map: str, map_params: list[float],
    max_workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``pair_tile_extremes`` of all scores in one tile."""
    score_map = get_score_map(logit_map, map_params)
    elementwise, columns = score_map.elementwise, target if key_target is None else key_target
    return pair_tile_extremes(
        _scores(input, key, score_map), target, columns, 0 if key is None else None, elementwise.name, elementwise.params
    )


# ---- losses: same arguments as the public functions, max_workspace_bytes without effect


def _reduce(rows: Tensor, reduction: str, count: Tensor | int) -> Tensor:
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / max(int(count), 1)


def _unit(x: Tensor, normalize: bool) -> Tensor:
    return F.normalize(x, dim=1) if normalize else x


def _distance(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Euclidean distances [N, M], squares below ``eps`` counting as ``eps``."""
    return ((a.unsqueeze(1) - b) ** 2).sum(-1).clamp(min=eps).sqrt()


def supcon_loss(
    input: Tensor, target: Tensor, *, temperature: float = 0.1, logit_map: LogitMap | ScoreMap | None = None, reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """``-1 / |P_i| sum_(p in P_i) log(e^(s_ip / t) / sum_(j != i) e^(s_ij / t))`` of the rows with a positive pair."""
    score_map = Cosine(1.0) if logit_map is None else logit_map if isinstance(logit_map, ScoreMap) else Dot(logit_map)
    s, counted = score_map.elementwise(_scores(input, None, score_map)) / temperature, _counted(input.new_empty([len(input)] * 2), 0)
    positive = counted & _share(target, target, None, None)
    lse = _masked_lse(s, counted.to(s.dtype))
    count = positive.sum(1)
    rows = torch.where(positive, lse.unsqueeze(1) - s, 0.0).sum(1) / count.clamp(min=1)
    return _reduce(rows, reduction, (count > 0).sum())


def multi_similarity_loss(
    input: Tensor, target: Tensor, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, mining_margin: float | None = None,
    exclude_above: float | None = None, normalize: bool = True, reduction: str = "mean", max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """The loop over the rows of the paper's reference implementation; a row that lacks a mined set contributes 0 and counts."""
    u = _unit(input, normalize)
    s, counted = u @ u.T, _counted(input.new_empty([len(input)] * 2), 0)
    same = _share(target, target, None, None)
    rows = [0 * row.sum() for row in s]
    for i in range(len(s)):
        positive, negative = s[i][counted[i] & same[i]], s[i][counted[i] & ~same[i]]
        if exclude_above is not None:
            positive = positive[positive < exclude_above]
        if mining_margin is not None:
            if not len(positive) or not len(negative):
                continue
            low, high = positive.detach().min(), negative.detach().max()
            positive, negative = positive[positive - mining_margin < high], negative[negative + mining_margin > low]
            if not len(positive) or not len(negative):
                continue
        of_positive = torch.log1p(torch.exp(-alpha * (positive - base)).sum()) / alpha
        rows[i] = of_positive + torch.log1p(torch.exp(beta * (negative - base)).sum()) / beta
    return _reduce(torch.stack(rows) if rows else input.sum(1), reduction, len(s))


def batch_hard_triplet_loss(
    input: Tensor, target: Tensor, *, margin: float = 0.2, normalize: bool = True, reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """``[margin + max_(p in P_i) d_ip - min_(n in N_i) d_in]+`` of the rows with both kinds of pairs."""
    u = _unit(input, normalize)
    d, counted, same = _distance(u, u, 1e-12), _counted(input.new_empty([len(input)] * 2), 0), _share(target, target, None, None)
    positive, negative = counted & same, counted & ~same
    kept = positive.any(1) & negative.any(1)
    rows = input.sum(1) * 0
    if len(input):
        far = d.gather(1, torch.where(positive, d, -math.inf).argmax(1, keepdim=True)).squeeze(1)
        near = d.gather(1, torch.where(negative, d, math.inf).argmin(1, keepdim=True)).squeeze(1)
        rows = torch.where(kept, F.relu(margin + far - near), 0.0)
    return _reduce(rows, reduction, kept.sum())


def proxy_anchor_loss(
    input: Tensor, proxies: Tensor, target: Tensor, *, alpha: float = 32.0, delta: float = 0.1, normalize: bool = True,
    reduction: str = "mean", max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Positive part averaged over the proxies whose class is in the batch, negative part over all proxies."""
    s = _unit(proxies, normalize) @ _unit(input, normalize).T
    positive = target == torch.arange(len(proxies), device=target.device).unsqueeze(1)
    of_positive = torch.log1p(torch.where(positive, torch.exp(-alpha * (s - delta)), 0.0).sum(1))
    of_negative = torch.log1p(torch.where(positive, 0.0, torch.exp(alpha * (s + delta))).sum(1))
    if reduction != "mean":
        return _reduce(of_positive + of_negative, reduction, 1)
    return of_positive.sum() / positive.any(1).sum().clamp(min=1) + of_negative.sum() / max(len(proxies), 1)


def pair_loss(
    input: Tensor, target: Tensor, *, form: str | pair_forms.PairForm = "multi_similarity", key: Tensor | None = None,
    key_target: Tensor | None = None, soft_label: tuple[Tensor, Tensor, Tensor] | None = None, normalize: bool = True,
    reduction: str = "mean", max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """The form's ``formula`` on the scores and the shares y."""
    u = _unit(input, normalize)
    s = u @ (u if key is None else _unit(key, normalize)).T
    labels = soft_label if soft_label is not None else (target if key_target is None else key_target, None, None)
    y = _share(target, *labels).to(s.dtype)
    rows = pair_forms.get_pair_form(form, "pair_loss").formula(s, y, _counted(s, 0 if key is None else None))
    return _reduce(rows, reduction, len(rows))


def proto_triplet_loss(
    query: Tensor, prototypes: Tensor, target: Tensor, *, margin: float = 0.5, reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """``[d(q_i, c_y) - min_(j != y) d(q_i, c_j) + margin]+`` with ``d = sqrt(|q - c|^2 + 1e-6)``; 0 with one prototype."""
    d = (((query.unsqueeze(1) - prototypes) ** 2).sum(-1) + 1e-6).sqrt()
    own = torch.arange(len(prototypes), device=target.device) == target.unsqueeze(1)
    rows = F.relu(torch.where(own, d, 0.0).sum(1) - torch.where(own, math.inf, d).amin(1) + margin)
    return _reduce(rows, reduction, len(rows))


def info_nce_loss(
    query: Tensor, key: Tensor, *, temperature: float = 0.1, logit_map: LogitMap | ScoreMap | None = None,
    extra_lse: Tensor | None = None, reduction: str = "mean", max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Cross-entropy of ``s_ij / temperature`` with label i."""
    score_map = Cosine(1.0) if logit_map is None else logit_map if isinstance(logit_map, ScoreMap) else Dot(logit_map)
    target = torch.arange(len(query), device=query.device)
    return _heads.linear_cross_entropy(
        query, key, target, logit_map=tempered(score_map, temperature), extra_lse=extra_lse, reduction=reduction
    )
