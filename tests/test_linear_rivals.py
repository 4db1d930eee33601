"""What other fused linear cross-entropies got wrong, each a test that this one passes. Issue numbers are those of the projects named."""

from __future__ import annotations

import math
from typing import Any

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from measure import Draw, poisoned_memory, same
from nearlinear import plan
from torch import Tensor

lce = nearlinear.linear_cross_entropy


def made(n: int = 12, d: int = 6, v: int = 40, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = Draw()
    return draw.normal(n, d).to(dtype).requires_grad_(), draw.normal(v, d).to(dtype).requires_grad_(), draw.labels(v, n)


def eager(x: Tensor, w: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(F.linear(x, w), y, **options)


def gradients(loss: Tensor, *leaves: Tensor, upstream: Tensor | None = None) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, upstream))


def test_rows_get_their_own_upstream_with_the_first_row_ignored() -> None:
    """Liger #968, #678: every gradient was multiplied by grad_output[0]."""
    x, w, y = made()
    y[0] = -100
    upstream = torch.linspace(-1, 2, 12)
    got = gradients(lce(x, w, y, reduction="none"), x, w, upstream=upstream)
    torch.testing.assert_close(got, gradients(eager(x, w, y, reduction="none"), x, w, upstream=upstream))
    zero = gradients(lce(x, w, y, reduction="none"), x, w, upstream=torch.zeros(12))
    assert not any(g.any() for g in zero)


def test_compiled_value_with_ignored_rows_and_dirty_memory() -> None:
    """Liger #1338: rows that are ignored kept whatever the buffer held, 61.7 where 21.4 was right."""
    x, w, y = made()
    y[::3] = -100
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: lce(*a), fullgraph=True, backend="aot_eager")
    with poisoned_memory():
        loss = compiled(x, w, y)
        got = gradients(loss, x, w)
    torch.testing.assert_close(loss, eager(x, w, y))
    torch.testing.assert_close(got, gradients(eager(x, w, y), x, w))
    assert not got[0][::3].any()


def test_error_of_a_half_weight_gradient_does_not_grow_with_the_tiles() -> None:
    """Liger #512, #827, CCE #14, torch 2.13: a bfloat16 accumulator lost 1.3x at 16 chunks and 7x at 1024. Ours stays at the rounding
    of the result, 1.3 times at most."""
    draw = Draw()
    x, w, y = (0.5 * draw.normal(512, 32)).bfloat16(), draw.normal(300, 32).bfloat16(), draw.labels(300, 512)
    wide = w.double().requires_grad_()
    (exact,) = torch.autograd.grad(eager(x.double(), wide, y), wide)
    floor = float((exact.bfloat16().double() - exact).norm())
    seen = set()
    for limit in (None, 400_000, 170_000, 150_000):
        leaf = w.clone().requires_grad_()
        (got,) = gradients(lce(x, leaf, y, max_workspace_bytes=limit), leaf)
        assert got.dtype == torch.bfloat16
        assert float((got.double() - exact).norm()) <= 1.3 * floor
        seen.add(plan(512, 300, 32, torch.bfloat16, max_workspace_bytes=limit).rows)
    assert len(seen) >= 3, f"the limits must give different numbers of tiles, got rows {seen}"


def test_loss_of_half_inputs_is_float32() -> None:
    """torch 2.13 sums a bfloat16 loss over its chunks: 4.0 where 9.0 is right, at 512 chunks."""
    draw = Draw()
    features, weight, y = draw.normal(512, 16).bfloat16(), draw.normal(200, 16).bfloat16(), draw.labels(200, 512)
    exact = float(eager(features.double(), weight.double(), y))
    for limit in (None, 120_000):
        loss = lce(features, weight, y, max_workspace_bytes=limit)
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored(reduction: str) -> None:
    """torch's chunks give NaN gradients, Liger a zero loss, torchtune a constant: eager gives NaN with gradients of exactly 0."""
    x, w, y = made()
    y.fill_(-100)
    loss = lce(x, w, y, reduction=reduction)
    same(loss.detach(), eager(x, w, y, reduction=reduction).detach(), reduction)
    assert not any(g.any() for g in gradients(loss.sum(), x, w))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch(reduction: str) -> None:
    """Liger divides by zero."""
    x, w = torch.zeros(0, 6, requires_grad=True), torch.zeros(40, 6, requires_grad=True)
    y = torch.zeros(0, dtype=torch.int64)
    loss = lce(x, w, y, reduction=reduction)
    same(loss.detach(), eager(x, w, y, reduction=reduction).detach(), reduction)
    got = gradients(loss.sum(), x, w)
    assert [g.shape for g in got] == [x.shape, w.shape]
    assert not any(g.any() for g in got)


@pytest.mark.parametrize("which", ["input", "linear_weight", "linear_bias"])
def test_one_leaf_alone(which: str) -> None:
    """Liger #507, #930 and its fused head: a loss of 0, an UnboundLocalError, w.grad None where only the head was trained."""
    x, w, y = made()
    b = torch.linspace(0, 1, 40)
    tensors = {"input": x.detach(), "linear_weight": w.detach(), "linear_bias": b}
    plain = lce(**tensors, target=y)
    with torch.no_grad():
        same(lce(x, w, y, linear_bias=b), plain, "no_grad")
    with torch.inference_mode():
        same(lce(x.detach().clone(), w.detach().clone(), y, linear_bias=b), plain, "inference_mode")
    leaf = tensors[which].clone().requires_grad_()
    loss = lce(**{**tensors, which: leaf}, target=y)
    same(loss.detach(), plain, which)
    loss.backward()
    want = tensors[which].clone().requires_grad_()
    other = {**tensors, which: want}
    F.cross_entropy(F.linear(other["input"], other["linear_weight"], other["linear_bias"]), y).backward()
    torch.testing.assert_close(leaf.grad, want.grad)


def test_backward_twice_and_with_an_auxiliary_loss() -> None:
    """Liger doubles the gradient of a second backward; unsloth #5002 and ms-swift #10130 overwrite what they saved."""
    x, w, y = made()
    kept = x.detach().clone(), w.detach().clone()
    loss = lce(x, w, y)
    first = torch.autograd.grad(loss, (x, w), torch.tensor(3.0), retain_graph=True)
    second = torch.autograd.grad(loss, (x, w), torch.tensor(1.0))
    torch.testing.assert_close(first, tuple(3 * g for g in second))
    with_auxiliary = gradients(lce(x, w, y) + (x**2).sum(), x)[0]
    torch.testing.assert_close(with_auxiliary, second[0] + 2 * x.detach())
    assert torch.equal(x.detach(), kept[0])
    assert torch.equal(w.detach(), kept[1])


def test_gradients_that_are_scaled_in_place_are_the_callers_own() -> None:
    """Two calls on the same tensors, and .grad of the first, do not share memory with the second."""
    x, w, y = made()
    lce(x, w, y).backward()
    held = w.grad
    copy = held.clone()
    w.grad = None
    (5 * lce(x, w, y)).backward()
    assert torch.equal(held, copy)
    torch.testing.assert_close(w.grad, 5 * copy)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_a_common_offset_costs_nothing(offset: float) -> None:
    """lse - z_y in float32 gives 0.0625 where 0.0486 is right (mlx #4188, OLMo-core #702, verl #2656: log-probabilities above 0)."""
    x = torch.tensor([[1.0, 0.0]])
    w = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    loss = lce(x, w, torch.tensor([0]), linear_bias=torch.full((2,), offset))
    assert float(loss) == pytest.approx(0.048587352, rel=1e-6)


@pytest.mark.parametrize("length", [11, 13, 24])
def test_length_of_the_target(length: int) -> None:
    """torch 2.13's chunks take a longer target and return another number; Liger takes N - 1 and N + 1."""
    x, w, _ = made()
    with pytest.raises(ValueError, match=rf"target must have shape \(12,\) for input of shape \(12, 6\), got \({length},\)"):
        lce(x, w, torch.zeros(length, dtype=torch.int64))


@pytest.mark.parametrize("label", [40, 1_000_000, -1, -(2**63), 2**31])
def test_labels_out_of_range(label: int) -> None:
    """Liger: 9 of 7 gives -1e34, a million a segmentation fault, -1 is accepted."""
    x, w, y = made()
    y[4] = label
    for reduction in ("mean", "none"):
        with pytest.raises(IndexError, match=rf"target\[4\] = {label} is out of range \[0, 40\)"):
            lce(x, w, y, reduction=reduction)


def test_labels_out_of_range_are_named_by_the_op_too() -> None:
    """With rows before them that are left out of the tiles."""
    x, w, y = made()
    y[:3] = -100
    y[7] = 40
    with pytest.raises(RuntimeError, match=r"linear_logit_stats: target\[7\] = 40 is out of range \[0, 40\)"):
        torch.ops.nearlinear.linear_logit_stats(x, w, None, y, None, None, -100, "identity", [], False)


def test_double_backward_is_attached() -> None:
    """torch's chunks return a gradient with requires_grad=False."""
    x, w, y = made(dtype=torch.float64)
    for function in (lce, eager):
        (g,) = torch.autograd.grad(function(x, w, y), x, create_graph=True)
        assert g.requires_grad
    ours = torch.autograd.grad((torch.autograd.grad(lce(x, w, y), x, create_graph=True)[0] ** 2).sum(), (x, w))
    want = torch.autograd.grad((torch.autograd.grad(eager(x, w, y), x, create_graph=True)[0] ** 2).sum(), (x, w))
    torch.testing.assert_close(ours, want)


def test_forward_mode_is_refused() -> None:
    """torch's chunks return a tangent of 0."""
    x, w, y = made()
    with pytest.raises(NotImplementedError, match="linear_cross_entropy: forward-mode AD is not implemented"):
        torch.func.jvp(lambda t: lce(t, w.detach(), y), (x.detach(),), (x.detach(),))


def test_a_sharded_weight_is_refused() -> None:
    """CCE #31: an illegal access on an FSDP shard; trl #6065: mixed Tensor and DTensor."""

    class DTensor(Tensor):
        pass

    x, w, y = made()
    with pytest.raises(TypeError, match=r"linear_weight is a DTensor; pass linear_weight.full_tensor\(\)"):
        lce(x, w.detach().as_subclass(DTensor), y)
    with pytest.raises(ValueError, match=r"linear_weight must have shape \(V, D\) with D=6, got \(0,\)"):
        lce(x, torch.zeros(0), y)  # Liger #332: the flat parameter of another rank


def test_mixed_dtypes_are_an_error_unless_autocast() -> None:
    """torch 2.13 takes bfloat16 features with a float32 head and returns bfloat16."""
    x, w, y = made()
    with pytest.raises(TypeError, match="linear_weight must have the dtype of input"):
        lce(x.bfloat16(), w, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = lce(x.bfloat16(), w, y)
    assert loss.dtype == torch.float32
    same(loss, lce(x.bfloat16(), w.bfloat16(), y), "autocast casts as F.linear")
    assert gradients(loss, w)[0].dtype == torch.float32


def test_leading_dimensions() -> None:
    """torch's op takes one or two dimensions only."""
    x, w, y = made()
    deep = x.detach().view(3, 2, 2, 6).requires_grad_()
    loss = lce(deep, w, y.view(3, 2, 2), reduction="none")
    assert loss.shape == (3, 2, 2)
    torch.testing.assert_close(loss.flatten(), lce(x, w, y, reduction="none"))
    one = lce(x.detach()[0], w, y[0])
    torch.testing.assert_close(one, eager(x.detach()[:1], w, y[:1]))


def test_infinite_and_not_a_number_stay_in_their_row() -> None:
    x, w, y = made()
    bad = x.detach().clone()
    bad[3] = math.nan
    rows = lce(bad, w, y, reduction="none")
    assert rows.isnan().tolist() == [i == 3 for i in range(12)]
    bias = torch.zeros(40)
    bias[7] = -math.inf
    y[:] = 5
    y[2] = 7
    rows = lce(x, w, y, linear_bias=bias, reduction="none")
    assert rows.isinf().tolist() == [i == 2 for i in range(12)]
    assert all(g.isfinite().all() for g in gradients(rows.sum(), x, w))
