"""binned_moments, Triton.   A[g, y, b, k] = sum of c_i T_k(t_i) over the samples of group g, label y and bin b
                          v_i = sum_k table[g_i, y_i, b_i, k] T_k(t_i);   x = s inv_width, b = floor x - first_bin, t = 2 (x - floor x) - 1
Shapes: input, target, coefficient, group [N] any stride; moments, table [G, 2, bins, terms] float64; values [N] in the dtype of input.
Algorithm: a tile of samples and terms by the recurrence of T_k, its rows added atomically to one of several integer tables, so that few
    wait for the same bin; the tables are added up at the end. Values by Clenshaw's recurrence.
Cost: reads 5 to 17 N bytes per pass (8 N more with groups), and the coefficients twice; N terms integer additions, twice as many for
    float64; at most 8 MiB of tables, or one table where that is larger.
Numerics: a term is rounded to 2^-e of the largest finite |c| of its group and label (1 without coefficients), e = 62 - the bits of N, at
    most 40 for float32; what that leaves of a float64 term is added up in quanta of 2^-2e. No cell overflows, and its absolute error is
    half a quantum per sample, besides the rounding of c T_k in the dtype of input. A coefficient of 0 adds nothing to anything; with
    another one, a score that is NaN or outside the bins, or a coefficient that is not finite, makes [g, y, 0, 0] NaN. In values such a
    score gives NaN, as does a group outside [0, G), which counts nowhere. Integers: run_to_run, and in any order of the samples.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import float_pair, launch
from .cross_entropy import check

TILE = 2048  # samples times terms, float32; float64 half of it, in the same registers
BLOCK = 512  # samples of the other kernels
WARPS = 4
MOST_TERMS = 32
TABLES, CELLS = 64, 2**20  # tables, and cells of all of them, at most


@triton.jit
def locate(
    p_input, p_target, p_group, i, m, stride_s, stride_y, stride_g, num_groups, width_hi, width_lo, first_bin, bins
):  # fmt: skip
    """Whether the samples [BN] belong to a group, and to a bin; their channel 2 group + label, bin and t. A score forms no integer before
    it is known to fit."""
    op = p_input.dtype.element_ty
    channel = tl.load(p_target + i * stride_y, mask=m, other=0).to(tl.int64)
    if p_group is not None:
        group = tl.load(p_group + i * stride_g, mask=m, other=-1)
        m &= (group >= 0) & (group < num_groups)
        channel += 2 * group
    x = tl.load(p_input + i * stride_s, mask=m, other=0) * (tl.cast(width_hi, op) + tl.cast(width_lo, op))
    fits = tl.abs(x) < 4611686018427387904.0  # 2^62; not of NaN
    x = tl.where(fits, x, 0)
    low = tl.floor(x)
    b = low.to(tl.int64) - first_bin
    return m, m & fits & (b >= 0) & (b < bins), channel, b, 2 * (x - low) - 1


@triton.jit
def largest_coefficient_kernel(
    p_coefficient, p_target, p_group, p_largest, N, num_groups, stride_c, stride_y, stride_g, BN: tl.constexpr
):  # fmt: skip
    """Bits of the largest finite |c| of each channel: those of numbers that are not negative have the order of the numbers."""
    i = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    m = i < N
    c = tl.abs(tl.load(p_coefficient + i * stride_c, mask=m, other=0))
    bits = tl.where(c < float("inf"), c, 0).to(p_largest.dtype.element_ty, bitcast=True)
    label = tl.load(p_target + i * stride_y, mask=m, other=0).to(tl.int64)
    if p_group is None:
        tl.atomic_max(p_largest, tl.max(tl.where(label == 0, bits, 0), 0), sem="relaxed")
        tl.atomic_max(p_largest + 1, tl.max(tl.where(label == 0, 0, bits), 0), sem="relaxed")
    else:
        group = tl.load(p_group + i * stride_g, mask=m, other=-1)
        m &= (group >= 0) & (group < num_groups)
        p = p_largest + 2 * group + label
        # a stale maximum costs an addition that changes nothing; most need none
        tl.atomic_max(p, bits, mask=m & (bits > tl.load(p, mask=m, other=0)), sem="relaxed")


@triton.jit
def binned_moments_kernel(
    p_input, p_target, p_coefficient, p_group, p_largest, p_table, p_rest, p_invalid, N, num_groups, stride_s, stride_y, stride_c,
    stride_g, width_hi, width_lo, first_bin, bins, tables, unit, TERMS: tl.constexpr, PADDED: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    op = p_input.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    i = program * BN + tl.arange(0, BN)  # [BN]
    m, inside, channel, b, t = locate(
        p_input, p_target, p_group, i, i < N, stride_s, stride_y, stride_g, num_groups, width_hi, width_lo, first_bin, bins
    )
    scale = tl.full([BN], 1, op) * unit
    if p_coefficient is not None:
        c = tl.load(p_coefficient + i * stride_c, mask=m, other=0)
        m &= c != 0
        inside &= m & (tl.abs(c) < float("inf"))
        scale = tl.where(inside, scale * (c / tl.load(p_largest + channel, mask=inside, other=1)), 0)
    tl.store(p_invalid + channel, 1, mask=m & (inside == 0))
    k = tl.arange(0, PADDED)[None, :]
    term = tl.full([BN, PADDED], 1, op)
    following = term * t[:, None]
    for n in tl.static_range(1, TERMS):  # column k stops at T_k
        further = 2 * t[:, None] * following - term
        term = tl.where(k >= n, following, term)
        following = tl.where(k >= n, further, following)
    term *= scale[:, None]
    quanta = tl.floor(term + 0.5)
    cell = (((program % tables) * 2 * num_groups + channel) * bins + b)[:, None] * PADDED + k
    m_nk = inside[:, None] & (k < TERMS)
    tl.atomic_add(p_table + cell, quanta.to(tl.int64), mask=m_nk, sem="relaxed")
    if p_rest is not None:
        tl.atomic_add(p_rest + cell, tl.floor((term - quanta) * unit + 0.5).to(tl.int64), mask=m_nk, sem="relaxed")


@triton.jit
def binned_values_kernel(
    p_input, p_target, p_group, p_table, p_out, N, num_groups, stride_s, stride_y, stride_g, width_hi, width_lo, first_bin, bins,
    TERMS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    _, inside, channel, b, t = locate(
        p_input, p_target, p_group, i, i < N, stride_s, stride_y, stride_g, num_groups, width_hi, width_lo, first_bin, bins
    )
    p = p_table + (channel * bins + b) * TERMS
    one = tl.zeros([BN], p_out.dtype.element_ty)
    two = one
    for back in tl.static_range(1, TERMS):
        one, two = tl.load(p + (TERMS - back), mask=inside, other=0) + (2 * t * one - two), one
    value = tl.load(p, mask=inside, other=0) + (t * one - two)
    tl.store(p_out + i, tl.where(inside, value, float("nan")), mask=i < N)


# ---- launchers: signatures of the ops


def check_samples(
    op: str, input: Tensor, target: Tensor, group: Tensor | None, num_groups: int, first_bin: int, bins: int, terms: int
) -> None:
    check(input.dim() == 1, op, f"input must have shape (N,), got {input.dim()} dimensions")
    check(input.dtype in (torch.float32, torch.float64), op, "input must be float32 or float64")
    check(target.dtype == torch.bool and target.shape == input.shape, op, "target must be bool of shape (N,)")
    check(group is None or (group.dtype == torch.int64 and group.shape == input.shape), op, "group must be int64 of shape (N,)")
    fits = num_groups >= 0 and (group is not None or num_groups == 1)
    check(fits, op, f"num_groups must be >= 0, and 1 without group, got {num_groups}")
    fits = bins > 0 and 0 < terms <= MOST_TERMS
    check(fits, op, f"bins must be > 0 and terms in 1 to {MOST_TERMS}, got {bins} and {terms}")
    exact = 2**24 if input.dtype == torch.float32 else 2**52
    check(-exact < first_bin and first_bin + bins < exact, op, f"first_bin must be within +-{exact}, got {first_bin}")


def fraction_bits(count: int, dtype: torch.dtype) -> int:
    """Of a quantum: so many that the sum of ``count`` terms of size 1, and of their roundings, is below 2^63."""
    return min(62 - count.bit_length(), 40 if dtype == torch.float32 else 62)


def stride(values: Tensor | None) -> int:
    return 0 if values is None else values.stride(0)


def binned_moments(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, inv_width: float, first_bin: int,
    bins: int, terms: int,
) -> Tensor:  # fmt: skip
    op, count, device = "binned_moments", input.numel(), input.device
    check_samples(op, input, target, group, num_groups, first_bin, bins, terms)
    fits = coefficient is None or (coefficient.dtype == input.dtype and coefficient.shape == input.shape)
    check(fits, op, "coefficient must have the shape and dtype of input")
    channels = 2 * num_groups
    single = input.dtype == torch.float32
    bits = fraction_bits(count, input.dtype)
    largest = None
    if coefficient is not None:
        largest = torch.zeros(channels, dtype=torch.int32 if single else torch.int64, device=device)
        strides = (coefficient.stride(0), target.stride(0), stride(group))
        arguments = (coefficient, target, group, largest, count, num_groups, *strides)
        launch(largest_coefficient_kernel, triton.cdiv(count, BLOCK), input, arguments, WARPS, BN=BLOCK)
        largest = largest.view(input.dtype)
    padded = triton.next_power_of_2(terms)
    block = max(16, min(BLOCK, TILE // padded // (1 if single else 2)))
    programs = triton.cdiv(count, block)
    words = 1 if single else 2
    tables = max(1, min(TABLES, programs, CELLS // max(1, words * channels * bins * padded)))
    table = torch.zeros(words, tables, channels, bins, padded, dtype=torch.int64, device=device)
    invalid = torch.zeros(channels, dtype=torch.int32, device=device)
    arguments = (
        input, target, coefficient, group, largest, table[0], None if single else table[1], invalid, count, num_groups, stride(input),
        stride(target), stride(coefficient), stride(group), *float_pair(inv_width), first_bin, bins, tables, 2.0**bits,
    )  # fmt: skip
    launch(binned_moments_kernel, programs, input, arguments, WARPS, TERMS=terms, PADDED=padded, BN=block)
    sums = table.sum(1)[..., :terms].double()
    moments = sums[0] * 2.0**-bits
    if not single:
        moments += sums[1] * 2.0 ** (-2 * bits)
    if largest is not None:
        moments *= largest.double()[:, None, None]
    moments[:, 0, 0].masked_fill_(invalid != 0, torch.nan)
    return moments.view(num_groups, 2, bins, terms)


def binned_values(input: Tensor, target: Tensor, group: Tensor | None, table: Tensor, inv_width: float, first_bin: int) -> Tensor:
    op = "binned_values"
    fits = table.dtype == torch.float64 and table.dim() == 4 and table.shape[1] == 2
    check(fits, op, "table must be float64 of shape (G, 2, bins, terms)")
    num_groups, _, bins, terms = table.shape
    check_samples(op, input, target, group, num_groups, first_bin, bins, terms)
    out = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    arguments = (
        input, target, group, table.to(input.dtype).contiguous(), out, input.numel(), num_groups, stride(input), stride(target),
        stride(group), *float_pair(inv_width), first_bin, bins,
    )  # fmt: skip
    launch(binned_values_kernel, triton.cdiv(input.numel(), BLOCK), input, arguments, WARPS, TERMS=terms, BN=BLOCK)
    return out
