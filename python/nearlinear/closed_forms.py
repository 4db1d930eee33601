"""Sums over all pairs that need neither a sort nor bins: of the square by moments, of the exponential by two log-sum-exps.

Plain differentiable torch in float64, O(N).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .pairwise_checks import Samples, group_sum
from .surrogates import Surrogate

__all__ = ["total"]


def total(surrogate: Surrogate, x: Samples) -> Tensor:
    """Sum over the pairs of each group, [G] in float64; of log_exponential its logarithm. 0 where there are no pairs."""
    forms: dict[str, Callable[[Samples, float], Tensor]] = {"square": _square, "exponential": _exponential, "log_exponential": _log_sum}
    return forms[surrogate.name](x, surrogate.params[0])


def _sides(x: Samples) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Scores about a middle of their group, because a common offset must not cost digits, weights and the weights' sums of the positives
    and of the negatives; a weight of 0 removes what is no number."""
    weight = (torch.ones_like(x.input) if x.weight is None else x.weight).double()
    scores = x.input.double().masked_fill((weight == 0) & ~x.input.isfinite(), 0)
    with torch.no_grad():
        mass = group_sum(weight, x.group, x.num_groups)
        middle = group_sum(scores.nan_to_num(0, 0, 0) * weight, x.group, x.num_groups) / torch.where(mass > 0, mass, 1)
    scores = scores - _of(middle, x.group)
    weights = (weight * side for side in (x.positive, ~x.positive))
    return [(scores, w, group_sum(w, x.group, x.num_groups)) for w in weights]


def _of(values: Tensor, group: Tensor | None) -> Tensor:
    """The value of each sample's group."""
    return values if group is None else values[group]


def _square(x: Samples, margin: float) -> Tensor:
    r"""W_P W_Q (Var_P + Var_Q + (m - mu_P + mu_Q)^2)."""
    means, variances, masses = [], [], []
    for scores, weight, mass in _sides(x):
        known = torch.where(mass > 0, mass, 1)
        mean = group_sum(weight * scores, x.group, x.num_groups) / known
        means.append(mean)
        variances.append(group_sum(weight * (scores - _of(mean, x.group)) ** 2, x.group, x.num_groups) / known)
        masses.append(mass)
    return masses[0] * masses[1] * (variances[0] + variances[1] + (margin - means[0] + means[1]) ** 2)


def _log_sum(x: Samples, scale: float) -> Tensor:
    logs, masses = [], []
    for sign, (scores, weight, mass) in zip((-scale, scale), _sides(x), strict=True):
        exponent = sign * scores
        top = _group_max(exponent.detach().masked_fill(weight == 0, -torch.inf), x)
        # above the largest exponent are only those of weight 0, whose weight has a gradient all the same
        terms = weight * torch.exp((exponent - _of(top, x.group)).clamp(max=700))
        sums = group_sum(terms, x.group, x.num_groups)
        logs.append(top + torch.where(mass > 0, sums, 1).log())
        masses.append(mass)
    return (logs[0] + logs[1]).masked_fill((masses[0] == 0) | (masses[1] == 0), 0)


def _exponential(x: Samples, scale: float) -> Tensor:
    one, other = x.sides()
    return _log_sum(x, scale).exp().masked_fill((one == 0) | (other == 0), 0)


def _group_max(values: Tensor, x: Samples) -> Tensor:
    """Largest value of each group, finite."""
    limit = torch.finfo(values.dtype).max
    if x.group is None:
        largest = values.amax().reshape(1) if len(values) else values.new_zeros(1)
    else:
        largest = values.new_full((x.num_groups,), -torch.inf).scatter_reduce(0, x.group, values, "amax")
    return largest.clamp(-limit, limit)
