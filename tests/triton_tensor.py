"""The Triton launchers of tensor attention on CPU tensors against the definition in float64. Collected by test_triton_interpreter.py, with
TRITON_INTERPRET set. A tile takes the interpreter milliseconds, so the shapes are the smallest with two tiles on the axis in question."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import triton.language as tl
from nearlinear.triton_kernels import tensor_attention, tensor_attention_backward
from tensor_oracle import CAUSAL, NEAR, QUADRATIC, check, close, inputs
from triton.runtime import interpreter
from triton_oracle import MARKS, poison  # noqa: F401  a fixture

pytestmark = MARKS
OPS = SimpleNamespace(**{
    name: getattr(module, name)
    for module, suffix in ((tensor_attention, ""), (tensor_attention_backward, "_backward"))
    for name in (f"trilinear_softmax{suffix}", f"trilinear_sums{suffix}")
})  # fmt: skip
SMALL = (1, 2, 1, 9, 6, 7, 20, 16)  # (B, H, G, N, N1, N2, D, E)
QUERIES, KEYS = (1, 2, 1, 37, 3, 5, 3, 20), (2, 2, 2, 3, 4, 37, 20, 3)  # two tiles of float32 and float64


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of Triton 3.6 keeps bfloat16 as the integers of its bits and multiplies these in a dot."""

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)

    dot = interpreter.InterpreterBuilder.create_dot
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [QUERIES, KEYS, (2, 4, 2, 5, 3, 4, 1, 1)], ids=str)
def test_tiles_and_groups(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(inputs(dtype, shape, biases=shape != KEYS), ops=OPS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(dtype: torch.dtype) -> None:
    check(inputs(dtype, SMALL), ops=OPS)
    check(inputs(dtype, SMALL), 0.1, CAUSAL, QUADRATIC, ops=OPS)


@pytest.mark.parametrize("window", [CAUSAL, NEAR, [2, -1, 0, 0], [0, 9, 30, 1]], ids=str)
def test_windows(window: list[int]) -> None:
    check(inputs(torch.float64, (1, 2, 1, 21, 21, 21, 4, 4), biases=window == CAUSAL), 0.3, window, ops=OPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights(dtype: torch.dtype) -> None:
    check(inputs(dtype, SMALL), 0.2, coefficients=[0.3, -1.0, 0.2, 0.5], ops=OPS)
    check(inputs(dtype, SMALL), 0.3, NEAR, coefficients=QUADRATIC, excess=True, ops=OPS)
    check(inputs(dtype, SMALL, biases=False), 0.3, coefficients=[], excess=True, ops=OPS)


def test_excess_keeps_its_digits_near_zero() -> None:
    """Against the series; e^x minus the polynomial would leave 1e-7 / 1e-9."""
    query = key = torch.full((1, 1, 1, 1), 0.1)
    one = torch.ones(1, 1, 1, 1)
    sums = OPS.trilinear_sums(query, key, key, one, one, None, None, 1.0, [-1] * 4, [1.0, 1.0, 0.5], True)
    torch.testing.assert_close(sums.double(), torch.full((1, 1, 1, 2), 1e-9 / 6, dtype=torch.float64), rtol=1e-3, atol=0)


def test_any_strides() -> None:
    query, key1, key2, value1, value2, _, _ = inputs(torch.float64, (2, 2, 1, 5, 4, 3, 3, 4), biases=False)
    tensors = (
        query.transpose(1, 2).contiguous().transpose(1, 2), key1.mT.contiguous().mT, key2.expand(2, 2, 3, 3), value1.repeat(1, 2, 1, 1),
        value2[:, :, :, :1].expand(2, 2, 3, 4), query[:, 0, :1, :1].expand(2, 2, 4), None,
    )  # fmt: skip
    check((*tensors[:1], tensors[1].expand(2, 2, 4, 3), *tensors[2:]), ops=OPS)


@pytest.mark.parametrize("shape", [(1, 1, 1, 0, 2, 2, 3, 3), (1, 2, 1, 2, 0, 2, 3, 3), (1, 2, 1, 2, 2, 0, 3, 3)], ids=str)
def test_no_queries_no_keys(shape: tuple[int, ...]) -> None:
    check(inputs(torch.float32, shape, biases=False), ops=OPS)
    check(inputs(torch.float32, shape, biases=False), coefficients=QUADRATIC, ops=OPS)


def test_a_query_that_sees_nothing() -> None:
    tensors = inputs(torch.float32, SMALL)
    bias1 = torch.full_like(tensors[5], -torch.inf)
    out, lse = OPS.trilinear_softmax(*tensors[:5], bias1, tensors[6], 0.3, [-1] * 4)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    up = (torch.ones_like(out), torch.ones_like(lse))
    for gradient in OPS.trilinear_softmax_backward(*up, *tensors[:5], bias1, tensors[6], out, lse, 0.3, [-1] * 4, [True] * 7):
        assert (gradient == 0).all()


def test_huge_logits() -> None:
    query, *rest = inputs(torch.float32, SMALL)
    out, lse = OPS.trilinear_softmax(query * 3e3, *rest, 1.0, [-1] * 4)
    assert out.isfinite().all()
    assert lse.isfinite().all()
    assert float(lse.max()) > 1e4


def test_float16_keeps_pairs_of_small_weight() -> None:
    """Row 0 of key1 leads by e^18 but has the value 0; the other pairs, below the smallest float16, make the output and the gradient of
    value2, which are large enough for float16 themselves."""
    query, key1, key2, value1, value2, _, _ = inputs(torch.float16, (1, 1, 1, 1, 30, 30, 1, 1), biases=False)
    bias1 = torch.full((1, 1, 30), -18.0).half()
    bias1[..., 0] = 0
    value1, value2 = torch.full_like(value1, 100), torch.full_like(value2, 100)
    value1[:, :, 0] = 0
    tensors = (torch.zeros_like(query), key1, key2, value1, value2, bias1, None)
    out, lse = OPS.trilinear_softmax(*tensors, 1.0, [-1] * 4)
    others = 29 * math.exp(-18)
    want = 1e4 * others / (1 + others)
    assert float(out) == pytest.approx(want, rel=2e-3)
    upstream = (torch.full_like(out, 1000), torch.zeros_like(lse))
    d_value2 = OPS.trilinear_softmax_backward(*upstream, *tensors, out, lse, 1.0, [-1] * 4, [True] * 7)[4]
    torch.testing.assert_close(d_value2.double(), torch.full_like(d_value2, want / 3, dtype=torch.float64), rtol=4e-3, atol=0)


def test_only_what_is_wanted_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(torch.float64, KEYS)
    out, lse = OPS.trilinear_softmax(*tensors, 0.3, [-1] * 4)
    arguments = (torch.randn_like(out), torch.randn_like(lse), *tensors, out, lse, 0.3, [-1] * 4)
    whole = OPS.trilinear_softmax_backward(*arguments, [True] * 7)
    monkeypatch.setattr(tensor_attention_backward, "PART_BYTES", 1)  # one row of key1 at a time
    for wants in ([True] + [False] * 6, [False, True, True, False, False, False, True]):
        for gradient, want, wanted in zip(OPS.trilinear_softmax_backward(*arguments, wants), whole, wants, strict=True):
            close(gradient, want if wanted else want.new_empty(0), 1e-15)


def test_messages() -> None:
    query, key1, key2, value1, value2, bias1, bias2 = inputs(torch.float32, SMALL)
    rest = (bias1, bias2, 0.3, [-1] * 4)
    with pytest.raises(RuntimeError, match=r"trilinear_softmax: key2 must have shape \(B, G, N2, D\)"):
        OPS.trilinear_softmax(query, key1, key2[..., :1], value1, value2, *rest)
    with pytest.raises(RuntimeError, match="trilinear_sums: on CUDA a polynomial has at most degree 8, got 9"):
        OPS.trilinear_sums(query, key1, key2, value1, value2, *rest, [1.0] * 10, False)
    with pytest.raises(RuntimeError, match=r"trilinear_softmax: on CUDA there may be at most 128 channels of torch\.float32, got 129"):
        OPS.trilinear_softmax(*inputs(torch.float32, (1, 1, 1, 1, 1, 1, 129, 1), biases=False), 0.3, [-1] * 4)
