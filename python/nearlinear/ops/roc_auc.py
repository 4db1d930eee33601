"""Shapes of the ROC ops. Counts have no derivative. Schemas: csrc/schema.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def _check(input: Tensor, target: Tensor) -> None:
    torch._check(target.dim() == 1 and target.shape[0] == input.shape[0], lambda: "target must have shape (N,)")


@torch.library.register_fake("nearlinear::roc_auc_counts")
def _(input: Tensor, target: Tensor, group: Tensor | None, num_groups: int) -> Tensor:
    _check(input, target)
    return input.new_empty(num_groups, 3, dtype=torch.int64)


@torch.library.register_fake("nearlinear::roc_auc_sums")
def _(input: Tensor, target: Tensor, sample_weight: Tensor | None, group: Tensor | None, num_groups: int, max_fpr: float) -> Tensor:
    _check(input, target)
    return input.new_empty(num_groups, 3, dtype=torch.float64)


@torch.library.register_fake("nearlinear::roc_auc_class_sums")
def _(input: Tensor, target: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    _check(input, target)
    classes = input.shape[1]
    return input.new_empty(classes, classes, dtype=torch.float64), input.new_empty(classes, dtype=torch.float64)
