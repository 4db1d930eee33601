"""Argument checks of the public functions: one text format, ``<function>: <argument> must <expected>, got <got>[; <remedy>]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from .row_losses import RowLoss

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


def check_shape(function: str, name: str, value: Tensor, expected: tuple[int, ...], words: str = "") -> None:
    """``words`` says in letters what the numbers are."""
    got = tuple(value.shape)
    require(got == tuple(expected), ValueError, function, f"{name} must have shape {words or tuple(expected)}, got {got}")


def check_devices(function: str, input: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != input.device:
            raise ValueError(f"{function}: {name} must be on the device of input, {input.device}, got {other.device}")


def check_class_weight(function: str, weight: Tensor, num_classes: int) -> None:
    check_tensor(function, "weight", weight)
    check_floating(function, "weight", weight)
    check_shape(function, "weight", weight, (num_classes,), f"(V,) with V={num_classes}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(f"{function}: no gradient for weight, as in torch; pass weight.detach(), or weigh rows by sample_weight")


def check_options(
    function: str, record: RowLoss, label_smoothing: float, z_loss: float, normalizer: float | Tensor | None, reduction: str
) -> None:
    """Options that every loss of the cross-entropy family takes."""
    check_reduction(function, reduction)
    require(0 <= label_smoothing <= 1, ValueError, function, f"label_smoothing must be in [0, 1], got {label_smoothing}")
    require(z_loss >= 0, ValueError, function, f"z_loss must be >= 0, got {z_loss}")
    alone = f"label_smoothing must be 0 with row_loss={record.name!r}, got {label_smoothing}"
    require(record.name == "ce" or not label_smoothing, ValueError, function, alone)
    unused = f"normalizer must be None unless reduction='mean', got reduction={reduction!r}"
    require(normalizer is None or reduction == "mean", ValueError, function, unused)


def raise_invalid_target(function: str, target: Tensor, num_classes: int, ignore_index: int) -> None:
    """IndexError naming position, value and range of the first invalid label; returns if there is none. Synchronises on CUDA."""
    flat = int(torch.ops.nearlinear.first_invalid_target(target, num_classes, ignore_index))
    if flat < 0:
        return
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), target.shape))
    place = f"target[{', '.join(map(str, position))}]" if position else "target"
    value = target.flatten()[flat].item()
    raise IndexError(f"{function}: {place} = {value} is out of range [0, {num_classes}) and is not ignore_index={ignore_index}")
