"""Rows of test_errors.py for the ROC metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearlinear
import torch

S, Y = torch.zeros(3), torch.tensor([0, 1, 1])
COLUMNS, G = torch.zeros(3, 4), torch.tensor([0, 5, 1])
FLOATS = "must be float32, float64, bfloat16 or float16, got"


def auc(input: Any = S, target: Any = Y, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.roc_auc_score(input, target, **options)


def classes(input: Any = COLUMNS, target: Any = Y, multi_class: str = "ovr", **options: Any) -> Callable[[], Any]:
    return auc(input, target, multi_class=multi_class, **options)


def mixed() -> None:
    metric = nearlinear.RocAUC()
    metric.update(S, Y)
    metric.update(S, Y, sample_weight=torch.ones(3))


ROWS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (auc(input=[1.0]), TypeError, "roc_auc_score: input must be a Tensor, got list"),
    (auc(target=3), TypeError, "roc_auc_score: target must be a Tensor, got int"),
    (auc(input=Y), TypeError, f"roc_auc_score: input {FLOATS} torch.int64"),
    (auc(input=COLUMNS), ValueError, "roc_auc_score: input must have shape (N,); (N, C) needs multi_class, got (3, 4)"),
    (auc(target=Y[:2]), ValueError, "roc_auc_score: target must have shape (3,), got (2,)"),
    (auc(target=Y.to("meta")), ValueError, "roc_auc_score: target must be on the device of input, cpu, got meta"),
    (
        auc(target=torch.tensor([0, 1, 2])), ValueError,
        "roc_auc_score: target must be bool, or of 0 and 1, or of -1 and 1, got [0, 1, 2]",
    ),
    (
        auc(target=torch.tensor([0, 1, -1])), ValueError,
        "roc_auc_score: target must be bool, or of 0 and 1, or of -1 and 1, got [-1, 0, 1]",
    ),
    (
        auc(target=torch.tensor([0, 0.5, 1])), ValueError,
        "roc_auc_score: target must be bool, or of 0 and 1, or of -1 and 1, got [0.0, 0.5, 1.0]",
    ),
    (
        auc(target=torch.tensor([1, 255, 1], dtype=torch.uint8)), ValueError,
        "roc_auc_score: target must be bool, or of 0 and 1, or of -1 and 1, got [1, 255]",
    ),
    (auc(sample_weight=1.0), TypeError, "roc_auc_score: sample_weight must be a Tensor, got float"),
    (auc(sample_weight=Y), TypeError, f"roc_auc_score: sample_weight {FLOATS} torch.int64"),
    (auc(sample_weight=S[:2]), ValueError, "roc_auc_score: sample_weight must have shape (3,), got (2,)"),
    (auc(sample_weight=S - 1), ValueError, "roc_auc_score: sample_weight must be finite and >= 0, got -1 to -1"),
    (auc(sample_weight=S / 0), ValueError, "roc_auc_score: sample_weight must be finite and >= 0, got nan to nan"),
    (auc(sample_weight=(S + 1) / 0), ValueError, "roc_auc_score: sample_weight must be finite and >= 0, got inf to inf"),
    (auc(group=[0, 1, 1]), TypeError, "roc_auc_score: group must be a Tensor, got list"),
    (auc(group=G.int()), TypeError, "roc_auc_score: group must be int64, got torch.int32; use group.long()"),
    (auc(group=G[:2]), ValueError, "roc_auc_score: group must have shape (3,), got (2,)"),
    (auc(group=G, num_groups=5), IndexError, "roc_auc_score: group[1] = 5 is out of range [0, 5)"),
    (auc(group=-G, num_groups=5), IndexError, "roc_auc_score: group[1] = -5 is out of range [0, 5)"),
    (auc(group=G, num_groups=0), IndexError, "roc_auc_score: group[0] = 0 is out of range [0, 0)"),
    (auc(group=G, num_groups=-1), ValueError, "roc_auc_score: num_groups must be >= 0, got -1"),
    (auc(num_groups=2), ValueError, "roc_auc_score: num_groups must be None without group, got 2"),
    (auc(max_fpr=0.0), ValueError, "roc_auc_score: max_fpr must be in (0, 1], got 0.0"),
    (auc(max_fpr=1.5), ValueError, "roc_auc_score: max_fpr must be in (0, 1], got 1.5"),
    (auc(average="micro"), ValueError, "roc_auc_score: average must be one of (None, 'macro', 'weighted'), got 'micro'"),
    (classes(multi_class="raise"), ValueError, "roc_auc_score: multi_class must be one of (None, 'ovr', 'ovo'), got 'raise'"),
    (classes(input=S), ValueError, "roc_auc_score: input must have shape (N, C) with multi_class, got (3,)"),
    (classes(target=Y.bool()), TypeError, "roc_auc_score: target must be int64 with multi_class, got torch.bool"),
    (classes(target=Y + 3), IndexError, "roc_auc_score: target[1] = 4 is out of range [0, 4)"),
    (classes(group=G), ValueError, "roc_auc_score: group must be None with multi_class; call once for each group"),
    (classes(max_fpr=0.5), ValueError, "roc_auc_score: max_fpr must be None with multi_class, got 0.5"),
    (
        classes(multi_class="ovo", average=None), ValueError,
        "roc_auc_score: average must be 'macro' or 'weighted' with multi_class='ovo', got None",
    ),
    (lambda: nearlinear.roc_curve(COLUMNS, Y), ValueError, "roc_curve: input must have shape (N,), got (3, 4)"),
    (lambda: nearlinear.RocAUC(average="micro"), ValueError, "RocAUC: average must be one of (None, 'macro', 'weighted'), got 'micro'"),
    (lambda: nearlinear.RocAUC().update(S, Y + 1), ValueError, "RocAUC: target must be bool, or of 0 and 1, or of -1 and 1, got [1, 2]"),
    (
        mixed, ValueError,
        "RocAUC: a batch must hold what the first held, ['input', 'target'], got ['input', 'target', 'sample_weight']",
    ),
]  # fmt: skip
