"""Area under the ROC curve. Rivals are scikit-learn and the torch lines that a user writes, which take ``torch.sort``'s time at least.
There is no gradient."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import nearlinear
import torch
from nearlinear.reference import roc_auc as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, register


def scored(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Scores, labels of which three in ten are positive, and ids of G groups."""
    n = sizes["N"]
    target = torch.rand(n, device=device) < 0.3
    return torch.randn(n, device=device, dtype=dtype) + 0.5 * target, target, torch.randint(sizes["G"], (n,), device=device)


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Scores, labels (a byte) and ids are read."""
    return {"fwd": sizes["N"] * (itemsize + 1 + (8 if sizes["G"] > 1 else 0))}


def moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Inputs twice; keys: written once, read twice and written once in each pass of 8 bits, read by the merge."""
    return {"fwd": 2 * floor(sizes, itemsize)["fwd"] + sizes["N"] * itemsize * (2 + 3 * itemsize)}


def eager(input: Tensor, target: Tensor, group: Tensor) -> Tensor:
    """Exact for ties: average ranks by a sort and the runs of equal scores."""
    values, order = input.sort()
    _, run, size = torch.unique_consecutive(values, return_inverse=True, return_counts=True)
    end = size.cumsum(0)
    rank = (end - (size - 1) / 2)[run]
    positives = target.sum()
    return (rank[target[order]].double().sum() - positives * (positives + 1) / 2) / (positives * (len(input) - positives))


def grouped_eager(input: Tensor, target: Tensor, group: Tensor) -> Tensor:
    """Two stable sorts; counts by segment, ties as 1/2."""
    order = input.sort(stable=True)[1]
    order = order[group[order].sort(stable=True)[1]]
    g, s, y = group[order], input[order], target[order].long()
    first = torch.ones_like(g, dtype=torch.bool)
    first[1:] = (g[1:] != g[:-1]) | (s[1:] != s[:-1])
    run = first.cumsum(0) - 1
    p, q = (torch.zeros(int(run[-1]) + 1, dtype=torch.int64, device=g.device).index_add_(0, run, side) for side in (y, 1 - y))
    ids = g[first]
    below = q.cumsum(0) - q
    start = torch.full((int(ids[-1]) + 1,), len(g), device=g.device).scatter_reduce_(0, ids, below, "amin")
    sums = [torch.zeros_like(start).index_add_(0, ids, part) for part in (p * (2 * (below - start[ids]) + q), p, q)]
    auc = sums[0] / (2 * sums[1] * sums[2])
    return auc[(sums[1] > 0) & (sums[2] > 0)].mean()


def scikit_learn(input: Tensor, target: Tensor, group: Tensor) -> Tensor:
    from sklearn.metrics import roc_auc_score

    return torch.tensor(roc_auc_score(target, input))


def refuse(device: torch.device, dtype: torch.dtype) -> str:
    return "" if find_spec("sklearn") and device.type == "cpu" else "scikit-learn is not installed, or not for this device"


FIELDS: dict[str, Any] = {
    "family": "roc_auc", "op": "roc_auc_score", "inputs": scored, "bytes": floor, "moved": moved, "dtypes": (torch.float32,),
    "passes": ("fwd",), "error_rows": {"N": 2000, "G": 50},
}  # fmt: skip

register(
    Case(
        name="binary",
        ours=lambda input, target, group: nearlinear.roc_auc_score(input, target),
        definition=lambda input, target, group: reference.roc_auc_score(input, target),
        baselines={"eager": Baseline(eager), "scikit-learn": Baseline(scikit_learn, refuse=refuse)},
        sizes={
            "cpu": [{"N": 10**6, "G": 1}, {"N": 10**7, "G": 1}],
            "cuda": [{"N": 10**7, "G": 1}, {"N": 10**8, "G": 1}],
            "sweep": [{"N": 10**k, "G": 1} for k in (4, 5, 6, 7)],
        },
        tiny={"N": 50, "G": 1},
        **FIELDS,
    )
)
register(
    Case(
        name="grouped",
        ours=lambda input, target, group: nearlinear.roc_auc_score(input, target, group=group, num_groups=10**5),
        definition=lambda input, target, group: reference.roc_auc_score(input, target, group=group),
        baselines={"eager": Baseline(grouped_eager)},
        sizes={"cpu": [{"N": 10**6, "G": 10**5}], "cuda": [{"N": 10**7, "G": 10**5}]},
        tiny={"N": 50, "G": 7},
        **FIELDS,
    )
)
