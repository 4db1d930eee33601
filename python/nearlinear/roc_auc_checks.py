"""Argument checks of the ROC metrics. Values are read on CPU only, and not while torch.compile traces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_devices, check_floating, check_shape, check_tensor, require

__all__ = ["check_options", "check_samples"]

AVERAGES, MULTI_CLASS = (None, "macro", "weighted"), (None, "ovr", "ovo")


def check_options(function: str, num_groups: int | None, max_fpr: float | None, multi_class: str | None, average: str | None) -> None:
    require(average in AVERAGES, ValueError, function, f"average must be one of {AVERAGES}, got {average!r}")
    require(multi_class in MULTI_CLASS, ValueError, function, f"multi_class must be one of {MULTI_CLASS}, got {multi_class!r}")
    require(max_fpr is None or 0 < max_fpr <= 1, ValueError, function, f"max_fpr must be in (0, 1], got {max_fpr}")
    require(num_groups is None or num_groups >= 0, ValueError, function, f"num_groups must be >= 0, got {num_groups}")
    alone = max_fpr is None or multi_class is None
    require(alone, ValueError, function, f"max_fpr must be None with multi_class, got {max_fpr}")
    several = average is not None or multi_class != "ovo"
    require(several, ValueError, function, "average must be 'macro' or 'weighted' with multi_class='ovo', got None")


def check_samples(
    function: str, input: Any, target: Any, sample_weight: Any = None, group: Any = None, num_groups: int | None = None,
    multi_class: str | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Labels as the ops take them, and a 0-d tensor that says whether they are labels where that cannot be raised."""
    for name, value in (("input", input), ("target", target)):
        check_tensor(function, name, value)
    check_floating(function, "input", input)
    shape = tuple(input.shape)
    dims, expected = (1, "(N,)" if function == "roc_curve" else "(N,); (N, C) needs multi_class")
    if multi_class is not None:
        dims, expected = 2, "(N, C) with multi_class"
    require(input.dim() == dims, ValueError, function, f"input must have shape {expected}, got {shape}")
    check_shape(function, "target", target, shape[:1])
    if group is not None:
        _check_group(function, group, shape[:1], num_groups, multi_class)
    if sample_weight is not None:
        _check_weight(function, sample_weight, shape[:1])
    check_devices(function, input, target=target, sample_weight=sample_weight, group=group)
    if multi_class is None:
        return _binary(function, target)
    require(target.dtype == torch.int64, TypeError, function, f"target must be int64 with multi_class, got {target.dtype}")
    _check_range(function, "target", target, shape[1])
    return target, None


def _readable(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and values.numel() > 0


def _check_group(function: str, group: Any, shape: tuple[int, ...], num_groups: int | None, multi_class: str | None) -> None:
    check_tensor(function, "group", group)
    require(multi_class is None, ValueError, function, "group must be None with multi_class; call once for each group")
    require(group.dtype == torch.int64, TypeError, function, f"group must be int64, got {group.dtype}; use group.long()")
    check_shape(function, "group", group, shape)
    if num_groups is not None:
        _check_range(function, "group", group, num_groups)


def _check_range(function: str, name: str, ids: Tensor, end: int) -> None:
    if not _readable(ids):
        return
    # 0 in the place of a label that is ignored: it is in every range but the empty one
    flat = 0 if end == 0 else int(torch.ops.nearlinear.first_invalid_target(ids, end, 0))
    if flat >= 0:
        raise IndexError(f"{function}: {name}[{flat}] = {int(ids[flat])} is out of range [0, {end})")


def _check_weight(function: str, weight: Any, shape: tuple[int, ...]) -> None:
    check_tensor(function, "sample_weight", weight)
    check_floating(function, "sample_weight", weight)
    check_shape(function, "sample_weight", weight, shape)
    if _readable(weight):
        low, high = (float(end) for end in weight.detach().aminmax())
        require(0 <= low <= high < torch.inf, ValueError, function, f"sample_weight must be finite and >= 0, got {low:g} to {high:g}")


def _binary(function: str, target: Tensor) -> tuple[Tensor, Tensor | None]:
    if target.dtype == torch.bool:
        return target, None
    one = target == 1
    known = (one | (target == 0)).all()
    if target.dtype.is_signed:  # an unsigned 255 would compare equal to -1
        known = known | (one | (target == -1)).all()
    if not _readable(target):
        return one, known
    if not known:
        raise ValueError(f"{function}: target must be bool, or of 0 and 1, or of -1 and 1, got {target.unique()[:5].tolist()}")
    return one, None
