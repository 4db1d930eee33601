"""Surrogates of the zero-one loss of a pair: functions of x = s_positive - s_negative, one record each.

A record states ``value(x)``, the definition, and what the fast sums need: a piecewise polynomial its terms, a logistic one its kernels. To
add a surrogate, add a record; the loss, its tests, docs and benchmark take it from :data:`SURROGATES`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import pair_kernels
from .pair_bins import Analytic

__all__ = [
    "KERNELS", "SURROGATES", "BarrierHinge", "Exponential", "Hinge", "HuberHinge", "LogExponential", "Logistic", "LogisticFamily", "PHinge",
    "Piecewise", "Ramp", "Sigmoid", "SignedLogistic", "Square", "SquaredHinge", "Surrogate", "get_surrogate", "logistic_family",
]  # fmt: skip


@dataclass(frozen=True)
class Surrogate:
    """``methods`` are the algorithms that can sum it, the first the default; ``decreasing``: so nowhere increasing."""

    name: ClassVar[str]
    source: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    decreasing: ClassVar[bool] = True

    @property
    def params(self) -> list[float]:
        return [float(value) for value in vars(self).values()]

    def value(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def kernel(self, order: int, dtype: torch.dtype) -> tuple[str, list[float]]:
        """Family and numbers of the derivative of this order, for the scans."""
        raise NotImplementedError

    def mean(self, total: Tensor, weight: Tensor) -> Tensor:
        """From the sum over pairs and their weight."""
        return total / weight

    def _require(self, ok: bool, text: str) -> None:
        if not ok:
            raise ValueError(f"{type(self).__name__}: {text}")

    def _finite(self, name: str) -> None:
        got = getattr(self, name)
        self._require(math.isfinite(got), f"{name} must be finite, got {got}")

    def _positive(self, *names: str) -> None:
        for name in names:
            got = getattr(self, name)
            self._require(0 < got < math.inf, f"{name} must be finite and > 0, got {got}")


# ---- piecewise polynomials


@dataclass(frozen=True)
class Piecewise(Surrogate):
    """A sum of powers of (knot - x)_+ and (x - knot)_+. Where a derivative jumps the term of that knot counts for 0, as in relu."""

    methods: ClassVar[tuple[str, ...]] = ("scan", "direct")

    @property
    def terms(self) -> list[tuple[int, float, float, int]]:
        """(side, knot, factor, power): factor (knot - x)_+^power for side 0, (x - knot)_+^power for side 1."""
        raise NotImplementedError

    def kernel(self, order: int, dtype: torch.dtype) -> tuple[str, list[float]]:
        terms = []
        for side, knot, factor, exponent in self.terms:
            if order <= exponent:  # power 0 is a jump, whose derivative is nowhere
                terms.append((side, knot, factor * math.perm(exponent, order) * (1 if side else -1) ** order, exponent - order))
        return "power", pair_kernels.power(0.0, *terms)


@dataclass(frozen=True)
class Hinge(Piecewise):
    """``(margin - x)_+``."""

    margin: float = 1.0
    name: ClassVar[str] = "hinge"
    source: ClassVar[str] = "Joachims 2002; Herbrich et al. 2000"

    def __post_init__(self) -> None:
        self._finite("margin")

    def value(self, x: Tensor) -> Tensor:
        return torch.relu(self.margin - x)

    @property
    def terms(self) -> list[tuple[int, float, float, int]]:
        return [(0, self.margin, 1.0, 1)]


@dataclass(frozen=True)
class SquaredHinge(Hinge):
    """``(margin - x)_+^2``."""

    name: ClassVar[str] = "squared_hinge"
    source: ClassVar[str] = "Rust and Hocking 2023, arXiv:2302.11062"

    def value(self, x: Tensor) -> Tensor:
        return torch.relu(self.margin - x) ** 2

    @property
    def terms(self) -> list[tuple[int, float, float, int]]:
        return [(0, self.margin, 1.0, 2)]


@dataclass(frozen=True)
class PHinge(Piecewise):
    """``(margin - x)_+^power`` for a whole power from 1 to 6."""

    margin: float = 1.0
    power: float = 3.0
    name: ClassVar[str] = "p_hinge"
    source: ClassVar[str] = "Yan et al. 2003, with a whole power"

    def __post_init__(self) -> None:
        self._finite("margin")
        self._require(self.power in (1, 2, 3, 4, 5, 6), f"power must be a whole number from 1 to 6, got {self.power}")

    def value(self, x: Tensor) -> Tensor:
        return torch.relu(self.margin - x) ** int(self.power)

    @property
    def terms(self) -> list[tuple[int, float, float, int]]:
        return [(0, self.margin, 1.0, int(self.power))]


@dataclass(frozen=True)
class HuberHinge(Piecewise):
    """0 from ``margin`` on, ``(margin - x)^2 / (2 delta)`` down to ``margin - delta``, a straight line of slope -1 below."""

    margin: float = 1.0
    delta: float = 1.0
    name: ClassVar[str] = "huber_hinge"
    source: ClassVar[str] = "Zhang 2004, the modified Huber loss, scaled to slope 1"

    def __post_init__(self) -> None:
        self._finite("margin")
        self._positive("delta")

    def value(self, x: Tensor) -> Tensor:
        lack = torch.relu(self.margin - x)
        return torch.where(lack < self.delta, lack**2 / (2 * self.delta), lack - self.delta / 2)

    @property
    def terms(self) -> list[tuple[int, float, float, int]]:
        half = 1 / (2 * self.delta)
        return [(0, self.margin, half, 2), (0, self.margin - self.delta, -half, 2)]


@dataclass(frozen=True)
class Ramp(Piecewise):
    """``min(margin, (margin - x)_+)``: a hinge that no pair can exceed."""

    margin: float = 1.0
    name: ClassVar[str] = "ramp"
    source: ClassVar[str] = "Collobert et al. 2006"

    def __post_init__(self) -> None:
        self._positive("margin")

    def value(self, x: Tensor) -> Tensor:
        return torch.relu(self.margin - x) - torch.relu(-x)

    @property
    def terms(self) -> list[tuple[int, float, float, int]]:
        return [(0, self.margin, 1.0, 1), (0, 0.0, -1.0, 1)]


@dataclass(frozen=True)
class BarrierHinge(Piecewise):
    """``max(-scale (margin + x) + margin, margin - x, scale (x - margin))``, ``scale > 1``: symmetric about ``margin`` far away."""

    margin: float = 1.0
    scale: float = 2.0
    name: ClassVar[str] = "barrier_hinge"
    source: ClassVar[str] = "Charoenphakdee et al. 2019, arXiv:1901.09314"
    decreasing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._positive("margin")
        self._require(1 < self.scale < math.inf, f"scale must be finite and > 1, got {self.scale}")

    def value(self, x: Tensor) -> Tensor:
        steep = -self.scale * (self.margin + x) + self.margin
        return torch.maximum(steep, torch.maximum(self.margin - x, self.scale * (x - self.margin)))

    @property
    def terms(self) -> list[tuple[int, float, float, int]]:
        b, m = self.scale, self.margin
        return [(1, m, b, 1), (0, m, 1.0, 1), (0, -b * m / (b - 1), b - 1, 1)]


@dataclass(frozen=True)
class Square(Piecewise):
    """``(margin - x)^2``."""

    margin: float = 1.0
    name: ClassVar[str] = "square"
    source: ClassVar[str] = "Gao et al. 2013; Ying et al. 2016"
    methods: ClassVar[tuple[str, ...]] = ("closed", "scan", "direct")
    decreasing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._finite("margin")

    def value(self, x: Tensor) -> Tensor:
        return (self.margin - x) ** 2

    @property
    def terms(self) -> list[tuple[int, float, float, int]]:
        return [(0, self.margin, 1.0, 2), (1, self.margin, 1.0, 2)]


# ---- logistic


@dataclass(frozen=True)
class LogisticFamily(Surrogate):
    """Softplus of ``-scale x`` or a derivative of it: exponentials alone from a short distance on."""

    scale: float = 1.0
    methods: ClassVar[tuple[str, ...]] = ("bins", "scan", "direct")
    first: ClassVar[int]  # which derivative of softplus it is

    def __post_init__(self) -> None:
        self._positive("scale")

    def _number(self, order: int) -> tuple[int, float]:
        """The derivative of softplus(-x), and its factor, that the derivative of this order of the surrogate is."""
        if self.first + order > 3:
            raise NotImplementedError(f"{self.name}: its derivative of order {order} is not implemented")
        return self.first + order, self.scale**order * (-1) ** self.first

    def kernel(self, order: int, dtype: torch.dtype) -> tuple[str, list[float]]:
        k, factor = self._number(order)
        above = [factor * (-1) ** k * c for c in pair_kernels.logistic_coefficients(k, pair_kernels.DEGREES[dtype])]
        # softplus(-x) = -x + softplus(x): the even part has the sign of the order
        linear = {0: (0.0, -self.scale * factor), 1: (-factor, 0.0)}.get(k, (0.0, 0.0))
        return "logistic", pair_kernels.logistic(self.scale, *linear, above, [(-1) ** k * c for c in above])

    def analytic(self, order: int) -> Analytic:
        """The same derivative for the bins."""
        k, factor = self._number(order)
        constant, slope = {0: (0.0, -self.scale * factor), 1: (-factor, 0.0)}.get(k, (0.0, 0.0))
        right = factor * (-1) ** k
        return Analytic(k, factor, self.scale, constant, slope, left=right * (-1) ** k if k > 1 else 0.0, right=right)


@dataclass(frozen=True)
class Logistic(LogisticFamily):
    """``log(1 + e^(-scale x))``: the negative log-likelihood of the order of a pair."""

    name: ClassVar[str] = "logistic"
    source: ClassVar[str] = "Burges et al. 2005 (RankNet)"
    first: ClassVar[int] = 0

    def value(self, x: Tensor) -> Tensor:
        return torch.logaddexp(-self.scale * x, torch.zeros_like(x))


@dataclass(frozen=True)
class Sigmoid(LogisticFamily):
    """``1 / (1 + e^(scale x))``: a smooth step."""

    name: ClassVar[str] = "sigmoid"
    source: ClassVar[str] = "Yan et al. 2003; Calders and Jaroszewicz 2007"
    first: ClassVar[int] = 1

    def value(self, x: Tensor) -> Tensor:
        # the derivative of sigmoid near 1 would be a difference
        return torch.exp(-torch.logaddexp(self.scale * x, torch.zeros_like(x)))


@dataclass(frozen=True)
class SignedLogistic(Logistic):
    """``sign(x) log(1 + e^(-scale x))``, which LambdaRank sums: where one of two is ranked higher is the sign of x, ties included."""

    name: ClassVar[str] = "signed_logistic"
    source: ClassVar[str] = "a part of lambda_rank_loss"
    methods: ClassVar[tuple[str, ...]] = ("scan",)
    decreasing: ClassVar[bool] = False

    def value(self, x: Tensor) -> Tensor:
        return torch.sign(x) * super().value(x)

    def kernel(self, order: int, dtype: torch.dtype) -> tuple[str, list[float]]:
        family, numbers = super().kernel(order, dtype)
        degree = (len(numbers) - 3) // 2
        scale, constant, slope = numbers[:3]
        return family, pair_kernels.logistic(scale, -constant, -slope, numbers[3 : 3 + degree], [-b for b in numbers[3 + degree :]])


def logistic_family(record: Surrogate) -> LogisticFamily:
    """The record, whose kernel is analytic."""
    assert isinstance(record, LogisticFamily)
    return record


# ---- exponentials


@dataclass(frozen=True)
class Exponential(Surrogate):
    """``e^(-scale x)``."""

    scale: float = 1.0
    name: ClassVar[str] = "exponential"
    source: ClassVar[str] = "Freund et al. 2003 (RankBoost)"
    methods: ClassVar[tuple[str, ...]] = ("closed",)

    def __post_init__(self) -> None:
        self._positive("scale")

    def value(self, x: Tensor) -> Tensor:
        return torch.exp(-self.scale * x)


@dataclass(frozen=True)
class LogExponential(Exponential):
    """The logarithm of the mean (of the sum) of ``e^(-scale x)`` over the pairs: nothing overflows."""

    name: ClassVar[str] = "log_exponential"

    def mean(self, total: Tensor, weight: Tensor) -> Tensor:
        return total - weight.log()


SURROGATES: dict[str, type[Surrogate]] = {
    record.name: record
    for record in (
        Logistic, Sigmoid, Hinge, SquaredHinge, PHinge, HuberHinge, Ramp, BarrierHinge, Square, Exponential, LogExponential,
    )
}  # fmt: skip

# what the ops look up; not a loss by itself
KERNELS: dict[str, type[Surrogate]] = {**SURROGATES, SignedLogistic.name: SignedLogistic}


def get_surrogate(surrogate: str | Surrogate, function: str, **numbers: float | None) -> Surrogate:
    """The record of a name; ``numbers`` (margin, scale) that are given must be its own."""
    given = {name: value for name, value in numbers.items() if value is not None}
    if isinstance(surrogate, Surrogate):
        for name in given:
            raise ValueError(f"{function}: {name} must be None with a surrogate that is a record; give it to the record")
        return surrogate
    if surrogate not in SURROGATES:
        raise ValueError(f"{function}: surrogate must be one of {sorted(SURROGATES)}, or a record of them, got {surrogate!r}")
    record = SURROGATES[surrogate]
    for name in given:
        if name not in record.__dataclass_fields__:
            raise ValueError(f"{function}: {name} must be None with surrogate={surrogate!r}, which has none, got {given[name]}")
    return record(**given)
