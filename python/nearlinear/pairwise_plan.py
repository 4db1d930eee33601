"""Which algorithm sums over the pairs, and what its error is: a function of sizes, dtype and score range, never of a failure.

    closed   square, exponential: moments and log-sum-exps; no sort
    bins     logistic, sigmoid: Chebyshev moments; no sort, a bounded range of scores
    scan     all but the exponentials: a sort, and sums carried from score to score
    direct   the same, every pair in turn: small groups

``auto`` takes the first of these that fits. For ``logistic`` and ``sigmoid``: bins for groups of many samples over at most 512 / scale of
scores, else the sorted kernel, which treats groups of few samples directly.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .pair_bins import Grid, error_bound
from .pair_kernels import fit_error
from .surrogates import LogisticFamily, Surrogate

__all__ = ["PairwisePlan", "check_method", "choose_grid", "plan_of"]

METHODS = ("auto", "bins", "closed", "direct", "scan")
_FEWEST = 4096  # samples, and bins to a sample of each group, from which bins are faster than a sort


@dataclass(frozen=True)
class PairwisePlan:
    """``method`` is one of bins, scan, direct, auto (scan or direct, by the size of each group), closed. ``relative_error`` bounds the
    error of the loss and of each entry of the gradient in exact arithmetic, with weights >= 0: 0 where the method is exact."""

    method: str
    relative_error: float
    grid: Grid | None = None


def check_method(function: str, surrogate: Surrogate, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"{function}: method must be one of {METHODS}, got {method!r}")
    if method not in ("auto", *surrogate.methods):
        raise ValueError(
            f"{function}: method must be one of {('auto', *surrogate.methods)} with surrogate={surrogate.name!r}, got {method!r}"
        )


def choose_grid(surrogate: Surrogate, input: Tensor, num_groups: int, method: str, score_range: list[float]) -> Grid | None:
    """The bins, or None for the sorted kernel. Without ``score_range`` the range is read on the CPU; a GPU is not waited for."""
    if not isinstance(surrogate, LogisticFamily) or method not in ("auto", "bins"):
        return None
    few = input.numel() < _FEWEST or num_groups == 0
    if method == "auto" and (few or (not score_range and input.device.type != "cpu")):
        return None
    if score_range:
        low, high = score_range
    elif input.numel() == 0:
        low = high = 0.0
    else:
        # what is not finite lies in no bin and makes the sum NaN
        known = input if method == "auto" else input.nan_to_num(0, 0, 0)
        low, high = (float(end) for end in known.aminmax())
    grid = Grid.over(low, high, surrogate.scale, input.dtype, input.numel())
    if method == "bins":
        if grid is None:
            raise ValueError(
                f"pairwise_auc_loss: method must not be 'bins' for scores more than 512 / scale apart, got {low:g} to {high:g}; use 'scan'"
            )
        return grid
    return grid if grid is not None and 4 * num_groups * grid.bins <= input.numel() else None


def plan_of(surrogate: Surrogate, input: Tensor, num_groups: int, method: str, score_range: list[float]) -> PairwisePlan:
    if surrogate.methods[0] == "closed" and method in ("auto", "closed"):
        return PairwisePlan("closed", 0.0)
    grid = choose_grid(surrogate, input, num_groups, method, score_range)
    if grid is not None:
        assert isinstance(surrogate, LogisticFamily)
        return PairwisePlan("bins", max(error_bound(surrogate.analytic(order), grid) for order in (0, 1)), grid)
    return PairwisePlan(method, fit_error(input.dtype) if isinstance(surrogate, LogisticFamily) else 0.0)
