"""Attention over pairs of keys as it is written down: every logit is built. O(N N1 N2 D) time, O(N N1 N2) memory.

Letters: B batch, H heads of queries, G heads of keys and values (H / G query heads share one), N queries i, N1 and N2 keys j and k, D
channels c of queries and keys, E channels of values::

    x_ijk  = scale sum_c q_ic a_jc b_kc            (a: key1, b: key2)
    P_ijk  = exp(x_ijk + bias1_j + bias2_k - lse_i),  lse_i = log sum_jk exp(x_ijk + bias1_j + bias2_k)
    out_i  = sum_jk P_ijk v1_j * v2_k
    dx_ijk = P_ijk (<d_out_i, v1_j * v2_k> - <d_out_i, out_i> + d_lse_i)

The same with the weights w(x) = sum_m c_m x^m in the place of e^x, not divided by their sum, is ``trilinear_sums``.

Edges: a key with bias -inf takes no part, whatever it and its value hold; a query that sees no pair has out = 0, lse = -inf and no
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["tensor_attention", "tree_attention", "trilinear_softmax", "trilinear_sums"]


def present(key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Key, value and bias, with zeros for keys that take no part."""
    if bias is None:
        return key, value, key.new_zeros(key.shape[:-1])
    absent = (bias == -torch.inf).unsqueeze(-1)
    return key.masked_fill(absent, 0), value.masked_fill(absent, 0), bias


def seen(queries: int, keys: int, reach: list[int], device: torch.device) -> Tensor:
    """[N, keys]: whether a key lies within the window of a query."""
    left, right = reach
    distance = torch.arange(keys, device=device) - torch.arange(queries, device=device).unsqueeze(1)
    return (distance >= -left if left >= 0 else distance == distance) & (distance <= right if right >= 0 else distance == distance)


def logits(
    query: Tensor, key1: Tensor, key2: Tensor, bias1: Tensor, bias2: Tensor, scale: float, window: list[int]
) -> tuple[Tensor, Tensor]:
    """x [B, H, N, N1, N2], and what is added to it: bias1 + bias2, -inf outside the window."""
    group = query.shape[1] // max(key1.shape[1], 1)
    a, b, bias1, bias2 = (t.repeat_interleave(group, 1) for t in (key1, key2, bias1, bias2))
    x = torch.einsum("bhic,bhjc,bhkc->bhijk", query * scale, a, b)
    near1 = seen(query.shape[2], key1.shape[2], window[:2], query.device)
    near2 = seen(query.shape[2], key2.shape[2], window[2:], query.device)
    near = near1.unsqueeze(2) & near2.unsqueeze(1)
    bias = bias1[:, :, None, :, None] + bias2[:, :, None, None, :]
    return x, torch.where(near, bias, -torch.inf)


def pairs(query: Tensor, weights: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    """sum_jk weights_ijk v1_j * v2_k."""
    group = query.shape[1] // max(value1.shape[1], 1)
    v1, v2 = (v.repeat_interleave(group, 1) for v in (value1, value2))
    return torch.einsum("bhijk,bhje,bhke->bhie", weights, v1, v2)


def trilinear_softmax(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, scale: float,
    window: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out [B, H, N, E] and lse [B, H, N]."""
    (key1, value1, bias1), (key2, value2, bias2) = present(key1, value1, bias1), present(key2, value2, bias2)
    x, bias = logits(query, key1, key2, bias1, bias2, scale, window)
    flat = (x + bias).flatten(3)
    empty = (flat == -torch.inf).all(3, keepdim=True)  # all -inf has no gradient that is a number
    lse = torch.logsumexp(flat.masked_fill(empty, 0), 3, keepdim=True) if flat.shape[3] else flat.sum(3, keepdim=True)
    weights = torch.exp(flat - lse).masked_fill(empty, 0).view(x.shape)
    return pairs(query, weights, value1, value2), lse.masked_fill(empty, -torch.inf).squeeze(3)


def trilinear_sums(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, scale: float,
    window: list[int], coefficients: list[float], excess: bool,
) -> Tensor:  # fmt: skip
    """[B, H, N, E + 1]: sum_jk w(x_ijk) e^(bias1_j + bias2_k) (v1_j * v2_k, 1); ``excess``: w(x) = e^x - sum_m coefficients[m] x^m."""
    (key1, value1, bias1), (key2, value2, bias2) = present(key1, value1, bias1), present(key2, value2, bias2)
    x, bias = logits(query, key1, key2, bias1, bias2, scale, window)
    weights = torch.zeros_like(x)
    for c in reversed(coefficients):
        weights = weights * x + c
    weights = (x.exp() - weights if excess else weights) * bias.exp()
    return torch.cat([pairs(query, weights, value1, value2), weights.sum((3, 4)).unsqueeze(3)], 3)


def tensor_attention(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, *, scale: float | None = None, is_causal: bool = False,
    window_size: tuple[tuple[int, int], tuple[int, int]] | None = None, key1_padding_mask: Tensor | None = None,
    key2_padding_mask: Tensor | None = None, enable_gqa: bool = False, method: str = "auto", kernel: str | Sequence[float] = "softmax",
    degree: int | None = None, rtol: float | None = None, exact_window: tuple[tuple[int, int], tuple[int, int]] | None = None,
    return_lse: bool = False, return_error_bound: bool = False, process_group: ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
    """All pairs, whatever ``method``; the softmax is its Taylor polynomial for ``method="polynomial"`` alone. In the place of a bound of
    the error: the error, against the softmax. ``process_group`` must be None."""
    if process_group is not None:
        raise NotImplementedError("reference.tensor_attention: process_group must be None; pass the tensors of all ranks")
    q, a, b, v1, v2 = (heads(t, query) for t in (query, key1, key2, value1, value2))
    tensors = (q, a, b, v1, v2, bias_of(key1_padding_mask, key1), bias_of(key2_padding_mask, key2))
    scale = 1 / query.shape[-1] if scale is None else scale
    window = window_of(window_size, is_causal)
    exact = trilinear_softmax(*tensors, scale, window)
    out, lse = exact
    coefficients = polynomial_of(kernel, degree, method)
    if coefficients:
        sums = trilinear_sums(*tensors, scale, window, coefficients, False)
        if exact_window is not None:
            sums = sums + trilinear_sums(*tensors, scale, window_of(exact_window, is_causal), coefficients, True)
        total = sums[..., -1:]
        none = total == 0
        out = (sums[..., :-1] / total.masked_fill(none, 1)).masked_fill(none, 0)
        lse = total.masked_fill(none, 1).log().masked_fill(none, -torch.inf).squeeze(3)
    error = (out - exact[0]).detach().abs().amax(3)
    found = [out, *([lse] if return_lse else []), *([error] if return_error_bound else [])]
    restored = tuple(t.reshape(*query.shape[:-1], *t.shape[3:]) for t in found)
    return restored if len(restored) > 1 else restored[0]


def tree_attention(
    query: Tensor, key1: Tensor, key1b: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, *, scale: float | None = None
) -> Tensor:
    """softmax over all pairs of scale (<q_i, a_j> + <a'_j, b_k>), all of them built."""
    scale = 1 / query.shape[-1] if scale is None else scale
    upper, lower = scale * query @ key1.transpose(-1, -2), scale * key1b @ key2.transpose(-1, -2)
    logits = upper.unsqueeze(-1) + lower.unsqueeze(-3)
    weights = logits.flatten(-2).softmax(-1).view(logits.shape)
    return torch.einsum("...ijk,...je,...ke->...ie", weights, value1, value2)


def heads(t: Tensor, query: Tensor) -> Tensor:
    """[B, H, N, ...] of (..., H, N, ...)."""
    batch = query.shape[:-3].numel()
    return t.reshape(batch, t.shape[-3] if query.dim() > 2 else 1, *t.shape[-2:])


def bias_of(mask: Tensor | None, key: Tensor) -> Tensor | None:
    """[B, G, N] of a mask (..., N) or (..., Hk, N)."""
    if mask is None:
        return None
    wide = torch.promote_types(key.dtype, torch.float32)
    bias = mask.new_zeros(mask.shape, dtype=wide).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask.to(wide)
    bias = bias if bias.dim() == key.dim() - 1 and key.dim() > 2 else bias.unsqueeze(-2)
    groups = key.shape[-3] if key.dim() > 2 else 1
    return bias.expand(*bias.shape[:-2], groups, -1).reshape(key.shape[:-3].numel(), groups, -1)


def window_of(window_size: tuple[tuple[int, int], tuple[int, int]] | None, is_causal: bool) -> list[int]:
    window = [-1] * 4 if window_size is None else [end for pair in window_size for end in pair]
    return [window[0], 0, window[2], 0] if is_causal else window


def polynomial_of(kernel: str | Sequence[float], degree: int | None, method: str) -> list[float]:
    """Coefficients, none for a softmax."""
    if not isinstance(kernel, str):
        return list(kernel)
    if kernel == "taylor" or method == "polynomial":
        return [1 / factorial(m) for m in range(3 if degree is None else degree + 1)]
    return []
