"""Polynomial attention on a real GPU: the ops of moments, sums and scan, and all their gradients, against the definitions in float64."""

from __future__ import annotations

from math import comb
from typing import Any

import pytest
import torch
from gpu_oracle import DEVICE, MARKS, seed  # noqa: F401  a fixture
from nearlinear.reference import taylor_attention as reference
from nearlinear.triton_kernels import taylor_scan_backward
from taylor_oracle import TOLERANCE, close, differ, scan_inputs, tensors

pytestmark = MARKS
ops = torch.ops.nearlinear
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# D, E, degree: one channel, tails, one and several blocks of features, channels and columns
SHAPES = [(1, 1, 8), (3, 0, 3), (16, 16, 4), (40, 17, 2), (64, 64, 2), (130, 129, 1), (5, 3, 0)]
MOMENTS = (ops.taylor_moments, ops.taylor_moments_backward)
APPLY = (ops.taylor_apply, ops.taylor_apply_backward)
SCAN = (ops.taylor_scan, ops.taylor_scan_backward)
# the scan computes in float32 also for halves: only what becomes a half is rounded
SCAN_TOLERANCE = {**TOLERANCE, torch.float16: (2e-6, 6e-4), torch.bfloat16: (2e-6, 5e-3)}


@pytest.mark.parametrize("tokens", [1, 37, 300])
@pytest.mark.parametrize(("dim", "columns", "degree"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_and_sums(dim: int, columns: int, degree: int, tokens: int, dtype: torch.dtype) -> None:
    """Two query heads to a head of keys; a key without a part is NaN."""
    key, value, bias = tensors(dim, columns, tokens, 2, dtype, DEVICE)
    differ(MOMENTS, reference.taylor_moments, (key, value, bias), (degree,), TOLERANCE[dtype])
    query = tensors(dim, columns, tokens, 4, dtype, DEVICE)[0].nan_to_num(0.5)
    moments = torch.randn(1, 2, comb(dim + degree, degree), columns + 1, dtype=bias.dtype, device=DEVICE)
    differ(APPLY, reference.taylor_apply, (query, moments), (degree,), TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [1, 37, 1100])
@pytest.mark.parametrize(("dim", "columns", "degree"), [(1, 2, 4), (3, 0, 3), (16, 16, 2), (8, 130, 1), (5, 3, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scan(dim: int, columns: int, degree: int, tokens: int, dtype: torch.dtype) -> None:
    inputs, weight = scan_inputs(dim, columns, tokens, degree, dtype, DEVICE)
    differ(SCAN, reference.taylor_scan, inputs, (weight, degree), SCAN_TOLERANCE[dtype])


def test_scan_by_blocks_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taylor_scan_backward, "BUDGET", 0)
    inputs, weight = scan_inputs(8, 8, 70, 3, torch.float32, DEVICE)
    differ(SCAN, reference.taylor_scan, inputs, (weight, 3), SCAN_TOLERANCE[torch.float32])


@pytest.mark.parametrize("tokens", [50_000, 131_072])
def test_long_sums_keep_their_digits(tokens: int) -> None:
    """Of moments over all tokens: an error that grew with their number would show."""
    key, value, bias = tensors(4, 3, tokens, 1, torch.float32, DEVICE)
    want = reference.taylor_moments(key.double(), value.double(), bias.double(), 2)
    close(ops.taylor_moments(key, value, bias, 2), want, 1e-6)


def test_scan_of_a_prefix() -> None:
    """Later tokens change no bit of earlier sums."""
    inputs, weight = scan_inputs(16, 16, 1500, 2, torch.float32, DEVICE)
    sums = ops.taylor_scan(*inputs, weight, 2)
    for tokens in (10, 600):
        assert torch.equal(ops.taylor_scan(*(t[:, :, :tokens] for t in inputs), weight, 2), sums[:, :, :tokens])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_twice(dtype: torch.dtype) -> None:
    inputs, weight = scan_inputs(32, 32, 700, 2, dtype, DEVICE)
    query, key, value, bias = (inputs[i] for i in (0, 1, 3, 5))

    def everything() -> list[Any]:
        moments = ops.taylor_moments(key, value, bias, 2)
        sums = ops.taylor_apply(query, moments, 2)
        scanned = ops.taylor_scan(*inputs, weight, 2)
        back = ops.taylor_scan_backward(scanned, *inputs, weight, 2, [True] * 7)
        gradients = ops.taylor_moments_backward(moments, key, value, bias, 2, [True] * 3)
        return [moments, sums, scanned, *back, *gradients, *ops.taylor_apply_backward(sums, query, moments, 2, [True] * 2)]

    for first, second in zip(everything(), everything(), strict=True):
        assert torch.equal(first, second)


def test_any_strides() -> None:
    key = torch.randn(64, 90, 2, 1, device=DEVICE).permute(3, 2, 1, 0)  # [1, 2, 90, 64]
    value, bias = torch.randn(1, 2, 90, 80, device=DEVICE)[..., ::2], torch.randn(1, 1, 90, device=DEVICE).expand(1, 2, 90)
    differ(MOMENTS, reference.taylor_moments, (key, value, bias), (2,), TOLERANCE[torch.float32], torch.ones((), device=DEVICE))
    moments = torch.randn(1, 2, 1, 5, device=DEVICE).expand(1, 2, comb(66, 2), 5)
    differ(APPLY, reference.taylor_apply, (key.repeat(1, 2, 1, 1), moments), (2,), TOLERANCE[torch.float32], torch.ones((), device=DEVICE))


def test_autograd_reaches_every_input() -> None:
    """Through torch's dispatcher: the sums of attention by moments."""
    inputs = scan_inputs(6, 4, 40, 2, torch.float32, DEVICE)[0]
    leaves = [t.nan_to_num(0.5, neginf=-1.0).requires_grad_() for t in inputs]
    query, key1, key2, value1, value2, bias1, bias2 = leaves
    moments = ops.taylor_moments(key1, value1, bias1, 2) * ops.taylor_moments(key2, value2, bias2, 2)
    gradients = torch.autograd.grad(ops.taylor_apply(query, moments, 2).square().sum(), leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    query, key1, key2, value1, value2, bias1, bias2 = wide
    moments = reference.taylor_moments(key1, value1, bias1, 2) * reference.taylor_moments(key2, value2, bias2, 2)
    for got, want in zip(gradients, torch.autograd.grad(reference.taylor_apply(query, moments, 2).square().sum(), wide), strict=True):
        close(got, want, 1e-5)  # a square of sums of products of sums: some units more than one op
