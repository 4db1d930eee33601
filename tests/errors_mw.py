"""Rows of test_errors.py for the in-batch Mann-Whitney loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearlinear
import torch

X, H = torch.ones(3, 4) / 2, torch.ones(5, 4) / 2
FLOATS = "must be float32, float64, bfloat16 or float16, got"


def mw(query: Any = X, document: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.linear_mw_loss(query, document, **options)


ROWS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (mw(query=[1.0]), TypeError, "linear_mw_loss: query must be a Tensor, got list"),
    (mw(document=None), TypeError, "linear_mw_loss: document must be a Tensor, got NoneType"),
    (mw(query=X.long()), TypeError, f"linear_mw_loss: query {FLOATS} torch.int64"),
    (mw(query=X[0]), ValueError, "linear_mw_loss: query must have two dimensions, got shape (4,)"),
    (mw(hard_negatives=H[0]), ValueError, "linear_mw_loss: hard_negatives must have two dimensions, got shape (4,)"),
    (mw(document=X[:, :3]), ValueError, "linear_mw_loss: document must have D=4 columns, as query, got 3"),
    (
        mw(hard_negatives=H.double()), TypeError,
        "linear_mw_loss: hard_negatives must have the dtype of query, torch.float32, got torch.float64",
    ),
    (mw(document=H), ValueError, "linear_mw_loss: document must have B=3 rows, as query, got 5; pass others as hard_negatives"),
    (mw(document=X.to("meta")), ValueError, "linear_mw_loss: document must be on the device of input, cpu, got meta"),
    (mw(temperature=0.0), ValueError, "linear_mw_loss: temperature must be finite and > 0, got 0.0"),
    (mw(temperature=float("inf")), ValueError, "linear_mw_loss: temperature must be finite and > 0, got inf"),
    (mw(normalizer="batch"), ValueError, "linear_mw_loss: normalizer must be one of ('pairs', 'queries'), got 'batch'"),
    (mw(max_workspace_bytes=8), ValueError, "linear_mw_loss: max_workspace_bytes must be >= 59, got 8"),
    (
        mw(temperature=0.002), ValueError,
        "linear_mw_loss: max |query| max |document| / temperature must be <= 252, got 500; use rows of unit length or a larger temperature",
    ),
    (
        mw(query=X * 1e30), ValueError,
        "linear_mw_loss: max |query| max |document| / temperature must be <= 252, got inf; use rows of unit length or a larger temperature",
    ),
    (lambda: nearlinear.LinearMWLoss(temperature=-1.0), ValueError, "LinearMWLoss: temperature must be finite and > 0, got -1.0"),
]  # fmt: skip
