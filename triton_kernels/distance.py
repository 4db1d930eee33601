"""distance_tile, Triton.   out[i, j] = dist(input[i], other[j]);   backward adds sum_j grad[i, j] d dist / d input[i] to d_input[i], and
                         for d_other the same with the two exchanged. pair_distances: the same per batch, with results of its own.
Shapes: input [R, D], other [C, D], out and grad [R, C], accumulators like their vectors; rows may have any stride, their elements not.
Algorithm: a program owns a tile of pairs and walks the coordinates, or a tile [vectors, coordinates] of a gradient and walks the vectors of
    the other side. Where a slope depends on the pair, a pass over the pairs first writes the upstream times scale(pair).
Cost: R C D terms forward; R C D slopes for each gradient, and where a slope depends on the pair one more R C D terms and one or two
    temporaries [R, C] for both (Manhattan and Canberra: none).
Numerics: sums of at most 32 terms are summed; d|x|/dx = 0 at 0; a pair with zero upstream adds nothing, whatever its vectors hold; NaN
    stays in its row and column; run_to_run: one program owns a result and adds in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import dense, launch
from .cross_entropy import check
from .distance_metrics import METRICS, PAIRLESS, has_moments, has_top, kernel_metric, moment, scale, sign, slope, term, value

TERMS = tl.constexpr(32)  # of a partial sum: sums of sums keep their digits
NUM_WARPS = 4


@triton.jit
def tile_of(tiles_i, tiles_j, BI: tl.constexpr, BJ: tl.constexpr):
    """Batch, and indices [BI] and [BJ] of this program's tile, in int64."""
    i_tile = tl.program_id(0) // tiles_j
    i = (i_tile % tiles_i).to(tl.int64) * BI + tl.arange(0, BI)
    j = (tl.program_id(0) % tiles_j).to(tl.int64) * BJ + tl.arange(0, BJ)
    return (i_tile // tiles_i).to(tl.int64), i, j


@triton.jit
def largest(p_x, p_w, m_i, m_j, D, BI: tl.constexpr, BJ: tl.constexpr):
    """max |x - w| [BI, BJ] and its first coordinate; NaN is the largest of all."""
    top = tl.full([BI, BJ], -1, p_x.dtype.element_ty)
    place = tl.zeros([BI, BJ], tl.int32)
    for k in range(D):
        a = tl.abs(tl.load(p_x + k, mask=m_i, other=0)[:, None] - tl.load(p_w + k, mask=m_j, other=0)[None, :])
        up = (a > top) | ((a != a) & (top == top))
        top = tl.where(up, a, top)
        place = tl.where(up, k, place)
    return tl.where(top < 0, 0, top), place


@triton.jit
def distance_fwd_kernel(
    p_input, p_other, p_grad, p_out, p_extra, R, C, D, tiles_r, tiles_c, stride_xb, stride_x, stride_wb, stride_w, stride_gb, stride_g,
    stride_yb, stride_y, param_hi, param_lo, METRIC: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The distances; with ``p_grad`` the coefficients of the slopes, and beside them what the slopes read of a pair."""
    op = p_input.dtype.element_ty
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    i_b, i, j = tile_of(tiles_r, tiles_c, BR, BC)
    m_i, m_j = i < R, j < C
    p_x = p_input + i_b * stride_xb + i * stride_x  # [BR]
    p_w = p_other + i_b * stride_wb + j * stride_w  # [BC]
    total, top = tl.zeros([BR, BC], op), tl.zeros([BR, BC], op)
    moments = tl.zeros([BR, BC], op)
    if has_top(METRIC):
        top, place = largest(p_x, p_w, m_i, m_j, D, BR, BC)
    if METRIC != "chebyshev":
        m_x, m_w = tl.zeros([BR], tl.float64), tl.zeros([BC], tl.float64)  # their sum may cancel
        for begin in range(0, D, TERMS):
            part = tl.zeros([BR, BC], op)
            for k in range(begin, tl.minimum(begin + TERMS, D)):
                x, w = tl.load(p_x + k, mask=m_i, other=0), tl.load(p_w + k, mask=m_j, other=0)
                part += term(x[:, None], w[None, :], top, param, METRIC)
                if has_moments(METRIC):
                    m_x += moment(x, METRIC).to(tl.float64)
                    m_w += moment(w, METRIC).to(tl.float64)
            total += part
        moments = (m_x[:, None] + m_w[None, :]).to(op)
    mask = m_i[:, None] & m_j[None, :]
    o_y = i_b * stride_yb + i[:, None] * stride_y + j[None, :]  # [BR, BC]
    if p_grad is None:
        tl.store(p_out + o_y, value(total, top, moments, param, METRIC), mask=mask)
    else:
        g = tl.load(p_grad + i_b * stride_gb + i[:, None] * stride_g + j[None, :], mask=mask, other=0)
        factor = scale(total, top, moments, param, METRIC)
        tl.store(p_out + o_y, tl.where(g != 0, g * factor, 0), mask=mask)
        if METRIC == "chebyshev":
            tl.store(p_extra + o_y, place, mask=mask)
        elif METRIC == "smooth_chebyshev":
            tl.store(p_extra + o_y, top, mask=mask)
        elif has_moments(METRIC):
            tl.store(p_extra + o_y, tl.where(g != 0, -g * total * sign(moments) * factor * factor, 0), mask=mask)


@triton.jit
def distance_bwd_kernel(
    p_d, p_a, p_b, p_coefficient, p_extra, A, B, D, tiles_a, tiles_k, stride_db, stride_d, stride_ab, stride_a, stride_bb, stride_b,
    stride_cb, stride_ca, stride_c, param_hi, param_lo, METRIC: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """d[a, k] += sum_b coefficient[a, b] slope(a_k, b_k)."""
    op = p_a.dtype.element_ty
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    i_b, i, k = tile_of(tiles_a, tiles_k, BA, BK)
    m_i, m_k = i < A, k < D
    mask = m_i[:, None] & m_k[None, :]
    a = tl.load(p_a + i_b * stride_ab + i[:, None] * stride_a + k[None, :], mask=mask, other=0)  # [BA, BK]
    o_c = i_b * stride_cb + i * stride_ca  # [BA]
    p_w = p_b + i_b * stride_bb + k  # [BK]
    total = tl.zeros([BA, BK], op)
    by_moment = tl.zeros([BA], op)
    for begin in range(0, B, TERMS):
        part = tl.zeros([BA, BK], op)
        for _ in range(begin, tl.minimum(begin + TERMS, B)):
            c = tl.load(p_coefficient + o_c, mask=m_i, other=0)[:, None]
            w = tl.load(p_w, mask=m_k, other=0)[None, :]
            top = 0
            if METRIC == "smooth_chebyshev":
                top = tl.load(p_extra + o_c, mask=m_i, other=0)[:, None]
            s = c * slope(a, w, top, param, METRIC)
            if METRIC == "chebyshev":
                s = tl.where(tl.load(p_extra + o_c, mask=m_i, other=-1)[:, None] == k[None, :], s, 0)
            if has_moments(METRIC):
                by_moment += tl.load(p_extra + o_c, mask=m_i, other=0)
            part += tl.where(c != 0, s, 0)
            o_c += stride_c
            p_w += stride_b
        total += part
    if METRIC == "bray_curtis_abs":
        total += tl.where(by_moment != 0, by_moment, 0)[:, None] * sign(a)
    elif METRIC == "bray_curtis":
        total += by_moment[:, None]
    p_out = p_d + i_b * stride_db + i[:, None] * stride_d + k[None, :]
    tl.store(p_out, tl.load(p_out, mask=mask, other=0) + total, mask=mask)


# ---- launchers: they hold no state


def check_like(op: str, argument: str, tensor: Tensor, input: Tensor, rows: int, columns: int) -> None:
    check(tensor.dtype == input.dtype, op, f"{argument} must have the dtype of input")
    shape = "B, " if input.dim() == 3 else ""
    check(tensor.shape == (*input.shape[:-2], rows, columns), op, f"{argument} must have shape ({shape}{rows}, {columns})")
    check(columns < 2 or tensor.stride(-1) == 1, op, f"{argument} must be contiguous along its last dimension")


def check_vectors(op: str, input: Tensor, other: Tensor, dims: int, metric: str, metric_params: list[float]) -> None:
    shape = "(B, R, D)" if dims == 3 else "(R, D)"
    check(input.dim() == dims, op, f"input must have shape {shape}, got {input.dim()} dimensions")
    check(other.dim() == dims, op, f"other must have {dims} dimensions, got {other.dim()}")
    check(input.dtype in (torch.float32, torch.float64), op, "input must be float32 or float64")
    check(input.shape[-1] < 2**31 - 2**16, op, "vectors must have fewer than 2^31 elements")
    check_like(op, "input", input, input, *input.shape[-2:])
    check_like(op, "other", other, input, other.shape[-2], input.shape[-1])
    check(metric in METRICS, op, f"metric must be {', '.join([*METRICS][:-1])} or {[*METRICS][-1]}, got {metric}")
    check(len(metric_params) == METRICS[metric], op, f"metric_params has the wrong length for metric={metric}")


def batch_strides(*tensors: Tensor) -> Iterable[int]:
    """(stride of the batch, stride of the rows) of each."""
    for tensor in tensors:
        yield from (tensor.stride(0) if tensor.dim() == 3 else 0, tensor.stride(-2))


def blocks(input: Tensor, rows: int, columns: int) -> tuple[int, int, int, int, int]:
    """Tile [BI, BJ] for the dtype, tiles along both, programs."""
    bi, bj = 32, 32 if input.dtype == torch.float32 else 16  # the largest at which no metric spills, for sm_80 and sm_90
    ti, tj = triton.cdiv(rows, bi), triton.cdiv(columns, bj)
    return bi, bj, ti, tj, ti * tj * (input.shape[0] if input.dim() == 3 else 1)


def forward(
    input: Tensor, other: Tensor, metric: str, metric_params: list[float], out: Tensor, grad: Tensor | None, extra: Tensor | None
) -> None:
    name, *param = kernel_metric(metric, metric_params)
    rows, classes, dim = input.shape[-2], other.shape[-2], input.shape[-1]
    br, bc, tr, tc, programs = blocks(input, rows, classes)
    strides = batch_strides(input, other, out if grad is None else grad, out)
    arguments = (input, other, grad, out, extra, rows, classes, dim, tr, tc, *strides, *param)
    launch(distance_fwd_kernel, programs, input, arguments, NUM_WARPS, METRIC=name, BR=br, BC=bc)


def backward(
    d_input: Tensor, d_other: Tensor, grad: Tensor, input: Tensor, other: Tensor, metric: str, metric_params: list[float],
    wants_input: bool, wants_other: bool, op: str,
) -> None:  # fmt: skip
    rows, classes, dim = input.shape[-2], other.shape[-2], input.shape[-1]
    check_like(op, "grad", grad, input, rows, classes)
    name, *param = kernel_metric(metric, metric_params)
    coefficient, extra = grad, None
    if name not in PAIRLESS:
        coefficient = torch.empty_like(grad, memory_format=torch.contiguous_format)
        if not name.startswith("minkowski"):
            extra = torch.empty_like(coefficient, dtype=torch.int32 if name == "chebyshev" else input.dtype)
        forward(input, other, metric, metric_params, coefficient, grad, extra)
    batch, row = batch_strides(coefficient)
    sides = ((wants_input, "d_input", d_input, input, other, (row, 1)), (wants_other, "d_other", d_other, other, input, (1, row)))
    for wanted, argument, d, a, b, steps in sides:
        if wanted:
            check_like(op, argument, d, input, a.shape[-2], dim)
            ba, bk, ta, tk, programs = blocks(input, a.shape[-2], dim)
            strides = (*batch_strides(d, a, b), batch, *steps)
            arguments = (d, a, b, coefficient, extra, a.shape[-2], b.shape[-2], dim, ta, tk, *strides, *param)
            launch(distance_bwd_kernel, programs, input, arguments, NUM_WARPS, METRIC=name, BA=ba, BK=bk)


def distance_tile(input: Tensor, other: Tensor, metric: str, metric_params: list[float], out: Tensor) -> None:
    op = "distance_tile"
    check_vectors(op, input, other, 2, metric, metric_params)
    check_like(op, "out", out, input, input.shape[0], other.shape[0])
    forward(input, other, metric, metric_params, out, None, None)


def distance_tile_backward(
    d_input: Tensor, d_other: Tensor, grad: Tensor, input: Tensor, other: Tensor, metric: str, metric_params: list[float],
    wants_input: bool, wants_other: bool,
) -> None:  # fmt: skip
    op = "distance_tile_backward"
    check_vectors(op, input, other, 2, metric, metric_params)
    backward(d_input, d_other, grad, input, other, metric, metric_params, wants_input, wants_other, op)


def pair_distances(input: Tensor, other: Tensor, metric: str, metric_params: list[float]) -> Tensor:
    x, w = dense(input), dense(other)
    check_vectors("pair_distances", x, w, 3, metric, metric_params)
    out = torch.empty(x.shape[0], x.shape[1], w.shape[1], dtype=x.dtype, device=x.device)
    forward(x, w, metric, metric_params, out, None, None)
    return out


def pair_distances_backward(
    grad: Tensor, input: Tensor, other: Tensor, metric: str, metric_params: list[float], wants_input: bool, wants_other: bool
) -> tuple[Tensor, Tensor]:
    op = "pair_distances_backward"
    x, w = dense(input), dense(other)
    check_vectors(op, x, w, 3, metric, metric_params)
    d_input, d_other = x.new_zeros(x.shape if wants_input else [0]), w.new_zeros(w.shape if wants_other else [0])
    backward(d_input, d_other, dense(grad), x, w, metric, metric_params, wants_input, wants_other, op)
    return d_input, d_other
