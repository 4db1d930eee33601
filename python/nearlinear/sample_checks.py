"""Checks of labels, groups and weights of samples. Values are read on CPU only, and not while torch.compile traces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_floating, check_shape, check_tensor, require

__all__ = ["binary_labels", "check_group", "check_range", "check_sample_weight"]


def _readable(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and values.numel() > 0


def check_group(function: str, group: Any, shape: tuple[int, ...], num_groups: int | None) -> None:
    check_tensor(function, "group", group)
    require(group.dtype == torch.int64, TypeError, function, f"group must be int64, got {group.dtype}; use group.long()")
    check_shape(function, "group", group, shape)
    if num_groups is not None:
        check_range(function, "group", group, num_groups)


def check_range(function: str, name: str, ids: Tensor, end: int) -> None:
    if not _readable(ids):
        return
    # 0 in the place of a label that is ignored: it is in every range but the empty one
    flat = 0 if end == 0 else int(torch.ops.nearlinear.first_invalid_target(ids, end, 0))
    if flat >= 0:
        raise IndexError(f"{function}: {name}[{flat}] = {int(ids[flat])} is out of range [0, {end})")


def check_sample_weight(function: str, weight: Any, shape: tuple[int, ...]) -> None:
    check_tensor(function, "sample_weight", weight)
    check_floating(function, "sample_weight", weight)
    check_shape(function, "sample_weight", weight, shape)
    if _readable(weight):
        low, high = (float(end) for end in weight.detach().aminmax())
        require(0 <= low <= high < torch.inf, ValueError, function, f"sample_weight must be finite and >= 0, got {low:g} to {high:g}")


def binary_labels(function: str, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """Whether each label is positive, and, where that cannot be raised, whether all of them are labels."""
    if target.dtype == torch.bool:
        return target, None
    if _readable(target):
        return _read_labels(function, target), None
    one = target == 1
    known = (one | (target == 0)).all()
    if target.dtype.is_signed:  # an unsigned 255 would compare equal to -1
        known = known | (one | (target == -1)).all()
    return one, known


def _read_labels(function: str, target: Tensor) -> Tensor:
    """Arithmetic and extremes, which torch vectorises, and not comparisons: between 0 and 1, y - y^2 is 0 at the ends alone."""
    low, high = _extremes(target)
    whole = not target.is_floating_point()
    if low >= 0 and high <= 1 and (whole or _extremes(torch.addcmul(target, target, target, value=-1)) == (0, 0)):
        return target.bool()
    if low >= -1 and high <= 1 and _extremes(target * target) == (1, 1):
        return target.clamp(min=0).bool()
    raise ValueError(f"{function}: target must be bool, or of 0 and 1, or of -1 and 1, got {target.unique()[:5].tolist()}")


def _extremes(x: Tensor) -> tuple[float, float]:
    low, high = x.aminmax()
    return low.item(), high.item()
