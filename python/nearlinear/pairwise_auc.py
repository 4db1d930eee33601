"""All-pairs AUC losses without the pairs: every positive against every negative, in O(N) or O(N log N)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import closed_forms, pairwise_ranks
from ._checks import require
from .pairwise_checks import Samples, check_options, check_samples
from .pairwise_plan import PairwisePlan, check_method, plan_of
from .surrogates import Surrogate, get_surrogate
from .tail_weights import tail_fraction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["PairwiseAUCLoss", "pairwise_auc_loss", "pairwise_auc_plan"]

_NAME = "pairwise_auc_loss"
_ops = torch.ops.nearlinear


def pairwise_auc_loss(
    input: Tensor,
    target: Tensor,
    *,
    surrogate: str | Surrogate = "logistic",
    margin: float | None = None,
    scale: float | None = None,
    sample_weight: Tensor | None = None,
    group: Tensor | None = None,
    num_groups: int | None = None,
    num_levels: int | None = None,
    max_fpr: float | None = None,
    min_tpr: float | None = None,
    reduction: str = "mean",
    process_group: ProcessGroup | None = None,
    method: str = "auto",
    score_range: tuple[float, float] | None = None,
    return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Mean of a surrogate over all pairs of a positive and a negative, an upper bound or a smooth form of 1 - AUC.

    .. math:: L = \frac{\sum_{i \in P, j \in N} w_i w_j\, \phi(s_i - s_j)}{\sum_{i \in P, j \in N} w_i w_j}

    The pairs are never built: 1e7 samples are 2e13 pairs, and take less time than a sort of them.

    Args:
        input: scores (logits, unbounded) of shape (N,), or (N, C) for C independent columns (multi-label). float32, float64, bfloat16 or
            float16; half inputs are computed in float32.
        target: labels of the shape of input: bool, {0, 1} or {-1, 1} of any dtype. With ``num_levels``: int64 levels from 0 to
            num_levels - 1, and the pairs are those of a higher and a lower level (RankNet).
        surrogate: ``"logistic"``, ``"sigmoid"``, ``"exponential"``, ``"log_exponential"``, ``"square"``, ``"hinge"``, ``"squared_hinge"``,
            ``"p_hinge"``, ``"huber_hinge"``, ``"ramp"``, ``"barrier_hinge"``, or a record of :mod:`nearlinear.surrogates`.
        margin: of the hinges and the square, 1 by default.
        scale: of the logistic ones and the exponentials, 1 by default; of the barrier hinge, 2 by default.
        sample_weight: weights >= 0 of shape (N,), or of input's, differentiable. A sample of weight 0 counts nowhere, even if its score
            is NaN.
        group: int64 ids of shape (N,), in any order (queries, users): only pairs within a group count.
        num_groups: G, if the ids are 0 to G - 1; without it the distinct ids are found first, and groups are in ascending order of them.
        max_fpr: only the negatives of the highest scores that make up this share of their weight: partial AUC, for a surrogate that
            nowhere increases. Samples that tie at the boundary share what is left.
        min_tpr: only the positives of the lowest scores that make up the share ``1 - min_tpr`` of their weight.
        reduction: ``"mean"`` of the means of the groups (columns) that have pairs, ``"weighted"``: the sum over all pairs by their total
            weight, ``"sum"`` over all pairs, ``"none"``: the means, of shape (G,), (C,) or (G, C).
        process_group: the pairs are those over all ranks, which call together. Every rank returns the loss of all; its backward sums the
            upstream gradients over ranks, so that the mean that DDP takes of the gradients is that of the loss.
        method: ``"auto"``, ``"bins"``, ``"scan"``, ``"direct"`` or ``"closed"``: docs/pairwise_auc.md tells which serves what.
        score_range: bounds of the scores, for ``"bins"`` where nothing may wait for the GPU. A score outside makes the loss NaN.
        return_valid: also return which groups (columns) have pairs, a bool tensor.

    Returns:
        Loss in float32, in float64 for float64 inputs: 0-d or as ``reduction`` says. A group without a positive or without a negative
        contributes nothing: its loss is 0, with a gradient of 0. NaN if a score that counts is NaN.

    Raises:
        TypeError, ValueError, IndexError: an argument that does not fit, with what was expected. Values (labels, weights, ids) are checked
            on CPU; under ``torch.compile``, and where reading them would wait for a GPU, labels that are no labels give NaN.
        NotImplementedError: third derivatives of logistic losses; second ones with ``process_group``.

    Cost: ``bins`` 14 operations and 8 bytes a sample; ``scan`` a radix sort and two passes, 24 bytes a sample. Accuracy: float32 within
    1e-6 of the definition in float64. Determinism: the same bits for any number of threads.

    Example:
        >>> import torch, nearlinear
        >>> scores = torch.tensor([0.5, -1.0, 2.0, 0.0], requires_grad=True)
        >>> nearlinear.pairwise_auc_loss(scores, torch.tensor([1, 0, 1, 0]), surrogate="squared_hinge")
        tensor(0.0625, grad_fn=<ToCopyBackward0>)
    """
    record = get_surrogate(surrogate, _NAME, margin=margin, scale=scale)
    check_method(_NAME, record, method)
    check_options(_NAME, record, num_groups, num_levels, max_fpr, min_tpr, reduction, score_range, group)
    x = check_samples(_NAME, input, target, sample_weight, group, num_groups, num_levels)
    several = group is not None or input.dim() == 2
    require(several or reduction != "none", ValueError, _NAME, "reduction must be 'mean' or 'sum' without group or columns, got 'none'")
    ends = [] if score_range is None else [float(end) for end in score_range]
    tails = max_fpr is not None or min_tpr is not None
    binned = None
    if process_group is not None:
        if not tails and num_levels is None:
            binned = pairwise_ranks.binned_sum(x, record, method, ends, process_group)
        x = x if binned is not None else pairwise_ranks.gathered(x, process_group)
    x = x.flat()
    sums = _Sums(record, method, ends)
    if binned is not None:
        total, mass = binned
    elif num_levels is not None:
        total, mass = sums.of_levels(x, num_levels)
    else:
        total, mass = sums.of_labels(_tails(x, max_fpr, min_tpr) if tails else x)
    if x.known is not None:
        total = total.masked_fill(~x.known, torch.nan)
    loss, valid = _reduced(record, total, mass, x.shape, reduction)
    loss = loss.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    return (loss, valid.view(x.shape)) if return_valid else loss


def _reduced(record: Surrogate, total: Tensor, mass: Tensor, shape: tuple[int, ...], reduction: str) -> tuple[Tensor, Tensor]:
    """From the sums over the pairs of each group, and their weight, of shape [G]."""
    valid = mass > 0
    if reduction == "sum":
        return total.sum(), valid
    if reduction == "weighted":
        weight = mass.sum()
        return total.sum() / torch.where(weight > 0, weight, 1), valid
    means = record.mean(total, torch.where(valid, mass, 1))
    if reduction == "none":
        return means.masked_fill(~valid, 0).view(shape), valid
    return means.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1), valid


@dataclass(frozen=True)
class _Sums:
    """Sums of a surrogate over the pairs of each group, and the weights of those pairs: [G] in float64, differentiable."""

    record: Surrogate
    method: str
    score_range: list[float]

    def of_labels(self, x: Samples) -> tuple[Tensor, Tensor]:
        if self.record.methods[0] == "closed" and self.method in ("auto", "closed"):
            return closed_forms.total(self.record, x), x.pairs()
        return self._summed(x.input, x.positive, x.weight, x), x.pairs()

    def of_levels(self, x: Samples, num_levels: int) -> tuple[Tensor, Tensor]:
        """Level t against all lower ones, for every t."""
        total = mass = x.input.new_zeros(x.num_groups, dtype=torch.float64)
        weight = torch.ones_like(x.input) if x.weight is None else x.weight
        assert x.level is not None
        for level in range(1, num_levels):
            part = x.with_weight(weight * (x.level <= level), positive=x.level == level)
            sums, pairs = self.of_labels(part)
            total, mass = total + sums, mass + pairs
        return total, mass

    def _summed(self, input: Tensor, positive: Tensor, weight: Tensor | None, x: Samples) -> Tensor:
        wants = torch.is_grad_enabled() and input.requires_grad
        options = (self.record.name, self.record.params, self.method, self.score_range, wants)
        total: Tensor = _ops.pairwise_sum(input, positive, weight, x.group, x.num_groups, *options)[0]
        return total


def _tails(x: Samples, max_fpr: float | None, min_tpr: float | None) -> Samples:
    """Weights of the hardest negatives and of the hardest positives alone; which they are is a constant."""
    weight = torch.ones_like(x.input) if x.weight is None else x.weight
    with torch.no_grad():
        share = torch.ones_like(weight)
        for side, scores, part in ((~x.positive, x.input, max_fpr), (x.positive, -x.input, None if min_tpr is None else 1 - min_tpr)):
            if part is not None:
                share = torch.where(side, tail_fraction(scores, weight * side, x.group, x.num_groups, part).to(share.dtype), share)
    return x.with_weight(weight * share)


def pairwise_auc_plan(
    input: Tensor, *, surrogate: str | Surrogate = "logistic", margin: float | None = None, scale: float | None = None, num_groups: int = 1,
    method: str = "auto", score_range: tuple[float, float] | None = None,
) -> PairwisePlan:  # fmt: skip
    """What :func:`pairwise_auc_loss` would do with such scores, and the bound on its error.

    Args:
        input: scores of shape (N,), of which the range is read on the CPU.
        surrogate, margin, scale, num_groups, method, score_range: as there.

    Example:
        >>> import torch, nearlinear
        >>> nearlinear.pairwise_auc_plan(torch.linspace(-8, 8, 100_000)).method
        'bins'
    """
    record = get_surrogate(surrogate, "pairwise_auc_plan", margin=margin, scale=scale)
    check_method("pairwise_auc_plan", record, method)
    wide = input.detach() if input.dtype in (torch.float32, torch.float64) else input.detach().float()
    return plan_of(record, wide, num_groups, method, [] if score_range is None else [float(end) for end in score_range])


class PairwiseAUCLoss(nn.Module):
    """Module form of :func:`pairwise_auc_loss`: options at construction, tensors in the call."""

    def __init__(
        self, *, surrogate: str | Surrogate = "logistic", margin: float | None = None, scale: float | None = None,
        num_groups: int | None = None, num_levels: int | None = None, max_fpr: float | None = None, min_tpr: float | None = None,
        reduction: str = "mean", process_group: ProcessGroup | None = None, method: str = "auto",
        score_range: tuple[float, float] | None = None, return_valid: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        name = type(self).__name__
        record = get_surrogate(surrogate, name, margin=margin, scale=scale)
        check_method(name, record, method)
        check_options(name, record, None, num_levels, max_fpr, min_tpr, reduction, score_range, None)
        self.options: dict[str, Any] = {
            "surrogate": record, "num_groups": num_groups, "num_levels": num_levels, "max_fpr": max_fpr, "min_tpr": min_tpr,
            "reduction": reduction, "method": method, "score_range": score_range, "return_valid": return_valid,
        }  # fmt: skip
        self.process_group = process_group

    def forward(
        self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return pairwise_auc_loss(
            input, target, sample_weight=sample_weight, group=group, process_group=self.process_group, **self.options
        )  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items() if value is not None)
