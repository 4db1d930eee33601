"""taylor_scan_backward, Triton.   R1_j[f] = sum_{i >= j} q_if d_sums_i * S2_i[f],   d_k1_j = R1_j (value1_j, 1),
                                d_(value1_j, 1) = R1_j^T k1_j,   the same with 1 and 2 exchanged,
                                d_q_if = <d_sums_i, S1_i[f] * S2_i[f]>,   q, k and S as in taylor_scan.py
Shapes: as in taylor_scan.py; d_sums any strides.
Algorithm: blocks of features in turn. A pass forward keeps the states at the starts of chunks. Then, from the last chunk, a program
    walks its chunk once for the states at the starts of runs of 16 tokens, and each run once more for the states at its tokens, which
    it keeps in memory of its own, before it walks the run backwards with R1 and R2 in registers. Nothing is ever subtracted from a
    state. What comes out are gradients of features, folded into channels chunk by chunk (taylor_attention_backward.py).
Cost: 20 N R (E + 1) FLOP, one token after the other, and the folding; temporaries of BUDGET bytes, or those of one block of 16 features
    where they are more. ``wants`` spares no more than the folding.
Numerics: as forward; R1 and R2 too are sums of sums of at most 16 tokens; sums over query heads in a fixed order; run_to_run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launch
from .cross_entropy import check
from .taylor_attention_backward import fold
from .taylor_features import channel_table, check_dtypes, features
from .taylor_scan import BUDGET, CHUNK, blocks, check_scan, term, tile_of, walk, with_ones

RUN = tl.constexpr(16)  # tokens whose states a program keeps


@triton.jit
def query_back(p_q, p_d, p_d_q, s1, s2, i_h, group, n, N, L, F, C, f, e, m_f, m_e, heads_e):
    """What token n adds to R1 and R2, over the ``group`` query heads from ``i_h``; writes their d_q."""
    both, outer = s1 * s2, s1 * 0
    for _ in range(group):
        q = tl.load(p_q + (i_h * L + n) * F + f, mask=m_f, other=0)
        d = tl.load(p_d + (i_h * N + n) * C + e, mask=m_e, other=0)
        outer += q[:, None] * d[None, :]
        tl.store(p_d_q + ((heads_e + i_h) * L + n) * F + f, tl.sum(both * d[None, :], 1), mask=m_f)
        i_h += 1
    return outer * s2, outer * s1


@triton.jit
def key_back(p_k, p_v, p_d_k, p_d_v, rest, n, F, C, m_f, m_e):
    """Writes d_k and d_(value, 1) of token n, from its R."""
    k, v = tl.load(p_k + n * F, mask=m_f, other=0), tl.load(p_v + n * C, mask=m_e, other=0)
    tl.store(p_d_k + n * F, tl.sum(rest * v[None, :], 1), mask=m_f)
    tl.store(p_d_v + n * C, tl.sum(rest * k[:, None], 0), mask=m_e)


@triton.jit
def scan_backward_kernel(
    p_q, p_k1, p_k2, p_v1, p_v2, p_d, p_state1, p_state2, p_rest1, p_rest2, p_scratch, p_d_q, p_d_k1, p_d_k2, p_d_v1, p_d_v2,
    keys, heads, N, L, group, F, C, runs, blocks_f, blocks_e, BR: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """L tokens from the last, with the states before them; R1 and R2 are carried on. The scratch has runs + RUN pairs of states a program:
    those before each run, then those after each token of one run. No program reads another's, so barriers within it suffice."""
    op = p_state1.dtype.element_ty
    program, pair = tl.program_id(0).to(tl.int64), 2 * BR * BE
    i_e, i_f, i_g = program % blocks_e, program // blocks_e % blocks_f, program // blocks_e // blocks_f
    f, e, m_f, m_e, o_state, m_state = tile_of(i_g, i_f, i_e, F, C, BR, BE)
    p_k1, p_k2, p_v1, p_v2 = p_k1 + i_g * L * F + f, p_k2 + i_g * L * F + f, p_v1 + i_g * N * C + e, p_v2 + i_g * N * C + e
    o_dk, o_dv = (i_e * keys + i_g) * L * F + f, (i_f * keys + i_g) * L * C + e
    p_run = p_scratch + program * (runs + RUN) * pair + tl.arange(0, BR)[:, None] * BE + tl.arange(0, BE)[None, :]
    p_token = p_run + tl.cast(runs, tl.int64) * pair
    s1, s2 = tl.load(p_state1 + o_state, mask=m_state, other=0), tl.load(p_state2 + o_state, mask=m_state, other=0)
    r1, r2 = tl.load(p_rest1 + o_state, mask=m_state, other=0), tl.load(p_rest2 + o_state, mask=m_state, other=0)
    for run in range(tl.cast(0, tl.int64), runs):
        tl.store(p_run + run * pair, s1)
        tl.store(p_run + run * pair + BR * BE, s2)
        since1, since2 = tl.zeros([BR, BE], op), tl.zeros([BR, BE], op)
        for n in range(run * RUN, tl.minimum((run + 1) * RUN, L)):
            since1 += term(p_k1, p_v1, n, F, C, m_f, m_e)
            since2 += term(p_k2, p_v2, n, F, C, m_f, m_e)
        s1, s2 = s1 + since1, s2 + since2
    for back in range(tl.cast(0, tl.int64), runs):
        run = runs - 1 - back
        begin, end = run * RUN, tl.minimum((run + 1) * RUN, L)
        tl.debug_barrier()
        s1, s2 = tl.load(p_run + run * pair), tl.load(p_run + run * pair + BR * BE)
        for n in range(begin, end):
            s1 += term(p_k1, p_v1, n, F, C, m_f, m_e)
            s2 += term(p_k2, p_v2, n, F, C, m_f, m_e)
            tl.store(p_token + (n - begin) * pair, s1)
            tl.store(p_token + (n - begin) * pair + BR * BE, s2)
        tl.debug_barrier()
        since1, since2 = tl.zeros([BR, BE], op), tl.zeros([BR, BE], op)
        for later in range(begin, end):
            n = begin + end - 1 - later
            p_own = p_token + (n - begin) * pair
            add1, add2 = query_back(
                p_q, p_d, p_d_q, tl.load(p_own), tl.load(p_own + BR * BE), i_g * group, group, n, N, L, F, C, f, e, m_f, m_e, i_e * heads
            )
            since1, since2 = since1 + add1, since2 + add2
            key_back(p_k1, p_v1, p_d_k1 + o_dk, p_d_v1 + o_dv, r1 + since1, n, F, C, m_f, m_e)
            key_back(p_k2, p_v2, p_d_k2 + o_dk, p_d_v2 + o_dv, r2 + since2, n, F, C, m_f, m_e)
        r1, r2 = r1 + since1, r2 + since2
    tl.store(p_rest1 + o_state, r1, mask=m_state)
    tl.store(p_rest2 + o_state, r2, mask=m_state)


# ---- launchers: they hold no state


def walk_back(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], d_sums: Tensor, state: Tensor, rest: Tensor
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """d_q, d_k and d_(value, 1) of a chunk; ``values`` and ``d_sums`` begin with it and may have more tokens."""
    (batch, heads, length, count), groups, columns = q.shape, keys[0].shape[1], values[0].shape[3]
    blocks_f, blocks_e, sizes, warps = blocks(count, columns, state.dtype)
    runs = triton.cdiv(length, RUN.value)
    programs = batch * groups * blocks_f * blocks_e

    def fresh(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=q.dtype, device=q.device)

    d_q, scratch = fresh(blocks_e, *q.shape), fresh(programs, runs + RUN.value, 2, sizes["BR"], sizes["BE"])
    d_keys = [fresh(blocks_e, *keys[0].shape) for _ in keys]
    d_values = [fresh(blocks_f, batch, groups, length, columns) for _ in keys]
    arguments = (
        q, *keys, *values, d_sums, state[0], state[1], rest[0], rest[1], scratch, d_q, *d_keys, *d_values, batch * groups, batch * heads,
        values[0].stride(1) // columns, length, heads // groups, count, columns, runs, blocks_f, blocks_e,
    )  # fmt: skip
    launch(scan_backward_kernel, programs, q, arguments, warps, **sizes)
    return d_q.sum(0), [d.sum(0) for d in d_keys], [d.sum(0) for d in d_values]


def features_at_once(batch: int, heads: int, groups: int, tokens: int, columns: int, op: torch.dtype) -> int:
    """Whose temporaries keep to BUDGET: states at the starts of chunks, scratch, features and their gradients, d_value of blocks."""
    _, blocks_e, sizes, _ = blocks(1, columns, op)
    length = min(CHUNK, tokens)
    states = 2 * groups * columns * (triton.cdiv(tokens, CHUNK) + 2)
    scratch = 2 * groups * (length // RUN.value + 1 + RUN.value) * sizes["BE"] * blocks_e
    rows = length * ((2 + blocks_e) * (heads + 2 * groups) + 2 * groups * columns // sizes["BR"])
    return max(BUDGET // max(batch * (states + scratch + rows) * op.itemsize, 1) // sizes["BR"], 1) * sizes["BR"]


class Gradients:
    """Of all tokens, in the dtype of the statistics, gathered block of features by block."""

    def __init__(self, tensors: Sequence[Tensor], biases: Sequence[Tensor | None], columns: int, op: torch.dtype, folded: list[bool]):
        self.tensors, self.biases, self.folded = tensors, (None, *biases), folded
        shape = (*tensors[1].shape[:3], columns)
        self.channels = [torch.zeros(t.shape, dtype=op, device=t.device) for t in tensors]
        self.values = [torch.zeros(shape, dtype=op, device=t.device) for t in tensors[1:]]

    def add(self, rows: slice, d_phis: Sequence[Tensor], d_values: Sequence[Tensor], table: Tensor) -> None:
        for total, tensor, bias, d_phi, wanted in zip(self.channels, self.tensors, self.biases, d_phis, self.folded, strict=True):
            if wanted:
                bias = None if bias is None else bias[:, :, rows]
                total[:, :, rows] += fold(tensor[:, :, rows], None, None, bias, None, d_phi, table, table.shape[1], "ieee")
        for total, d_value in zip(self.values, d_values, strict=True):
            total[:, :, rows] += d_value


def taylor_scan_backward(
    d_sums: Tensor, query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, bias1: Tensor | None, bias2: Tensor | None,
    weight: Tensor, degree: int, wants: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    op = "taylor_scan_backward"
    inputs, biases = (query, key1, key2), (bias1, bias2)
    check_scan(op, query, inputs[1:], (value1, value2), biases, weight, degree)
    shape = [*query.shape[:3], value1.shape[3] + 1]
    check(list(d_sums.shape) == shape, op, f"d_sums must have shape {shape}, got {list(d_sums.shape)}")
    check_dtypes(op, {"d_sums": d_sums}, query)
    (batch, heads, tokens, columns), groups = shape, key1.shape[1]
    values, d_sums = (with_ones(value1, bias1), with_ones(value2, bias2)), d_sums.contiguous()
    table, found = channel_table(query, degree), Gradients(inputs, biases, columns, weight.dtype, wants[:3])
    span = features_at_once(batch, heads, groups, tokens, columns, weight.dtype)
    chunks = [slice(begin, min(begin + CHUNK, tokens)) for begin in range(0, tokens, CHUNK)]
    for first in range(0, weight.shape[0], span):
        part, w = table[:, first : first + span], weight[first : first + span].contiguous()

        def keys_of(rows: slice, part: Tensor = part) -> list[Tensor]:
            pairs = zip(inputs[1:], biases, strict=True)
            return [features(k[:, :, rows], None if b is None else b[:, :, rows], None, part, weight.dtype) for k, b in pairs]

        state = torch.zeros(2, batch, groups, len(w), columns, dtype=weight.dtype, device=query.device)
        rest, states = torch.zeros_like(state), []
        for rows in chunks:
            states.append(state.clone())
            walk(None, keys_of(rows), [v[:, :, rows.start :] for v in values], state, None)
        for rows in reversed(chunks):
            q = features(query[:, :, rows], None, w, part, weight.dtype)
            later = [v[:, :, rows.start :] for v in (*values, d_sums)]
            d_q, d_keys, d_values = walk_back(q, keys_of(rows), later[:2], later[2], states.pop(), rest)
            found.add(rows, (d_q.mul_(w), *d_keys), d_values, part)
    return finish(found, values, (value1, value2), wants)


def finish(found: Gradients, rows: Sequence[Tensor], values: Sequence[Tensor], wants: list[bool]) -> tuple[Tensor, ...]:
    """The seven gradients in the dtypes of their tensors, of no elements where nobody asks."""
    none = found.values[0].new_empty([0])
    rates = [1 if bias is None else bias.exp().unsqueeze(3) for bias in found.biases]
    channels = [
        (d * rate).to(t.dtype) if wanted else none.to(t.dtype)
        for d, rate, t, wanted in zip(found.channels, rates, found.tensors, wants[:3], strict=True)
    ]
    d_values = [
        d[..., :-1].to(v.dtype, copy=True, memory_format=torch.contiguous_format) if wanted else none.to(v.dtype)
        for d, v, wanted in zip(found.values, values, wants[3:5], strict=True)
    ]
    d_biases = [
        (d * v).sum(3) if wanted and bias is not None else none
        for d, v, bias, wanted in zip(found.values, rows, found.biases[1:], wants[5:], strict=True)
    ]
    return *channels, *d_values, *d_biases
