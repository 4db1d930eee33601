"""SFace: the battery on its cases, and what the public code gets wrong."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, ClassVar

import nearlinear
import pytest
import torch
from battery import Battery
from measure import Case, Draw, Inputs, same
from nearlinear.reference import sface as reference
from torch import Tensor

ops = torch.ops.nearlinear
BOTH = ("input", "linear_weight")
SOFT = {"k": 5.0, "scale": 4.0}  # sigmoids that are neither 0 nor 1


def head(classes: int, features: int, ignored: int | None = None, weighted: bool = False) -> Any:
    def make(draw: Draw, rows: int) -> Inputs:
        made = {"input": draw.normal(rows, features), "linear_weight": draw.normal(classes, features), "target": draw.labels(classes, rows)}
        made["target"][-1:] = classes - 1
        if ignored is not None:
            made["target"][::7] = ignored
        if weighted:
            made["sample_weight"] = draw.positive(rows)
        return made

    return make


CASES = (
    Case("plain", head(37, 9), "one tile", native=BOTH, differentiable=BOTH, options=SOFT),
    Case(
        "weighted", head(7, 4, 2, True), "ignored rows and weights; with fewer rows the mean of their errors is luck", rows=45,
        native=BOTH, differentiable=(*BOTH, "sample_weight"), options={**SOFT, "ignore_index": 2},
    ),
    Case(
        "tiles", head(2200, 40, -100), "several tiles, above one cache block; wide and steep, or signed cosines cancel in the sum",
        rows=20, native=BOTH, differentiable=BOTH,
        options={"k": 30.0, "max_workspace_bytes": 900_000},
    ),
    Case("published", head(37, 9), "the paper's constants", native=BOTH, differentiable=BOTH),
)  # fmt: skip


class TestSFace(Battery):
    function = staticmethod(nearlinear.sface_loss)
    definition = staticmethod(reference.sface_loss)
    cases = CASES
    casts_under_autocast = False
    compiled: ClassVar[dict[str, str]] = {"weighted": "aot_eager"}

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        return view.is_contiguous() and view.data_ptr() % 64 == 0

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        c, y, up = draw.normal(5, 7).tanh().float().to(device), draw.labels(7, 5).to(device), draw.positive(5).float().to(device)
        x, w = draw.normal(5, 3).float().to(device), draw.normal(7, 3).float().to(device)
        options = (-100, "sface", [5.0, 1.2])
        return [
            (ops.logit_sum.default, (c, y, *options), (0,)),
            (ops.logit_sum_backward.default, (up, c, y, *options), ()),
            (ops.logit_sum_backward_.default, (up, c.clone(), y, *options), ()),
            (ops.linear_logit_sum.default, (x, w, y, *options), (0, 1)),
            (ops.linear_logit_sum_backward.default, (up, x, w, y, *options, None, [True, True]), ()),
        ]

    def test_saved_memory(self, case: Case, device: torch.device) -> None:
        """The gathered class vectors of the labels are N D, not N V."""
        if case.name != "tiles":
            pytest.skip("the other cases are too small to tell N D from N V")
        inputs = case.inputs(torch.float32, device)
        saved: dict[int, int] = {}
        owned = {t.untyped_storage().data_ptr() for t in inputs.values()}

        def pack(t: Tensor) -> Tensor:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        leaves = {n: t.requires_grad_(n in case.differentiable) for n, t in inputs.items()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            self.function(**leaves, **self.options(case))
        assert sum(size for address, size in saved.items() if address not in owned) < 20 * 2200 * 4 / 10


@pytest.mark.parametrize("first_class", [0, 5])
@pytest.mark.parametrize("classes", [1, 7, 2047, 2048, 4100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_sums(dtype: torch.dtype, classes: int, first_class: int, device: torch.device) -> None:
    draw = Draw()
    cosine = draw.normal(6, classes).tanh().to(dtype).to(device)
    target = draw.labels(classes + 2 * first_class, 6).to(device)
    target[1] = -100
    options = (-100, "sface", [6.0, 1.1], first_class)
    got = ops.logit_sum(cosine, target, *options)
    wide = cosine.double().requires_grad_()
    want = reference.logit_sum(wide, target, *options)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(got.double(), want.detach(), rtol=tolerance, atol=tolerance * classes**0.5)
    up = torch.arange(1.0, 7.0, dtype=got.dtype, device=device)
    (gradient,) = torch.autograd.grad(want, wide, up.double())
    d_input = ops.logit_sum_backward(up, cosine, target, *options)
    torch.testing.assert_close(d_input.double(), gradient, rtol={torch.bfloat16: 8e-3}.get(dtype, tolerance), atol=tolerance)
    over = cosine.clone()
    ops.logit_sum_backward_(up, over, target, *options)
    assert torch.equal(over, d_input)


def test_arc_cosine_keeps_its_accuracy(device: torch.device) -> None:
    """The weight at slope 1 shows the angle: 1 / (1 + e^(acos - b))."""
    cosine = torch.cat([torch.linspace(-1, 1, 4001), torch.tensor([1 - 2**-24, -1 + 2**-24, 1.0000001, -1.0000001])]).to(device)
    target = torch.zeros(1, dtype=torch.int64, device=device) - 1
    weight = ops.logit_sum_backward(torch.ones(1, device=device), cosine[None], target, -100, "sface", [1.0, 1.5])
    want = torch.sigmoid(-(torch.acos(cosine.double().clamp(-1, 1)) - 1.5))
    assert float((weight[0].double() - want).abs().max()) < 2e-7


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_feature_on_its_class_is_finite(sign: float, device: torch.device) -> None:
    """acos of a cosine rounded above 1 is NaN in the public code."""
    x = torch.full((1, 3), 1 / math.sqrt(3), device=device).requires_grad_()
    w = torch.cat([sign * x.detach() * 1.7, torch.ones(1, 3, device=device)]).requires_grad_()
    loss = nearlinear.sface_loss(x, w, torch.tensor([0], device=device))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (x, w)))


def test_weights_are_constants_in_the_gradient() -> None:
    """d loss / d cosine is s r_out, and -s r_in at the target: no derivative of the sigmoids."""
    draw = Draw()
    x, w, y = draw.normal(4, 3), draw.normal(5, 3), draw.labels(5, 4)
    unit_x, unit_w = (torch.nn.functional.normalize(t) for t in (x, w))
    cosine = unit_x @ unit_w.T
    theta = torch.acos(cosine)
    g = torch.sigmoid(-80 * (theta - 1.23))
    own = torch.nn.functional.one_hot(y, 5).bool()
    g = torch.where(own, -torch.sigmoid(80 * (theta - 0.8)), g) * 64 / 4
    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(nearlinear.sface_loss(leaf, w, y), leaf)
    d_unit = g @ unit_w
    want = (d_unit - unit_x * (unit_x * d_unit).sum(1, keepdim=True)) / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(got, want)


def test_module_and_messages() -> None:
    draw = Draw()
    x, w, y = draw.normal(4, 3), draw.normal(5, 3), draw.labels(5, 4)
    module = nearlinear.SFaceLoss(k=5.0, reduction="sum")
    want = nearlinear.sface_loss(x, w, y, k=5.0, reduction="sum")
    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        same(one(x, w, y), want, "SFaceLoss")
    assert "k=5.0" in repr(module)
    with pytest.raises(IndexError, match=r"sface_loss: target\[2\] = 5 is out of range \[0, 5\)"):
        nearlinear.sface_loss(x, w, torch.tensor([0, 1, 5, 2]))
    with pytest.raises(ValueError, match="sface_loss: normalizer must be None unless reduction='mean', got reduction='sum'"):
        nearlinear.sface_loss(x, w, y, reduction="sum", normalizer=2.0)
    for arguments, text in (
        ((x, y[:2], -100, "sface", [1.0, 1.0]), "target must have one label per row, 4, got 2"),
        ((x, y, -100, "softmax", [1.0, 1.0]), "logit_map must be sface, got softmax"),
        ((x, y, -100, "sface", [1.0]), "map_params has the wrong length for logit_map=sface"),
        ((x, y.int(), -100, "sface", [1.0, 1.0]), "target must be int64"),
    ):
        with pytest.raises(RuntimeError, match=text):
            ops.logit_sum(*arguments)
