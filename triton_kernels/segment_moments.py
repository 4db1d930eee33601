"""segment_moments, Triton.   count_s = #{i: index_i = s},  sum_s = sum x_i,  square_s = sum x_i^2 (diag) or sum x_i x_i^T (full)
                           d_input_i = d_sum_s + 2 x_i d_square_s,  or d_sum_s + x_i (d_square_s + d_square_s^T),  s = index_i
Shapes: input [N, D], rows of any stride; index int64 [N]; sum float64 [S, D]; square float64 [S, D], [S, D, D] or [0].
Algorithm: the numbers of the rows are sorted by segment; a program walks a piece of PIECE sorted rows for a block of columns. A segment
    that lies inside a piece is written by it; the first and the last run of a piece go to a table, from which a second kernel adds the
    parts of a segment in order.
Cost: reads N D once forward (full: D / BE times), once backward, writes N D backward; a sort of N numbers; 2 N / PIECE rows of partial
    sums.
Numerics: everything is added in float64; a row whose index is out of range is left out and has no gradient; NaN stays in its segment;
    run_to_run: every sum has one program and one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import dense, launch
from .cross_entropy import check

PIECE = 256
NUM_WARPS = 1
SECOND = {"none": 0, "diag": 1, "full": 2}


@triton.jit
def segment_runs_kernel(
    p_input, p_rows, p_index, p_sum, p_parts, N, D, S, width, blocks_d, blocks_e, stride_x, MODE: tl.constexpr, PIECE: tl.constexpr,
    BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """MODE: power of the moment that is summed: 0 x, 1 x^2 (both [BD, 1]), 2 x x^T ([BD, BE])."""
    i_piece = (tl.program_id(0) // blocks_e // blocks_d).to(tl.int64)
    i_d = (tl.program_id(0) // blocks_e % blocks_d).to(tl.int64) * BD + tl.arange(0, BD)
    i_e = (tl.program_id(0) % blocks_e).to(tl.int64) * BE + tl.arange(0, BE)
    o_out = i_d[:, None] * (D if MODE == 2 else 1) + i_e[None, :]
    m_d, m_e = i_d < D, i_e < (D if MODE == 2 else 1)
    m_out = m_d[:, None] & m_e[None, :]
    begin, end = i_piece * PIECE, tl.minimum((i_piece + 1) * PIECE, N)
    acc = tl.zeros([BD, BE], tl.float64)
    current = tl.load(p_index + begin)
    first = 1
    for r in range(begin, end):
        segment = tl.load(p_index + r)
        if segment != current:
            inside = (first == 0) & (current >= 0) & (current < S)
            tl.store(p_sum + current * width + o_out, acc, mask=m_out & inside)
            tl.store(p_parts + 2 * i_piece * width + o_out, acc, mask=m_out & (first == 1))
            acc = tl.zeros([BD, BE], tl.float64)
            current = segment
            first = 0
        p_x = p_input + tl.load(p_rows + r) * stride_x
        x = tl.load(p_x + i_d, mask=m_d, other=0).to(tl.float64)[:, None]
        if MODE == 0:
            acc += x
        elif MODE == 1:
            acc += x * x
        else:
            acc += x * tl.load(p_x + i_e, mask=m_e, other=0).to(tl.float64)[None, :]
    tl.store(p_parts + (2 * i_piece + 1 - first) * width + o_out, acc, mask=m_out)


@triton.jit
def segment_parts_kernel(p_parts, p_begin, p_sum, N, width, blocks, PIECE: tl.constexpr, BW: tl.constexpr):
    """Adds the parts of a segment that reaches an end of a piece, and writes zeros for one without rows."""
    i_s = (tl.program_id(0) // blocks).to(tl.int64)
    i_w = (tl.program_id(0) % blocks).to(tl.int64) * BW + tl.arange(0, BW)
    m_w = i_w < width
    begin, end = tl.load(p_begin + i_s), tl.load(p_begin + i_s + 1)
    piece, last = begin // PIECE, (end - 1) // PIECE
    inside = (piece == last) & (begin > piece * PIECE) & (end < tl.minimum((piece + 1) * PIECE, N))
    if (begin == end) | (inside == 0):
        acc = tl.zeros([BW], tl.float64)
        if begin < end:
            for p in range(piece, last + 1):
                slot = 2 * p + (begin > p * PIECE).to(tl.int64)
                acc += tl.load(p_parts + slot * width + i_w, mask=m_w, other=0)
        tl.store(p_sum + i_s * width + i_w, acc, mask=m_w)


@triton.jit
def segment_bwd_kernel(
    p_d_sum, p_d_square, p_input, p_index, p_d_input, D, S, blocks, stride_x, MODE: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """A program owns BD columns of a row."""
    i_n = (tl.program_id(0) // blocks).to(tl.int64)
    i_d = (tl.program_id(0) % blocks).to(tl.int64) * BD + tl.arange(0, BD)
    m_d = i_d < D
    segment = tl.load(p_index + i_n)
    valid = (segment >= 0) & (segment < S)
    segment = tl.where(valid, segment, 0)
    m = m_d & valid
    d = tl.load(p_d_sum + segment * D + i_d, mask=m, other=0)
    p_x = p_input + i_n * stride_x
    if MODE == 1:
        x = tl.load(p_x + i_d, mask=m, other=0).to(tl.float64)
        d += 2 * x * tl.load(p_d_square + segment * D + i_d, mask=m, other=0)
    elif MODE == 2:
        p_row = p_d_square + segment * D * D + i_d  # [BD]
        p_column = p_d_square + segment * D * D + i_d * D
        for k in range(D):
            x = tl.load(p_x + k).to(tl.float64)
            d += x * tl.load(p_row, mask=m, other=0)
            d += x * tl.load(p_column + k, mask=m, other=0)
            p_row += D
    dtype = p_d_input.dtype.element_ty
    if dtype != tl.float64:
        d = d.to(tl.float32)  # on the way to halves: no processor converts float64 to bfloat16
    tl.store(p_d_input + i_n * D + i_d, d.to(dtype), mask=m_d)


# ---- launchers: they hold no state


def check_segments(op: str, input: Tensor, index: Tensor, second_moment: str) -> None:
    check(input.dim() == 2, op, f"input must have shape (N, D), got {input.dim()} dimensions")
    check(index.dtype == torch.int64, op, "index must be int64")
    check(index.shape == input.shape[:1], op, f"index must have shape (N,) with N={input.shape[0]}")
    check(second_moment in SECOND, op, f"second_moment must be none, diag or full, got {second_moment}")
    check(input.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16), op, "input must be a floating tensor")


def total(x: Tensor, rows: Tensor, index: Tensor, begin: Tensor, shape: list[int], mode: int) -> Tensor:
    """One moment, of ``shape``; rows and index are sorted by segment."""
    num_segments, dim = shape[0], x.shape[1]
    out = torch.zeros(shape, dtype=torch.float64, device=x.device)
    if len(x) == 0 or out.numel() == 0:
        return out
    bd, be = (16, 16) if mode == 2 else (min(128, triton.next_power_of_2(dim)), 1)
    blocks_d, blocks_e = triton.cdiv(dim, bd), triton.cdiv(dim, be) if mode == 2 else 1
    pieces, width = triton.cdiv(len(x), PIECE), out[0].numel()
    parts = torch.empty(2 * pieces, width, dtype=torch.float64, device=x.device)
    arguments = (x, rows, index, out, parts, len(x), dim, num_segments, width, blocks_d, blocks_e, x.stride(0))
    launch(segment_runs_kernel, pieces * blocks_d * blocks_e, x, arguments, NUM_WARPS, MODE=mode, PIECE=PIECE, BD=bd, BE=be)
    bw = min(256, triton.next_power_of_2(width))
    blocks = triton.cdiv(width, bw)
    arguments = (parts, begin, out, len(x), width, blocks)
    launch(segment_parts_kernel, num_segments * blocks, x, arguments, NUM_WARPS, PIECE=PIECE, BW=bw)
    return out


def segment_moments(input: Tensor, index: Tensor, num_segments: int | None, second_moment: str) -> tuple[Tensor, Tensor, Tensor]:
    check_segments("segment_moments", input, index, second_moment)
    x, mode, dim = dense(input), SECOND[second_moment], input.shape[1]
    num_segments = len(x) if num_segments is None else num_segments
    ordered, rows = torch.sort(index, stable=True)
    begin = torch.searchsorted(ordered, torch.arange(num_segments + 1, device=x.device))
    sums = total(x, rows, ordered, begin, [num_segments, dim], 0)
    shape = [[0], [num_segments, dim], [num_segments, dim, dim]][mode]
    square = total(x, rows, ordered, begin, shape, mode) if mode else sums.new_empty(0)
    return sums, square, begin.diff()


def segment_moments_backward(
    d_sum: Tensor, d_square: Tensor, input: Tensor, index: Tensor, num_segments: int | None, second_moment: str
) -> Tensor:
    check_segments("segment_moments_backward", input, index, second_moment)
    x, (n, dim) = dense(input), input.shape
    d_input = torch.empty(n, dim, dtype=x.dtype, device=x.device)
    bd = min(256, triton.next_power_of_2(max(dim, 1)))
    blocks = triton.cdiv(dim, bd)
    arguments = (d_sum.contiguous(), d_square.contiguous(), x, index.contiguous(), d_input, dim, len(d_sum), blocks, x.stride(0))
    launch(segment_bwd_kernel, n * blocks, x, arguments, NUM_WARPS, MODE=SECOND[second_moment], BD=bd)
    return d_input
