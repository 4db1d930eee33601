"""Forms of :func:`nearlinear.pair_loss`: what a row makes of its sums over positive and over negative pairs.

Every form here is ``sp(sum_j y_j r+(s_j)) + sn(sum_j (1 - y_j) r-(s_j))``, y the share of a pair that is positive (1 or 0 for plain
labels), r+ and r- exponentials or linear: the table of Metrix (Venkataramanan et al. 2021, arXiv:2106.04990). So the kernel's
log-sum-exps, sums and masses are enough, and ``rows`` is a few lines on them. ``formula`` gives the loss on the matrix of scores, as
the papers write it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PAIR_FORMS", "Contrastive", "MultiSimilarity", "PairForm", "ProxyAnchor", "ProxyNCA", "get_pair_form", "log_1_plus"]


def log_1_plus(lse: Tensor) -> Tensor:
    """``log(1 + e^lse)`` and its derivatives, for an empty sum too (-inf)."""
    return -F.logsigmoid(-lse)


@dataclass(frozen=True)
class PairForm:
    """Base of the records; subclasses are frozen and hashable."""

    name: ClassVar[str]
    source: ClassVar[str] = ""

    @property
    def scale(self) -> list[float]:
        """Factors of the score of the positive and of the negative pairs, in the exponentials and in the sums."""
        return [1.0, 1.0]

    @property
    def limit(self) -> tuple[float, float]:
        """A positive pair counts while ``s < limit[0]``, a negative one while ``-s < limit[1]``; NaN: always."""
        return math.nan, math.nan

    def rows(self, lse: Tensor, total: Tensor, mass: Tensor) -> Tensor:
        """Loss of each row from its statistics [2, N]."""
        raise NotImplementedError

    def formula(self, s: Tensor, y: Tensor, counted: Tensor) -> Tensor:
        """Loss of each row from scores s, shares y and the mask of the pairs that exist, all [N, M]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Contrastive(PairForm):
    """``sum_j -y_j s_j + sum_j (1 - y_j) [s_j - margin]+``."""

    margin: float = 0.5
    name: ClassVar[str] = "contrastive"
    source: ClassVar[str] = "Hadsell, Chopra, LeCun 2006; on similarities as in arXiv:2106.04990, table 1"

    @property
    def limit(self) -> tuple[float, float]:
        return math.nan, -self.margin

    def rows(self, lse: Tensor, total: Tensor, mass: Tensor) -> Tensor:
        return total[1] - self.margin * mass[1] - total[0]

    def formula(self, s: Tensor, y: Tensor, counted: Tensor) -> Tensor:
        return torch.where(counted, (1 - y) * F.relu(s - self.margin) - y * s, 0.0).sum(1)


@dataclass(frozen=True)
class MultiSimilarity(PairForm):
    """``log(1 + sum_j y_j e^(-alpha (s_j - base))) / alpha + log(1 + sum_j (1 - y_j) e^(beta (s_j - base))) / beta``."""

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    name: ClassVar[str] = "multi_similarity"
    source: ClassVar[str] = "Wang et al. 2019, arXiv:1904.06627, eq. (15)"

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta > 0):
            raise ValueError(f"MultiSimilarity: alpha and beta must be > 0, got {self.alpha} and {self.beta}")

    @property
    def scale(self) -> list[float]:
        return [-float(self.alpha), float(self.beta)]

    def rows(self, lse: Tensor, total: Tensor, mass: Tensor) -> Tensor:
        positive = log_1_plus(lse[0] + self.alpha * self.base) / self.alpha
        return positive + log_1_plus(lse[1] - self.beta * self.base) / self.beta

    def formula(self, s: Tensor, y: Tensor, counted: Tensor) -> Tensor:
        positive = torch.where(counted, y * torch.exp(-self.alpha * (s - self.base)), 0.0).sum(1)
        negative = torch.where(counted, (1 - y) * torch.exp(self.beta * (s - self.base)), 0.0).sum(1)
        return torch.log1p(positive) / self.alpha + torch.log1p(negative) / self.beta


@dataclass(frozen=True)
class ProxyAnchor(PairForm):
    """``log(1 + sum_j y_j e^(-alpha (s_j - delta))) + log(1 + sum_j (1 - y_j) e^(alpha (s_j + delta)))``."""

    alpha: float = 32.0
    delta: float = 0.1
    name: ClassVar[str] = "proxy_anchor"
    source: ClassVar[str] = "Kim et al. 2020, arXiv:2003.13911, eq. (4)"

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"ProxyAnchor: alpha must be > 0, got {self.alpha}")

    @property
    def scale(self) -> list[float]:
        return [-float(self.alpha), float(self.alpha)]

    def rows(self, lse: Tensor, total: Tensor, mass: Tensor) -> Tensor:
        return log_1_plus(lse + self.alpha * self.delta).sum(0)

    def formula(self, s: Tensor, y: Tensor, counted: Tensor) -> Tensor:
        positive = torch.where(counted, y * torch.exp(-self.alpha * (s - self.delta)), 0.0).sum(1)
        negative = torch.where(counted, (1 - y) * torch.exp(self.alpha * (s + self.delta)), 0.0).sum(1)
        return torch.log1p(positive) + torch.log1p(negative)


@dataclass(frozen=True)
class ProxyNCA(PairForm):
    """``sum_j -y_j s_j + log sum_j (1 - y_j) e^(s_j)``; without a negative pair the second term is 0."""

    name: ClassVar[str] = "proxy_nca"
    source: ClassVar[str] = "Movshovitz-Attias et al. 2017, arXiv:1703.07464; as in arXiv:2106.04990, table 1"

    def rows(self, lse: Tensor, total: Tensor, mass: Tensor) -> Tensor:
        return torch.where(mass[1] > 0, lse[1], 0.0) - total[0]

    def formula(self, s: Tensor, y: Tensor, counted: Tensor) -> Tensor:
        negative = torch.where(counted, (1 - y) * torch.exp(s), 0.0).sum(1)
        log_negative = torch.where(negative > 0, torch.log(torch.where(negative > 0, negative, 1.0)), 0.0)
        return log_negative - torch.where(counted, y * s, 0.0).sum(1)


PAIR_FORMS: dict[str, type[PairForm]] = {record.name: record for record in (Contrastive, MultiSimilarity, ProxyAnchor, ProxyNCA)}


def get_pair_form(form: str | PairForm, function: str) -> PairForm:
    """The record of a name, or the record itself."""
    if isinstance(form, PairForm):
        return form
    if not isinstance(form, str):
        raise TypeError(f"{function}: form must be a name or a PairForm, got {type(form).__name__}")
    if form not in PAIR_FORMS:
        raise ValueError(f"{function}: form must be one of {tuple(PAIR_FORMS)}, got {form!r}")
    return PAIR_FORMS[form]()
