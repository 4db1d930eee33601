"""Arguments of the all-pairs losses, checked and brought to one shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ._checks import check_devices, check_floating, check_shape, check_tensor, require
from .sample_checks import binary_labels, check_group, check_range, check_sample_weight
from .surrogates import Surrogate

__all__ = ["Samples", "check_options", "check_samples", "group_sum"]

REDUCTIONS = ("mean", "weighted", "sum", "none")
_NAME = "pairwise_auc_loss"


@dataclass(frozen=True)
class Samples:
    """Scores (float32 or float64), labels, weights of the scores' dtype and group ids, all [n] once :meth:`flat`; ``shape`` is that of the
    results, ``counted`` the number of groups if the caller knows it. ``level`` with graded labels; ``known``: whether the labels are
    labels, where that could not be raised."""

    input: Tensor
    positive: Tensor
    weight: Tensor | None
    group: Tensor | None
    counted: int | None
    num_groups: int = 1
    level: Tensor | None = None
    known: Tensor | None = None
    shape: tuple[int, ...] = ()

    def flat(self) -> Samples:
        """Groups counted from 0, and columns as groups of their own."""
        group, count = self.group, self.counted
        if group is not None and count is None:
            ids, group = group.unique(return_inverse=True)
            count = ids.numel()
        shape: tuple[int, ...] = () if count is None else (count,)
        x = replace(self, group=group, num_groups=1 if count is None else count, shape=shape)
        if self.input.dim() == 1:
            return x
        columns = self.input.shape[1]
        place = torch.arange(columns, device=self.input.device)
        place = place.expand(self.input.shape) if group is None else group[:, None] * columns + place
        weight = self.weight
        if weight is not None and weight.dim() == 1:
            weight = weight[:, None].expand(self.input.shape)
        return replace(
            x, input=self.input.reshape(-1), positive=self.positive.reshape(-1), weight=None if weight is None else weight.reshape(-1),
            group=place.reshape(-1), num_groups=x.num_groups * columns, level=None if self.level is None else self.level.reshape(-1),
            shape=(*shape, columns),
        )  # fmt: skip

    def with_weight(self, weight: Tensor, positive: Tensor | None = None) -> Samples:
        return replace(self, weight=weight, positive=self.positive if positive is None else positive)

    def sides(self) -> tuple[Tensor, Tensor]:
        """Weight of the positives and of the negatives of each group, [G] in float64."""
        if self.weight is None and self.group is None:
            positives = self.positive.count_nonzero().reshape(1)
            return positives.double(), (len(self.positive) - positives).double()
        weight = torch.ones_like(self.input) if self.weight is None else self.weight
        one, other = (group_sum(weight * side, self.group, self.num_groups) for side in (self.positive, ~self.positive))
        return one, other

    def pairs(self) -> Tensor:
        one, other = self.sides()
        return one * other


def group_sum(x: Tensor, group: Tensor | None, num_groups: int) -> Tensor:
    """Sums of each group in float64, in the order of the samples."""
    if group is None:
        return x.double().sum().reshape(1)
    zeros = x.new_zeros(num_groups, dtype=torch.float64)
    if x.device.type == "cpu":
        return zeros.index_add(0, group, x.double())
    return zeros.index_put((group,), x.double(), accumulate=True)  # sorts; index_add on a GPU adds in any order


def check_options(
    function: str, surrogate: Surrogate, num_groups: int | None, num_levels: int | None, max_fpr: float | None, min_tpr: float | None,
    reduction: str, score_range: tuple[float, float] | None, group: Tensor | None,
) -> None:  # fmt: skip
    require(reduction in REDUCTIONS, ValueError, function, f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    require(num_groups is None or num_groups >= 0, ValueError, function, f"num_groups must be >= 0, got {num_groups}")
    require(num_groups is None or group is not None, ValueError, function, f"num_groups must be None without group, got {num_groups}")
    known = group is None or num_groups is not None or not torch.compiler.is_compiling()
    require(known, ValueError, function, "num_groups must be given with group under torch.compile: their number is a shape")
    require(num_levels is None or num_levels >= 2, ValueError, function, f"num_levels must be >= 2, got {num_levels}")
    require(max_fpr is None or 0 < max_fpr <= 1, ValueError, function, f"max_fpr must be in (0, 1], got {max_fpr}")
    require(min_tpr is None or 0 <= min_tpr < 1, ValueError, function, f"min_tpr must be in [0, 1), got {min_tpr}")
    tails = max_fpr is not None or min_tpr is not None
    require(not tails or num_levels is None, ValueError, function, "max_fpr and min_tpr must be None with num_levels")
    fits = surrogate.decreasing or not tails
    require(fits, ValueError, function, f"max_fpr and min_tpr need a surrogate that nowhere increases, got {surrogate.name!r}")
    logs = surrogate.name == "log_exponential" and (reduction == "weighted" or num_levels is not None)
    require(not logs, ValueError, function, "surrogate='log_exponential' takes neither reduction='weighted' nor num_levels")
    if score_range is not None:
        low, high = score_range
        require(-torch.inf < low <= high < torch.inf, ValueError, function, f"score_range must be finite (low, high), got {score_range}")


def check_samples(
    function: str, input: Any, target: Any, sample_weight: Any, group: Any, num_groups: int | None, num_levels: int | None
) -> Samples:
    for name, value in (("input", input), ("target", target)):
        check_tensor(function, name, value)
    check_floating(function, "input", input)
    shape = tuple(input.shape)
    require(input.dim() in (1, 2), ValueError, function, f"input must have shape (N,) or (N, C), got {shape}")
    check_shape(function, "target", target, shape)
    if group is not None:
        check_group(function, group, shape[:1], num_groups)
    if sample_weight is not None:
        per_sample = isinstance(sample_weight, Tensor) and sample_weight.dim() == 1
        check_sample_weight(function, sample_weight, shape[:1] if per_sample else shape)
    check_devices(function, input, target=target, sample_weight=sample_weight, group=group)
    wide = input if input.dtype in (torch.float32, torch.float64) else input.float()
    weight = None if sample_weight is None else sample_weight.to(wide.dtype)
    if num_levels is None:
        positive, known = binary_labels(function, target)
        return Samples(wide, positive, weight, group, num_groups, known=known)
    require(target.dtype == torch.int64, TypeError, function, f"target must be int64 with num_levels, got {target.dtype}")
    check_range(function, "target", target, num_levels)
    known = None if target.device.type == "cpu" and not torch.compiler.is_compiling() else ((target >= 0) & (target < num_levels)).all()
    return Samples(wide, target > 0, weight, group, num_groups, level=target, known=known)
