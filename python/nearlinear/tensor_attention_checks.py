"""Arguments of attention over several sets of keys, checked and brought to one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ._checks import check_floating, check_shape, check_tensor, require
from .ops._register import stats_dtype
from .taylor_features import taylor_coefficients

__all__ = ["EVERYWHERE", "PAST", "KeySets", "check_kernel", "check_sets", "check_window"]

EVERYWHERE, PAST = [-1, -1, -1, -1], [-1, 0, -1, 0]
KERNELS = ("softmax", "taylor")
METHODS = ("auto", "exact", "polynomial")


@dataclass(frozen=True)
class KeySets:
    """Query [B, H, N, D], M keys [B, G, N_t, D], M values [B, G, N_t, E], M biases [B, G, N_t] in the dtype of the
    statistics, -inf for a key that takes no part. ``leading`` is the shape that a result [B, H, N, ...] has in the place of B, H and N."""

    query: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    leading: tuple[int, ...]
    scale: float
    window: tuple[int, ...] = tuple(EVERYWHERE)

    @property
    def causal(self) -> bool:
        return list(self.window) == PAST

    @property
    def windowed(self) -> bool:
        return list(self.window) not in (EVERYWHERE, PAST)

    def restored(self, result: Tensor, rows: bool = True) -> Tensor:
        """``rows``: whether the result has the dimension of the queries."""
        return result.reshape([*self.leading[: None if rows else -1], *result.shape[3 if rows else 2 :]])

    def paired(self) -> KeySets:
        """One set of keys as two, the first a single key of ones: x = scale <q, b>."""
        if len(self.keys) != 1:
            return self
        key, values = self.keys[0], self.values
        one = key.new_ones(()).expand(*key.shape[:2], 1, key.shape[3])
        ones = tuple(v.new_ones(()).expand(*v.shape[:2], 1, v.shape[3]) for v in values)
        return replace(self, keys=(one, key), values=(*ones, *values), biases=(None, *self.biases))


def check_sets(
    function: str, query: Any, keys: dict[str, Any], values: dict[str, Any], masks: dict[str, Any], scale: float | None, enable_gqa: bool
) -> KeySets:
    """Tensors by the names of their arguments."""
    for name, value in {"query": query, **keys, **values}.items():
        check_tensor(function, name, value)
        check_floating(function, name, value)
    query, *rest = _autocast([query, *keys.values(), *values.values()])
    keys, values = dict(zip(keys, rest, strict=False)), dict(zip(values, rest[len(keys) :], strict=True))
    dim, leading = query.dim(), tuple(query.shape[:-1])
    ok = dim >= 2 and query.shape[-1] > 0
    require(ok, ValueError, function, f"query must have shape (..., H, N, D), (H, N, D) or (N, D) with D > 0, got {tuple(query.shape)}")
    groups = _check_keys(function, query, keys, enable_gqa)
    _check_values(function, keys, values)
    require(scale is None or -torch.inf < scale < torch.inf, ValueError, function, f"scale must be finite, got {scale}")
    biases = tuple(_bias(function, name, mask, key) for (name, mask), key in zip(masks.items(), keys.values(), strict=True))
    batch = query.shape[:-3].numel()
    return KeySets(
        _flat(query, batch), tuple(_flat(k, batch) for k in keys.values()), tuple(_flat(v, batch) for v in values.values()),
        tuple(None if b is None else b.expand(*b.shape[:-2], groups, b.shape[-1]).reshape(batch, groups, b.shape[-1]) for b in biases),
        leading, 1 / query.shape[-1] if scale is None else float(scale),
    )  # fmt: skip


def _autocast(tensors: list[Tensor]) -> list[Tensor]:
    """In the dtype of autocast, where it is on, as scaled_dot_product_attention; float64 stays."""
    device = tensors[0].device.type
    if not (torch.amp.autocast_mode.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t if t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _flat(t: Tensor, batch: int) -> Tensor:
    heads = t.shape[-3] if t.dim() > 2 else 1
    return t.reshape(batch, heads, *t.shape[-2:])


def _check_keys(function: str, query: Tensor, keys: dict[str, Tensor], enable_gqa: bool) -> int:
    """The number of their heads."""
    first = next(iter(keys))
    heads, groups = (t.shape[-3] if t.dim() > 2 else 1 for t in (query, keys[first]))
    for name, key in keys.items():
        same = key.dtype == query.dtype
        require(same, TypeError, function, f"{name} must have the dtype of query, {query.dtype}, got {key.dtype}; convert one of them")
        here = key.device == query.device
        require(here, ValueError, function, f"{name} must be on the device of query, {query.device}, got {key.device}")
        require(key.dim() == query.dim(), ValueError, function, f"{name} must have {query.dim()} dimensions, as query, got {key.dim()}")
        expected = (*query.shape[:-3], *([groups] if query.dim() > 2 else []), key.shape[-2], query.shape[-1])
        check_shape(function, name, key, expected, f"(*batch, Hk, N, D) = {expected}" if query.dim() > 2 else "")
    fits = groups == heads > 0 or (enable_gqa and groups > 0 and heads % groups == 0)
    rule = "a divisor of those of query" if enable_gqa else "as many as query; enable_gqa=True lets several heads of query share one"
    require(fits, ValueError, function, f"{first} must have {rule}: heads {heads}, got {groups}")
    return groups


def _check_values(function: str, keys: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for (name, value), (key_name, key) in zip(values.items(), keys.items(), strict=False):
        width = next(iter(values.values())).shape[-1:]
        same = value.dtype == key.dtype
        require(same, TypeError, function, f"{name} must have the dtype of query, {key.dtype}, got {value.dtype}; convert one of them")
        here = value.device == key.device
        require(here, ValueError, function, f"{name} must be on the device of query, {key.device}, got {value.device}")
        expected = (*key.shape[:-1], *width)
        check_shape(function, name, value, expected, f"that of {key_name} with one width E for all values, {expected}")
        require(value.shape[-1] > 0, ValueError, function, f"{name} must have channels, got shape {tuple(value.shape)}")


def _bias(function: str, name: str, mask: Any, key: Tensor) -> Tensor | None:
    """(*batch, 1 or Hk, N) in the dtype of the statistics."""
    if mask is None:
        return None
    check_tensor(function, name, mask)
    known = mask.dtype == torch.bool or mask.is_floating_point()
    require(known, TypeError, function, f"{name} must be bool (True: ignored) or floating (added to the logits), got {mask.dtype}")
    require(mask.device == key.device, ValueError, function, f"{name} must be on the device of query, {key.device}, got {mask.device}")
    batch, heads, length = key.shape[:-3], key.shape[-3:-2], key.shape[-2:-1]
    per_head = mask.dim() == len(batch) + 2 and key.dim() > 2
    expected = (*batch, *(heads if per_head else ()), *length)
    check_shape(function, name, mask, expected, f"(*batch, N) or (*batch, Hk, N): {(*batch, *length)} or {(*batch, *heads, *length)}")
    wide = stats_dtype(key)
    bias = torch.zeros_like(mask, dtype=wide).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask.to(wide)
    return bias if per_head else bias.unsqueeze(-2)


def check_window(
    function: str, x: KeySets, is_causal: bool, window_size: tuple[tuple[int, int], tuple[int, int]] | None, name: str = "window_size"
) -> tuple[int, ...]:
    """How far key1 and key2 may lie left and right of the query: [left, right, left, right], -1 for any distance."""
    window = list(EVERYWHERE)
    if window_size is not None:
        pairs = isinstance(window_size, (list, tuple)) and len(window_size) == 2
        shaped = pairs and all(isinstance(p, (list, tuple)) and len(p) == 2 and all(isinstance(end, int) for end in p) for p in window_size)
        require(shaped, ValueError, function, f"{name} must be ((left, right), (left, right)) of whole numbers, got {window_size}")
        window = [end for pair in window_size for end in pair]
        require(min(window) >= -1, ValueError, function, f"{name} must be >= 0, or -1 for any distance, got {window_size}")
    if is_causal:
        window = [window[0], 0, window[2], 0]
    lengths = (x.query.shape[2], *(key.shape[2] for key in x.keys))
    placed = window == EVERYWHERE or all(length == lengths[0] for length in lengths)
    require(placed, ValueError, function, f"is_causal and {name} need as many keys as queries, got {lengths}")
    return tuple(window)


def check_kernel(
    function: str, kernel: str | Sequence[float], method: str, degree: int | None, rtol: float | None
) -> tuple[str, list[float]]:
    """``"softmax"`` or ``"polynomial"``, and the coefficients of the polynomial: none for a softmax that is not approximated (yet)."""
    require(method in METHODS, ValueError, function, f"method must be one of {METHODS}, got {method!r}")
    if not isinstance(kernel, str):
        return "polynomial", _coefficients(function, kernel, degree, rtol)
    require(kernel in KERNELS, ValueError, function, f"kernel must be one of {KERNELS} or a sequence of coefficients, got {kernel!r}")
    even = degree is None or (isinstance(degree, int) and degree > 0 and degree % 2 == 0)
    odd = f"degree must be even and > 0, got {degree}: a Taylor polynomial of odd degree is negative somewhere, and so would weights be"
    require(even, ValueError, function, odd)
    if kernel == "taylor":
        require(rtol is None, ValueError, function, f"rtol must be None with kernel='taylor', which approximates nothing, got {rtol}")
        return "polynomial", taylor_coefficients(2 if degree is None else degree)
    if method == "polynomial":
        require(rtol is None, ValueError, function, f"rtol must be None with method='polynomial', got {rtol}; method='auto' looks for it")
        return "softmax", taylor_coefficients(2 if degree is None else degree)
    unused = f"degree must be None unless method='polynomial' or kernel='taylor', got {degree}: softmax is never approximated unasked"
    require(degree is None, ValueError, function, unused)
    exact = f"rtol must be None with method='exact', got {rtol}"
    require(rtol is None or method == "auto", ValueError, function, exact)
    require(rtol is None or 0 < rtol < torch.inf, ValueError, function, f"rtol must be finite and > 0, got {rtol}")
    return "softmax", []


def _coefficients(function: str, kernel: Sequence[float], degree: int | None, rtol: float | None) -> list[float]:
    numbers = isinstance(kernel, (list, tuple)) and all(isinstance(c, (int, float)) for c in kernel)
    kind = type(kernel).__name__
    require(numbers, TypeError, function, f"kernel must be a name or a list of numbers c_0, c_1, ... of sum c_m x^m, got {kind}")
    require(len(kernel) > 0, ValueError, function, "kernel must have at least one coefficient, got none")
    require(degree is None, ValueError, function, f"degree must be None with coefficients, which have one, got {degree}")
    require(rtol is None, ValueError, function, f"rtol must be None with coefficients, which approximate nothing, got {rtol}")
    return [float(c) for c in kernel]
