"""trilinear_softmax_backward, Triton.   dx_ijk = P_ijk (<d_out_i, v1_j v2_k> - delta_i),  delta_i = <d_out_i, out_i> - d_lse_i
                                      dq_i = scale sum_jk dx_ijk a_j b_k,  dv2_k = sum_ij P_ijk d_out_i v1_j, and so on by symmetry
trilinear_sums_backward:              the same with w(x) for P, w'(x) for P in dx, and -delta_i the gradient of the sum of the weights
Shapes: as in the forward; gradients have the shapes of what they are gradients of.
Algorithm: one kernel owns a tile of key2 and walks the rows j of key1 and, within, the queries: G_jk = sum_i dx_ijk q_i and H_jk = sum_i
    P_ijk d_out_i are products of matrices, and both key axes read them: db_k += G_jk a_j, da_j = sum_k G_jk b_k, and values alike. What a
    tile adds to key1 is stored by tile, for a chunk of rows j at a time, and summed in the order of the tiles. Another kernel owns a tile
    of queries. A half of the gradients that nobody wants (queries; keys) is not computed.
Cost: N N1 N2 (4 D + 3 E) multiply-adds, seven products to the forward's two, 2 N N1 N2 exponentials; extra memory O(N) and at most 64 MiB.
Numerics: sums in float32 (float64); in float16 the weights P and dx meet queries and gradients in tf32, because P underflows below 2^-24;
    queries with lse = -inf and keys with bias -inf get 0; run_to_run: no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import dense, float_pair, launch
from .cross_entropy import check, statistics_dtype
from .tensor_attention import (
    DEGREE,
    LOG2_E,
    SERIES,
    Blocks,
    bounds,
    check_coefficients,
    check_pairs,
    choose_blocks,
    load_bias,
    load_keys,
    load_row,
    load_rows,
    of_head,
    product,
    reach,
    seen,
    weight,
    weight_table,
    wide_tensors,
)

TABLE = tl.constexpr(DEGREE.value + SERIES.value + 2)  # elements of a weight's table; that of its derivative follows


@triton.jit
def weigh(w, v, acc, op: tl.constexpr):
    """w v + acc, w rounded to the dtype of v; tf32 holds values in float16 exactly and weights beyond its range."""
    if v.dtype == tl.float16:
        acc = tl.dot(w, v.to(tl.float32), acc, input_precision="tf32", out_dtype=op)
    else:
        acc = product(w.to(v.dtype), v, acc, op)
    return acc


@triton.jit
def load_queries(p_query, p_d_out, p_lse, p_delta, row, i, live, stride_q, stride_d, D, E, DP: tl.constexpr, EP: tl.constexpr):
    """Queries i, gradients of their outputs, and their lse and delta, at which a query beyond the end weighs nothing."""
    lse = tl.load(p_lse + row, mask=live, other=float("inf"))
    delta = tl.load(p_delta + row, mask=live, other=0)
    return load_rows(p_query, i, live, stride_q, D, DP), load_rows(p_d_out, i, live, stride_d, E, EP), lse, delta


@triton.jit
def pair_slopes(x, t, bias, p_coefficients, inside, KIND: tl.constexpr, WINDOW: tl.constexpr):
    """Weights of a tile of pairs, and the gradients of their logits and biases, where t is the gradient of a weight."""
    if KIND == "softmax":  # x holds the biases and -lse
        p = tl.exp2(x)
        slope = p
    else:
        p = weight(x, p_coefficients, KIND == "excess") * tl.exp(bias)
        slope = weight(x, p_coefficients + TABLE, KIND == "excess") * tl.exp(bias)
    if WINDOW:
        p = tl.where(inside, p, 0)
        slope = tl.where(inside, slope, 0)
    return p, slope * t, p * t


@triton.jit
def trilinear_bwd_query_kernel(
    p_query, p_key1, p_key2, p_value1, p_value2, p_bias1, p_bias2, p_coefficients, p_d_out, p_lse, p_delta, p_d_query, sizes, strides,
    windows, scale_hi, scale_lo, KIND: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr,
    EP: tl.constexpr,
):  # fmt: skip
    op = p_delta.dtype.element_ty
    H, G, N, N1, N2, D, E, tiles = sizes
    scale = tl.cast(scale_hi, op) + tl.cast(scale_lo, op)
    head = (tl.program_id(0) // tiles).to(tl.int64)  # of all batches
    i_b, i_h = head // H, head % H
    i_g = i_h // (H // G)
    base = i_b * G + i_g
    p_key1, p_value1 = of_head(p_key1, i_b, i_g, strides[1]), of_head(p_value1, i_b, i_g, strides[3])
    p_key2, p_value2 = of_head(p_key2, i_b, i_g, strides[2]), of_head(p_value2, i_b, i_g, strides[4])
    p_query, p_d_out = of_head(p_query, i_b, i_h, strides[0]), of_head(p_d_out, i_b, i_h, strides[5])
    first = (tl.program_id(0) % tiles).to(tl.int64) * BM
    i = first + tl.arange(0, BM)
    query, d_out, lse, delta = load_queries(
        p_query, p_d_out, p_lse, p_delta, head * N + i, i, i < N, strides[0][2], strides[5][2], D, E, DP, EP
    )
    last = tl.minimum(first + BM, N) - 1
    begin1, end1 = reach(first, last, windows[0], windows[1], N1)
    begin2, end2 = reach(first, last, windows[2], windows[3], N2)
    d_query = tl.zeros([BM, DP], op)
    for j in range(begin1, end1):
        bias1 = load_bias(p_bias1, base * N1, j, end1, op)
        live1 = bias1 != -float("inf")
        a = load_row(p_key1, j, live1, strides[1][2], D, DP).to(op)
        q = (query.to(op) * (a * (scale * LOG2_E if KIND == "softmax" else scale))[None, :]).to(query.dtype)
        d = (d_out.to(op) * load_row(p_value1, j, live1, strides[3][2], E, EP).to(op)[None, :]).to(d_out.dtype)
        u = tl.zeros([BM, DP], op)
        for k0 in range(begin2, tl.where(live1, end2, begin2), BK):
            k = k0 + tl.arange(0, BK)
            bias, keys, values = load_keys(p_key2, p_value2, p_bias2, base * N2, k, end2, strides[2], strides[4], D, E, op, DP, EP)
            bias = (bias + bias1)[None, :]
            start = tl.zeros([BM, BK], op)
            t = product(d, tl.trans(values), start - delta[:, None], op)
            x = product(q, tl.trans(keys), start + (bias - lse[:, None]) * LOG2_E if KIND == "softmax" else start, op)
            inside = seen(j, k[None, :], i[:, None], windows) if WINDOW else True
            _, dx, _ = pair_slopes(x, t, bias, p_coefficients, inside, KIND, WINDOW)
            u = weigh(dx, keys, u, op)
        d_query += u * a[None, :]
    c = tl.arange(0, DP)
    mask = (i < N)[:, None] & (c < D)[None, :]
    tl.store(p_d_query + (head * N + i)[:, None] * D + c[None, :], (scale * d_query).to(p_d_query.dtype.element_ty), mask=mask)


@triton.jit
def store_part(p_part, d_key, d_value, d_bias, D, E, DP: tl.constexpr, EP: tl.constexpr):
    c, e = tl.arange(0, DP), tl.arange(0, EP)
    tl.store(p_part + c, d_key, mask=c < D)
    tl.store(p_part + D + e, d_value, mask=e < E)
    tl.store(p_part + D + E, d_bias)


@triton.jit
def add_rows(p, d, d_key, d_value, d_bias, inside, D, E, DP: tl.constexpr, EP: tl.constexpr):
    """Adds to rows of [N2, D + E + 1] that only this program touches."""
    c, e = tl.arange(0, DP)[None, :], tl.arange(0, EP)[None, :]
    p_row = p + d * (D + E + 1)
    p_key, p_value = p_row[:, None] + c, p_row[:, None] + D + e
    m_c, m_e = inside[:, None] & (c < D), inside[:, None] & (e < E)
    tl.store(p_key, tl.load(p_key, mask=m_c, other=0) + d_key, mask=m_c)
    tl.store(p_value, tl.load(p_value, mask=m_e, other=0) + d_value, mask=m_e)
    tl.store(p_row + D + E, tl.load(p_row + D + E, mask=inside, other=0) + d_bias, mask=inside)


@triton.jit
def walk_queries(
    p_query, p_d_out, p_lse, p_delta, p_coefficients, i_b, i_g, j, k, kj, vj, bias, live, begin, end, sizes, strides, windows,
    op: tl.constexpr, KIND: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """Of row j of key1 and a tile of key2: sums over the queries of the group of dx q, P d_out and the gradients of the biases."""
    H, G, N, _, _, D, E, _ = sizes
    low, high = reach(j, j, windows[1], windows[0], N)
    low, high = tl.maximum(low, begin), tl.minimum(high, end)
    g, h = tl.zeros(kj.shape, op), tl.zeros(vj.shape, op)
    d_bias = tl.zeros([kj.shape[0]], op)
    for i_h in range(i_g * (H // G), (i_g + 1) * (H // G)):
        p_q, p_d = of_head(p_query, i_b, i_h, strides[0]), of_head(p_d_out, i_b, i_h, strides[5])
        for i0 in range(low, tl.where(live, high, low), BM):
            i = (i0 + tl.arange(0, BM)).to(tl.int64)
            row = (i_b * H + i_h) * N + i
            query, d_out, lse, delta = load_queries(p_q, p_d, p_lse, p_delta, row, i, i < high, strides[0][2], strides[5][2], D, E, DP, EP)
            start = tl.zeros([kj.shape[0], BM], op)
            t = product(vj, tl.trans(d_out), start - delta[None, :], op)
            x = product(kj, tl.trans(query), start + (bias - lse[None, :]) * LOG2_E if KIND == "softmax" else start, op)
            inside = seen(j, k[:, None], i[None, :], windows) if WINDOW else True
            p, dx, db = pair_slopes(x, t, bias, p_coefficients, inside, KIND, WINDOW)
            d_bias += tl.sum(db, 1)
            h = weigh(p, d_out, h, op)
            g = weigh(dx, query, g, op)
    return g, h, d_bias


@triton.jit
def trilinear_bwd_key_kernel(
    p_query, p_key1, p_key2, p_value1, p_value2, p_bias1, p_bias2, p_coefficients, p_d_out, p_lse, p_delta, p_part, p_d_keys, sizes,
    strides, windows, first_j, rows, scale_hi, scale_lo, KIND: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    DP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    op = p_delta.dtype.element_ty
    _, G, N, N1, N2, D, E, tiles = sizes
    scale = tl.cast(scale_hi, op) + tl.cast(scale_lo, op)
    base = (tl.program_id(0) // tiles).to(tl.int64)  # group of all batches
    i_b, i_g = base // G, base % G
    p_key1, p_value1 = of_head(p_key1, i_b, i_g, strides[1]), of_head(p_value1, i_b, i_g, strides[3])
    p_key2, p_value2 = of_head(p_key2, i_b, i_g, strides[2]), of_head(p_value2, i_b, i_g, strides[4])
    first = (tl.program_id(0) % tiles).to(tl.int64) * BK
    k = first + tl.arange(0, BK)
    bias2, keys, values = load_keys(p_key2, p_value2, p_bias2, base * N2, k, N2, strides[2], strides[4], D, E, op, DP, EP)
    last = tl.minimum(first + BK, N2) - 1
    begin, end = reach(first, last, windows[3], windows[2], N)  # queries that see the tile
    begin1, end1 = reach(begin, end - 1, windows[0], windows[1], N1)
    d_key2, d_value2 = tl.zeros([BK, DP], op), tl.zeros([BK, EP], op)
    d_bias2 = tl.zeros([BK], op)
    for j in range(tl.maximum(begin1, first_j), tl.minimum(end1, first_j + rows)):
        bias1 = load_bias(p_bias1, base * N1, j, end1, op)
        live1 = bias1 != -float("inf")
        a = load_row(p_key1, j, live1, strides[1][2], D, DP).to(op)[None, :]
        v = load_row(p_value1, j, live1, strides[3][2], E, EP).to(op)[None, :]
        kj = (keys.to(op) * (a * (scale * LOG2_E if KIND == "softmax" else scale))).to(keys.dtype)
        vj = (values.to(op) * v).to(values.dtype)
        g, h, d_bias = walk_queries(
            p_query, p_d_out, p_lse, p_delta, p_coefficients, i_b, i_g, j, k, kj, vj, (bias1 + bias2)[:, None], live1, begin, end,
            sizes, strides, windows, op, KIND, WINDOW, BM, DP, EP,
        )  # fmt: skip
        d_key2 += g * a
        d_value2 += h * v
        d_bias2 += d_bias
        p_row = p_part + (tl.program_id(0).to(tl.int64) * rows + (j - first_j)) * (D + E + 1)
        d_key1, d_value1 = tl.sum(g * keys.to(op), 0), tl.sum(h * values.to(op), 0)
        store_part(p_row, scale * d_key1, d_value1, tl.sum(d_bias, 0), D, E, DP, EP)
    add_rows(p_d_keys, base * N2 + k, scale * d_key2, d_value2, d_bias2, k < N2, D, E, DP, EP)


# ---- launchers: they hold no state

# as FORWARD_TILES, for the kernel that owns queries and the one that owns keys
QUERY_TILES = {
    2: ((64, 32, 128, 8), (128, 32, 64, 8)),
    4: ((64, 32, 32, 8), (128, 16, 32, 8)),
    8: ((64, 16, 32, 8),),
}
KEY_TILES = {
    2: ((64, 64, 32, 8), (128, 64, 16, 8)),
    4: ((64, 32, 16, 8), (128, 16, 16, 4)),
    8: ((64, 16, 16, 8),),
}
PART_BYTES = 1 << 26  # of what the tiles of key2 add to rows of key1, before their sum


class Call(NamedTuple):
    """What both kernels take: query, keys and values; biases; table of weights; d_out, lse and delta; options."""

    tensors: list[Tensor]
    biases: list[Tensor | None]
    table: Tensor | None
    upstream: tuple[Tensor, Tensor | None, Tensor]
    scale: float
    window: list[int]
    kind: str

    def sizes(self, tiles: int) -> tuple[int, ...]:
        query, key1, key2, value1, _ = self.tensors
        return (query.shape[1], key1.shape[1], query.shape[2], key1.shape[2], key2.shape[2], query.shape[3], value1.shape[3], tiles)

    def run(self, kernel: Any, programs: int, tiles: int, blocks: Blocks, outputs: Sequence[Tensor], rows: Sequence[int] = ()) -> None:
        strides = tuple(t.stride()[:3] for t in (*self.tensors, self.upstream[0]))
        arguments = (
            *self.tensors, *self.biases, self.table, *self.upstream, *outputs, self.sizes(tiles), strides, bounds(self.window), *rows,
            *float_pair(self.scale),
        )  # fmt: skip
        constants = {"KIND": self.kind, "WINDOW": max(self.window) >= 0, **blocks._asdict()}
        launch(kernel, programs, self.tensors[0], arguments, **constants)


def query_gradient(call: Call) -> Tensor:
    query = call.tensors[0]
    blocks = choose_blocks(QUERY_TILES, query, call.tensors[3])
    tiles = triton.cdiv(query.shape[2], blocks.BM)
    d_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    call.run(trilinear_bwd_query_kernel, query.shape[0] * query.shape[1] * tiles, tiles, blocks, (d_query,))
    return d_query


def key_gradients(call: Call) -> tuple[Tensor, Tensor]:
    """Gradients of key, value and bias side by side, [B, G, N1, D + E + 1] and [B, G, N2, D + E + 1]."""
    query, key1, key2, value1, _ = call.tensors
    blocks = choose_blocks(KEY_TILES, query, value1)
    (batch, groups, keys), width = key1.shape[:3], query.shape[3] + value1.shape[3] + 1
    tiles = triton.cdiv(key2.shape[2], blocks.BK)
    delta = call.upstream[2]
    d_keys1, d_keys2 = delta.new_zeros([batch, groups, keys, width]), delta.new_zeros([batch, groups, key2.shape[2], width])
    most = max(PART_BYTES // max(batch * groups * tiles * width * delta.element_size(), 1), 1)
    for first in range(0, keys, most):
        rows = min(most, keys - first)
        part = delta.new_zeros([batch, groups, tiles, rows, width])  # of rows that a tile does not see too
        call.run(trilinear_bwd_key_kernel, batch * groups * tiles, tiles, blocks, (part, d_keys2), (first, rows))
        torch.sum(part, 2, out=d_keys1[:, :, first : first + rows])
    return d_keys1, d_keys2


def gradients(call: Call, inputs: Sequence[Tensor | None], wants: Sequence[bool]) -> tuple[Tensor, ...]:
    """In the dtypes of the inputs, of no elements where nobody asks."""
    found: list[Tensor | None] = [None] * len(inputs)
    if wants[0]:
        found[0] = query_gradient(call)
    if any(wants[1:]):
        widths = [call.tensors[0].shape[3], call.tensors[3].shape[3], 1]
        for t, side in enumerate(key_gradients(call)):
            key, value, bias = side.split(widths, 3)
            found[1 + t], found[3 + t], found[5 + t] = key, value, bias.squeeze(3)
    empty = call.upstream[2].new_empty([0])
    return tuple(
        g.to(t.dtype).contiguous() if wanted and t is not None and g is not None else (empty if t is None else t.new_empty([0]))
        for g, t, wanted in zip(found, inputs, wants, strict=True)
    )


def trilinear_softmax_backward(
    d_out: Tensor, d_lse: Tensor, query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None,
    bias2: Tensor | None, out: Tensor, lse: Tensor, scale: float, window: list[int], wants: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    op, inputs = "trilinear_softmax_backward", (query, key1, key2, value1, value2, bias1, bias2)
    check_pairs(op, query, (key1, key2), (value1, value2), (bias1, bias2), window)
    check(d_out.shape == out.shape == (*query.shape[:3], value1.shape[3]), op, "d_out and out must have shape (B, H, N, E)")
    check(d_lse.shape == lse.shape == query.shape[:3], op, "d_lse and lse must have shape (B, H, N)")
    stats = statistics_dtype(query)
    delta = (d_out.to(stats) * out.to(stats)).sum(3) - d_lse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf).contiguous()
    biases = [None if b is None else b.contiguous() for b in (bias1, bias2)]
    upstream = (dense(d_out.to(query.dtype)), lse, delta.contiguous())
    call = Call([dense(t) for t in inputs[:5]], biases, None, upstream, scale, window, "softmax")
    return gradients(call, inputs, wants)


def trilinear_sums_backward(
    d_sums: Tensor, query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None,
    scale: float, window: list[int], coefficients: list[float], excess: bool, wants: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    op, inputs = "trilinear_sums_backward", (query, key1, key2, value1, value2, bias1, bias2)
    check_pairs(op, query, (key1, key2), (value1, value2), (bias1, bias2), window)
    check_coefficients(op, coefficients)
    check(d_sums.shape == (*query.shape[:3], value1.shape[3] + 1), op, "d_sums must have shape (B, H, N, E + 1)")
    slopes = [m * c for m, c in enumerate(coefficients)][1:]
    delta = -d_sums[..., -1].contiguous()
    table = torch.tensor([*weight_table(coefficients), *weight_table(slopes)], dtype=delta.dtype).to(query.device, non_blocking=True)
    tensors = [dense(t) for t in wide_tensors(*inputs[:5])]
    biases = [None if b is None else b.contiguous() for b in (bias1, bias2)]
    upstream = (d_sums[..., :-1].to(tensors[0].dtype).contiguous(), delta, delta)
    call = Call(tensors, biases, table, upstream, scale, window, "excess" if excess else "polynomial")
    return gradients(call, inputs, wants)
