"""Attention by moments: the battery on four inputs and three sets of keys, orders, and the bound on the distance from a softmax."""

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
from nearlinear import tensor_attention_error_bound, tensor_attention_error_estimate, tensor_attention_paths
from nearlinear.reference import taylor_attention as reference
from torch import Tensor

ops = torch.ops.nearlinear
NAMES = ("query", *(f"{name}{t}" for name in ("key", "value") for t in (1, 2, 3)))


@pytest.fixture(autouse=True)
def _no_warning_is_due() -> Iterator[None]:
    """The certificate is looked at in calls 1, 2, 4, ...: here in none, whatever ran before."""
    calls = tensor_attention_paths._calls
    tensor_attention_paths._calls = itertools.count(3, 2)
    yield
    tensor_attention_paths._calls = calls


def listed(function: Any, sets: int = 3) -> Any:
    """The function of lists as one of named tensors."""

    def call(query: Tensor, mask1: Tensor | None = None, **rest: Any) -> Tensor:
        keys, values = ([rest.pop(f"{name}{t}") for t in range(1, sets + 1)] for name in ("key", "value"))
        return function(query, keys, values, padding_masks=[mask1, *[None] * (sets - 1)], **rest)

    return call


def three(heads: int = 2, groups: int = 2, dim: int = 3, width: int = 2, biased: bool = False) -> Any:
    def make(draw: Draw, rows: int) -> Inputs:
        shapes = [(heads, rows, dim), *((groups, n, dim) for n in (4, 3, 5)), *((groups, n, width) for n in (4, 3, 5))]
        made = {name: draw.normal(2, *shape) for name, shape in zip(NAMES, shapes, strict=True)}
        return {**made, "mask1": draw.normal(2, 4)} if biased else made

    return make


def case(name: str, make: Any, reason: str, differentiable: tuple[str, ...] = ("query", "key1", "value3"), **fields: Any) -> Case:
    return Case(name, make, reason, native=NAMES, differentiable=differentiable, **fields)


CASES = (
    case("order_4", three(), "three sets", rows=3, options={"kernel": "taylor"}),
    case(
        "masked", three(heads=4, dim=2, width=1, biased=True), "weights of keys, shared heads", ("key2", "mask1"), rows=2,
        options={"kernel": "taylor", "enable_gqa": True}, checked=True,
    ),
    case("approximate", three(), "a softmax, by degree 4", rows=5, options={"method": "polynomial", "degree": 4}),
    case("coefficients", three(), "another polynomial", rows=3, options={"kernel": [1.0, 1.0, 1.0, 0.25]}),
)  # fmt: skip


class TestTaylorAttention(Battery):
    function = staticmethod(listed(nearlinear.tensor_attention_n))
    definition = staticmethod(listed(reference.tensor_attention_n))
    cases = CASES
    rowwise: ClassVar[dict[str, Any]] = {}
    casts_under_autocast = True
    few_terms = True
    common_roundings = 8  # a head's gradients share its moments
    compiled: ClassVar[dict[str, str]] = {"order_4": "aot_eager", "masked": "aot_eager"}
    test_reductions_follow_from_rows = None  # there are none

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
    def test_error_budget(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        """The output has the dtype of the query, here and there: it is rounded once."""
        inputs, wide = case.inputs(dtype, device), torch.float64 if dtype == torch.float64 else torch.float32
        upstream = Draw(1).normal(*self.function(**inputs, **case.options).shape).to(dtype)
        value, gradients = self.ours(case, inputs, upstream.to(device))
        exact = evaluate(self.definition, to(inputs, torch.float64), case.options, case.differentiable, upstream.double())
        eager = evaluate(self.definition, to(inputs, wide, device), case.options, case.differentiable, upstream.to(device, wide))
        assert value.dtype == dtype
        within_budget(value, eager[0].to(dtype), exact[0], 2, "value")
        for name, ours, base, oracle in zip(case.differentiable, gradients, eager[1], exact[1], strict=True):
            assert ours.dtype == inputs[name].dtype
            within_budget(ours, base.to(ours.dtype), oracle, 3, f"gradient of {name}")
            unbiased(ours, oracle, f"gradient of {name}", self.common_roundings, self.few_terms)

    def saved_bytes(self, case: Case, rows: int) -> int:
        """The output, query and keys in their gauge, four states and the products between them."""
        made, degree = case.make(Draw(), case.rows), case.options.get("degree", 3)
        features = comb(made["query"].shape[3] + degree, degree)
        state = 4 * features * made["key1"].shape[:2].numel() * (made["value1"].shape[3] + 1)
        return 64 * rows + 64 + sum(8 * t.numel() for t in made.values()) + 8 * state

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        q, a, b, v, w = (draw.normal(2, heads, 5, 3).float().to(device) for heads in (4, 2, 2, 2, 2))
        bias, weight = draw.normal(2, 2, 5).float().to(device), torch.ones(10, device=device)
        samples: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = []
        for some in (None, bias):
            moments = ops.taylor_moments(a, v, some, 2)
            places = (0, 1) if some is None else (0, 1, 2)
            samples.append((ops.taylor_moments.default, (a, v, some, 2), places))
            samples.append((ops.taylor_moments_backward.default, (moments, a, v, some, 2, [True, True, some is not None]), ()))
            scan = (q, a, b, v, w, some, None, weight, 2)
            samples.append((ops.taylor_scan.default, scan, (0, 1, 2, 3, 4)))
            d_sums = torch.ones_like(ops.taylor_scan(*scan))
            samples.append((ops.taylor_scan_backward.default, (d_sums, *scan, [True] * 5 + [some is not None, False]), ()))
        samples.append((ops.taylor_apply.default, (q, moments, 2), (0, 1)))
        for wants in ([True, True], [True, False], [False, True]):
            samples.append((ops.taylor_apply_backward.default, (ops.taylor_apply(q, moments, 2), q, moments, 2, wants), ()))
        return samples


def drawn(*shape: int, count: int) -> list[Tensor]:
    return [Draw(seed).normal(*shape) for seed in range(count)]


def normalised(t: Tensor) -> Tensor:
    return t / t.square().mean(-1, keepdim=True).sqrt()


# ---- orders


@given(st.data())
@settings(max_examples=40)
def test_any_order(data: st.DataObject) -> None:
    """Outputs and gradients in float64, one to four sets of keys of any lengths."""
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    count, groups, dim, width = pick(1, 2, 3, 4), pick(1, 2), pick(1, 2, 4), pick(1, 3)
    kernels: tuple[dict[str, Any], ...] = ({"kernel": "taylor"}, {"kernel": "taylor", "degree": 4}, {"kernel": [0.5, 1.0, 0.0, 2.0]})
    exact: tuple[dict[str, Any], ...] = ({}, {"kernel": "taylor", "method": "exact"}) if count <= 2 else ()
    options = {**pick(*kernels, {"method": "polynomial"}, *exact), "enable_gqa": True}
    draw = Draw(data.draw(st.integers(0, 99)))
    lengths = [pick(0, 1, 3) for _ in range(count)]
    inputs = {"query": draw.normal(2, 2 * groups, pick(0, 1, 4), dim)}
    for t, length in enumerate(lengths, 1):
        inputs[f"key{t}"], inputs[f"value{t}"] = draw.normal(2, groups, length, dim), draw.normal(2, groups, length, width)
    if pick(False, True):
        inputs["mask1"] = draw.normal(2, groups, lengths[0])
    wrt = list(inputs)
    got, expected = (
        evaluate(listed(f, count), inputs, options, wrt) for f in (nearlinear.tensor_attention_n, reference.tensor_attention_n)
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_one_set_is_ordinary_attention() -> None:
    q, k, v = drawn(2, 3, 9, 4, count=3)
    out = nearlinear.tensor_attention_n(q, [k], [v])
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, scale=1 / 4), rtol=1e-12, atol=1e-13)
    mask = torch.tensor([[True, False, False] * 3, [False] * 9])
    out = nearlinear.tensor_attention_n(q, [k.masked_fill(mask[:, None, :, None], torch.nan)], [v], padding_masks=[mask])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=~mask[:, None, None], scale=1 / 4)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)


def test_two_sets_are_tensor_attention() -> None:
    q, a, b, v, w = drawn(2, 3, 9, 4, count=5)
    for options in ({}, {"kernel": "taylor", "degree": 4}, {"kernel": "taylor", "method": "exact"}, {"method": "polynomial"}):
        same(nearlinear.tensor_attention_n(q, [a, b], [v, w], **options), nearlinear.tensor_attention(q, a, b, v, w, **options), "two")


@pytest.mark.parametrize("degree", [2, 4])
def test_long_sums_in_float32(degree: int) -> None:
    """Against the same polynomial in float64: 2e-6 of the output is what float32 features leave."""
    q, a, b, v, w = drawn(1, 2, 3000, 12, count=5)
    arguments = (normalised(q), [normalised(a), normalised(b)], [v, w])
    exact = nearlinear.tensor_attention_n(*arguments, kernel="taylor", degree=degree)
    single = nearlinear.tensor_attention_n(
        arguments[0].float(), *([t.float() for t in ts] for ts in arguments[1:]), kernel="taylor", degree=degree
    )
    assert (single.double() - exact).abs().max() <= 2e-6 * exact.abs().max().clamp(min=v.abs().max() * w.abs().max() / 100)


# ---- the bound


def triples(kind: str, draw: Draw, dim: int) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """A query, two sets of keys and masks, each kind against one part of the proof."""
    q, a, b = (draw.normal(1, 2, 14, dim) for _ in range(3))
    masks: list[Tensor | None] = [None, None]
    if kind == "normalised":
        q, a, b = normalised(q), normalised(a), normalised(b)
    elif kind == "one huge key":
        a[0, 0, 3] *= 20
    elif kind == "collinear":
        a, b = q.clone(), torch.ones_like(b) * b[:, :, :1]
    elif kind == "mean":
        a, b = a + 2, b - 1
    elif kind == "masked":
        masks = [draw.labels(2, 1, 14) == 0, draw.labels(5, 1, 14) > 0]
        a = a.masked_fill(masks[0][:, None, :, None], torch.nan)
    elif kind == "biased":
        masks = [3 * draw.normal(1, 2, 14), 10 * draw.normal(1, 14)]
    elif kind == "unequal channels":
        size = torch.exp(2 * draw.normal(dim))
        q, a = q * size, a / size
    return q, [a, b], masks


KINDS = ("normalised", "plain", "one huge key", "collinear", "mean", "masked", "biased", "unequal channels")


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("kind", KINDS)
def test_bound_is_never_below_the_truth(kind: str, causal: bool) -> None:
    """With the other kinds 1e4 rows: total variation, largest logit, and sigma, which is no bound but equal."""
    place = torch.arange(14)
    before = place <= place.unsqueeze(1)
    window = before.unsqueeze(2) & before.unsqueeze(1) if causal else None
    draw, rows = Draw(), 0
    for dim, degree, scale in itertools.product((1, 3, 8), (2, 4) if causal else (2, 4, 6), (0.02, 0.3, 1.0, 4.0)):
        for _ in range(2):
            q, keys, masks = triples(kind, draw, dim)
            options: dict[str, Any] = {"scale": scale / dim, "degree": degree, "padding_masks": masks}
            found = tensor_attention_error_bound(q, keys, **options, is_causal=causal)
            truth, largest, square = reference.total_variation(q, keys, **options, window=window)
            assert (found.tv_bound >= truth).all()
            assert (found.logit_bound >= largest.amax(-1)).all()
            torch.testing.assert_close(found.sigma, square.mean(-1).sqrt(), rtol=1e-6, atol=1e-12)
            rows += truth.numel()
    assert rows >= (1300 if causal else 2000)


@pytest.mark.parametrize("count", [1, 3])
def test_bound_of_other_orders(count: int) -> None:
    draw = Draw()
    for degree, scale in itertools.product((2, 4), (0.05, 0.5, 2.0)):
        q, *keys = (draw.normal(2, 2, n, 4) for n in (7, 6, 5, 4)[: count + 1])
        found = tensor_attention_error_bound(q, keys, scale=scale / 4, degree=degree)
        truth, largest, _ = reference.total_variation(q, keys, scale=scale / 4, degree=degree)
        assert (found.tv_bound >= truth).all()
        assert (found.logit_bound >= largest.amax(-1)).all()


@pytest.mark.parametrize(("dim", "degree", "factor"), [(16, 2, 40), (32, 2, 50), (64, 2, 70), (16, 4, 30)])
def test_bound_is_of_use_for_normalised_keys(dim: int, degree: int, factor: float) -> None:
    """100 times the truth would still certify; half inputs are certified as the numbers that they are."""
    q, a, b = (normalised(t) for t in drawn(1, 2, 100, dim, count=3))
    found = tensor_attention_error_bound(q, [a, b], degree=degree)
    truth, _, _ = reference.total_variation(q, [a, b], degree=degree)
    assert (found.tv_bound <= factor * truth).all()
    assert found.tv_bound.max() < 0.1
    torch.testing.assert_close(found.sigma, torch.full_like(found.sigma, dim**-0.5), rtol=0.05, atol=0)
    half = tensor_attention_error_bound(q.bfloat16(), [a.bfloat16(), b.bfloat16()], degree=degree)
    wide = tensor_attention_error_bound(q.bfloat16().double(), [a.bfloat16().double(), b.bfloat16().double()], degree=degree)
    same(half.tv_bound, wide.tv_bound, "half")


def test_bound_at_the_ends() -> None:
    q, a, b = drawn(2, 3, 5, 4, count=3)
    mask = torch.ones(2, 5, dtype=torch.bool)
    nothing = tensor_attention_error_bound(q, [a * torch.nan, b], padding_masks=[mask, None])
    assert all((t == 0).all() for t in nothing)
    zero = tensor_attention_error_bound(torch.zeros_like(q), [a, b])
    assert (zero.tv_bound <= 1e-14).all()
    wild = tensor_attention_error_bound(1e3 * q, [1e3 * a, 1e3 * b], degree=4).tv_bound
    assert (wild > 1).all()
    assert not wild.isnan().any()
    assert tensor_attention_error_bound(q * torch.nan, [a, b]).tv_bound.isinf().all()
    for shape in ((2, 3, 0, 4), (0, 3, 5, 4)):
        assert tensor_attention_error_bound(torch.zeros(shape), [torch.zeros(*shape[:2], 5, 4)] * 2).tv_bound.shape == shape[:3]
    grouped = tensor_attention_error_bound(q, [a[:, :1], b[:, :1]], enable_gqa=True)
    copies = [t[:, :1].expand(-1, 3, -1, -1) for t in (a, b)]
    truth, largest, square = reference.total_variation(q, copies)
    assert (grouped.tv_bound >= truth).all()
    assert (grouped.logit_bound >= largest.amax(2)).all()
    torch.testing.assert_close(grouped.sigma, square.mean(2).sqrt())
    assert [t.shape for t in tensor_attention_error_bound(q[0, 0], [a[0, 0], b[0, 0]])] == [(5,), (), ()]


def test_estimate_is_near_the_truth_and_no_bound() -> None:
    """A mean over many queries; one key of 400 that carries a row's attention is missed by 16 draws."""
    q, a, b = (normalised(t) for t in drawn(1, 2, 100, 16, count=3))
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(100) >= 50
    for options in ({}, {"padding_masks": [mask.unsqueeze(0), None]}):
        truth, _, _ = reference.total_variation(q, [a, b], **options)
        estimate = tensor_attention_error_estimate(q, [a, b], samples=2000, generator=generator, **options)
        torch.testing.assert_close(estimate.mean(2), truth.mean(2), rtol=0.1, atol=0)
    outlier = a.clone()
    outlier[..., 7, :] = 40
    missed = tensor_attention_error_estimate(q, [outlier, outlier], samples=16, generator=generator)
    truth, _, _ = reference.total_variation(q, [outlier, outlier])
    assert (missed < truth).any()


def test_weights_of_even_degree_are_positive() -> None:
    """Of any logits: the sum of the weights is at least the least value of the polynomial for each pair, so that no epsilon is needed."""
    q, a, b, v, w = (20 * t for t in drawn(1, 2, 30, 5, count=5))
    for degree, least in ((2, 0.5), (4, 0.27), (6, 0.149)):
        _, lse = nearlinear.tensor_attention(q, a, b, v, w, kernel="taylor", degree=degree, return_lse=True)
        assert (lse.exp() >= least * 900).all()
