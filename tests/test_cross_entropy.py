"""Cross-entropy: the battery on its cases, torch's own function argument by argument, and the sizes at which kernels change course."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from battery import Battery
from measure import Case, Draw, Inputs, evaluate, same, within_budget
from nearlinear import CompSum, Focal, Scale
from nearlinear.reference import cross_entropy as reference
from nearlinear.row_losses import ROW_LOSSES
from torch import Tensor

ops = torch.ops.nearlinear


def indices(classes: int, *pixels: int, ignored: int | None = None, **extra: str) -> Any:
    """Logits and labels; every seventh row is ignored if ``ignored`` is given; extra inputs by name: "class" or "row" sized."""

    def make(draw: Draw, rows: int) -> Inputs:
        made = {"input": draw.normal(rows, classes, *pixels, scale=3.0), "target": draw.labels(classes, rows, *pixels)}
        made["target"].view(-1)[-1:] = classes - 1  # the last class of the last block
        if ignored is not None:
            made["target"].view(-1)[::7] = ignored
        for name, size in extra.items():
            made[name] = draw.positive(classes) if size == "class" else draw.positive(rows, *pixels)
        return made

    return make


def probabilities(classes: int, *pixels: int) -> Any:
    def make(draw: Draw, rows: int) -> Inputs:
        shape = (rows, classes, *pixels)
        target = draw.normal(*shape).softmax(1)
        return {"input": draw.normal(*shape, scale=3.0), "target": target, "weight": draw.positive(classes)}

    return make


FULL: Mapping[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.01, "ignore_index": 2}
CASES = (
    Case("rows", indices(131), "many classes: the row kernel, less than a block, prime"),
    Case("tiles", indices(19), "few classes: tiles of 64 rows, the last one not full", rows=70),
    Case("blocks", indices(8195), "two full cache blocks of classes and three left over", rows=3),
    Case("ignored", indices(5, ignored=-100), "ignored rows among kept ones, few classes", rows=9, checked=True),
    Case(
        "weighted", indices(6, ignored=2, weight="class", sample_weight="row"), "every option at once, few classes", rows=9,
        options=FULL, differentiable=("input", "sample_weight"), checked=True,
    ),
    Case(
        "weighted_rows", indices(131, ignored=2, weight="class", sample_weight="row"), "every option at once, row kernel", rows=9,
        options=FULL, differentiable=("input", "sample_weight"),
    ),
    Case("capped", indices(5), "a nonlinear logit map: slope at the raw logit", rows=7, options={"softcap": 2.0}, checked=True),
    Case("scaled_rows", indices(131), "a logit map in the row kernel", options={"logit_map": Scale(0.5), "label_smoothing": 0.2}),
    Case("capped_rows", indices(131), "a nonlinear logit map in the row kernel", rows=9, options={"softcap": 2.0}),
    Case("image", indices(19, 5, 7, ignored=2), "K-dimensional targets", rows=3, options={"ignore_index": 2}),
    Case(
        "image_tiles", indices(70, 3, 5, weight="class"), "pixels contiguous and classes above one tile", rows=2,
        options={"label_smoothing": 0.3},
    ),
    Case(
        "probabilities", probabilities(6), "soft targets with class weights and smoothing, both gradients", rows=7,
        options={"label_smoothing": 0.1, "z_loss": 0.01}, native=("input", "target"), differentiable=("input", "target"), checked=True,
    ),
    Case("probabilities_blocks", probabilities(4099), "soft targets over two cache blocks", rows=3, native=("input", "target")),
    Case("probabilities_image", probabilities(5, 3, 4), "soft targets with pixels", rows=2, native=("input", "target")),
    *(
        Case(f"row_loss_{name}", indices(5), "a record of the table", rows=7, options={"row_loss": name}, checked=True)
        for name in ROW_LOSSES if name != "ce"
    ),
    Case("growing_comp_sum", indices(5), "tau below 1: slope 1 / p", rows=7, options={"row_loss": CompSum(0.5)}, checked=True),
    Case(
        "focal_weighted", indices(131, weight="class", ignored=2), "row loss, class weights and ignored rows in the row kernel", rows=16,
        options={"row_loss": Focal(2.0), "ignore_index": 2},
    ),
)  # fmt: skip


class TestCrossEntropy(Battery):
    function = staticmethod(nearlinear.cross_entropy)
    definition = staticmethod(reference.cross_entropy)
    cases = CASES
    # inductor where reduction lines and rows fuse most; the others need the trace only
    compiled: ClassVar[dict[str, str]] = {
        "weighted": "inductor", "rows": "aot_eager", "image": "aot_eager", "probabilities": "aot_eager",
        **{f"row_loss_{name}": "aot_eager" for name in ROW_LOSSES if name != "ce"},
    }  # fmt: skip
    modules = (
        (nearlinear.CrossEntropyLoss, nearlinear.cross_entropy, {"label_smoothing": 0.1, "softcap": 5.0, "z_loss": 0.1}),
        (nearlinear.CompSumLoss, nearlinear.comp_sum_loss, {"tau": 0.5, "reduction": "sum"}),
        (nearlinear.GCELoss, nearlinear.gce_loss, {"q": 0.3}),
        (nearlinear.TruncatedGCELoss, nearlinear.truncated_gce_loss, {"q": 0.3, "k": 0.2}),
        (nearlinear.MAELoss, nearlinear.mae_loss, {"reduction": "none"}),
        (nearlinear.FocalLoss, nearlinear.focal_loss, {"gamma": 1.5, "ignore_index": 3}),
        (nearlinear.PolyLoss, nearlinear.poly_loss, {"epsilon": -0.5}),
    )

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        if view.is_cuda or "triton_on_cpu" in sys.modules:
            return False  # Triton's tile is chosen by strides too
        if view.dim() < 3 or view.shape[1] <= 64:
            return True
        rows = view.flatten(2)
        return rows.stride(1) != 1 and rows.stride(2) == 1

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        x, y, w = draw.normal(5, 7).float().to(device), draw.labels(7, 5).to(device), draw.positive(7).float().to(device)
        image, labels = draw.normal(2, 7, 3).bfloat16().to(device), draw.labels(7, 2, 3).to(device)
        soft = draw.normal(5, 7).softmax(1).float().to(device)
        samples: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = []
        for arguments in ((x, y, None, -100, "identity", [], False), (image, labels, w, 1, "soft_cap", [2.0], True)):
            nll, lse, spread, residual = ops.logit_stats(*arguments)
            upstream = [torch.ones_like(t) for t in (nll, lse, spread)]
            samples.append((ops.logit_stats.default, arguments, (0,)))
            for backward in (ops.logit_stats_backward.default, ops.logit_stats_backward_.default):
                samples.append((backward, (*upstream, arguments[0].clone(), *arguments[1:3], nll, lse, residual, *arguments[3:]), ()))
        for smoothing, weight in ((0.0, None), (0.1, w)):
            arguments = (x, soft, weight, smoothing, "scale", [0.5])
            xent, lse, residual, mass = ops.soft_logit_stats(*arguments)
            samples.append((ops.soft_logit_stats.default, arguments, (0, 1)))
            for wants_target in (False, True):
                saved = (torch.ones_like(xent), torch.ones_like(lse), x, soft, weight, lse, residual, mass)
                samples.append((ops.soft_logit_stats_backward.default, (*saved, smoothing, "scale", [0.5], wants_target), ()))
        return [*samples, (ops.first_invalid_target.default, (y, 3, -100), ())]


# 0 and 1 rows and classes; one lane group, tile and cache block, each with its neighbours; a GPT-2 vocabulary
SIZES = (
    (0, 7), (1, 1), (63, 2), (64, 31), (65, 32), (129, 33), (1, 63), (63, 64), (65, 65), (2, 4095), (3, 4096), (2, 4097), (2, 50257),
)  # fmt: skip


@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_sizes(rows: int, classes: int, device: torch.device) -> None:
    case = Case("size", indices(classes, sample_weight="row"), "", rows=rows, options={"reduction": "none", "label_smoothing": 0.1})
    inputs = case.inputs(torch.float32, device)
    value, (gradient,) = evaluate(nearlinear.cross_entropy, inputs, case.options, ["input"])
    eager, (eager_gradient,) = evaluate(reference.cross_entropy, inputs, case.options, ["input"])
    exact, (exact_gradient,) = evaluate(reference.cross_entropy, case.inputs(torch.float32) | _doubles(inputs), case.options, ["input"])
    within_budget(value, eager, exact, 2, "value")
    within_budget(gradient, eager_gradient, exact_gradient, 3, "gradient")


def _doubles(inputs: Inputs) -> Inputs:
    return {name: t.double().cpu() for name, t in inputs.items() if t.is_floating_point()}


@pytest.mark.parametrize("labels", ["indices", "probabilities"])
@pytest.mark.parametrize("pixels", [None, (), (3,), (2, 3)], ids=["1d", "2d", "3d", "4d"])
def test_drop_in_for_torch(labels: str, pixels: tuple[int, ...] | None, device: torch.device) -> None:
    """Every combination of torch's arguments, values and gradients, in float64."""
    draw, classes = Draw(), 5
    shape = (classes,) if pixels is None else (4, classes, *pixels)
    x = draw.normal(*shape, scale=2.0).to(device)
    rows = () if pixels is None else (4, *pixels)
    target = draw.labels(classes, *rows) if labels == "indices" else draw.normal(*shape).softmax(0 if pixels is None else 1)
    ignores = (-100, 3, int(target.flatten()[0])) if labels == "indices" else (-100,)
    weights = (None, draw.positive(classes), torch.tensor([1.0, 0, 2, 0, 1]).double())
    for weight, smoothing, ignore, reduction in itertools.product(weights, (0.0, 0.2, 1.0), ignores, ("none", "mean", "sum")):
        inputs = {"input": x, "target": target.to(device)} | ({} if weight is None else {"weight": weight.to(device)})
        options = {"label_smoothing": smoothing, "ignore_index": ignore, "reduction": reduction}
        wrt = ["input"] if labels == "indices" else ["input", "target"]
        ours = evaluate(nearlinear.cross_entropy, inputs, options, wrt)
        theirs = evaluate(F.cross_entropy, inputs, options, wrt)
        torch.testing.assert_close(
            ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True, msg=lambda text, o=options, w=weight: f"{o}, weight {w}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_loss_dtype_and_mixed_weights(dtype: torch.dtype, device: torch.device) -> None:
    """Half logits give a float32 loss, with class weights and row weights of any floating dtype."""
    draw = Draw()
    x, y = draw.normal(9, 70).to(dtype).to(device), draw.labels(70, 9).to(device)
    for other in (torch.float64, torch.float32, torch.bfloat16):
        w, v = draw.positive(70).to(other).to(device), draw.positive(9).to(other).to(device)
        loss = nearlinear.cross_entropy(x, y, w, sample_weight=v)
        exact = reference.cross_entropy(x.double().cpu(), y.cpu(), w.double().cpu(), sample_weight=v.double().cpu())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double().cpu(), exact, rtol=1e-6, atol=0)


def test_normalizer(device: torch.device) -> None:
    """Micro-batches of unequal size, divided by the count of the whole batch, add up to the whole batch."""
    draw = Draw()
    x, y = draw.normal(10, 7).to(device), draw.labels(7, 10).to(device)
    y[::4] = -100
    count = (y != -100).sum()
    whole, (gradient,) = evaluate(nearlinear.cross_entropy, {"input": x, "target": y}, {}, ["input"], x.new_ones(()))
    for normalizer in (count, int(count), count.double()):
        leaf = x.clone().requires_grad_()
        parts = [nearlinear.cross_entropy(leaf[s], y[s], normalizer=normalizer) for s in (slice(0, 3), slice(3, 10))]
        sum(parts).backward()
        torch.testing.assert_close(sum(parts).detach(), whole)
        torch.testing.assert_close(leaf.grad, gradient)


def test_uint8_labels_and_named_records(device: torch.device) -> None:
    draw = Draw()
    x, y = draw.normal(9, 7).to(device), draw.labels(7, 9).to(device)
    same(nearlinear.cross_entropy(x, y.to(torch.uint8)), nearlinear.cross_entropy(x, y), "uint8 labels")
    same(nearlinear.cross_entropy(x, y, row_loss="gce"), nearlinear.gce_loss(x, y), "record by name")
    same(nearlinear.cross_entropy(x, y, softcap=3.0), nearlinear.cross_entropy(x, y, logit_map=nearlinear.SoftCap(3.0)), "softcap")
    same(nearlinear.cross_entropy(x, y, check_targets=True), nearlinear.cross_entropy(x, y), "check_targets")
