"""Score maps: how a feature x and a class vector w make a logit, for the fused linear heads.

Every map here is ``z = elementwise(<rows(x), classes(w)>)``: an embedding of either side, one dot product, one scalar function from
:mod:`nearlinear.logit_maps`. So the tile is a matrix product whatever the geometry, the kernel sees a scalar function, and gradients
of x and w are the embeddings' own. Margins change the target's dot product alone; ``HyperbolicMLR`` alone has a factor of each class
around its scalar function. Calling a record gives its logits in plain torch; ``formula`` gives them as the paper writes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .distances import DISTANCES, DistanceMetric
from .embeddings import Coordinates, CosineDistance, HyperbolicExcess, Hyperplanes, Normalised, Plain, SquaredDistance
from .logit_maps import LOGIT_MAPS, Arcosh, Identity, LogitMap, Power, Scale

__all__ = [
    "RBF",
    "SCORE_MAPS",
    "ArcMargin",
    "CosMargin",
    "Cosine",
    "CosineHarmonic",
    "Dot",
    "Harmonic", "HyperbolicMLR", "MetricHarmonic",
    "Poincare",
    "ScoreMap",
    "StudentT",
    "get_score_map",
    "tempered",
]  # fmt: skip


@dataclass(frozen=True)
class ScoreMap:
    """Base of the records; subclasses are frozen and hashable. ``name`` and ``params`` cross the op boundary."""

    name: ClassVar[str]
    source: ClassVar[str] = ""
    takes_margin: ClassVar[bool] = False

    @property
    def map_name(self) -> str:
        """What the ops call it."""
        return self.name

    @property
    def params(self) -> list[float]:
        return [float(value) for value in vars(self).values()]

    @property
    def embedding(self) -> Plain:
        raise NotImplementedError

    @property
    def elementwise(self) -> LogitMap:
        raise NotImplementedError

    def target(self, product: Tensor, margin: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """(the target's product under the margin, its derivative by the product, by the margin), or None without a margin."""
        return None

    def __call__(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Logits [N, V] of features [N, D], class vectors [V, D] and, where the map takes one, a bias [V]; without margins."""
        return self.elementwise(self.product(x, w, bias))

    def product(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the elementwise map is applied to, [N, V]."""
        embedding = self.embedding
        product = embedding.rows(x) @ embedding.classes(w).T if embedding.metric is None else embedding.metric(x, w)
        return product if bias is None else product + bias

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Cosine(ScoreMap):
    """``z = scale * cos(x, w)``; norms below 1e-12 count as 1e-12."""

    scale: float = 64.0
    name: ClassVar[str] = "cosine"
    source: ClassVar[str] = "Wang et al. 2017, arXiv:1704.06369 (NormFace)"

    @property
    def embedding(self) -> Plain:
        return Normalised()

    @property
    def elementwise(self) -> LogitMap:
        return Scale(self.scale)

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        return self.scale * torch.nn.functional.cosine_similarity(x.unsqueeze(1), w, dim=-1, eps=1e-12)


@dataclass(frozen=True)
class ArcMargin(Cosine):
    """Cosine whose target is ``scale * (cos(multiplier * theta + margin) - offset)``, theta its angle: ArcFace, and with ``multiplier``
    and ``offset`` the combined margin (m1, m2, m3). A per-row ``margin`` tensor takes the place of the field.

    ``monotone``: beyond ``multiplier * theta + margin = pi`` the target continues as ``cos(theta) - margin sin(margin) - offset``,
    so that it keeps falling with theta. ``sin(theta)`` counts as at least 1e-6, so the slope stays finite at both ends.
    """

    margin: float = 0.5
    multiplier: float = 1.0
    offset: float = 0.0
    monotone: bool = False
    name: ClassVar[str] = "arc_margin"
    source: ClassVar[str] = "Deng et al. 2018, arXiv:1801.07698, eq. (3) and (4)"
    takes_margin: ClassVar[bool] = True

    def target(self, product: Tensor, margin: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        m = torch.full_like(product, self.margin) if margin is None else margin
        sine = torch.sqrt(((1 - product) * (1 + product)).clamp_min(1e-12))
        angle = self.multiplier * torch.atan2(sine, product) + m
        value, slope, by_margin = torch.cos(angle), self.multiplier * torch.sin(angle) / sine, -torch.sin(angle)
        if self.monotone:
            beyond = angle > math.pi
            value = torch.where(beyond, product - m * torch.sin(m), value)
            slope = slope.masked_fill(beyond, 1.0)
            by_margin = torch.where(beyond, -torch.sin(m) - m * torch.cos(m), by_margin)
        return value - self.offset, slope, by_margin


@dataclass(frozen=True)
class CosMargin(Cosine):
    """Cosine whose target is ``scale * (cos(theta) - margin)`` (CosFace); a per-row ``margin`` tensor takes the place of the field."""

    margin: float = 0.35
    name: ClassVar[str] = "cos_margin"
    source: ClassVar[str] = "Wang et al. 2018, arXiv:1801.09414, eq. (4)"
    takes_margin: ClassVar[bool] = True

    def target(self, product: Tensor, margin: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        return product - (self.margin if margin is None else margin), torch.ones_like(product), -torch.ones_like(product)


@dataclass(frozen=True)
class Harmonic(ScoreMap):
    """``z = -exponent * log(|x - w|^2 + eps)``: ``p_j`` is proportional to ``(|x - w_j|^2 + eps)^-exponent``."""

    exponent: float
    eps: float = 1e-4
    name: ClassVar[str] = "harmonic"
    source: ClassVar[str] = "Baek et al. 2025, arXiv:2502.01628; Miller-Golub et al. 2026, arXiv:2603.10225"

    @property
    def embedding(self) -> Plain:
        return SquaredDistance()

    @property
    def elementwise(self) -> LogitMap:
        return Power(self.exponent, self.eps)

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.log(((x.unsqueeze(1) - w) ** 2).sum(-1).add(self.eps) ** -self.exponent)


@dataclass(frozen=True)
class MetricHarmonic(ScoreMap):
    """``z = -exponent * log(dist(x, w) + eps)``, dist a record of :mod:`nearlinear.distances`: Manhattan, Canberra and the like."""

    exponent: float
    metric: DistanceMetric
    eps: float = 1e-4
    name: ClassVar[str] = "metric_harmonic"
    source: ClassVar[str] = "Miller-Golub et al. 2026, arXiv:2603.10225"

    @property
    def map_name(self) -> str:
        return f"{self.name}:{self.metric.name}"

    @property
    def params(self) -> list[float]:
        return [self.exponent, self.eps, *self.metric.params]

    @property
    def embedding(self) -> Plain:
        return Coordinates(self.metric)

    @property
    def elementwise(self) -> LogitMap:
        return Power(self.exponent, self.eps)

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.log((self.metric(x, w) + self.eps) ** -self.exponent)


@dataclass(frozen=True)
class CosineHarmonic(ScoreMap):
    """``z = -exponent * log(1 - cos(x, w) + eps)``."""

    exponent: float
    eps: float = 1e-4
    name: ClassVar[str] = "cosine_harmonic"
    source: ClassVar[str] = "Miller-Golub et al. 2026, arXiv:2603.10225"

    @property
    def embedding(self) -> Plain:
        return CosineDistance()

    @property
    def elementwise(self) -> LogitMap:
        return Power(self.exponent, self.eps)

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.log((1 - torch.nn.functional.cosine_similarity(x.unsqueeze(1), w, dim=-1) + self.eps) ** -self.exponent)


@dataclass(frozen=True)
class RBF(ScoreMap):
    """``z = -|x - w|^2 / bandwidth``."""

    bandwidth: float
    name: ClassVar[str] = "rbf"
    source: ClassVar[str] = "Gaussian kernel; with a softmax, prototypical networks, Snell et al. 2017, arXiv:1703.05175, eq. (2)"

    @property
    def embedding(self) -> Plain:
        return SquaredDistance()

    @property
    def elementwise(self) -> LogitMap:
        return Scale(-1 / self.bandwidth)

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.log(torch.exp(-((x.unsqueeze(1) - w) ** 2).sum(-1) / self.bandwidth))


@dataclass(frozen=True)
class StudentT(ScoreMap):
    """``z = -(nu + 1) / 2 * log(1 + |x - w|^2 / nu)``."""

    nu: float = 1.0
    name: ClassVar[str] = "student_t"
    source: ClassVar[str] = "van der Maaten 2009 (parametric t-SNE); Xie et al. 2016, arXiv:1511.06335, eq. (1)"

    @property
    def embedding(self) -> Plain:
        return SquaredDistance(1 / self.nu)

    @property
    def elementwise(self) -> LogitMap:
        return Power((self.nu + 1) / 2, 1.0)

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.log((1 + ((x.unsqueeze(1) - w) ** 2).sum(-1) / self.nu) ** (-(self.nu + 1) / 2))


@dataclass(frozen=True)
class Poincare(ScoreMap):
    """``z = -d(x, w) / temperature``, d the distance in the Poincare ball of curvature -c. Points must have ``c |x|^2 < 1``; a point
    outside gives NaN. The distance is not differentiable at ``x = w``; the slope there is that of an excess of 1e-12."""

    c: float = 0.1
    temperature: float = 1.0
    name: ClassVar[str] = "poincare"
    source: ClassVar[str] = "Liu, He, Han 2025, arXiv:2504.06120 (HypCD); Nickel, Kiela 2017, arXiv:1705.08039, eq. (1)"

    @property
    def embedding(self) -> Plain:
        return HyperbolicExcess(self.c)

    @property
    def elementwise(self) -> LogitMap:
        return Arcosh(1 / (math.sqrt(self.c) * self.temperature))

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        # Moebius addition of -x and w, and artanh of its norm
        x, c = x.unsqueeze(1), self.c
        xw, xx, ww = -(x * w).sum(-1, keepdim=True), (x * x).sum(-1, keepdim=True), (w * w).sum(-1, keepdim=True)
        sum_ = ((1 + 2 * c * xw + c * ww) * -x + (1 - c * xx) * w) / (1 + 2 * c * xw + c * c * xx * ww)
        return -2 / (math.sqrt(c) * self.temperature) * torch.atanh(math.sqrt(c) * sum_.norm(dim=-1))


@dataclass(frozen=True)
class HyperbolicMLR(ScoreMap):
    """``z = 2 |w| / sqrt(c) asinh(L <sqrt(c) x, w / |w|> cosh(2 sqrt(c) r) - (L - 1) sinh(2 sqrt(c) r))`` with ``L = 2 / (1 - c |x|^2)``:
    in the Poincare ball of curvature -c, ``2 |w|`` times the signed distance of x from the hyperplane of normal w at distance 2 r from the
    origin; r is the ``linear_bias``, 0 if None. A point outside the ball gives NaN; a norm of w below 1e-12 counts as 1e-12.

    As c goes to 0 it becomes ``4 (<x, w> - r |w|)``. In the form (p, a) of Ganea et al. it is that of
    ``p = tanh(sqrt(c) r) / sqrt(c) w / |w|`` and ``a = w / cosh(sqrt(c) r)^2``. In float32 ``cosh`` overflows from ``|r| = 44 / sqrt(c)``
    on, further out than any point that float32 can hold.
    """

    c: float = 1.0
    name: ClassVar[str] = "hyperbolic_mlr"
    source: ClassVar[str] = (
        "Shimizu, Mukuta, Harada 2021, arXiv:2006.08210 (Hyperbolic Neural Networks++); Ganea, Becigneul, Hofmann 2018, arXiv:1805.09112"
    )

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise ValueError(f"HyperbolicMLR: c must be > 0, got {self.c}; the limit of c = 0 is a linear head")

    @property
    def embedding(self) -> Plain:
        return Hyperplanes(self.c)

    @property
    def elementwise(self) -> LogitMap:
        return Identity()

    def product(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        divisor, columns = self.embedding.class_terms(w, bias)
        assert divisor is not None
        return columns[1] * torch.asinh(self.embedding.rows(x) @ torch.cat([w, columns[:1].T], 1).T / divisor)

    def formula(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        # Ganea et al.: 2 |a| / ((1 - c |p|^2) sqrt(c)) asinh(2 sqrt(c) <y, a> / ((1 - c |y|^2) |a|)), y the Moebius sum of -p and x
        root, norm = math.sqrt(self.c), w.norm(dim=1, keepdim=True)
        r = torch.zeros_like(norm) if bias is None else bias.unsqueeze(1)
        p, a, x = torch.tanh(root * r) / root * w / norm, w / torch.cosh(root * r) ** 2, x.unsqueeze(1)
        px, pp, xx = -(p * x).sum(-1, keepdim=True), (p * p).sum(-1, keepdim=True), (x * x).sum(-1, keepdim=True)
        y = ((1 + 2 * self.c * px + self.c * xx) * -p + (1 - self.c * pp) * x) / (1 + 2 * self.c * px + self.c**2 * pp * xx)
        size, scale = a.norm(dim=-1), 1 - self.c * (y * y).sum(-1)
        inner = 2 * root * (y * a).sum(-1) / (scale * size)
        return 2 * size / ((1 - self.c * pp.squeeze(-1)) * root) * torch.asinh(inner)


@dataclass(frozen=True)
class Dot(ScoreMap):
    """``z = logit_map(<x, w> + bias)``: the plain linear head, under an elementwise map."""

    logit_map: LogitMap
    name: ClassVar[str] = "dot"

    @property
    def map_name(self) -> str:
        return self.logit_map.name

    @property
    def params(self) -> list[float]:
        return self.logit_map.params

    @property
    def embedding(self) -> Plain:
        return Plain()

    @property
    def elementwise(self) -> LogitMap:
        return self.logit_map

    def formula(self, x: Tensor, w: Tensor) -> Tensor:
        return self.logit_map((x.unsqueeze(1) * w).sum(-1))


SCORE_MAPS: dict[str, type[ScoreMap]] = {
    record.name: record for record in (Cosine, ArcMargin, CosMargin, Harmonic, CosineHarmonic, RBF, StudentT, Poincare, HyperbolicMLR)
}


def get_score_map(name: str, params: list[float]) -> ScoreMap:
    """The record of that name; an elementwise map's name gives the plain head under it."""
    if name in SCORE_MAPS:
        return SCORE_MAPS[name](*params)
    kind, _, metric = name.partition(":")
    if kind == MetricHarmonic.name:
        exponent, eps, *metric_params = params
        return MetricHarmonic(exponent, DISTANCES[metric](*metric_params), eps)
    return Dot(LOGIT_MAPS[name](*params))


_TEMPERATURE = {  # field of the record, and whether a temperature multiplies or divides it
    Cosine: ("scale", -1), ArcMargin: ("scale", -1), CosMargin: ("scale", -1), Harmonic: ("exponent", -1),
    CosineHarmonic: ("exponent", -1), RBF: ("bandwidth", 1), Poincare: ("temperature", 1),
}  # fmt: skip


def tempered(score_map: ScoreMap, temperature: float) -> ScoreMap:
    """The record whose logits are those of ``score_map`` divided by ``temperature``."""
    if temperature == 1:
        return score_map
    if isinstance(score_map, Dot) and isinstance(score_map.logit_map, Identity | Scale):
        return Dot(Scale(getattr(score_map.logit_map, "scale", 1.0) / temperature))
    if type(score_map) not in _TEMPERATURE:
        raise ValueError(f"temperature must be 1 with logit_map={score_map}, got {temperature}; scale the record instead")
    field, power = _TEMPERATURE[type(score_map)]
    return replace(score_map, **{field: getattr(score_map, field) * temperature**power})
