"""Embeddings of features and class vectors whose dot product is the quantity that a score map wants: a cosine, a squared distance.

Each has ``rows(x)``, [N, D + extra], and ``class_terms(w)``, a divisor [V] and further columns [extra, V] of the class vectors, such that
``<rows(x), classes(w)>`` with ``classes(w) = [w, columns] / divisor`` is that quantity: class vectors are multiplied as they are stored. It
has their vector-Jacobian products, and ``pair(x, w)``, the quantity of row i of x and row i of w without the cancellation of the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .distances import DistanceMetric

__all__ = ["Coordinates", "CosineDistance", "HyperbolicExcess", "Normalised", "Plain", "SquaredDistance"]

_SMALLEST_NORM = 1e-12


class Plain:
    """``<x, w>``."""

    identity = True
    extra = 0  # columns that the embedding adds
    metric: DistanceMetric | None = None  # what stands in the product's place

    def rows(self, x: Tensor) -> Tensor:
        return x

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        return d

    def class_terms(self, w: Tensor) -> tuple[Tensor | None, Tensor]:
        """(divisor, columns); no divisor is 1."""
        return None, w.new_empty(0, len(w))

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> None:
        """Make ``d``, the gradient of ``[w, columns]`` by its first part alone, that of ``w`` through the columns and the divisor too.
        The divisor's own follows: ``-divisor * d_divisor`` is the product of ``[w, columns]`` and its gradient."""

    def classes(self, w: Tensor) -> Tensor:
        if self.identity:
            return w
        divisor, columns = self.class_terms(w)
        whole = torch.cat([w, columns.t()], 1)
        return whole if divisor is None else whole / divisor.unsqueeze(1)

    def classes_vjp(self, w: Tensor, d: Tensor) -> Tensor:
        if self.identity:
            return d
        divisor, columns = self.class_terms(w)
        d = d.clone() if divisor is None else d / divisor.unsqueeze(1)
        d_w, d_columns = d.split([w.shape[1], self.extra], 1)
        self.complete_(d_w, w, divisor, columns, d_columns.t())
        return d_w.contiguous()

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Coordinates(Plain):
    """``dist(x, w)`` of a metric that needs every coordinate of every pair: no product gives it, a tile of its own kernel does."""

    metric: DistanceMetric | None
    identity = False


class Normalised(Plain):
    """``C = <x, w> / (|x| |w|)``."""

    identity = False

    def rows(self, x: Tensor) -> Tensor:
        return x / _norm(x)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        norm = _norm(x)
        unit = x / norm
        return (d - unit * (unit * d).sum(1, keepdim=True)) / norm

    def class_terms(self, w: Tensor) -> tuple[Tensor | None, Tensor]:
        return _norm(w).squeeze(1), w.new_empty(0, len(w))

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> None:
        assert divisor is not None
        # divided twice, because the square of a norm may overflow
        d.addcmul_(w, (_dot(w, d) / divisor / divisor).unsqueeze(1), value=-1)


class CosineDistance(Normalised):
    """``1 - C`` as ``<[-x / |x|, 1], [w, |w|] / |w|>``; the last column's share is constant."""

    extra = 1

    def rows(self, x: Tensor) -> Tensor:
        return torch.cat([-super().rows(x), torch.ones_like(x[:, :1])], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        return super().rows_vjp(x, -d[:, :-1])

    def class_terms(self, w: Tensor) -> tuple[Tensor | None, Tensor]:
        norm = _norm(w).t()
        return norm.squeeze(0), norm

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        return ((super().rows(x) - super().rows(w)) ** 2).sum(1) / 2


@dataclass(frozen=True)
class SquaredDistance(Plain):
    """``factor |x - w|^2`` as ``<factor [-2 x, |x|^2, 1], [w, 1, |w|^2]>``."""

    factor: float = 1.0
    identity = False
    extra = 2

    def rows(self, x: Tensor) -> Tensor:
        return self.factor * torch.cat([-2 * x, _square(x), torch.ones_like(x[:, :1])], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        return 2 * self.factor * (x * d[:, -2:-1] - d[:, :-2])

    def class_terms(self, w: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, _one_and_square(w)

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> None:
        d.addcmul_(w, d_columns[1].unsqueeze(1), value=2)

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        return self.factor * ((x - w) ** 2).sum(1)


@dataclass(frozen=True)
class HyperbolicExcess(Plain):
    """``E = 2 c |x - w|^2 / ((1 - c |x|^2) (1 - c |w|^2))``, the distance in the Poincare ball being ``arcosh(1 + E) / sqrt(c)``; NaN
    outside the ball. It is the product of ``2 c [-2 x, |x|^2, 1] / (1 - c |x|^2)`` and
    ``[w, 1, |w|^2] / (1 - c |w|^2)``."""

    c: float
    identity = False
    extra = 2

    def _room(self, square: Tensor) -> Tensor:
        room = 1 - self.c * square
        return torch.where(room > 0, room, math.nan)

    def rows(self, x: Tensor) -> Tensor:
        p = _square(x)
        return 2 * self.c / self._room(p) * torch.cat([-2 * x, p, torch.ones_like(p)], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        p = _square(x)
        room, d_x, d_p, d_1 = self._room(p), d[:, :-2], d[:, -2:-1], d[:, -1:]
        by_room = (p * d_p + d_1 - 2 * (x * d_x).sum(1, keepdim=True)) / room
        return 4 * self.c / room * (x * (d_p + self.c * by_room) - d_x)

    def class_terms(self, w: Tensor) -> tuple[Tensor | None, Tensor]:
        columns = _one_and_square(w)
        return self._room(columns[1]), columns

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> None:
        assert divisor is not None
        by_room = (_dot(w, d) + (columns * d_columns).sum(0)) / divisor
        d.addcmul_(w, (d_columns[1] + self.c * by_room).unsqueeze(1), value=2)

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        rooms = (self._room(_square(x)) * self._room(_square(w))).squeeze(1)
        return 2 * self.c / rooms * ((x - w) ** 2).sum(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _square(x: Tensor) -> Tensor:
    return (x * x).sum(1, keepdim=True)


def _one_and_square(w: Tensor) -> Tensor:
    square = _square(w).t()
    return torch.cat([torch.ones_like(square), square])


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)
