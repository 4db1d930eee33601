"""Sums over the pairs of a diagonal score and any other one, of two sets of embeddings, as ops. Schemas: csrc/schema.cpp.

    tile = q_r d^T / temperature                   one matrix product: the scores of some queries with every document
    A += moments of the tile                       binned_moments: of the diagonal, of the other scores
    total = <A_diagonal, V>                        V = the potentials of pair_bins.py, between bins
    tile again <- slope of the total               binned_values
    d_q_r = tile d / temperature;  d_d += tile^T q_r / temperature

The bins are those of all scores that embeddings of such lengths can have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import pair_bins
from ..linear_plan import DEFAULT_WORKSPACE_BYTES
from ..linear_tiles import product, product_into
from ..surrogates import Logistic
from ._register import register_second_derivative, stats_dtype

_ops = torch.ops.nearlinear
_KEY = "CompositeExplicitAutograd"
_NAME = "linear_mw_loss"
_ROWS = {"cpu": 256, "cuda": 4096}  # beyond, the products gain nothing
_BINS = 2050  # at most, of 512 of scores: a shape must not depend on values
_LOGISTIC = Logistic()
_SLACK = 1 + 1 / 64  # rounding may carry a score beyond the bound, most with matmul precision "medium"


class _Scores:
    """The scores of one call, a tile of rows at a time."""

    def __init__(self, query: Tensor, document: Tensor, inv_temperature: float, limit: int | None) -> None:
        self.query, self.wide, self.inv_temperature = query, stats_dtype(query), inv_temperature
        # 16-bit operands are multiplied as they are on CUDA, with a float32 result; elsewhere they are converted
        self.native = query.dtype == self.wide or query.is_cuda
        self.step = self._rows(query, document, limit)
        self.document = document if self.native else document.to(self.wide)

    def _rows(self, query: Tensor, document: Tensor, limit: int | None) -> int:
        """Rows of a tile: scores, their slopes, which are on the diagonal, queries and their gradient; before them converted documents and
        the float32 gradient of 16-bit ones."""
        wide, half = self.wide.itemsize, query.dtype != self.wide
        limit = DEFAULT_WORKSPACE_BYTES[query.device.type] if limit is None else limit
        fixed = (2 - self.native) * half * document.numel() * wide
        each = len(document) * (2 * wide + 1 + 2 * (half and self.native)) + 2 * query.shape[1] * wide
        if fixed + each > limit:
            raise ValueError(f"{_NAME}: max_workspace_bytes must be >= {fixed + each}, got {limit}")
        return max(1, min((limit - fixed) // max(each, 1), _ROWS[query.device.type], len(query)))

    def tiles(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows, their queries, their scores as a line, and which of these are on the diagonal."""
        columns = len(self.document)
        options = {"out_dtype": self.wide} if self.native and self.query.dtype != self.wide else {}
        buffer = self.query.new_empty(self.step * columns, dtype=self.wide)
        own = torch.zeros(self.step * columns, dtype=torch.bool, device=self.query.device)
        for begin in range(0, len(self.query), self.step):
            rows = slice(begin, min(begin + self.step, len(self.query)))
            q = self.query[rows] if self.native else self.query[rows].to(self.wide)
            line, mark = (t[: len(q) * columns] for t in (buffer, own))
            tile = line.view(len(q), columns)
            torch.addmm(tile, q, self.document.t(), beta=0, alpha=self.inv_temperature, out=tile, **options)
            diagonal = mark.view(len(q), columns).diagonal(begin)
            diagonal.fill_(True)
            yield rows, q, line, mark
            diagonal.fill_(False)


def _bound(query: Tensor, document: Tensor) -> Tensor:
    """Largest magnitude of a product, float64."""
    if not query.numel() or not document.numel():
        return query.new_zeros((), dtype=torch.float64)
    lengths = [torch.linalg.vector_norm(x, dim=1, dtype=stats_dtype(x)).amax().double() for x in (query, document)]
    return lengths[0] * lengths[1]


def _grid(query: Tensor, document: Tensor, bound: Tensor, inv_temperature: float) -> pair_bins.Grid | None:
    """The bins of the scores within the bound, which is read on the CPU; None if an embedding is not finite."""
    most = float(bound) * inv_temperature
    if not math.isfinite(most) and not (query.isfinite().all() and document.isfinite().all()):
        return None
    wide, count = stats_dtype(query), len(query) * len(document)
    end = (most + 1 / 64) * _SLACK  # lengths underflow where a score is not 0 yet
    grid = pair_bins.Grid.over(-end, end, _LOGISTIC.scale, wide, count)
    if grid is None:
        raise ValueError(
            f"{_NAME}: max |query| max |document| / temperature must be <= {256 / _SLACK:.0f}, got {most:.4g}; use "
            "rows of unit length or a larger temperature"
        )
    return grid


# ---- linear_mw_sum(query, document, inv_temperature, max_workspace_bytes) -> total, float64; moments and bound, for its derivative


@torch.library.impl("nearlinear::linear_mw_sum", _KEY)
def _(
    query: Tensor, document: Tensor, inv_temperature: float, max_workspace_bytes: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.autocast(query.device.type, enabled=False):
        scores, bound = _Scores(query, document, inv_temperature, max_workspace_bytes), _bound(query, document)
        padded = _padded(query)
        grid = _grid(query, document, bound, inv_temperature)
        if grid is None:
            return torch.full_like(bound, torch.nan), padded, bound
        moments = padded[:, :, : grid.bins, : grid.terms]
        for _, _, line, own in scores.tiles():
            moments += _ops.binned_moments(line, own, None, None, 1, *grid.arguments)
        (table,) = pair_bins.potentials((_LOGISTIC.analytic(0),), grid, moments)
        return (moments[:, 1] * table[:, 1]).sum(), padded, bound


def _padded(query: Tensor) -> Tensor:
    return query.new_zeros(1, 2, _BINS, max(pair_bins.TERMS[stats_dtype(query)]), dtype=torch.float64)


@torch.library.register_fake("nearlinear::linear_mw_sum")
def _(query: Tensor, document: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    total, bound = (query.new_empty((), dtype=torch.float64) for _ in range(2))
    return total, _padded(query), bound


@torch.library.impl("nearlinear::linear_mw_sum_backward", _KEY)
def _(
    d_total: Tensor, query: Tensor, document: Tensor, moments: Tensor, bound: Tensor, inv_temperature: float,
    max_workspace_bytes: int | None, wants: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with torch.autocast(query.device.type, enabled=False):
        scores = _Scores(query, document, inv_temperature, max_workspace_bytes)
        grid = _grid(query, document, bound, inv_temperature)
        d_query = torch.empty_like(query) if wants[0] else query.new_empty(0)
        d_document = torch.zeros_like(document, dtype=scores.wide) if wants[1] else document.new_zeros(0, dtype=scores.wide)
        if grid is None:
            return d_query.fill_(torch.nan), d_document.fill_(torch.nan).to(query.dtype)
        (table,) = pair_bins.potentials((_LOGISTIC.analytic(1),), grid, moments[:, :, : grid.bins, : grid.terms])
        table[:, 0].neg_()
        # slopes of at most 1 before their products: those of 16 bits neither overflow nor vanish
        largest = table.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
        table /= largest
        factor = d_total * largest * inv_temperature
        for rows, q, line, own in scores.tiles():
            slope = _ops.binned_values(line, own, None, table, grid.inv_width, grid.first).view(len(q), len(document)).to(q.dtype)
            if wants[0]:
                d_query[rows] = product(slope, scores.document, scores.wide).mul_(factor)
            if wants[1]:
                product_into(d_document, slope.t(), q, first=False)
            del slope  # before the next tile's
        return d_query, d_document.mul_(factor).to(query.dtype)


@torch.library.register_fake("nearlinear::linear_mw_sum_backward")
def _(d_total: Tensor, query: Tensor, document: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    d_query, d_document = (x.new_empty(x.shape if wanted else [0]) for x, wanted in zip((query, document), rest[-1], strict=True))
    return d_query, d_document


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, document, *ctx.options = inputs
    ctx.save_for_backward(query, document, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_total: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_total is None:
        return (None,) * 4
    wants = list(ctx.needs_input_grad[:2])
    found = _ops.linear_mw_sum_backward(d_total, *ctx.saved_tensors, *ctx.options, wants)
    return *(d if wanted else None for d, wanted in zip(found, wants, strict=True)), None, None


def _gradient(
    d_total: Tensor, query: Tensor, document: Tensor, moments: Tensor, bound: Tensor, inv_temperature: float,
    max_workspace_bytes: int | None, wants: list[bool],
) -> list[Tensor]:  # fmt: skip
    """The two gradients in differentiable torch: all scores are stored."""
    q, d = (x.to(stats_dtype(query)) for x in (query, document))
    scores = q @ d.t() * inv_temperature
    own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device).flatten()
    total = _ops.pairwise_sum(scores.flatten(), own, None, None, 1, _LOGISTIC.name, _LOGISTIC.params, "auto", [], False)[0]
    leaves = [x for x, wanted in zip((query, document), wants, strict=True) if wanted]
    found = iter(torch.autograd.grad(total, leaves, d_total.view(1), create_graph=True))
    return [next(found) if wanted else query.new_zeros(0) for wanted in wants]


torch.library.register_autograd("nearlinear::linear_mw_sum", _backward, setup_context=_setup)
register_second_derivative("nearlinear::linear_mw_sum_backward", _gradient, differentiable=(0, 1, 2))
