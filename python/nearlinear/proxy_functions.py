"""The losses of a batch against proxies, prototypes or keys, as functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from .linear_cross_entropy import linear_cross_entropy
from .logit_maps import LogitMap
from .ops._register import stats_dtype
from .pair_common import check_pairs, check_positive, extremes, partner, reduced, score_map_of, similarity, statistics
from .pair_forms import ProxyAnchor, log_1_plus
from .score_maps import RBF, ScoreMap, tempered


def proxy_anchor_loss(
    input: Tensor,
    proxies: Tensor,
    target: Tensor,
    *,
    alpha: float = 32.0,
    delta: float = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:
    r"""``log(1 + sum_P e^(-alpha (s - delta))) + log(1 + sum_N e^(alpha (s + delta)))`` of each proxy, over the embeddings of the batch.

    Args:
        input: embeddings of shape (N, D).
        proxies: one vector per class, shape (C, D), dtype of ``input``.
        target: class of each embedding, shape (N,); a label without a proxy makes a negative of all.
        alpha: > 0.
        delta: margin.
        normalize: rows and proxies to unit length.
        reduction: ``"mean"`` averages the first term over the proxies that have a positive and the second over all; ``"sum"``; or
            ``"none"``: one value per proxy.
        max_workspace_bytes: as in :func:`supcon_loss`.

    Cost: 4 products of C x N x D. Source: Kim et al. 2020, arXiv:2003.13911, eq. (4).
    """
    name = "proxy_anchor_loss"
    form = ProxyAnchor(alpha, delta)
    target = check_pairs(name, input, target, reduction, max_workspace_bytes, proxies=proxies)
    own = torch.arange(len(proxies), device=input.device)
    keys = (input, target, None, None)
    lse, total, mass = statistics(proxies, own, similarity(normalize), form.scale, max_workspace_bytes, keys)
    if reduction != "mean":
        return reduced(form.rows(lse, total, mass), reduction, 1, stats_dtype(input))
    positive, negative = log_1_plus(lse + alpha * delta).sum(1).unbind()
    present = (mass[0] > 0).sum().clamp(min=1)
    return (positive / present + negative / max(len(proxies), 1)).to(stats_dtype(input))


def proto_triplet_loss(
    query: Tensor,
    prototypes: Tensor,
    target: Tensor,
    *,
    margin: float = 0.5,
    reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:
    r"""``[d(q, own prototype) - d(q, nearest other prototype) + margin]+`` with ``d = sqrt(|q - c|^2 + 1e-6)``.

    Args:
        query: embeddings of shape (N, D).
        prototypes: one vector per class, shape (C, D), dtype of ``query``.
        target: class of each query in [0, C), shape (N,).
        margin: of the hinge.
        reduction: ``"mean"`` over all N rows, ``"sum"`` or ``"none"``. A row is 0 where there is no other prototype.
        max_workspace_bytes: as in :func:`supcon_loss`.

    Cost: 1 product of N x C x D, and O((N + C) D). Source: Mendez-Ruiz et al. 2023, arXiv:2305.09062.
    """
    name = "proto_triplet_loss"
    labels = check_pairs(name, query, target, reduction, max_workspace_bytes, first="query", prototypes=prototypes)
    own = torch.arange(len(prototypes), device=query.device)
    value, index = extremes(query, labels, RBF(1.0), max_workspace_bytes, (prototypes, own))
    x, w = query.to(stats_dtype(query)), prototypes.to(stats_dtype(query))
    try:
        own_prototype = F.embedding(labels, w)
    except IndexError:
        bad = int(((labels < 0) | (labels >= len(w))).nonzero()[0])
        raise IndexError(f"{name}: target[{bad}] = {int(labels[bad])} is out of range [0, {len(w)})") from None
    mine, near = ((((x - row) ** 2).sum(1) + 1e-6).sqrt() for row in (own_prototype, partner(w, index[1])))
    rows = torch.where(index[1] >= 0, F.relu(mine - near + margin), 0.0).masked_fill(value.isnan().any(0), math.nan)
    return reduced(rows, reduction, len(query), x.dtype)


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float = 0.1,
    logit_map: LogitMap | ScoreMap | None = None,
    extra_lse: Tensor | None = None,
    reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:
    r"""InfoNCE: query i against all keys, key i being its positive. :func:`nearlinear.linear_cross_entropy` with label i for row i.

    Args:
        query: embeddings of shape (N, D).
        key: vectors of shape (M, D), M >= N: the positives in the order of the queries, then further negatives.
        temperature, logit_map: as in :func:`supcon_loss`; the temperature is a factor of the record's own scale.
        extra_lse: log-sum-exp of further negatives (a memory bank), after the temperature; a scalar or one per query.
        reduction, max_workspace_bytes: as in :func:`nearlinear.linear_cross_entropy`.

    Source: van den Oord, Li, Vinyals 2018, arXiv:1807.03748, eq. (4); hyperbolic: arXiv:2504.06120.
    """
    name = "info_nce_loss"
    check_positive(name, temperature=temperature)
    score_map = score_map_of(name, logit_map)
    for argument, tensor in (("query", query), ("key", key)):
        _checks.check_tensor(name, argument, tensor)
        _checks.require(tensor.dim() == 2, ValueError, name, f"{argument} must have shape (N, D), got {tuple(tensor.shape)}")
    if len(key) < len(query):
        raise ValueError(f"{name}: key must have at least N={len(query)} rows, got {len(key)}")
    try:
        score_map = tempered(score_map, temperature)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    target = torch.arange(len(query), device=query.device)
    return linear_cross_entropy(
        query, key, target, logit_map=score_map, extra_lse=extra_lse, reduction=reduction, max_workspace_bytes=max_workspace_bytes
    )
