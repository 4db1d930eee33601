"""Polynomial attention over pairs of keys: moments of monomials, linear in the length. The rivals compute the same weights, 1 + x +
x^2 / 2 for degree 2: pair by pair while N^3 of them fit, and by the same moments in plain torch. How the time grows: ``--sizes sweep``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import nearlinear
import torch
from nearlinear.reference import taylor_attention as features
from nearlinear.reference import tensor_attention as reference
from nearlinear.taylor_features import feature_count, feature_weights, taylor_coefficients
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register
from .tensor_attention import floor, normalised, squared

CHUNK = 512  # tokens whose running moments plain torch holds at a time


# ---- rivals


def dense(degree: int, query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    """All logits, [B, H, N, N, N]."""
    x = torch.einsum("bhic,bhjc,bhkc->bhijk", query / query.shape[-1], key1, key2)
    weights = sum(x**m / math.factorial(m) for m in range(1, degree + 1)) + 1
    return torch.einsum("bhijk,bhje,bhke->bhie", weights / weights.sum((3, 4), keepdim=True), value1, value2)


def weighted(query: Tensor, degree: int) -> Tensor:
    """Features of the queries, [B, H, N, R], times the weights that make the powers."""
    weights = feature_weights(query.shape[-1], taylor_coefficients(degree), 1 / query.shape[-1], query)
    return features.taylor_features(query, degree) * weights


def divided(sums: Tensor) -> Tensor:
    return sums[..., :-1] / sums[..., -1:]


def by_moments(degree: int, query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    """Three products with features that are stored, [B, H, N, R] each."""
    one, two = (
        features.taylor_features(key, degree).transpose(2, 3) @ features.with_one(value) for key, value in ((key1, value1), (key2, value2))
    )
    return divided(weighted(query, degree) @ (one * two))


def by_running_moments(degree: int, query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    """Causal: prefix sums of moments, [B, H, chunk, R, D + 1] at a time."""
    states = [query.new_zeros(()), query.new_zeros(())]
    found = []
    for q, a, b, v, w in zip(*(t.split(CHUNK, 2) for t in (query, key1, key2, value1, value2)), strict=True):
        running = []
        for t, (key, value) in enumerate(((a, v), (b, w))):
            terms = features.taylor_features(key, degree).unsqueeze(4) * features.with_one(value).unsqueeze(3)
            running.append(terms.cumsum(2) + states[t])
            states[t] = running[t][:, :, -1:]
        found.append(torch.einsum("bhir,bhire,bhire->bhie", weighted(q, degree), *running))
    return divided(torch.cat(found, 2))


# ---- cases


def moved(degree: int) -> Callable[[Sizes, int], Mapping[str, int]]:
    """Beside the inputs the moments of either key set and their product: written and read, and so are their gradients."""

    def count(sizes: Sizes, itemsize: int) -> dict[str, int]:
        moments = 4 * sizes["B"] * sizes["H"] * feature_count(sizes["D"], degree) * (sizes["D"] + 1)
        least = floor(sizes, itemsize)
        return {"fwd": least["fwd"] + 6 * moments, "full": least["full"] + 18 * moments}

    return count


def add(name: str, degree: int, baselines: Mapping[str, Baseline], *, is_causal: bool = False, **fields: Any) -> None:
    def flops(sizes: Sizes) -> dict[str, int]:
        """Three products of features with D + 1 columns forward, six backward."""
        product = 2 * sizes["B"] * sizes["H"] * sizes["N"] * feature_count(sizes["D"], degree) * (sizes["D"] + 1)
        return {"fwd": 3 * product, "full": 9 * product}

    options: dict[str, Any] = {"kernel": "taylor", "degree": degree, "is_causal": is_causal}
    register(
        Case(
            family="taylor_attention",
            op="taylor_attention",
            name=name,
            ours=squared(partial(nearlinear.tensor_attention, method="polynomial", **options)),
            definition=squared(partial(reference.tensor_attention, **options)),
            baselines=baselines,
            inputs=normalised,
            bytes=floor,
            moved=moved(degree),
            flops=flops,
            tiny={"B": 2, "H": 2, "N": 7, "D": 5},
            error_rows={"N": 64, "H": 2},
            **fields,
        )
    )


def sizes_of(dim: int, *lengths: int, heads: int = 1) -> list[Sizes]:
    return [{"B": 1, "H": heads, "N": n, "D": dim} for n in lengths]


def pair_by_pair(degree: int) -> Baseline:
    """Ours too: the same weights by the kernel that visits every pair."""
    return Baseline(squared(partial(nearlinear.tensor_attention, kernel="taylor", degree=degree, method="exact")))


plain = squared(partial(by_moments, 2))
add(
    "degree 2", 2,
    {"eager": Baseline(squared(partial(dense, 2))), "moments in torch": Baseline(plain), "pair by pair": pair_by_pair(2)},
    sizes={
        "cpu": [*sizes_of(32, 256, 512), *sizes_of(64, 256, 512)], "cuda": sizes_of(64, 512, heads=8),
        "sweep": sizes_of(32, 32, 64, 128, 256, 512),
    },
)  # fmt: skip
LONG = [2**k for k in range(8, 18)]
add(
    "degree 2, long", 2, {"moments in torch": Baseline(plain), "compiled": compiled(plain)},
    sizes={
        "cpu": [*sizes_of(32, 2048, 16384), *sizes_of(64, 16384)], "cuda": sizes_of(64, 2048, 16384, heads=8),
        "sweep": sizes_of(32, *LONG),
    },
)  # fmt: skip
add(
    "degree 4", 4, {"moments in torch": Baseline(squared(partial(by_moments, 4))), "pair by pair": pair_by_pair(4)},
    sizes={"cpu": [*sizes_of(16, 512), *sizes_of(32, 512)], "cuda": sizes_of(16, 2048, heads=8)},
)  # fmt: skip
add(
    "degree 4, long", 4, {"moments in torch": Baseline(squared(partial(by_moments, 4)))},
    sizes={"cpu": sizes_of(16, 16384), "cuda": sizes_of(16, 16384, heads=8), "sweep": sizes_of(16, *LONG[:7])},
)  # fmt: skip
add(
    "degree 2, causal", 2, {"running moments in torch": Baseline(squared(partial(by_running_moments, 2)))}, is_causal=True,
    sizes={"cpu": sizes_of(32, 1024), "cuda": sizes_of(64, 2048, heads=8)},
)  # fmt: skip
add(
    "degree 2, causal, long", 2, {}, is_causal=True,
    sizes={"cpu": sizes_of(32, 16384), "cuda": sizes_of(64, 16384, heads=8), "sweep": sizes_of(32, *LONG)},
)  # fmt: skip
