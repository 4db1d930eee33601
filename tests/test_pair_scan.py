"""The sorted scan over pairs against its definition, in which every pair is built; its rules for NaN, infinities, ties and weights."""

from __future__ import annotations

import functools

import pytest
import torch
from layouts import LAYOUTS
from measure import Draw, poisoned_memory, same, threads
from nearlinear import pair_kernels
from nearlinear.pair_kernels import DEGREES, logistic, logistic_coefficients, power
from nearlinear.reference import pairwise_auc as reference
from torch import Tensor

ops = torch.ops.nearlinear
Kernel = tuple[str, list[float], list[float]]
INF, NAN = float("inf"), float("nan")
METHODS = ("scan", "direct", "auto")


def softplus(scale: float, degree: int) -> Kernel:
    """log(1 + e^-(scale x)), and its slope by scale x."""
    c, e = (logistic_coefficients(order, degree) for order in (0, 1))
    return "logistic", logistic(scale, 0, -scale, c, c), logistic(scale, -1, 0, [-x for x in e], e)


KERNELS: dict[str, Kernel] = {
    "logistic": softplus(1.7, DEGREES[torch.float64]),
    "logistic_32": softplus(0.6, DEGREES[torch.float32]),
    "squared_hinge": ("power", power(0, (0, 1, 1, 2)), power(0, (0, 1, -2, 1))),
    "both_sides": (
        "power",
        power(0.5, (0, 1, 1, 2), (1, -0.5, 0.75, 3), (0, 0.25, -1, 0), (1, 2, 1, 0)),
        power(-1, (0, 1, -2, 1), (1, 2, 0.5, 6)),
    ),
    "huber_hinge": ("power", power(0, (0, 1, 0.5, 2), (0, 0, -0.5, 2)), power(0, (0, 1, -1, 1), (0, 0, 1, 1))),
}


def scores(kind: str, n: int, seed: int = 0) -> Tensor:
    """Numbers that float32 holds, so that differences are exact in float64."""
    x, far = Draw(seed).normal(n), Draw(seed + 1).normal(n)
    made = {
        "normal": x,
        "wide": 5 * x,
        "cauchy": (x / far).clamp(-1e6, 1e6),
        "student": x / far.abs().pow(2 / 3).clamp(min=1e-3),
        "clusters": 1e-4 * x + 7 * (far * 2).round(),
        "uniform": 1e4 * (2 * torch.special.ndtr(x) - 1),
        "tied": torch.full_like(x, 2.5),
        "levels": (3 * x).round().clamp(-3, 3),
        "offset": x + 1e4,
    }
    return made[kind].float().double()


KINDS = ("normal", "wide", "cauchy", "student", "clusters", "uniform", "tied", "levels", "offset")


def problem(n: int, kind: str = "levels", share: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    """Coefficients of both signs, some of them 0."""
    draw = Draw(seed + 7)
    return {
        "input": scores(kind, n, seed).float(),
        "target": draw.positive(n) < 0.25 + share,
        "coefficient": (draw.labels(9, n) - 3).float() / 4,
        "group": draw.labels(7, n),
    }


def absolute(family: str, kernel: list[float]) -> list[float]:
    """The kernel whose values are the sums of the absolute values of the terms."""
    if family == "power":
        return [abs(kernel[0]), *(abs(x) if i % 4 == 2 else x for i, x in enumerate(kernel[1:]))] if kernel else []
    return [kernel[0], abs(kernel[1]), -abs(kernel[2]), *map(abs, kernel[3:])] if kernel else []


def check(s: Tensor, y: Tensor, c: Tensor | None, g: Tensor | None, groups: int, kernel: Kernel, method: str) -> None:
    """float64: each component to 1e-12 of the sum of its absolute terms; float32: potentials to 5e-7 of their norm."""
    family, value, slope = kernel
    wide = (s.double(), y, c if c is None else c.double(), g, groups)
    expected = reference.pair_scan(*wide, family, value, slope, method)
    sizes = reference.pair_scan(
        wide[0], y, None if c is None else c.double().abs(), g, groups, family, absolute(family, value), absolute(family, slope), method
    )
    total, potential = ops.pair_scan(s, y, c, g, groups, family, value, slope, method)
    assert (total.dtype, potential.dtype) == (torch.float64, s.dtype)
    # the two sides of a tie differ by their fit
    fit = 4e-8 if len(value) < 30 and family == "logistic" else 0
    assert ((total - expected[0]).abs() <= (1e-12 + fit) * sizes[0]).all()
    if s.dtype == torch.float64:
        assert ((potential - expected[1]).abs() <= (1e-12 + fit) * sizes[1]).all()
    else:
        assert (potential - expected[1]).norm() <= 5e-7 * sizes[1].norm()


class TestOps:
    @classmethod
    def op_samples(cls) -> list[tuple[object, ...]]:
        s, y, c, g = problem(40).values()
        made: list[tuple[object, ...]] = []
        for family, value, slope in KERNELS.values():
            made += [(s, y, c, g, 7, family, value, slope, "auto"), (s.double(), y, None, None, 1, family, [], slope, "scan")]
            made += [(s, y, None, None, 1, family, value, [], "direct")]
        return made

    def test_opcheck(self) -> None:
        for arguments in self.op_samples():
            torch.library.opcheck(ops.pair_scan.default, arguments)

    def test_definition(self) -> None:
        for s, y, c, g, groups, family, value, slope, method in self.op_samples():
            check(s, y, c, g, groups, (family, value, slope), method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_definition(kind: str, name: str, dtype: torch.dtype) -> None:
    for n in (0, 1, 2, 3, 7, 100, 2000):
        s, y, c, _ = problem(n, kind).values()
        for coefficient in (None, c.to(dtype), c.abs().to(dtype))[: 1 if n == 2000 else 3]:
            for method in METHODS if n < 2000 else ("scan",):
                check(s.to(dtype), y, coefficient, None, 1, KERNELS[name], method)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("gap", [20.0, -20.0])
def test_separated_and_rare_labels(gap: float, name: str) -> None:
    s, y, c, _ = problem(1000, "normal").values()
    check((s + gap * y).double(), y, None, None, 1, KERNELS[name], "scan")
    rare = torch.arange(1000) % 500 == 3
    for target in (rare, ~rare):
        check(s, target, c, None, 1, KERNELS[name], "scan")


@pytest.mark.parametrize("name", KERNELS)
def test_groups(name: str) -> None:
    """Ids in any order, empty groups, groups of one label, one per sample, of very unequal sizes."""
    n = 400
    s, y, c, g = problem(n).values()
    zipf = (100 * torch.rand(n, generator=Draw().generator) ** 4).long()
    y = torch.where(g == 3, True, torch.where(g == 4, False, y))
    for ids, groups in ((g, 9), (zipf, 100), (torch.arange(n).flip(0), n), (torch.arange(n) // 2, n // 2)):
        for method in METHODS:
            check(s, y, c, ids, groups, KERNELS[name], method)


@pytest.mark.parametrize("name", KERNELS)
def test_pieces(name: str) -> None:
    """300000 samples take 586 blocks, whose states are combined; against all pairs of the few distinct scores."""
    n = 300_000
    s, y, _, _ = problem(n, "normal", seed=2).values()
    s = (s * 64).round() / 64  # few distinct scores, so that histograms give the sums
    family, value, slope = KERNELS[name]
    levels, place = s.double().unique(return_inverse=True)
    p, q = (torch.bincount(place[which], minlength=len(levels)).double() for which in (y, ~y))
    x = levels[:, None] - levels
    k, u = (pair_kernels.evaluate(family, kernel, x) for kernel in (value, slope))
    potential = torch.where(y, (u @ q)[place], (p @ u)[place])
    size = torch.where(y, (u.abs() @ q)[place], (p @ u.abs())[place]).clamp(min=1)
    got = ops.pair_scan(s.double(), y, None, None, 1, family, value, slope, "scan")
    tolerance = 1e-12 if name != "logistic_32" else 1e-7
    assert float(got[0]) == pytest.approx(float(p @ k @ q), rel=tolerance)
    assert ((got[1] - potential).abs() <= 10 * tolerance * size).all()


@pytest.mark.parametrize("name", KERNELS)
def test_the_ends(name: str) -> None:
    """The lowest sample sees all of its partners on the way down only, the highest on the way up only."""
    s, y, c, _ = problem(200, "normal").values()
    s = s.double()
    for end in (int(s.argmin()), int(s.argmax())):
        for label in (True, False):
            y[end] = label
            family, value, slope = KERNELS[name]
            x = s[end] - s[~y] if label else s[y] - s[end]
            partners = c.double()[y != label]
            expected = (pair_kernels.evaluate(family, slope, x) * partners).sum()
            got = ops.pair_scan(s, y, c.double(), None, 1, family, value, slope, "scan")[1][end]
            torch.testing.assert_close(got, expected, rtol=1e-7 if name == "logistic_32" else 1e-11, atol=1e-12)


def test_ties_are_told_apart_by_position_or_lie_at_the_knot() -> None:
    """A kernel that is 2 below 0 and 0 above counts pairs; the stable order of equal scores decides."""
    s, y, _, _ = problem(300, "levels").values()
    order = torch.arange(300)
    p, q = y.nonzero().flatten(), (~y).nonzero().flatten()
    below = (s[p, None] < s[q]) | ((s[p, None] == s[q]) & (order[p, None] < order[q]))
    zeros = torch.zeros(4).tolist()
    jump, step = logistic(1, 2, 0, zeros, zeros), power(0, (0, 0, 2, 0))
    for method in METHODS:
        total, potential = ops.pair_scan(s, y, None, None, 1, "logistic", jump, jump, method)
        assert float(total) == 2 * int(below.sum())
        assert potential[p].tolist() == (2 * below.sum(1)).tolist()
        assert potential[q].tolist() == (2 * below.sum(0)).tolist()
        strict = int((s[p, None] < s[q]).sum())
        assert float(ops.pair_scan(s, y, None, None, 1, "power", step, [], method)[0]) == 2 * strict
    signed = torch.where(s == 0, torch.where(order % 2 == 0, 0.0, -0.0), s)
    same(ops.pair_scan(signed, y, None, None, 1, "logistic", jump, jump, "scan"), (total, potential), "-0.0")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KERNELS)
def test_infinities(name: str, method: str) -> None:
    """Limits of the kernel, ties where they are equal, never NaN."""
    for seed in range(40):
        draw = Draw(seed)
        s = torch.tensor([-INF, INF, 0.0, -0.0, 1, 2, -3], dtype=torch.float64)[draw.labels(7, 12)]
        y, c, g = draw.labels(2, 12).bool(), draw.labels(3, 12).double(), draw.labels(3, 12)
        family, value, slope = KERNELS[name]
        got = ops.pair_scan(s, y, c, g, 3, family, value, slope, method)
        if name != "both_sides":  # infinite of both signs
            assert not got[0].isnan().any()
            assert not got[1].isnan().any()
        if name == "huber_hinge":  # the definition subtracts two infinities
            continue
        expected = reference.pair_scan(s, y, c, g, 3, family, value, slope, method)
        tolerance = 1e-7 if name == "logistic_32" else 1e-12
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_infinite_limit_of_a_sum_of_terms() -> None:
    s, y = torch.tensor([-INF, 0.0]), torch.tensor([True, False])
    total, potential = ops.pair_scan(s, y, None, None, 1, *KERNELS["huber_hinge"], "scan")
    assert total.tolist() == [INF]
    assert potential.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("name", ["logistic", "logistic_32", "squared_hinge"])
def test_extreme_scores(name: str) -> None:
    """Gaps and powers that overflow are infinite; no empty or full state turns them into NaN."""
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        s = torch.tensor([-top, -top, 0, top, top, 1e-45], dtype=dtype)
        for labels in ([1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]):
            for method in METHODS:
                total, potential = ops.pair_scan(s, torch.tensor(labels).bool(), None, None, 1, *KERNELS[name], method)
                assert not total.isnan().any()
                assert not potential.isnan().any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KERNELS)
def test_not_a_number(name: str, method: str) -> None:
    s, y, _, _ = problem(60, "normal").values()
    g = torch.arange(60) % 3
    s[4] = NAN
    clean = [ops.pair_scan(s[g == k], y[g == k], None, None, 1, *KERNELS[name], method) for k in range(3)]
    total, potential = ops.pair_scan(s, y, None, g, 3, *KERNELS[name], method)
    assert total.isnan().tolist() == [False, True, False]
    same(potential.isnan(), g == 1, "the group of a NaN")
    same(torch.cat([x[0] for x in clean]), total, "other groups")
    c = torch.ones(60)
    c[4] = 0
    total, potential = ops.pair_scan(s, y, c, g, 3, *KERNELS[name], method)
    others = torch.arange(60) != 4
    expected = ops.pair_scan(s[others], y[others], None, g[others], 3, *KERNELS[name], method)
    torch.testing.assert_close((total, potential[others]), expected)
    assert potential.isnan().nonzero().tolist() == [[4]]
    one_label = ops.pair_scan(s, torch.ones_like(y), None, g, 3, *KERNELS[name], method)
    assert not any(x.any() for x in one_label)


@pytest.mark.parametrize("name", KERNELS)
def test_a_coefficient_of_0_receives_only(name: str) -> None:
    s, y, c, g = problem(500, "normal").values()
    kept = c != 0
    total, potential = ops.pair_scan(s, y, c, g, 7, *KERNELS[name], "scan")
    expected = ops.pair_scan(s[kept], y[kept], c[kept], g[kept], 7, *KERNELS[name], "scan")
    torch.testing.assert_close(total, expected[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(potential[kept], expected[1])
    assert potential[~kept].any()


@pytest.mark.parametrize("name", KERNELS)
def test_shift_by_a_power_of_two(name: str) -> None:
    """Prefix moments lose all digits here."""
    s, y, c, g = problem(3000, "normal").values()
    s = (s * 2**16).round().double() / 2**16
    before = ops.pair_scan(s, y, c.double(), g, 7, *KERNELS[name], "scan")
    after = ops.pair_scan(s + 2.0**30, y, c.double(), g, 7, *KERNELS[name], "scan")
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-11)


def test_layouts_threads_and_inputs() -> None:
    s, y, c, g = problem(300_000, "normal").values()
    kept = [t.clone() for t in (s, y, c, g)]
    for kernel in KERNELS.values():
        calls = [lambda k=kernel: ops.pair_scan(s, y, c, g, 7, *k, "auto"), lambda k=kernel: ops.pair_scan(s, y, None, None, 1, *k, "scan")]
        torch.set_num_threads(1)
        expected = [call() for call in calls]
        with threads(2):
            same([call() for call in calls], expected, "two threads")
    same([s, y, c, g], kept, "inputs")
    s, y, c, g = (t[:500] for t in (s, y, c, g))
    arguments = (g, 7, *KERNELS["logistic"], "auto")
    for name, make in LAYOUTS.items():
        view, weight, label = make(s), make(c), y[:1].expand(500) if name == "expanded" else y
        same(ops.pair_scan(view, label, weight, *arguments), ops.pair_scan(view.clone(), label.clone(), weight.clone(), *arguments), name)
    with poisoned_memory():
        same(ops.pair_scan(s, y, c, *arguments), ops.pair_scan(s, y, c, *arguments), "uninitialised memory")


def test_outputs_that_are_not_wanted_are_empty() -> None:
    s, y, c, g = problem(300).values()
    for family, value, slope in KERNELS.values():
        both = ops.pair_scan(s, y, c, g, 7, family, value, slope, "auto")
        for kernel, shapes in (((value, []), (7, 0)), (([], slope), (0, 300)), (([], []), (0, 0))):
            got = ops.pair_scan(s, y, c, g, 7, family, *kernel, "auto")
            assert tuple(map(len, got)) == shapes
            for a, b in zip(got, both, strict=True):
                if len(a):
                    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    empty = torch.zeros(0)
    total, potential = ops.pair_scan(empty, empty.bool(), None, empty.long(), 0, *KERNELS["logistic"], "auto")
    assert (total.shape, potential.shape) == ((0,), (0,))


def test_memory() -> None:
    """Bytes per element beyond inputs and outputs, as the kernel's header says."""
    from nearlinear.bench.measure import peak_mb

    n = 4_000_000
    s, y, c = torch.randn(n), torch.rand(n) < 0.3, torch.rand(n)
    for weight, most in ((None, 16), (c, 20)):
        call = functools.partial(ops.pair_scan, s, y, weight, None, 1, *KERNELS["squared_hinge"], "scan")
        call()
        peak = peak_mb(call, torch.device("cpu"))
        if peak is None:
            pytest.skip("the gauge reads /proc")
        assert peak < (most + 4 + 0.5) * n / 1e6


S, Y = torch.zeros(3), torch.tensor([True, False, True])
H = power(0, (0, 1, 1, 2))
ERRORS = [
    ((torch.zeros(3, 1), Y, None, None, 1, "power", H, H, "auto"), "input must have shape (N,), got 2 dimensions"),
    ((S.half(), Y, None, None, 1, "power", H, H, "auto"), "input must be float32 or float64"),
    ((S, Y[:2], None, None, 1, "power", H, H, "auto"), "target must be bool of shape (N,)"),
    ((S, Y.long(), None, None, 1, "power", H, H, "auto"), "target must be bool of shape (N,)"),
    ((S, Y, S.double(), None, 1, "power", H, H, "auto"), "coefficient must have the dtype and the shape of input"),
    ((S, Y, None, None, 2, "power", H, H, "auto"), "num_groups must be >= 0, and 1 without group, got 2"),
    ((S, Y, None, Y.int(), 2, "power", H, H, "auto"), "group must be int64 of shape (N,)"),
    ((S, Y, None, Y.long() - 1, 2, "power", H, H, "auto"), "group[1] = -1 is out of range [0, 2)"),
    ((S, Y, None, Y.long(), 1, "power", H, H, "auto"), "group[0] = 1 is out of range [0, 1)"),
    ((S, Y, None, None, 1, "cubic", H, H, "auto"), "family must be power or logistic, got cubic"),
    ((S, Y, None, None, 1, "power", H, H, "fast"), "method must be auto, scan or direct, got fast"),
    ((S, Y, None, None, 1, "power", H[:-1], H, "auto"), "a kernel of the family power must have 1 + 4 n numbers, got 4"),
    ((S, Y, None, None, 1, "power", power(0, (0, 1, 1, 7)), H, "auto"), "the power of a term must be 0 to 6, got 7"),
    ((S, Y, None, None, 1, "power", power(0, (2, 1, 1, 1)), H, "auto"), "the side of a term must be 0 or 1, got 2"),
    ((S, Y, None, None, 1, "power", power(0, (0, INF, 1, 1)), H, "auto"), "knots and factors must be finite"),
    ((S, Y, None, None, 1, "logistic", [1.0] * 53, [], "auto"),
     "a kernel of the family logistic must have 3 + 2 d numbers, d <= 24, got 53"),
    ((S, Y, None, None, 1, "logistic", [0.0] * 5, [], "auto"), "scale must be positive, got 0"),
    ((S, Y, None, None, 1, "logistic", [1.0] * 5, [2.0] * 5, "auto"), "value and potential must have the same scale"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), ERRORS, ids=[text for _, text in ERRORS])
def test_errors(arguments: tuple[object, ...], text: str) -> None:
    with pytest.raises(RuntimeError) as error:
        ops.pair_scan(*arguments)
    assert f"pair_scan: {text}" in str(error.value)
