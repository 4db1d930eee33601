"""Score maps and the heads built on them, against the papers' formulas written out in float64."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from measure import Draw, same
from nearlinear import distances, heads, score_maps
from nearlinear.score_maps import SCORE_MAPS
from torch import Tensor

RECORDS: list[score_maps.ScoreMap] = [
    score_maps.Cosine(4.0), score_maps.ArcMargin(4.0), score_maps.CosMargin(4.0), score_maps.Harmonic(2.0),
    score_maps.CosineHarmonic(2.0, 1e-2), score_maps.RBF(3.0), score_maps.StudentT(2.0), score_maps.Poincare(0.7, 0.5),
    score_maps.HyperbolicMLR(0.7),
]  # fmt: skip
each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)


def points(rows: int = 7, classes: int = 6, features: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Inside the unit ball, so that every map is defined."""
    draw = Draw()
    x, w = draw.normal(rows, features), draw.normal(classes, features)
    x, w = (t / (1.3 + t.norm(dim=1, keepdim=True)) for t in (x, w))
    return x, w, draw.labels(classes, rows)


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


# ---- heads by the papers' formulas


def softmax_loss(z: Tensor, y: Tensor) -> Tensor:
    return -(z.gather(1, y[:, None]).squeeze(1) - torch.log(torch.exp(z).sum(1))).mean()


def with_target(z: Tensor, y: Tensor, value: Tensor) -> Tensor:
    own = F.one_hot(y, z.shape[1]).bool()
    return torch.where(own, value[:, None], z)


def arcface(x: Tensor, w: Tensor, y: Tensor, margin: Any, scale: float) -> Tensor:
    cosine = F.normalize(x) @ F.normalize(w).T
    angle = torch.acos(cosine.gather(1, y[:, None]).squeeze(1))
    return softmax_loss(scale * with_target(cosine, y, torch.cos(angle + margin)), y)


def cosface(x: Tensor, w: Tensor, y: Tensor, margin: Any, scale: float) -> Tensor:
    cosine = F.normalize(x) @ F.normalize(w).T
    return softmax_loss(scale * with_target(cosine, y, cosine.gather(1, y[:, None]).squeeze(1) - margin), y)


def harmonic(distance: Tensor, y: Tensor, exponent: float) -> Tensor:
    share = distance**-exponent
    return -torch.log(share.gather(1, y[:, None]).squeeze(1) / share.sum(1)).mean()


def unpg(x: Tensor, w: Tensor, y: Tensor, scale: float, margin: float, whisker: float) -> Tensor:
    """As published: the kept cosines are put beside every row's logits."""
    unit = F.normalize(x)
    found = torch.stack([unit[i] @ unit[j] for i in range(len(x)) for j in range(i + 1, len(x)) if y[i] != y[j]])
    ordered = found.detach().sort().values
    first, third = ordered[int(0.25 * len(ordered))], ordered[int(0.75 * len(ordered))]
    reach = whisker * (third - first)
    found = found[(found >= first - reach) & (found <= third + reach)]
    cosine = unit @ F.normalize(w).T
    z = scale * with_target(cosine, y, cosine.gather(1, y[:, None]).squeeze(1) - margin)
    return softmax_loss(torch.cat([z, scale * found.expand(len(x), -1)], 1), y)


L = Draw(3).normal(4, 3)
# each with its paper's formula of (x - w, x, w)
METRICS = (
    (distances.Manhattan(), lambda d, x, w: d.abs().sum(-1)),
    (distances.Minkowski(1.5), lambda d, x, w: (d.abs() ** 1.5).sum(-1) ** (2 / 3)),
    (distances.Chebyshev(), lambda d, x, w: d.abs().amax(-1)),
    (distances.SmoothChebyshev(10.0), lambda d, x, w: torch.log(torch.exp(10 * d.abs()).sum(-1)) / 10),
    (distances.Canberra(1e-2), lambda d, x, w: (d.abs() / (x.abs() + w.abs() + 1e-2)).sum(-1)),
    (distances.BrayCurtis(1e-3), lambda d, x, w: d.abs().sum(-1) / ((x + w).sum(-1).abs() + 1e-3)),
    (distances.BrayCurtis(1e-3, absolute=True), lambda d, x, w: d.abs().sum(-1) / ((x.abs() + w.abs()).sum(-1) + 1e-3)),
)
HEADS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "arcface": (lambda x, w, y: nearlinear.arcface_loss(x, w, y, margin=0.4, scale=6.0), lambda x, w, y: arcface(x, w, y, 0.4, 6.0)),
    "cosface": (lambda x, w, y: nearlinear.cosface_loss(x, w, y, margin=0.3, scale=6.0), lambda x, w, y: cosface(x, w, y, 0.3, 6.0)),
    "harmonic": (
        lambda x, w, y: nearlinear.harmonic_loss(x, w, y, exponent=3.0),
        lambda x, w, y: harmonic(((x[:, None] - w) ** 2).sum(-1) + 1e-4, y, 3.0),
    ),
    "harmonic_cosine": (
        lambda x, w, y: nearlinear.harmonic_loss(x, w, y, exponent=3.0, metric="cosine", eps=1e-2),
        lambda x, w, y: harmonic(1 - F.normalize(x) @ F.normalize(w).T + 1e-2, y, 3.0),
    ),
    "harmonic_mahalanobis": (
        lambda x, w, y: nearlinear.harmonic_loss(x, w, y, exponent=3.0, metric="mahalanobis", transform=L.to(x)),
        lambda x, w, y: harmonic(torch.einsum("nvd,de,nve->nv", x[:, None] - w, L @ L.T, x[:, None] - w) + 1e-4, y, 3.0),
    ),
    **{
        f"harmonic_{metric.name}": (
            lambda x, w, y, metric=metric: nearlinear.harmonic_loss(x, w, y, exponent=3.0, metric=metric),
            lambda x, w, y, distance=distance: harmonic(distance(x[:, None] - w, x[:, None], w) + 1e-4, y, 3.0),
        )
        for metric, distance in METRICS
    },
    "unpg": (
        lambda x, w, y: nearlinear.unpg_loss(x, w, y, logit_map=score_maps.CosMargin(5.0, 0.2), whisker=1.0),
        lambda x, w, y: unpg(x, w, y, 5.0, 0.2, 1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads_by_their_papers(name: str, device: torch.device) -> None:
    ours, paper = HEADS[name]
    x, w, y = points(9, 6)
    leaves = x.clone().to(device).requires_grad_(), w.clone().to(device).requires_grad_()
    loss = ours(*leaves, y.to(device))
    wide = x.clone().requires_grad_(), w.clone().requires_grad_()
    want = paper(*wide, y)
    torch.testing.assert_close(loss.cpu(), want, rtol=1e-9, atol=1e-11)
    for got, expected in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(want, wide), strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-8, atol=1e-10)


def test_unpg_without_negative_pairs_is_the_plain_head() -> None:
    x, w, _ = points()
    x.requires_grad_()
    for y in (torch.ones(7, dtype=torch.int64), torch.tensor([1, -100, -100, -100, -100, -100, -100])):
        loss = nearlinear.unpg_loss(x, w, y)
        same(loss, nearlinear.cosface_loss(x, w, y, margin=0.5), "no pairs")
        assert torch.autograd.grad(loss, x)[0].isfinite().all()


# ---- elastic margins


@pytest.mark.parametrize("function", [nearlinear.elastic_arcface_loss, nearlinear.elastic_cosface_loss], ids=lambda f: f.__name__)
def test_elastic_is_the_head_with_drawn_margins(function: Any) -> None:
    x, w, y = points()
    plain = {nearlinear.elastic_arcface_loss: nearlinear.arcface_loss, nearlinear.elastic_cosface_loss: nearlinear.cosface_loss}[function]
    margins = torch.empty(7, dtype=torch.float64).normal_(0.3, 0.1, generator=torch.Generator().manual_seed(5))
    got = function(x, w, y, margin=0.3, std=0.1, generator=torch.Generator().manual_seed(5))
    same(got, plain(x, w, y, margin=margins), "drawn margins")
    same(function(x, w, y, margin=0.3, std=0.0), plain(x, w, y, margin=torch.full((7,), 0.3, dtype=torch.float64)), "std 0")


def test_elastic_plus_gives_the_easiest_row_the_smallest_margin() -> None:
    draw = Draw()
    x, w, y = draw.normal(50, 8), draw.normal(9, 8), draw.labels(9, 50)
    y[::7] = -1
    margins = heads._elastic("f", x, w, y, 0.5, 0.05, True, torch.Generator().manual_seed(1), {"ignore_index": -1})
    drawn = heads._elastic("f", x, w, y, 0.5, 0.05, False, torch.Generator().manual_seed(1), {"ignore_index": -1})
    kept = y != -1
    cosine = F.cosine_similarity(x, w[y.clamp(min=0)])
    by_difficulty = margins[kept][cosine[kept].argsort(descending=True)]
    assert (by_difficulty.diff() >= 0).all(), "largest cosine, smallest margin"
    assert torch.equal(margins[kept].sort().values, drawn[kept].sort().values), "the same margins, handed out otherwise"
    # the public code: margins sorted ascending, gathered at the order of descending cosines
    gathered = drawn[kept].sort().values[cosine[kept].argsort(descending=True)]
    assert not torch.equal(gathered, margins[kept])
    loss = nearlinear.elastic_arcface_loss(x, w, y, plus=True, ignore_index=-1)
    assert loss.isfinite()


# ---- numerics, modes, modules


def test_distances_keep_float32_under_autocast() -> None:
    """Logits to 1e-2 where one bfloat16 product moves them by more than 5 (n = D = 768, untrained and nearly converged)."""
    draw = Draw()
    n, v, d = 24, 40, 768
    w = draw.normal(v, d).float()
    y = draw.labels(v, n)
    for near in (1.0, 0.01):
        x = (w[y] + near * draw.normal(n, d).float()).float()
        record = score_maps.Harmonic(d)
        exact = -d * torch.log(((x.double()[:, None] - w.double()) ** 2).sum(-1) + 1e-4)
        want = -(exact.gather(1, y[:, None]).squeeze(1) - exact.logsumexp(1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = nearlinear.linear_cross_entropy(x, w, y, logit_map=record, reduction="none")
        assert float((rows.double() - want).abs().max()) <= 1e-2
        half = -d * torch.log((x.bfloat16() ** 2).sum(1)[:, None] + (w.bfloat16() ** 2).sum(1) - 2 * (x.bfloat16() @ w.bfloat16().T) + 1e-4)
        assert float((half.double() - exact).abs().max()) > 5


MODULES = [
    (nearlinear.ArcFaceLoss, nearlinear.arcface_loss, {"margin": 0.3, "scale": 8.0}),
    (nearlinear.CosFaceLoss, nearlinear.cosface_loss, {"margin": 0.3, "reduction": "none"}),
    (nearlinear.ElasticArcFaceLoss, nearlinear.elastic_arcface_loss, {"std": 0.0, "plus": True}),
    (nearlinear.ElasticCosFaceLoss, nearlinear.elastic_cosface_loss, {"std": 0.0}),
    (nearlinear.HarmonicLoss, nearlinear.harmonic_loss, {"exponent": 2.0, "metric": "cosine"}),
    (nearlinear.UNPGLoss, nearlinear.unpg_loss, {"whisker": 1.0}),
]


@pytest.mark.parametrize(("module", "function", "options"), MODULES, ids=lambda m: getattr(m, "__name__", ""))
def test_modules(module: Any, function: Any, options: dict[str, Any]) -> None:
    x, w, y = points()
    weight = Draw(2).positive(6)
    built = module(weight, **options)
    want = function(x, w, y, weight=weight, **options)
    for one in (built, copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        same(one(x, w, y), want, module.__name__)
    assert all(f"{key}={value!r}" in repr(built) for key, value in options.items())
    with pytest.raises(ValueError, match=f"{module.__name__}: reduction must be one of"):
        module(reduction="median")


def test_messages() -> None:
    x, w, y = points()
    for call, text in (
        (
            lambda: nearlinear.harmonic_loss(x, w, y, exponent=2.0, metric="taxi"),
            "harmonic_loss: metric must be a DistanceMetric or one of ['cosine', ",
        ),
        (
            lambda: nearlinear.harmonic_loss(x, w, y, exponent=2.0, metric="mahalanobis"),
            "harmonic_loss: transform must be a tensor (D, K) with metric='mahalanobis', None with others",
        ),
        (lambda: nearlinear.elastic_arcface_loss(x, w, y, std=-1.0), "elastic_arcface_loss: std must be >= 0, got -1.0"),
        (lambda: nearlinear.unpg_loss(x, w, y, logit_map=score_maps.RBF(1.0)), "unpg_loss: logit_map must be a cosine map, got RBF"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the text is compared below
            call()
        assert str(caught.value).startswith(text)
