"""Argument checks of the ROC metrics. Values are read on CPU only, and not while torch.compile traces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_devices, check_floating, check_shape, check_tensor, require
from .sample_checks import binary_labels, check_group, check_range, check_sample_weight

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
        require(multi_class is None, ValueError, function, "group must be None with multi_class; call once for each group")
        check_group(function, group, shape[:1], num_groups)
    if sample_weight is not None:
        check_sample_weight(function, sample_weight, shape[:1])
    check_devices(function, input, target=target, sample_weight=sample_weight, group=group)
    if multi_class is None:
        return binary_labels(function, target)
    require(target.dtype == torch.int64, TypeError, function, f"target must be int64 with multi_class, got {target.dtype}")
    check_range(function, "target", target, shape[1])
    return target, None
