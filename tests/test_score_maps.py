"""Score maps: logits by the papers' formulas in float64, derivatives of their embeddings, margins, the edges of their domains."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from measure import Draw, points
from nearlinear import score_maps
from nearlinear.score_maps import SCORE_MAPS
from torch import Tensor

RECORDS: list[score_maps.ScoreMap] = [
    score_maps.Cosine(4.0), score_maps.ArcMargin(4.0), score_maps.CosMargin(4.0), score_maps.Harmonic(2.0),
    score_maps.CosineHarmonic(2.0, 1e-2), score_maps.RBF(3.0), score_maps.StudentT(2.0), score_maps.Poincare(0.7, 0.5),
    score_maps.HyperbolicMLR(0.7),
]  # fmt: skip
each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)


def test_every_record_is_tested_and_cites_its_source() -> None:
    assert {r.name for r in RECORDS} == set(SCORE_MAPS)
    assert all(r.source for r in RECORDS)
    for r in RECORDS:
        assert SCORE_MAPS[r.name](*r.params) == r
        assert hash(r) == hash(copy.deepcopy(r))


@each_record
def test_logits_are_those_of_the_formula(record: score_maps.ScoreMap) -> None:
    x, w, _ = points()
    torch.testing.assert_close(record(x, w), record.formula(x, w), rtol=1e-11, atol=1e-12)


@each_record
def test_derivatives_of_the_embedding(record: score_maps.ScoreMap) -> None:
    x, w, _ = points()
    embedding = record.embedding
    sides = [(embedding.rows, embedding.rows_vjp, x)]
    if not embedding.holds_bias:  # pairs of embeddings have none
        sides.append((embedding.classes, embedding.classes_vjp, w))
    for embed, vjp, t in sides:
        leaf = t.clone().requires_grad_()
        out = embed(leaf)
        assert out.shape[1] == x.shape[1] + embedding.extra
        d = torch.randn_like(out)
        torch.testing.assert_close(vjp(t, d), torch.autograd.grad(out, leaf, d)[0], rtol=1e-12, atol=1e-13)


@each_record
def test_derivatives_of_the_class_terms(record: score_maps.ScoreMap) -> None:
    """What a tile accumulates, completed, is the gradient through divisor, columns, and those columns that no product sees."""
    _, w, _ = points()
    embedding, size = record.embedding, w.shape[1]
    classes, bias = w.clone().requires_grad_(), w.sum(1).requires_grad_()
    divisor, columns = embedding.class_terms(classes, bias)
    product, outside = torch.cat([classes, columns[: embedding.extra].T], 1), columns[embedding.extra :]
    product = product if divisor is None else product / divisor.unsqueeze(1)
    d, d_outside = torch.randn_like(product), torch.randn_like(outside)
    want, of_bias = torch.autograd.grad((product * d).sum() + (outside * d_outside).sum(), (classes, bias), allow_unused=True)
    divisor = None if divisor is None else divisor.detach()
    d = d if divisor is None else d / divisor.unsqueeze(1)
    found = d[:, :size].clone()
    got = embedding.complete_(found, w, divisor, columns.detach(), torch.cat([d[:, size:].T, d_outside]))
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-13)
    assert (got is None) == (of_bias is None)
    if of_bias is not None:
        torch.testing.assert_close(got, of_bias, rtol=1e-12, atol=1e-13)


@each_record
def test_the_pair_is_the_product_without_cancellation(record: score_maps.ScoreMap) -> None:
    x, w, _ = points(6, 6)
    embedding = record.embedding
    exact = embedding.pair(x, w)
    if exact is None:
        assert type(embedding).__name__ in ("Normalised", "Hyperplanes")  # they cancel nothing that a logit could feel
        return
    product = (embedding.rows(x) * embedding.classes(w)).sum(1)
    torch.testing.assert_close(exact, product, rtol=1e-11, atol=1e-13)
    near = embedding.pair(x, x + 1e-9)
    assert (near > 0).all()
    assert (near < 1e-14).all()


MARGINS: dict[str, tuple[score_maps.ScoreMap, Callable[[Tensor], Tensor]]] = {
    "arc": (score_maps.ArcMargin(1.0, 0.5), lambda t: torch.cos(t + 0.5)),
    "combined": (score_maps.ArcMargin(1.0, 0.3, 1.2, 0.1), lambda t: torch.cos(1.2 * t + 0.3) - 0.1),
    "cos": (score_maps.CosMargin(1.0, 0.35), lambda t: torch.cos(t) - 0.35),
}


@pytest.mark.parametrize("name", MARGINS)
def test_margins(name: str) -> None:
    """Value, slope in the cosine and slope in the margin, by autograd of the formula in the angle."""
    record, formula = MARGINS[name]
    theta = torch.linspace(0.05, math.pi - 0.05, 50, dtype=torch.float64)
    cosine = theta.cos().requires_grad_()
    value, slope, _ = record.target(cosine.detach(), None)
    want = formula(torch.acos(cosine))
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(want.sum(), cosine)[0])
    margin = torch.full_like(theta, 0.2)
    step = 1e-6
    up, down = (record.target(cosine.detach(), margin + s)[0] for s in (step, -step))
    torch.testing.assert_close(record.target(cosine.detach(), margin)[2], (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


def test_monotone_margin_keeps_falling() -> None:
    theta = torch.linspace(1e-3, math.pi - 1e-3, 400, dtype=torch.float64)
    plain, monotone = (score_maps.ArcMargin(1.0, 0.8, monotone=m).target(theta.cos(), None) for m in (False, True))
    assert (plain[0].diff() > 0).any(), "without it the target rises again beyond pi"
    assert (monotone[0].diff() < 0).all()
    inside = theta + 0.8 < math.pi
    assert torch.equal(plain[0][inside], monotone[0][inside])
    torch.testing.assert_close(monotone[0][~inside], theta.cos()[~inside] - 0.8 * math.sin(0.8))


@pytest.mark.parametrize("cosine", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_stay_finite_where_the_angle_is_0_or_pi(cosine: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[0.6, 0.8]], dtype=dtype)
    w = torch.cat([cosine * x, torch.tensor([[0.8, -0.6]], dtype=dtype)])
    for function in (nearlinear.arcface_loss, nearlinear.cosface_loss):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        loss = function(*leaves, torch.tensor([0]))
        assert loss.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(
    "record", [score_maps.Poincare(1.0), score_maps.Harmonic(3.0), score_maps.CosineHarmonic(3.0)], ids=lambda r: r.name
)
def test_a_point_on_its_class(record: score_maps.ScoreMap) -> None:
    x = torch.tensor([[0.3, 0.4]])
    leaves = x.clone().requires_grad_(), torch.cat([x, torch.tensor([[0.1, -0.2]])]).requires_grad_()
    loss = nearlinear.linear_cross_entropy(*leaves, torch.tensor([0]), logit_map=record)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("record", [score_maps.Poincare(1.0), score_maps.HyperbolicMLR(1.0)], ids=lambda r: r.name)
def test_a_point_outside_the_ball_is_nan_in_its_row_alone(record: score_maps.ScoreMap) -> None:
    x, w, y = points()
    x[2] *= 9
    rows = nearlinear.linear_cross_entropy(x, w, y, logit_map=record, reduction="none")
    assert rows.isnan().tolist() == [i == 2 for i in range(len(x))]


# ---- hyperbolic multinomial logistic regression


def test_hyperplanes_by_both_papers() -> None:
    """The unidirectional form of Shimizu et al., written out, and the one of a point and a normal by Ganea et al. (``formula``)."""
    x, z, _ = points()
    r, c = Draw(1).normal(6, scale=0.7), 0.7
    factor = (2 / (1 - c * (x * x).sum(1))).unsqueeze(1)
    along = math.sqrt(c) * x @ (z / z.norm(dim=1, keepdim=True)).T
    q = 2 * math.sqrt(c) * r
    want = 2 / math.sqrt(c) * z.norm(dim=1) * torch.asinh(factor * along * torch.cosh(q) - (factor - 1) * torch.sinh(q))
    record = score_maps.HyperbolicMLR(c)
    torch.testing.assert_close(record(x, z, r), want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(record.formula(x, z, r), want, rtol=1e-11, atol=1e-12)
    on_the_plane = (torch.tanh(math.sqrt(c) * r) / math.sqrt(c)).unsqueeze(1) * F.normalize(z)
    torch.testing.assert_close(record(on_the_plane, z, r).diagonal(), torch.zeros_like(r), rtol=0, atol=1e-14)


def test_hyperplanes_of_a_flat_space_are_a_linear_head() -> None:
    x, z, y = points()
    r = Draw(1).normal(6)
    flat = 4 * (x @ z.T - r * z.norm(dim=1))
    torch.testing.assert_close(score_maps.HyperbolicMLR(1e-10)(x, z, r), flat, rtol=1e-8, atol=1e-8)
    loss = nearlinear.linear_cross_entropy(x, z, y, linear_bias=r, logit_map=score_maps.HyperbolicMLR(1e-10))
    torch.testing.assert_close(loss, F.cross_entropy(flat, y), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_hyperplanes_of_normal_0_have_logit_0_and_a_gradient(dtype: torch.dtype) -> None:
    """A head that starts at 0 must be able to leave it: the gradient is that of the line through 1e-12 of a normal along x."""
    x, z, y = (t.to(dtype) if t.is_floating_point() else t for t in points())
    z[1], record, c = 0, score_maps.HyperbolicMLR(0.7), 0.7
    for r in (torch.zeros(6, dtype=dtype), torch.full((6,), 0.4, dtype=dtype)):
        leaves = z.clone().requires_grad_(), r.clone().requires_grad_()
        assert record(x, z, r)[:, 1].abs().max() <= 1e-11
        loss = nearlinear.linear_cross_entropy(x, leaves[0], y, linear_bias=leaves[1], logit_map=record, reduction="sum")
        found, found_bias = torch.autograd.grad(loss, leaves)
        g = record(x, z, r).softmax(1)[:, 1] - (y == 1).to(dtype)
        factor, q = 2 / (1 - c * (x * x).sum(1)), 2 * math.sqrt(c) * r[1]
        slope = 2 * factor * torch.cosh(q) / torch.sqrt(1 + ((factor - 1) * torch.sinh(q)) ** 2)
        torch.testing.assert_close(found[1], (g * slope) @ x, rtol=1e-5, atol=1e-7)
        assert found[1].abs().max() > 1e-2
        assert found_bias.isfinite().all()


def test_hyperplanes_keep_the_digits_of_small_and_negative_arguments() -> None:
    """log(a + sqrt(a^2 + 1)) would give 0 for a below 1e-8, and an infinity for -1e5."""
    record, w = score_maps.HyperbolicMLR(1.0), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    x = torch.tensor([[1e-12, 0.0], [-1e-5, 1e-3], [1 - 1e-6, 0.0]])
    rows = nearlinear.linear_cross_entropy(x, w, torch.tensor([0, 1, 1]), logit_map=record, reduction="none")
    exact = record.formula(x.double(), w.double())
    torch.testing.assert_close(record(x, w)[:2].double(), exact[:2], rtol=1e-6, atol=0)
    torch.testing.assert_close(record(x, w).double(), exact, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(rows, F.cross_entropy(exact, torch.tensor([0, 1, 1]), reduction="none").float(), rtol=2e-6, atol=0)
