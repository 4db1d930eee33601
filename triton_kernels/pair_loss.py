"""pair_tile_stats, Triton.   lse = log sum_j w_ij e^{scale s_ij},  sum = sum_j w_ij scale s_ij,  mass = sum_j w_ij,  s = map(tile)
                           once over positive pairs (w = y_ij, 1 for equal labels), once over negative ones (w = 1 - y_ij)
                           d_tile = map' sum over sides of w (total e + rest (1 - e)),  e = e^{scale s - shift}
Shapes: tile [R, C] contiguous, row_label [R], column_label [C] int64; limit [2, R]; statistics [2, R] float64; terms [3 or 4, 2, R or C].
Algorithm: a program owns some rows and walks the columns in blocks; the maximum of a block comes before its sum, so that one sum per row
    is carried along.
Cost: reads R C forward, reads and writes R C backward; 2 R C exponentials forward, 4 R C backward with the terms of both ends.
Numerics: block sums in the dtype of the tile, merged in float64; a pair beyond the row's limit, and a row with itself (by position, not
    by value), count nowhere; NaN counts and gives NaN; an empty side gives lse = -inf; run_to_run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import Tile, float_pair, launch, row_range
from .cross_entropy import MAPS, check, map_arguments

NO_SELF = -(2**31)  # a column that no row has
# a row's block lies in one warp, 16 bytes a thread: its sums need no shared memory, and no registers spill
TILE = Tile(2, 256, 1024, 4)


@triton.jit
def shares(p_column_label, p_other_label, p_mixing, label, j, first_self, i_n, m, C):
    """Weights [BN, BV] of the pairs as positive and as negative ones, 0 where masked and at the pair of a row with itself."""
    m &= j.to(tl.int64)[None, :] != (i_n + first_self)[:, None]
    same = tl.load(p_column_label + j, mask=j < C, other=0)[None, :] == label[:, None]
    positive = tl.where(same, 1.0, 0.0)
    negative = 1 - positive
    if p_other_label is not None:
        other = tl.load(p_other_label + j, mask=j < C, other=0)[None, :] == label[:, None]
        mixing = tl.load(p_mixing + j, mask=j < C, other=0)[None, :]
        positive = tl.where(same, tl.where(other, 1, mixing), tl.where(other, 1 - mixing, 0))
        negative = tl.where(same, tl.where(other, 0, 1 - mixing), tl.where(other, mixing, 1))
    return tl.where(m, positive, 0), tl.where(m, negative, 0)


@triton.jit
def add_side(s, w, order, scale, limit, top, exponentials, total, mass):
    """One more block into the statistics [BN] of one side; ``limit`` [BN] or None."""
    if limit is not None:
        w = tl.where(order >= limit[:, None], 0, w)
    z = tl.where(w != 0, scale * s, -float("inf"))
    before = top
    top = tl.maximum(before, tl.max(z, 1))
    shift = tl.where(top == -float("inf"), 0, top)
    part = tl.sum(tl.where(w != 0, w * tl.exp(z - shift[:, None]), 0), 1)
    exponentials = exponentials * tl.exp(before - shift).to(tl.float64) + part.to(tl.float64)
    total += tl.sum(tl.where(w != 0, w * z, 0), 1).to(tl.float64)
    mass += tl.sum(w, 1).to(tl.float64)
    return top, exponentials, total, mass


@triton.jit
def store_side(p_lse, p_sum, p_mass, i, m_n, top, exponentials, total, mass):
    shift = tl.where(top == -float("inf"), 0, top).to(tl.float64)
    tl.store(p_lse + i, shift + tl.log(exponentials), mask=m_n)
    tl.store(p_sum + i, total, mask=m_n)
    tl.store(p_mass + i, mass, mask=m_n)


@triton.jit
def pair_tile_stats_kernel(
    p_tile, p_row_label, p_column_label, p_other_label, p_mixing, p_limit, p_lse, p_sum, p_mass, R, C, tiles, first_self,
    positive_hi, positive_lo, negative_hi, negative_lo, param_hi, param_lo, second_hi, second_lo,
    MAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    op = p_tile.dtype.element_ty
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    second = tl.cast(second_hi, op) + tl.cast(second_lo, op)
    scale_p = tl.cast(positive_hi, op) + tl.cast(positive_lo, op)
    scale_n = tl.cast(negative_hi, op) + tl.cast(negative_lo, op)
    _, i_n, m_n = row_range(tl.program_id(0), tiles, R, BN)
    label = tl.load(p_row_label + i_n, mask=m_n, other=0)  # [BN]
    limit_p = None
    limit_n = None
    if p_limit is not None:
        limit_p = tl.load(p_limit + i_n, mask=m_n, other=0)
        limit_n = tl.load(p_limit + R + i_n, mask=m_n, other=0)
    top_p = tl.full([BN], -float("inf"), op)
    top_n = top_p
    exp_p = tl.zeros([BN], tl.float64)
    exp_n, sum_p, sum_n, mass_p, mass_n = exp_p, exp_p, exp_p, exp_p, exp_p
    p_row = p_tile + i_n * C  # [BN]
    for i_v in range(0, C, BV):
        j = i_v + tl.arange(0, BV)  # [BV]
        m = m_n[:, None] & (j < C)[None, :]  # [BN, BV]
        s, _slope = MAP(tl.load(p_row[:, None] + j.to(tl.int64)[None, :], mask=m, other=0), param, second)
        w_p, w_n = shares(p_column_label, p_other_label, p_mixing, label, j, first_self, i_n, m, C)
        top_p, exp_p, sum_p, mass_p = add_side(s, w_p.to(op), s, scale_p, limit_p, top_p, exp_p, sum_p, mass_p)
        top_n, exp_n, sum_n, mass_n = add_side(s, w_n.to(op), -s, scale_n, limit_n, top_n, exp_n, sum_n, mass_n)
    store_side(p_lse, p_sum, p_mass, i_n, m_n, top_p, exp_p, sum_p, mass_p)
    store_side(p_lse, p_sum, p_mass, R + i_n, m_n, top_n, exp_n, sum_n, mass_n)


@triton.jit
def load_terms(p_terms, i, m, count, side: tl.constexpr, LIMITED: tl.constexpr):
    """Shift, total, rest, limit [count] of one side."""
    p = p_terms + side * count + i
    step = 2 * count.to(tl.int64)
    shift, total = tl.load(p, mask=m, other=0), tl.load(p + step, mask=m, other=0)
    rest = tl.load(p + 2 * step, mask=m, other=0)
    return shift, total, rest, tl.load(p + 3 * step, mask=m, other=0) if LIMITED else rest


@triton.jit
def term(z, order, shift, total, rest, limit, log_most, LIMITED: tl.constexpr):
    """What one pair adds; ``log_most`` is 0 for hard labels, where only rounding can exceed it."""
    d = z - shift
    e = tl.exp(tl.where(d > log_most, log_most, d))
    value = total * e + rest * (1 - e)
    return tl.where(order >= limit, 0, value) if LIMITED else value


@triton.jit
def side_gradient(
    s, w, order, scale, p_rows, i_n, m_n, R, p_columns, j, m_j, C, log_most, side: tl.constexpr, LIMITED: tl.constexpr
):  # fmt: skip
    z = scale * s
    shift, total, rest, limit = load_terms(p_rows, i_n, m_n, R, side, LIMITED)
    g = term(z, order, shift[:, None], total[:, None], rest[:, None], limit[:, None], log_most, LIMITED)
    if p_columns is not None:
        shift, total, rest, limit = load_terms(p_columns, j.to(tl.int64), m_j, C, side, LIMITED)
        g += term(z, order, shift[None, :], total[None, :], rest[None, :], limit[None, :], log_most, LIMITED)
    return tl.where(w != 0, w * g, 0)


@triton.jit
def pair_tile_stats_bwd_kernel(
    p_tile, p_row_label, p_column_label, p_other_label, p_mixing, p_rows, p_columns, R, C, tiles, chunks, first_self, log_most,
    positive_hi, positive_lo, negative_hi, negative_lo, param_hi, param_lo, second_hi, second_lo,
    MAP: tl.constexpr, LIMITED: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    op = p_tile.dtype.element_ty
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    second = tl.cast(second_hi, op) + tl.cast(second_lo, op)
    scale_p = tl.cast(positive_hi, op) + tl.cast(positive_lo, op)
    scale_n = tl.cast(negative_hi, op) + tl.cast(negative_lo, op)
    most = tl.cast(log_most, op)
    _, i_n, m_n = row_range(tl.program_id(0) // chunks, tiles, R, BN)
    begin = (tl.program_id(0) % chunks).to(tl.int64) * CHUNK
    label = tl.load(p_row_label + i_n, mask=m_n, other=0)  # [BN]
    rows = tl.full([1], R, tl.int32)
    columns = tl.full([1], C, tl.int32)
    p_row = p_tile + i_n * C  # [BN]
    for i_v in range(begin.to(tl.int32), tl.minimum(begin + CHUNK, C).to(tl.int32), BV):
        j = i_v + tl.arange(0, BV)  # [BV]
        m_j = j < C
        m = m_n[:, None] & m_j[None, :]  # [BN, BV]
        p = p_row[:, None] + j.to(tl.int64)[None, :]
        s, slope = MAP(tl.load(p, mask=m, other=0), param, second)
        w_p, w_n = shares(p_column_label, p_other_label, p_mixing, label, j, first_self, i_n, m, C)
        g = side_gradient(s, w_p.to(op), s, scale_p, p_rows, i_n, m_n, rows, p_columns, j, m_j, columns, most, 0, LIMITED)
        g += side_gradient(s, w_n.to(op), -s, scale_n, p_rows, i_n, m_n, rows, p_columns, j, m_j, columns, most, 1, LIMITED)
        tl.store(p, tl.where(g == 0, 0, g * slope), mask=m)


@triton.jit
def find(s, members, j, sign, value, column):
    """One more block into the smallest ``sign * s`` of the members and its lowest column; none: column -1."""
    v = tl.where(members, sign * s, float("inf"))
    best = tl.min(v, 1)
    place = tl.min(tl.where(members & (v == best[:, None]), j[None, :], 2147483647), 1)
    better = (place != 2147483647) & ((best < value) | (column < 0))
    return tl.where(better, best, value), tl.where(better, place, column)


@triton.jit
def pair_tile_extremes_kernel(
    p_tile, p_row_label, p_column_label, p_value, p_index, R, C, tiles, first_self, param_hi, param_lo, second_hi, second_lo,
    MAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    op = p_tile.dtype.element_ty
    param = tl.cast(param_hi, op) + tl.cast(param_lo, op)
    second = tl.cast(second_hi, op) + tl.cast(second_lo, op)
    _, i_n, m_n = row_range(tl.program_id(0), tiles, R, BN)
    label = tl.load(p_row_label + i_n, mask=m_n, other=0)  # [BN]
    low = tl.full([BN], float("inf"), op)
    high = low
    low_column = tl.full([BN], -1, tl.int32)
    high_column = low_column
    invalid = tl.zeros([BN], tl.int32)
    p_row = p_tile + i_n * C  # [BN]
    for i_v in range(0, C, BV):
        j = i_v + tl.arange(0, BV)  # [BV]
        m = m_n[:, None] & (j < C)[None, :]  # [BN, BV]
        s, _slope = MAP(tl.load(p_row[:, None] + j.to(tl.int64)[None, :], mask=m, other=0), param, second)
        m &= j.to(tl.int64)[None, :] != (i_n + first_self)[:, None]
        same = tl.load(p_column_label + j, mask=j < C, other=0)[None, :] == label[:, None]
        valid = m & (s == s)
        invalid += tl.sum((m & (s != s)).to(tl.int32), 1)
        low, low_column = find(s, valid & same, j, 1, low, low_column)
        high, high_column = find(s, valid & (same == 0), j, -1, high, high_column)
    bad = invalid > 0
    tl.store(p_value + i_n, tl.where(bad, float("nan"), low), mask=m_n)
    tl.store(p_value + R + i_n, tl.where(bad, float("nan"), -high), mask=m_n)
    tl.store(p_index + i_n, tl.where(bad, -1, low_column).to(tl.int64), mask=m_n)
    tl.store(p_index + R + i_n, tl.where(bad, -1, high_column).to(tl.int64), mask=m_n)


# ---- launchers: signatures of the ops


def check_tile(
    op: str, tile: Tensor, row_label: Tensor, column_label: Tensor, other_label: Tensor | None, mixing: Tensor | None, logit_map: str,
    map_params: list[float],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The labels and shares, contiguous."""
    check(tile.dim() == 2 and tile.is_contiguous(), op, "tile must be contiguous with shape (R, C)")
    check(tile.dtype in (torch.float32, torch.float64), op, "tile must be float32 or float64")
    check(tile.shape[1] < 2**31 - 2**16, op, "more columns than an int32 counts")
    rows, columns = tile.shape
    labels = [label for label in (row_label, column_label, other_label) if label is not None]
    check(all(label.dtype == torch.int64 for label in labels), op, "labels must be int64")
    sizes = [label.numel() for label in labels]
    check(sizes == [rows, columns, columns][: len(sizes)], op, "labels must have one element per row and per column of tile")
    check((other_label is None) == (mixing is None), op, "other_label and mixing must be given together")
    fits = mixing is None or (mixing.numel() == columns and mixing.dtype == tile.dtype)
    check(fits, op, "mixing must have one element per column in the dtype of tile")
    check(logit_map in MAPS, op, f"logit_map must be one of {', '.join(MAPS)}, got {logit_map}")
    check(len(map_params) == MAPS[logit_map][1], op, f"map_params has the wrong length for logit_map={logit_map}")
    return tuple(None if t is None else t.contiguous() for t in (row_label, column_label, other_label, mixing))


def check_terms(op: str, tile: Tensor, *terms: tuple[Tensor | None, int]) -> None:
    for values, count in terms:
        fits = values is None or (values.dtype == tile.dtype and values.is_contiguous() and values.numel() % max(2 * count, 1) == 0)
        check(fits, op, "limit and terms must be contiguous in the dtype of tile, with two elements per row or column and term")


def both_scales(op: str, scale: list[float]) -> tuple[float, ...]:
    check(len(scale) == 2, op, "scale must have two elements, of the positive and of the negative pairs")
    return *float_pair(scale[0]), *float_pair(scale[1])


def pair_tile_stats(
    tile: Tensor, row_label: Tensor, column_label: Tensor, other_label: Tensor | None, mixing: Tensor | None, limit: Tensor | None,
    self_column: int | None, logit_map: str, map_params: list[float], scale: list[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    op = "pair_tile_stats"
    labels = check_tile(op, tile, row_label, column_label, other_label, mixing, logit_map, map_params)
    check_terms(op, tile, (limit, tile.shape[0]))
    lse, total, mass = (torch.empty([2, tile.shape[0]], dtype=torch.float64, device=tile.device) for _ in range(3))
    tiles = triton.cdiv(tile.shape[0], TILE.BN)
    function, *params = map_arguments(logit_map, map_params)
    arguments = (
        tile, *labels, limit, lse, total, mass, *tile.shape, tiles, NO_SELF if self_column is None else self_column,
        *both_scales(op, scale), *params,
    )  # fmt: skip
    launch(pair_tile_stats_kernel, tiles, tile, arguments, TILE.num_warps, MAP=function, BN=TILE.BN, BV=TILE.BV)
    return lse, total, mass


def pair_tile_stats_backward_(
    tile: Tensor, row_label: Tensor, column_label: Tensor, other_label: Tensor | None, mixing: Tensor | None, row_terms: Tensor,
    column_terms: Tensor | None, self_column: int | None, logit_map: str, map_params: list[float], scale: list[float],
) -> None:  # fmt: skip
    op = "pair_tile_stats_backward_"
    labels = check_tile(op, tile, row_label, column_label, other_label, mixing, logit_map, map_params)
    rows, columns = tile.shape
    check_terms(op, tile, (row_terms, rows), (column_terms, columns))
    check(other_label is None or column_terms is None, op, "column_terms must be None with soft labels, which are not symmetric")
    number = row_terms.numel() // max(2 * rows, 1)
    check(rows == 0 or number in (3, 4), op, "row_terms must have shape (3, 2, R) or (4, 2, R)")
    fits = column_terms is None or column_terms.numel() == 2 * columns * number
    check(fits or not tile.numel(), op, "column_terms must have the terms of row_terms")
    tiles, chunks = triton.cdiv(rows, TILE.BN), triton.cdiv(columns, TILE.CHUNK)
    function, *params = map_arguments(logit_map, map_params)
    arguments: tuple[Any, ...] = (
        tile, *labels, row_terms, column_terms, rows, columns, tiles, chunks, NO_SELF if self_column is None else self_column,
        0.0 if other_label is None else 80.0, *both_scales(op, scale), *params,
    )  # fmt: skip
    constants = {"MAP": function, "LIMITED": number == 4, "BN": TILE.BN, "BV": TILE.BV, "CHUNK": TILE.CHUNK}
    launch(pair_tile_stats_bwd_kernel, tiles * chunks, tile, arguments, TILE.num_warps, **constants)


def pair_tile_extremes(
    tile: Tensor, row_label: Tensor, column_label: Tensor, self_column: int | None, logit_map: str, map_params: list[float]
) -> tuple[Tensor, Tensor]:
    op = "pair_tile_extremes"
    labels = check_tile(op, tile, row_label, column_label, None, None, logit_map, map_params)[:2]
    value = torch.empty([2, tile.shape[0]], dtype=tile.dtype, device=tile.device)
    index = torch.empty([2, tile.shape[0]], dtype=torch.int64, device=tile.device)
    tiles = triton.cdiv(tile.shape[0], TILE.BN)
    function, *params = map_arguments(logit_map, map_params)
    arguments = (tile, *labels, value, index, *tile.shape, tiles, NO_SELF if self_column is None else self_column, *params)
    launch(pair_tile_extremes_kernel, tiles, tile, arguments, TILE.num_warps, MAP=function, BN=TILE.BN, BV=TILE.BV)
    return value, index
