"""The heads built on score maps, against the papers' formulas written out in float64."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from measure import Draw, points, same
from nearlinear import distances, heads, score_maps
from torch import Tensor

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
