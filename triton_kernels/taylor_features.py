"""taylor_features, Triton.   phi_f(u) = prod_t u[c_t(f)],   f counts the monomials as nearlinear.taylor_features does
                           d_u[c] = sum_f d_phi_f sum_t [c_t(f) = c] prod_{s != t} u[c_s(f)]
Shapes: u [B, H, N, D] any strides, bias [B, H, N]; the channels of the features as a table [degree, R] int32, in which D stands for a
    factor 1 of the features of lower degree.
Algorithm: the table is unranked from the numbers of the features: factor t has the largest channel c with C(c + t - 1, t) <= what is left
    of the number. A tile [tokens, features] is the product of ``degree`` gathers, which stay in L1. A gradient of channels is, for each
    factor, a product of a tile with the one-hot matrix of its channels, so that nothing is added atomically.
Cost: R degree^2 log D integer steps for a table; N R degree loads; backward 2 N R degree D FLOP in products and N R degree^2 loads.
Numerics: ieee float32 or float64 products; tf32 for float16: cut off to 11 bits, without overflow; bfloat16 for bfloat16; float32 sums.
    Halves take the features of degree 0 and 1 in ieee float32. A token with bias -inf has features 0 and is not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import comb

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launch
from .cross_entropy import check, statistics_dtype

BLOCK = 256  # features of a program of the table
KINDS = {torch.float32: "ieee", torch.float64: "ieee", torch.float16: "tf32", torch.bfloat16: "bf16"}
# BT, BR and warps of ieee products, whose operands are in registers along all of the sum, and of those of halves; no kernel spills
TILES = {"moments": ((32, 32, 4), (64, 64, 8)), "apply": ((32, 32, 4), (64, 32, 8)), "fold": ((32, 32, 8), (128, 32, 8))}
PROGRAMS = 512  # that a launch should have: sums are split over programs until it has them
MOST_SPLITS = 64


@triton.jit
def product(a, b, total, KIND: tl.constexpr):
    """total + a b, in products of KIND and sums of the dtype of ``total``."""
    if KIND == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        return tl.dot(a, b, total, input_precision=KIND, out_dtype=total.dtype)


@triton.jit
def monomials(p_u, m_n, p_c, m_f, D, stride_t, stride_c, op: tl.constexpr, DEGREE: tl.constexpr, SKIP: tl.constexpr):
    """Features of tokens ``p_u``, without factor SKIP (-1: all of it); 0 outside the masks. Tokens and features are two axes, in either
    order; ``p_c`` points into the first row of the table."""
    phi = tl.where(m_n & m_f, 1, 0).to(op)
    for t in tl.static_range(DEGREE):
        if t != SKIP:
            c = tl.load(p_c, mask=m_f, other=D)
            u = tl.load(p_u + c.to(tl.int64) * stride_c, mask=m_n & (c < D), other=0).to(op)
            phi = tl.where(c < D, phi * u, phi)
        p_c += stride_t
    return phi


@triton.jit
def multisets(c, t):
    """C(c + t - 1, t): features of t factors with channels below c."""
    count = c * 0 + 1
    for i in range(t):
        count = count * (c + i) // (i + 1)
    return count


@triton.jit
def channels_kernel(p_table, D, R, steps, DEGREE: tl.constexpr, BR: tl.constexpr):
    f = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)  # [BR]
    rest, factors, count = f, tl.zeros([BR], tl.int32), tl.cast(1, tl.int64)
    for m in tl.static_range(1, DEGREE + 1):  # ``count`` features have m - 1 factors
        more = (factors == m - 1) & (rest >= count)
        rest = tl.where(more, rest - count, rest)
        factors = tl.where(more, m, factors)
        count = count * (D + m - 1) // m
    for back in tl.static_range(DEGREE):
        t = DEGREE - back
        c = tl.zeros([BR], tl.int64)
        for step in range(steps):
            further = c + (tl.cast(1, tl.int64) << (steps - 1 - step))
            c = tl.where((further < D) & (multisets(further, t) <= rest), further, c)
        present = factors >= t
        rest = tl.where(present, rest - multisets(c, t), rest)
        tl.store(p_table + tl.cast(R, tl.int64) * (t - 1) + f, tl.where(present, c, D).to(tl.int32), mask=f < R)


@triton.jit
def features_kernel(
    p_u, p_bias, p_weight, p_table, p_out, N, H, F, D, tiles, blocks, stride_ub, stride_uh, stride_un, stride_uc, stride_bb, stride_bh,
    stride_bn, stride_t, DEGREE: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """out[b, h, n, f] = e^bias phi_f(u) weight_f, contiguous."""
    op = p_out.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    i_h, i_n = program // blocks // tiles, (program // blocks % tiles) * BT + tl.arange(0, BT)
    f = (program % blocks) * BR + tl.arange(0, BR)
    m_n, m_f = i_n < N, f < F
    scale = tl.where(m_n, 1, 0).to(op)
    if p_bias is not None:
        bias = tl.load(p_bias + (i_h // H) * stride_bb + (i_h % H) * stride_bh + i_n * stride_bn, mask=m_n, other=-float("inf")).to(op)
        m_n, scale = bias > -float("inf"), tl.exp(bias)
    p_row = p_u + (i_h // H) * stride_ub + (i_h % H) * stride_uh + i_n * stride_un
    phi = monomials(p_row[:, None], m_n[:, None], (p_table + f)[None, :], m_f[None, :], D, stride_t, stride_uc, op, DEGREE, -1)
    if p_weight is not None:
        phi *= tl.load(p_weight + f, mask=m_f, other=0).to(op)[None, :]
    o = (i_h * N + i_n)[:, None] * F + f[None, :]
    tl.store(p_out + o, phi * scale[:, None], mask=(i_n < N)[:, None] & m_f[None, :])


# ---- what launchers share; they hold no state


def check_degree(op: str, degree: int) -> None:
    check(degree >= 0, op, f"degree must be >= 0, got {degree}")


def check_dtypes(op: str, tensors: dict[str, Tensor | None], input: Tensor) -> None:
    """Dtypes of ``tensors`` are that of ``input``, and of biases that of the statistics."""
    floating = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    check(input.dtype in floating, op, f"dtypes must be float32, float64, bfloat16 or float16, got {input.dtype}")
    for name, tensor in tensors.items():
        want = statistics_dtype(input) if name.startswith(("bias", "d_", "moments", "weight")) else input.dtype
        check(tensor is None or tensor.dtype == want, op, f"{name} must be {want}, got {None if tensor is None else tensor.dtype}")


def channel_table(input: Tensor, degree: int) -> Tensor:
    """[degree, R] int32, made on the device of ``input``."""
    dim = input.shape[-1]
    count = comb(dim + degree, degree)
    table = torch.empty(degree, count, dtype=torch.int32, device=input.device)
    if degree:
        arguments = (table, dim, count, max(dim - 1, 0).bit_length())
        launch(channels_kernel, triton.cdiv(count, BLOCK), input, arguments, 4, DEGREE=degree, BR=BLOCK)
    return table


def passes(dim: int, count: int, dtype: torch.dtype) -> Iterable[tuple[int, int, str]]:
    """(first feature, their number, KIND of product)."""
    kind, low = KINDS[dtype], min(dim + 1, count)
    if kind == "ieee":
        return [(0, count, kind)]
    return [(0, low, "ieee"), *([(low, count - low, kind)] if count > low else [])]


def tile(walk: str, kind: str, dtype: torch.dtype) -> tuple[int, int, int]:
    """BT, BR and warps for products of ``kind``."""
    return (16, 16, 4) if dtype == torch.float64 else TILES[walk][kind != "ieee"]


def columns_of_tile(columns: int, dtype: torch.dtype) -> int:
    return min(max(triton.next_power_of_2(columns), 16), 32 if dtype == torch.float64 else 64)


def split(blocks: int, programs: int, least: int) -> tuple[int, int]:
    """(splits, blocks of each) of a sum over ``blocks``, so that a launch of ``programs`` programs times splits fills a device; at least
    ``least`` blocks to a split."""
    wanted = min(triton.cdiv(PROGRAMS, max(programs, 1)), MOST_SPLITS, triton.cdiv(blocks, least))
    each = triton.cdiv(blocks, max(wanted, 1))
    return max(triton.cdiv(blocks, max(each, 1)), 1), each


def features(input: Tensor, bias: Tensor | None, weight: Tensor | None, table: Tensor, out_dtype: torch.dtype) -> Tensor:
    """[B, H, N, F] of the features of ``table`` [degree, F], times e^bias and weight [F]."""
    batch, heads, tokens, dim = input.shape
    degree, count = table.shape
    out = torch.empty(batch, heads, tokens, count, dtype=out_dtype, device=input.device)
    bt, br, warps = tile("apply", "ieee", out_dtype)
    tiles, blocks = triton.cdiv(tokens, bt), triton.cdiv(count, br)
    arguments = (
        input, bias, weight, table, out, tokens, heads, count, dim, tiles, blocks, *input.stride(), *row_strides(bias), table.stride(0),
    )  # fmt: skip
    launch(features_kernel, batch * heads * tiles * blocks, input, arguments, warps, DEGREE=degree, BT=bt, BR=br)
    return out


def row_strides(rows: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if rows is None else tuple(rows.stride()[:3])
