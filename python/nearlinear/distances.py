"""Distances that need every coordinate of every pair of vectors, so that no matrix product gives them.

``name`` and ``params`` select the kernel's functor (``csrc/functors/distance.h`` and its Triton twin); calling the record applies the
definition in plain torch to ``input`` (..., R, D) and ``other`` (..., C, D). The derivative of ``|t|`` at 0 is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

__all__ = ["DISTANCES", "BrayCurtis", "Canberra", "Chebyshev", "DistanceMetric", "Manhattan", "Minkowski", "SmoothChebyshev"]


@dataclass(frozen=True)
class DistanceMetric:
    """``out[i, j] = dist(input[i], other[j])``, symmetric in the two; subclasses are frozen and hashable."""

    kernel: ClassVar[str]

    @property
    def name(self) -> str:
        return self.kernel

    @property
    def params(self) -> list[float]:
        return [float(value) for value in vars(self).values()]

    def __call__(self, input: Tensor, other: Tensor) -> Tensor:
        raise NotImplementedError

    def _require_positive(self, **values: float) -> None:
        for name, value in values.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{type(self).__name__}: {name} must be > 0 and finite, got {value}")


def _difference(input: Tensor, other: Tensor) -> Tensor:
    """``|x - w|`` of every pair, (..., R, C, D)."""
    return (input.unsqueeze(-2) - other.unsqueeze(-3)).abs()


@dataclass(frozen=True)
class Manhattan(DistanceMetric):
    """``sum |x - w|``."""

    kernel: ClassVar[str] = "manhattan"

    def __call__(self, input: Tensor, other: Tensor) -> Tensor:
        return _difference(input, other).sum(-1)


@dataclass(frozen=True)
class Minkowski(DistanceMetric):
    """``(sum |x - w|^p)^(1 / p)``, ``p >= 1``; the gradient at ``x = w`` is 0. Fast for p = 1, 1.5, 2 and 3."""

    p: float = 1.5
    kernel: ClassVar[str] = "minkowski"

    def __post_init__(self) -> None:
        if not 1 <= self.p < math.inf:
            raise ValueError(f"Minkowski: p must be >= 1 and finite, got {self.p}; for p = inf use Chebyshev()")

    def __call__(self, input: Tensor, other: Tensor) -> Tensor:
        power = (_difference(input, other) ** self.p).sum(-1)
        equal = power == 0
        return (power.masked_fill(equal, 1) ** (1 / self.p)).masked_fill(equal, 0)


@dataclass(frozen=True)
class Chebyshev(DistanceMetric):
    """``max |x - w|``; of equal largest coordinates the first has the gradient."""

    kernel: ClassVar[str] = "chebyshev"

    def __call__(self, input: Tensor, other: Tensor) -> Tensor:
        difference = _difference(input, other)
        if difference.shape[-1] == 0:
            return difference.sum(-1)
        return difference.gather(-1, difference.argmax(-1, keepdim=True)).squeeze(-1)


@dataclass(frozen=True)
class SmoothChebyshev(DistanceMetric):
    """``log(sum e^(alpha |x - w|)) / alpha``, ``alpha > 0``: at most ``log(D) / alpha`` above :class:`Chebyshev`."""

    alpha: float = 10.0
    kernel: ClassVar[str] = "smooth_chebyshev"

    def __post_init__(self) -> None:
        self._require_positive(alpha=self.alpha)

    def __call__(self, input: Tensor, other: Tensor) -> Tensor:
        return (self.alpha * _difference(input, other)).logsumexp(-1) / self.alpha


@dataclass(frozen=True)
class Canberra(DistanceMetric):
    """``sum |x - w| / (|x| + |w| + eps)``, ``eps > 0``."""

    eps: float = 1e-8
    kernel: ClassVar[str] = "canberra"

    def __post_init__(self) -> None:
        self._require_positive(eps=self.eps)

    def __call__(self, input: Tensor, other: Tensor) -> Tensor:
        return (_difference(input, other) / (input.abs().unsqueeze(-2) + other.abs().unsqueeze(-3) + self.eps)).sum(-1)


@dataclass(frozen=True)
class BrayCurtis(DistanceMetric):
    """``sum |x - w| / (|sum (x + w)| + eps)``, with ``absolute`` ``sum |x - w| / (sum (|x| + |w|) + eps)``; ``eps > 0``."""

    eps: float = 1e-3
    absolute: bool = False
    kernel: ClassVar[str] = "bray_curtis"

    def __post_init__(self) -> None:
        self._require_positive(eps=self.eps)

    @property
    def name(self) -> str:
        return f"{self.kernel}_abs" if self.absolute else self.kernel

    @property
    def params(self) -> list[float]:
        return [float(self.eps)]

    def __call__(self, input: Tensor, other: Tensor) -> Tensor:
        x, w = (input.abs(), other.abs()) if self.absolute else (input, other)
        total = (x.unsqueeze(-2) + w.unsqueeze(-3)).sum(-1)
        return _difference(input, other).sum(-1) / (total.abs() + self.eps)


def _bray_curtis_abs(eps: float) -> DistanceMetric:
    return BrayCurtis(eps, absolute=True)


DISTANCES: dict[str, Callable[..., DistanceMetric]] = {
    **{record.kernel: record for record in (Manhattan, Minkowski, Chebyshev, SmoothChebyshev, Canberra, BrayCurtis)},
    "bray_curtis_abs": _bray_curtis_abs,
}
"""Kernel name -> the record with the given parameters."""
