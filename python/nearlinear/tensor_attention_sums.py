"""Sums over all pairs (triples, ...) of keys that attention is made of, by moments of monomials or densely, and their quotient.

gauge    x does not change if channel c of query and keys is multiplied by numbers whose product is 1. They are made equally large
         before monomials are formed, by powers of two, that of the scale among them: nothing is rounded, and nothing overflows that
         need not.
shift    the largest bias of each set of keys goes into the log of the sums, as in a softmax.
sums     [B, H, N, E + 1]: of w(x) e^bias (v1 * v2 * ..., 1), w the polynomial; out = sums_e / sums_last
"""

from __future__ import annotations

from dataclasses import replace
from math import frexp
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from .collectives import gather, summed_over_ranks
from .ops._register import stats_dtype
from .taylor_features import feature_weights
from .tensor_attention_checks import KeySets

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "beyond_range", "dense_sums", "excess_sums", "log_sums", "per_head", "polynomial_sums", "quotient", "shifted", "softmax",
    "without_absent",
]  # fmt: skip

_ops = torch.ops.nearlinear


def softmax(x: KeySets) -> tuple[Tensor, Tensor]:
    """out [B, H, N, E] and lse [B, H, N] over the pairs of two sets of keys."""
    found: tuple[Tensor, Tensor] = _ops.trilinear_softmax(x.query, *x.keys, *x.values, *x.biases, x.scale, list(x.window))
    return found


def dense_sums(x: KeySets, coefficients: list[float]) -> Tensor:
    found: Tensor = _ops.trilinear_sums(x.query, *x.keys, *x.values, *x.biases, x.scale, list(x.window), coefficients, False)
    return found


def excess_sums(x: KeySets, coefficients: list[float], window: tuple[int, ...]) -> Tensor:
    """With e^x minus the polynomial, over the pairs inside a window."""
    found: Tensor = _ops.trilinear_sums(x.query, *x.keys, *x.values, *x.biases, x.scale, list(window), coefficients, True)
    return found


def polynomial_sums(x: KeySets, coefficients: list[float], process_group: ProcessGroup | None = None) -> Tensor:
    """By moments; with ``process_group`` over the keys of all ranks."""
    x, degree = gauged(x, process_group), len(coefficients) - 1
    weight = feature_weights(x.query.shape[3], coefficients, x.scale, x.query.new_empty(0, dtype=stats_dtype(x.query)))
    if x.causal:
        found: Tensor = _ops.taylor_scan(x.query, *x.keys, *x.values, *x.biases, weight, degree)
        return found
    product = weight.unsqueeze(1)
    for key, value, bias in zip(x.keys, x.values, x.biases, strict=True):
        moments = _ops.taylor_moments(key, value, bias, degree)
        # before the product: that of sums is not the sum of products
        product = product * (moments if process_group is None else summed_over_ranks(moments, process_group))
    sums: Tensor = _ops.taylor_apply(x.query, product, degree)
    return sums


# ---- gauge


def gauged(x: KeySets, process_group: ProcessGroup | None = None) -> KeySets:
    """The same logits from query and keys of like size in every channel."""
    mantissa, exponent = frexp(x.scale)
    with torch.no_grad():
        sizes = torch.stack([_channel_sizes(t, b) for t, b in ((_by_group(x), None), *zip(x.keys, x.biases, strict=True))])
        if process_group is not None:
            sizes = gather(sizes, process_group).amax(0)
        factors = _powers(sizes, exponent, x.query.dtype).exp2().to(x.query.dtype).unsqueeze(3)
    keys = tuple(key * factor for key, factor in zip(x.keys, factors[1:], strict=True))
    return replace(x, query=x.query * per_head(factors[0], x.query), keys=keys, scale=mantissa)


def _powers(sizes: Tensor, exponent: int, dtype: torch.dtype) -> Tensor:
    """[1 + sets, B, G, D]: powers of two whose sum is ``exponent``, for the query and each set of keys."""
    zero, logs = sizes == 0, sizes.double().log2()
    # where one is zero the product is, but not its gradients: the others become 1, and the zero takes what is left. Not in float16,
    # whose range what is left may exceed
    some = zero.any(0)
    mean = ((logs.sum(0) + exponent) / len(sizes)).masked_fill(some, 0)
    most = 12 // (len(sizes) - 1) if dtype == torch.float16 else 120
    powers = (mean - logs.masked_fill(zero, 0)).round().clamp(-most, most)
    left_alone = ~sizes.isfinite().all(0) | (some if dtype == torch.float16 else torch.zeros_like(some))
    powers = powers.masked_fill(left_alone, 0)
    taker = zero.long().argmax(0, keepdim=True).masked_fill(left_alone, 0)
    return powers.scatter_add(0, taker, exponent - powers.sum(0, keepdim=True))


def _by_group(x: KeySets) -> Tensor:
    """Query [B, G, (H / G) N, D]."""
    batch, heads, rows, dim = x.query.shape
    groups = x.keys[0].shape[1]
    return x.query.detach().reshape(batch, groups, heads // groups * rows, dim)


def _channel_sizes(t: Tensor, bias: Tensor | None) -> Tensor:
    """[B, G, D]: largest absolute value."""
    if t.shape[2] == 0:
        return t.new_zeros(*t.shape[:2], t.shape[3])
    t = without_absent(t.detach(), bias)
    return torch.maximum(t.amax(2), -t.amin(2))  # no copy, and vectorised, which the infinite vector_norm is not


def without_absent(t: Tensor, bias: Tensor | None) -> Tensor:
    """Zeros for keys that take no part."""
    return t if bias is None else t.masked_fill((bias == -torch.inf).unsqueeze(3), 0)


def per_head(t: Tensor, query: Tensor) -> Tensor:
    """What is [B, G, ...] for the heads of the query."""
    return t.repeat_interleave(query.shape[1] // t.shape[1], 1) if t.shape[1] != query.shape[1] else t


# ---- biases and quotient


def shifted(x: KeySets, process_group: ProcessGroup | None = None) -> tuple[KeySets, Tensor | None]:
    """Biases of at most 0, and the sum [B, G] of what was taken from them."""
    found, total = [], None
    for bias in x.biases:
        if bias is not None:
            top = bias.detach().amax(2) if bias.shape[2] else bias.new_full(bias.shape[:2], -torch.inf)
            if process_group is not None:
                top = gather(top, process_group).amax(0)
            top = top.masked_fill(top == -torch.inf, 0)
            bias, total = bias - top.unsqueeze(2), top if total is None else total + top
        found.append(bias)
    return replace(x, biases=tuple(found)), total


_RANGE = {torch.float32: -40.0, torch.float64: -300.0}  # of log weights whose squares, which gradients have, are normal numbers


def beyond_range(x: KeySets) -> Tensor | None:
    """[B, H, N]: rows which see only keys so far below the largest bias of their set that their weights have no digits left; None where
    every row sees every key."""
    if not (x.causal or x.windowed) or all(bias is None for bias in x.biases):
        return None
    with torch.no_grad():
        total = x.query.new_zeros(x.keys[0].shape[:3], dtype=stats_dtype(x.query))
        for bias, reach in zip(x.biases, (x.window[:2], x.window[2:]), strict=True):
            if bias is not None and bias.shape[2]:
                total = total + _largest_seen(bias, *reach) - bias.amax(2, keepdim=True)
        return per_head(total.isfinite() & (total < _RANGE[total.dtype]), x.query)


def _largest_seen(bias: Tensor, left: int, right: int) -> Tensor:
    """[B, G, N]: of the keys of a window."""
    length = bias.shape[2]
    left, right = (length - 1 if end < 0 else min(end, length - 1) for end in (left, right))
    if left == length - 1 and right == 0:
        return bias.cummax(2).values
    return max_pool1d(pad(bias, (left, right), value=-torch.inf), left + right + 1, 1)


def quotient(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """out; 0 where the weights sum to 0."""
    total = sums[..., -1:]
    none = total == 0
    return (sums[..., :-1] / total.masked_fill(none, 1)).masked_fill(none, 0).to(dtype)


def log_sums(sums: Tensor, shift: Tensor | None) -> Tensor:
    """lse [B, H, N]."""
    total = sums[..., -1]
    none = total == 0
    logs = total.masked_fill(none, 1).log()
    if shift is not None:
        logs = logs + per_head(shift, sums).unsqueeze(2)
    return logs.masked_fill(none, -torch.inf)
