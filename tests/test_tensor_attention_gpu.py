"""The ops of tensor attention on a real GPU: values and gradients against the definition in float64, edges, the same bits twice."""

from __future__ import annotations

import pytest
import torch
from gpu_oracle import DEVICE, MARKS, seed  # noqa: F401  a fixture
from tensor_oracle import CAUSAL, NEAR, OPEN, QUADRATIC, check, inputs

pytestmark = MARKS
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ops = torch.ops.nearlinear
# (B, H, G, N, N1, N2, D, E): ends of tiles on every axis, groups, widths between powers of two
SHAPES = [
    (2, 4, 2, 130, 37, 129, 64, 64), (1, 2, 1, 65, 33, 70, 128, 128), (1, 3, 3, 40, 41, 43, 40, 16), (2, 2, 1, 1, 2, 1, 1, 3),
    (1, 2, 2, 0, 5, 6, 16, 16), (1, 2, 2, 5, 0, 6, 16, 16), (1, 2, 2, 5, 6, 0, 16, 16),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        shape = (*shape[:6], min(shape[6], 64), min(shape[7], 64))  # the most channels of float64
    biases = min(shape[4:6]) > 4
    check(inputs(dtype, shape, biases=biases, device=DEVICE), 1 / shape[6])
    check(inputs(dtype, shape, biases=biases, device=DEVICE), 1 / shape[6], coefficients=QUADRATIC)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [CAUSAL, NEAR, [40, 0, 2, 70]], ids=str)
def test_windows(window: list[int], dtype: torch.dtype) -> None:
    check(inputs(dtype, (2, 4, 1, 100, 100, 100, 32, 64), device=DEVICE), 0.1, window)
    check(inputs(dtype, (2, 4, 1, 100, 100, 100, 32, 64), biases=False, device=DEVICE), 0.1, window, QUADRATIC, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_have_the_same_bits(dtype: torch.dtype) -> None:
    tensors = inputs(dtype, (2, 4, 2, 200, 150, 170, 64, 64), device=DEVICE)
    runs = []
    for _ in range(2):
        out, lse = ops.trilinear_softmax(*tensors, 0.1, OPEN)
        runs.append((out, lse, *ops.trilinear_softmax_backward(out, lse, *tensors, out, lse, 0.1, OPEN, [True] * 7)))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_huge_logits_and_a_query_that_sees_nothing() -> None:
    query, *rest, bias1, bias2 = inputs(torch.float32, (1, 2, 1, 50, 40, 60, 32, 32), device=DEVICE)
    out, lse = ops.trilinear_softmax(query * 3e3, *rest, bias1, bias2, 1.0, OPEN)
    assert out.isfinite().all()
    assert lse.isfinite().all()
    out, lse = ops.trilinear_softmax(query, *rest, torch.full_like(bias1, -torch.inf), bias2, 1.0, OPEN)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_memory_is_that_of_the_inputs() -> None:
    """Forward: the outputs alone. Backward: gradients in float32, and 64 MiB of partial sums at most."""
    tensors = inputs(torch.bfloat16, (1, 8, 8, 512, 512, 512, 64, 64), biases=False, device=DEVICE)
    size = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, lse = ops.trilinear_softmax(*tensors, 0.1, OPEN)
    assert torch.cuda.max_memory_allocated() - before <= size
    ops.trilinear_softmax_backward(out, lse, *tensors, out, lse, 0.1, OPEN, [True] * 7)
    assert torch.cuda.max_memory_allocated() - before <= 6 * size + (1 << 27)
