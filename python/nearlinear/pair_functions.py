"""The losses over the pairs of a batch, as functions: a few lines on the statistics of positive and negative pairs, [2, N] in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .embeddings import Normalised
from .logit_maps import LogitMap
from .ops._register import stats_dtype
from .pair_common import check_pairs, check_positive, extremes, limits, partner, reduced, score_map_of, similarity, statistics
from .pair_forms import MultiSimilarity, PairForm, get_pair_form, log_1_plus
from .score_maps import RBF, Cosine, ScoreMap


def supcon_loss(
    input: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.1,
    logit_map: LogitMap | ScoreMap | None = None,
    reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:
    r"""Supervised contrastive loss (with two views of each sample, NT-Xent), never a (batch x batch) tensor.

    Of a row i with positives P_i (same label, other position):
    ``-1 / |P_i| sum_(p in P_i) log(e^(s_ip / temperature) / sum_(j != i) e^(s_ij / temperature))``.

    Args:
        input: embeddings of shape (N, D); float32, float64, bfloat16 or float16.
        target: labels of shape (N,), int64 or uint8; any values.
        temperature: > 0.
        logit_map: how two embeddings make a score: a record of :mod:`nearlinear.score_maps` without a margin, such as ``Poincare``, or an
            elementwise one of :mod:`nearlinear.logit_maps`; None is the cosine.
        reduction: ``"mean"`` over the rows that have a positive, ``"sum"``, or ``"none"``: one value per row, 0 without a positive.
        max_workspace_bytes: limit of the tile of scores; None is 32 MiB on CPU and 256 MiB on CUDA. Beside it come O(N D) bytes.

    Returns:
        Scalar, or shape (N,); float32 (float64 for float64). A mean over no rows is 0.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option that does not fit, with what was expected.

    Cost: 3 products of N x N x D forward and backward together. Determinism: run_to_run, as far as torch's matrix product is.
    Source: Khosla et al. 2020, arXiv:2004.11362, eq. (2); NT-Xent: Chen et al. 2020, arXiv:2002.05709; hyperbolic: arXiv:2504.06120.

    Example:
        >>> import torch, nearlinear
        >>> x = torch.eye(4)[[0, 0, 1, 1]]
        >>> nearlinear.supcon_loss(x, torch.tensor([0, 0, 1, 1]), temperature=1.0)
        tensor(0.5514)
    """
    name = "supcon_loss"
    score_map = score_map_of(name, logit_map)
    check_positive(name, temperature=temperature)
    target = check_pairs(name, input, target, reduction, max_workspace_bytes)
    lse, total, mass = statistics(input, target, score_map, [1 / temperature] * 2, max_workspace_bytes)
    kept = mass[0] > 0
    # with one positive, lse over it alone is its own score: nothing cancels in a small loss
    own = torch.where(kept, lse[0], 0.0)
    rows = torch.where(kept, own - total[0] / mass[0].clamp(min=1) + log_1_plus(lse[1] - own), 0.0)
    return reduced(rows, reduction, kept.sum(), stats_dtype(input))


def multi_similarity_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    mining_margin: float | None = None,
    exclude_above: float | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:
    r"""Multi-similarity loss: ``log(1 + sum_P e^(-alpha (s - base))) / alpha + log(1 + sum_N e^(beta (s - base))) / beta`` of each row.

    Args:
        input, target, max_workspace_bytes: as in :func:`supcon_loss`.
        alpha, beta: > 0. The reference implementation has beta = 40.
        base: similarity that separates the two kinds.
        mining_margin: if given, a row keeps its negatives with ``s + mining_margin > min over its positives`` and its positives with
            ``s - mining_margin < max over its negatives``: 0.1 in the paper. A row that lacks either contributes 0, and counts in the mean.
        exclude_above: positives with ``s >= exclude_above`` are left out: 1 - 1e-5 is how the reference implementation leaves out the pair
            of a row with itself, and its exact duplicates too. Here the pair of a row with itself is left out by position.
        normalize: rows to unit length, so that s is the cosine.
        reduction: ``"mean"`` over all N rows, ``"sum"`` or ``"none"``.

    Cost: 3 products of N x N x D forward and backward together; 4 with mining.
    Source: Wang et al. 2019, arXiv:1904.06627, eq. (15), mining eq. (11) and (12).
    """
    name = "multi_similarity_loss"
    check_positive(name, alpha=alpha, beta=beta)
    target = check_pairs(name, input, target, reduction, max_workspace_bytes)
    score_map = similarity(normalize)
    limit = None
    if mining_margin is not None:
        low, high = extremes(input, target, score_map, max_workspace_bytes)[0].unbind()
        below = high + mining_margin
        if exclude_above is not None:
            low = torch.where(low >= exclude_above, math.inf, low)
            below = below.clamp(max=exclude_above)
        limit = torch.stack([below, mining_margin - low])
    elif exclude_above is not None:
        limit = limits(input, exclude_above, math.nan)
    form = MultiSimilarity(alpha, beta, base)
    rows = form.rows(*statistics(input, target, score_map, form.scale, max_workspace_bytes, limit=limit))
    return reduced(rows, reduction, len(input), stats_dtype(input))


def batch_hard_triplet_loss(
    input: Tensor,
    target: Tensor,
    *,
    margin: float = 0.2,
    normalize: bool = True,
    reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:
    r"""``[margin + d(x, furthest positive) - d(x, nearest negative)]+`` of each row, d the Euclidean distance.

    The two partners are found from scores of one tile at a time (lowest position among equals, up to the rounding of the scores); their
    distances are then computed from the embeddings, without cancellation. A square below 1e-12 counts as 1e-12, with zero gradient.

    Args:
        input, target, max_workspace_bytes: as in :func:`supcon_loss`.
        margin: of the hinge.
        normalize: rows to unit length first.
        reduction: ``"mean"`` over the rows that have a positive and a negative, ``"sum"``, or ``"none"``: 0 for the other rows.

    Cost: 1 product of N x N x D, and O(N D).
    Source: Hermans, Beyer, Leibe 2017, arXiv:1703.07737, eq. (5).
    """
    name = "batch_hard_triplet_loss"
    target = check_pairs(name, input, target, reduction, max_workspace_bytes)
    score_map = Cosine(1.0) if normalize else RBF(1.0)
    value, index = extremes(input, target, score_map, max_workspace_bytes)
    x = input.to(stats_dtype(input))
    x = Normalised().rows(x) if normalize else x
    far, near = (((x - row) ** 2).sum(1).clamp(min=1e-12).sqrt() for row in (partner(x, i) for i in index.unbind()))
    kept = (index >= 0).all(0)
    rows = torch.where(kept, F.relu(margin + far - near), 0.0).masked_fill(value.isnan().any(0), math.nan)
    return reduced(rows, reduction, kept.sum(), x.dtype)


def pair_loss(
    input: Tensor,
    target: Tensor,
    *,
    form: str | PairForm = "multi_similarity",
    key: Tensor | None = None,
    key_target: Tensor | None = None,
    soft_label: tuple[Tensor, Tensor, Tensor] | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    max_workspace_bytes: int | None = None,
) -> Tensor:
    r"""A form of :mod:`nearlinear.pair_forms` over all pairs of the batch, or of the batch with keys; keys may be mixtures of two classes.

    Args:
        input, target, max_workspace_bytes: as in :func:`supcon_loss`.
        form: record or name: ``"contrastive"``, ``"multi_similarity"``, ``"proxy_anchor"``, ``"proxy_nca"``.
        key: vectors of shape (M, D), dtype of ``input``, to pair the rows with: other embeddings, proxies, mixtures. None: the other rows.
        key_target: labels of the keys, shape (M,).
        soft_label: in place of ``key_target``, (first label, second label, share of the first), each of shape (M,), the share in [0, 1]: a
            key is a positive of a row by the shares of those of its labels that are the row's, and a negative by the rest (mixup). No
            gradient flows to the shares.
        normalize: rows and keys to unit length.
        reduction: ``"mean"`` over all N rows, ``"sum"`` or ``"none"``.

    Cost: 3 products of N x N x D without keys, 4 of N x M x D with keys.
    Source: Venkataramanan et al. 2021, arXiv:2106.04990 (Metrix), and the form's.
    """
    name = "pair_loss"
    record = get_pair_form(form, name)
    target = check_pairs(name, input, target, reduction, max_workspace_bytes, key=key, key_target=key_target, soft_label=soft_label)
    keys = None
    if key is not None:
        first, second, share = (key_target, None, None) if soft_label is None else soft_label
        keys = (key, first.long(), None if second is None else second.long(), share)  # type: ignore[union-attr]
    limit = None if all(map(math.isnan, record.limit)) else limits(input, *record.limit)
    rows = record.rows(*statistics(input, target, similarity(normalize), record.scale, max_workspace_bytes, keys, limit))
    return reduced(rows, reduction, len(input), stats_dtype(input))
