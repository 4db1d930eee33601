"""logit_stats on a shard of the classes, the maps of distances, and its backward written over the logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from measure import Draw
from nearlinear.logit_maps import LOGIT_MAPS
from nearlinear.reducers import Stats, merge
from nearlinear.reference import cross_entropy as reference
from torch import Tensor

ops = torch.ops.nearlinear
MAPS = [("identity", []), ("scale", [0.3]), ("soft_cap", [2.0]), ("power", [3.0, 0.1]), ("arcosh", [0.7])]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 9e-3}
ROWS, IGNORED = 9, 2


def made(classes: int, num_classes: int, dtype: torch.dtype, device: torch.device, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
    draw = Draw()
    input, target = draw.normal(ROWS, classes, scale=2.0), draw.labels(num_classes, ROWS)
    target[IGNORED] = -100
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (input.abs() if positive else input).to(dtype).to(device), target.to(device), draw.positive(classes).to(wide).to(device)


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    got, want = got.double().cpu(), want.detach().double().cpu()
    finite = want.isfinite()
    assert torch.equal(got[~finite], want[~finite])
    if finite.any():
        assert float((got - want)[finite].abs().max()) <= tolerance * max(1.0, float(want[finite].abs().max()))


@pytest.mark.parametrize("shard", [None, (5, 11)], ids=["whole", "shard"])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("map_", MAPS, ids=lambda m: m[0])
@pytest.mark.parametrize("classes", [7, 64, 300, 5000])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
def test_shards_and_maps(
    dtype: torch.dtype, classes: int, map_: tuple[str, list[float]], spread: bool, shard: tuple[int, int] | None, device: torch.device
) -> None:
    """Values against the definition; the gradient against its formula, given statistics that no shard could know."""
    first, num_classes = (0, classes) if shard is None else (shard[0], classes + shard[1])
    input, target, weight = made(classes, num_classes, dtype, device, map_[0] in ("power", "arcosh"))
    place: tuple[Any, ...] = () if shard is None else (first, num_classes)
    options = (-100, *map_, spread, *place)
    nll, lse, deviation, residual = ops.logit_stats(input, target, weight, *options)
    x = input.double().requires_grad_()
    want = reference.logit_stats(x, target, weight.double(), *options)
    for value, definition in zip((nll, lse, deviation), want[:3], strict=True):
        close(value, definition, min(TOLERANCE[dtype], 3e-6))

    row = [torch.randn(ROWS, dtype=nll.dtype, device=device) for _ in range(3)]
    nll = nll.masked_fill(nll.isinf(), 1.5)
    saved = (*row, input, target, weight, nll, lse, residual, *options)
    d_input = ops.logit_stats_backward(*saved)
    z = LOGIT_MAPS[map_[0]](*map_[1])(x)
    (slope,) = torch.autograd.grad(z.sum(), x)
    d_nll, d_lse, d_spread = (r.double() for r in row)
    d_spread = d_spread if spread else torch.zeros_like(d_spread)
    own = torch.zeros_like(z, dtype=torch.bool)
    here = (target >= first) & (target < first + classes)
    own[here, target[here] - first] = True
    p = torch.exp(z.detach() - want[1].detach()[:, None])
    gradient = (d_nll + d_lse + d_spread * weight.double().sum())[:, None] * p - d_spread[:, None] * weight.double()
    gradient = (gradient - d_nll[:, None] * own) * slope
    gradient[IGNORED] = 0
    close(d_input, gradient, TOLERANCE[dtype])

    over, before = input.clone(), input.clone()
    ops.logit_stats_backward_(*row, over, *saved[4:])
    assert torch.equal(over, d_input)
    assert torch.equal(input, before)


def test_a_shard_of_minus_infinity_leaves_the_rest_to_the_others(device: torch.device) -> None:
    """-inf everywhere in one shard: probability 0 there, whatever the label."""
    input = torch.full((3, 70), -math.inf, device=device)
    target = torch.tensor([0, 80, -100], device=device)
    nll, lse, spread, residual = ops.logit_stats(input, target, None, -100, "identity", [], True, 0, 100)
    assert nll.tolist() == spread.tolist() == [math.inf, math.inf, 0.0]
    assert lse.tolist() == [-math.inf, -math.inf, 0.0]
    assert residual.tolist() == [0.0, 0.0, 0.0]
    other = Stats(*ops.logit_stats(torch.zeros(3, 30, device=device), target, None, -100, "identity", [], True, 70, 100))
    total = merge(Stats(nll, lse, spread, residual), 70.0, other, 30.0)
    torch.testing.assert_close(total.nll[:2].cpu(), torch.tensor([math.inf, math.log(30)]))
    torch.testing.assert_close(total.lse[:2].cpu(), torch.full((2,), math.log(30)))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("lead", [0.0, 30.0, 70.0])
def test_merged_shards_are_the_whole(offset: float, lead: float, device: torch.device) -> None:
    """Also where nll is 1e-28, and where a common offset leaves lse two decimals in float32."""
    draw = Draw()
    target = draw.labels(200, 40)
    input = draw.normal(40, 200).float().double()
    input[torch.arange(40), target] += lead
    input = ((input + offset).float()).to(device)  # rounding to float32 is part of the input
    weight, target = draw.positive(200).float().to(device), target.to(device)
    whole = reference.logit_stats(input.double().cpu(), target.cpu(), weight.double().cpu(), -100, "identity", [], True)
    merged, mass = None, torch.zeros((), device=device)
    for begin, end in ((0, 1), (1, 66), (66, 200)):
        part = Stats(*ops.logit_stats(input[:, begin:end], target, weight[begin:end], -100, "identity", [], True, begin, 200))
        part_mass = weight[begin:end].sum()
        merged = part if merged is None else merge(merged, mass, part, part_mass)
        mass = mass + part_mass
    # the definition in float64 cannot give a tiny nll: sum the others
    others = input.double().cpu().scatter(1, target.cpu().unsqueeze(1), -math.inf).logsumexp(1)
    nll = torch.nn.functional.softplus(others - input.double().cpu().gather(1, target.cpu().unsqueeze(1)).squeeze(1), threshold=1e9)
    # the argument of the exponential, up to lead + 5, carries its own rounding
    rtol = 1e-6 + 4 * torch.finfo(torch.float32).eps * (lead + 5)
    torch.testing.assert_close(merged.nll.double().cpu(), nll, rtol=rtol, atol=0)
    torch.testing.assert_close((merged.lse.double() + merged.lse_residual).cpu(), whole[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(merged.spread.double().cpu(), whole[2], rtol=3e-6, atol=1e-4)


def test_a_shard_must_lie_inside_the_classes(device: torch.device) -> None:
    input, target = torch.zeros(2, 5, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match=r"first_class \+ V must be <= num_classes, got first_class=3, V=5, num_classes=7"):
        ops.logit_stats(input, target, None, -100, "identity", [], False, 3, 7)
