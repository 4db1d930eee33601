"""Logit maps: functions applied to each logit inside the kernel, so that the mapped logits are never stored.

``name`` and ``params`` select the kernel's functor (``csrc/functors/cross_entropy.h`` and its Triton twin); calling the record applies
the definition in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["LOGIT_MAPS", "Arcosh", "Identity", "LogitMap", "Power", "Scale", "SoftCap"]


@dataclass(frozen=True)
class LogitMap:
    """An elementwise map ``z = map(input)``; subclasses are frozen and hashable."""

    name: ClassVar[str]

    @property
    def params(self) -> list[float]:
        return [float(value) for value in vars(self).values()]

    def __call__(self, input: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Identity(LogitMap):
    """``z = input``."""

    name: ClassVar[str] = "identity"

    def __call__(self, input: Tensor) -> Tensor:
        return input


@dataclass(frozen=True)
class Scale(LogitMap):
    """``z = scale * input``: a logit scale, or an inverse temperature."""

    scale: float
    name: ClassVar[str] = "scale"

    def __call__(self, input: Tensor) -> Tensor:
        return self.scale * input


@dataclass(frozen=True)
class SoftCap(LogitMap):
    """``z = cap * tanh(input / cap)``, ``cap > 0`` (Gemma 2, arXiv:2408.00118)."""

    cap: float
    name: ClassVar[str] = "soft_cap"

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise ValueError(f"SoftCap: cap must be > 0, got {self.cap}")

    def __call__(self, input: Tensor) -> Tensor:
        return self.cap * torch.tanh(input / self.cap)


@dataclass(frozen=True)
class Power(LogitMap):
    """``z = -exponent * log(max(input, 0) + eps)``: the softmax of it is ``(input + eps)^-exponent``, normalised (harmonic losses)."""

    exponent: float
    eps: float = 1e-4
    name: ClassVar[str] = "power"

    def __post_init__(self) -> None:
        if not (self.exponent > 0 and self.eps > 0):
            raise ValueError(f"Power: exponent and eps must be > 0, got {self.exponent} and {self.eps}")

    def __call__(self, input: Tensor) -> Tensor:
        # where the clamp is at work the slope is that of 0: a squared distance below 0 is a rounding error, not a plateau
        return -self.exponent * torch.log(input + (input.clamp(min=0) - input).detach() + self.eps)


@dataclass(frozen=True)
class Arcosh(LogitMap):
    """``z = -scale * arcosh(1 + input)``, of hyperbolic distances; an input below 1e-12 counts as 1e-12 (the slope is infinite at 0)."""

    scale: float = 1.0
    name: ClassVar[str] = "arcosh"

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"Arcosh: scale must be > 0, got {self.scale}")

    def __call__(self, input: Tensor) -> Tensor:
        e = input + (input.clamp(min=1e-12) - input).detach()
        return -self.scale * torch.log1p(e + torch.sqrt(e * (e + 2)))


LOGIT_MAPS: dict[str, type[LogitMap]] = {record.name: record for record in (Identity, Scale, SoftCap, Power, Arcosh)}
