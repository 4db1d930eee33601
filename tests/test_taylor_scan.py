"""The scan of causal polynomial attention: its definition, dense sums over pairs, what a token may depend on, long sums."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from layouts import LAYOUTS
from measure import Draw, same, threads
from nearlinear.ops.taylor_attention import _scan_gradient
from nearlinear.reference import taylor_attention as reference
from nearlinear.reference.tensor_attention import trilinear_sums
from nearlinear.taylor_features import feature_weights, taylor_coefficients
from torch import Tensor

ops = torch.ops.nearlinear
nan, inf = math.nan, math.inf
ALL = [True] * 7
NAMES = ("query", "key1", "key2", "value1", "value2", "bias1", "bias2")


class Shape(NamedTuple):
    batch: int
    heads: int
    groups: int
    tokens: int
    dim: int
    columns: int
    degree: int


# chunks have 96 tokens, panels 16 columns (8 in float64), runs 32 features; 4, 2 or 1 query heads share the walk of a state
SHAPES = [
    Shape(2, 2, 1, 37, 3, 5, 2),  # tails of everything
    Shape(1, 1, 1, 129, 16, 16, 2),  # whole panels, two chunks
    Shape(1, 1, 1, 200, 1, 1, 4),  # one channel: one feature of each degree
    Shape(1, 7, 1, 20, 3, 17, 3),  # 4 + 2 + 1 heads
    Shape(1, 6, 3, 2, 2, 40, 1),  # few tokens, groups
    Shape(1, 2, 2, 100, 4, 0, 2),  # the column of ones alone
    Shape(2, 1, 1, 7, 2, 3, 0),  # degree 0
    Shape(1, 1, 1, 97, 40, 64, 2),  # a chunk and one token; blocks of channels longer than a run
    Shape(1, 1, 1, 100, 17, 2, 4),  # 5985 features: two passes, parts of many runs
    Shape(9, 1, 1, 1, 3, 3, 2),  # one token; as many heads as keep the features in one part
    Shape(1, 2, 1, 0, 3, 3, 2),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
Arguments = tuple[list[Tensor], Tensor, int]


def arguments(shape: Shape, dtype: torch.dtype = torch.float64, masked: float | None = 0.0) -> Arguments:
    """Tensors, weight and degree. Every fourth key1 and the last key2 take no part; these and their values hold ``masked``."""
    draw, (b, h, g, n, d, e, degree) = Draw(), shape
    sizes = [(b, h, n, d), (b, g, n, d), (b, g, n, d), (b, g, n, e), (b, g, n, e), (b, g, n), (b, g, n)]
    tensors = [draw.normal(*size) for size in sizes]
    tensors[:5] = [t.to(dtype) for t in tensors[:5]]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors[5:] = [t.to(wide) for t in tensors[5:]]
    if masked is not None:
        for side, absent in ((0, slice(1, None, 4)), (1, slice(n - 1, n))):
            tensors[5 + side][..., absent] = -inf
            tensors[1 + side][:, :, absent] = tensors[3 + side][:, :, absent] = masked
    return tensors, feature_weights(d, taylor_coefficients(degree), 1 / d, tensors[5]), degree


def truth(given: Arguments, d_sums: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Sums and gradients by the definition in float64."""
    tensors, weight, degree = given
    leaves = [t.double().requires_grad_() for t in tensors]
    sums = reference.taylor_scan(*leaves, weight.double(), degree)
    return sums.detach(), [g.detach() for g in _scan_gradient(d_sums.double(), *leaves, weight.double(), degree, ALL)]


def near(ours: Tensor, exact: Tensor, eps: float, what: str) -> None:
    """Errors relative to the largest element: sums cancel."""
    assert ours.shape == exact.shape, what
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=eps * max(1e-30, *exact.abs().flatten().tolist(), 0.0), msg=what)


@shapes
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=["float64", "float32"])
def test_definition(shape: Shape, dtype: torch.dtype, eps: float) -> None:
    """Sums and all gradients; absent keys hold NaN here, 0 in the definition, and have gradient 0. 2e-6: 16 roundings of
    float32. 1e-13: the definition's own error in float64, 1.1e-14 with 5985 features where the scan has 8e-16 against long double."""
    given = arguments(shape, dtype)
    d_sums = Draw(1).normal(*shape[:2], shape.tokens, shape.columns + 1).to(given[1].dtype)
    exact, gradients = truth(given, d_sums)
    tensors, weight, degree = arguments(shape, dtype, nan)
    near(ops.taylor_scan(*tensors, weight, degree), exact, eps, "sums")
    for name, ours, wanted in zip(NAMES, ops.taylor_scan_backward(d_sums, *tensors, weight, degree, ALL), gradients, strict=True):
        near(ours, wanted, eps, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_halves(dtype: torch.dtype) -> None:
    """Sums are those of the same numbers in float32, bit for bit; so are gradients, rounded once."""
    tensors, weight, degree = arguments(SHAPES[0], dtype)
    wide = [t.float() for t in tensors]
    sums = ops.taylor_scan(*tensors, weight, degree)
    same(sums, ops.taylor_scan(*wide, weight, degree), "sums")
    gradients = ops.taylor_scan_backward(sums, *tensors, weight, degree, ALL)
    for name, t, ours, other in zip(NAMES, tensors, gradients, ops.taylor_scan_backward(sums, *wide, weight, degree, ALL), strict=True):
        assert ours.dtype == t.dtype
        same(ours, other.to(t.dtype), name)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_gradcheck(degree: int) -> None:
    tensors, weight, _ = arguments(Shape(1, 2, 1, 5, 2, 2, degree), masked=None)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: ops.taylor_scan(*t, weight, degree), leaves)


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_dense_sums(degree: int) -> None:
    """The causal sums over all pairs of keys of the polynomial: features, weights and states agree with what they stand for."""
    tensors, weight, _ = arguments(Shape(2, 2, 1, 29, 5, 6, degree))
    dense = trilinear_sums(*tensors, 1 / 5, [-1, 0, -1, 0], taylor_coefficients(degree), False)
    near(ops.taylor_scan(*tensors, weight, degree), dense, 1e-13, "sums")


@pytest.mark.parametrize("first", [1, 6, 95, 96, 97, 150])
def test_later_tokens_change_nothing(first: int) -> None:
    """Bit for bit, with NaN in all that follows: no state, no lane and no chunk looks ahead."""
    tensors, weight, degree = arguments(Shape(1, 2, 1, 200, 3, 20, 2), torch.float32)
    short = ops.taylor_scan(*(t[:, :, :first] for t in tensors), weight, degree)
    for t in tensors:
        t[:, :, first:] = nan
    same(ops.taylor_scan(*tensors, weight, degree)[:, :, :first], short, "sums")


def test_earlier_tokens_have_the_gradients_of_later_ones_alone() -> None:
    """Tokens after the last upstream gradient have none, exactly: nothing flows forward in time."""
    tensors, weight, degree = arguments(Shape(1, 2, 1, 200, 3, 20, 2), torch.float32)
    d_sums = torch.zeros(1, 2, 200, 21)
    d_sums[:, :, :110] = 1
    for name, gradient in zip(NAMES, ops.taylor_scan_backward(d_sums, *tensors, weight, degree, ALL), strict=True):
        assert gradient[:, :, :110].any(), name
        assert not gradient[:, :, 110:].any(), name


@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 130, 12, 40, 2), Shape(1, 5, 1, 70, 6, 3, 3), Shape(3, 2, 2, 40, 3, 33, 2)], ids=str)
def test_threads_same_bits(shape: Shape) -> None:
    tensors, weight, degree = arguments(shape, torch.float32)
    found = []
    for count in (1, 2, 5):
        with threads(count):
            sums = ops.taylor_scan(*tensors, weight, degree)
            found.append((sums, *ops.taylor_scan_backward(sums, *tensors, weight, degree, ALL)))
    for other in found[1:]:
        for name, a, b in zip(("sums", *NAMES), found[0], other, strict=True):
            same(a, b, name)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout: Any) -> None:
    """Any strides of the inputs, the weight and the upstream gradient; inputs are not written."""
    tensors, weight, degree = arguments(Shape(2, 2, 1, 100, 3, 18, 2), torch.float32, None)
    moved = [layout(t) for t in tensors]
    dense = [t.contiguous() for t in moved]
    sums = ops.taylor_scan(*dense, weight, degree)
    same(ops.taylor_scan(*moved, LAYOUTS["step_two"](weight), degree), sums, "sums")
    upstream = layout(sums)
    ours = ops.taylor_scan_backward(upstream, *moved, weight, degree, ALL)
    for name, a, b in zip(NAMES, ours, ops.taylor_scan_backward(upstream.contiguous(), *dense, weight, degree, ALL), strict=True):
        same(a, b, name)
    same(moved, dense, "inputs")


def test_upstream_of_stride_zero() -> None:
    tensors, weight, degree = arguments(SHAPES[0], masked=None)
    leaves = [t.requires_grad_() for t in tensors]
    ours = torch.autograd.grad(ops.taylor_scan(*leaves, weight, degree).sum(), leaves)
    wanted = torch.autograd.grad(reference.taylor_scan(*leaves, weight, degree).sum(), leaves)
    for name, a, b in zip(NAMES, ours, wanted, strict=True):
        near(a, b, 1e-14, name)


@pytest.mark.parametrize("which", range(7), ids=NAMES)
def test_wants(which: int) -> None:
    """One gradient alone has the same bits; the others have no elements."""
    tensors, weight, degree = arguments(Shape(1, 3, 1, 100, 3, 18, 2), torch.float32)
    d_sums = ops.taylor_scan(*tensors, weight, degree)
    every = ops.taylor_scan_backward(d_sums, *tensors, weight, degree, ALL)
    found = ops.taylor_scan_backward(d_sums, *tensors, weight, degree, [i == which for i in range(7)])
    assert [g.numel() > 0 for g in found] == [i == which for i in range(7)]
    same(found[which], every[which], NAMES[which])
    none = ops.taylor_scan_backward(d_sums, *tensors[:5], None, None, weight, degree, ALL)
    assert [g.numel() for g in none[5:]] == [0, 0]


def test_all_keys_masked() -> None:
    """Sums and gradients are 0, whatever keys and values hold."""
    tensors, weight, degree = arguments(Shape(1, 2, 1, 100, 3, 4, 2), torch.float32, masked=None)
    for t in tensors[1:5]:
        t.fill_(nan)
    for t in tensors[5:]:
        t.fill_(-inf)
    sums = ops.taylor_scan(*tensors, weight, degree)
    for t in (sums, *ops.taylor_scan_backward(torch.ones_like(sums), *tensors, weight, degree, ALL)):
        assert not t.any()


def test_absent_keys_have_no_gradient_of_infinity() -> None:
    """An infinite upstream gradient reaches the keys that take part, and stays 0 for the others: 0 times infinity is not a number."""
    tensors, weight, degree = arguments(Shape(1, 2, 1, 100, 3, 4, 2), torch.float32)
    gradients = ops.taylor_scan_backward(torch.full((1, 2, 100, 5), inf), *tensors, weight, degree, ALL)
    for name, side, gradient in zip(NAMES[1:], (5, 6) * 3, gradients[1:], strict=True):
        absent = tensors[side] == -inf
        assert not gradient[absent].any(), name
        assert not gradient[~absent].isfinite().all(), name


@pytest.mark.parametrize("columns", [0, 5])
def test_long_sums(columns: int) -> None:
    """At 20000 tokens errors are those of a few roundings of float32: sums of a chunk are added to totals in float64. All terms are
    positive: with one float32 sum after another the errors are 1.0e-6 for the column of ones, 4.6e-6 for others; here 1.8e-7 and 3.5e-7."""
    n, d, degree = 20000, 3, 2
    draw = Draw(2)
    tensors = [draw.positive(1, 1, n, size).float() for size in (d, d, d, columns, columns)]
    weight = feature_weights(d, taylor_coefficients(degree), 1 / d, tensors[0])
    sums = ops.taylor_scan(*tensors, None, None, weight, degree)
    wide = [t.double() for t in tensors]
    d_sums = torch.ones_like(sums) / n
    exact, gradients = truth(([*wide, torch.zeros(1, 1, n).double(), torch.zeros(1, 1, n).double()], weight, degree), d_sums)
    error = ((sums.double() - exact) / exact).abs()
    assert error.max() < 6e-7
    ours = ops.taylor_scan_backward(d_sums, *tensors, None, None, weight, degree, [True] * 5 + [False] * 2)
    for name, a, b in zip(NAMES, ours, gradients[:5], strict=False):
        if b.numel():
            assert ((a.double() - b).abs() / b.abs().max()).max() < 6e-7, name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"key2": torch.zeros(1, 1, 4, 3)}, r"key2 must have shape \(1, 1, 5, 3\)"),
        ({"value1": torch.zeros(1, 1, 5)}, "value1 must have 4 dimensions, got 3"),
        ({"value2": torch.zeros(1, 1, 5, 9)}, r"value2 must have shape \(1, 1, 5, 2\)"),
        ({"bias1": torch.zeros(1, 5)}, r"bias1 must have shape \(1, 1, 5\)"),
        ({"key1": torch.zeros(1, 1, 5, 3, dtype=torch.float64)}, "key1 must be float32"),
        ({"key1": torch.zeros(1, 3, 5, 3)}, "the heads of key1 must divide those of query, got 3 and 2"),
        ({"weight": torch.zeros(7)}, r"weight must have shape \(10\)"),
        ({"degree": -1}, "degree must be 0 to 1000"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_errors(change: dict[str, Any], text: str) -> None:
    tensors, weight, degree = arguments(Shape(1, 2, 1, 5, 3, 2, 2), torch.float32)
    named = {**dict(zip(NAMES, tensors, strict=True)), "weight": weight, "degree": degree, **change}
    with pytest.raises(RuntimeError, match=f"taylor_scan: {text}"):
        ops.taylor_scan(**named)
