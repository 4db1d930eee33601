"""Which algorithm attends over several sets of keys: a function of sizes and options, and of a certified bound where ``rtol`` asks for one.

exact        every pair of keys: the softmax, or a polynomial of the logits
polynomial   moments of monomials of the keys, linear in their number: the polynomial, or the softmax by its Taylor polynomial
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._checks import require
from .taylor_features import feature_count, taylor_coefficients
from .tensor_attention_bounds import certificate
from .tensor_attention_checks import KeySets, check_kernel, check_sets, check_window

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["TensorAttentionPlan", "decide", "tensor_attention_plan"]

DEGREES = (2, 4, 6)
_SCAN = 2  # a causal scan is counted as that many times a matrix product of as many operations: its states are in memory, not in registers


@dataclass(frozen=True)
class TensorAttentionPlan:
    """``method`` is exact or polynomial; ``coefficients`` are c_0 to c_degree of the polynomial that is summed, none for an exact softmax.
    ``flops`` are those of the forward, beside ``exact_flops`` over all pairs; ``state_bytes`` hold the moments of the keys and their
    product. ``tv_bound`` is the largest certified total variation of a row, where ``rtol`` asked for it and a polynomial meets it."""

    method: str
    coefficients: tuple[float, ...]
    flops: int
    exact_flops: int
    state_bytes: int
    tv_bound: float | None = None

    @property
    def degree(self) -> int | None:
        return len(self.coefficients) - 1 if self.coefficients else None


def exact_flops(x: KeySets) -> int:
    """Two products per tuple of keys that a query sees; a causal mask sees a third of the pairs."""
    rows, lengths = x.query.shape[2], [key.shape[2] for key in x.keys]
    if x.windowed:
        reach = [rows if min(ends) < 0 else sum(ends) + 1 for ends in (x.window[:2], x.window[2:])]
        lengths = [min(length, wide) for length, wide in zip(lengths, reach, strict=True)]
    total = 2 * x.query.shape[0] * x.query.shape[1] * rows * prod(lengths) * (x.query.shape[3] + _width(x))
    return total // 3 if x.causal else total


def polynomial_flops(x: KeySets, degree: int) -> int:
    batch, heads, rows, dim = x.query.shape
    keys = x.keys[0].shape[1] * sum(key.shape[2] for key in x.keys)
    features = feature_count(dim, degree) * (_width(x) + 1)
    if x.causal:  # two states per group, their product and what it is summed with per head
        return _SCAN * features * batch * (2 * keys + 3 * heads * rows)
    return 2 * features * batch * (keys + heads * rows)


def _width(x: KeySets) -> int:
    return x.values[0].shape[3]


def _plan(x: KeySets, method: str, coefficients: Sequence[float], tv_bound: float | None = None) -> TensorAttentionPlan:
    exact = exact_flops(x)
    if method == "exact":
        return TensorAttentionPlan(method, tuple(coefficients), exact, exact, 0, tv_bound)
    degree, itemsize = len(coefficients) - 1, 8 if x.query.dtype == torch.float64 else 4
    moments = x.keys[0].shape[:2].numel() * feature_count(x.query.shape[3], degree) * (_width(x) + 1)
    state = (len(x.keys) + 1) * moments * itemsize
    return TensorAttentionPlan(method, tuple(coefficients), polynomial_flops(x, degree), exact, state, tv_bound)


def decide(
    function: str, x: KeySets, kernel: str, coefficients: list[float], method: str, rtol: float | None,
    process_group: ProcessGroup | None = None,
) -> TensorAttentionPlan:  # fmt: skip
    """``kernel`` and ``coefficients`` as :func:`check_kernel` gives them."""
    if rtol is not None:
        require(process_group is None, NotImplementedError, function, "rtol with process_group is not implemented; give method and degree")
        return _within(function, x, rtol)
    if kernel == "softmax":
        by_moments = method == "polynomial"
    else:
        cheaper = len(x.keys) > 2 or process_group is not None or polynomial_flops(x, len(coefficients) - 1) < exact_flops(x)
        by_moments = method == "polynomial" or (method == "auto" and not x.windowed and cheaper)
    if not by_moments:
        text = f"{len(x.keys)} sets of keys without moments are not implemented; use method='polynomial', or nearlinear.reference"
        require(len(x.keys) <= 2, NotImplementedError, function, text)
        whole = "process_group needs moments of keys: give method='polynomial', and neither is_causal nor window_size"
        require(process_group is None, NotImplementedError, function, whole)
        return _plan(x, "exact", coefficients)
    text = f"method='polynomial' with a window is not implemented, got {x.window}; use method='exact', or exact_window beside a polynomial"
    require(not x.windowed, NotImplementedError, function, text)
    scan = "process_group with is_causal is not implemented: the moments of a query are those of the keys before it"
    require(process_group is None or not x.causal, NotImplementedError, function, scan)
    return _plan(x, "polynomial", coefficients)


def _within(function: str, x: KeySets, rtol: float) -> TensorAttentionPlan:
    """The Taylor polynomial of the smallest degree that costs less than all pairs and is certified to be close enough, or all pairs."""
    captured = torch.compiler.is_compiling() or (x.query.is_cuda and torch.cuda.is_current_stream_capturing())
    text = (
        "rtol must be None under torch.compile and in CUDA graphs, because the certificate is read from the device; "
        "give method='polynomial' and the degree that tensor_attention_plan finds"
    )
    require(not captured, RuntimeError, function, text)
    for degree in DEGREES:
        if x.windowed or len(x.keys) != 2 or polynomial_flops(x, degree) >= exact_flops(x):
            break
        tv = certificate(x, degree).tv
        largest = float(tv.max()) if tv.numel() else 0.0
        if largest <= rtol:
            return _plan(x, "polynomial", taylor_coefficients(degree), largest)
    return _plan(x, "exact", [])


def tensor_attention_plan(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, *, scale: float | None = None, is_causal: bool = False,
    window_size: tuple[tuple[int, int], tuple[int, int]] | None = None, key1_padding_mask: Tensor | None = None,
    key2_padding_mask: Tensor | None = None, enable_gqa: bool = False, method: str = "auto", kernel: str | Sequence[float] = "softmax",
    degree: int | None = None, rtol: float | None = None,
) -> TensorAttentionPlan:  # fmt: skip
    """What :func:`tensor_attention` would do with these tensors, its cost, and with ``rtol`` the bound that decided.

    Args:
        query, key1, key2, value1, value2: as there; meta tensors serve unless ``rtol`` is given.
        scale, is_causal, window_size, key1_padding_mask, key2_padding_mask, enable_gqa, method, kernel, degree, rtol: as there.

    Example:
        >>> import torch, nearlinear
        >>> q, a, b, v, w = (torch.randn(8, 1024, 32) for _ in range(5))
        >>> plan = nearlinear.tensor_attention_plan(q, a, b, v, w, kernel="taylor")
        >>> plan.method, plan.degree, plan.exact_flops // plan.flops
        ('polynomial', 2, 1208)
    """
    function = "tensor_attention_plan"
    masks = {"key1_padding_mask": key1_padding_mask, "key2_padding_mask": key2_padding_mask}
    keys, values = {"key1": key1, "key2": key2}, {"value1": value1, "value2": value2}
    x = check_sets(function, query, keys, values, masks, scale, enable_gqa)
    x = KeySets(**{**vars(x), "window": check_window(function, x, is_causal, window_size)})
    return decide(function, x, *check_kernel(function, kernel, method, degree, rtol), method, rtol)
