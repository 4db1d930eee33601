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

__all__ = ["Coordinates", "CosineDistance", "HyperbolicExcess", "Hyperplanes", "Normalised", "Plain", "SquaredDistance"]

_SMALLEST_NORM = 1e-12


class Plain:
    """``<x, w>``."""

    identity = True
    extra = 0  # columns that the embedding adds
    metric: DistanceMetric | None = None  # what stands in the product's place
    holds_bias = False  # the bias is one of the class terms; else it is added to the product
    buffers = 1  # of the size of a tile: the tile itself and what ``bend`` keeps for ``unbend``

    def rows(self, x: Tensor) -> Tensor:
        return x

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        return d

    def class_terms(self, w: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """(divisor, columns); no divisor is 1. ``bias`` [V] is for an embedding that holds it."""
        return None, w.new_empty(0, len(w))

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> Tensor | None:
        """Make ``d``, the gradient of ``[w, columns]`` by its first part alone, that of ``w`` through the columns and the divisor too.
        The divisor's own follows: ``-divisor * d_divisor`` is the product of ``[w, columns]`` and its gradient. Returns that of a bias
        that the embedding holds."""
        return None

    def classes(self, w: Tensor) -> Tensor:
        if self.identity:
            return w
        divisor, columns = self.class_terms(w, None)
        whole = torch.cat([w, columns.t()], 1)
        return whole if divisor is None else whole / divisor.unsqueeze(1)

    def classes_vjp(self, w: Tensor, d: Tensor) -> Tensor:
        if self.identity:
            return d
        divisor, columns = self.class_terms(w, None)
        d = d.clone() if divisor is None else d / divisor.unsqueeze(1)
        d_w, d_columns = d.split([w.shape[1], self.extra], 1)
        self.complete_(d_w, w, divisor, columns, d_columns.t())
        return d_w.contiguous()

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        return None

    def bend(self, tile: Tensor, columns: Tensor, spare: list[Tensor]) -> None:
        """What the quantity goes through before the elementwise map, where classes differ in it; in place."""

    def unbend(self, tile: Tensor, columns: Tensor, spare: list[Tensor]) -> Tensor | None:
        """Gradient of what came out of ``bend`` to that of what went in, in place; returns that of the last of ``columns``."""
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

    def class_terms(self, w: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return _norm(w).squeeze(1), w.new_empty(0, len(w))

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> Tensor | None:
        assert divisor is not None
        # divided twice, because the square of a norm may overflow
        d.addcmul_(w, (_dot(w, d) / divisor / divisor).unsqueeze(1), value=-1)
        return None


class CosineDistance(Normalised):
    """``1 - C`` as ``<[-x / |x|, 1], [w, |w|] / |w|>``; the last column's share is constant."""

    extra = 1

    def rows(self, x: Tensor) -> Tensor:
        return torch.cat([-super().rows(x), torch.ones_like(x[:, :1])], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        return super().rows_vjp(x, -d[:, :-1])

    def class_terms(self, w: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
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

    def class_terms(self, w: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return None, _one_and_square(w)

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> Tensor | None:
        d.addcmul_(w, d_columns[1].unsqueeze(1), value=2)
        return None

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

    def rows(self, x: Tensor) -> Tensor:
        p = _square(x)
        return 2 * self.c / _room(p, self.c) * torch.cat([-2 * x, p, torch.ones_like(p)], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        p = _square(x)
        room, d_x, d_p, d_1 = _room(p, self.c), d[:, :-2], d[:, -2:-1], d[:, -1:]
        by_room = (p * d_p + d_1 - 2 * (x * d_x).sum(1, keepdim=True)) / room
        return 4 * self.c / room * (x * (d_p + self.c * by_room) - d_x)

    def class_terms(self, w: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
        columns = _one_and_square(w)
        return _room(columns[1], self.c), columns

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> Tensor | None:
        assert divisor is not None
        by_room = (_dot(w, d) + (columns * d_columns).sum(0)) / divisor
        d.addcmul_(w, (d_columns[1] + self.c * by_room).unsqueeze(1), value=2)
        return None

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        rooms = (_room(_square(x), self.c) * _room(_square(w), self.c)).squeeze(1)
        return 2 * self.c / rooms * ((x - w) ** 2).sum(1)


@dataclass(frozen=True)
class Hyperplanes(Plain):
    """``asinh(a)`` times a factor of the class, for points x of the Poincare ball and hyperplanes of normal w and offset r, the bias:
    ``a = <[2 sqrt(c) x, 1 + c |x|^2] / (1 - c |x|^2), [w, -|w| tanh q] cosh q / |w|>`` with ``q = 2 sqrt(c) r``. The factor
    ``2 |w| / sqrt(c)`` is a further column that no product sees. Norms of w below 1e-12 count as 1e-12; NaN outside the ball."""

    c: float
    identity = False
    extra = 1
    holds_bias = True
    buffers = 3

    def rows(self, x: Tensor) -> Tensor:
        p = _square(x)
        return torch.cat([2 * math.sqrt(self.c) * x, 1 + self.c * p], 1) / _room(p, self.c)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        root, p = math.sqrt(self.c), _square(x)
        room, d_x, d_p = _room(p, self.c), d[:, :-1], d[:, -1:]
        by_room = (2 * root * (x * d_x).sum(1, keepdim=True) + (1 + self.c * p) * d_p) / room
        return (2 * root * d_x + (2 * self.c * (d_p + by_room)) * x) / room

    def class_terms(self, w: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
        norm = _norm(w).squeeze(1)
        q = torch.zeros_like(norm) if bias is None else 2 * math.sqrt(self.c) * bias.to(norm.dtype)
        return norm / torch.cosh(q), torch.stack([-norm * torch.tanh(q), 2 / math.sqrt(self.c) * norm])

    def complete_(self, d: Tensor, w: Tensor, divisor: Tensor | None, columns: Tensor, d_columns: Tensor) -> Tensor | None:
        assert divisor is not None
        norm, (d_plane, d_factor) = columns[1] * (math.sqrt(self.c) / 2), d_columns
        tanh = -columns[0] / norm
        along = _dot(w, d) + columns[0] * d_plane  # -divisor d_divisor
        by_norm = 2 / math.sqrt(self.c) * d_factor - along / norm - tanh * d_plane
        d.addcmul_(w, (by_norm / norm).unsqueeze(1))
        return 2 * math.sqrt(self.c) * (along * tanh - d_plane * (divisor / norm) * divisor)

    def bend(self, tile: Tensor, columns: Tensor, spare: list[Tensor]) -> None:
        torch.asinh(tile, out=spare[0])
        torch.mul(spare[0], columns[1], out=tile)

    def unbend(self, tile: Tensor, columns: Tensor, spare: list[Tensor]) -> Tensor | None:
        value, slope = spare  # asinh'(a) = 1 / cosh(asinh(a))
        d_factor = torch.mul(tile, value, out=slope).sum(0)
        tile.div_(torch.cosh(value, out=slope)).mul_(columns[1])
        return d_factor


def _room(square: Tensor, c: float) -> Tensor:
    """``1 - c square``, NaN outside the ball."""
    room = 1 - c * square
    return torch.where(room > 0, room, math.nan)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _square(x: Tensor) -> Tensor:
    return (x * x).sum(1, keepdim=True)


def _one_and_square(w: Tensor) -> Tensor:
    square = _square(w).t()
    return torch.cat([torch.ones_like(square), square])


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)
