"""Fused linear heads: the battery on its cases, once row by row (scores computed twice) and once reduced (gradients in forward)."""

from __future__ import annotations

from typing import Any, ClassVar

import nearlinear
import pytest
import torch
from battery import Battery
from measure import Case, Draw, Inputs
from nearlinear import distances, score_maps
from nearlinear.linear_head import Head
from nearlinear.reference import linear_cross_entropy as reference
from torch import Tensor

ops = torch.ops.nearlinear
NATIVE = ("input", "linear_weight", "linear_bias")
BOTH = ("input", "linear_weight")


def head(classes: int, features: int, *, ignored: int | None = None, ball: tuple[str, ...] = (), scale: float = 1.0, **extra: str) -> Any:
    """Features, class vectors and labels; every seventh row is ignored if ``ignored`` is given; extra inputs by name: "class" or
    "row" sized. ``ball``: which of the vectors are points of norm below 1."""

    def make(draw: Draw, rows: int) -> Inputs:
        made = {"input": draw.normal(rows, features, scale=scale), "linear_weight": draw.normal(classes, features)}
        made |= {name: made[name] / (1.2 + made[name].norm(dim=1, keepdim=True)) for name in ball}
        made["target"] = draw.labels(classes, rows)
        made["target"][-1:] = classes - 1
        if ignored is not None:
            made["target"][::7] = ignored
        sizes = {"class": (classes,), "row": (rows,)}
        for name, size in extra.items():
            made[name] = draw.positive(*sizes[size])
        return made

    return make


# small enough that rows and classes are cut into several tiles, whatever the dtype; with more, rows alone are
TIGHT, LESS_TIGHT = {"max_workspace_bytes": 20_000}, {"max_workspace_bytes": 40_000}
FULL = {"label_smoothing": 0.1, "z_loss": 0.01, "ignore_index": 2}
EVERYTHING = {"linear_bias": "class", "weight": "class", "sample_weight": "row", "extra_lse": "row"}
ALL = ("input", "linear_weight", "linear_bias", "sample_weight", "extra_lse")


def mapped(name: str, record: score_maps.ScoreMap, **make: Any) -> Case:
    extra = {"margin": "row"} if record.takes_margin else {"linear_bias": "class"} if record.embedding.holds_bias else {}
    return Case(
        name, head(5, 3, ignored=2, **make, **extra), "a record of the table; with fewer rows its largest error is luck",
        rows=12, native=NATIVE,
        differentiable=(*BOTH, *extra), options={"logit_map": record, "ignore_index": 2, "label_smoothing": 0.1}, checked=True,
    )  # fmt: skip


MAPS = {
    "cosine": mapped("cosine", score_maps.Cosine(4.0)),
    "arc_margin": mapped("arc_margin", score_maps.ArcMargin(4.0)),
    "combined_margin": mapped("combined_margin", score_maps.ArcMargin(4.0, 0.3, 1.1, 0.1)),
    "cos_margin": mapped("cos_margin", score_maps.CosMargin(4.0)),
    "harmonic": mapped("harmonic", score_maps.Harmonic(2.0)),
    "cosine_harmonic": mapped("cosine_harmonic", score_maps.CosineHarmonic(2.0, 1e-2)),
    "rbf": mapped("rbf", score_maps.RBF(3.0)),
    "student_t": mapped("student_t", score_maps.StudentT(2.0)),
    "manhattan": mapped("manhattan", score_maps.MetricHarmonic(2.0, distances.Manhattan())),
    "canberra": mapped("canberra", score_maps.MetricHarmonic(2.0, distances.Canberra(1e-2))),
    "poincare": mapped("poincare", score_maps.Poincare(1.0, 0.5), ball=BOTH),
    "hyperbolic_mlr": mapped("hyperbolic_mlr", score_maps.HyperbolicMLR(0.3), ball=("input",)),
}
CASES = (
    Case("plain", head(37, 9, scale=0.5), "one tile", native=NATIVE, differentiable=BOTH),
    Case("tiles", head(131, 9), "several tiles of rows", rows=70, native=NATIVE, differentiable=BOTH, options=LESS_TIGHT),
    Case(
        "everything", head(4, 2, ignored=2, **EVERYTHING), "every option at once", rows=5, native=NATIVE, options=FULL,
        differentiable=ALL, checked=True,
    ),
    Case(
        "everything_tiles", head(131, 5, ignored=2, **EVERYTHING), "every option over several tiles", rows=70, native=NATIVE,
        options={**FULL, **TIGHT}, differentiable=ALL,
    ),
    Case(
        "capped", head(7, 4, linear_bias="class"), "a nonlinear map of the biased product", rows=7, native=NATIVE, options={"softcap": 2.0},
        differentiable=(*BOTH, "linear_bias"), checked=True,
    ),
    Case(
        "focal", head(7, 4, ignored=-100, extra_lse="row"), "a row loss with further negatives", rows=9, native=NATIVE,
        options={"row_loss": "focal"}, differentiable=(*BOTH, "extra_lse"), checked=True,
    ),
    Case(
        "gce_tiles", head(131, 5), "a row loss over several tiles", rows=70, native=NATIVE, options={"row_loss": "gce", **TIGHT},
        differentiable=BOTH,
    ),
    *MAPS.values(),
    Case(
        "arc_tiles", head(131, 5, margin="row", ignored=-100), "margins over several tiles", rows=70, native=NATIVE,
        options={"logit_map": score_maps.ArcMargin(8.0), "max_workspace_bytes": 26_000}, differentiable=(*BOTH, "margin"),
    ),
    Case(
        "harmonic_tiles", head(131, 5), "distances over several tiles", rows=70, native=NATIVE,
        options={"logit_map": score_maps.Harmonic(3.0), "max_workspace_bytes": 26_000}, differentiable=BOTH,
    ),
    Case(
        "minkowski_tiles", head(131, 5, ignored=-100), "distances that are no product, over several tiles", rows=70, native=NATIVE,
        options={"logit_map": score_maps.MetricHarmonic(3.0, distances.Minkowski(1.5)), "max_workspace_bytes": 26_000},
        differentiable=BOTH,
    ),
    Case(
        "hyperplane_tiles", head(131, 5, ignored=2, ball=("input",), **EVERYTHING), "a bias inside the embedding, several tiles",
        rows=70, native=NATIVE, differentiable=ALL,
        options={**FULL, "logit_map": score_maps.HyperbolicMLR(0.3), "max_workspace_bytes": 40_000},
    ),
    Case(
        "hyperplanes_without_bias", head(5, 3, ball=("input",)), "planes through the origin", rows=9, native=NATIVE,
        options={"logit_map": score_maps.HyperbolicMLR(0.5)}, differentiable=BOTH, checked=True,
    ),
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", [case for case in CASES if case.name.endswith("tiles")], ids=str)
def test_tiles_are_several(case: Case, dtype: torch.dtype) -> None:
    """What the names of the cases say."""
    made = case.inputs(dtype)
    record = case.options.get("logit_map")
    (n, d), v = made["input"].shape, len(made["linear_weight"])
    found = nearlinear.plan(n, v, d, dtype, score_map=record, max_workspace_bytes=case.options["max_workspace_bytes"])
    assert found.classes < v or case.name == "tiles"
    assert found.rows < n or dtype == torch.bfloat16  # all rows at once spare a 16-bit weight its accumulator


class TestLinearCrossEntropy(Battery):
    function = staticmethod(nearlinear.linear_cross_entropy)
    definition = staticmethod(reference.linear_cross_entropy)
    cases = CASES
    casts_under_autocast = True
    bits_of_threads = False
    few_terms = True  # margins and row weights of a dozen rows
    compiled: ClassVar[dict[str, str]] = {
        "everything": "inductor",
        "plain": "aot_eager",
        "arc_margin": "aot_eager",
        "harmonic": "aot_eager",
        "hyperbolic_mlr": "aot_eager",
    }
    modules = (
        (nearlinear.LinearCrossEntropyLoss, nearlinear.linear_cross_entropy, {"label_smoothing": 0.1, "softcap": 5.0, "z_loss": 0.1}),
        (nearlinear.LinearCrossEntropyLoss, nearlinear.linear_cross_entropy, {"row_loss": "gce", "reduction": "none"}),
    )

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        return view.is_contiguous() and view.data_ptr() % 64 == 0  # the order of a matrix product is the library's choice

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        x, w, b = (draw.normal(*shape).float().to(device) for shape in ((5, 3), (7, 3), (7,)))
        y, v, m = draw.labels(7, 5).to(device), draw.positive(7).float().to(device), draw.positive(5).float().to(device)
        samples: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = []
        for tensors, options, leaves in (
            ((x, w, b, y, v, None), (1, "soft_cap", [2.0], True), (0, 1, 2)),
            ((x, w, None, y, None, m), (-100, "arc_margin", [4.0, 0.5, 1.0, 0.0, 0.0], False), (0, 1, 5)),
            ((x / 9, w, b, y, v, None), (1, "hyperbolic_mlr", [1.0], True), (0, 1, 2)),
        ):
            arguments = (*tensors, *options, 0, None, None)
            nll, lse, spread, residual = ops.linear_logit_stats(*arguments)
            samples.append((ops.linear_logit_stats.default, arguments, leaves))
            up = [torch.ones_like(t) for t in (nll, lse, spread)]
            wants = [True, True, 2 in leaves, 5 in leaves]
            backward = (*up, *tensors, nll, lse, residual, *options, 0, None, None, wants)
            samples.append((ops.linear_logit_stats_backward.default, backward, ()))
            loss = (*tensors, m, m[0], *options[:3], "gce", [0.7], 0.0, 0.1, None, wants)
            samples.append((ops.linear_row_loss.default, loss, (*leaves, 6, 7)))
        return samples


class TestGradientsInForward(TestLinearCrossEntropy):
    """The same cases reduced to a scalar: gradients come from the walk that computed the loss."""

    rowwise: ClassVar[dict[str, Any]] = {"reduction": "mean"}
    common_roundings = 3  # the divisor, the loss, their product

    def saved_bytes(self, case: Case, rows: int) -> int:
        made = case.inputs(torch.float32)
        return 64 * len(made["target"]) + 128 + sum(made[name].nbytes for name in case.differentiable)


def soft(classes: int, features: int, **extra: Any) -> Any:
    """:func:`head` with class probabilities."""
    labelled = head(classes, features, **extra)

    def make(draw: Draw, rows: int) -> Inputs:
        return {**labelled(draw, rows), "target": draw.normal(rows, classes).softmax(1)}

    return make


class TestClassProbabilities(Battery):
    """Soft targets: another op, whose tiles hold all classes of some rows."""

    function = staticmethod(nearlinear.linear_cross_entropy)
    definition = staticmethod(reference.linear_cross_entropy)
    casts_under_autocast = True
    bits_of_threads = False
    few_terms = True  # biases and row weights of a dozen rows
    compiled: ClassVar[dict[str, str]] = {"soft": "aot_eager"}
    cases = (
        Case(
            "soft", soft(5, 3, **EVERYTHING), "every option at once, all gradients", rows=5, native=NATIVE,
            options={"label_smoothing": 0.1, "z_loss": 0.01}, differentiable=(*ALL, "target"), checked=True,
        ),
        Case(
            "soft_tiles", soft(131, 9), "several tiles of rows", rows=70, native=(*BOTH, "target"), differentiable=(*BOTH, "target"),
            options={"max_workspace_bytes": 60_000},
        ),
        Case(
            "soft_harmonic", soft(7, 4), "a distance instead of a product", rows=12, native=NATIVE, differentiable=BOTH,
            options={"logit_map": score_maps.Harmonic(2.0)}, checked=True,
        ),
        Case(
            "soft_hyperplanes", soft(7, 4, ball=("input",), linear_bias="class"), "a bias inside the embedding", rows=12, native=NATIVE,
            options={"logit_map": score_maps.HyperbolicMLR(0.3)}, differentiable=(*BOTH, "linear_bias", "target"), checked=True,
        ),
    )  # fmt: skip

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        return TestLinearCrossEntropy.same_path(view)

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        x, w, b = (draw.normal(*shape).float().to(device) for shape in ((5, 3), (7, 3), (7,)))
        t, v = draw.normal(5, 7).softmax(1).float().to(device), draw.positive(7).float().to(device)
        arguments = (x, w, b, t, v, 0.1, "soft_cap", [2.0], None)
        xent, lse, residual, mass = ops.linear_soft_logit_stats(*arguments)
        up = [torch.ones_like(xent)] * 3
        backward = (*up, x, w, b, t, v, lse, residual, mass, *arguments[5:], [True] * 4)
        return [
            (ops.linear_soft_logit_stats.default, arguments, (0, 1, 2, 3)),
            (ops.linear_soft_logit_stats_backward.default, backward, ()),
        ]


def test_weights_that_add_up_to_nothing_have_no_mean(device: torch.device) -> None:
    """Of probabilities as of labels: NaN, not an infinity."""
    draw = Draw()
    x, w, t = (draw.normal(*shape).to(device) for shape in ((2, 4), (7, 4), (2, 7)))
    opposite = torch.tensor([1.0, -1.0], dtype=torch.float64, device=device)
    for target in (t.softmax(1), t.argmax(1)):
        assert nearlinear.linear_cross_entropy(x, w, target, sample_weight=opposite).isnan()
        assert nearlinear.linear_cross_entropy(x, w, target, sample_weight=opposite, normalizer=2.0).isfinite()


@pytest.mark.parametrize("record", [score_maps.Harmonic(20.0), score_maps.CosineHarmonic(20.0)], ids=lambda r: r.name)
def test_a_feature_near_its_class_keeps_its_digits(record: score_maps.ScoreMap, device: torch.device) -> None:
    """|x - w|^2 is 1e-7 of |x|^2, less than a float32 product resolves: the target's distance is computed on its own."""
    draw = Draw()
    w = draw.normal(9, 64).float()
    y = draw.labels(9, 20)
    x = (w[y] * (1 + 3e-4 * draw.normal(20, 64))).float()
    rows = nearlinear.linear_cross_entropy(x.to(device), w.to(device), y.to(device), logit_map=record, reduction="none")
    exact = reference.linear_cross_entropy(x.double(), w.double(), y, logit_map=record, reduction="none")
    eager = reference.linear_cross_entropy(x, w, y, logit_map=record, reduction="none")
    error, naive = ((r.double().cpu() - exact).abs().max() for r in (rows, eager))
    assert error <= 2e-6 * exact.abs().max() or error < naive / 50, (error, naive)


@pytest.mark.parametrize("options", [{}, {"row_loss": "focal"}, {"reduction": "none"}, {"label_smoothing": 0.1, "z_loss": 0.1}], ids=str)
def test_scalar_extra_lse_is_shared_by_the_rows(options: dict[str, Any], device: torch.device) -> None:
    made = head(7, 4, ignored=-100)(Draw(), 9)
    x, w, y = (made[name].to(device) for name in ("input", "linear_weight", "target"))
    scalar = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    rows = torch.full((9,), 0.7, dtype=torch.float64, device=device, requires_grad=True)
    one, many = (nearlinear.linear_cross_entropy(x, w, y, extra_lse=extra, **options) for extra in (scalar, rows))
    torch.testing.assert_close(one, many)
    upstream = torch.arange(1.0, one.numel() + 1, dtype=one.dtype, device=device).view(one.shape)
    (shared,) = torch.autograd.grad(one, scalar, upstream)
    (each,) = torch.autograd.grad(many, rows, upstream)
    torch.testing.assert_close(shared, each.sum())
    assert shared.abs() > 0.01


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{}, TIGHT], ids=["one_tile", "tiles"])
@pytest.mark.parametrize("record", [None, score_maps.ArcMargin(4.0), score_maps.Harmonic(2.0)], ids=lambda r: r.name if r else "dot")
def test_what_ignored_rows_hold_reaches_no_gradient(
    record: score_maps.ScoreMap | None, options: dict[str, Any], reduction: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ignored rows are walked over, as on CUDA: a gradient of zero times NaN is NaN in every class vector."""
    monkeypatch.setattr(Head, "leaves_out_ignored", False)
    made = head(131, 5, ignored=2, row="row")(Draw(), 70)
    x, w, y, margin = (made[name].to(device) for name in ("input", "linear_weight", "target", "row"))
    ignored = (y == 2).nonzero().flatten()
    found = []
    for hold in (0.0, torch.nan, torch.inf):
        x[ignored], margin[ignored] = hold, hold
        leaves = [x.float().requires_grad_(), w.float().requires_grad_()]
        if record is not None and record.takes_margin:
            leaves.append(margin.float().requires_grad_())
        loss = nearlinear.linear_cross_entropy(
            leaves[0], leaves[1], y, logit_map=record, margin=leaves[2] if len(leaves) > 2 else None, ignore_index=2, reduction=reduction,
            **options,
        )  # fmt: skip
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaves)))
    assert all(t.isfinite().all() for t in found[0])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)
