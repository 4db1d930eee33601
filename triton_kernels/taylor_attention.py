"""taylor_moments, Triton.   moments[f, e] = sum_j e^bias_j phi_f(key_j) (value_j, 1)_e
taylor_apply                sums[i, e] = sum_f phi_f(query_i) moments[f, e]
Shapes: key [B, G, N, D], value [B, G, N, E], bias [B, G, N], query [B, H, N, D], any strides; moments [B, G, R, E + 1] and
    sums [B, H, N, E + 1] in float32 (float64 for float64); query head h takes the moments h // (H / G).
Algorithm: a program of the moments owns a block of features and columns and walks tokens, a program of the sums owns a tile of tokens and
    columns and walks features; features are made in registers (taylor_features.py) and go into tl.dot. The last column is a sum of its
    own, so that it costs no second block of columns. Where programs are few, the walk is split, and the parts are added in a fixed order.
Cost: 2 N R (E + 1) FLOP each, N R degree loads from L1 for each block of columns; partial sums of at most 64 splits, and with halves of two
    passes (degrees 0 and 1, the others).
Numerics: as taylor_features.py says; a part of a sum over tokens has at most 1024 of them, and parts are added to a total of their own;
    a key with bias -inf takes no part, whatever it and its value hold; no tokens give 0; run_to_run.
"""

from __future__ import annotations

from math import comb

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launch
from .cross_entropy import check, statistics_dtype
from .taylor_features import (
    channel_table,
    check_degree,
    check_dtypes,
    columns_of_tile,
    monomials,
    passes,
    product,
    row_strides,
    split,
    tile,
)

CHUNK = tl.constexpr(1024)  # tokens of a part of a sum: sums of sums keep their digits


@triton.jit
def moments_kernel(
    p_u, p_v, p_tail, p_bias, p_table, p_out, N, H, group, F, D, E, units, chunks, splits, span, blocks_f, blocks_e, stride_ub, stride_uh,
    stride_un, stride_uc, stride_vb, stride_vh, stride_vn, stride_ve, stride_rb, stride_rh, stride_rn, stride_os, stride_om, stride_t,
    DEGREE: tl.constexpr, KIND: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Over the heads of a group and their chunks of tokens. ``p_tail`` [B, H, N] is the last column; without it that is e^bias, or 1."""
    op = p_out.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    i_e, f = program % blocks_e, (program // blocks_e % blocks_f) * BR + tl.arange(0, BR)
    i_s, i_g = program // blocks_e // blocks_f % splits, program // blocks_e // blocks_f // splits
    e = i_e * BE + tl.arange(0, BE)
    m_f = f < F
    total, total_tail = tl.zeros([BR, BE], op), tl.zeros([BR], op)
    for unit in range(i_s * span, tl.minimum((i_s + 1) * span, units)):
        i_b, i_h = i_g // (H // group), i_g % (H // group) * group + unit // chunks
        part, part_tail = tl.zeros([BR, BE], op), tl.zeros([BR], op)
        begin = (unit % chunks) * CHUNK
        for n_0 in range(begin, tl.minimum(begin + CHUNK, N), BT):
            i_n = n_0 + tl.arange(0, BT)
            m_n = i_n < N
            o_row = i_b * stride_rb + i_h * stride_rh + i_n * stride_rn
            tail, weight = tl.where(m_n, 1, 0).to(op), tl.where(m_n, 1, 0).to(op)
            if p_bias is not None:
                bias = tl.load(p_bias + o_row, mask=m_n, other=-float("inf")).to(op)
                m_n, weight = bias > -float("inf"), tl.exp(bias)
                tail = weight
            if p_tail is not None:
                tail = tl.load(p_tail + o_row, mask=m_n, other=0).to(op)
            p_row = p_u + i_b * stride_ub + i_h * stride_uh + i_n * stride_un
            phi = monomials(p_row[None, :], m_n[None, :], (p_table + f)[:, None], m_f[:, None], D, stride_t, stride_uc, op, DEGREE, -1)
            o_v = (i_b * stride_vb + i_h * stride_vh + i_n * stride_vn)[:, None] + e[None, :] * stride_ve
            v = tl.load(p_v + o_v, mask=m_n[:, None] & (e < E)[None, :], other=0).to(op) * weight[:, None]
            part = product(phi, v, part, KIND)
            part_tail += tl.sum(phi * tail[None, :], 1)
        total += part
        total_tail += part_tail
    p_row = p_out + i_s * stride_os + i_g * stride_om + f * (E + 1)
    tl.store(p_row[:, None] + e[None, :], total, mask=m_f[:, None] & (e < E)[None, :])
    tl.store(p_row + E, total_tail, mask=m_f & (i_e == 0))


@triton.jit
def apply_kernel(
    p_u, p_bias, p_moments, p_table, p_out, batches, N, H, group, F, D, E, tiles, splits, span, blocks_e, stride_ub, stride_uh, stride_un,
    stride_uc, stride_rb, stride_rh, stride_rn, stride_m, stride_t,
    DEGREE: tl.constexpr, KIND: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Over a split of the features; 0 for tokens with bias -inf."""
    op = p_out.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    i_e, i_s, i_h = program % blocks_e, program // blocks_e % splits, program // blocks_e // splits // tiles
    i_n = (program // blocks_e // splits % tiles) * BT + tl.arange(0, BT)
    i_b = i_h // H
    e = i_e * BE + tl.arange(0, BE)
    m_n = i_n < N
    if p_bias is not None:
        o_row = i_b * stride_rb + (i_h % H) * stride_rh + i_n * stride_rn
        m_n &= tl.load(p_bias + o_row, mask=m_n, other=-float("inf")) > -float("inf")
    p_row = (p_u + i_b * stride_ub + (i_h % H) * stride_uh + i_n * stride_un)[:, None]
    p_rows = p_moments + (i_b * (H // group) + (i_h % H) // group) * stride_m
    total, total_tail = tl.zeros([BT, BE], op), tl.zeros([BT], op)
    for begin in range(i_s * span, tl.minimum((i_s + 1) * span, F), BR):
        f = begin + tl.arange(0, BR)
        m_f = f < F
        phi = monomials(p_row, m_n[:, None], (p_table + f)[None, :], m_f[None, :], D, stride_t, stride_uc, op, DEGREE, -1)
        p_m = p_rows + f * (E + 1)
        total = product(phi, tl.load(p_m[:, None] + e[None, :], mask=m_f[:, None] & (e < E)[None, :], other=0), total, KIND)
        total_tail += tl.sum(phi * tl.load(p_m + E, mask=m_f, other=0)[None, :], 1)
    p_y = p_out + ((i_s * batches + i_h) * N + i_n) * (E + 1)
    tl.store(p_y[:, None] + e[None, :], total, mask=(i_n < N)[:, None] & (e < E)[None, :])
    tl.store(p_y + E, total_tail, mask=(i_n < N) & (i_e == 0))


# ---- launchers: they hold no state


def sum_tokens(input: Tensor, value: Tensor, tail: Tensor | None, bias: Tensor | None, degree: int, groups: int) -> Tensor:
    """[B, groups, R, E + 1] of input [B, H, N, D] and value [B, H, N, E], summed over the heads of a group; see the kernel for the tail."""
    batch, heads, tokens, dim = input.shape
    columns, table, op = value.shape[3], channel_table(input, degree), statistics_dtype(input)
    be, chunks, group = columns_of_tile(columns, input.dtype), triton.cdiv(tokens, CHUNK.value), heads // max(groups, 1)
    blocks_e, count = max(triton.cdiv(columns, be), 1), table.shape[1]
    splits, span = split(group * chunks, batch * groups * triton.cdiv(count, 64) * blocks_e, 1)
    out = torch.empty(splits, batch, groups, count, columns + 1, dtype=op, device=input.device)
    for first, number, kind in passes(dim, count, input.dtype):
        bt, br, warps = tile("moments", kind, input.dtype)
        blocks_f = triton.cdiv(number, br)
        arguments = (
            input, value, tail, bias, table[:, first:], out[:, :, :, first:], tokens, heads, group, number, dim, columns, group * chunks,
            chunks, splits, span, blocks_f, blocks_e, *input.stride(), *value.stride(), *row_strides(bias if tail is None else tail),
            out.stride(0), count * (columns + 1), count,
        )  # fmt: skip
        constants = {"DEGREE": degree, "KIND": kind, "BT": bt, "BR": br, "BE": be}
        launch(moments_kernel, batch * groups * splits * blocks_f * blocks_e, input, arguments, warps, **constants)
    return out.sum(0) if splits > 1 else out[0]


def sum_features(input: Tensor, bias: Tensor | None, moments: Tensor, degree: int) -> Tensor:
    """[B, H, N, E + 1] of input [B, H, N, D] and moments [B, G, R, E + 1]; 0 for tokens with bias -inf."""
    batch, heads, tokens, dim = input.shape
    moments, table = moments.contiguous(), channel_table(input, degree)
    groups, count, columns = moments.shape[1], moments.shape[2], moments.shape[3] - 1
    be = columns_of_tile(columns, input.dtype)
    blocks_e = max(triton.cdiv(columns, be), 1)
    parts = []
    for first, number, kind in passes(dim, count, input.dtype):
        bt, br, warps = tile("apply", kind, input.dtype)
        tiles = triton.cdiv(tokens, bt)
        splits, span = split(triton.cdiv(number, br), batch * heads * tiles * blocks_e, 8)
        out = torch.empty(splits, batch, heads, tokens, columns + 1, dtype=statistics_dtype(input), device=input.device)
        arguments = (
            input, bias, moments[:, :, first:], table[:, first:], out, batch * heads, tokens, heads, heads // max(groups, 1), number, dim,
            columns, tiles, splits, span * br, blocks_e, *input.stride(), *row_strides(bias), count * (columns + 1), count,
        )  # fmt: skip
        constants = {"DEGREE": degree, "KIND": kind, "BT": bt, "BR": br, "BE": be}
        launch(apply_kernel, batch * heads * tiles * splits * blocks_e, input, arguments, warps, **constants)
        parts.append(out.sum(0) if splits > 1 else out[0])
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def check_keys(op: str, key: Tensor, value: Tensor, bias: Tensor | None, degree: int) -> None:
    check_degree(op, degree)
    check(key.dim() == 4, op, f"key must have shape (B, G, N, D), got {list(key.shape)}")
    check(value.dim() == 4 and value.shape[:3] == key.shape[:3], op, f"value must have shape (B, G, N, E), got {list(value.shape)}")
    check(bias is None or bias.shape == key.shape[:3], op, "bias must have shape (B, G, N)")
    check_dtypes(op, {"value": value, "bias": bias}, key)


def check_query(op: str, query: Tensor, moments: Tensor, degree: int) -> None:
    check_degree(op, degree)
    check(query.dim() == 4, op, f"query must have shape (B, H, N, D), got {list(query.shape)}")
    count = comb(query.shape[3] + degree, degree)
    fits = moments.dim() == 4 and moments.shape[0] == query.shape[0] and moments.shape[2] == count and moments.shape[3] > 0
    check(fits, op, f"moments must have shape ({query.shape[0]}, G, {count}, E + 1), got {list(moments.shape)}")
    fits = moments.shape[1] > 0 and query.shape[1] % moments.shape[1] == 0
    check(fits, op, f"the heads of moments must divide those of query, {query.shape[1]}, got {moments.shape[1]}")
    check_dtypes(op, {"moments": moments}, query)


def taylor_moments(key: Tensor, value: Tensor, bias: Tensor | None, degree: int) -> Tensor:
    check_keys("taylor_moments", key, value, bias, degree)
    return sum_tokens(key, value, None, bias, degree, key.shape[1])


def taylor_apply(query: Tensor, moments: Tensor, degree: int) -> Tensor:
    check_query("taylor_apply", query, moments, degree)
    return sum_features(query, None, moments, degree)
