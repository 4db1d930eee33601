"""Row losses: every loss that is a function of the probability of the target class, one record each.

A record states ``value(nll)`` (the line that ships, on the ``[N]`` vector ``nll = -log p_y``), ``slope(nll) = -d value / d log p_y``
(the row scalar that multiplies ``p - e_y`` in the gradient) and ``formula(p)``, the paper's expression in probabilities, which only the
tests evaluate, in float64. To add a loss, add a record; tests, benches and docs pick it up from :data:`ROW_LOSSES`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = [
    "GCE", "MAE", "ROW_LOSSES", "CompSum", "CrossEntropy", "Floored", "Focal", "Poly1", "RowLoss", "SumExponential", "SymmetricCE",
    "TruncatedGCE", "get_row_loss",
]  # fmt: skip

_SATURATED = 80.0  # e^-80 is below every float32 epsilon and above its underflow


def _one_minus_exp(x: Tensor) -> Tensor:
    """``1 - e^-x``, x >= 0, accurate near 0 in value and for large x in its derivative, which autograd of expm1 takes as 1 + expm1."""
    return torch.where(x < 0.5, -torch.expm1(-x), 1 - torch.exp(-x))


@dataclass(frozen=True)
class RowLoss:
    """A scalar function of ``p_y``; subclasses are frozen, hashable and checked at construction."""

    name: ClassVar[str]
    source: ClassVar[str]

    @property
    def params(self) -> list[float]:
        return [float(value) for value in vars(self).values()]

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        raise NotImplementedError

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        raise NotImplementedError

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        raise NotImplementedError

    def _require(self, ok: bool, text: str) -> None:
        if not ok:
            raise ValueError(f"{type(self).__name__}: {text}")


@dataclass(frozen=True)
class CrossEntropy(RowLoss):
    """``-log p_y``."""

    name: ClassVar[str] = "ce"
    source: ClassVar[str] = "negative log-likelihood"

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        return nll

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        return torch.ones_like(nll)

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        return -p.log()


@dataclass(frozen=True)
class CompSum(RowLoss):
    """``(p_y^(tau - 1) - 1) / (1 - tau)``, ``tau >= 0``; 0 sum-exponential, 1 cross-entropy, 1 < tau < 2 GCE, 2 MAE.

    For ``tau < 1`` the loss grows like ``1 / p_y``: the exponent ``(1 - tau) nll`` is clamped at 80, where the gradient becomes 0.
    """

    tau: float = 1.0
    name: ClassVar[str] = "comp_sum"
    source: ClassVar[str] = "Mao, Mohri, Zhong 2023, arXiv:2304.07288, eq. (3)"

    def __post_init__(self) -> None:
        self._require(self.tau >= 0, f"tau must be >= 0, got {self.tau}")

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        if self.tau == 1:
            return nll
        if self.tau > 1:
            return _one_minus_exp((self.tau - 1) * nll) / (self.tau - 1)
        return torch.expm1(((1 - self.tau) * nll).clamp(max=_SATURATED)) / (1 - self.tau)

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        exponent = (1 - self.tau) * nll
        return torch.where(exponent > _SATURATED, 0.0, torch.exp(exponent))

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        u = (1 - p) / p  # sum over the other classes of e^(z_j - z_y)
        return torch.log(1 + u) if self.tau == 1 else ((1 + u) ** (1 - self.tau) - 1) / (1 - self.tau)


@dataclass(frozen=True)
class SumExponential(RowLoss):
    """``1 / p_y - 1``: comp-sum at ``tau = 0``, with the same clamp."""

    name: ClassVar[str] = "sum_exponential"
    source: ClassVar[str] = "Mao, Mohri, Zhong 2023, arXiv:2304.07288"

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        return torch.expm1(nll.clamp(max=_SATURATED))

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        return torch.where(nll > _SATURATED, 0.0, torch.exp(nll))

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        return (1 - p) / p


@dataclass(frozen=True)
class GCE(RowLoss):
    """Generalised cross-entropy ``(1 - p_y^q) / q``, ``0 < q <= 1``."""

    q: float = 0.7
    name: ClassVar[str] = "gce"
    source: ClassVar[str] = "Zhang, Sabuncu 2018, arXiv:1805.07836, eq. (6)"

    def __post_init__(self) -> None:
        self._require(0 < self.q <= 1, f"q must be in (0, 1], got {self.q}")

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        return _one_minus_exp(self.q * nll) / self.q

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        return torch.exp(-self.q * nll)

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        return (1 - p**self.q) / self.q


@dataclass(frozen=True)
class TruncatedGCE(RowLoss):
    """GCE where ``p_y > k``, the constant ``(1 - k^q) / q`` with zero gradient elsewhere.

    The published training code freezes the mask ``p_y > k`` between epochs: pass that as ``sample_weight`` instead.
    """

    q: float = 0.7
    k: float = 0.5
    name: ClassVar[str] = "truncated_gce"
    source: ClassVar[str] = "Zhang, Sabuncu 2018, arXiv:1805.07836, eq. (9)"

    def __post_init__(self) -> None:
        self._require(0 < self.q <= 1, f"q must be in (0, 1], got {self.q}")
        self._require(0 < self.k < 1, f"k must be in (0, 1), got {self.k}")

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        # not minimum(): a tie would let half of the gradient through; NaN compares false and stays NaN
        return torch.where(nll >= -math.log(self.k), (1 - self.k**self.q) / self.q, GCE(self.q).value(nll, num_classes))

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        return torch.where(nll >= -math.log(self.k), 0.0, torch.exp(-self.q * nll))

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        return (1 - torch.where(p > self.k, p, torch.full_like(p, self.k)) ** self.q) / self.q


@dataclass(frozen=True)
class MAE(RowLoss):
    """``1 - p_y``: half the L1 distance between the one-hot target and the probabilities."""

    name: ClassVar[str] = "mae"
    source: ClassVar[str] = "Ghosh, Kumar, Sastry 2017, arXiv:1712.09482"

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        return _one_minus_exp(nll)

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        return torch.exp(-nll)

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        return 1 - p


@dataclass(frozen=True)
class Focal(RowLoss):
    """``(1 - p_y)^gamma (-log p_y)``, ``gamma >= 0``."""

    gamma: float = 2.0
    name: ClassVar[str] = "focal"
    source: ClassVar[str] = "Lin et al. 2017, arXiv:1708.02002, eq. (4)"

    def __post_init__(self) -> None:
        self._require(self.gamma >= 0, f"gamma must be >= 0, got {self.gamma}")

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        # (1 - p)^gamma has an infinite slope at p = 1 for gamma < 1 while the product's is finite, and p n is 0 * inf at p = 0:
        # both ends take their limits, and the power sees neither
        inside = (nll > 0) & (nll < _SATURATED)
        n = torch.where(inside, nll, 1.0)
        return torch.where(inside, (-torch.expm1(-n)) ** self.gamma * n, nll)

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        inside = (nll > 0) & (nll < _SATURATED)
        n = torch.where(inside, nll, 1.0)
        q = -torch.expm1(-n)
        return torch.where(inside, q**self.gamma + self.gamma * q ** (self.gamma - 1) * torch.exp(-n) * n, torch.ones_like(nll))

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        return -((1 - p) ** self.gamma) * p.log()


@dataclass(frozen=True)
class Poly1(RowLoss):
    """``-log p_y + epsilon (1 - p_y)``."""

    epsilon: float = 1.0
    name: ClassVar[str] = "poly1"
    source: ClassVar[str] = "Leng et al. 2022, arXiv:2204.12511, eq. (5)"

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        return nll - self.epsilon * torch.expm1(-nll)

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        return 1 + self.epsilon * torch.exp(-nll)

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        return -p.log() + self.epsilon * (1 - p)


@dataclass(frozen=True)
class Floored(RowLoss):
    """``-log((p_y + a / V) / (1 + a))``: a probability floor of ``a / V``, ``a > 0``."""

    a: float = 0.01
    name: ClassVar[str] = "floored"
    source: ClassVar[str] = "probability floor of harmonic language models, arXiv:2603.10225"

    def __post_init__(self) -> None:
        self._require(self.a > 0, f"a must be > 0, got {self.a}")

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        return math.log1p(self.a) - torch.log(torch.exp(-nll) + self.a / num_classes)

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        p = torch.exp(-nll)
        return p / (p + self.a / num_classes)

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        return -torch.log((p + self.a / num_classes) / (1 + self.a))


@dataclass(frozen=True)
class SymmetricCE(RowLoss):
    """``alpha (-log p_y) - beta A (1 - p_y)`` with ``A = log 0 := -4``: cross-entropy plus its reverse."""

    alpha: float = 0.1
    beta: float = 1.0
    A: float = -4.0
    name: ClassVar[str] = "symmetric_ce"
    source: ClassVar[str] = "Wang et al. 2019, arXiv:1908.06112, eq. (7)"

    def __post_init__(self) -> None:
        self._require(self.A < 0, f"A must be < 0, got {self.A}")

    def value(self, nll: Tensor, num_classes: int) -> Tensor:
        return self.alpha * nll - self.beta * self.A * _one_minus_exp(nll)

    def slope(self, nll: Tensor, num_classes: int) -> Tensor:
        return self.alpha - self.beta * self.A * torch.exp(-nll)

    def formula(self, p: Tensor, num_classes: int) -> Tensor:
        # reverse cross-entropy: -sum_j p_j log onehot_j with log 0 = A
        return -self.alpha * p.log() - self.beta * self.A * (1 - p)


ROW_LOSSES: dict[str, type[RowLoss]] = {
    record.name: record for record in (CrossEntropy, CompSum, SumExponential, GCE, TruncatedGCE, MAE, Focal, Poly1, Floored, SymmetricCE)
}


def get_row_loss(row_loss: str | RowLoss, function: str) -> RowLoss:
    """The record itself, or the record of that name with its default parameters."""
    if isinstance(row_loss, RowLoss):
        return row_loss
    if isinstance(row_loss, str) and row_loss in ROW_LOSSES:
        return ROW_LOSSES[row_loss]()
    raise ValueError(f"{function}: row_loss must be a RowLoss or one of {sorted(ROW_LOSSES)}, got {row_loss!r}")
