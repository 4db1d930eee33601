"""two_logit_stats, Triton.   q = softmax(target / T),  p = softmax(input / T),  lse = T log sum_j e^{z_j / T},  g = d_divergence / T
    beta = 0: kl = sum_j q_j log(q_j / p_j);   d_input = g (p_j - q_j),   d_target = g q_j (log(q_j / p_j) - kl)
    else, with m = beta q + (1 - beta) p:  beta KL(q || m) + (1 - beta) KL(p || m);
        d_input = g (1 - beta) p_j (log(p_j / m_j) - KL(p || m)),   d_target = g beta q_j (log(q_j / m_j) - KL(q || m))
Shapes: input and target [N, V] or [N, V, P], any strides and floating dtypes each; statistics float32 (float64 for float64), row-major.
Algorithm: one online pass (Milakov and Gimelshein 2018) over both logits, then a pass that adds q_j (e^{u_j} - 1 - u_j), u = log(p / q),
    whose sum is kl because p and q add up to 1, or q_j (y - log(1 + y)), y = m / q - 1 = (1 - beta) (e^u - 1), and the same of p, whose
    sums are KL(q || m) and KL(p || m) for that reason; the backward pass recomputes p and q.
Cost: reads 4 N V forward (the second 2 N V while a row is in L2), reads 2 N V and writes N V (2 N V with d_target) backward; 4 N V and
    2 N V exponentials, with beta 2 N V logarithms in each; no [N, V] temporary.
Numerics: accumulates in the dtype of the statistics. Every term is >= 0 and keeps its relative accuracy: u comes from the exact difference
    of the logits, and e^u - 1 - u and y - log(1 + y) from series near 0. So a divergence has the relative error of its terms, (6 +
    |log p_j|) eps, however near the two softmaxes are, and under any common offset of either; so has kl's gradient for input, and the
    others relative to q_j log(q_j / m_j), from which q_j KL is subtracted. -inf in both logits of a class adds 0, in input alone kl is
    +inf and the mixture's divergence finite; NaN, +inf and a row of -inf give NaN in that row only; rows with zero upstream are not read
    and give 0; run_to_run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import choose_tile, float_pair, launch, layout_rows, lowest, row_range
from .cross_entropy import check, check_logits, merge_lanes, online_add, row_values, statistics_dtype


@triton.jit
def split_sum(a, b):
    """a + b as its rounded value and what rounding lost, 0 where the value is not finite."""
    high = a + b
    part = high - a
    low = (a - (high - part)) + (b - part)
    return high, tl.where(tl.abs(high) < float("inf"), low, 0)


@triton.jit
def exp_excess(u, op: tl.constexpr):
    """e^u - 1 - u for abs(u) <= 1 by its series, with full relative accuracy however small u is."""
    terms: tl.constexpr = 8 if op == tl.float32 else 17
    series = tl.full(u.shape, 1, op)
    for k in tl.static_range(terms):
        series = 1 + series * (u * (1.0 / (terms + 2 - k)))
    return series * u * u * 0.5


@triton.jit
def log1p_excess(y, x, op: tl.constexpr):
    """log(1 + y) and y - log(1 + y) with full relative accuracy however small y is; x = 1 + y > 0. 2 artanh(y / (2 + y)) near 0."""
    terms: tl.constexpr = 7 if op == tl.float32 else 18
    near = (y >= -0.5) & (y < 1)
    s = y / (2 + y)
    tail = tl.full(y.shape, 1.0 / (2 * terms + 1), op)
    for k in tl.static_range(terms - 1):
        tail = tail * (s * s) + 1.0 / (2 * (terms - k) - 1)
    far = tl.log(x)
    log = tl.where(near, 2 * s + 2 * s * (s * s) * tail, far)
    return log, tl.where(near, s * (y - 2 * (s * s) * tail), y - far)


@triton.jit
def compare(x, t, lse_x, lost_x, lse_t, lost_t, shift, shift_lost, rate, op: tl.constexpr):
    """p, q, u = log(p / q), e^u - 1 - u for abs(u) < 1, and p - q of a block [BN, BV]; row values [BN, 1]. The difference of the logits
    is exact."""
    p = tl.exp(((x - lse_x) - lost_x) * rate)
    q = tl.exp(((t - lse_t) - lost_t) * rate)
    gap, low = split_sum(x, -t)
    u = (((gap - shift) + low) - shift_lost) * rate
    series = exp_excess(u, op)
    return p, q, u, series, tl.where(tl.abs(u) < 1, q * (u + series), p - q)


@triton.jit
def kl_term(p, q, u, series):
    """q (e^u - 1 - u)."""
    # q = 0 leaves p, unless q > 0 underflowed next to p = 0, which u = -inf tells
    far = tl.where(u == -float("inf"), float("inf"), tl.where(q == 0, p, (p - q) - q * u))
    return tl.where(tl.abs(u) < 1, q * series, far)


@triton.jit
def mixture_logs(p, q, u, series, share_t, share_x, op: tl.constexpr):
    """For m = share_t q + share_x p: log(m / q), m / q - 1 - log(m / q), and the same of p."""
    near = tl.abs(u) < 1
    ratio = p / q
    inverse = q / p
    growth = u + series  # e^u - 1
    y = share_x * tl.where(near, growth, ratio - 1)
    z = share_t * tl.where(near, -growth * inverse, inverse - 1)
    log_t, excess_t = log1p_excess(y, share_t + share_x * ratio, op)
    log_x, excess_x = log1p_excess(z, share_x + share_t * inverse, op)
    return log_t, excess_t, log_x, excess_x


@triton.jit
def soft_maxima(
    p_row, stride_iv, p_t_row, stride_tv, m_n, V, rate, temperature, op: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr
):  # fmt: skip
    """T log sum e^{z / T} of both logits as origin + rest: the origin is a logit of the row, so that a common offset costs no digits."""
    top_x = tl.full([BN, BV], lowest(op), op)
    top_t = tl.full([BN, BV], lowest(op), op)
    total_x = tl.zeros([BN, BV], op)
    total_t = tl.zeros([BN, BV], op)
    for i_v in range(0, V, BV):
        o_v = (i_v + tl.arange(0, BV)).to(tl.int64)[None, :]  # [1, BV]
        m = m_n[:, None] & (o_v < V)  # [BN, BV]
        x = tl.load(p_row[:, None] + o_v * stride_iv, mask=m, other=-float("inf")).to(op)
        t = tl.load(p_t_row[:, None] + o_v * stride_tv, mask=m, other=-float("inf")).to(op)
        top_x, total_x = online_add(x, top_x, total_x, rate)
        top_t, total_t = online_add(t, top_t, total_t, rate)
    origin_x, sum_x = merge_lanes(top_x, total_x, rate)
    origin_t, sum_t = merge_lanes(top_t, total_t, rate)
    # no finite logit: NaN
    rest_x = tl.where(sum_x > 0, tl.log(sum_x) * temperature, float("nan"))
    rest_t = tl.where(sum_t > 0, tl.log(sum_t) * temperature, float("nan"))
    return origin_x, rest_x, origin_t, rest_t


@triton.jit
def two_logit_stats_fwd_kernel(
    p_input, p_target, p_divergence, p_kl_x, p_lse_x, p_lse_t, p_lost_x, p_lost_t, V, lanes, tiles, stride_io, stride_iv, stride_il,
    stride_to, stride_tv, stride_tl, rate_hi, rate_lo, temperature_hi, temperature_lo,
    share_t_hi, share_t_lo, share_x_hi, share_x_lo, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    op = p_divergence.dtype.element_ty
    rate = tl.cast(rate_hi, op) + tl.cast(rate_lo, op)
    if p_kl_x is not None:
        share_t = tl.cast(share_t_hi, op) + tl.cast(share_t_lo, op)
        share_x = tl.cast(share_x_hi, op) + tl.cast(share_x_lo, op)
    temperature = tl.cast(temperature_hi, op) + tl.cast(temperature_lo, op)
    i_o, i_l, m_n = row_range(tl.program_id(0), tiles, lanes, BN)
    i_n = i_o * lanes + i_l  # [BN]
    p_row = p_input + i_o * stride_io + i_l * stride_il  # [BN]
    p_t_row = p_target + i_o * stride_to + i_l * stride_tl  # [BN]
    origin_x, rest_x, origin_t, rest_t = soft_maxima(p_row, stride_iv, p_t_row, stride_tv, m_n, V, rate, temperature, op, BN, BV)
    lse_x, lost_x = split_sum(origin_x, rest_x)
    lse_t, lost_t = split_sum(origin_t, rest_t)
    tl.store(p_lse_x + i_n, lse_x, mask=m_n)
    tl.store(p_lse_t + i_n, lse_t, mask=m_n)
    tl.store(p_lost_t + i_n, lost_t, mask=m_n)
    origin, origin_lost = split_sum(origin_x, -origin_t)
    shift, shift_lost = split_sum(origin, (rest_x - rest_t) + origin_lost)
    excess_t = tl.zeros([BN, BV], op)
    excess_x = tl.zeros([BN, BV], op)
    difference = tl.zeros([BN, BV], op)
    for i_v in range(0, V, BV):
        o_v = (i_v + tl.arange(0, BV)).to(tl.int64)[None, :]
        m = m_n[:, None] & (o_v < V)
        x = tl.load(p_row[:, None] + o_v * stride_iv, mask=m, other=0).to(op)
        t = tl.load(p_t_row[:, None] + o_v * stride_tv, mask=m, other=0).to(op)
        p, q, u, series, d = compare(
            x, t, lse_x[:, None], lost_x[:, None], lse_t[:, None], lost_t[:, None], shift[:, None], shift_lost[:, None], rate, op
        )
        if p_kl_x is None:
            excess_t += tl.where(m, kl_term(p, q, u, series), 0)
        else:
            _t, e_t, _x, e_x = mixture_logs(p, q, u, series, share_t, share_x, op)
            excess_t += tl.where(m, tl.where(q == 0, share_x * p, q * e_t), 0)  # q = 0 leaves m
            excess_x += tl.where(m, tl.where(p == 0, share_t * q, p * e_x), 0)
        difference += tl.where(m, d, 0)
    # sum_j (p_j - q_j) is the rounding error of the difference of the soft maxima: first order there, second order in a divergence
    error = tl.sum(difference, 1)
    lost_x += error * temperature
    if p_kl_x is None:
        divergence = tl.sum(excess_t, 1) - error * error * 0.5
    else:
        kl_t = tl.sum(excess_t, 1) - share_x * share_x * (error * error * 0.5)
        kl_x = tl.sum(excess_x, 1) - share_t * share_t * (error * error * 0.5)
        tl.store(p_kl_x + i_n, tl.where(kl_x < 0, 0, kl_x), mask=m_n)
        divergence = share_t * kl_t + share_x * kl_x
    tl.store(p_divergence + i_n, tl.where(divergence < 0, 0, divergence), mask=m_n)
    tl.store(p_lost_x + i_n, lost_x, mask=m_n)


@triton.jit
def two_logit_stats_bwd_kernel(
    p_d_divergence, p_input, p_target, p_divergence, p_kl_x, p_lse_x, p_lse_t, p_lost_x, p_lost_t, p_d_input, p_d_target,
    V, lanes, tiles, chunks, stride_io, stride_iv, stride_il, stride_to, stride_tv, stride_tl,
    stride_do, stride_dv, stride_dl, stride_uo, stride_uv, stride_ul,
    rate_hi, rate_lo, share_t_hi, share_t_lo, share_x_hi, share_x_lo, BN: tl.constexpr, BV: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    op = p_divergence.dtype.element_ty
    rate = tl.cast(rate_hi, op) + tl.cast(rate_lo, op)
    i_o, i_l, m_n = row_range(tl.program_id(0) // chunks, tiles, lanes, BN)
    begin = (tl.program_id(0) % chunks).to(tl.int64) * CHUNK
    i_n = i_o * lanes + i_l  # [BN]
    d_divergence = tl.load(p_d_divergence + i_n, mask=m_n, other=0)
    live = m_n & (d_divergence != 0)
    lse_x = tl.load(p_lse_x + i_n, mask=m_n, other=0)[:, None]
    lse_t = tl.load(p_lse_t + i_n, mask=m_n, other=0)[:, None]
    lost_x = tl.load(p_lost_x + i_n, mask=m_n, other=0)[:, None]
    lost_t = tl.load(p_lost_t + i_n, mask=m_n, other=0)[:, None]
    high, high_lost = split_sum(lse_x, -lse_t)
    shift, shift_lost = split_sum(high, (lost_x - lost_t) + high_lost)
    scale = (d_divergence * rate)[:, None]  # [BN, 1]
    if p_kl_x is not None:
        kl_x = tl.load(p_kl_x + i_n, mask=m_n, other=0)[:, None]
        share_t = tl.cast(share_t_hi, op) + tl.cast(share_t_lo, op)
        share_x = tl.cast(share_x_hi, op) + tl.cast(share_x_lo, op)
    p_row = p_input + i_o * stride_io + i_l * stride_il  # [BN]
    p_t_row = p_target + i_o * stride_to + i_l * stride_tl  # [BN]
    for i_v in range(begin.to(tl.int32), tl.minimum(begin + CHUNK, V).to(tl.int32), BV):
        o_v = (i_v + tl.arange(0, BV)).to(tl.int64)[None, :]  # [1, BV]
        m_read = live[:, None] & (o_v < V)  # [BN, BV]
        m_write = m_n[:, None] & (o_v < V)
        x = tl.load(p_row[:, None] + o_v * stride_iv, mask=m_read, other=0).to(op)
        t = tl.load(p_t_row[:, None] + o_v * stride_tv, mask=m_read, other=0).to(op)
        p, q, u, series, d = compare(x, t, lse_x, lost_x, lse_t, lost_t, shift, shift_lost, rate, op)
        if p_kl_x is not None:
            log_t, _t, log_x, _x = mixture_logs(p, q, u, series, share_t, share_x, op)
        if p_d_input is not None:
            if p_kl_x is None:
                d_x = tl.where(m_read, scale * d, 0)
            else:
                d_x = tl.where(m_read & (p != 0), -scale * share_x * (p * (log_x + kl_x)), 0)
            p_d_row = p_d_input + i_o * stride_do + i_l * stride_dl  # [BN]
            tl.store(p_d_row[:, None] + o_v * stride_dv, d_x.to(p_d_input.dtype.element_ty), mask=m_write)
        if p_d_target is not None:
            divergence = tl.load(p_divergence + i_n, mask=m_n, other=0)[:, None]
            if p_kl_x is None:
                d_t = tl.where(m_read & (q != 0), -scale * (q * (u + divergence)), 0)
            else:
                d_t = tl.where(m_read & (q != 0), -scale * (q * (share_t * log_t + (divergence - share_x * kl_x))), 0)
            p_u_row = p_d_target + i_o * stride_uo + i_l * stride_ul  # [BN]
            tl.store(p_u_row[:, None] + o_v * stride_uv, d_t.to(p_d_target.dtype.element_ty), mask=m_write)


def check_two_logits(op: str, input: Tensor, target: Tensor, inv_temperature: float, beta: float) -> int:
    num_classes = check_logits(op, input, None, "identity", [])
    check(target.is_floating_point() and target.shape == input.shape, op, "target must be floating, with the shape of input")
    same = statistics_dtype(target) == statistics_dtype(input)
    check(same, op, "target must be float64 exactly if input is, because both share the dtype of the statistics")
    check(0 < inv_temperature < float("inf"), op, f"inv_temperature must be finite and > 0, got {inv_temperature}")
    check(0 <= beta < 1, op, f"beta must be 0 for KL, or lie between 0 and 1, got {beta}")
    return num_classes


def shares(beta: float) -> tuple[float | None, ...]:
    """Of target and input in the mixture; KL has none."""
    return (*float_pair(beta), *float_pair(1 - beta)) if beta else (None,) * 4


def two_logit_stats(input: Tensor, target: Tensor, inv_temperature: float, beta: float = 0.0) -> tuple[Tensor, ...]:
    num_classes = check_two_logits("two_logit_stats", input, target, inv_temperature, beta)
    shape, dtype = [input.shape[0], *input.shape[2:]], statistics_dtype(input)
    divergence, kl_input, *rest = (torch.empty(shape, dtype=dtype, device=input.device) for _ in range(6))
    rows = layout_rows(input, target)
    tile, tiles, _ = choose_tile(rows, num_classes, input.dtype, logits=2)
    strides = (stride for strides in rows.strides for stride in strides)
    scales = (*float_pair(inv_temperature), *float_pair(1 / inv_temperature), *shares(beta))
    arguments = (input, target, divergence, kl_input if beta else None, *rest, num_classes, rows.lanes, tiles, *strides, *scales)
    launch(two_logit_stats_fwd_kernel, rows.outer * tiles, input, arguments, tile.num_warps, BN=tile.BN, BV=tile.BV)
    return divergence, kl_input if beta else kl_input.new_empty(0), *rest


def two_logit_stats_backward(
    d_divergence: Tensor, input: Tensor, target: Tensor, divergence: Tensor, kl_input: Tensor, lse_input: Tensor, lse_target: Tensor,
    residual_input: Tensor, residual_target: Tensor, inv_temperature: float, beta: float, input_gradient: bool, target_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    op = "two_logit_stats_backward"
    num_classes = check_two_logits(op, input, target, inv_temperature, beta)
    of_rows = (d_divergence, divergence, lse_input, lse_target, residual_input, residual_target, *([kl_input] if beta else []))
    d_divergence, divergence, lse_input, lse_target, residual_input, residual_target, *mixed = row_values(op, input, *of_rows)
    d_input = torch.empty_like(input) if input_gradient else input.new_empty([0])
    d_target = torch.empty_like(target) if target_gradient else target.new_empty([0])
    rows = layout_rows(input, target, d_input if input_gradient else input, d_target if target_gradient else target)
    tile, tiles, chunks = choose_tile(rows, num_classes, input.dtype, logits=2)
    arguments: tuple[Any, ...] = (
        d_divergence, input, target, divergence, mixed[0] if beta else None, lse_input, lse_target, residual_input, residual_target,
        d_input if input_gradient else None, d_target if target_gradient else None,
        num_classes, rows.lanes, tiles, chunks, *(stride for strides in rows.strides for stride in strides),
        *float_pair(inv_temperature), *shares(beta),
    )  # fmt: skip
    constants = {"BN": tile.BN, "BV": tile.BV, "CHUNK": tile.CHUNK}
    launch(two_logit_stats_bwd_kernel, rows.outer * tiles * chunks, input, arguments, tile.num_warps, **constants)
    return d_input, d_target
