"""What triton_compile.py compiles of tensor attention: the launchers on meta tensors, and the names of the kernels that they launch."""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import Any

import torch
from nearlinear.triton_kernels import (
    taylor_attention,
    taylor_attention_backward,
    taylor_features,
    taylor_scan,
    taylor_scan_backward,
    tensor_attention,
    tensor_attention_backward,
)

MODULES = (
    taylor_attention, taylor_attention_backward, taylor_features, taylor_scan, taylor_scan_backward, tensor_attention,
    tensor_attention_backward,
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# (dtype, channels, weights): the tiles of every dtype with windows and biases, without them where it matters, other weights
TRILINEAR = (
    *((dtype, dim, "full") for dtype in DTYPES for dim in (64, 128)[: 1 if dtype == torch.float64 else 2]),
    (torch.bfloat16, 64, "plain"), (torch.bfloat16, 128, "plain"), (torch.bfloat16, 64, "excess"), (torch.float32, 64, "excess"),
)  # fmt: skip
# of polynomial attention: D, E and degree; every dtype at the largest tile of channels and columns, and more factors in the smallest
TAYLOR_SIZES = {"D64E64g2": (64, 64, 2), "D16E16g4": (16, 16, 4)}
TAYLOR_CASES = (*(("D64E64g2", dtype) for dtype in DTYPES), ("D16E16g4", torch.bfloat16))
TAYLOR_PARTS = ("moments", "apply", "d_key", "d_value", "d_query", "d_moments")


def call_trilinear(dtype: torch.dtype, dim: int, variant: str) -> None:
    """Forward, then backward: gradient of the queries, gradients of the keys; ``plain``: no windows, no biases."""

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    query, key, lse = tensor(1, 8, 512, dim), tensor(1, 2, 512, dim), tensor(1, 8, 512, dtype=wide)
    bias = None if variant == "plain" else tensor(1, 2, 512, dtype=wide)
    inputs = (query, key, key, key, key, bias, bias)
    options = (0.1, [-1] * 4 if variant == "plain" else [-1, 0, -1, 0])
    if variant == "excess":
        options = (*options, [1.0, 1.0, 0.5], True)
        tensor_attention.trilinear_sums(*inputs, *options)
        tensor_attention_backward.trilinear_sums_backward(tensor(1, 8, 512, dim + 1, dtype=wide), *inputs, *options, [True] * 7)
    else:
        tensor_attention.trilinear_softmax(*inputs, *options)
        tensor_attention_backward.trilinear_softmax_backward(query, lse, *inputs, query, lse, *options, [True] * 7)


def call_taylor(dim: int, columns: int, degree: int, dtype: torch.dtype) -> Iterator[str]:
    """Every launcher with biases, on meta tensors; the names of the launches, in their order."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    key, value, bias = tensor(2, 4, 4096, dim), tensor(2, 4, 4096, columns), tensor(2, 4, 4096, dtype=wide)
    moments = taylor_attention.taylor_moments(key, value, bias, degree)
    query, sums = tensor(2, 8, 4096, dim), tensor(2, 8, 4096, columns + 1, dtype=wide)
    taylor_attention.taylor_apply(query, moments, degree)
    taylor_attention_backward.taylor_moments_backward(moments, key, value, bias, degree, [True, True, True])
    taylor_attention_backward.taylor_apply_backward(sums, query, moments, degree, [True, True])
    ranges = 1 if dtype in (torch.float32, torch.float64) else 2
    for part in TAYLOR_PARTS:
        yield from ("table", *(part + suffix for suffix in ("", " high")[:ranges]))


def call_taylor_scan(dim: int, columns: int, degree: int, dtype: torch.dtype) -> Iterator[str]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    key, value, bias = tensor(1, 1, 32, dim), tensor(1, 1, 32, columns), tensor(1, 1, 32, dtype=wide)
    weight = tensor(comb(dim + degree, degree), dtype=wide)
    inputs = (tensor(1, 2, 32, dim), key, key, value, value, bias, bias, weight, degree)
    taylor_scan.taylor_scan(*inputs)
    taylor_scan_backward.taylor_scan_backward(tensor(1, 2, 32, columns + 1, dtype=wide), *inputs, [True] * 7)
    yield from ("table", "q", "k", "k", "scan")
    yield from ("table", "k", "k", "states", "q", "k", "k", "backward", "fold", "fold_key", "fold_key")


def attention_kernels(kernels: list[Any]) -> Iterator[tuple[str, Any]]:
    """(key, kernel) of everything; the launchers append what they would launch to ``kernels``."""
    for dtype, dim, variant in TRILINEAR:
        call_trilinear(dtype, dim, variant)
        for part, kernel in zip(("forward", "d_query", "d_keys"), kernels, strict=True):
            yield f"trilinear_{part} {str(dtype).removeprefix('torch.')} D{dim} {variant}", kernel
        kernels.clear()
    for call_family in (call_taylor, call_taylor_scan):
        for size, dtype in TAYLOR_CASES:
            parts = [*call_family(*TAYLOR_SIZES[size], dtype)]
            for part, kernel in dict(zip(parts, kernels, strict=True)).items():
                if part != "table" or call_family is call_taylor:
                    yield f"taylor {part} {str(dtype).removeprefix('torch.')} {size}", kernel
            kernels.clear()
