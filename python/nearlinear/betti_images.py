"""Images as the ops of Betti matching take them: channels of classes, one batch dimension; and the places of their rows."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import NearlinearWarning, check_devices, check_floating, check_shape, check_tensor, require
from .betti_checks import check_labels

__all__ = ["Classes", "places", "stacked"]


def stacked(image: Tensor, nd: int) -> Tensor:
    """(N, *S) of (..., *S). Volumes of a GPU come to the CPU, which alone has kernels for them, through pinned memory."""
    lead = image.dim() - nd
    image = image.reshape(math.prod(image.shape[:lead]), *image.shape[lead:])
    if nd < 3 or image.device.type != "cuda":
        return image
    if torch.compiler.is_compiling():
        return image.cpu()
    host = image.to("cpu", non_blocking=True)
    torch.cuda.current_stream(image.device).synchronize()
    return host


def places(rows: Tensor, starts: Tensor, nd: int) -> tuple[Tensor, Tensor]:
    """Homology dimension and image of each row, from the first row of every group."""
    group = torch.arange(len(starts) - 1, device=rows.device).repeat_interleave(starts.diff(), output_size=len(rows))
    return group % nd, group // nd


@dataclass(frozen=True)
class Classes:
    """What happens to channels before the images are compared; names and order are MONAI's."""

    include_background: bool
    to_onehot_y: bool
    sigmoid: bool
    softmax: bool

    def channels(self, function: str, input: Tensor, target: Tensor, nd: int, reads: bool) -> tuple[Tensor, Tensor]:
        """Probabilities and labels of the classes that count."""
        check_floating(function, "input", input)
        check_tensor(function, "target", target)
        check_devices(function, input, target=target)
        require(not (self.sigmoid and self.softmax), ValueError, function, "sigmoid must be False with softmax; use one of them")
        if self.softmax or self.to_onehot_y or not self.include_background:
            text = f"input must have shape (N, C, *S) where channels are classes, got {tuple(input.shape)} with spatial_dims={nd}"
            require(input.dim() == nd + 2, ValueError, function, text)
        if self.to_onehot_y:
            target = _one_hot(function, target, input, reads)
        input = input.sigmoid() if self.sigmoid else input
        if self.softmax:
            require(input.shape[1] != 1, ValueError, function, "softmax must be False for one channel, where it would give 1 everywhere")
            input = input.softmax(1)
        if self.include_background:
            return input, target
        check_shape(function, "target", target, tuple(input.shape))
        if input.shape[1] != 1:
            return input[:, 1:], target[:, 1:]
        if not torch.compiler.is_compiling():
            warnings.warn(f"{function}: include_background=False has no effect on a single channel", NearlinearWarning, stacklevel=3)
        return input, target


def _one_hot(function: str, target: Tensor, input: Tensor, reads: bool) -> Tensor:
    """(N, C, *S) bool of class indices (N, 1, *S), which may be of a floating dtype."""
    many = f"to_onehot_y must be False for {input.shape[1]} channels"
    require(input.shape[1] >= 2, ValueError, function, many)
    check_shape(function, "target", target, (input.shape[0], 1, *input.shape[2:]))
    one_hot = target == torch.arange(input.shape[1], device=input.device).view(-1, *[1] * (input.dim() - 2))
    if reads:
        check_labels(function, target, one_hot)
    return one_hot
