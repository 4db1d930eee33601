"""taylor_moments_backward, Triton. With taylor_apply_backward:
    d_value_j = e^bias_j phi(key_j)^T d_moments,   d_phi(key_j) = e^bias_j d_moments (value_j, 1),   d_bias_j = <(value_j, 1), d_value_j>
    d_moments = sum_i phi(query_i) d_sums_i^T,     d_phi(query_i) = moments d_sums_i
Shapes: as in taylor_attention.py; d_moments and d_sums any strides.
Algorithm: d_moments is a sum over tokens like the moments themselves, d_value one over features like the sums; for a gradient of channels a
    program owns a tile of tokens, walks features, forms d_phi by tl.dot and folds it into the channels (taylor_features.py).
Cost: 2 N R (E + 1) FLOP for each of d_value, d_moments and d_phi, and 2 N R degree D for folding d_phi; temporaries [N, E + 1].
Numerics: as forward; a key with bias -inf has gradients 0; sums over the heads of a group in a fixed order; run_to_run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launch
from .cross_entropy import check, statistics_dtype
from .taylor_attention import check_keys, check_query, sum_features, sum_tokens
from .taylor_features import (
    channel_table,
    check_dtypes,
    columns_of_tile,
    monomials,
    passes,
    product,
    row_strides,
    split,
    tile,
)


@triton.jit
def channel_gradients_kernel(
    p_u, p_v, p_tail, p_bias, p_moments, p_d_phi, p_table, p_out, batches, N, H, group, F, D, E, tiles, blocks_d, splits, span,
    stride_ub, stride_uh, stride_un, stride_uc, stride_vb, stride_vh, stride_vn, stride_ve, stride_rb, stride_rh, stride_rn, stride_m,
    stride_t, DEGREE: tl.constexpr, KIND: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """d_u of a split of the features, with d_phi = (v, tail) moments^T, or as given [B, H, N, F] contiguous. Without ``p_tail`` it is 1."""
    op = p_out.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    d = (program % blocks_d) * BD + tl.arange(0, BD)
    i_s, i_h = program // blocks_d % splits, program // blocks_d // splits // tiles
    i_n = (program // blocks_d // splits % tiles) * BT + tl.arange(0, BT)
    i_b, i_g = i_h // H, (i_h % H) // group
    m_n = i_n < N
    o_row = i_b * stride_rb + (i_h % H) * stride_rh + i_n * stride_rn
    if p_bias is not None:
        m_n &= tl.load(p_bias + o_row, mask=m_n, other=-float("inf")) > -float("inf")
    tail = tl.where(m_n, 1, 0).to(op)
    if p_tail is not None:
        tail = tl.load(p_tail + o_row, mask=m_n, other=0).to(op)
    p_row = (p_u + i_b * stride_ub + (i_h % H) * stride_uh + i_n * stride_un)[:, None]
    total = tl.zeros([BT, BD], op)
    for begin in range(i_s * span, tl.minimum((i_s + 1) * span, F), BR):
        f = begin + tl.arange(0, BR)
        m_f = f < F
        if p_d_phi is not None:
            o = (i_h * N + i_n)[:, None] * F + f[None, :]
            d_phi = tl.load(p_d_phi + o, mask=m_n[:, None] & m_f[None, :], other=0)
        else:
            p_value = (p_v + i_b * stride_vb + (i_h % H) * stride_vh + i_n * stride_vn)[:, None]
            p_rows = p_moments + (i_b * (H // group) + i_g) * stride_m
            d_phi = tail[:, None] * tl.load(p_rows + f * (E + 1) + E, mask=m_f, other=0)[None, :]
            for e_0 in range(0, E, BE):
                e = (e_0 + tl.arange(0, BE)).to(tl.int64)
                v = tl.load(p_value + e[None, :] * stride_ve, mask=m_n[:, None] & (e < E)[None, :], other=0).to(op)
                moments = tl.load(p_rows + f[None, :] * (E + 1) + e[:, None], mask=m_f[None, :] & (e < E)[:, None], other=0)
                d_phi = product(v, moments, d_phi, KIND)
        p_c = (p_table + f)[None, :]
        for t in tl.static_range(DEGREE):
            part = d_phi * monomials(p_row, m_n[:, None], p_c, m_f[None, :], D, stride_t, stride_uc, op, DEGREE, t)
            c = tl.load(p_table + tl.cast(stride_t, tl.int64) * t + f, mask=m_f, other=D)
            total = product(part, tl.where(c[:, None] == d[None, :], 1, 0).to(op), total, KIND)
    o = ((i_s * batches + i_h) * N + i_n)[:, None] * D + d[None, :]
    tl.store(p_out + o, total, mask=(i_n < N)[:, None] & (d < D)[None, :])


# ---- launchers: they hold no state


def channel_gradients(input: Tensor, value: Tensor, tail: Tensor | None, bias: Tensor | None, moments: Tensor, degree: int) -> Tensor:
    """[B, H, N, D], d sum_f phi_f(input) <moments_f, (value, tail)> / d input, without e^bias; 0 for tokens with bias -inf."""
    moments, table = moments.contiguous(), channel_table(input, degree)
    count = moments.shape[2]
    parts = [
        fold(input, value, tail, bias, moments[:, :, first:], None, table[:, first:], number, kind)
        for first, number, kind in passes(input.shape[3], count, input.dtype)
    ]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def fold(
    input: Tensor, value: Tensor | None, tail: Tensor | None, bias: Tensor | None, moments: Tensor | None, d_phi: Tensor | None,
    table: Tensor, count: int, kind: str,
) -> Tensor:  # fmt: skip
    """The gradient of the channels from the first ``count`` features of ``table``, whose d_phi is given or made of moments."""
    batch, heads, tokens, dim = input.shape
    groups, columns = (heads, 0) if moments is None else (moments.shape[1], moments.shape[3] - 1)
    bt, br, warps = tile("fold", kind, input.dtype)
    bd, be, tiles = columns_of_tile(dim, input.dtype), min(columns_of_tile(columns, input.dtype), br), triton.cdiv(tokens, bt)
    blocks_d = triton.cdiv(dim, bd)
    splits, span = split(triton.cdiv(count, br), batch * heads * tiles * blocks_d, 8)
    out = torch.empty(splits, batch, heads, tokens, dim, dtype=statistics_dtype(input), device=input.device)
    arguments = (
        input, value, tail, bias, moments, d_phi, table, out, batch * heads, tokens, heads, heads // max(groups, 1), count, dim, columns,
        tiles, blocks_d, splits, span * br, *input.stride(), *((0, 0, 0, 0) if value is None else value.stride()),
        *row_strides(bias if tail is None else tail), table.stride(0) * (columns + 1),
        table.stride(0),
    )  # fmt: skip
    constants = {"DEGREE": table.shape[0], "KIND": kind, "BT": bt, "BR": br, "BD": bd, "BE": be}
    launch(channel_gradients_kernel, batch * heads * tiles * splits * blocks_d, input, arguments, warps, **constants)
    return out.sum(0) if splits > 1 else out[0]


def taylor_moments_backward(
    d_moments: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, degree: int, wants: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    op = "taylor_moments_backward"
    check_keys(op, key, value, bias, degree)
    check_query(op, key, d_moments, degree)
    check(d_moments.shape[1] == key.shape[1] and d_moments.shape[3] == value.shape[3] + 1, op, "d_moments must be like moments")
    d_key, d_value, d_bias = key.new_empty([0]), value.new_empty([0]), d_moments.new_empty([0])
    rate = None if bias is None else bias.exp().unsqueeze(3)
    if wants[0]:
        d_key = channel_gradients(key, value, None, bias, d_moments, degree)
        d_key = (d_key if rate is None else d_key.mul_(rate)).to(key.dtype)
    wants_bias = wants[2] and bias is not None
    if wants[1] or wants_bias:
        rows = sum_features(key, bias, d_moments, degree)
        rows = rows if rate is None else rows.mul_(rate)
        d_value = rows[..., :-1].to(value.dtype, memory_format=torch.contiguous_format, copy=True) if wants[1] else d_value
        if wants_bias:
            present = value.masked_fill(bias.isneginf().unsqueeze(3), 0)
            d_bias = (rows[..., :-1] * present).sum(3).add_(rows[..., -1])
    return d_key, d_value, d_bias


def taylor_apply_backward(d_sums: Tensor, query: Tensor, moments: Tensor, degree: int, wants: list[bool]) -> tuple[Tensor, Tensor]:
    op = "taylor_apply_backward"
    check_query(op, query, moments, degree)
    check_dtypes(op, {"d_sums": d_sums}, query)
    shape = [*query.shape[:3], moments.shape[3]]
    check(list(d_sums.shape) == shape, op, f"d_sums must have shape {shape}, got {list(d_sums.shape)}")
    d_query, d_moments = query.new_empty([0]), moments.new_empty([0])
    value, tail = d_sums[..., :-1], d_sums[..., -1]
    if wants[0]:
        d_query = channel_gradients(query, value, tail, None, moments, degree).to(query.dtype)
    if wants[1]:
        d_moments = sum_tokens(query, value, tail, None, degree, moments.shape[1])
    return d_query, d_moments
