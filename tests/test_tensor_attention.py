"""Attention over pairs of keys, the public function: the battery, SDPA on all pairs as a second opinion, options."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import comb
from typing import Any, ClassVar

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from battery import Battery
from hypothesis import given, settings
from hypothesis import strategies as st
from measure import Case, Draw, Inputs, evaluate, same, to, unbiased, within_budget
from nearlinear import tensor_attention_paths
from nearlinear.reference import tensor_attention as reference
from torch import Tensor

ops = torch.ops.nearlinear
FIVE = ("query", "key1", "key2", "value1", "value2")


@pytest.fixture(autouse=True)
def _no_warning_is_due() -> Iterator[None]:
    """The certificate is looked at in calls 1, 2, 4, ...: here in none, whatever ran before."""
    calls = tensor_attention_paths._calls
    tensor_attention_paths._calls = itertools.count(3, 2)
    yield
    tensor_attention_paths._calls = calls


def sets(heads: int = 2, groups: int = 2, keys: int | None = None, dim: int = 3, width: int = 2, size: float = 1.0) -> Any:
    """``keys`` of key1, two fewer of key2; None: as many as queries."""

    def make(draw: Draw, rows: int) -> Inputs:
        one, two = (rows, rows) if keys is None else (keys, keys - 2)
        shapes = ((heads, rows, dim), (groups, one, dim), (groups, two, dim), (groups, one, width), (groups, two, width))
        return {name: draw.normal(2, *shape) * size for name, shape in zip(FIVE, shapes, strict=True)}

    return make


def masked(draw: Draw, rows: int) -> Inputs:
    made = sets(heads=4, keys=5, dim=2, width=1)(draw, rows)
    return {**made, "key1_padding_mask": draw.normal(2, 2, 5), "key2_padding_mask": draw.labels(3, 2, 3) == 0}


def case(name: str, make: Any, reason: str, differentiable: tuple[str, ...] = ("query", "key1", "value2"), **fields: Any) -> Case:
    return Case(name, make, reason, native=FIVE, differentiable=differentiable, **fields)


CASES = (
    case("plain", sets(keys=7), "other lengths of keys", rows=3),
    case(
        "masked", masked, "a float and a bool mask, shared keys", ("key2", "key1_padding_mask"), rows=3,
        options={"enable_gqa": True}, checked=True,
    ),
    case("causal", sets(), "the first query sees one pair", rows=4, options={"is_causal": True}),
    case("window", sets(dim=17, width=5), "ends inside and outside", rows=11, options={"window_size": ((2, 1), (3, -1))}),
    case("taylor", sets(keys=7), "moments", rows=3, options={"kernel": "taylor", "method": "polynomial", "degree": 4}),
    case(
        "taylor_masked", masked, "weights of keys in their moments", ("key1", "key1_padding_mask"), rows=3,
        options={"kernel": "taylor", "method": "polynomial", "enable_gqa": True}, checked=True,
    ),
    case(
        "taylor_causal", sets(heads=1, groups=1), "a scan", ("query", "value1"), rows=3,
        options={"kernel": "taylor", "method": "polynomial", "is_causal": True}, checked=True,
    ),
    case("dense", sets(keys=7, dim=17), "a polynomial over all pairs", rows=5, options={"kernel": [1.0, 0.5, 0.25], "method": "exact"}),
    case(
        "hybrid", sets(width=5), "pairs nearby exactly", rows=11,
        options={"method": "polynomial", "exact_window": ((2, 2), (1, 0))},
    ),
)  # fmt: skip


class TestTensorAttention(Battery):
    function = staticmethod(nearlinear.tensor_attention)
    definition = staticmethod(reference.tensor_attention)
    cases = CASES
    rowwise: ClassVar[dict[str, Any]] = {}
    casts_under_autocast = True
    few_terms = True
    common_roundings = 8  # a head's gradients share its moments
    compiled: ClassVar[dict[str, str]] = {
        "plain": "inductor", "masked": "aot_eager", "causal": "aot_eager", "taylor": "aot_eager", "taylor_causal": "aot_eager",
    }  # fmt: skip
    test_reductions_follow_from_rows = None  # there are none
    test_modules = None  # below: a Module with projections

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
    def test_error_budget(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        """The output has the dtype of the query, here and there: it is rounded once."""
        inputs = case.inputs(dtype, device)
        value, gradients = self.ours(case, inputs)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        value, gradients = self.ours(case, inputs, upstream.to(device))
        oracle, oracle_gradients = evaluate(
            self.definition, to(inputs, torch.float64), self.options(case), case.differentiable, upstream.double()
        )  # fmt: skip
        eager, eager_gradients = evaluate(
            self.definition, to(inputs, wide, device), self.options(case), case.differentiable, upstream.to(device, wide)
        )  # fmt: skip
        assert value.dtype == dtype
        within_budget(value, eager.to(dtype), oracle, 2, "value")
        for name, ours, base, exact in zip(case.differentiable, gradients, eager_gradients, oracle_gradients, strict=True):
            assert ours.dtype == inputs[name].dtype
            # a float32 mask beside halves too: the backward reads <d_out, out> off the output, which is rounded
            within_budget(ours.to(dtype), base.to(dtype), exact, 3, f"gradient of {name}")
            if dtype in (torch.float64, torch.float32):
                unbiased(ours, exact, f"gradient of {name}", self.common_roundings, self.few_terms)

    def saved_bytes(self, case: Case, rows: int) -> int:
        """The outputs; of polynomials the query and keys in their gauge, and three states; the shapes are those of ``sets``."""
        made, degree = case.make(Draw(), case.rows), case.options.get("degree", 2)
        gauged = sum(8 * t.numel() for t in made.values())
        features = comb(made["query"].shape[3] + degree, degree)
        return 64 * rows + 64 + gauged + 4 * 4 * features * made["key1"].shape[:2].numel() * (made["value1"].shape[3] + 1)

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        samples: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = []
        for biased in (False, True):
            tensors = [t.float().to(device) for t in sets(heads=4, keys=5)(draw, 4).values()]
            biases = [draw.normal(2, 2, n).float().to(device) if biased else None for n in (5, 3)]
            arguments = (*tensors, *biases, 0.5, [-1, -1, -1, -1])
            some = (0, 2, 3, 5) if biased else (0, 1, 2, 3, 4)
            samples.append((ops.trilinear_softmax.default, arguments, some))
            out, lse = ops.trilinear_softmax(*arguments)
            for wants in ([True] * 5 + [biased] * 2, [False, True, False, False, True, False, False]):
                upstream = (torch.ones_like(out), torch.ones_like(lse))
                samples.append((ops.trilinear_softmax_backward.default, (*upstream, *arguments[:7], out, lse, *arguments[7:], wants), ()))
            for excess in (False, True):
                summed = (*arguments, [1.0, 1.0, 0.5], excess)
                samples.append((ops.trilinear_sums.default, summed, some))
                d_sums = torch.ones_like(ops.trilinear_sums(*summed))
                samples.append((ops.trilinear_sums_backward.default, (d_sums, *summed, [True] * 5 + [biased] * 2), ()))
        return samples


def drawn(*shape: int, count: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [Draw(seed).normal(*shape).to(dtype) for seed in range(count)]


def normalised(t: Tensor) -> Tensor:
    return t / t.square().mean(-1, keepdim=True).sqrt()


# ---- options


def test_sdpa_on_all_pairs() -> None:
    """The same attention, another implementation: keys and values of all pairs are built."""
    q, a, b, v, w = drawn(2, 3, 9, 4)
    pairs = (a.unsqueeze(3) * b.unsqueeze(2)).flatten(2, 3), (v.unsqueeze(3) * w.unsqueeze(2)).flatten(2, 3)
    for scale in (None, 0.7):
        expected = F.scaled_dot_product_attention(q, *pairs, scale=1 / 4 if scale is None else scale)
        torch.testing.assert_close(nearlinear.tensor_attention(q, a, b, v, w, scale=scale), expected, rtol=1e-12, atol=1e-13)


KERNELS = (
    {}, {"kernel": "taylor"}, {"kernel": "taylor", "method": "exact", "degree": 4}, {"kernel": "taylor", "method": "polynomial"},
    {"method": "polynomial", "degree": 4}, {"kernel": [1.0, 1.0, 1.0, 0.25], "method": "polynomial"}, {"kernel": [2.0]},
)  # fmt: skip


@given(st.data())
@settings(max_examples=60)
def test_any_sizes_and_options(data: st.DataObject) -> None:
    """Outputs and gradients of all inputs in float64: lengths from 0, one channel, shared keys, masks with NaN behind them."""
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    kernel, groups, dim, width = pick(*KERNELS), pick(1, 2), pick(1, 2, 5), pick(1, 3)
    square = pick(False, True)
    n, n1, n2 = [pick(0, 1, 2, 6)] * 3 if square else [pick(0, 1, 3, 6) for _ in range(3)]
    options: dict[str, Any] = {**kernel, "enable_gqa": True}
    if square:
        options["is_causal"] = pick(False, True)
        if kernel.get("method") != "polynomial":
            options["window_size"] = pick(None, ((1, 1), (-1, 0)), ((0, 0), (9, 2)))
    draw = Draw(data.draw(st.integers(0, 99)))
    shapes = ((2 * groups, n, dim), (groups, n1, dim), (groups, n2, dim), (groups, n1, width), (groups, n2, width))
    inputs = {name: draw.normal(2, *shape) for name, shape in zip(FIVE, shapes, strict=True)}
    wrt = list(FIVE)
    if pick(False, True):
        options["key1_padding_mask"] = absent = draw.labels(2, 2, n1) == 0
        inputs["key1"] = inputs["key1"].masked_fill(absent[:, None, :, None], torch.nan)
        inputs["key2_padding_mask"] = draw.normal(2, groups, n2)
        wrt.append("key2_padding_mask")
    got, expected = (
        evaluate(lambda f=f, **t: both(f, t), inputs, options, wrt) for f in (nearlinear.tensor_attention, reference.tensor_attention)
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def both(function: Any, arguments: dict[str, Any]) -> Tensor:
    """out and lse in one tensor; a row of no pairs has the lse -inf, which is checked and left out."""
    out, lse = function(**arguments, return_lse=True)
    assert torch.equal(lse == -torch.inf, (out == 0).all(3) & ~lse.isfinite())
    return torch.cat([out, lse.masked_fill(lse == -torch.inf, -7).unsqueeze(3)], 3)


def test_batch_dimensions() -> None:
    tensors = drawn(2, 3, 4, 6, 5)
    whole = nearlinear.tensor_attention(*tensors, is_causal=True, return_lse=True)
    assert [t.shape for t in whole] == [(2, 3, 4, 6, 5), (2, 3, 4, 6)]
    for index in ((1, 2), (1,), (1, 2, 3)):
        part = nearlinear.tensor_attention(*(t[index] for t in tensors), is_causal=True, return_lse=True)
        torch.testing.assert_close(part, tuple(t[index] for t in whole), rtol=1e-13, atol=1e-14)
    mask = torch.rand(2, 3, 6) < 0.5
    masked = nearlinear.tensor_attention(*tensors, key1_padding_mask=mask)
    alone = nearlinear.tensor_attention(*(t[1, 2, 0] for t in tensors), key1_padding_mask=mask[1, 2])
    torch.testing.assert_close(masked[1, 2, 0], alone, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"kernel": "taylor", "method": "polynomial"}, {"kernel": "taylor", "method": "exact"}], ids=str)
def test_masks(options: dict[str, Any]) -> None:
    """True is ignored, as -inf, whatever it holds; nothing seen is 0 without a gradient; a common bias changes lse alone."""
    q, a, b, v, w = drawn(2, 3, 6, 4)
    mask = torch.tensor([[False, True] * 3, [True] * 6])
    spoiled = [t.masked_fill(mask[:, None, :, None], torch.nan) for t in (a, v)]
    leaves = [t.clone().requires_grad_() for t in (q, spoiled[0], b, spoiled[1], w)]
    out, lse = nearlinear.tensor_attention(*leaves, key1_padding_mask=mask, return_lse=True, **options)
    out.sum().backward()
    kept = nearlinear.tensor_attention(q, a[:, :, ::2], b, v[:, :, ::2], w, **options)
    torch.testing.assert_close(out[0], kept[0], rtol=1e-12, atol=1e-13)
    assert (out[1] == 0).all()
    assert (lse[1] == -torch.inf).all()
    assert all(t.grad.isfinite().all() for t in leaves)
    assert all((t.grad[1] == 0).all() for t in leaves)
    biased = torch.zeros(2, 6).masked_fill(mask, -torch.inf)
    same(nearlinear.tensor_attention(*leaves, key1_padding_mask=biased, **options), out, "float mask")
    lifted, up = nearlinear.tensor_attention(*leaves, key1_padding_mask=biased + 700.0, return_lse=True, **options)
    torch.testing.assert_close(lifted, out, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(up, lse + 700, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"kernel": "taylor", "method": "polynomial"}, {"is_causal": True}], ids=str)
def test_sets_of_keys_are_alike(options: dict[str, Any]) -> None:
    """Exchanged sets, and without positions permuted keys, are the same attention."""
    q, a, b, v, w = drawn(2, 3, 7, 4)
    out = nearlinear.tensor_attention(q, a, b, v, w, **options)
    torch.testing.assert_close(nearlinear.tensor_attention(q, b, a, w, v, **options), out, rtol=1e-12, atol=1e-13)
    if "is_causal" not in options:
        order = torch.randperm(7)
        torch.testing.assert_close(nearlinear.tensor_attention(q, a[:, :, order], b, v[:, :, order], w, **options), out)


def test_gauge_is_free() -> None:
    """Channels moved between query and keys by powers of two: the same bits, also where float16 would overflow in between."""
    tensors = drawn(2, 3, 9, 4, dtype=torch.float32)
    powers = torch.tensor([64.0, 1 / 64, 2.0, 1.0])
    for dtype, allowed in ((torch.float32, 0.0), (torch.float16, 2e-3)):
        q, a, b, v, w = (t.to(dtype) for t in tensors)
        out = nearlinear.tensor_attention(q, a, b, v, w, kernel="taylor", degree=4, method="polynomial")
        f = powers.to(dtype)
        moved = nearlinear.tensor_attention(q * f * f, a / f, b / f, v, w, kernel="taylor", degree=4, method="polynomial")
        torch.testing.assert_close(moved, out, rtol=allowed, atol=allowed)


def test_autocast_is_that_of_sdpa(device: torch.device) -> None:
    tensors = [t.to(device) for t in drawn(2, 3, 6, 4, dtype=torch.float32)]
    for options in ({}, {"kernel": "taylor", "method": "polynomial"}):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out, lse = nearlinear.tensor_attention(*tensors, return_lse=True, **options)
            assert F.scaled_dot_product_attention(*tensors[:3]).dtype == out.dtype == torch.bfloat16
            assert nearlinear.tensor_attention(*(t.double() for t in tensors), **options).dtype == torch.float64
        assert lse.dtype == torch.float32
        same(out, nearlinear.tensor_attention(*(t.bfloat16() for t in tensors), **options), "autocast")


def test_one_vector_for_all(device: torch.device) -> None:
    """Heads expanded with stride 0 are heads that were copied."""
    tensors = [t.to(device) for t in drawn(2, 1, 6, 4, dtype=torch.float32)]
    wide = [t.expand(-1, 3, -1, -1) for t in tensors]
    for options in ({}, {"kernel": "taylor", "method": "polynomial"}):
        same(nearlinear.tensor_attention(*wide, **options), nearlinear.tensor_attention(*(t.contiguous() for t in wide), **options), "")
