"""All-pairs AUC losses. Where the pairs fit the rivals build them, as users and LibAUC do. Beyond that, the torch lines that avoid them on
sorted scores: they take the time of ``torch.sort`` at least, which is timed alone too, the yardstick of a loss that does not sort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import nearlinear
import torch
from nearlinear.pair_kernels import logistic_coefficients
from nearlinear.reference import pairwise_auc as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register

TERMS = 10  # of the exponentials of the sorted rival: 5e-9 off


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(-x, torch.zeros_like(x))


def squared_hinge(x: Tensor) -> Tensor:
    return torch.relu(1 - x) ** 2


def scored(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Scores and labels, of which three in ten are positive, and the first two are of both kinds."""
    n = sizes["N"]
    target = torch.rand(n, device=device) < 0.3
    target[0], target[1] = True, False
    return (torch.randn(n, device=device, dtype=dtype) + 0.5 * target).requires_grad_(), target


def grouped(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return *scored(sizes, dtype, device), torch.randint(sizes["G"], (sizes["N"],), device=device)


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Scores, labels (a byte) and ids are read, gradients written."""
    read = sizes["N"] * (itemsize + 1 + (8 if "G" in sizes else 0))
    return {"fwd": read, "full": read + sizes["N"] * itemsize}


def moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Of the bins: scores for their range, scores and labels for the moments and once more for the slopes, which are written, read and
    written with the upstream."""
    n = sizes["N"]
    return {"fwd": n * (2 * itemsize + 1), "full": n * (6 * itemsize + 2)}


def moved_by_a_sort(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Records of a key and a position: written, read twice and written in each pass of 8 bits, read by the merges of either direction."""
    records = sizes["N"] * 2 * itemsize * (2 + 3 * itemsize)
    return {which: 2 * read + records for which, read in floor(sizes, itemsize).items()}


def eager(surrogate: Callable[[Tensor], Tensor], input: Tensor, target: Tensor) -> Tensor:
    """Every pair, those of equal labels masked: shapes that ``torch.compile`` knows."""
    pair = target.unsqueeze(1) & ~target
    return torch.where(pair, surrogate(input.unsqueeze(1) - input), 0).sum() / pair.sum()


def libauc(surrogate: Callable[[Tensor], Tensor], input: Tensor, target: Tensor) -> Tensor:
    """As LibAUC has it: the pairs of a positive and a negative alone."""
    positive, negative = input[target], input[~target]
    return surrogate(positive.unsqueeze(1) - negative).mean()


def sorted_logistic(input: Tensor, target: Tensor) -> Tensor:
    """softplus(-x) = relu(-x) + sum c_k e^(-k |x|): running sums of exponentials over sorted negatives, from below and from above."""
    s = input.double()
    positive, negative = s[target], s[~target].sort()[0]
    below = torch.searchsorted(negative, positive)
    some, all_but = below > 0, below < len(negative)
    total = _linear_part(positive, negative, below)
    for k, factor in enumerate(logistic_coefficients(0, TERMS), start=1):
        up = (k * negative).logcumsumexp(0)[below[some] - 1] - k * positive[some]
        down = (-k * negative).flip(0).logcumsumexp(0).flip(0)[below[all_but]] + k * positive[all_but]
        total = total + factor * (up.exp().sum() + down.exp().sum())
    return total / (len(positive) * len(negative))


def _linear_part(positive: Tensor, negative: Tensor, below: Tensor) -> Tensor:
    """Sum of relu(-x)."""
    above = torch.nn.functional.pad(negative.flip(0).cumsum(0).flip(0), (0, 1))
    return (above[below] - (len(negative) - below) * positive).sum()


def sorted_squared_hinge(input: Tensor, target: Tensor) -> Tensor:
    """Rust and Hocking 2023: running sums of the powers of sorted positives, here centred and in float64."""
    s = input.double() - input.detach().double().mean()
    positive, end = s[target].sort()[0], s[~target] + 1
    below = torch.searchsorted(positive, end)
    first, second = (torch.nn.functional.pad((positive**power).cumsum(0), (1, 0))[below] for power in (1, 2))
    return (below * end**2 - 2 * end * first + second).sum() / (len(positive) * len(end))


def padded(input: Tensor, target: Tensor, group: Tensor) -> Tensor:
    """Pairs of every group beside each other, [G, L, L] with the longest group's L; mean over the groups that have a pair."""
    order = group.sort(stable=True)[1]
    ids, place = group[order], torch.arange(len(group), device=group.device)
    row = place - torch.searchsorted(ids, ids)
    shape = (int(ids[-1]) + 1, int(row.max()) + 1)
    scores = torch.zeros(shape, dtype=input.dtype, device=input.device).index_put((ids, row), input[order])
    label = torch.full(shape, -1, device=input.device).index_put((ids, row), target[order].long())
    pair = (label.unsqueeze(2) == 1) & (label.unsqueeze(1) == 0)
    loss = torch.where(pair, softplus(scores.unsqueeze(2) - scores.unsqueeze(1)), 0).sum((1, 2))
    count = pair.sum((1, 2))
    return (loss / count.clamp(min=1)).sum() / (count > 0).sum()


FIELDS: dict[str, Any] = {
    "family": "pairwise_auc", "op": "pairwise_auc_loss", "bytes": floor, "dtypes": (torch.float32,), "error_rows": {"N": 2000, "G": 50},
}  # fmt: skip


def add(
    name: str, surrogate: str, moves: Any, baselines: Mapping[str, Baseline], sizes: Mapping[str, Sequence[Sizes]],
    yardsticks: Mapping[str, Callable[..., object]] | None = None,
) -> None:  # fmt: skip
    register(
        Case(
            name=name,
            ours=partial(nearlinear.pairwise_auc_loss, surrogate=surrogate),
            definition=partial(reference.pairwise_auc_loss, surrogate=surrogate),
            baselines=baselines,
            inputs=scored,
            moved=moves,
            sizes=sizes,
            tiny={"N": 50},
            yardsticks=yardsticks or {},
            **FIELDS,
        )
    )


def sizes_of(*powers: int) -> list[Sizes]:
    return [{"N": 10**power} for power in powers]


for name, surrogate, formula, by_sort, moves in (
    ("logistic", "logistic", softplus, sorted_logistic, moved),
    ("squared hinge", "squared_hinge", squared_hinge, sorted_squared_hinge, moved_by_a_sort),
):
    pairs = partial(eager, formula)
    all_pairs = {"eager": Baseline(pairs), "compiled": compiled(pairs), "LibAUC": Baseline(partial(libauc, formula))}
    few: list[Sizes] = [{"N": 2000}, {"N": 10**4}, {"N": 2 * 10**4}]
    add(name, surrogate, moves, all_pairs, {"cpu": few[1:], "cuda": few[1:], "sweep": few})
    bare = {"torch.sort": lambda input, target: input.sort()}
    many = {"cpu": sizes_of(6, 7), "cuda": sizes_of(7, 8), "sweep": sizes_of(4, 5, 6, 7)}
    add(f"{name}, many samples", surrogate, moves, {"sort": Baseline(by_sort)}, many, bare)

register(
    Case(
        name="grouped logistic",
        ours=lambda input, target, group: nearlinear.pairwise_auc_loss(input, target, group=group, num_groups=10**5),
        definition=lambda input, target, group: reference.pairwise_auc_loss(input, target, group=group),
        baselines={"eager": Baseline(padded)},
        inputs=grouped,
        moved=moved_by_a_sort,
        sizes={"cpu": [{"N": 10**6, "G": 10**5}], "cuda": [{"N": 10**7, "G": 10**5}]},
        tiny={"N": 50, "G": 7},
        **FIELDS,
    )
)
