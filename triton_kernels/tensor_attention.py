"""trilinear_softmax, Triton.   out_i = sum_jk P_ijk v1_j v2_k,  lse_i = log sum_jk e^(x_ijk + b1_j + b2_k),  x_ijk = scale <q_i, a_j, b_k>
                             P_ijk = e^(x_ijk + b1_j + b2_k - lse_i)
trilinear_sums:              sum_jk w(x_ijk) e^(b1_j + b2_k) (v1_j v2_k, 1),  w a polynomial, or e^x minus it
Shapes: query [B, H, N, D], key_t [B, G, N_t, D], value_t [B, G, N_t, E], bias_t [B, G, N_t] or None; H / G heads share keys; any strides.
Algorithm: a program owns a tile of queries and walks the rows j of key1; for each, the queries times row j meet the tiles of key2 in a
    product of matrices, and the sum of the weighted value2 is multiplied by value1_j once. Loops end where the windows end.
Cost: N N1 N2 (D + E) multiply-adds and N N1 N2 exponentials; extra memory O(1): nothing is kept of a pair.
Numerics: sums in float32 (float64), powers of two with a running maximum; halves are rounded once after query * key1 and once for a
    weight; float32 products are not tf32; float16 weights go up to 2^14, because one of many pairs would vanish below 2^-24; lse is
    natural; keys with bias -inf are not read; a query that sees nothing gives 0 and -inf; run_to_run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import dense, float_pair, launch
from .cross_entropy import check, statistics_dtype

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
DEGREE = tl.constexpr(8)  # of the polynomials, padded with zeros
SERIES = tl.constexpr(15)  # degree of e^x - polynomial as a series, exact to rounding for |x| < 1/2


# ---- parts of forward and backward kernels


@triton.jit
def product(a, b, acc, op: tl.constexpr):
    """a b + acc in the dtype ``op``; float32 keeps its digits."""
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=op)


@triton.jit
def load_rows(p, i, live, stride, width, WIDTH: tl.constexpr):
    """Rows i of a matrix, [len(i), WIDTH]; zeros where not live and beyond their width."""
    c = tl.arange(0, WIDTH)
    return tl.load(p + i[:, None] * stride + c[None, :], mask=live[:, None] & (c < width)[None, :], other=0)


@triton.jit
def load_row(p, j, live, stride, width, WIDTH: tl.constexpr):
    c = tl.arange(0, WIDTH)
    return tl.load(p + tl.cast(j, tl.int64) * stride + c, mask=c < tl.where(live, width, 0), other=0)


@triton.jit
def load_bias(p, base, k, end, op: tl.constexpr):
    """Biases of the keys k of a group, -inf for those beyond the end."""
    bias = tl.where(k < end, 0, -float("inf")) if p is None else tl.load(p + base + k, mask=k < end, other=-float("inf"))
    return bias.to(op)


@triton.jit
def load_keys(p_key, p_value, p_bias, base, k, end, strides_k, strides_v, D, E, op: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr):
    """Bias, key and value of the keys k before ``end``; those with bias -inf are not read."""
    bias = load_bias(p_bias, base, k, end, op)
    live = bias != -float("inf")
    keys = load_rows(p_key, k.to(tl.int64), live, strides_k[2], D, DP)
    return bias, keys, load_rows(p_value, k.to(tl.int64), live, strides_v[2], E, EP)


@triton.jit
def of_head(p, i_b, i_h, strides):
    return p + i_b * strides[0] + i_h * strides[1]


@triton.jit
def horner(x, p, LAST: tl.constexpr):
    total = tl.zeros_like(x) + tl.load(p + LAST)
    for m in tl.static_range(LAST):
        total = total * x + tl.load(p + LAST - 1 - m)
    return total


@triton.jit
def weight(x, p, EXCESS: tl.constexpr):
    """The polynomial, or e^x minus it: near 0, where the difference cancels, by its own series."""
    w = horner(x, p, DEGREE)
    if EXCESS:
        w = tl.where(tl.abs(x) < 0.5, horner(x, p + DEGREE + 1, SERIES), tl.exp(x) - w)
    return w


@triton.jit
def reach(first, last, left, right, keys):
    """Keys that queries first..last can see: begin, end."""
    return tl.maximum(first - left, 0).to(tl.int32), tl.minimum(last + right + 1, keys).to(tl.int32)


@triton.jit
def seen(j, k, i, windows):
    """Whether the pair of keys j, k lies in the windows of the query i."""
    left1, right1, left2, right2 = windows
    d1, d2 = j - i, k - i
    return (d1 >= -left1) & (d1 <= right1) & (d2 >= -left2) & (d2 <= right2)


# ---- forward


@triton.jit
def softmax_tile(s, m, total, u, values, op: tl.constexpr):
    """One more tile of logits, in powers of two, into the maximum and sum [BM] and the weighted values [BM, EP]."""
    headroom = 14.0 if values.dtype == tl.float16 else 0.0
    top = tl.maximum(m, tl.max(s, 1) - headroom)
    shift = tl.where(top == -float("inf"), 0, top)
    old = tl.exp2(m - shift)
    p = tl.exp2(s - shift[:, None])
    return top, total * old + tl.sum(p, 1), product(p.to(values.dtype), values, u * old[:, None], op)


@triton.jit
def store_rows(p_out, p_lse, row, inside, acc, m, total, E, KIND: tl.constexpr, EP: tl.constexpr):
    c = tl.arange(0, EP)
    mask = inside[:, None] & (c < E)[None, :]
    if KIND == "softmax":
        empty = total == 0
        out = tl.where(empty[:, None], 0, acc / tl.where(empty, 1, total)[:, None])
        tl.store(p_out + row[:, None] * E + c[None, :], out.to(p_out.dtype.element_ty), mask=mask)
        tl.store(p_lse + row, tl.where(empty, -float("inf"), (m + tl.log2(total)) * LN_2), mask=inside)
    else:
        p_out += row * (E + 1)
        tl.store(p_out[:, None] + c[None, :], acc, mask=mask)
        tl.store(p_out + E, total, mask=inside)


@triton.jit
def trilinear_fwd_kernel(
    p_query, p_key1, p_key2, p_value1, p_value2, p_bias1, p_bias2, p_coefficients, p_out, p_lse, sizes, strides, windows, scale_hi,
    scale_lo, KIND: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    op = p_lse.dtype.element_ty
    H, G, N, N1, N2, D, E, tiles = sizes
    scale = tl.cast(scale_hi, op) + tl.cast(scale_lo, op)
    head = (tl.program_id(0) // tiles).to(tl.int64)  # of all batches
    i_b, i_h = head // H, head % H
    i_g = i_h // (H // G)
    base = i_b * G + i_g
    p_key1, p_value1 = of_head(p_key1, i_b, i_g, strides[1]), of_head(p_value1, i_b, i_g, strides[3])
    p_key2, p_value2 = of_head(p_key2, i_b, i_g, strides[2]), of_head(p_value2, i_b, i_g, strides[4])
    first = (tl.program_id(0) % tiles).to(tl.int64) * BM
    i = first + tl.arange(0, BM)
    query = load_rows(of_head(p_query, i_b, i_h, strides[0]), i.to(tl.int64), i < N, strides[0][2], D, DP).to(op)
    last = tl.minimum(first + BM, N) - 1
    begin1, end1 = reach(first, last, windows[0], windows[1], N1)
    begin2, end2 = reach(first, last, windows[2], windows[3], N2)
    m = tl.full([BM], -float("inf"), op)
    total = tl.zeros([BM], op)
    acc = tl.zeros([BM, EP], op)
    for j in range(begin1, end1):
        bias1 = load_bias(p_bias1, base * N1, j, end1, op)
        live1 = bias1 != -float("inf")
        a = load_row(p_key1, j, live1, strides[1][2], D, DP).to(op) * (scale * LOG2_E if KIND == "softmax" else scale)
        q = (query * a[None, :]).to(p_query.dtype.element_ty)
        u = tl.zeros([BM, EP], op)
        before = m
        for k0 in range(begin2, tl.where(live1, end2, begin2), BK):
            k = k0 + tl.arange(0, BK)
            bias, keys, values = load_keys(p_key2, p_value2, p_bias2, base * N2, k, end2, strides[2], strides[4], D, E, op, DP, EP)
            bias += bias1
            if KIND == "softmax":
                x = product(q, tl.trans(keys), tl.zeros([BM, BK], op) + (bias * LOG2_E)[None, :], op)
                if WINDOW:
                    x = tl.where(seen(j, k[None, :], i[:, None], windows), x, -float("inf"))
                m, total, u = softmax_tile(x, m, total, u, values, op)
            else:
                x = product(q, tl.trans(keys), tl.zeros([BM, BK], op), op)
                w = weight(x, p_coefficients, KIND == "excess") * tl.exp(bias)[None, :]
                if WINDOW:
                    w = tl.where(seen(j, k[None, :], i[:, None], windows), w, 0)
                total += tl.sum(w, 1)
                u = product(w.to(values.dtype), values, u, op)
        if KIND == "softmax":
            acc *= tl.exp2(before - tl.where(m == -float("inf"), 0, m))[:, None]
        acc += u * load_row(p_value1, j, live1, strides[3][2], E, EP).to(op)[None, :]
    store_rows(p_out, p_lse, head * N + i, i < N, acc, m, total, E, KIND, EP)


# ---- launchers: check, choose a tile, launch; they hold no state


class Blocks(NamedTuple):
    """BM queries by BK keys of DP and EP channels, padded to powers of 2."""

    BM: int
    BK: int
    DP: int
    EP: int
    num_warps: int


# bytes of an element -> (channels, queries, keys, warps): no register spills on sm_80 and sm_90. Products of matrix units that follow one
# another are split between warps along the longer side of the first, which has 16 rows or 8 columns for each, or warps would repeat work
FORWARD_TILES = {
    2: ((64, 128, 32, 8), (128, 32, 64, 8)),
    4: ((64, 32, 32, 4), (128, 32, 16, 4)),
    8: ((64, 32, 32, 8),),
}
UNLIMITED = 2**30  # a window beyond every key; it and an index stay below 2^31


def check_pairs(
    op: str, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], biases: Sequence[Tensor | None], window: list[int]
) -> None:
    check(query.dim() == 4, op, f"query must have shape (B, H, N, D), got {query.dim()} dimensions")
    check(query.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16), op, "query must be a floating dtype")
    batch, heads, _, dim = query.shape
    for t, (key, value, bias) in enumerate(zip(keys, values, biases, strict=True), 1):
        shape = (batch, *keys[0].shape[1:2], *key.shape[2:3])
        check(key.shape == (*shape, dim), op, f"key{t} must have shape (B, G, N{t}, D)")
        check(value.shape == (*shape, *values[0].shape[3:]), op, f"value{t} must have shape (B, G, N{t}, E)")
        check(bias is None or bias.shape == shape, op, f"bias{t} must have shape (B, G, N{t})")
        check(key.dtype == value.dtype == query.dtype, op, f"key{t} and value{t} must have the dtype of query")
    groups, channels, most = keys[0].shape[1], max(dim, values[0].shape[3]), FORWARD_TILES[query.element_size()][-1][0]
    check(groups > 0 and heads % groups == 0, op, f"the heads of key1 must divide those of query, got {groups} and {heads}")
    check(channels <= most, op, f"on CUDA there may be at most {most} channels of {query.dtype}, got {channels}")
    check(len(window) == 4, op, "window must have four elements: left and right of both key axes")


def choose_blocks(tiles: dict[int, Any], query: Tensor, value: Tensor) -> Blocks:
    dp, ep = (max(triton.next_power_of_2(t.shape[3]), 16) for t in (query, value))
    bm, bk, warps = next(tile for limit, *tile in tiles[query.element_size()] if max(dp, ep) <= limit)
    return Blocks(bm, bk, dp, ep, warps)


def bounds(window: list[int]) -> tuple[int, ...]:
    return tuple(UNLIMITED if side < 0 else min(side, UNLIMITED) for side in window)


def weight_table(coefficients: Sequence[float]) -> list[float]:
    """What ``weight`` reads: the polynomial, then e^x minus it."""
    padded = [*coefficients, *[0.0] * (SERIES.value + 1 - len(coefficients))]
    return padded[: DEGREE.value + 1] + [1 / math.factorial(m) - c for m, c in enumerate(padded)]


def check_coefficients(op: str, coefficients: list[float]) -> None:
    most = DEGREE.value
    check(len(coefficients) <= most + 1, op, f"on CUDA a polynomial has at most degree {most}, got {len(coefficients) - 1}")


def wide_tensors(*tensors: Tensor) -> list[Tensor]:
    """Weights and their gradients exceed the range of float16, which is therefore computed as float32."""
    return [t.float() if t.dtype == torch.float16 else t for t in tensors]


def forward(
    tensors: Sequence[Tensor], biases: Sequence[Tensor | None], scale: float, window: list[int], kind: str, table: Tensor | None,
    out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    tensors = [dense(t) for t in tensors]
    biases = [None if b is None else b.contiguous() for b in biases]
    query, key1, key2, value1, _ = tensors
    blocks = choose_blocks(FORWARD_TILES, query, value1)
    batch, heads, queries, dim = query.shape
    tiles = triton.cdiv(queries, blocks.BM)
    sizes = (heads, key1.shape[1], queries, key1.shape[2], key2.shape[2], dim, value1.shape[3], tiles)
    strides = tuple(t.stride()[:3] for t in tensors)
    arguments = (*tensors, *biases, table, out, lse, sizes, strides, bounds(window), *float_pair(scale))
    constants = {"KIND": kind, "WINDOW": max(window) >= 0, **blocks._asdict()}
    launch(trilinear_fwd_kernel, batch * heads * tiles, query, arguments, **constants)


def trilinear_softmax(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, scale: float,
    window: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_pairs("trilinear_softmax", query, (key1, key2), (value1, value2), (bias1, bias2), window)
    out = torch.empty([*query.shape[:3], value1.shape[3]], dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:3], dtype=statistics_dtype(query), device=query.device)
    forward((query, key1, key2, value1, value2), (bias1, bias2), scale, window, "softmax", None, out, lse)
    return out, lse


def trilinear_sums(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, scale: float,
    window: list[int], coefficients: list[float], excess: bool,
) -> Tensor:  # fmt: skip
    op = "trilinear_sums"
    check_pairs(op, query, (key1, key2), (value1, value2), (bias1, bias2), window)
    check_coefficients(op, coefficients)
    tensors = wide_tensors(query, key1, key2, value1, value2)
    sums = torch.empty([*query.shape[:3], value1.shape[3] + 1], dtype=statistics_dtype(query), device=query.device)
    table = torch.tensor(weight_table(coefficients), dtype=sums.dtype).to(query.device, non_blocking=True)
    forward(tensors, (bias1, bias2), scale, window, "excess" if excess else "polynomial", table, sums, sums)
    return sums
