"""taylor_scan, Triton.   sums_i = sum_f q_if S1_i[f] * S2_i[f],   S_i[f] = sum_{j <= i} k_jf (value_j, 1) for each of the two keys,
                       q = weight phi(query), k = e^bias phi(key)
Shapes: query [B, H, N, D], keys [B, G, N, D], values [B, G, N, E], biases [B, G, N], any strides; weight [R]; sums [B, H, N, E + 1].
Algorithm: the recurrences of the features are independent: a program owns a block of features and all columns of a head of keys, with S1
    and S2 in registers, and walks a chunk of tokens; the query heads of the keys share S1 * S2. Features of a chunk are written out
    first, sums of blocks of features are added in a fixed order after it, and states are carried to the next chunk.
Cost: 6 N R (E + 1) FLOP, one token after the other; temporaries of a chunk of at most BUDGET bytes, and the states [2, B, G, R, E + 1].
Numerics: float32 (float64 for float64), also for halves; a state is the one at the start of a run or chunk and what came since, so that its
    error does not grow with N; keys with bias -inf take no part; the sums of the first tokens do not depend on later ones; run_to_run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launch
from .cross_entropy import check, statistics_dtype
from .taylor_features import channel_table, check_degree, check_dtypes, features

BUDGET = 2**28  # bytes of temporaries
CHUNK = 512  # tokens of a chunk, backward; at most, forward
TILES = {torch.float32: (16, 128), torch.float64: (4, 32)}  # features, and columns at most, of a program: as many as spill nothing


@triton.jit
def tile_of(i_g, i_f, i_e, F, C, BR: tl.constexpr, BE: tl.constexpr):
    """Features f [BR] and columns e [BE], their masks, offsets and mask [BR, BE] of a state."""
    f, e = i_f * BR + tl.arange(0, BR), i_e * BE + tl.arange(0, BE)
    m_f, m_e = f < F, e < C
    return f, e, m_f, m_e, (i_g * F + f)[:, None] * C + e[None, :], m_f[:, None] & m_e[None, :]


@triton.jit
def term(p_k, p_v, n, F, C, m_f, m_e):
    """k_n (value_n, 1), from pointers [BR] and [BE] to the first token."""
    k, v = tl.load(p_k + n * F, mask=m_f, other=0), tl.load(p_v + n * C, mask=m_e, other=0)
    return k[:, None] * v[None, :]


@triton.jit
def scan_kernel(
    p_q, p_k1, p_k2, p_v1, p_v2, p_state1, p_state2, p_out, heads, N, L, group, F, C, blocks_f, blocks_e, BR: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    """L tokens: features [B, G or H, L, F], values [B, G, N, C], and states [B, G, F, C], which are carried on; without ``p_q`` no more."""
    op = p_state1.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    i_f, i_g = program // blocks_e % blocks_f, program // blocks_e // blocks_f
    f, e, m_f, m_e, o_state, m_state = tile_of(i_g, i_f, program % blocks_e, F, C, BR, BE)
    s1, s2 = tl.load(p_state1 + o_state, mask=m_state, other=0), tl.load(p_state2 + o_state, mask=m_state, other=0)
    since1, since2 = tl.zeros([BR, BE], op), tl.zeros([BR, BE], op)
    o_k, o_v = i_g * L * F + f, i_g * N * C + e
    for n in range(tl.cast(0, tl.int64), L):
        since1 += term(p_k1 + o_k, p_v1 + o_v, n, F, C, m_f, m_e)
        since2 += term(p_k2 + o_k, p_v2 + o_v, n, F, C, m_f, m_e)
        if p_q is not None:
            both = (s1 + since1) * (s2 + since2)
            for h in range(group):
                i_row = (i_g * group + h) * L + n
                q = tl.load(p_q + i_row * F + f, mask=m_f, other=0)
                tl.store(p_out + (i_f * heads * L + i_row) * C + e, tl.sum(q[:, None] * both, 0), mask=m_e)
    tl.store(p_state1 + o_state, s1 + since1, mask=m_state)
    tl.store(p_state2 + o_state, s2 + since2, mask=m_state)


# ---- launchers: they hold no state


def check_scan(
    op: str, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], biases: Sequence[Tensor | None], weight: Tensor, degree: int
) -> None:
    check_degree(op, degree)
    check(query.dim() == 4, op, f"query must have shape (B, H, N, D), got {list(query.shape)}")
    batch, heads, tokens, dim = query.shape
    groups = keys[0].shape[1] if keys[0].dim() == 4 else 0
    check(groups > 0 and heads % groups == 0, op, f"the heads of key1 must divide those of query, {heads}, got {groups}")
    rows = (batch, groups, tokens)
    for t, (key, value, bias) in enumerate(zip(keys, values, biases, strict=True), 1):
        check(key.shape == (*rows, dim), op, f"key{t} must have shape {[*rows, dim]}, got {list(key.shape)}")
        fits = value.dim() == 4 and value.shape == (*rows, values[0].shape[3])
        check(fits, op, f"value{t} must have shape (B, G, N, E), got {list(value.shape)}")
        check(bias is None or bias.shape == rows, op, f"bias{t} must have shape {list(rows)}")
        check_dtypes(op, {f"key{t}": key, f"value{t}": value, f"bias{t}": bias}, query)
    count = comb(dim + degree, degree)
    check(weight.shape == (count,), op, f"weight must have shape ({count},), got {list(weight.shape)}")
    check_dtypes(op, {"weight": weight}, query)


def with_ones(value: Tensor, bias: Tensor | None) -> Tensor:
    """[B, G, N, E + 1] in the dtype of the statistics, 0 for keys that take no part."""
    rows = torch.ones(*value.shape[:3], value.shape[3] + 1, dtype=statistics_dtype(value), device=value.device)
    rows[..., :-1] = value
    return rows if bias is None else rows.masked_fill_(bias.isneginf().unsqueeze(3), 0)


def blocks(count: int, columns: int, op: torch.dtype) -> tuple[int, int, dict[str, int], int]:
    """Blocks of features and of columns, their sizes, and the warps with which each thread has a column of its own."""
    br, most = TILES[op]
    be = min(max(triton.next_power_of_2(columns), 32), most)
    return triton.cdiv(count, br), triton.cdiv(columns, be), {"BR": br, "BE": be}, be // 32


def walk(q: Tensor | None, keys: Sequence[Tensor], values: Sequence[Tensor], state: Tensor, parts: Tensor | None) -> None:
    """Carry the states [2, B, G, F, C] over the tokens of ``keys``; ``values`` begin with them and may have more. With features ``q`` of
    the queries, ``parts`` are the sums of each block of features."""
    batch, groups, length, count = keys[0].shape
    heads, columns = groups if q is None else q.shape[1], values[0].shape[3]
    blocks_f, blocks_e, sizes, warps = blocks(count, columns, state.dtype)
    arguments = (
        q, *keys, *values, state[0], state[1], parts, batch * heads, values[0].stride(1) // columns, length, heads // groups, count,
        columns, blocks_f, blocks_e,
    )  # fmt: skip
    launch(scan_kernel, batch * groups * blocks_f * blocks_e, state, arguments, warps, **sizes)


def taylor_scan(
    query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None, weight: Tensor,
    degree: int,
) -> Tensor:  # fmt: skip
    check_scan("taylor_scan", query, (key1, key2), (value1, value2), (bias1, bias2), weight, degree)
    key_biases = ((key1, bias1), (key2, bias2))
    (batch, heads, tokens, _), groups, columns, op = query.shape, key1.shape[1], value1.shape[3] + 1, weight.dtype
    values, table = (with_ones(value1, bias1), with_ones(value2, bias2)), channel_table(query, degree)
    count = weight.shape[0]
    state = torch.zeros(2, batch, groups, count, columns, dtype=op, device=query.device)
    out = torch.empty(batch, heads, tokens, columns, dtype=op, device=query.device)
    blocks_f = blocks(count, columns, op)[0]
    a_token = batch * (heads * (blocks_f * columns + count) + 2 * groups * count) * op.itemsize
    chunk = max(min(BUDGET // max(a_token, 1), CHUNK), 1)
    for begin in range(0, tokens, chunk):
        rows = slice(begin, min(begin + chunk, tokens))
        q = features(query[:, :, rows], None, weight.contiguous(), table, op)
        keys = [features(key[:, :, rows], bias if bias is None else bias[:, :, rows], None, table, op) for key, bias in key_biases]
        parts = torch.empty(blocks_f, batch, heads, q.shape[2], columns, dtype=op, device=query.device)
        walk(q, keys, [v[:, :, begin:] for v in values], state, parts)
        out[:, :, rows] = parts.sum(0)
    return out
