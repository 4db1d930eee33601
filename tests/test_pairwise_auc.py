"""All-pairs AUC losses: the battery, every surrogate by every method against all pairs in float64, tables and bounds."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import nearlinear
import pytest
import torch
from battery import Battery
from measure import Case, Draw, Inputs, evaluate, to
from nearlinear import pair_bins, pair_kernels, surrogates
from nearlinear.reference import pairwise_auc as reference
from pair_data import distributions
from torch import Tensor

ops = torch.ops.nearlinear
RECORDS = {name: record() for name, record in surrogates.SURROGATES.items()}
METHODS = [(name, method) for name, record in RECORDS.items() for method in ("auto", *record.methods)]
SMOOTH = ("logistic", "sigmoid", "squared_hinge", "square", "exponential", "log_exponential")
NARROW = ("normal", "wide", "clusters", "tied", "levels", "separated", "inverted", "rare", "offset")  # which fit into bins


def lists(weights: bool = False, groups: int = 4) -> Any:
    """Groups with ids in no order; in each two samples of a label at least, or weights have no gradient."""

    def make(draw: Draw, rows: int) -> Inputs:
        made = {"input": draw.normal(rows), "target": torch.arange(rows) % 3 == 0, "group": torch.arange(rows) * 3 // 2 % groups}
        if weights:
            made["sample_weight"] = draw.positive(rows)
        return made

    return make


class TestPairwiseAUCLoss(Battery):
    function = staticmethod(nearlinear.pairwise_auc_loss)
    definition = staticmethod(reference.pairwise_auc_loss)
    reductions = ("mean", "sum", "weighted")
    few_terms = True
    common_roundings = 2
    cases = (
        Case("logistic", lists(), "sorted scan and all pairs", checked=True, rows=13),
        Case("bins", lists(), "bins", rows=64, options={"method": "bins", "num_groups": 4}),
        Case(
            "bins_weights", lists(True, 2), "gradient of the weights; bins", rows=8, options={"method": "bins", "surrogate": "sigmoid"},
            differentiable=("input", "sample_weight"), checked=True,
        ),
        Case(
            "scan_weights", lists(True), "gradient of the weights; scan", rows=13, options={"method": "scan", "scale": 1.7},
            differentiable=("input", "sample_weight"), checked=True,
        ),
        Case(
            "squared_hinge", lists(True), "translations", options={"surrogate": "squared_hinge", "margin": 0.7, "num_groups": 4},
            differentiable=("input", "sample_weight"), rows=13, checked=True,
        ),
        Case("direct", lists(), "all pairs", options={"surrogate": "huber_hinge", "method": "direct"}),
        Case(
            "square", lists(True), "moments", options={"surrogate": "square", "num_groups": 4}, rows=13,
            differentiable=("input", "sample_weight"), checked=True,
        ),
        Case("exponential", lists(), "log-sum-exps", options={"surrogate": "exponential"}, rows=13, checked=True),
        Case("tails", lists(True), "partial AUC", options={"surrogate": "squared_hinge", "max_fpr": 0.4, "min_tpr": 0.3}),
    )  # fmt: skip
    compiled: ClassVar[dict[str, str]] = {"bins": "inductor", "squared_hinge": "aot_eager", "square": "aot_eager"}
    modules = (
        (nearlinear.PairwiseAUCLoss, nearlinear.pairwise_auc_loss, {"surrogate": "p_hinge", "margin": 0.5, "reduction": "none"}),
        (nearlinear.PairwiseAUCLoss, nearlinear.pairwise_auc_loss, {"scale": 2.0, "max_fpr": 0.5}),
    )

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        s, c, y, g = draw.normal(9).float(), draw.positive(9).float(), torch.arange(9) % 3 == 0, torch.arange(9) % 2
        s, c, y, g = (t.to(device) for t in (s, c, y, g))
        table = draw.normal(2, 2, 64, 3).to(device)
        family, kernel = RECORDS["logistic"].kernel(0, torch.float32)
        options = ("squared_hinge", [1.0])
        return [
            (ops.pair_scan.default, (s, y, c, g, 2, family, kernel, kernel, "auto"), ()),
            (ops.pair_scan.default, (s, y, None, None, 1, "power", pair_kernels.power(0, (0, 1, 1, 2)), [], "scan"), ()),
            (ops.binned_moments.default, (s, y, c, g, 2, 4.0, -32, 64, 3), ()),
            (ops.binned_values.default, (s, y, g, table, 4.0, -32), ()),
            (ops.pairwise_sum.default, (s, y, c, g, 2, "logistic", [1.0], "bins", [-8.0, 8.0], True), (0, 2)),
            (ops.pairwise_sum.default, (s, y, None, None, 1, *options, "scan", [], False), ()),
            (ops.pair_potential.default, (s, y, c, g, 2, *options, 0, "scan", []), (0, 2)),
        ]

    def options(self, case: Case) -> dict[str, Any]:
        return {"reduction": "none", **case.options}

    def saved_bytes(self, case: Case, rows: int) -> int:
        return 200 * case.rows + 1024  # widened scores and weights, labels, ids, the slope


# ---- every surrogate, method and distribution


@pytest.mark.parametrize(("name", "method"), METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_all_pairs_in_float64(name: str, method: str, dtype: torch.dtype) -> None:
    """The bounds of float32: 1e-6 of the loss and 5e-7 of the gradient. In float64 1e-13, times the digits that a record says it loses."""
    lost = {"huber_hinge": 1e3, "ramp": 1e2}.get(name, 1)  # differences of two hinges
    for kind, (s, y) in distributions(600).items():
        if (method == "bins" and kind not in NARROW) or ("exponential" in name and kind in ("uniform", "cauchy", "student")):
            continue
        if name == "barrier_hinge" and kind in ("levels", "tied", "offset"):
            continue  # at a knot of the maximum autograd takes a mean of the slopes: test_knots
        inputs = {"input": s.to(dtype), "target": y}
        value, (gradient,) = evaluate(
            nearlinear.pairwise_auc_loss, inputs, {"surrogate": name, "method": method}, ["input"], torch.ones(())
        )
        exact, (slope,) = evaluate(
            reference.pairwise_auc_loss, to(inputs, torch.float64), {"surrogate": name}, ["input"], torch.ones((), dtype=torch.float64)
        )
        error, gradient_error = (value.double() - exact).abs(), (gradient.double() - slope).norm()
        if dtype == torch.float32:
            assert error <= 1e-6 * exact.abs() + 1e-38, kind
            assert gradient_error <= 5e-7 * slope.norm(), kind
        else:
            assert error <= 1e-13 * lost * exact.abs() + 1e-290, kind
            assert gradient_error <= 1e-13 * lost * slope.norm(), kind


def test_gradient_of_many_samples() -> None:
    """Potentials get the signs of their labels by parts; each is the gradient, to the last bit."""
    s, y = torch.randn(140_001, requires_grad=True), torch.rand(140_001) < 0.3
    (gradient,) = torch.autograd.grad(nearlinear.pairwise_auc_loss(s, y, surrogate="squared_hinge", reduction="sum"), s)
    family, kernel = RECORDS["squared_hinge"].kernel(1, torch.float32)
    potential = ops.pair_scan(s.detach(), y, None, None, 1, family, [], kernel, "scan")[1]
    assert torch.equal(gradient, torch.where(y, potential, -potential))


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7])
def test_bins_keep_their_bound_for_every_sample(kind: str, scale: float) -> None:
    """Loss, every entry of the gradient and of the second derivative, which falls off on both sides, in float64 passes, where the bound is
    all that is left; and far from each other 1e-15."""
    s, y = distributions(600)[kind]
    for dtype in (torch.float32, torch.float64):
        grid = pair_bins.Grid.over(float(s.min()), float(s.max()), scale, dtype, 1 << 20)
        moments = ops.binned_moments(s, y, None, None, 1, *grid.arguments)
        for order in (0, 1, 2):
            analytic = surrogates.Logistic(scale).analytic(order)
            (table,) = pair_bins.potentials((analytic,), grid, moments)
            got = ops.binned_values(s, y, None, table, grid.inv_width, grid.first)
            exact = reference.pair_potential(s, y, torch.ones_like(s), None, 1, "logistic", [scale], order, "", [])
            bound = pair_bins.error_bound(analytic, grid)
            assert order == 2 or bound < (2e-7 if dtype == torch.float32 else 1e-14)
            assert (got - exact).abs().div(exact.abs()).max() <= bound + 2e-13


def test_terms_of_the_scan_keep_their_bound() -> None:
    """Table of the relative errors of the fit, which the generator must reproduce."""
    z = torch.linspace(1e-9, 1, 20001, dtype=torch.float64)
    quotients = (torch.log1p(z) / z, 1 / (1 + z), 1 / (1 + z) ** 2)
    for degree, allowed in {8: (2.3e-7, 1.6e-6, 1.9e-5), 10: (5.5e-9, 4.5e-8, 6.8e-7), 12: (1.4e-10, 1.4e-9, 2.4e-8)}.items():
        for order, (exact, limit) in enumerate(zip(quotients, allowed, strict=True)):
            fit = sum(c * z**k for k, c in enumerate(pair_kernels.logistic_coefficients(order, degree)))
            assert limit / 2 < float(((fit - exact) / exact).abs().max()) < limit
            if order < 2:
                assert limit <= 1.1 / math.cosh(degree * math.acosh(3))
    assert pair_kernels.fit_error(torch.float32) < 2e-9
    assert pair_kernels.fit_error(torch.float64) < 1e-15


@pytest.mark.parametrize("name", [n for n, r in RECORDS.items() if isinstance(r, (surrogates.Piecewise, surrogates.LogisticFamily))])
def test_kernels_are_the_derivatives_of_the_value(name: str) -> None:
    record, x = RECORDS[name], torch.linspace(-3.3, 4.1, 187, dtype=torch.float64)
    if isinstance(record, surrogates.LogisticFamily):
        record = type(record)(1.7)
    value = record.value(x)
    torch.testing.assert_close(pair_kernels.evaluate(*record.kernel(0, torch.float64), x), value, rtol=1e-12, atol=1e-12)
    for order in (1, 2):
        leaf = x.clone().requires_grad_()
        slope = record.value(leaf) if order == 1 else torch.autograd.grad(record.value(leaf).sum(), leaf, create_graph=True)[0]
        exact = torch.autograd.grad(slope.sum(), leaf)[0] if slope.requires_grad else torch.zeros_like(x)
        torch.testing.assert_close(pair_kernels.evaluate(*record.kernel(order, torch.float64), x), exact, rtol=1e-11, atol=1e-11)
        if isinstance(record, surrogates.LogisticFamily):
            torch.testing.assert_close(record.analytic(order).value(x), exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("name", "method"), [(n, m) for n, m in METHODS if n in SMOOTH and m != "direct"])
def test_second_derivative(name: str, method: str) -> None:
    """Hessian-vector products and the derivative by the weights of the gradient, at a size where autograd through pairs is the oracle."""
    draw = Draw(3)
    made = {"input": draw.normal(200), "sample_weight": draw.positive(200), "target": torch.arange(200) % 4 == 0}
    v = draw.normal(200)

    def products(function: Any, **options: Any) -> list[Tensor]:
        s, w = (made[n].clone().requires_grad_() for n in ("input", "sample_weight"))
        loss = function(s, made["target"], sample_weight=w, surrogate=name, **options)
        d_s, d_w = torch.autograd.grad(loss, (s, w), create_graph=True)
        return list(torch.autograd.grad((d_s * v).sum() + (d_w * v).sum(), (s, w)))

    for got, exact in zip(products(nearlinear.pairwise_auc_loss, method=method), products(reference.pairwise_auc_loss), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-12 * float(exact.abs().max()))


def test_plan_tells_method_and_bound() -> None:
    many = torch.linspace(-8, 8, 10**5)
    plan = nearlinear.pairwise_auc_plan(many)
    assert (plan.method, plan.relative_error < 2e-7) == ("bins", True)
    assert nearlinear.pairwise_auc_plan(1e4 * many).method == "auto"
    assert nearlinear.pairwise_auc_plan(many, num_groups=10**4).method == "auto"
    assert nearlinear.pairwise_auc_plan(many[:100]).relative_error < 2e-9
    assert nearlinear.pairwise_auc_plan(many, surrogate="square").method == "closed"
    assert nearlinear.pairwise_auc_plan(many, surrogate="hinge", method="direct").relative_error == 0
