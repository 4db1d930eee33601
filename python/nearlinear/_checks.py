"""Argument checks of the public functions: one text format, ``<function>: <argument> must <expected>, got <got>[; <remedy>]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

REDUCTIONS = ("none", "mean", "sum")


class NearlinearWarning(UserWarning):
    """Category of every warning of this package."""


def require(ok: bool, error: type[Exception], function: str, text: str) -> None:
    if not ok:
        raise error(f"{function}: {text}")


def check_tensor(function: str, name: str, value: Any) -> None:
    """A plain tensor: not a shard of one, and not inside forward-mode AD, where torch would return a zero tangent without an error."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a Tensor, got {type(value).__name__}")
    if type(value).__name__ == "DTensor":
        raise TypeError(f"{function}: {name} is a DTensor; pass {name}.full_tensor()")
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(value).tangent is not None:
        raise NotImplementedError(
            f"{function}: forward-mode AD is not implemented; use nearlinear.reference with the same arguments, or reverse mode"
        )


def check_floating(function: str, name: str, value: Tensor) -> None:
    if value.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"{function}: {name} must be float32, float64, bfloat16 or float16, got {value.dtype}")


def check_reduction(function: str, reduction: str) -> None:
    require(reduction in REDUCTIONS, ValueError, function, f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def raise_invalid_target(function: str, target: Tensor, num_classes: int, ignore_index: int) -> None:
    """IndexError naming position, value and range of the first invalid label; returns if there is none. Synchronises on CUDA."""
    flat = int(torch.ops.nearlinear.first_invalid_target(target, num_classes, ignore_index))
    if flat < 0:
        return
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), target.shape))
    place = f"target[{', '.join(map(str, position))}]" if position else "target"
    value = target.flatten()[flat].item()
    raise IndexError(f"{function}: {place} = {value} is out of range [0, {num_classes}) and is not ignore_index={ignore_index}")
