"""Soft ranks and ranking losses on the sums over pairs: no list is truncated, and no pair is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_devices, check_floating, check_reduction, check_shape, check_tensor, require
from .pairwise_checks import group_sum
from .sample_checks import binary_labels, check_group, check_range
from .surrogates import Sigmoid, SignedLogistic

__all__ = [
    "LambdaRankLoss", "SmoothAveragePrecisionLoss", "lambda_rank_loss", "sigmoid_rank", "smooth_average_precision_loss",
]  # fmt: skip

_ops = torch.ops.nearlinear
GAINS = ("exponential", "linear")


def sigmoid_rank(input: Tensor, *, temperature: float, group: Tensor | None = None, num_groups: int | None = None) -> Tensor:
    r"""Soft rank of every score among those of its group, 1 for the highest.

    .. math:: r_i = 1 + \sum_{j \ne i} \sigma\big((s_j - s_i) / t\big)

    As the temperature falls it tends to the rank; equal scores share theirs. ApproxNDCG (Qin et al. 2010) and Smooth-AP (Brown et al. 2020,
    arXiv:2007.12163) are a few lines on it.

    Args:
        input: scores of shape (N,). float32, float64, bfloat16 or float16.
        temperature: t > 0.
        group: int64 ids of shape (N,), in any order.
        num_groups: G, if the ids are 0 to G - 1; without it the distinct ids are found first.

    Returns:
        Ranks in [1, N] of shape (N,), float32, float64 for float64 inputs; differentiable twice. NaN for a group with a NaN score.

    Raises:
        TypeError, ValueError, IndexError: an argument that does not fit, with what was expected.

    Cost: that of one :func:`pairwise_auc_loss` of 2 N samples, without the pairs.

    Example:
        >>> import torch, nearlinear
        >>> nearlinear.sigmoid_rank(torch.tensor([0.1, 0.9, 0.5]), temperature=0.01)
        tensor([3., 1., 2.])
    """
    name = "sigmoid_rank"
    scores, group, count = _lists(name, input, group, num_groups)
    require(temperature > 0, ValueError, name, f"temperature must be > 0, got {temperature}")
    return 1 + _soft_count(scores, torch.ones_like(scores), group, count, temperature)


def smooth_average_precision_loss(
    input: Tensor, target: Tensor, *, temperature: float = 0.01, group: Tensor | None = None, num_groups: int | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""One minus the average precision with soft ranks, over all positives of each list (Brown et al. 2020, arXiv:2007.12163, eq. (6)).

    .. math:: L = 1 - \frac{1}{|P|} \sum_{i \in P} \frac{1 + \sum_{j \in P, j \ne i} \sigma((s_j - s_i) / t)}
                                                     {1 + \sum_{j \ne i} \sigma((s_j - s_i) / t)}

    Args:
        input: scores of shape (N,). float32, float64, bfloat16 or float16.
        target: relevance of shape (N,): bool, {0, 1} or {-1, 1} of any dtype.
        temperature, group, num_groups: as for :func:`sigmoid_rank`.
        reduction: ``"mean"`` over the lists (groups) that have a positive, ``"sum"`` over them, ``"none"``: of shape (G,), (1,) for
            one list.

    Returns:
        Loss in [0, 1], float32, float64 for float64 inputs. A list without a positive contributes nothing, with a gradient of 0.

    Raises:
        TypeError, ValueError, IndexError: an argument that does not fit, with what was expected.

    Cost: twice that of :func:`sigmoid_rank`.

    Example:
        >>> import torch, nearlinear
        >>> nearlinear.smooth_average_precision_loss(torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0, 1, 1]))
        tensor(0.)
    """
    name = "smooth_average_precision_loss"
    check_reduction(name, reduction)
    require(temperature > 0, ValueError, name, f"temperature must be > 0, got {temperature}")
    scores, group, count = _lists(name, input, group, num_groups, target)
    positive, known = binary_labels(name, target)
    relevant = positive.to(scores.dtype)
    everything = 1 + _soft_count(scores, torch.ones_like(scores), group, count, temperature)
    among_relevant = 1 + _soft_count(scores, relevant, group, count, temperature)
    number = group_sum(relevant, group, count)
    precision = group_sum(torch.where(positive, among_relevant / everything, 0), group, count)
    valid = number > 0
    loss = (1 - precision / torch.where(valid, number, 1)).masked_fill(~valid, 0)
    if known is not None:
        loss = loss.masked_fill(~known, torch.nan)
    return _reduced(loss, valid, reduction).to(scores.dtype)


def lambda_rank_loss(
    input: Tensor, target: Tensor, *, num_levels: int, k: int | None = None, sigma: float = 1.0, gain: str = "exponential",
    group: Tensor | None = None, num_groups: int | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""LambdaRank over all pairs of each list: what a swap of the two would change in NDCG times the logistic loss of their order.

    .. math:: L = \sum_{y_i > y_j} \frac{(G_i - G_j)\, |d_i - d_j|}{\mathrm{maxDCG}} \log\big(1 + e^{-\sigma (s_i - s_j)}\big),
              \quad d = \frac{1}{\log_2(1 + \mathrm{rank})}

    with the gains :math:`G = 2^y - 1`. The weights are constants in the gradient (Burges 2010, "From RankNet to LambdaRank to LambdaMART";
    Wang et al. 2018, the LambdaLoss framework). No list is truncated: 1e6 documents are 5e11 pairs.

    Args:
        input: scores of shape (N,). float32, float64, bfloat16 or float16; computed in float64.
        target: int64 levels of relevance of shape (N,), from 0 to num_levels - 1.
        num_levels: number of levels; the cost grows with it.
        k: NDCG at k: ranks beyond it have d = 0.
        sigma: slope of the logistic loss, > 0.
        gain: ``"exponential"`` for 2^y - 1, ``"linear"`` for y.
        group, num_groups: as for :func:`sigmoid_rank`: lists (queries).
        reduction: ``"mean"`` over the lists that have two levels, ``"sum"`` over them, ``"none"``: of shape (G,), (1,) without group.

    Returns:
        Loss in float32, in float64 for float64 inputs. Equal scores are ranked in the reverse order of the samples.

    Raises:
        TypeError, ValueError, IndexError: an argument that does not fit, with what was expected.

    Cost: 2 (num_levels - 1) sums over pairs of a sort each.

    Example:
        >>> import torch, nearlinear
        >>> nearlinear.lambda_rank_loss(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([2, 0, 1]), num_levels=3)
        tensor(0.2923)
    """
    name = "lambda_rank_loss"
    check_reduction(name, reduction)
    require(gain in GAINS, ValueError, name, f"gain must be one of {GAINS}, got {gain!r}")
    require(num_levels >= 2, ValueError, name, f"num_levels must be >= 2, got {num_levels}")
    require(k is None or k >= 1, ValueError, name, f"k must be >= 1, got {k}")
    require(sigma > 0, ValueError, name, f"sigma must be > 0, got {sigma}")
    scores, group, count = _lists(name, input, group, num_groups, target)
    require(target.dtype == torch.int64, TypeError, name, f"target must be int64, got {target.dtype}")
    check_range(name, "target", target, num_levels)
    s, gains = scores.double(), [float(2**t - 1 if gain == "exponential" else t) for t in range(num_levels)]
    discount = _discount(_rank(s, group), k)
    record = SignedLogistic(sigma)
    loss = s.new_zeros(count)
    wants = torch.is_grad_enabled() and s.requires_grad
    for level in range(1, num_levels):
        above = target >= level
        # of the pairs across this level (d_i - d_j) times the sign of the order, which together are |d_i - d_j|
        for sign, weight in ((1, torch.where(above, discount, 1)), (-1, torch.where(above, 1, discount))):
            sums = _ops.pairwise_sum(s, above, weight, group, count, record.name, record.params, "scan", [], wants)[0]
            loss = loss + sign * (gains[level] - gains[level - 1]) * sums
    best = group_sum(torch.tensor(gains, device=s.device)[target] * _discount(_rank(target, group), k), group, count)
    loss = loss / torch.where(best > 0, best, 1)
    low, high = _extremes(target, group, count)
    return _reduced(loss, high > low, reduction).to(scores.dtype)


def _lists(function: str, input: Any, group: Any, num_groups: int | None, target: Any = None) -> tuple[Tensor, Tensor | None, int]:
    """Scores in float32 or float64, group ids from 0, number of groups."""
    check_tensor(function, "input", input)
    check_floating(function, "input", input)
    require(input.dim() == 1, ValueError, function, f"input must have shape (N,), got {tuple(input.shape)}")
    require(num_groups is None or group is not None, ValueError, function, f"num_groups must be None without group, got {num_groups}")
    require(num_groups is None or num_groups >= 0, ValueError, function, f"num_groups must be >= 0, got {num_groups}")
    if target is not None:
        check_tensor(function, "target", target)
        check_shape(function, "target", target, tuple(input.shape))
    if group is not None:
        check_group(function, group, tuple(input.shape), num_groups)
    check_devices(function, input, target=target, group=group)
    scores = input if input.dtype in (torch.float32, torch.float64) else input.float()
    if group is None or num_groups is not None:
        return scores, group, 1 if num_groups is None else num_groups
    ids, group = group.unique(return_inverse=True)
    return scores, group, ids.numel()


def _soft_count(scores: Tensor, weight: Tensor, group: Tensor | None, num_groups: int, temperature: float) -> Tensor:
    """Sum over the samples j of the group, but i itself, of w_j sigmoid((s_j - s_i) / t): every score is a positive and a negative, and
    what it would add to itself is w_i / 2."""
    record, n = Sigmoid(1 / temperature), len(scores)
    double = torch.cat([scores, scores])
    side = torch.arange(2 * n, device=scores.device) < n
    both = None if group is None else torch.cat([group, group])
    coefficient = torch.cat([torch.zeros_like(weight), weight])
    counts = _ops.pair_potential(double, side, coefficient, both, num_groups, record.name, record.params, 0, "auto", [])
    return counts[:n] - weight / 2


def _rank(scores: Tensor, group: Tensor | None) -> Tensor:
    """Place from the top of each group, from 1; equal scores in the reverse order of the samples."""
    order = scores.detach().sort(stable=True).indices
    place = torch.arange(len(order), device=order.device)
    if group is None:
        return torch.empty_like(order).index_copy(0, order, len(order) - place)
    order = order[group[order].sort(stable=True).indices]
    ordered = group[order]
    end = torch.searchsorted(ordered, ordered, right=True)
    return torch.empty_like(order).index_copy(0, order, end - place)


def _discount(rank: Tensor, k: int | None) -> Tensor:
    discount = 1 / torch.log2(1 + rank.double())
    return discount if k is None else discount.masked_fill(rank > k, 0)


def _extremes(target: Tensor, group: Tensor | None, num_groups: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest level of each group; both 0 where it is empty."""
    place = torch.zeros_like(target) if group is None else group
    zeros = target.new_zeros(num_groups)
    low, high = (zeros.scatter_reduce(0, place, target, kind, include_self=False) for kind in ("amin", "amax"))
    return low, high


def _reduced(loss: Tensor, valid: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / valid.sum().clamp(min=1)


class SmoothAveragePrecisionLoss(nn.Module):
    """Module form of :func:`smooth_average_precision_loss`."""

    def __init__(self, *, temperature: float = 0.01, num_groups: int | None = None, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(type(self).__name__, reduction)
        self.temperature, self.num_groups, self.reduction = temperature, num_groups, reduction

    def forward(self, input: Tensor, target: Tensor, *, group: Tensor | None = None) -> Tensor:
        return smooth_average_precision_loss(
            input, target, temperature=self.temperature, group=group, num_groups=self.num_groups, reduction=self.reduction
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


class LambdaRankLoss(nn.Module):
    """Module form of :func:`lambda_rank_loss`."""

    def __init__(
        self, *, num_levels: int, k: int | None = None, sigma: float = 1.0, gain: str = "exponential", num_groups: int | None = None,
        reduction: str = "mean",
    ) -> None:  # fmt: skip
        super().__init__()
        check_reduction(type(self).__name__, reduction)
        self.options: dict[str, Any] = {
            "num_levels": num_levels, "k": k, "sigma": sigma, "gain": gain, "num_groups": num_groups, "reduction": reduction,
        }  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, *, group: Tensor | None = None) -> Tensor:
        return lambda_rank_loss(input, target, group=group, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items() if value is not None)
