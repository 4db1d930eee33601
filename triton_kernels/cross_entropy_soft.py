"""soft_logit_stats, Triton.   c_j = w_j (keep t_j + uniform),  keep = 1 - label_smoothing,  uniform = label_smoothing / V
                              lse = log sum_j e^{z_j},  mass = sum_j c_j,  xent = sum_j c_j (lse - z_j),  z = map(input)
                              d_input = map' ((d_xent mass + d_lse) p_j - d_xent c_j),   d_target_j = -d_xent keep w_j log p_j
Shapes: input [N, V] or [N, V, P] and target of the same shape, any strides and floating dtypes each; weight [V]; statistics row-major.
Algorithm: one online pass (Milakov and Gimelshein 2018); each lane of a block of classes has its own maximum, sum, mass and deviation
    sum_j c_j (maximum - z_j), whose terms have one sign, so that a common offset never enters.
Cost: reads 2 N V forward, reads 2 N V and writes N V (2 N V with d_target) backward; N V exponentials each; no [N, V] temporary.
Numerics: accumulates in the dtype of the statistics; NaN, +inf and an all -inf row give NaN in that row only; -inf under c_j = 0 gives
    NaN, as in torch; rows with zero upstream are not read and give 0; run_to_run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import choose_tile, float_pair, launch, layout_rows, lowest, row_range
from .cross_entropy import check, check_logits, map_arguments, merge_lanes, online_add, row_statistics, row_values, statistics_dtype


@triton.jit
def coefficients(p_t_row, p_weight, o_v, stride_tv, mask, keep, uniform, V, op: tl.constexpr):
    """c [BN, BV] and the class weights [1, BV] of classes ``o_v`` [1, BV], both 0 where masked."""
    t = tl.load(p_t_row[:, None] + o_v * stride_tv, mask=mask, other=0).to(op)
    w = tl.load(p_weight + o_v, mask=o_v < V, other=0) if p_weight is not None else tl.where(o_v < V, 1.0, 0.0).to(op)
    return tl.where(mask, w * (keep * t + uniform), 0), w


@triton.jit
def soft_logit_stats_fwd_kernel(
    p_input, p_target, p_weight, p_xent, p_lse, p_residual, p_mass, V, lanes, tiles, stride_io, stride_iv, stride_il,
    stride_to, stride_tv, stride_tl, keep_hi, keep_lo, uniform_hi, uniform_lo, param_hi, param_lo, second_hi, second_lo,
    MAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    op = p_xent.dtype.element_ty
    infinity = float("inf")
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    second = tl.cast(second_hi, op) + tl.cast(second_lo, op)
    keep = tl.cast(keep_hi, op) + tl.cast(keep_lo, op)
    uniform = tl.cast(uniform_hi, op) + tl.cast(uniform_lo, op)
    i_o, i_l, m_n = row_range(tl.program_id(0), tiles, lanes, BN)
    i_n = i_o * lanes + i_l  # [BN]
    p_row = p_input + i_o * stride_io + i_l * stride_il  # [BN]
    p_t_row = p_target + i_o * stride_to + i_l * stride_tl  # [BN]
    top = tl.full([BN, BV], lowest(op), op)
    total = tl.zeros([BN, BV], op)
    mass = tl.zeros([BN, BV], op)
    deviation = tl.zeros([BN, BV], op)
    for i_v in range(0, V, BV):
        o_v = (i_v + tl.arange(0, BV)).to(tl.int64)[None, :]  # [1, BV]
        m = m_n[:, None] & (o_v < V)  # [BN, BV]
        z, _slope = MAP(tl.load(p_row[:, None] + o_v * stride_iv, mask=m, other=0).to(op), param, second)
        c, _ = coefficients(p_t_row, p_weight, o_v, stride_tv, m, keep, uniform, V, op)
        before = top
        top, total = online_add(tl.where(m, z, -infinity), top, total)
        # an empty lane rises from `lowest`, where 0 times the distance may be 0 times infinity
        deviation += tl.where(mass != 0, mass * (top - before), 0) + tl.where(m, c * (top - z), 0)
        mass += c
    highest, sum_exp = merge_lanes(top, total)
    deviation += tl.where(mass != 0, mass * (highest[:, None] - top), 0)
    # lse of all classes is the deficit form against an absent target at -inf
    _, lse, lost = row_statistics(tl.full([BN], -infinity, op), highest, sum_exp)
    row_mass = tl.sum(mass, 1)
    xent = tl.where(lse == lse, row_mass * tl.log(sum_exp) + tl.sum(deviation, 1), lse)
    tl.store(p_xent + i_n, xent, mask=m_n)
    tl.store(p_lse + i_n, lse, mask=m_n)
    tl.store(p_residual + i_n, lost, mask=m_n)
    tl.store(p_mass + i_n, row_mass, mask=m_n)


@triton.jit
def soft_logit_stats_bwd_kernel(
    p_d_xent, p_d_lse, p_input, p_target, p_weight, p_lse, p_residual, p_mass, p_d_input, p_d_target, V, lanes, tiles, chunks,
    stride_io, stride_iv, stride_il, stride_to, stride_tv, stride_tl, stride_do, stride_dv, stride_dl, stride_uo, stride_uv, stride_ul,
    keep_hi, keep_lo, uniform_hi, uniform_lo, param_hi, param_lo, second_hi, second_lo,
    MAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    op = p_lse.dtype.element_ty
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    second = tl.cast(second_hi, op) + tl.cast(second_lo, op)
    keep = tl.cast(keep_hi, op) + tl.cast(keep_lo, op)
    uniform = tl.cast(uniform_hi, op) + tl.cast(uniform_lo, op)
    i_o, i_l, m_n = row_range(tl.program_id(0) // chunks, tiles, lanes, BN)
    begin = (tl.program_id(0) % chunks).to(tl.int64) * CHUNK
    i_n = i_o * lanes + i_l  # [BN]
    d_xent = tl.load(p_d_xent + i_n, mask=m_n, other=0)
    d_lse = tl.load(p_d_lse + i_n, mask=m_n, other=0)
    live = m_n & ((d_xent != 0) | (d_lse != 0))
    lse = tl.load(p_lse + i_n, mask=m_n, other=0)
    lost = tl.load(p_residual + i_n, mask=m_n, other=0)
    rise = d_xent * tl.load(p_mass + i_n, mask=m_n, other=0) + d_lse
    p_row = p_input + i_o * stride_io + i_l * stride_il  # [BN]
    p_t_row = p_target + i_o * stride_to + i_l * stride_tl  # [BN]
    p_d_row = p_d_input + i_o * stride_do + i_l * stride_dl  # [BN]
    for i_v in range(begin.to(tl.int32), tl.minimum(begin + CHUNK, V).to(tl.int32), BV):
        o_v = (i_v + tl.arange(0, BV)).to(tl.int64)[None, :]  # [1, BV]
        m_read = live[:, None] & (o_v < V)  # [BN, BV]
        m_write = m_n[:, None] & (o_v < V)
        z, slope = MAP(tl.load(p_row[:, None] + o_v * stride_iv, mask=m_read, other=0).to(op), param, second)
        c, w = coefficients(p_t_row, p_weight, o_v, stride_tv, m_read, keep, uniform, V, op)
        log_p = (z - lse[:, None]) - lost[:, None]
        d = tl.where(m_read, slope * (rise[:, None] * tl.exp(log_p) - d_xent[:, None] * c), 0)
        tl.store(p_d_row[:, None] + o_v * stride_dv, d.to(p_d_input.dtype.element_ty), mask=m_write)
        if p_d_target is not None:
            u = tl.where(m_read, -(keep * d_xent)[:, None] * w * log_p, 0)
            p_u_row = p_d_target + i_o * stride_uo + i_l * stride_ul  # [BN]
            tl.store(p_u_row[:, None] + o_v * stride_uv, u.to(p_d_target.dtype.element_ty), mask=m_write)


def smoothing_arguments(label_smoothing: float, num_classes: int) -> tuple[float, ...]:
    return *float_pair(1 - label_smoothing), *float_pair(label_smoothing / max(num_classes, 1))


def check_probabilities(op: str, input: Tensor, target: Tensor) -> None:
    check(target.is_floating_point() and target.shape == input.shape, op, "target must be floating, with the shape of input")


def soft_logit_stats(
    input: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, logit_map: str, map_params: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "soft_logit_stats"
    num_classes = check_logits(op, input, weight, logit_map, map_params)
    check_probabilities(op, input, target)
    shape, dtype = [input.shape[0], *input.shape[2:]], statistics_dtype(input)
    xent, lse, residual, mass = (torch.empty(shape, dtype=dtype, device=input.device) for _ in range(4))
    rows = layout_rows(input, target)
    tile, tiles, _ = choose_tile(rows, num_classes, input.dtype)
    function, *params = map_arguments(logit_map, map_params)
    arguments = (
        input, target, weight, xent, lse, residual, mass, num_classes, rows.lanes, tiles, *rows.strides[0], *rows.strides[1],
        *smoothing_arguments(label_smoothing, num_classes), *params,
    )  # fmt: skip
    constants = {"MAP": function, "BN": tile.BN, "BV": tile.BV}
    launch(soft_logit_stats_fwd_kernel, rows.outer * tiles, input, arguments, tile.num_warps, **constants)
    return xent, lse, residual, mass


def soft_logit_stats_backward(
    d_xent: Tensor, d_lse: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, lse_residual: Tensor, mass: Tensor,
    label_smoothing: float, logit_map: str, map_params: list[float], target_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    op = "soft_logit_stats_backward"
    num_classes = check_logits(op, input, weight, logit_map, map_params)
    check_probabilities(op, input, target)
    d_xent, d_lse, lse, residual, mass = row_values(op, input, d_xent, d_lse, lse, lse_residual, mass)
    d_input = torch.empty_like(input)
    d_target = torch.empty_like(target) if target_gradient else target.new_empty([0])
    rows = layout_rows(input, target, d_input, d_target if target_gradient else d_input)
    tile, tiles, chunks = choose_tile(rows, num_classes, input.dtype)
    function, *params = map_arguments(logit_map, map_params)
    arguments: tuple[Any, ...] = (
        d_xent, d_lse, input, target, weight, lse, residual, mass, d_input, d_target if target_gradient else None,
        num_classes, rows.lanes, tiles, chunks, *(stride for strides in rows.strides for stride in strides),
        *smoothing_arguments(label_smoothing, num_classes), *params,
    )  # fmt: skip
    constants = {"MAP": function, "BN": tile.BN, "BV": tile.BV, "CHUNK": tile.CHUNK}
    launch(soft_logit_stats_bwd_kernel, rows.outer * tiles * chunks, input, arguments, tile.num_warps, **constants)
    return d_input, d_target
