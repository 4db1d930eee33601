"""Rows of test_errors.py for the all-pairs and ranking losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearlinear
import torch
from nearlinear import surrogates

S, Y, G = torch.zeros(3), torch.tensor([0, 1, 1]), torch.tensor([0, 5, 1])
BINARY = "target must be bool, or of 0 and 1, or of -1 and 1, got"
NAMES = sorted(surrogates.SURROGATES)


def loss(input: Any = S, target: Any = Y, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.pairwise_auc_loss(input, target, **options)


def rank(input: Any = S, temperature: float = 1.0, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.sigmoid_rank(input, temperature=temperature, **options)


def lambda_rank(target: Any = Y, num_levels: int = 2, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.lambda_rank_loss(S, target, num_levels=num_levels, **options)


def smooth(target: Any = Y, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.smooth_average_precision_loss(S, target, **options)


def parts(**options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.PairwiseAUCAccumulator(**{"score_range": (-1, 1), **options})


P = "pairwise_auc_loss: "
ROWS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (loss(input=[1.0]), TypeError, P + "input must be a Tensor, got list"),
    (loss(target=3), TypeError, P + "target must be a Tensor, got int"),
    (loss(input=Y), TypeError, P + "input must be float32, float64, bfloat16 or float16, got torch.int64"),
    (loss(input=S[None, None]), ValueError, P + "input must have shape (N,) or (N, C), got (1, 1, 3)"),
    (loss(target=Y[:2]), ValueError, P + "target must have shape (3,), got (2,)"),
    (loss(target=Y.to("meta")), ValueError, P + "target must be on the device of input, cpu, got meta"),
    (loss(target=Y + 1), ValueError, P + BINARY + " [1, 2]"),
    (loss(surrogate="hinges"), ValueError, P + f"surrogate must be one of {NAMES}, or a record of them, got 'hinges'"),
    (loss(margin=0.5), ValueError, P + "margin must be None with surrogate='logistic', which has none, got 0.5"),
    (loss(surrogate="hinge", scale=2.0), ValueError, P + "scale must be None with surrogate='hinge', which has none, got 2.0"),
    (
        loss(surrogate=surrogates.Hinge(), margin=2.0), ValueError,
        P + "margin must be None with a surrogate that is a record; give it to the record",
    ),
    (lambda: surrogates.Logistic(0.0), ValueError, "Logistic: scale must be finite and > 0, got 0.0"),
    (lambda: surrogates.Hinge(float("nan")), ValueError, "Hinge: margin must be finite, got nan"),
    (lambda: surrogates.PHinge(1.0, 2.5), ValueError, "PHinge: power must be a whole number from 1 to 6, got 2.5"),
    (lambda: surrogates.HuberHinge(1.0, 0.0), ValueError, "HuberHinge: delta must be finite and > 0, got 0.0"),
    (lambda: surrogates.BarrierHinge(1.0, 1.0), ValueError, "BarrierHinge: scale must be finite and > 1, got 1.0"),
    (loss(method="sort"), ValueError, P + "method must be one of ('auto', 'bins', 'closed', 'direct', 'scan'), got 'sort'"),
    (
        loss(surrogate="hinge", method="bins"), ValueError,
        P + "method must be one of ('auto', 'scan', 'direct') with surrogate='hinge', got 'bins'",
    ),
    (loss(reduction="max"), ValueError, P + "reduction must be one of ('mean', 'weighted', 'sum', 'none'), got 'max'"),
    (loss(reduction="none"), ValueError, P + "reduction must be 'mean' or 'sum' without group or columns, got 'none'"),
    (loss(sample_weight=S - 1), ValueError, P + "sample_weight must be finite and >= 0, got -1 to -1"),
    (loss(sample_weight=S[:2]), ValueError, P + "sample_weight must have shape (3,), got (2,)"),
    (loss(group=G.int()), TypeError, P + "group must be int64, got torch.int32; use group.long()"),
    (loss(group=G, num_groups=5), IndexError, P + "group[1] = 5 is out of range [0, 5)"),
    (loss(num_groups=2), ValueError, P + "num_groups must be None without group, got 2"),
    (loss(group=G, num_groups=-1), ValueError, P + "num_groups must be >= 0, got -1"),
    (loss(num_levels=1), ValueError, P + "num_levels must be >= 2, got 1"),
    (loss(target=Y.bool(), num_levels=2), TypeError, P + "target must be int64 with num_levels, got torch.bool"),
    (loss(target=Y + 2, num_levels=3), IndexError, P + "target[1] = 3 is out of range [0, 3)"),
    (loss(max_fpr=0.0), ValueError, P + "max_fpr must be in (0, 1], got 0.0"),
    (loss(min_tpr=1.0), ValueError, P + "min_tpr must be in [0, 1), got 1.0"),
    (loss(max_fpr=0.5, num_levels=2), ValueError, P + "max_fpr and min_tpr must be None with num_levels"),
    (loss(surrogate="square", max_fpr=0.5), ValueError, P + "max_fpr and min_tpr need a surrogate that nowhere increases, got 'square'"),
    (
        loss(surrogate="log_exponential", num_levels=2), ValueError,
        P + "surrogate='log_exponential' takes neither reduction='weighted' nor num_levels",
    ),
    (loss(score_range=(1, 0)), ValueError, P + "score_range must be finite (low, high), got (1, 0)"),
    (
        loss(input=S + 1000 * Y, method="bins"), ValueError,
        "pairwise_auc_loss: method must not be 'bins' for scores more than 512 / scale apart, got 0 to 1000; use 'scan'",
    ),
    (
        lambda: nearlinear.PairwiseAUCLoss(margin=1.0), ValueError,
        "PairwiseAUCLoss: margin must be None with surrogate='logistic', which has none, got 1.0",
    ),
    (parts(surrogate="hinge"), ValueError, "PairwiseAUCAccumulator: surrogate must be 'logistic' or 'sigmoid', got 'hinge'"),
    (parts(dtype=torch.half), TypeError, "PairwiseAUCAccumulator: dtype must be float32 or float64, got torch.float16"),
    (
        parts(score_range=(0, 600)), ValueError,
        "PairwiseAUCAccumulator: score_range must be (low, high) within 512 / scale of each other, got (0, 600)",
    ),
    (lambda: parts()().loss(S, Y), RuntimeError, "PairwiseAUCAccumulator: call update with every micro-batch before loss"),
    (lambda: parts()().update(S[None], Y[None]), ValueError, "PairwiseAUCAccumulator: input must have shape (N,), got (1, 3)"),
    (rank(input=Y), TypeError, "sigmoid_rank: input must be float32, float64, bfloat16 or float16, got torch.int64"),
    (rank(input=S[None]), ValueError, "sigmoid_rank: input must have shape (N,), got (1, 3)"),
    (rank(temperature=0.0), ValueError, "sigmoid_rank: temperature must be > 0, got 0.0"),
    (rank(num_groups=2), ValueError, "sigmoid_rank: num_groups must be None without group, got 2"),
    (smooth(target=Y + 1), ValueError, "smooth_average_precision_loss: " + BINARY + " [1, 2]"),
    (smooth(temperature=-1.0), ValueError, "smooth_average_precision_loss: temperature must be > 0, got -1.0"),
    (lambda_rank(num_levels=1), ValueError, "lambda_rank_loss: num_levels must be >= 2, got 1"),
    (lambda_rank(target=Y.float()), TypeError, "lambda_rank_loss: target must be int64, got torch.float32"),
    (lambda_rank(target=Y + 1), IndexError, "lambda_rank_loss: target[1] = 2 is out of range [0, 2)"),
    (lambda_rank(k=0), ValueError, "lambda_rank_loss: k must be >= 1, got 0"),
    (lambda_rank(sigma=0.0), ValueError, "lambda_rank_loss: sigma must be > 0, got 0.0"),
    (lambda_rank(gain="log"), ValueError, "lambda_rank_loss: gain must be one of ('exponential', 'linear'), got 'log'"),
    (lambda_rank(reduction="max"), ValueError, "lambda_rank_loss: reduction must be one of ('none', 'mean', 'sum'), got 'max'"),
]  # fmt: skip
