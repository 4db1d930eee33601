"""Tensor attention where numbers leave the range: tiny and huge channels, channels of zeros, scales, biases far apart, cancellation."""

from __future__ import annotations

import math

import nearlinear
import pytest
import torch
from nearlinear.reference import tensor_attention as reference
from torch import Tensor

ops = torch.ops.nearlinear
NOWHERE = [-1, -1, -1, -1]


@pytest.mark.parametrize("sizes", [(1e-16, 1.2e9, 1.2e9), (1.2e9, 1e-16, 1.2e9), (1e-18, 1e12, 1e12), (1e-30, 1e30, 200.0)], ids=str)
def test_the_bound_of_logits_sees_small_numbers(sizes: tuple[float, float, float]) -> None:
    """Their cubes vanish in float32: a bound of 0 would leave rows without a shift."""
    torch.manual_seed(0)
    query, key1, key2 = (size * torch.rand(1, 1, 5, 3) for size in sizes)
    values = torch.randn(1, 1, 5, 2), torch.randn(1, 1, 5, 2)
    out, lse = ops.trilinear_softmax(query, key1, key2, *values, None, None, 1.0, NOWHERE)
    exact = reference.trilinear_softmax(*(t.double() for t in (query, key1, key2, *values)), None, None, 1.0, NOWHERE)
    torch.testing.assert_close(lse.double(), exact[1], rtol=1e-6, atol=1e-6)
    # a logit of size x is rounded by 1e-7 x, and so is its weight
    torch.testing.assert_close(out.double(), exact[0], rtol=0, atol=1e-5 * float(exact[1].max() + 1))


def sets(n: int, dim: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(n, dim) for _ in range(5)]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("degree", [2, 6])
@pytest.mark.filterwarnings("ignore::nearlinear.NearlinearWarning")
def test_a_channel_of_zeros_beside_large_ones(place: int, degree: int) -> None:
    """The others are made equally large, though their product is 0; the zeros have their gradient."""
    tensors = sets(20, 3)
    for t, tensor in enumerate(tensors[:3]):
        tensor[:, 0] *= 0 if t == place else 1e10
    leaves = [t.requires_grad_() for t in tensors]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    options = {"kernel": "taylor", "degree": degree, "scale": 1e-3}
    out, exact = (
        nearlinear.tensor_attention(*leaves, method="polynomial", **options),
        nearlinear.reference.tensor_attention.tensor_attention(*wide, **options),
    )
    # moments of degree 6 cancel in float32, their gradients by a digit more
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
    got, expected = torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(exact.sum(), wide)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("size", [1e-20, 1e12])
def test_the_scale_is_part_of_the_gauge(size: float) -> None:
    query, *rest = sets(24, 8)
    options = {"kernel": "taylor", "degree": 4, "method": "polynomial"}
    out = nearlinear.tensor_attention(query * size, *rest, scale=0.1 / size, **options)
    torch.testing.assert_close(out, nearlinear.tensor_attention(query, *rest, scale=0.1, **options), rtol=1e-5, atol=1e-5)


def far_apart(n: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    bias = torch.linspace(-60, 0, n)
    return [torch.ones(n, 1) for _ in range(5)], {"key1_padding_mask": bias, "key2_padding_mask": bias.clone()}


@pytest.mark.filterwarnings("ignore::nearlinear.NearlinearWarning")
def test_biases_far_apart_are_not_answered_with_zeros() -> None:
    """The first rows see only keys 120 below the last: e^-120 is no float32."""
    tensors, masks = far_apart(100)
    exact = nearlinear.tensor_attention(*tensors, **masks, is_causal=True, scale=0.01)
    torch.testing.assert_close(exact, torch.ones(100, 1))
    for options in ({"kernel": "taylor"}, {"kernel": "taylor", "method": "exact"}, {"method": "polynomial"}):
        out, lse = nearlinear.tensor_attention(*tensors, **masks, is_causal=True, scale=0.01, return_lse=True, **options)
        lost = out.isnan().squeeze(1)
        assert torch.equal(lost, lse.isnan())
        assert torch.equal(lost, 2 * masks["key1_padding_mask"] < -40)
        torch.testing.assert_close(out[~lost], exact[~lost])
    window = ((3, 0), (3, 2))
    out = nearlinear.tensor_attention(*tensors, **masks, window_size=window, kernel="taylor", scale=0.01)
    assert out.isnan().any()
    torch.testing.assert_close(out[~out.isnan()], torch.ones(int((~out.isnan()).sum())))


def test_biases_far_apart_are_not_certified() -> None:
    tensors, masks = far_apart(100)
    plan = nearlinear.tensor_attention_plan(*tensors, **masks, is_causal=True, scale=0.01, rtol=1e-3)
    assert plan.method == "exact"
    _, bound = nearlinear.tensor_attention(*tensors, **masks, is_causal=True, scale=0.01, method="polynomial", return_error_bound=True)
    assert bound[0] == torch.inf
    assert bound[-1] < 1e-3


def test_a_window_that_cancels_the_polynomial_is_told() -> None:
    one, value = torch.ones(1, 1), torch.full((1, 1), 3.0)
    near = {"method": "polynomial", "exact_window": ((0, 0), (0, 0))}
    assert nearlinear.tensor_attention(one, one, one, value, one, scale=-20.0, **near).isnan()
    torch.testing.assert_close(nearlinear.tensor_attention(one, one, one, value, one, scale=-2.0, **near), value)


def test_what_overflows_certifies_nothing() -> None:
    tensors = [torch.ones(2, 1) for _ in range(5)]
    out, bound = nearlinear.tensor_attention(*tensors, scale=1000.0, method="polynomial", return_error_bound=True)
    assert (bound == torch.inf).all()
    query, key = torch.full((2, 1), 1e18), torch.full((2, 1), 1e18)
    assert (nearlinear.tensor_attention_error_bound(query, [key, key], degree=6).tv_bound == torch.inf).all()
    assert out.isfinite().all()


def test_rounding_is_within_the_bound() -> None:
    """Logits near 0 and constant values: all that is left is rounding."""
    torch.manual_seed(0)
    query, key1, key2 = (1e-3 * torch.randn(2048, 64) for _ in range(3))
    value1, value2 = torch.full((2048, 1), math.pi), torch.full((2048, 1), math.e)
    out, bound = nearlinear.tensor_attention(query, key1, key2, value1, value2, method="polynomial", return_error_bound=True)
    assert ((out - value1[0] * value2[0]).abs().squeeze(1) <= bound).all()


def test_meta_tensors_are_never_read() -> None:
    tensors = [torch.empty(8, 4, device="meta") for _ in range(5)]
    for _ in range(9):
        assert nearlinear.tensor_attention(*tensors, method="polynomial").shape == (8, 4)


@pytest.mark.filterwarnings("ignore::nearlinear.NearlinearWarning")
def test_dynamic_channels_compile() -> None:
    compiled = torch.compile(nearlinear.tensor_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, dim in ((10, 4), (14, 4), (9, 6)):
        tensors = sets(n, dim)
        for options in ({"kernel": "taylor", "method": "polynomial"}, {"method": "polynomial"}, {"kernel": "taylor", "is_causal": True}):
            torch.testing.assert_close(compiled(*tensors, **options), nearlinear.tensor_attention(*tensors, **options))
