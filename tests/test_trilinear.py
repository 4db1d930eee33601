"""Ops on all pairs of keys against their definitions: shapes, windows, masks, strides, accuracy, threads, symmetry, extreme logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nearlinear
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from measure import same, threads
from nearlinear.reference import tensor_attention as reference
from torch import Tensor

ops = torch.ops.nearlinear
inf, nan = math.inf, math.nan
ANY = (-1, -1, -1, -1)
TAYLOR = [1.0, 1.0, 0.5]
KERNELS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "softmax": ("trilinear_softmax", ()),
    "polynomial": ("trilinear_sums", ([0.3, -1.0, 0.5, 0.2], False)),
    "excess_taylor": ("trilinear_sums", (TAYLOR, True)),
    "excess_other": ("trilinear_sums", ([1.0, 0.4], True)),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
Tensors = list[Tensor | None]


@dataclass(frozen=True)
class Problem:
    lengths: tuple[int, int, int]
    dims: tuple[int, int] = (5, 4)
    heads: tuple[int, int] = (2, 1)  # of queries, of keys
    batch: int = 1
    window: Sequence[int] = ANY
    biases: str = ""  # "float": normal; "mask": -inf for some keys, which then hold NaN and infinity
    scale: float | None = None  # 1 / D

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensors:
        draw = torch.Generator().manual_seed(seed)
        (N, *keys), (D, E), (H, G), B = self.lengths, self.dims, self.heads, self.batch
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        made: Tensors = [torch.randn(B, H, N, D, generator=draw, dtype=torch.float64).to(dtype)]
        made += [torch.randn(B, G, n, c, generator=draw, dtype=torch.float64).to(dtype) for c in (D, E) for n in keys]
        made += [torch.randn(B, G, n, generator=draw, dtype=torch.float64).to(wide) if self.biases else None for n in keys]
        if self.biases == "mask":
            for axis, absent in ((1, slice(None, None, 3)), (2, slice(1, None, 2))):
                made[4 + axis][..., absent] = -inf  # type: ignore[index]
                made[axis][:, :, absent], made[2 + axis][:, :, absent] = nan, inf  # type: ignore[index]
        return made

    def options(self, kernel: str) -> tuple[Any, ...]:
        return (1 / self.dims[0] if self.scale is None else self.scale, list(self.window), *KERNELS[kernel][1])

    def run(self, module: Any, kernel: str, tensors: Tensors) -> list[Tensor]:
        found = getattr(module, KERNELS[kernel][0])(*tensors, *self.options(kernel))
        return [found] if isinstance(found, Tensor) else list(found)


def leaves(tensors: Tensors) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def everything(problem: Problem, module: Any, kernel: str, tensors: Tensors, upstream: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Outputs, and the gradients of all inputs under fixed upstream gradients."""
    inputs: Tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    outputs = problem.run(module, kernel, inputs)
    draw = torch.Generator().manual_seed(1)
    if upstream is None:
        upstream = [torch.randn(y.shape, generator=draw).to(y.dtype).masked_fill(y == -inf, 0) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves(inputs), list(upstream))]


def error(found: Tensor, exact: Tensor) -> float:
    """Largest error, relative to the largest value; infinities must agree."""
    assert found.shape == exact.shape
    finite = exact.isfinite()
    assert torch.equal(found.isfinite(), finite), "where it is finite"
    assert torch.equal(found[~finite].double(), exact[~finite])
    top = exact[finite].abs().max().item() if finite.any() else 0.0
    return ((found.double() - exact)[finite].abs().max().item() / (top or 1.0)) if finite.any() else 0.0


def doubles(tensors: Tensors) -> Tensors:
    return [None if t is None else t.double() for t in tensors]


def check_in_float64(problem: Problem, kernel: str) -> None:
    found, exact = (everything(problem, module, kernel, problem.tensors()) for module in (ops, reference))
    for i, (f, e) in enumerate(zip(found, exact, strict=True)):
        assert error(f, e) <= 1e-12, f"result {i}"


def check_against_eager(problem: Problem, kernel: str, dtype: torch.dtype, floor: float) -> None:
    """At most twice the error of the definition in the same dtype, or the rounding of a few steps."""
    tensors = problem.tensors(dtype)
    exact = everything(problem, reference, kernel, doubles(tensors))
    eager = everything(problem, reference, kernel, [None if t is None else t.to(dtype) for t in tensors])
    for i, (f, e, y) in enumerate(zip(everything(problem, ops, kernel, tensors), eager, exact, strict=True)):
        assert error(f, y) <= max(2 * error(e, y), floor), f"result {i}"


# 0 to 2 of everything; one vector of lanes and its neighbours; several batches of rows, tiles of columns and blocks of keys
SHAPES = {
    **{f"queries_{n}": Problem((n, 3, 4)) for n in (0, 1, 2)},
    **{f"keys1_{n}": Problem((3, n, 4)) for n in (0, 1, 2)},
    **{f"keys2_{n}": Problem((3, 4, n)) for n in (0, 1, 2)},
    **{f"dims_{d}_{e}": Problem((37, 29, 50), (d, e), (4, 2), 2, biases="float") for d, e in ((1, 3), (3, 1), (16, 40), (64, 16))},
    "wide_keys": Problem((5, 300, 20), (40, 64)),
    "large": Problem((129, 129, 129), (3, 1), (1, 1)),
    "blocks": Problem((2, 600, 700), (64, 64), (1, 1)),
    "causal": Problem((129, 129, 129), (4, 3), (2, 2), window=(-1, 0, -1, 0)),
    "band": Problem((70, 70, 70), (16, 16), (8, 1), window=(3, 0, 31, 2)),
    "band_masked": Problem((70, 70, 70), (16, 16), (8, 1), window=(31, 0, 3, 1), biases="mask"),
    "masked": Problem((60, 90, 30), (16, 16), (2, 1), biases="mask"),
    "beyond_window": Problem((150, 20, 30), (4, 4), window=(3, 3, -1, 2)),  # the last queries see no key
}
each_shape = pytest.mark.parametrize("shape", SHAPES)


@each_kernel
@each_shape
def test_definition(shape: str, kernel: str) -> None:
    check_in_float64(SHAPES[shape], kernel)


@each_kernel
@each_shape
def test_accuracy_in_float32(shape: str, kernel: str) -> None:
    problem = SHAPES[shape]
    check_against_eager(problem, kernel, torch.float32, 2e-6)  # gradients are differences of sums
    tensors = problem.tensors(torch.float32)
    for found, exact in zip(problem.run(ops, kernel, tensors), problem.run(reference, kernel, doubles(tensors)), strict=True):
        assert error(found, exact) <= 1e-6


@pytest.mark.parametrize("shape", ["dims_16_40", "causal", "band_masked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_halves(shape: str, dtype: torch.dtype) -> None:
    check_against_eager(SHAPES[shape], "softmax", dtype, torch.finfo(dtype).eps / 2)


@pytest.mark.parametrize("queries", [1, 64])
def test_forward_accuracy_in_float32(queries: int) -> None:
    """Values that do not cancel: an error that grew with the number of pairs would show."""
    problem = Problem((queries, 3000, 3000) if queries == 1 else (queries, 300, 300), (16, 16), (1, 1))
    tensors = problem.tensors(torch.float32)
    tensors[3], tensors[4] = tensors[3].abs(), tensors[4].abs()  # type: ignore[union-attr]
    for kernel in ("softmax", "polynomial"):
        exact = problem.run(reference, kernel, doubles(tensors))
        assert error(problem.run(ops, kernel, tensors)[0], exact[0]) <= 5e-7


@given(
    lengths=st.tuples(*[st.integers(1, 60)] * 3),
    window=st.tuples(*[st.integers(-1, 70)] * 4),
    heads=st.sampled_from([(1, 1), (4, 1), (6, 2)]),
    biases=st.sampled_from(["", "float", "mask"]),
    kernel=st.sampled_from(list(KERNELS)),
)
@settings(max_examples=60)
def test_any_lengths_windows_heads_and_biases(lengths: Any, window: Any, heads: Any, biases: str, kernel: str) -> None:
    check_in_float64(Problem(lengths, (3, 2), heads, window=window, biases=biases), kernel)


@each_kernel
@pytest.mark.parametrize("window", [ANY, (1, 0, -1, 1)], ids=["all", "window"])
def test_gradcheck(kernel: str, window: Sequence[int]) -> None:
    problem = Problem((3, 4, 3), (2, 3), (2, 1), window=window, biases="float", scale=0.7)
    inputs = [t.requires_grad_() for t in leaves(problem.tensors())]
    assert torch.autograd.gradcheck(lambda *t: tuple(problem.run(ops, kernel, list(t))), inputs)


@each_kernel
def test_only_wanted_gradients_the_same_bits(kernel: str) -> None:
    problem = Problem((50, 40, 70), (20, 8), (2, 1), biases="float")
    every = everything(problem, ops, kernel, problem.tensors(torch.float32))
    outputs = len(every) - 7
    for wanted in range(7):
        inputs = [t.requires_grad_(i == wanted) for i, t in enumerate(leaves(problem.tensors(torch.float32)))]
        found = problem.run(ops, kernel, list(inputs))
        draw = torch.Generator().manual_seed(1)
        upstream = [torch.randn(y.shape, generator=draw).to(y.dtype) for y in found]
        same(torch.autograd.grad(found, inputs[wanted], upstream)[0], every[outputs + wanted], f"input {wanted}")


@each_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout: str, kernel: str) -> None:
    problem = Problem((20, 30, 25), (5, 4), (2, 2), 2, biases="float")
    tensors = [LAYOUTS[layout](t) for t in leaves(problem.tensors(torch.float32))]
    dense = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
    for i, (f, e) in enumerate(
        zip(everything(problem, ops, kernel, list(tensors)), everything(problem, ops, kernel, list(dense)), strict=True)
    ):
        same(f.contiguous(), e, f"result {i}")


def test_expanded_heads_and_upstream_gradients() -> None:
    """Strides 0: keys shared by expand instead of by groups, and the gradient of a sum."""
    problem = Problem((50, 20, 30), (5, 4), (4, 1))
    tensors = problem.tensors(torch.float32)
    spread = [tensors[0], *(t.expand(-1, 4, -1, -1) for t in leaves(tensors)[1:]), None, None]
    ones = [y.new_ones(()).expand(y.shape) for y in problem.run(ops, "softmax", tensors)]
    shared = everything(problem, ops, "softmax", tensors, ones)
    copied = everything(problem, ops, "softmax", spread, [y.contiguous() for y in ones])
    for f, e in zip(shared[:2], copied[:2], strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-6)
    for f, e in zip(shared[3:], copied[3:], strict=True):
        torch.testing.assert_close(f, e.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


@each_kernel
@pytest.mark.parametrize("window", [ANY, (-1, 0, -1, 0), (5, 0, 40, 0)], ids=["all", "causal", "band"])
def test_the_same_bits_for_any_number_of_threads(kernel: str, window: Sequence[int]) -> None:
    problem = Problem((150, 150, 150), (8, 8), (2, 1), window=window, biases="float")
    tensors = problem.tensors(torch.float32)
    with threads(1):
        one = everything(problem, ops, kernel, tensors)
    for number in (2, 3, 7):
        with threads(number):
            for i, (f, e) in enumerate(zip(everything(problem, ops, kernel, tensors), one, strict=True)):
                same(f, e, f"{number} threads, result {i}")


@each_kernel
def test_swapped_and_permuted_keys(kernel: str) -> None:
    problem = Problem((40, 30, 30), (6, 5), (2, 1), biases="float")
    tensors = problem.tensors()
    swapped = [tensors[i] for i in (0, 2, 1, 4, 3, 6, 5)]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    moved = [t if i in (0, 2, 4, 6) or t is None else t[:, :, order] for i, t in enumerate(tensors)]
    plain = problem.run(ops, kernel, tensors)
    for changed in (swapped, moved):
        for f, e in zip(problem.run(ops, kernel, changed), plain, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("absent", [1, 2])
@each_kernel
def test_all_keys_masked(kernel: str, absent: int) -> None:
    problem = Problem((5, 6, 7), biases="float")
    tensors = problem.tensors(torch.float32)
    tensors[4 + absent].fill_(-inf)  # type: ignore[union-attr]
    tensors[absent].fill_(nan)  # type: ignore[union-attr]
    first, *rest = everything(problem, ops, kernel, tensors)
    assert first.eq(0).all()
    if kernel == "softmax":
        assert rest.pop(0).eq(-inf).all()
    assert all(g.eq(0).all() for g in rest)


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_huge_logits(size: float, dtype: torch.dtype) -> None:
    """One-hot attention: finite, the value of the best pair, and no more error than the rounding of the logits brings."""
    problem = Problem((60, 50, 300), (4, 3), (1, 1), scale=size)
    tensors = problem.tensors(dtype)
    tensors[5] = torch.zeros(1, 1, 50, dtype=dtype)
    tensors[6] = size * torch.randn(1, 1, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    found = everything(problem, ops, "softmax", tensors)
    assert all(f.isfinite().all() for f in found)
    wide = doubles(tensors)
    x, bias = reference.logits(*wide[:3], *wide[5:], size, list(ANY))  # type: ignore[arg-type]
    rounding = 20 * torch.finfo(dtype).eps * (x + bias).abs().max().item()  # of a logit, four terms
    out, lse = problem.run(reference, "softmax", wide)
    assert (found[1] - lse).abs().max() <= rounding
    largest = max(t.abs().max() for t in wide[3:5])  # type: ignore[union-attr]
    assert (found[0] - out).abs().max() <= (2 * min(1, math.expm1(2 * rounding)) + 1e-6) * largest**2


@pytest.mark.parametrize("offset", [-3e4, -40.0, 40.0, 3e4])
def test_a_common_bias_moves_only_lse(offset: float) -> None:
    """Rising and falling logits, block after block: the shift follows, or none is needed."""
    problem = Problem((6, 300, 1200), (4, 3), (1, 1), biases="float")
    tensors = problem.tensors()
    for order in (1, -1):
        tensors[6] = torch.linspace(-30, 30, 1200, dtype=torch.float64).view(1, 1, -1) * order
        out, lse = problem.run(ops, "softmax", tensors)
        exact, _ = problem.run(reference, "softmax", tensors)
        moved, moved_lse = problem.run(ops, "softmax", [*tensors[:6], tensors[6] + offset])  # type: ignore[operator]
        torch.testing.assert_close(out, exact, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(moved, out, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(moved_lse, lse + offset, rtol=1e-12, atol=0)


def test_not_a_number_stays_in_its_row() -> None:
    problem = Problem((60, 20, 30), (4, 3), (1, 1))
    tensors = problem.tensors(torch.float32)
    clean = problem.run(ops, "softmax", tensors)
    tensors[0][0, 0, 7, 2] = nan  # type: ignore[index]
    for f, e in zip(problem.run(ops, "softmax", tensors), clean, strict=True):
        assert f[0, 0, 7].isnan().all()
        rest = torch.arange(60) != 7
        torch.testing.assert_close(f[:, :, rest], e[:, :, rest], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_excess_does_not_cancel(degree: int, dtype: torch.dtype) -> None:
    """Logits of about 0.05 and positive: the rest of the series keeps its relative accuracy, where e^x - p(x) would keep none."""
    problem = Problem((5, 20, 30), (3, 2), (1, 1), scale=0.05)
    tensors = [t if t is None else t.abs() for t in problem.tensors(dtype)]
    zeros = (torch.zeros(1, 1, n, dtype=torch.float64) for n in (20, 30))
    x, _ = reference.logits(*(t.double() for t in tensors[:3]), *zeros, 0.05, list(ANY))  # type: ignore[union-attr]
    weights = sum(x**m / float(math.factorial(m)) for m in range(degree + 1, degree + 20))
    coefficients = [1 / math.factorial(m) for m in range(degree + 1)]
    sums = ops.trilinear_sums(*tensors, 0.05, list(ANY), coefficients, True)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6  # of x^7 in float32, whose channels have three roundings each
    torch.testing.assert_close(sums[..., -1].double(), weights.sum((3, 4)), rtol=tolerance, atol=0)


def test_biases_that_cancel_and_weights_that_overflow() -> None:
    problem = Problem((3, 4, 5), biases="float")
    tensors = problem.tensors(torch.float32)
    tensors[5], tensors[6] = tensors[5] + 200, tensors[6] - 200  # type: ignore[operator]
    plain = problem.run(reference, "polynomial", doubles(tensors))[0]
    assert error(problem.run(ops, "polynomial", tensors)[0], plain) <= 1e-6
    one = torch.full((1, 1, 1, 1), 100.0)
    assert ops.trilinear_sums(one, one / 100, one / 100, one, one, None, None, 1.0, list(ANY), TAYLOR, True)[..., -1] == inf


WRONG: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "heads": (lambda a: a.__setitem__(0, a[0][:, :1]), "the heads of key1 must divide those of query, got 2 and 1"),
    "key2": (lambda a: a.__setitem__(2, a[2][..., :-1]), r"key2 must have shape \(1, 2, N2, 5\)"),
    "value1": (lambda a: a.__setitem__(3, a[3][:, :, 1:]), r"value1 must have shape \(1, 2, 4, 4\)"),
    "bias2": (lambda a: a.__setitem__(6, a[6][..., 1:]), r"bias2 must have shape \(1, 2, 5\)"),
    "bias1": (lambda a: a.__setitem__(5, a[5].double()), "bias1 must have the dtype of the statistics"),
    "value2": (lambda a: a.__setitem__(4, a[4].double()), "value2 must have the dtype of query"),
    "window": (lambda a: a.__setitem__(8, [1, 2]), "window must have 4 numbers, got 2"),
    "distance": (lambda a: a.__setitem__(8, [1, -2, 0, 0]), "window must hold distances >= 0, or -1 for any, got -2"),
    "query": (lambda a: a.__setitem__(0, a[0][0]), r"query must have shape \(B, H, N, D\), got 3 dimensions"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors(wrong: str) -> None:
    problem = Problem((3, 4, 5), heads=(2, 2), biases="float")
    arguments = [*problem.tensors(torch.float32), *problem.options("softmax")]
    change, text = WRONG[wrong]
    change(arguments)
    with pytest.raises(RuntimeError, match=f"trilinear_softmax: {text}"), torch.no_grad():
        ops.trilinear_softmax(*arguments)


def test_package_is_loaded() -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("nearlinear::trilinear_sums", "CPU"), nearlinear.__file__
