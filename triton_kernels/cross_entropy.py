"""logit_stats, Triton.   nll = -log softmax(z)[y],  lse = log sum_j e^{z_j},  spread = sum_j w_j (lse - z_j),  z = map(input)
                         d_input = map' (G p_j - d_nll [j = y] - d_spread w_j),  G = d_nll + d_lse + d_spread sum w
Shapes: input [N, V] or [N, V, P] any strides, target [N] or [N, P]; weight [V]; statistics float32 (float64 for float64), row-major.
Algorithm: one online pass (Milakov and Gimelshein 2018) over the classes other than the target, each lane of a block of classes with
    its own maximum and sum, merged once at the end; the backward pass recomputes p from lse.
Cost: reads N V forward, reads and writes N V backward; N V exponentials each; no [N, V] temporary.
Numerics: accumulates in the dtype of the statistics; logit deficit, so nll keeps its relative accuracy however small it is and under
    any common offset; NaN, +inf and an all -inf row give NaN in that row only; ignored rows and rows with zero upstream are not read
    and give 0; a label out of range forms no address and gives NaN, its gradient is 0; run_to_run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import choose_tile, expm1, float_pair, launch, layout_rows, log1p, lowest, row_range, tanh

# ---- logit maps: (z, dz/da) of a logit a. A new map is one function and one row of MAPS; twins: csrc/functors/cross_entropy.h


@triton.jit
def identity(a, param, second):
    return a, tl.full(a.shape, 1, a.dtype)


@triton.jit
def scale(a, param, second):
    return param * a, tl.full(a.shape, 1, a.dtype) * param


@triton.jit
def soft_cap(a, param, second):
    t, slope = tanh(a / param)
    return param * t, slope


@triton.jit
def power(a, param, second):
    b = tl.where(a < 0, 0, a) + second  # not maximum: NaN stays
    return -param * tl.log(b), -param / b


@triton.jit
def arcosh(a, param, second):
    e = tl.where(a < 1e-12, 1e-12, a)
    root = tl.sqrt(e * (e + 2))
    return -param * log1p(e + root), -param / root


# name -> function, number of parameters
MAPS = {"identity": (identity, 0), "scale": (scale, 1), "soft_cap": (soft_cap, 1), "power": (power, 2), "arcosh": (arcosh, 1)}


# ---- shared by hard and soft targets


@triton.jit
def online_add(z, top, total, rate=1.0):
    """One more z into each lane's maximum and sum of e^(rate (z - maximum)), with a single exponential.

    A lane starts from (lowest, 0): -inf then adds nothing and the first finite z replaces the maximum, without a special case.
    """
    d = (z - top) * rate
    e = tl.exp(-tl.abs(d))
    up = d > 0
    return tl.where(up, z, top), tl.where(up, total * e + 1, total + e)


@triton.jit
def merge_lanes(top, total, rate=1.0):
    """Maximum [BN] and sum [BN] of lanes [BN, BV]; the sum is 0 where no logit was finite, NaN where one was NaN or +inf."""
    m = tl.max(top, 1)
    return m, tl.sum(total * tl.exp((top - m[:, None]) * rate), 1)


@triton.jit
def row_statistics(z_y, m, total):
    """nll, lse and what rounding lse lost, from the target logit and the others' maximum and sum, without cancellation:
    nll = (top - z_y) + log1p(rest), lse = top + log1p(rest), rest = total e^(m - z_y), or (total - 1) + e^(z_y - m) with m on top."""
    m = tl.where(total == 0, -float("inf"), m)  # no finite logit among the others
    target_on_top = z_y >= m
    top = tl.where(target_on_top, z_y, m)
    e = tl.exp(tl.where(target_on_top, m - z_y, z_y - m))
    log_rest = log1p(tl.where(target_on_top, total * e, (total - 1) + e))
    nll = (top - z_y) + log_rest
    lse = top + log_rest
    part = lse - top
    lost = (top - (lse - part)) + (log_rest - part)
    # NaN comes through by itself: from a NaN logit, from +inf (inf - inf at the target, a NaN sum elsewhere), and from no finite logit
    return nll, tl.where(nll == nll, lse, nll), tl.where(tl.abs(lse) < float("inf"), lost, 0)


@triton.jit
def logit_stats_fwd_kernel(
    p_input, p_target, p_weight, p_weight_sum, p_nll, p_lse, p_spread, p_residual, V, lanes, tiles, stride_io, stride_iv, stride_il,
    first_class, num_classes, ignore_index, param_hi, param_lo, second_hi, second_lo, MAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    op = p_nll.dtype.element_ty
    infinity = float("inf")
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    second = tl.cast(second_hi, op) + tl.cast(second_lo, op)
    i_o, i_l, m_n = row_range(tl.program_id(0), tiles, lanes, BN)
    i_n = i_o * lanes + i_l  # [BN]
    label = tl.load(p_target + i_n, mask=m_n, other=ignore_index)  # [BN]
    kept = m_n & (label != ignore_index)
    live = kept & (label >= 0) & (label < num_classes)
    here = live & (label >= first_class) & (label < first_class + V)
    y = tl.where(here, label - first_class, -1).to(tl.int32)  # [BN]
    p_row = p_input + i_o * stride_io + i_l * stride_il  # [BN]
    # of the deviations: the target's logit, or the first where another shard holds the target
    origin, _ = MAP(tl.load(p_row + tl.where(here, y, 0).to(tl.int64) * stride_iv, mask=live, other=0).to(op), param, second)  # [BN]
    z_y = tl.where(here, origin, -infinity)
    top = tl.full([BN, BV], lowest(op), op)
    total = tl.zeros([BN, BV], op)
    deviation = tl.zeros([BN, BV], op)
    # no iteration where no row of the tile is to be read
    for i_v in range(0, tl.where(tl.max(live.to(tl.int32), 0) > 0, V, 0), BV):
        j = i_v + tl.arange(0, BV)  # [BV]
        m = live[:, None] & (j < V)[None, :]  # [BN, BV]
        a = tl.load(p_row[:, None] + j.to(tl.int64)[None, :] * stride_iv, mask=m, other=0).to(op)
        z, _slope = MAP(a, param, second)
        if p_spread is not None:
            term = origin[:, None] - z
            if p_weight is not None:
                term *= tl.load(p_weight + j, mask=j < V, other=0)[None, :]
            deviation += tl.where(m, term, 0)
        top, total = online_add(tl.where(m & (j[None, :] != y[:, None]), z, -infinity), top, total)
    others, others_sum = merge_lanes(top, total)
    nll, lse, lost = row_statistics(z_y, others, others_sum)
    # nothing but -inf in a shard: another may hold the finite logits
    hollow = (z_y == -infinity) & (others_sum == 0) & (num_classes > V)
    nll, lse = tl.where(hollow, infinity, nll), tl.where(hollow, -infinity, lse)
    absent = tl.where(kept, float("nan"), 0.0).to(op)  # a label out of range gives NaN, an ignored row 0
    tl.store(p_nll + i_n, tl.where(live, nll, absent), mask=m_n)
    tl.store(p_lse + i_n, tl.where(live, lse, absent), mask=m_n)
    tl.store(p_residual + i_n, tl.where(live, lost, 0), mask=m_n)
    if p_spread is not None:
        weight_sum = V
        if p_weight is not None:
            weight_sum = tl.load(p_weight_sum)
        gap = tl.where(here, nll, (others - origin) + tl.log(others_sum))
        # origin = -inf leaves an infinite term, whatever the rest is
        spread = tl.where((gap == infinity) | hollow, infinity, weight_sum * gap + tl.sum(deviation, 1))
        tl.store(p_spread + i_n, tl.where(live, spread, absent), mask=m_n)


@triton.jit
def logit_stats_bwd_kernel(
    p_d_nll, p_d_lse, p_d_spread, p_input, p_target, p_weight, p_weight_sum, p_nll, p_lse, p_residual, p_d_input, V, lanes, tiles, chunks,
    stride_io, stride_iv, stride_il, stride_do, stride_dv, stride_dl, first_class, num_classes, ignore_index,
    param_hi, param_lo, second_hi, second_lo,
    MAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    op = p_nll.dtype.element_ty
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    second = tl.cast(second_hi, op) + tl.cast(second_lo, op)
    i_o, i_l, m_n = row_range(tl.program_id(0) // chunks, tiles, lanes, BN)
    begin = (tl.program_id(0) % chunks).to(tl.int64) * CHUNK
    i_n = i_o * lanes + i_l  # [BN]
    label = tl.load(p_target + i_n, mask=m_n, other=ignore_index)
    d_nll = tl.load(p_d_nll + i_n, mask=m_n, other=0)
    d_lse = tl.load(p_d_lse + i_n, mask=m_n, other=0)
    live = m_n & (label != ignore_index) & (label >= 0) & (label < num_classes)
    nonzero = (d_nll != 0) | (d_lse != 0)
    rest = d_lse
    if p_d_spread is not None:
        d_spread = tl.load(p_d_spread + i_n, mask=m_n, other=0)
        nonzero |= d_spread != 0
        weight_sum = V
        if p_weight is not None:
            weight_sum = tl.load(p_weight_sum)
        rest += d_spread * weight_sum
    live &= nonzero
    y = tl.where(live & (label >= first_class) & (label < first_class + V), label - first_class, -1).to(tl.int32)  # [BN]
    nll = tl.load(p_nll + i_n, mask=m_n, other=0)
    lse = tl.load(p_lse + i_n, mask=m_n, other=0)
    lost = tl.load(p_residual + i_n, mask=m_n, other=0)
    at_target = rest * tl.exp(-nll) + d_nll * expm1(-nll)  # p_y - 1 is never formed
    p_row = p_input + i_o * stride_io + i_l * stride_il  # [BN]
    p_d_row = p_d_input + i_o * stride_do + i_l * stride_dl  # [BN]
    for i_v in range(begin.to(tl.int32), tl.minimum(begin + CHUNK, V).to(tl.int32), BV):
        j = i_v + tl.arange(0, BV)  # [BV]
        m_v = (j < V)[None, :]
        o_v = j.to(tl.int64)[None, :]
        a = tl.load(p_row[:, None] + o_v * stride_iv, mask=live[:, None] & m_v, other=0).to(op)  # [BN, BV]
        z, slope = MAP(a, param, second)
        p = tl.exp((z - lse[:, None]) - lost[:, None])
        d = tl.where(j[None, :] == y[:, None], at_target[:, None], (d_nll + rest)[:, None] * p)
        if p_d_spread is not None:
            if p_weight is not None:
                d -= d_spread[:, None] * tl.load(p_weight + j, mask=j < V, other=0)[None, :]
            else:
                d -= d_spread[:, None]
        d = tl.where(live[:, None], d * slope, 0)
        tl.store(p_d_row[:, None] + o_v * stride_dv, d.to(p_d_input.dtype.element_ty), mask=m_n[:, None] & m_v)


# ---- launchers: allocate, choose a tile by shape and strides, launch; they hold no state


def statistics_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def check(ok: bool, op: str, text: str) -> None:
    if not ok:
        raise RuntimeError(f"{op}: {text}")


def check_logits(op: str, input: Tensor, weight: Tensor | None, logit_map: str, map_params: list[float]) -> int:
    """Number of classes."""
    check(input.dim() in (2, 3), op, f"input must have shape (N, V) or (N, V, P), got {input.dim()} dimensions")
    floating = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    check(input.dtype in floating, op, "input must be float32, float64, bfloat16 or float16")
    check(input.shape[1] < 2**31 - 2**16, op, "more classes than an int32 counts")
    check(logit_map in MAPS, op, f"logit_map must be one of {', '.join(MAPS)}, got {logit_map}")
    check(len(map_params) == MAPS[logit_map][1], op, f"map_params has the wrong length for logit_map={logit_map}")
    if weight is not None:
        check(weight.dtype == statistics_dtype(input), op, "weight must have the dtype of the statistics")
        check(weight.shape == input.shape[1:2] and weight.is_contiguous(), op, "weight must be contiguous with shape (V,)")
    return input.shape[1]


def check_labels(op: str, input: Tensor, target: Tensor) -> Tensor:
    check(target.dtype == torch.int64, op, "target must be int64")
    rows = input.shape[0] * input.shape[2:].numel()
    check(target.numel() == rows, op, f"target must have one label per row, {rows}, got {target.numel()}")
    return target.contiguous()


def row_values(op: str, input: Tensor, *values: Tensor) -> list[Tensor]:
    rows = input.shape[0] * input.shape[2:].numel()
    for value in values:
        fits = value.numel() == rows and value.dtype == statistics_dtype(input)
        check(fits, op, "row statistics and their gradients must have one value per row in the dtype of the statistics")
    return [value.contiguous() for value in values]


def map_arguments(logit_map: str, map_params: list[float]) -> tuple[Any, ...]:
    first, second = (*map_params, 1.0, 1.0)[:2]
    return MAPS[logit_map][0], *float_pair(first), *float_pair(second)


def check_shard(op: str, held: int, first_class: int, num_classes: int | None) -> tuple[int, int]:
    """(first class held, number of classes in all)."""
    classes = held if num_classes is None else num_classes
    fits = 0 <= first_class <= classes - held
    check(fits, op, f"first_class + V must be <= num_classes, got first_class={first_class}, V={held}, num_classes={classes}")
    return first_class, classes


def logit_stats(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, logit_map: str, map_params: list[float], spread: bool,
    first_class: int = 0, num_classes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    op = "logit_stats"
    held = check_logits(op, input, weight, logit_map, map_params)
    shard = check_shard(op, held, first_class, num_classes)
    labels = check_labels(op, input, target)
    weight = weight if spread else None
    shape, dtype = [input.shape[0], *input.shape[2:]], statistics_dtype(input)
    nll, lse, residual, deviation = (torch.empty(s, dtype=dtype, device=input.device) for s in [shape] * 3 + [shape if spread else [0]])
    rows = layout_rows(input)
    tile, tiles, _ = choose_tile(rows, held, input.dtype)
    function, *params = map_arguments(logit_map, map_params)
    arguments = (
        input, labels, weight, None if weight is None else weight.sum(), nll, lse, deviation if spread else None, residual,
        held, rows.lanes, tiles, *rows.strides[0], *shard, ignore_index, *params,
    )  # fmt: skip
    launch(logit_stats_fwd_kernel, rows.outer * tiles, input, arguments, tile.num_warps, MAP=function, BN=tile.BN, BV=tile.BV)
    return nll, lse, deviation, residual


def write_gradient(
    op: str, d_input: Tensor, d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, input: Tensor, target: Tensor, weight: Tensor | None,
    nll: Tensor, lse: Tensor, lse_residual: Tensor, ignore_index: int, logit_map: str, map_params: list[float], spread: bool,
    first_class: int = 0, num_classes: int | None = None,
) -> None:  # fmt: skip
    """``d_input`` may be ``input``: a program reads an element before it writes it, and no other program touches it."""
    held = check_logits(op, input, weight, logit_map, map_params)
    shard = check_shard(op, held, first_class, num_classes)
    labels = check_labels(op, input, target)
    weight = weight if spread else None
    d_nll, d_lse, nll, lse, residual = row_values(op, input, d_nll, d_lse, nll, lse, lse_residual)
    rows = layout_rows(input, d_input)
    tile, tiles, chunks = choose_tile(rows, held, input.dtype)
    function, *params = map_arguments(logit_map, map_params)
    arguments = (
        d_nll, d_lse, row_values(op, input, d_spread)[0] if spread else None, input, labels, weight,
        None if weight is None else weight.sum(), nll, lse, residual, d_input, held, rows.lanes, tiles, chunks,
        *rows.strides[0], *rows.strides[1], *shard, ignore_index, *params,
    )  # fmt: skip
    constants = {"MAP": function, "BN": tile.BN, "BV": tile.BV, "CHUNK": tile.CHUNK}
    launch(logit_stats_bwd_kernel, rows.outer * tiles * chunks, input, arguments, tile.num_warps, **constants)


def logit_stats_backward(d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, input: Tensor, *rest: Any) -> Tensor:
    d_input = torch.empty_like(input)
    write_gradient("logit_stats_backward", d_input, d_nll, d_lse, d_spread, input, *rest)
    return d_input


def logit_stats_backward_(d_nll: Tensor, d_lse: Tensor, d_spread: Tensor, input: Tensor, *rest: Any) -> None:
    write_gradient("logit_stats_backward_", input, d_nll, d_lse, d_spread, input, *rest)
