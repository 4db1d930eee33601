"""Argument checks of Betti matching. Values are read on the CPU, elsewhere with ``check_input``, and not while torch.compile traces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_devices, check_shape, check_tensor, require

__all__ = [
    "FILTRATIONS", "INTERVALS", "PUSHES", "check_dims", "check_dtype", "check_labels", "check_numbers", "check_pair",
    "check_probabilities", "check_spatial", "check_word", "raise_not_a_number", "reads_values",
]  # fmt: skip

FILTRATIONS, INTERVALS, PUSHES = ("superlevel", "sublevel"), ("all", "positive"), ("diagonal", "opposite")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool)
_WORDS = "float32, float64, bfloat16, float16, uint8 or bool"


def check_word(function: str, name: str, value: Any, words: Sequence[str]) -> None:
    require(value in words, ValueError, function, f"{name} must be one of {tuple(words)}, got {value!r}")


def check_spatial(function: str, input: Any, spatial_dims: int | None) -> int:
    """The number of spatial sides: all after (N, C) unless it is given."""
    check_tensor(function, "input", input)
    shape = tuple(input.shape)
    if spatial_dims is None:
        require(len(shape) >= 3, ValueError, function, f"input must have shape (N, C, *S) with 1 to 3 spatial sides, got {shape}")
        spatial_dims = len(shape) - 2
    else:
        whole = isinstance(spatial_dims, int) and spatial_dims >= 1
        require(whole, ValueError, function, f"spatial_dims must be 1, 2 or 3, got {spatial_dims!r}")
    most = f"spatial_dims must be 1, 2 or 3, got {spatial_dims}; there is no algorithm for more"
    require(spatial_dims <= 3, NotImplementedError, function, most)
    enough = f"input must have at least spatial_dims={spatial_dims} dimensions, got {shape}"
    require(len(shape) >= spatial_dims, ValueError, function, enough)
    sides = shape[len(shape) - spatial_dims :]
    require(0 not in sides, ValueError, function, f"input must have spatial sides of at least one pixel, got {sides}")
    return spatial_dims


def check_pair(function: str, input: Tensor, target: Any) -> torch.dtype:
    """The common dtype of the two images, which torch's promotion gives."""
    check_tensor(function, "target", target)
    check_dtype(function, "input", input.dtype)
    check_devices(function, input, target=target)
    check_shape(function, "target", target, tuple(input.shape))
    dtype = torch.promote_types(input.dtype, target.dtype)
    check_dtype(function, "target with the dtype of input promoted", dtype)
    return dtype


def check_dtype(function: str, name: str, dtype: torch.dtype) -> None:
    require(dtype in _DTYPES, TypeError, function, f"{name} must be {_WORDS}, got {dtype}")


def check_dims(function: str, dims: Sequence[int] | None, nd: int) -> list[int]:
    found = list(range(nd) if dims is None else dims)
    distinct = len(set(found)) == len(found) and all(dim in range(nd) for dim in found)
    require(distinct, ValueError, function, f"dims must be distinct homology dimensions from 0 to {nd - 1}, got {dims}")
    return found


def reads_values(input: Tensor, check_input: bool) -> bool:
    return not torch.compiler.is_compiling() and (check_input or input.device.type == "cpu")


def check_numbers(function: str, min_persistence: float, sphere: bool, pad_value: float | None) -> None:
    require(0 <= min_persistence < math.inf, ValueError, function, f"min_persistence must be finite and >= 0, got {min_persistence}")
    require(not sphere or pad_value is None, ValueError, function, f"sphere must be False with pad_value, got pad_value={pad_value}")


def check_probabilities(function: str, **images: Any) -> None:
    for name, image in images.items():
        if isinstance(image, Tensor) and image.numel() and not image.is_complex():
            plain = image.detach().to(torch.uint8) if image.dtype == torch.bool else image.detach()
            low, high = (float(end) for end in plain.aminmax())
            inside = f"{name} must have values in [0, 1] here, got {low:g} to {high:g}"
            require(not (low < 0 or high > 1), ValueError, function, inside)  # NaN has an error of its own


def check_labels(function: str, target: Tensor, one_hot: Tensor) -> None:
    known = one_hot.any(1)
    if not bool(known.all()):
        wrong = target[:, 0][~known][0].item()
        require(False, IndexError, function, f"target must hold class indices from 0 to {one_hot.shape[1] - 1}, got {wrong}")


def raise_not_a_number(function: str, **images: Tensor) -> None:
    """ValueError with the position of the first NaN; returns if there is none."""
    for name, image in images.items():
        if image.is_floating_point() and bool((missing := image.isnan()).any()):
            position = ", ".join(str(int(i)) for i in missing.nonzero()[0])
            raise ValueError(f"{function}: {name} must not be NaN, got NaN at {name}[{position}]")
