"""What attention over pairs of keys takes: exact or a polynomial, by rule; its bound; tree attention; the Module."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from measure import Draw, evaluate, same
from nearlinear import tensor_attention_paths, tensor_attention_plan
from nearlinear.reference import tensor_attention as reference
from torch import Tensor


@pytest.fixture(autouse=True)
def _no_warning_is_due() -> Iterator[None]:
    """The certificate is looked at in calls 1, 2, 4, ...: here in none, whatever ran before."""
    calls = tensor_attention_paths._calls
    tensor_attention_paths._calls = itertools.count(3, 2)
    yield
    tensor_attention_paths._calls = calls


def drawn(*shape: int, count: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [Draw(seed).normal(*shape).to(dtype) for seed in range(count)]


def normalised(t: Tensor) -> Tensor:
    return t / t.square().mean(-1, keepdim=True).sqrt()


# ---- approximation and choice


def test_exact_unless_asked() -> None:
    many = [normalised(t) for t in drawn(1, 1, 400, 8, dtype=torch.float32)]
    plan = tensor_attention_plan(*many)
    assert (plan.method, plan.degree, plan.flops) == ("exact", None, plan.exact_flops)
    assert plan.exact_flops == 4 * 400**3 * 8
    found = tensor_attention_plan(*many, kernel="taylor")
    assert (found.method, found.degree) == ("polynomial", 2)
    assert (found.flops, found.state_bytes) == (2 * 45 * 9 * 1200, 3 * 45 * 9 * 4)
    few = [t[:, :, :4] for t in many]
    assert tensor_attention_plan(*few, kernel="taylor").method == "exact"
    assert tensor_attention_plan(*many, kernel="taylor", window_size=((8, 0), (8, 0))).method == "exact"
    assert tensor_attention_plan(*(t.to("meta") for t in many), kernel="taylor", is_causal=True).method == "polynomial"


def test_rtol_takes_the_smallest_degree_that_is_certified() -> None:
    q, a, b, v, w = (normalised(t) for t in drawn(1, 2, 300, 16))
    degrees = [tensor_attention_plan(q, a, b, v, w, rtol=rtol).degree for rtol in (0.5, 0.05, 1e-2, 1e-9)]
    assert degrees[0] == 2
    assert degrees == [*sorted(degrees[:3]), None]
    assert 4 in degrees
    for rtol in (0.5, 1e-2):
        plan = tensor_attention_plan(q, a, b, v, w, rtol=rtol)
        assert plan.tv_bound <= rtol
        assert plan.flops < plan.exact_flops
        out, bound = nearlinear.tensor_attention(q, a, b, v, w, rtol=rtol, return_error_bound=True)
        same(out, nearlinear.tensor_attention(q, a, b, v, w, method="polynomial", degree=plan.degree), "the plan")
        error = (out - nearlinear.tensor_attention(q, a, b, v, w)).abs().amax(3)
        assert (error <= bound).all()
        assert (bound <= 2 * rtol * v.abs().max() * w.abs().max() + 1e-9).all()
    tiny = [t[:, :, :4] for t in (q, a, b, v, w)]
    assert tensor_attention_plan(*tiny, rtol=0.9).method == "exact"  # certified, but dearer


def test_rtol_cannot_be_compiled() -> None:
    compiled = torch.compile(lambda *t: nearlinear.tensor_attention(*t, rtol=0.1), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="rtol must be None under torch"):
        compiled(*drawn(1, 2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
def test_error_bound_holds_with_rounding(size: float, dtype: torch.dtype) -> None:
    """Against the softmax of the same inputs in float64, for each path; the definition measures what the bound bounds."""
    q, a, b, v, w = (t.to(dtype) for t in (*(size * normalised(t) for t in drawn(2, 2, 24, 16)[:3]), *drawn(2, 2, 24, 3)[3:]))
    mask = torch.arange(24) % 5 == 0
    options: dict[str, Any] = {"key1_padding_mask": mask.expand(2, -1)}
    truth = reference.tensor_attention(*(t.double() for t in (q, a, b, v, w)), **options)
    near = {"method": "polynomial", "exact_window": ((2, 2), (2, 2))}
    for how in ({}, {"method": "polynomial"}, {"method": "polynomial", "degree": 4}, near, {"method": "polynomial", "is_causal": True}):
        exact = reference.tensor_attention(*(t.double() for t in (q, a, b, v, w)), **options, is_causal=how.get("is_causal", False))
        out, bound = nearlinear.tensor_attention(q, a, b, v, w, **options, **how, return_error_bound=True)
        assert ((out.double() - exact).abs().amax(3) <= bound).all()
    _, error = reference.tensor_attention(*(t.double() for t in (q, a, b, v, w)), **options, method="polynomial", return_error_bound=True)
    approximate = nearlinear.tensor_attention(*(t.double() for t in (q, a, b, v, w)), **options, method="polynomial")
    torch.testing.assert_close(error, (approximate - truth).abs().amax(3), rtol=1e-6, atol=1e-9)


def test_exact_window_takes_the_large_logits() -> None:
    """Keys that match their query alone: the polynomial is wrong about those pairs, and right about the others."""
    q, sign = normalised(Draw().normal(1, 1, 40, 256)), Draw(1).normal(1, 1, 40, 256).sign()
    tensors = (6 * q, q * sign, sign, *drawn(1, 1, 40, 3)[:2])
    truth = nearlinear.tensor_attention(*tensors)
    plain = nearlinear.tensor_attention(*tensors, method="polynomial")
    hybrid = nearlinear.tensor_attention(*tensors, method="polynomial", exact_window=((0, 0), (0, 0)))
    assert (hybrid - truth).norm() < 0.5 * (plain - truth).norm()
    everywhere = nearlinear.tensor_attention(*tensors, method="polynomial", exact_window=((-1, -1), (-1, -1)))
    torch.testing.assert_close(everywhere, truth, rtol=1e-9, atol=1e-10)


def test_warns_outside_of_the_certified_range() -> None:
    """In calls 1, 2, 4, 8, ...: a training that drifts out is noticed, and the certificate is not paid for in every step."""
    wild, tame = drawn(1, 1, 20, 4), [normalised(t) / 4 for t in drawn(1, 1, 20, 4)]
    tensor_attention_paths._calls = itertools.count(1)
    seen = []
    for call in range(1, 9):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            nearlinear.tensor_attention(*wild, scale=1.0, method="polynomial")
        seen += [call for warning in caught if warning.category is nearlinear.NearlinearWarning]
    assert seen == [1, 2, 4, 8]
    tensor_attention_paths._calls = itertools.count(1)
    nearlinear.tensor_attention(*tame, method="polynomial")


# ---- tree attention


def test_tree_attention(device: torch.device) -> None:
    names = ("query", "key1", "key1b", "key2", "value1", "value2")
    for n, n1, n2 in ((5, 4, 6), (1, 1, 1), (3, 0, 2), (3, 2, 0), (0, 2, 2)):
        draw = Draw()
        shapes = ((n, 4), (n1, 4), (n1, 4), (n2, 4), (n1, 3), (n2, 3))
        inputs = {name: draw.normal(2, 2, *shape).to(device) for name, shape in zip(names, shapes, strict=True)}
        got, expected = (evaluate(f, inputs, {"scale": 0.7}, names) for f in (nearlinear.tree_attention, reference.tree_attention))
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    wide = [20 * t for t in drawn(2, 30, 16, count=6)]
    torch.testing.assert_close(nearlinear.tree_attention(*wide), reference.tree_attention(*wide), rtol=1e-9, atol=1e-9)


# ---- Module


def test_module_is_projections_and_the_function() -> None:
    x, mask = Draw().normal(2, 7, 12).float(), torch.rand(2, 7) < 0.3
    options: dict[str, Any] = {"is_causal": True, "kernel": "taylor", "degree": 4}
    layer = nearlinear.TensorAttention(12, 4, num_kv_heads=2, qk_norm=True, **options)
    q, a, b, v, w = (f(x).unflatten(-1, (-1, 3)).transpose(1, 2) for f in (layer.query, layer.key1, layer.key2, layer.value1, layer.value2))
    q, a, b = (F.rms_norm(t, (3,)) for t in (q, a, b))
    inner = nearlinear.tensor_attention(q, a, b, v, w, enable_gqa=True, key1_padding_mask=mask, **options)
    expected = layer.output(inner.transpose(1, 2).flatten(2))
    same(layer(x, key1_padding_mask=mask), expected, "layer")
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        same(copied(x, mask), expected, "copy")
    fresh = nearlinear.TensorAttention(12, 4, num_kv_heads=2, qk_norm=True, **options)
    fresh.load_state_dict(layer.state_dict())
    same(fresh(x, mask), expected, "state_dict")
    layer(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert repr(layer).startswith(
        "TensorAttention(\n  num_heads=4, num_kv_heads=2, is_causal=True, method='auto', kernel='taylor', degree=4\n"
    )


def test_module_sizes() -> None:
    layer = nearlinear.TensorAttention(12, 2, head_dim=5, bias=False, dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        **{f"{name}.weight": (10, 12) for name in ("query", "key1", "key2", "value1", "value2")}, "output.weight": (12, 10),
    }  # fmt: skip
    assert layer(torch.randn(4, 12, dtype=torch.float64)).shape == (4, 12)
    assert layer(torch.randn(2, 3, 4, 12, dtype=torch.float64)).shape == (2, 3, 4, 12)
