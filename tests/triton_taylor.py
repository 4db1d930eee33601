"""The launchers of polynomial attention on CPU tensors against the definitions in float64, with fresh memory poisoned. Collected by
test_triton_interpreter.py, with TRITON_INTERPRET set. A token of the interpreter costs milliseconds: sizes are the smallest that have two
tiles, chunks, runs and splits, and the constants of the launchers are lowered for that."""

from __future__ import annotations

from math import comb

import pytest
import torch
from nearlinear.reference import taylor_attention as reference
from nearlinear.triton_kernels import taylor_attention, taylor_attention_backward, taylor_features, taylor_scan, taylor_scan_backward
from taylor_oracle import TOLERANCE as GPU_TOLERANCE
from taylor_oracle import close, differ, scan_inputs, tensors
from torch import Tensor
from triton.runtime import interpreter
from triton_oracle import MARKS, poison  # noqa: F401  a fixture

pytestmark = MARKS
FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
# the interpreter truncates to bfloat16 where a GPU rounds, twice the error, and has float32 for tf32
TOLERANCE = {**GPU_TOLERANCE, torch.float16: (2e-6, 6e-4), torch.bfloat16: (1.6e-2, 3.2e-2)}
# the scan computes in float32 also for halves: only what becomes a half is rounded
SCAN_TOLERANCE = {**GPU_TOLERANCE, torch.float16: (2e-6, 6e-4), torch.bfloat16: (2e-6, 9e-3)}


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of Triton 3.6 multiplies the bits of bfloat16 as integers; here it multiplies the numbers."""
    dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *options):  # type: ignore[no-untyped-def]
        wide = [
            interpreter.TensorHandle((x.data.astype("uint32") << 16).view("float32"), interpreter.tl.float32)
            if x.dtype.scalar == interpreter.tl.bfloat16
            else x
            for x in (a, b)
        ]
        return dot(self, *wide, d, *options)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 24 tokens, and one block of features at a time backward."""
    for module in (taylor_scan, taylor_scan_backward):
        monkeypatch.setattr(module, "CHUNK", 24)
        monkeypatch.setattr(module, "BUDGET", 0 if module is taylor_scan_backward else 2**28)


@pytest.mark.parametrize(("dim", "degree"), [(1, 8), (3, 4), (16, 3), (60, 2), (7, 0), (5, 1)])
def test_table(dim: int, degree: int) -> None:
    """Against the order in which the definition makes the features: distinct primes have distinct products of few factors."""
    table = taylor_features.channel_table(torch.zeros(1, dim), degree)
    u = torch.cat([torch.randn(dim, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
    want = reference.taylor_features(u[:-1], degree)
    assert table.shape == (degree, comb(dim + degree, degree))
    torch.testing.assert_close(u[table.long()].prod(0) if degree else torch.ones(1, dtype=torch.float64), want, rtol=1e-14, atol=0)


SHAPES = [(1, 1, 4), (3, 0, 3), (3, 17, 1), (16, 3, 2), (2, 2, 0)]  # D, E, degree


@pytest.mark.parametrize(("dim", "columns", "degree"), SHAPES)
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_moments_and_sums(dim: int, columns: int, degree: int, dtype: torch.dtype) -> None:
    """Values and all gradients; two query heads to a head of keys, a key without a part that is NaN."""
    tokens = {torch.float32: 19, torch.float64: 9}.get(dtype, 5)
    key, value, bias = tensors(dim, columns, tokens, 2, dtype)
    differ(
        (taylor_attention.taylor_moments, taylor_attention_backward.taylor_moments_backward),
        reference.taylor_moments, (key, value, bias), (degree,), TOLERANCE[dtype],
    )  # fmt: skip
    query = tensors(dim, columns, tokens, 4, dtype)[0].nan_to_num(0.5)
    moments = torch.randn(1, 2, comb(dim + degree, degree), columns + 1, dtype=bias.dtype)
    differ(
        (taylor_attention.taylor_apply, taylor_attention_backward.taylor_apply_backward),
        reference.taylor_apply, (query, moments), (degree,), TOLERANCE[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("wide", [False, True])
def test_several_tiles_and_splits(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tokens, features and columns; and sums over tokens in chunks, as many programs as there are."""
    monkeypatch.setattr(taylor_attention, "CHUNK", taylor_attention.tl.constexpr(32))
    monkeypatch.setattr(taylor_attention, "split", lambda blocks, programs, least: (2, -(-blocks // 2)))
    monkeypatch.setattr(taylor_attention_backward, "split", lambda blocks, programs, least: (2, -(-blocks // 2)))
    dim, columns, tokens, degree = (70, 66, 5, 1) if wide else (7, 2, 40, 2)
    key, value, bias = tensors(dim, columns, tokens, 1, torch.float32)
    moments = torch.randn(1, 1, comb(dim + degree, degree), columns + 1)
    differ(
        (taylor_attention.taylor_moments, taylor_attention_backward.taylor_moments_backward),
        reference.taylor_moments, (key, value, bias), (degree,), TOLERANCE[torch.float32],
    )  # fmt: skip
    differ(
        (taylor_attention.taylor_apply, taylor_attention_backward.taylor_apply_backward),
        reference.taylor_apply, (key.nan_to_num(0.5), moments), (degree,), TOLERANCE[torch.float32],
    )  # fmt: skip


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("dim", "columns", "degree", "tokens"), [(1, 2, 4, 42), (3, 3, 3, 17), (16, 1, 1, 9), (2, 0, 0, 3), (2, 33, 1, 1)])
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_scan(dim: int, columns: int, degree: int, tokens: int, dtype: torch.dtype) -> None:
    """Values and all gradients, over chunks, runs and blocks of features."""
    tokens = min(tokens, {torch.float32: tokens, torch.float64: 17}.get(dtype, 6))  # chunks in one dtype, runs in two
    inputs, weight = scan_inputs(dim, columns, tokens, degree, dtype)
    launchers = (taylor_scan.taylor_scan, taylor_scan_backward.taylor_scan_backward)
    differ(launchers, reference.taylor_scan, inputs, (weight, degree), SCAN_TOLERANCE[dtype])


@pytest.mark.usefixtures("small")
def test_scan_of_a_prefix() -> None:
    """Later tokens change no bit of earlier sums, in a chunk or after it."""
    inputs, weight = scan_inputs(2, 3, 30, 2, torch.float32)
    sums = taylor_scan.taylor_scan(*inputs, weight, 2)
    for tokens in (10, 26):
        assert torch.equal(taylor_scan.taylor_scan(*(t[:, :, :tokens] for t in inputs), weight, 2), sums[:, :, :tokens])


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens: int) -> None:
    inputs, weight = scan_inputs(2, 3, tokens, 2, torch.float32)
    launchers = (taylor_scan.taylor_scan, taylor_scan_backward.taylor_scan_backward)
    differ(launchers, reference.taylor_scan, inputs, (weight, 2), TOLERANCE[torch.float32])
    key, value, bias = inputs[1], inputs[3], inputs[5]
    moments = taylor_attention.taylor_moments(key, value, bias, 2)
    close(moments, reference.taylor_moments(key.double(), value.double(), bias.double(), 2), 1e-6)
    assert taylor_attention.taylor_apply(inputs[0], moments, 2).shape == (1, 4, tokens, 4)
    d_key, d_value, d_bias = taylor_attention_backward.taylor_moments_backward(moments, key, value, bias, 2, [True] * 3)
    assert (d_key.shape, d_value.shape, d_bias.shape) == (key.shape, value.shape, bias.shape)


def test_no_part() -> None:
    """All keys without a part, NaN all through: moments and every gradient are 0, and nothing is NaN."""
    key, value = torch.full((1, 1, 5, 3), torch.nan), torch.full((1, 1, 5, 2), torch.nan)
    bias = torch.full((1, 1, 5), -torch.inf)
    moments = taylor_attention.taylor_moments(key, value, bias, 2)
    assert (moments == 0).all()
    for gradient in taylor_attention_backward.taylor_moments_backward(torch.ones_like(moments), key, value, bias, 2, [True] * 3):
        assert (gradient == 0).all()


def test_any_strides() -> None:
    """Of inputs and upstream gradients: transposed, every second, one element for all."""
    key = torch.randn(3, 9, 2, 1).permute(3, 2, 1, 0)  # [1, 2, 9, 3]
    value, bias = torch.randn(1, 2, 9, 8)[..., ::2], torch.randn(1, 1, 9).expand(1, 2, 9)
    ops = (taylor_attention.taylor_moments, taylor_attention_backward.taylor_moments_backward)
    differ(ops, reference.taylor_moments, (key, value, bias), (2,), TOLERANCE[torch.float32], torch.ones(()))
    query, moments = key.repeat(1, 2, 1, 1).transpose(2, 3).contiguous().transpose(2, 3), torch.randn(1, 2, 1, 5).expand(1, 2, 10, 5)
    ops = (taylor_attention.taylor_apply, taylor_attention_backward.taylor_apply_backward)
    differ(ops, reference.taylor_apply, (query, moments), (2,), TOLERANCE[torch.float32], torch.ones(()))


def test_only_what_is_wanted() -> None:
    key, value, bias = tensors(3, 2, 5, 1, torch.float32)
    moments = taylor_attention.taylor_moments(key, value, bias, 1)
    every = taylor_attention_backward.taylor_moments_backward(moments, key, value, bias, 1, [True] * 3)
    for i in range(3):
        some = taylor_attention_backward.taylor_moments_backward(moments, key, value, bias, 1, [j == i for j in range(3)])
        assert [t.numel() > 0 for t in some] == [j == i for j in range(3)]
        assert torch.equal(some[i], every[i])


def test_errors() -> None:
    key, value, bias = tensors(3, 2, 5, 2, torch.float32)
    moments = torch.zeros(1, 2, 10, 3)
    calls = {
        taylor_attention.taylor_moments: [key, value, bias, 2],
        taylor_attention.taylor_apply: [key, moments, 2],
        taylor_scan.taylor_scan: [key, key, key, value, value, None, None, torch.zeros(10), 2],
    }
    wrong: list[tuple[str, int, Tensor | int, str]] = [
        ("taylor_moments", 0, key[0], "key must have shape"), ("taylor_moments", 1, value[:, :1], "value must have shape"),
        ("taylor_moments", 1, value.double(), "value must be torch.float32, got torch.float64"),
        ("taylor_moments", 2, bias[..., 1:], "bias must have shape"), ("taylor_moments", 3, -1, "degree must be >= 0, got -1"),
        ("taylor_apply", 0, key[0], "query must have shape"), ("taylor_apply", 1, moments[:, :, 1:], "moments must have shape"),
        ("taylor_apply", 1, moments.expand(3, 2, 10, 3), "moments must have shape"),
        ("taylor_scan", 0, key[:, :1], "the heads of key1 must divide those of query, 1, got 2"),
        ("taylor_scan", 2, key[:, :, 1:], "key2 must have shape"), ("taylor_scan", 4, value[..., 1:], "value2 must have shape"),
        ("taylor_scan", 5, bias[:, 1:], "bias1 must have shape"), ("taylor_scan", 7, torch.zeros(9), "weight must have shape"),
    ]  # fmt: skip
    for launcher, arguments in calls.items():
        for name, place, value_, text in wrong:
            if name == launcher.__name__:
                with pytest.raises(RuntimeError, match=f"{name}: {text}"):
                    launcher(*arguments[:place], value_, *arguments[place + 1 :])
