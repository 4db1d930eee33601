"""Area under the ROC curve by counting: all pairs of a positive and a negative after a sort, groups and classes in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import require
from .roc_auc_checks import check_options, check_samples

__all__ = ["roc_auc_score", "roc_curve"]

_NAME, _CURVE = "roc_auc_score", "roc_curve"
_ops = torch.ops.nearlinear


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
    r"""Share of the pairs of a positive and a negative in which the positive has the higher score; equal scores count one half.

    It is the rational number :math:`2U / (2 n_P n_Q)` of integers, rounded once: no map of the scores that keeps their order changes a bit.
    Scores are used as they are, logits too.

    Args:
        input: scores of shape (N,), any strides; (N, C) with ``multi_class``. float32, float64, bfloat16 or float16.
        target: labels of shape (N,): bool, {0, 1} or {-1, 1} of any dtype; int64 class indices with ``multi_class``.
        sample_weight: weights >= 0 of shape (N,). A sample of weight 0 counts nowhere, even if its score is NaN.
        group: integer ids of shape (N,), in any order: the AUC of each group by itself, in one pass over all of them (GAUC).
        num_groups: G, if the ids are 0 to G - 1; without it the distinct ids are found first, and values are in ascending order of them.
        max_fpr: area up to this false positive rate, standardised as McClish 1989 (1/2 for chance, 1 at best), in (0, 1].
        multi_class: ``"ovr"``, each class against the rest, or ``"ovo"``, each pair of classes both ways (Hand and Till 2001). Every column
            is sorted once. Columns are compared with themselves alone, so probabilities and logits of a softmax give different values.
        average: over groups, classes or pairs of classes: ``"macro"`` plain, ``"weighted"`` by the samples (their weights) in each,
            ``None`` for all of them (not with ``"ovo"``). Those that lack one of the two labels have no AUC and are left out.
        return_valid: also return which groups, classes or pairs have both labels.

    Returns:
        float64, 0-d, or (G,) or (C,) with ``average=None``; NaN where there is no AUC and where a score of either label is NaN. With
        ``return_valid`` a pair of it and the bool tensor. A metric has no derivative: the result never requires a gradient.

    Raises:
        TypeError, ValueError, IndexError: an argument that does not fit, with what was expected. Values (labels, weights, ids) are checked
            on CPU; under ``torch.compile``, and where reading them would wait for a GPU, labels that are no labels give NaN.

    Cost: a radix sort of keys without labels or indices; temporaries of 8 N bytes for float32. Determinism: the same bits for any number of
    threads, and without weights for any order of the samples.

    Example:
        >>> import torch, nearlinear
        >>> scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1])
        >>> nearlinear.roc_auc_score(scores, labels)
        tensor(0.8750, dtype=torch.float64)
        >>> nearlinear.roc_auc_score(scores, labels, group=torch.tensor([7, 7, 7, 3]), return_valid=True)
        (tensor(0.7500, dtype=torch.float64), tensor([False,  True]))
    """
    check_options(_NAME, num_groups, max_fpr, multi_class, average)
    require(num_groups is None or group is not None, ValueError, _NAME, f"num_groups must be None without group, got {num_groups}")
    labels, known = check_samples(_NAME, input, target, sample_weight, group, num_groups, multi_class)
    scores, weight = input.detach(), _widened(sample_weight)
    if multi_class is None:
        value, valid, share = _of_groups(scores, labels, weight, group, num_groups, 1.0 if max_fpr is None else float(max_fpr))
    else:
        value, valid, share = _of_classes(scores, labels, weight, multi_class)
    if known is not None:
        value = value.masked_fill(~known, torch.nan)
    if group is None and multi_class is None:
        value, valid = value[0], valid[0]
    elif average is not None:
        share = valid * (share if average == "weighted" else torch.ones_like(share))
        value = value.masked_fill(~valid, 0).mul(share).sum() / share.sum()
    return (value, valid) if return_valid else value


def _of_groups(
    scores: Tensor, labels: Tensor, weight: Tensor | None, group: Tensor | None, num_groups: int | None, max_fpr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(AUC, has both labels, weight) of every group."""
    if group is not None and num_groups is None:
        ids, group = group.unique(return_inverse=True)
        num_groups = ids.numel()
    groups = (None if group is None else group.long(), 1 if num_groups is None else num_groups)
    if weight is None and max_fpr == 1:
        twice, p, q = _ops.roc_auc_counts(scores, labels, *groups).unbind(1)
        # integers below 2^53 are exact in float64, and the quotient is the rounded rational number
        value = (twice.double() / (2 * p * q).double()).masked_fill(twice < 0, torch.nan)
    else:
        u, p, q = _ops.roc_auc_sums(scores, labels, weight, *groups, max_fpr).unbind(1)
        value = u / (p * q)
    if max_fpr < 1:
        chance = max_fpr * max_fpr / 2
        value = (1 + (value - chance) / (max_fpr - chance)) / 2
    return value, (p > 0) & (q > 0), (p + q).double()


def _of_classes(scores: Tensor, target: Tensor, weight: Tensor | None, multi_class: str) -> tuple[Tensor, Tensor, Tensor]:
    """(AUC, has both sides, weight) of every class against the rest, or of every pair of classes."""
    sums, mass = _ops.roc_auc_class_sums(scores, target, weight)
    if multi_class == "ovo":
        i, j = torch.triu_indices(len(mass), len(mass), 1, device=mass.device)
        p, q = mass[i], mass[j]
        return (sums[i, j] + sums[j, i]) / (2 * p * q), (p > 0) & (q > 0), p + q
    rest = mass.sum() - mass
    return sums.fill_diagonal_(0).sum(1) / (mass * rest), (mass > 0) & (rest > 0), mass


def roc_curve(
    input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, drop_intermediate: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Points of the ROC curve from (0, 0) to (1, 1): one for every distinct score, so that equal scores are one straight step.

    Args:
        input, target, sample_weight: as for :func:`roc_auc_score`, of shape (N,).
        drop_intermediate: leave out points in the middle of two equal steps, as scikit-learn does.

    Returns:
        ``(fpr, tpr, thresholds)``: the shares (float64) of the negatives and of the positives whose score is at least the threshold, which
        falls from infinity. NaN shares where a score is NaN or a label is absent. No gradient.

    Cost: ``torch.sort`` of the scores, and a few passes. Determinism: that of ``torch.cumsum``. :func:`nearlinear.plotting.plot_roc_curve`
    draws the result.

    Example:
        >>> import torch, nearlinear
        >>> fpr, tpr, thresholds = nearlinear.roc_curve(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> fpr.tolist(), tpr.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    labels, known = check_samples(_CURVE, input, target, sample_weight)
    scores, weight = input.detach(), _widened(sample_weight)
    if weight is not None:
        kept = weight != 0
        scores, labels, weight = scores[kept], labels[kept], weight[kept].double()
    scores, order = scores.sort(descending=True)
    positive = labels[order]
    if weight is None:
        tps, fps = positive.cumsum(0), (~positive).cumsum(0)
    else:
        tps, fps = (weight[order] * positive).cumsum(0), (weight[order] * ~positive).cumsum(0)
    last = torch.ones_like(positive)
    last[:-1] = scores[1:] != scores[:-1]
    thresholds, tps, fps = scores[last], tps[last], fps[last]
    if drop_intermediate and len(thresholds) > 2:
        corner = torch.ones_like(thresholds, dtype=torch.bool)
        corner[1:-1] = (tps.diff(n=2) != 0) | (fps.diff(n=2) != 0)
        thresholds, tps, fps = thresholds[corner], tps[corner], fps[corner]
    undefined = scores.isnan().any() if known is None else scores.isnan().any() | ~known
    fpr, tpr = (_shares(counts).masked_fill(undefined, torch.nan) for counts in (fps, tps))
    return fpr, tpr, torch.cat([scores.new_full([1], torch.inf), thresholds])


def _shares(counts: Tensor) -> Tensor:
    """Running counts over the last of them, with a 0 in front."""
    counts = torch.cat([counts.new_zeros(1), counts]).double()
    return counts / counts[-1]


def _widened(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
