"""Rows of test_errors.py for the fused linear heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearlinear
import torch
from nearlinear import plan
from nearlinear.logit_maps import Arcosh, Power
from nearlinear.score_maps import ArcMargin, Cosine, CosMargin, HyperbolicMLR

X, W, Y = torch.zeros(3, 4), torch.zeros(5, 4), torch.tensor([0, 1, 2])
SOFT = torch.full((3, 5), 0.2)


def lce(input: Any = X, linear_weight: Any = W, target: Any = Y, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.linear_cross_entropy(input, linear_weight, target, **options)


NAME = "linear_cross_entropy"
FLOATS = "must be float32, float64, bfloat16 or float16, got"
ROWS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # tensors
    (lce(input=[1.0]), TypeError, f"{NAME}: input must be a Tensor, got list"),
    (lce(linear_weight=[1.0]), TypeError, f"{NAME}: linear_weight must be a Tensor, got list"),
    (lce(target=3), TypeError, f"{NAME}: target must be a Tensor, got int"),
    (lce(linear_bias=1.0), TypeError, f"{NAME}: linear_bias must be a Tensor, got float"),
    (lce(extra_lse=1.0), TypeError, f"{NAME}: extra_lse must be a Tensor, got float"),
    (lce(input=X.long()), TypeError, f"{NAME}: input {FLOATS} torch.int64"),
    (lce(linear_weight=W.int()), TypeError, f"{NAME}: linear_weight {FLOATS} torch.int32"),
    (lce(linear_weight=W.double()), TypeError, f"{NAME}: linear_weight must have the dtype of input, torch.float32, got torch.float64"),
    (
        lce(linear_bias=torch.ones(5).bfloat16()), TypeError,
        f"{NAME}: linear_bias must have the dtype of input, torch.float32, got torch.bfloat16",
    ),
    # labels
    (lce(target=Y.int()), TypeError, f"{NAME}: target must be int64 (or uint8), got torch.int32; use target.long()"),
    (
        lce(target=Y.float()), TypeError,
        f"{NAME}: target must be int64 (or uint8), got torch.float32; class probabilities need the shape (3, 5)",
    ),
    (lce(target=SOFT, row_loss="gce"), ValueError, f"{NAME}: row_loss must be 'ce' with class probabilities, got 'gce'"),
    (
        lce(target=SOFT, ignore_index=2), ValueError,
        f"{NAME}: ignore_index must be negative with class probabilities (it has no effect there), got 2",
    ),
    (
        lce(target=SOFT, logit_map=CosMargin(2.0, 0.1)), ValueError,
        f"{NAME}: target must be class indices with logit_map=CosMargin(scale=2.0, margin=0.1): its margin belongs to one class",
    ),
    (lce(target=SOFT, process_group=object()), NotImplementedError, f"{NAME}: target must be class indices with process_group"),
    (lce(target=torch.tensor([0, 7, 2])), IndexError, f"{NAME}: target[1] = 7 is out of range [0, 5) and is not ignore_index=-100"),
    (
        lce(target=torch.tensor([0, 1, -1]), reduction="none"), IndexError,
        f"{NAME}: target[2] = -1 is out of range [0, 5) and is not ignore_index=-100",
    ),
    # shapes
    (lce(input=torch.tensor(1.0)), ValueError, f"{NAME}: input must have shape (..., D), got ()"),
    (lce(linear_weight=W[:, :3]), ValueError, f"{NAME}: linear_weight must have shape (V, D) with D=4, got (5, 3)"),
    (lce(linear_weight=W[0]), ValueError, f"{NAME}: linear_weight must have shape (V, D) with D=4, got (4,)"),
    (lce(linear_weight=W[:0]), ValueError, f"{NAME}: linear_weight must have at least one class, got V=0"),
    (lce(target=Y[:2]), ValueError, f"{NAME}: target must have shape (3,) for input of shape (3, 4), got (2,)"),
    (lce(target=Y.repeat(2)), ValueError, f"{NAME}: target must have shape (3,) for input of shape (3, 4), got (6,)"),
    (lce(linear_bias=torch.ones(4)), ValueError, f"{NAME}: linear_bias must have shape (V,) with V=5, got (4,)"),
    (lce(weight=torch.ones(4)), ValueError, f"{NAME}: weight must have shape (V,) with V=5, got (4,)"),
    (lce(sample_weight=torch.ones(2)), ValueError, f"{NAME}: sample_weight must have shape (3,), got (2,)"),
    (lce(extra_lse=torch.ones(2)), ValueError, f"{NAME}: extra_lse must have shape () or (3,), got (2,)"),
    # options
    (lce(logit_map=3), TypeError, f"{NAME}: logit_map must be a LogitMap or a ScoreMap, got int"),
    (lce(softcap=1.0, logit_map=Cosine(2.0)), ValueError, f"{NAME}: softcap must not be combined with logit_map; use one of them"),
    (
        lce(margin=torch.ones(3)), ValueError,
        f"{NAME}: margin must be None with logit_map=Dot(logit_map=Identity()); use a margin map",
    ),
    (
        lce(linear_bias=torch.ones(5), logit_map=Cosine(2.0)), ValueError,
        f"{NAME}: linear_bias must be None with logit_map=Cosine(scale=2.0): such a logit has no bias",
    ),
    (lce(logit_map=ArcMargin(), margin=torch.ones(2)), ValueError, f"{NAME}: margin must have shape (3,), got (2,)"),
    (
        lce(max_workspace_bytes=10), ValueError,
        f"{NAME}: max_workspace_bytes must be >= 612 for N=3, V=5, D=4, got 10",
    ),
    (lce(weight=torch.ones(5, requires_grad=True)), NotImplementedError,
     f"{NAME}: no gradient for weight, as in torch; pass weight.detach(), or weigh rows by sample_weight"),
    (lambda: plan(0, 0, 0, torch.float32, max_workspace_bytes=1), ValueError,
     f"{NAME}: max_workspace_bytes must be >= 196 for N=1, V=1, D=0, got 1"),
    (lambda: Power(0.0), ValueError, "Power: exponent and eps must be > 0, got 0.0 and 0.0001"),
    (lambda: Arcosh(-1.0), ValueError, "Arcosh: scale must be > 0, got -1.0"),
    (lambda: HyperbolicMLR(0.0), ValueError, "HyperbolicMLR: c must be > 0, got 0.0; the limit of c = 0 is a linear head"),
]  # fmt: skip
