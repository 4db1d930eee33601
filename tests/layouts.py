"""Memory layouts: the same values as a dense tensor, reached through other strides, offsets and owners. Gaps hold NaN."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def _gap(like: Tensor, shape: list[int]) -> Tensor:
    return torch.full(shape, float("nan"), dtype=like.dtype, device=like.device)


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def step_two(t: Tensor) -> Tensor:
    """Every second element of the last axis."""
    view = _gap(t, [*t.shape[:-1], 2 * t.shape[-1]])[..., ::2]
    return view.copy_(t)


def expanded(t: Tensor) -> Tensor:
    """The first entry of the first axis, repeated with stride 0."""
    return t[:1].expand_as(t)


def offset_one(t: Tensor) -> Tensor:
    """Storage offset 1: no 16-byte load starts where the tensor does."""
    view = _gap(t, [t.numel() + 2])[1:-1].view(t.shape)
    return view.copy_(t)


def padded(t: Tensor) -> Tensor:
    """Rows followed by three elements that belong to nobody."""
    view = _gap(t, [*t.shape[:-1], t.shape[-1] + 3])[..., : t.shape[-1]]
    return view.copy_(t)


def channels_last(t: Tensor) -> Tensor:
    """The second axis innermost, as convolutions return it."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 2 else t.clone()


def read_only(t: Tensor) -> Tensor:
    """A NumPy buffer that is not writeable; bfloat16 and CUDA have none."""
    if t.dtype == torch.bfloat16 or t.is_cuda:
        return t.clone()
    array = t.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__: f for f in (transposed, step_two, expanded, offset_one, padded, channels_last, read_only)
}
