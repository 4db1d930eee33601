"""Polynomial attention by its features, all of them built: O(N R) memory, R = C(D + g, g) for degree g.

Letters as in :mod:`nearlinear.reference.tensor_attention`; the order of the features is that of :mod:`nearlinear.taylor_features`::

    moments_re = sum_j e^bias_j phi_r(key_j) value_je,     the last column with 1 for the value
    sums_ie    = sum_r phi_r(query_i) w_r moments1_re moments2_re = sum_jk p(x_ijk) e^(bias1_j + bias2_k) (v1_j * v2_k, 1)_e
    d_moments1 = (w phi(query)^T d_sums) * moments2,       d_value_j = e^bias_j phi(key_j)^T d_moments
    d phi(key_j) = e^bias_j (value_j, 1) d_moments^T,      d phi / du: a product of one channel less

Edges: a key with bias -inf takes no part, whatever it and its value hold; without keys the moments are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .tensor_attention import bias_of, heads, polynomial_of, present

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["taylor_apply", "taylor_features", "taylor_moments", "taylor_scan", "tensor_attention_n", "total_variation"]


def taylor_features(u: Tensor, degree: int) -> Tensor:
    """Monomials [..., R] of u [..., D]."""
    last, found = torch.ones_like(u[..., :1]), [torch.ones_like(u[..., :1])]
    for m in range(1, degree + 1):
        blocks = [u[..., c, None] * last[..., : comb(c + m - 1, m - 1)] for c in range(u.shape[-1])]
        last = torch.cat(blocks, -1) if blocks else u[..., :0]
        found.append(last)
    return torch.cat(found, -1)


def with_one(value: Tensor) -> Tensor:
    return torch.cat([value, torch.ones_like(value[..., :1])], -1) if value.shape[-1] else value.new_ones(*value.shape[:-1], 1)


def taylor_moments(key: Tensor, value: Tensor, bias: Tensor | None, degree: int) -> Tensor:
    """[B, G, R, E + 1]."""
    key, value, bias = present(key, value, bias)
    return taylor_features(key, degree).transpose(2, 3) @ (with_one(value) * bias.exp().unsqueeze(3))


def taylor_apply(query: Tensor, moments: Tensor, degree: int) -> Tensor:
    """[B, H, N, E + 1]."""
    return taylor_features(query, degree) @ moments.repeat_interleave(query.shape[1] // max(moments.shape[1], 1), 1)


def taylor_scan(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, weight: Tensor,
    degree: int,
) -> Tensor:  # fmt: skip
    """[B, H, N, E + 1]: the sums of query i over keys 0 to i."""
    group = query.shape[1] // max(key1.shape[1], 1)
    total = weight.view(-1, 1).expand(query.shape[0], query.shape[1], query.shape[2], -1, -1)
    for key, value, bias in ((key1, value1, bias1), (key2, value2, bias2)):
        key, value, bias = present(key, value, bias)
        terms = taylor_features(key, degree).unsqueeze(4) * (with_one(value) * bias.exp().unsqueeze(3)).unsqueeze(3)
        total = total * terms.cumsum(2).repeat_interleave(group, 1)
    return torch.einsum("bhir,bhire->bhie", taylor_features(query, degree), total)


def tensor_attention_n(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *, scale: float | None = None,
    kernel: str | Sequence[float] = "softmax", degree: int | None = None, method: str = "auto",
    padding_masks: Sequence[Tensor | None] | None = None, enable_gqa: bool = False, process_group: ProcessGroup | None = None,
) -> Tensor:  # fmt: skip
    """All tuples of one key from each set: O(N N_1 ... N_M) time and memory, for a softmax of any order too."""
    if process_group is not None:
        raise NotImplementedError("reference.tensor_attention_n: process_group must be None; pass the tensors of all ranks")
    x, bias, values = tuples(query, keys, values, scale, padding_masks)
    weights = kernel_weights(x, bias, polynomial_of(kernel, degree, method))
    letters = "jklmnopq"[: len(keys)]
    out = torch.einsum(",".join([f"bhi{letters}", *(f"bh{j}e" for j in letters)]) + "->bhie", weights, *values)
    total = weights.flatten(3).sum(3, keepdim=True)
    none = total == 0
    return (out / total.masked_fill(none, 1)).masked_fill(none, 0).reshape(*query.shape[:-1], values[0].shape[3])


def total_variation(
    query: Tensor, keys: Sequence[Tensor], *, scale: float | None = None, degree: int = 2,
    padding_masks: Sequence[Tensor | None] | None = None, window: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What ``tensor_attention_error_bound`` bounds: half the sum of ``|P^ - P|`` of each row, its largest ``|x|``, and its mean
    of x^2.
    ``window`` bool, of the shape of the logits of a row set: pairs that count."""
    x, bias, _ = tuples(query, keys, [], scale, padding_masks)
    bias = bias.expand_as(x) if window is None else torch.where(window, bias, -torch.inf)
    approximate, exact = (kernel_weights(x, bias, c).flatten(3) for c in (polynomial_of("taylor", degree, "auto"), []))
    p, q, w = (t / t.sum(3, keepdim=True).clamp(min=1e-300) for t in (approximate, exact, kernel_weights(x, bias, [1.0]).flatten(3)))
    flat = x.flatten(3)
    largest = torch.where(w > 0, flat.abs(), 0).amax(3) if flat.shape[3] else flat.sum(3)
    found = (p - q).abs().sum(3) / 2, largest, (w * flat.square()).sum(3)
    first, second, third = (t.reshape(query.shape[:-1]) for t in found)
    return first, second, third


def tuples(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float | None, padding_masks: Sequence[Tensor | None] | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """x and the sum of the biases [B, H, N or 1, N_1, ..., N_M]; values [B, H, N_t, E], 0 for keys that take no part."""
    count, masks = len(keys), [None] * len(keys) if padding_masks is None else padding_masks
    letters = "jklmnopq"[:count]
    x = heads(query, query) * (1 / query.shape[-1] if scale is None else scale)
    given = [heads(key, query) for key in keys]
    group = x.shape[1] // given[0].shape[1]
    total, shown, found = x.new_zeros(()), [], []
    for t, (key, mask) in enumerate(zip(given, masks, strict=True)):
        value = heads(values[t], query) if values else key
        clean, value, bias = present(key, value, bias_of(mask, keys[t]))
        shape = [*bias.shape[:2], 1, *(bias.shape[2] if s == t else 1 for s in range(count))]
        total = total + bias.view(shape).repeat_interleave(group, 1)
        shown.append(clean.repeat_interleave(group, 1))
        found.append(value.repeat_interleave(group, 1))
    return torch.einsum(",".join(["bhic", *(f"bh{j}c" for j in letters)]) + f"->bhi{letters}", x, *shown), total, found


def kernel_weights(x: Tensor, bias: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Of the softmax without coefficients, less its largest logit; else of the polynomial, less its largest bias."""
    if not coefficients:
        logits = x + bias
        top = logits.flatten(3).amax(3) if logits.shape[3:].numel() else logits.flatten(3).sum(3)
        top = top.masked_fill(top == -torch.inf, 0).view(*top.shape, *[1] * (x.dim() - 3))
        return (logits - top.detach()).exp()
    weights = torch.zeros_like(x)
    for c in reversed(coefficients):
        weights = weights * x + c
    return weights * bias.exp()
