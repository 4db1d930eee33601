"""The divergences of two linear heads: the battery, messages, and the memory promise."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import nearlinear
import pytest
import torch
from battery import Battery
from measure import Case, Draw, Inputs, same
from nearlinear.reference import linear_kl_logit as reference
from test_linear_memory import peak_bytes
from torch import Tensor

ops = torch.ops.nearlinear
FOUR = ("input", "linear_weight", "target_input", "target_weight")


def heads(classes: int, features: int, target_features: int, weighted: bool = False) -> Any:
    def make(draw: Draw, rows: int) -> Inputs:
        shapes = {"input": (rows, features), "linear_weight": (classes, features), "target_input": (rows, target_features)}
        made = {name: draw.normal(*shape) for name, shape in shapes.items()} | {"target_weight": draw.normal(classes, target_features)}
        if weighted:
            made["sample_weight"] = draw.positive(rows)
            made["mask"] = torch.arange(rows) % 3 != 1
        return made

    return make


CASES = (
    Case("plain", heads(37, 9, 9), "one tile", native=FOUR, differentiable=FOUR),
    Case(
        "weighted", heads(4, 2, 3, True), "other features, a mask, weights, a temperature", rows=5, native=FOUR,
        differentiable=(*FOUR[:3], "sample_weight"), options={"temperature": 2.0}, checked=True,
    ),
    Case(
        "tiles", heads(131, 5, 4), "several tiles of rows", rows=40, native=FOUR, differentiable=FOUR,
        options={"max_workspace_bytes": 50_000},
    ),
)  # fmt: skip


class TestLinearKLLogit(Battery):
    function = staticmethod(nearlinear.linear_kl_logit_loss)
    definition = staticmethod(reference.linear_kl_logit_loss)
    cases = CASES
    reductions = ("batchmean", "sum")
    casts_under_autocast = True
    common_roundings = 2  # two softmaxes
    compiled: ClassVar[dict[str, str]] = {"weighted": "aot_eager"}
    modules = ((nearlinear.LinearKLLogitLoss, nearlinear.linear_kl_logit_loss, {"temperature": 2.0, "reduction": "sum"}),)

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        return view.is_contiguous() and view.data_ptr() % 64 == 0

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        tensors = [draw.normal(*shape).float().to(device) for shape in ((5, 3), (7, 3), (5, 2), (7, 2))]
        up = draw.positive(5).float().to(device)
        return [
            (ops.linear_two_logit_stats.default, (*tensors, 0.5, 0.0, None), (0, 1, 2, 3)),
            (ops.linear_two_logit_stats_backward.default, (up, *tensors, 0.5, 0.0, None, [True, True, False, True]), ()),
        ]


class TestLinearJSLogit(TestLinearKLLogit):
    function = staticmethod(nearlinear.linear_js_logit_loss)
    definition = staticmethod(reference.linear_js_logit_loss)
    cases = tuple(dataclasses.replace(case, options={**case.options, "beta": 0.3}) for case in CASES[1:])
    modules = ((nearlinear.LinearJSLogitLoss, nearlinear.linear_js_logit_loss, {"beta": 0.9, "reduction": "sum"}),)

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        return [
            (op, (*arguments[: len(arguments) - behind], 0.3, *arguments[len(arguments) - behind + 1 :]), places)
            for (op, arguments, places), behind in zip(super().op_samples(device), (2, 3), strict=True)
        ]


def test_it_is_the_divergence_of_the_logits() -> None:
    draw = Draw()
    x, w, t, u = draw.normal(6, 3), draw.normal(9, 3), draw.normal(6, 4), draw.normal(9, 4)
    for options in ({}, {"temperature": 3.0, "reduction": "none"}, {"normalizer": 2.0}):
        got = nearlinear.linear_kl_logit_loss(x, w, t, u, **options)
        torch.testing.assert_close(got, nearlinear.kl_logit_loss(x @ w.T, t @ u.T, **options))
        got = nearlinear.linear_js_logit_loss(x, w, t, u, beta=0.2, **options)
        torch.testing.assert_close(got, nearlinear.js_logit_loss(x @ w.T, t @ u.T, beta=0.2, **options))
    same(nearlinear.linear_kl_logit_loss(x, w, x, w), torch.zeros((), dtype=torch.float64), "equal heads")


@pytest.mark.parametrize("loss", [nearlinear.linear_kl_logit_loss, nearlinear.linear_js_logit_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_workspace_keeps_to_its_limit(dtype: torch.dtype, loss: Any) -> None:
    n, d, v, limit = 400, 16, 3000, 4_000_000
    tensors = [torch.randn(*shape).to(dtype).requires_grad_() for shape in ((n, d), (v, d), (n, d), (v, d))]

    def step() -> Any:
        return torch.autograd.grad(loss(*tensors, max_workspace_bytes=limit), tensors)

    step()
    assert peak_bytes(step) <= sum(t.nbytes for t in tensors) + limit + (64 << 10)


def test_messages() -> None:
    x, w = torch.zeros(3, 4), torch.zeros(5, 4)
    call = nearlinear.linear_kl_logit_loss
    for arguments, error, text in (
        ((x, w, x[:2], w), ValueError, "target_input must have shape (*(3,), D), got (2, 4)"),
        ((x, w[:, :3], x, w), ValueError, "linear_weight must have shape (V, 4), got (5, 3)"),
        ((x, w, x, w[:4]), ValueError, "target_weight must have the classes of linear_weight, V=5, got 4"),
        ((x, w, x, w.double()), TypeError, "target_weight must have the dtype of input, torch.float32, got torch.float64"),
        ((x, w, x, [1.0]), TypeError, "target_weight must be a Tensor, got list"),
    ):
        with pytest.raises(error) as caught:
            call(*arguments)
        assert str(caught.value) == f"linear_kl_logit_loss: {text}"
    with pytest.raises(ValueError, match=r"^linear_kl_logit_loss: max_workspace_bytes must be >= 528, got 5"):
        call(x, w, x, w, max_workspace_bytes=5)
    with pytest.raises(ValueError, match=r"^linear_js_logit_loss: max_workspace_bytes must be >= 528, got 5"):
        nearlinear.linear_js_logit_loss(x, w, x, w, max_workspace_bytes=5)
    with pytest.raises(ValueError, match="linear_kl_logit_loss: reduction must be one of"):
        call(x, w, x, w, reduction="mean")
