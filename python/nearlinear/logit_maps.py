"""Logit maps: functions applied to each logit inside the kernel, so that the mapped logits are never stored.

``name`` and ``params`` select the kernel's functor (``csrc/functors/cross_entropy.h`` and its Triton twin); calling the record applies
the definition in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["LOGIT_MAPS", "Identity", "LogitMap", "Scale", "SoftCap"]


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


LOGIT_MAPS: dict[str, type[LogitMap]] = {record.name: record for record in (Identity, Scale, SoftCap)}
