"""logit_sum, Triton.   total = sum_{j != y} r(C_j) C_j,   r(C) = sigma(-k (acos C - b));   d_input_j = d_total r(C_j), 0 at y
Shapes: input [N, V] any strides, target [N] int64; total [N] float32 (float64 for float64).
Algorithm: a program owns BN rows and walks their classes (forward) or CHUNK of them (backward).
Cost: reads N V forward, reads and writes N V backward; one exponential and one root each; no [N, V] temporary.
Numerics: accumulates in the dtype of the total; |C| > 1 counts as 1 in the angle; NaN stays in its row; ignored rows are not read and
    give 0; run_to_run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import Rows, Tile, choose_tile, float_pair, launch, layout_rows, row_range
from .cross_entropy import check, statistics_dtype


@triton.jit
def sin_cos(x):
    """Sine and cosine of 0 <= x <= pi / 2 in float64, by their series: tl.sin keeps a table for huge arguments on the stack."""
    s = x * x
    sine = tl.full(x.shape, 1, x.dtype)
    cosine = tl.full(x.shape, 1, x.dtype)
    for k in tl.static_range(10, 0, -1):
        sine = 1 - sine * s / ((2 * k) * (2 * k + 1))
        cosine = 1 - cosine * s / ((2 * k - 1) * (2 * k))
    return x * sine, cosine


@triton.jit
def acos(x):
    """Arc cosine of |x| <= 1, absolute error 5e-8 in float32 (Abramowitz and Stegun 1964, 4.4.46); in float64 two Newton steps on cos."""
    a = tl.minimum(tl.abs(x), 1.0)
    a = tl.where(x == x, a, x)  # NaN stays
    p = -0.0012624911
    p = p * a + 0.0066700901
    p = p * a - 0.0170881256
    p = p * a + 0.0308918810
    p = p * a - 0.0501743046
    p = p * a + 0.0889789874
    p = p * a - 0.2145988016
    p = p * a + 1.5707963050
    angle = tl.sqrt(1 - a) * p
    if x.dtype == tl.float64:
        for _ in tl.static_range(2):
            sine, cosine = sin_cos(angle)
            angle += tl.where(sine > 1e-9, (cosine - a) / tl.where(sine > 1e-9, sine, 1), 0)
    return tl.where(x < 0, 3.141592653589793 - angle, angle)


@triton.jit
def constraint(c, k, b):
    t = k * (acos(c) - b)
    e = tl.exp(-tl.abs(t))
    return tl.where(t > 0, e, 1) / (1 + e)


@triton.jit
def logit_sum_fwd_kernel(
    p_input, p_target, p_total, V, lanes, tiles, stride_io, stride_iv, stride_il, first_class, ignore_index,
    k_hi, k_lo, b_hi, b_lo, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    op = p_total.dtype.element_ty
    k, b = tl.cast(k_hi, op) + tl.cast(k_lo, op), tl.cast(b_hi, op) + tl.cast(b_lo, op)
    i_o, i_l, m_n = row_range(tl.program_id(0), tiles, lanes, BN)
    i_n = i_o * lanes + i_l  # [BN]
    label = tl.load(p_target + i_n, mask=m_n, other=ignore_index)  # [BN]
    live = m_n & (label != ignore_index)
    y = label - first_class
    p_row = p_input + i_o * stride_io + i_l * stride_il  # [BN]
    total = tl.zeros([BN, BV], op)
    for i_v in range(0, tl.where(tl.max(live.to(tl.int32), 0) > 0, V, 0), BV):
        j = i_v + tl.arange(0, BV)  # [BV]
        o_v = j.to(tl.int64)[None, :]
        m_read = live[:, None] & (j < V)[None, :]  # without the target, which would cut the loads up
        c = tl.load(p_row[:, None] + o_v * stride_iv, mask=m_read, other=0).to(op)
        m = m_read & (o_v != y[:, None])
        total += tl.where(m, constraint(c, k, b) * c, 0)
    tl.store(p_total + i_n, tl.where(live, tl.sum(total, 1), 0), mask=m_n)


@triton.jit
def logit_sum_bwd_kernel(
    p_d_total, p_input, p_target, p_d_input, V, lanes, tiles, chunks, stride_io, stride_iv, stride_il, stride_do, stride_dv, stride_dl,
    first_class, ignore_index, k_hi, k_lo, b_hi, b_lo, BN: tl.constexpr, BV: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    op = p_d_total.dtype.element_ty
    k, b = tl.cast(k_hi, op) + tl.cast(k_lo, op), tl.cast(b_hi, op) + tl.cast(b_lo, op)
    i_o, i_l, m_n = row_range(tl.program_id(0) // chunks, tiles, lanes, BN)
    begin = (tl.program_id(0) % chunks).to(tl.int64) * CHUNK
    i_n = i_o * lanes + i_l  # [BN]
    label = tl.load(p_target + i_n, mask=m_n, other=ignore_index)
    d_total = tl.load(p_d_total + i_n, mask=m_n, other=0)
    live = m_n & (label != ignore_index) & (d_total != 0)
    y = label - first_class
    p_row = p_input + i_o * stride_io + i_l * stride_il  # [BN]
    p_d_row = p_d_input + i_o * stride_do + i_l * stride_dl  # [BN]
    for i_v in range(begin.to(tl.int32), tl.minimum(begin + CHUNK, V).to(tl.int32), BV):
        j = i_v + tl.arange(0, BV)  # [BV]
        m_v, o_v = (j < V)[None, :], j.to(tl.int64)[None, :]
        c = tl.load(p_row[:, None] + o_v * stride_iv, mask=live[:, None] & m_v, other=0).to(op)  # [BN, BV]
        m = live[:, None] & m_v & (o_v != y[:, None])
        d = tl.where(m, d_total[:, None] * constraint(c, k, b), 0)
        tl.store(p_d_row[:, None] + o_v * stride_dv, d.to(p_d_input.dtype.element_ty), mask=m_n[:, None] & m_v)


def narrow_tile(rows: Rows, input: Tensor) -> tuple[Tile, int, int]:
    """choose_tile, with half the rows in float64: two series a cosine need the registers."""
    tile, tiles, chunks = choose_tile(rows, input.shape[1], input.dtype)
    if input.dtype == torch.float64 and tile.BN > 1:
        tile = tile._replace(BN=tile.BN // 2)
        tiles = triton.cdiv(rows.lanes, tile.BN)
    return tile, tiles, chunks


def checked(op: str, input: Tensor, target: Tensor, logit_map: str, map_params: list[float]) -> tuple[Tensor, tuple[float, ...]]:
    """(labels, k and b as float pairs)."""
    check(input.dim() == 2, op, f"input must have shape (N, V), got {input.dim()} dimensions")
    check(target.dtype == torch.int64, op, "target must be int64")
    check(target.numel() == len(input), op, f"target must have one label per row, {len(input)}, got {target.numel()}")
    check(logit_map == "sface", op, f"logit_map must be sface, got {logit_map}")
    check(len(map_params) == 2, op, f"map_params has the wrong length for logit_map={logit_map}")
    return target.contiguous(), (*float_pair(map_params[0]), *float_pair(map_params[1]))


def logit_sum(
    input: Tensor, target: Tensor, ignore_index: int, logit_map: str, map_params: list[float], first_class: int = 0
) -> Tensor:  # fmt: skip
    labels, params = checked("logit_sum", input, target, logit_map, map_params)
    total = torch.empty(len(input), dtype=statistics_dtype(input), device=input.device)
    rows = layout_rows(input)
    tile, tiles, _ = narrow_tile(rows, input)
    arguments = (input, labels, total, input.shape[1], rows.lanes, tiles, *rows.strides[0], first_class, ignore_index, *params)
    launch(logit_sum_fwd_kernel, rows.outer * tiles, input, arguments, tile.num_warps, BN=tile.BN, BV=tile.BV)
    return total


def write_gradient(
    op: str, d_input: Tensor, d_total: Tensor, input: Tensor, target: Tensor, ignore_index: int, logit_map: str, map_params: list[float],
    first_class: int = 0,
) -> None:  # fmt: skip
    """``d_input`` may be ``input``: a program reads an element before it writes it, and no other program touches it."""
    labels, params = checked(op, input, target, logit_map, map_params)
    fits = d_total.numel() == len(input) and d_total.dtype == statistics_dtype(input)
    check(fits, op, "d_total must have one value per row in the dtype of the total")
    rows = layout_rows(input, d_input)
    tile, tiles, chunks = narrow_tile(rows, input)
    arguments = (
        d_total.contiguous(), input, labels, d_input, input.shape[1], rows.lanes, tiles, chunks, *rows.strides[0], *rows.strides[1],
        first_class, ignore_index, *params,
    )  # fmt: skip
    constants = {"BN": tile.BN, "BV": tile.BV, "CHUNK": tile.CHUNK}
    launch(logit_sum_bwd_kernel, rows.outer * tiles * chunks, input, arguments, tile.num_warps, **constants)


def logit_sum_backward(d_total: Tensor, input: Tensor, *rest: Any) -> Tensor:
    d_input = torch.empty_like(input)
    write_gradient("logit_sum_backward", d_input, d_total, input, *rest)
    return d_input


def logit_sum_backward_(d_total: Tensor, input: Tensor, *rest: Any) -> None:
    write_gradient("logit_sum_backward_", input, d_total, input, *rest)
