"""Embeddings of features and class vectors whose dot product is the quantity that a score map wants: a cosine, a squared distance.

Each has ``rows(x)`` and ``classes(w)`` for the two sides, their vector-Jacobian products, and ``pair(x, w)``, the same quantity of row i of
x and row i of w without the cancellation of the product. All take and return [N, D] tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .distances import DistanceMetric

__all__ = ["Coordinates", "CosineDistance", "HyperbolicExcess", "Hyperplanes", "Normalised", "Plain", "SquaredDistance", "with_bias"]

_SMALLEST_NORM = 1e-12


class Plain:
    """``<x, w>``."""

    identity = True
    extra = 0  # columns that the embedding adds
    metric: DistanceMetric | None = None  # what stands in the product's place
    holds_bias = False  # the last column of the class vectors is the bias; else a bias is added to the product
    buffers = 1  # of the size of a tile: the tile itself and what ``bend`` keeps for ``unbend``

    def rows(self, x: Tensor) -> Tensor:
        return x

    def classes(self, w: Tensor) -> Tensor:
        return w

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        return d

    def classes_vjp(self, w: Tensor, d: Tensor) -> Tensor:
        return d

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        return None

    def bend(self, tile: Tensor, embedded: Tensor, spare: list[Tensor]) -> None:
        """What a product goes through before the elementwise map, where classes differ in it; in place."""

    def unbend(self, tile: Tensor, embedded: Tensor, spare: list[Tensor]) -> Tensor | None:
        """Gradient of what came out of ``bend`` to that of what went in, in place; returns that of the last column of ``embedded``."""
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

    def classes(self, w: Tensor) -> Tensor:
        return Normalised.rows(self, w)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        norm = _norm(x)
        unit = x / norm
        return (d - unit * (unit * d).sum(1, keepdim=True)) / norm

    def classes_vjp(self, w: Tensor, d: Tensor) -> Tensor:
        return Normalised.rows_vjp(self, w, d)


class CosineDistance(Normalised):
    """``1 - C``."""

    extra = 1

    def rows(self, x: Tensor) -> Tensor:
        return torch.cat([-super().rows(x), torch.ones_like(x[:, :1])], 1)

    def classes(self, w: Tensor) -> Tensor:
        return torch.cat([super().classes(w), torch.ones_like(w[:, :1])], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        return super().rows_vjp(x, -d[:, :-1])

    def classes_vjp(self, w: Tensor, d: Tensor) -> Tensor:
        return super().classes_vjp(w, d[:, :-1])

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        return ((super().rows(x) - super().classes(w)) ** 2).sum(1) / 2


@dataclass(frozen=True)
class SquaredDistance(Plain):
    """``factor |x - w|^2`` as ``<[x, |x|^2, 1], factor [-2 w, 1, |w|^2]>``."""

    factor: float = 1.0
    identity = False
    extra = 2

    def rows(self, x: Tensor) -> Tensor:
        return torch.cat([x, _square(x), torch.ones_like(x[:, :1])], 1)

    def classes(self, w: Tensor) -> Tensor:
        return self.factor * torch.cat([-2 * w, torch.ones_like(w[:, :1]), _square(w)], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        return d[:, :-2] + 2 * x * d[:, -2:-1]

    def classes_vjp(self, w: Tensor, d: Tensor) -> Tensor:
        return 2 * self.factor * (w * d[:, -1:] - d[:, :-2])

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        return self.factor * ((x - w) ** 2).sum(1)


@dataclass(frozen=True)
class HyperbolicExcess(Plain):
    """``E = 2 c |x - w|^2 / ((1 - c |x|^2) (1 - c |w|^2))``, the distance in the Poincare ball being ``arcosh(1 + E) / sqrt(c)``; NaN
    outside the ball. With ``u = 1 / (1 - c |x|^2)`` it is the product of ``[u x, u |x|^2, u]`` and ``2 c v [-2 w, 1, |w|^2]``."""

    c: float
    identity = False
    extra = 2

    def _u(self, x: Tensor) -> Tensor:
        return _conformal(x, self.c)

    def rows(self, x: Tensor) -> Tensor:
        return self._u(x) * torch.cat([x, _square(x), torch.ones_like(x[:, :1])], 1)

    def classes(self, w: Tensor) -> Tensor:
        return 2 * self.c * self._u(w) * torch.cat([-2 * w, torch.ones_like(w[:, :1]), _square(w)], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        u, p = self._u(x), _square(x)
        d_x, d_p, d_1 = d[:, :-2], d[:, -2:-1], d[:, -1:]
        d_u = (x * d_x).sum(1, keepdim=True) + p * d_p + d_1
        return u * (d_x + 2 * x * d_p) + d_u * 2 * self.c * u * u * x

    def classes_vjp(self, w: Tensor, d: Tensor) -> Tensor:
        v, q = self._u(w), _square(w)
        d_w, d_1, d_q = d[:, :-2], d[:, -2:-1], d[:, -1:]
        d_v = -2 * (w * d_w).sum(1, keepdim=True) + d_1 + q * d_q
        return 2 * self.c * (v * 2 * (w * d_q - d_w) + d_v * 2 * self.c * v * v * w)

    def pair(self, x: Tensor, w: Tensor) -> Tensor | None:
        return (2 * self.c * self._u(x) * self._u(w)).squeeze(1) * ((x - w) ** 2).sum(1)


@dataclass(frozen=True)
class Hyperplanes(Plain):
    """``s asinh(<u [2 sqrt(c) x, 1 + c |x|^2, 0], [cosh(q) z / |z|, -sinh(q), s]>)`` of points x of the Poincare ball and hyperplanes
    w = [z, r]: ``u = 1 / (1 - c |x|^2)``, ``q = 2 sqrt(c) r``, and the last column holds the factor of the class ``s = 2 |z| / sqrt(c)``.
    Norms of z below 1e-12 count as 1e-12; NaN outside the ball."""

    c: float
    identity = False
    extra = 2
    holds_bias = True
    buffers = 3

    def rows(self, x: Tensor) -> Tensor:
        return _conformal(x, self.c) * torch.cat([2 * math.sqrt(self.c) * x, 1 + self.c * _square(x), torch.zeros_like(x[:, :1])], 1)

    def classes(self, w: Tensor) -> Tensor:
        z, q = w[:, :-1], 2 * math.sqrt(self.c) * w[:, -1:]
        norm = _norm(z)
        return torch.cat([torch.cosh(q) / norm * z, -torch.sinh(q), 2 / math.sqrt(self.c) * norm], 1)

    def rows_vjp(self, x: Tensor, d: Tensor) -> Tensor:
        root, u, p = math.sqrt(self.c), _conformal(x, self.c), _square(x)
        d_x, d_p = d[:, :-2], d[:, -2:-1]
        d_u = 2 * root * (x * d_x).sum(1, keepdim=True) + (1 + self.c * p) * d_p
        return 2 * root * u * d_x + (2 * self.c * (u * d_p + u * u * d_u)) * x

    def classes_vjp(self, w: Tensor, d: Tensor) -> Tensor:
        z, q, root = w[:, :-1], 2 * math.sqrt(self.c) * w[:, -1:], math.sqrt(self.c)
        norm, d_z, d_sinh, d_s = _norm(z), d[:, :-2], d[:, -2:-1], d[:, -1:]
        along = (z * d_z).sum(1, keepdim=True) / norm
        # d / dz of z / |z| takes away what is along z; |z| itself brings it back in s
        through_norm = (2 / root * d_s - torch.cosh(q) / norm * along) / norm
        d_r = 2 * root * (torch.sinh(q) * along - torch.cosh(q) * d_sinh)
        return torch.cat([torch.cosh(q) / norm * d_z + through_norm * z, d_r], 1)

    def bend(self, tile: Tensor, embedded: Tensor, spare: list[Tensor]) -> None:
        torch.asinh(tile, out=spare[0])
        torch.mul(spare[0], embedded[:, -1], out=tile)

    def unbend(self, tile: Tensor, embedded: Tensor, spare: list[Tensor]) -> Tensor | None:
        value, slope = spare  # asinh'(a) = 1 / cosh(asinh(a))
        d_s = torch.mul(tile, value, out=slope).sum(0)
        tile.div_(torch.cosh(value, out=slope)).mul_(embedded[:, -1])
        return d_s


def with_bias(w: Tensor, bias: Tensor | None) -> Tensor:
    """Class vectors [V, D] with their bias, 0 if None, as the last column."""
    return torch.cat([w, torch.zeros_like(w[:, :1]) if bias is None else bias.to(w.dtype).unsqueeze(1)], 1)


def _conformal(x: Tensor, c: float) -> Tensor:
    """``1 / (1 - c |x|^2)``, NaN outside the ball."""
    room = 1 - c * _square(x)
    return torch.where(room > 0, 1 / room, math.nan)


def _square(x: Tensor) -> Tensor:
    return (x * x).sum(1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)
