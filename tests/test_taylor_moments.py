"""Moments of monomials and what is made of them, against the definition and against the sum over all tuples of keys."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from measure import DTYPES, Draw, poisoned_memory, same, threads
from nearlinear.reference import taylor_attention as reference
from nearlinear.reference import tensor_attention as dense
from nearlinear.taylor_features import feature_count, feature_weights, taylor_coefficients
from torch import Tensor

ops = torch.ops.nearlinear
Tensors = dict[str, Tensor]
# D, E, degree, N: tails of lanes and of register tiles, one channel, no value; one tile of tokens, just more, none; features of a degree
# that are stored, that are made from stored ones, and from products of two and more channels
SHAPES = [
    (1, 1, 8, 5), (3, 0, 3, 37), (16, 16, 3, 129), (40, 3, 2, 128), (64, 64, 2, 129), (3, 40, 6, 100), (16, 1, 4, 37), (8, 16, 6, 37),
    (5, 4, 0, 7), (3, 3, 2, 0), (3, 3, 2, 1), (1, 3, 1, 2), (700, 2, 1, 33), (60, 4, 3, 20),
]  # fmt: skip
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "d{}-e{}-g{}-n{}".format(*s))


def inputs(
    dim: int, width: int, tokens: int, dtype: torch.dtype = torch.float64, heads: int = 4, groups: int = 2, batch: int = 2
) -> Tensors:
    draw = Draw()
    shape, wide = (batch, groups, tokens), torch.float64 if dtype == torch.float64 else torch.float32
    made = {"key": draw.normal(*shape, dim, scale=0.7).to(dtype), "value": draw.normal(*shape, width).to(dtype)}
    return {**made, "bias": draw.normal(*shape).to(wide), "query": draw.normal(batch, heads, tokens + 1, dim, scale=0.7).to(dtype)}


def run(moments: Any, apply: Any, x: Tensors, degree: int) -> Tensors:
    """Every result of the four ops, for upstream gradients that do not depend on rounding."""
    draw = Draw(1)
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    m = moments(leaves["key"], leaves["value"], leaves["bias"], degree)
    factor = draw.normal(*m.shape).to(m).requires_grad_()
    sums = apply(leaves["query"], factor, degree)
    upstream = [draw.normal(*t.shape).to(t) for t in (m, sums)]
    wrt = [*leaves.values(), factor]
    gradients = torch.autograd.grad([m, sums], wrt, upstream, allow_unused=True, materialize_grads=True)
    return {"moments": m.detach(), "sums": sums.detach(), **dict(zip((f"d_{n}" for n in (*leaves, "moments")), gradients, strict=True))}


def ours(x: Tensors, degree: int) -> Tensors:
    return run(ops.taylor_moments, ops.taylor_apply, x, degree)


def defined(x: Tensors, degree: int) -> Tensors:
    return run(reference.taylor_moments, reference.taylor_apply, {n: t.double() for n, t in x.items()}, degree)


def close(got: Tensors, expected: Tensors, tolerance: float) -> None:
    for name, exact in expected.items():
        assert got[name].shape == exact.shape, name
        assert got[name].is_contiguous()
        if exact.numel():
            error = (got[name].double() - exact).abs().max() / exact.abs().max().clamp(min=1e-300)
            assert error <= tolerance, f"{name}: {error:.1e}"


@each_shape
def test_definition_in_float64(shape: tuple[int, int, int, int]) -> None:
    dim, width, degree, tokens = shape
    x = inputs(dim, width, tokens)
    close(ours(x, degree), defined(x, degree), 1e-13)


@each_shape
def test_definition_in_float32(shape: tuple[int, int, int, int]) -> None:
    """Rounding of products of up to 8 factors, and of sums of at most 132 terms at a time."""
    dim, width, degree, tokens = shape
    x = inputs(dim, width, tokens, torch.float32)
    close(ours(x, degree), defined(x, degree), 1.5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_halves_are_read_and_written_only(dtype: torch.dtype) -> None:
    """The bits of the float32 kernel on the same numbers, gradients rounded once; a bias may have the dtype of the keys."""
    x = inputs(16, 24, 129, dtype)
    got, wide = ours(x, 3), ours({n: t.float() for n, t in x.items()}, 3)
    for name, t in got.items():
        same(t, wide[name].to(t.dtype), name)
        assert t.dtype == (dtype if name in ("d_key", "d_value", "d_query") else torch.float32)
    half = {**x, "bias": x["bias"].to(dtype)}
    got = ours(half, 3)
    assert got["d_bias"].dtype == dtype
    same(got["moments"], ours({**x, "bias": half["bias"].float()}, 3)["moments"], "moments")


@settings(max_examples=40)
@given(
    dim=st.integers(1, 20), width=st.integers(0, 35), degree=st.integers(0, 3), tokens=st.integers(0, 200), groups=st.integers(1, 3),
    group=st.integers(1, 3),
)  # fmt: skip
def test_definition_for_any_shape(dim: int, width: int, degree: int, tokens: int, groups: int, group: int) -> None:
    x = inputs(dim, width, tokens, heads=groups * group, groups=groups, batch=1)
    close(ours(x, degree), defined(x, degree), 1e-13)


# ---- the polynomial that the moments stand for


def polynomial_attention(
    query: Tensor, keys: list[Tensor], values: list[Tensor], biases: list[Tensor], scale: float, degree: int
) -> Tensor:
    weight = feature_weights(query.shape[3], taylor_coefficients(degree), scale, query)
    total = weight.unsqueeze(1)
    for key, value, bias in zip(keys, values, biases, strict=True):
        total = total * ops.taylor_moments(key, value, bias, degree)
    return ops.taylor_apply(query, total, degree)


@pytest.mark.parametrize(("dim", "degree"), [(1, 8), (3, 6), (16, 3), (40, 2)])
def test_two_moments_are_the_sum_over_pairs_of_keys(dim: int, degree: int) -> None:
    x, y = inputs(dim, 5, 37), inputs(dim, 5, 29, batch=2)
    keys, values, biases = ([t[name] for t in (x, y)] for name in ("key", "value", "bias"))
    biases[0][..., 3] = -math.inf
    sums = polynomial_attention(x["query"], keys, values, biases, 1 / dim, degree)
    expected = dense.trilinear_sums(x["query"], *keys, *values, *biases, 1 / dim, [-1] * 4, taylor_coefficients(degree), False)
    close({"sums": sums}, {"sums": expected}, 1e-12)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 6])
def test_gradients_of_any_order(order: int, degree: int) -> None:
    """A query with products of order - 1 moments; one query head more than groups of keys."""
    draw = Draw(degree)
    query = draw.normal(1, 2, 3, 2)
    sets = [(draw.normal(1, 1, 3, 2), draw.normal(1, 1, 3, 2), draw.normal(1, 1, 3)) for _ in range(order - 1)]
    flat = [query, *(t for part in zip(*sets, strict=True) for t in part)]

    def function(query: Tensor, *rest: Tensor) -> Tensor:
        count = order - 1
        return polynomial_attention(query, *(list(rest[i * count : (i + 1) * count]) for i in range(3)), 0.5, degree)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in flat], nondet_tol=0.0)
    if order == 3 and degree == 2:
        assert torch.autograd.gradgradcheck(function, flat, nondet_tol=0.0)


def test_features_of_a_run_that_begins_and_ends_anywhere() -> None:
    """Degree 5 of 12 channels: 6188 features, more than are stored or summed at a time; the moments of one token are its features."""
    u = Draw().normal(1, 1, 1, 12)
    moments = ops.taylor_moments(u, u[..., :0], None, 5)[0, 0, :, 0]
    close({"features": moments}, {"features": reference.taylor_features(u, 5)[0, 0, 0]}, 1e-15)


# ---- keys that take no part


@pytest.mark.parametrize("fill", [math.nan, math.inf], ids=["nan", "inf"])
def test_masked_keys_take_no_part_whatever_they_hold(fill: float) -> None:
    x = inputs(16, 5, 129)
    absent = torch.zeros(129, dtype=torch.bool)
    absent[[0, 17, 127, 128]] = True
    x["bias"][..., absent] = -math.inf
    held = {**x, "key": x["key"].clone(), "value": x["value"].clone()}
    held["key"][..., absent, :] = held["value"][..., absent, :] = fill
    got = ours(held, 3)
    short = ours({**{n: x[n][:, :, ~absent] for n in ("key", "value", "bias")}, "query": x["query"]}, 3)
    close({"moments": got["moments"]}, {"moments": short["moments"]}, 1e-14)
    for name in ("d_key", "d_value", "d_bias"):
        assert (got[name][:, :, absent] == 0).all()
        close({name: got[name][:, :, ~absent].contiguous()}, {name: short[name]}, 1e-14)


def test_masked_keys_have_no_gradient_of_an_upstream_that_is_no_number() -> None:
    x = inputs(4, 3, 9)
    x["bias"][..., 2] = -math.inf
    d_moments = torch.full((2, 2, feature_count(4, 2), 4), math.nan, dtype=torch.float64)
    gradients = ops.taylor_moments_backward(d_moments, x["key"], x["value"], x["bias"], 2, [True] * 3)
    for gradient in gradients:
        assert (gradient[:, :, 2] == 0).all()
        assert gradient[:, :, 3].isnan().all()


def test_nothing_but_masked_keys() -> None:
    x = inputs(3, 2, 40, torch.float32)
    x["bias"].fill_(-math.inf)
    x["key"].fill_(math.nan)
    got = ours(x, 2)
    for name in ("moments", "d_key", "d_value", "d_bias"):
        assert (got[name] == 0).all()


def test_a_number_that_is_none_stays_in_its_row() -> None:
    x = inputs(3, 2, 100, torch.float32)
    x["query"][0, 1, 50] = math.nan
    sums = ops.taylor_apply(x["query"], ops.taylor_moments(x["key"], x["value"], None, 2), 2)
    expected = torch.zeros(sums.shape, dtype=torch.bool)
    expected[0, 1, 50] = True
    assert torch.equal(sums.isnan(), expected)


# ---- layouts, threads, memory


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_any_strides_give_the_same_bits(layout: Any, dtype: torch.dtype) -> None:
    x = inputs(5, 18, 100, dtype)
    views = {n: layout(t) for n, t in x.items()}
    got, expected = ours(views, 2), ours({n: v.contiguous() for n, v in views.items()}, 2)
    for name, t in expected.items():
        same(got[name], t, name)
    m, sums = expected["moments"], expected["sums"]
    moments = layout(m)
    same(ops.taylor_apply(x["query"], moments, 2), ops.taylor_apply(x["query"], moments.contiguous(), 2), "moments")
    for op, upstream, rest in (
        (ops.taylor_moments_backward, m, (x["key"], x["value"], x["bias"], 2, [True] * 3)),
        (ops.taylor_apply_backward, sums, (x["query"], m, 2, [True] * 2)),
    ):
        view = layout(upstream)
        same(op(view, *rest), op(view.contiguous(), *rest), "upstream")


def test_an_upstream_of_one_number() -> None:
    """The gradient of sum() has stride 0 everywhere."""
    x = inputs(5, 4, 100)
    one = torch.ones((), dtype=torch.float64)
    m = ops.taylor_moments(x["key"], x["value"], x["bias"], 2)
    sums = ops.taylor_apply(x["query"], m, 2)
    arguments = (x["key"], x["value"], x["bias"], 2, [True] * 3)
    same(ops.taylor_moments_backward(one.expand_as(m), *arguments), ops.taylor_moments_backward(torch.ones_like(m), *arguments), "moments")
    rest = (x["query"], m, 2, [True] * 2)
    same(ops.taylor_apply_backward(one.expand_as(sums), *rest), ops.taylor_apply_backward(torch.ones_like(sums), *rest), "sums")


@pytest.mark.parametrize(
    ("dim", "width", "degree", "tokens"), [(8, 8, 2, 5000), (16, 40, 4, 900)], ids=["tokens of a head are split", "features are split"]
)
def test_any_number_of_threads_gives_the_same_bits(dim: int, width: int, degree: int, tokens: int) -> None:
    x = inputs(dim, width, tokens, torch.float32, heads=3, groups=1, batch=1)
    with threads(1):
        expected = ours(x, degree)
    for count in (2, 3, 5):
        with threads(count):
            got = ours(x, degree)
        for name, t in expected.items():
            same(got[name], t, f"{name}, {count} threads")


def test_results_are_written_whole() -> None:
    x = inputs(6, 20, 100, torch.float32)
    expected = ours(x, 3)
    with poisoned_memory():
        got = ours(x, 3)
    for name, t in expected.items():
        same(got[name], t, name)


def test_only_what_is_wanted_is_computed() -> None:
    x = inputs(6, 5, 100)
    m = ops.taylor_moments(x["key"], x["value"], x["bias"], 2)
    sums = ops.taylor_apply(x["query"], m, 2)
    for op, upstream, rest, count in (
        (ops.taylor_moments_backward, m, (x["key"], x["value"], x["bias"], 2), 3), (ops.taylor_apply_backward, sums, (x["query"], m, 2), 2),
    ):  # fmt: skip
        everything = op(upstream, *rest, [True] * count)
        for mask in range(2**count):
            wants = [bool(mask >> i & 1) for i in range(count)]
            for wanted, got, full in zip(wants, op(upstream, *rest, wants), everything, strict=True):
                same(got, full if wanted else full.new_empty(0), f"{wants}")
    without = ops.taylor_moments_backward(m, x["key"], x["value"], None, 2, [True] * 3)
    assert without[2].numel() == 0


@pytest.mark.parametrize("heads", [1, 40], ids=["split", "whole"])
def test_long_sums_keep_their_digits(heads: int) -> None:
    """Sums of 130000 positive terms, by unequal parts of a head, or by segments; torch's float32 product is off by 1.5e-6."""
    draw = Draw()
    key, value = (0.5 + draw.positive(1, 1, 130000, c).float() for c in (4, 3))
    expected = reference.taylor_moments(key.double(), value.double(), None, 2)
    wide = [t.expand(heads, *t.shape[1:]) for t in (key, value)]
    moments = ops.taylor_moments(*wide, None, 2).double()
    assert (moments / expected - 1).abs().max() <= 6e-7
    d_moments = ops.taylor_apply_backward(wide[1], wide[0], moments[..., :3].float(), 2, [False, True])[1]
    assert (d_moments.double() / expected[..., :3] - 1).abs().max() <= 6e-7


def test_messages() -> None:
    x = inputs(3, 2, 5, torch.float32)
    q, k, v, b = (x[n] for n in ("query", "key", "value", "bias"))
    m = ops.taylor_moments(k, v, b, 2)
    rows: list[tuple[Any, tuple[Any, ...], str]] = [
        (ops.taylor_moments, (k[0], v, b, 2), "key must have shape (B, G, N, D), got 3 dimensions"),
        (ops.taylor_moments, (k, v[0], b, 2), "value must have shape (B, G, N, E), got 3 dimensions"),
        (ops.taylor_moments, (k, v[:, :, :4], b, 2), "value must have shape (B, G, N, E), got size 4 in dimension 2"),
        (ops.taylor_moments, (k, v.double(), b, 2), "value must have the dtype of key"),
        (ops.taylor_moments, (k, v, b[..., :4], 2), "bias must have shape (B, G, N), got size 4 in dimension 2"),
        (ops.taylor_moments, (k.int(), v.int(), None, 2), "key must be float32, float64, bfloat16 or float16"),
        (ops.taylor_moments, (k, v, b, -1), "degree must be 0 to 1000 and queries and keys must have a channel, got -1 and 3"),
        (ops.taylor_moments, (k[..., :0], v, b, 1), "degree must be 0 to 1000 and queries and keys must have a channel, got 1 and 0"),
        (ops.taylor_moments, (k.expand(2, 2, 5, 3).repeat(1, 1, 1, 99), v, b, 99), "degree 99 of 297 channels has too many features"),
        (ops.taylor_apply, (q[0], m, 2), "query must have shape (B, H, N, D), got 3 dimensions"),
        (ops.taylor_apply, (q, m[0], 2), "moments must have shape (B, G, R, E + 1), got 3 dimensions"),
        (ops.taylor_apply, (q, m, 3), "moments must have shape (2, 2, 20, 3)"),
        (ops.taylor_apply, (q, m.double(), 2), "moments must have the dtype of the statistics"),
        (ops.taylor_apply, (q[:, :3], m, 2), "the heads of moments must divide those of query, got 2 and 3"),
        (ops.taylor_moments_backward, (m[:, :1], k, v, b, 2, [True] * 3), "d_moments must have shape (2, 2, 10, 3)"),
        (ops.taylor_moments_backward, (m, k, v, b, 2, [True] * 2), "wants must have 3 elements, got 2"),
        (ops.taylor_apply_backward, (q, q, m, 2, [True] * 3), "wants must have 2 elements, got 3"),
        (ops.taylor_apply_backward, (q[:, :2], q, m, 2, [True] * 2), "d_sums must have shape (2, 4, 6, 3)"),
    ]
    for op, arguments, text in rows:
        with pytest.raises(RuntimeError) as caught:
            op(*arguments)
        assert text in str(caught.value), (text, str(caught.value))
        assert op._qualified_op_name.removeprefix("nearlinear::") in str(caught.value)
