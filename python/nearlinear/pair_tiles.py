"""The walk over tiles of pair scores, rows against columns: the same embeddings (a row's pair with itself left out), or keys.

    tile = rows(x_r) columns(w_c)^T                                    one matrix product
    statistics of the tile's rows, merged over c                       pair_tile_stats, pair_tile_extremes
    tile <- d loss / d tile                                            pair_tile_stats_backward_, in place
    d_x_r += tile columns(w_c);   with keys  d_w_c += tile^T rows(x_r)

Without keys the scores are symmetric: the gradient of s_ij and that of s_ji are added in the tile from the statistics of both rows, and one
product replaces two. Shapes: input [N, D], key [M, D]; statistics [2, N]. Computes in float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .ops._register import stats_dtype
from .score_maps import ScoreMap

_ops = torch.ops.nearlinear

# CPU: the tile stays in a shared cache between the product and the kernel; CUDA: enough rows to fill the device
DEFAULT_TILE_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
FEWEST_ROWS = 64  # of a tile that is cut along its columns
LEAST_TILE_BYTES = 8 * FEWEST_ROWS


@dataclass
class Pairs:
    """One call's tensors; its converted and embedded copies are O((N + M) D)."""

    input: Tensor
    key: Tensor | None
    target: Tensor
    key_target: Tensor | None
    other_target: Tensor | None
    mixing: Tensor | None
    score_map: ScoreMap
    max_workspace_bytes: int | None

    def __post_init__(self) -> None:
        self.wide = stats_dtype(self.input)
        embedding, elementwise = self.score_map.embedding, self.score_map.elementwise
        self.map_arguments = elementwise.name, elementwise.params
        self.x = self.input.to(self.wide).contiguous()
        self.w = self.x if self.key is None else self.key.to(self.wide).contiguous()
        self.rows, self.columns = embedding.rows(self.x), embedding.classes(self.w)
        self.column_target = self.target if self.key_target is None else self.key_target
        self.mixing = None if self.mixing is None else self.mixing.to(self.wide)

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor, int | None]]:
        """Rows, columns, their scores before the elementwise map, and the column that is the first row itself."""
        n, m = len(self.rows), len(self.columns)
        height, width = tile_shape(n, m, self.wide.itemsize, self.max_workspace_bytes, self.x.device.type)
        buffer = self.x.new_empty(height * width)
        for top in range(0, n, height):
            r = slice(top, min(top + height, n))
            for left in range(0, m, width):
                c = slice(left, min(left + width, m))
                tile = buffer[: (r.stop - top) * (c.stop - left)].view(r.stop - top, c.stop - left)
                torch.mm(self.rows[r], self.columns[c].t(), out=tile)
                yield r, c, tile, top - left if self.key is None else None

    def labels(self, r: slice, c: slice) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        other, mixing = (None if t is None else t[c] for t in (self.other_target, self.mixing))
        return self.target[r], self.column_target[c], other, mixing


def tile_shape(n: int, m: int, itemsize: int, max_bytes: int | None, device_type: str) -> tuple[int, int]:
    """Rows and columns of a tile: all columns if at least FEWEST_ROWS rows of them fit."""
    elements = (DEFAULT_TILE_BYTES[device_type] if max_bytes is None else max_bytes) // itemsize
    width = max(1, min(m, elements // max(1, min(n, FEWEST_ROWS))))
    height = max(1, min(n, elements // width))
    return -(-n // -(-n // height)) if n else 1, -(-m // -(-m // width)) if m else 1  # tiles of equal size


def stats(pairs: Pairs, limit: Tensor | None, scale: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """(lse, sum, mass) of every row, [2, N] in float64: positive pairs, negative pairs."""
    lse, total, mass = (torch.full((2, len(pairs.x)), v, dtype=torch.float64, device=pairs.x.device) for v in (-torch.inf, 0.0, 0.0))
    for r, c, tile, self_column in pairs.tiles():
        bound = None if limit is None else limit[:, r].contiguous()
        part = _ops.pair_tile_stats(tile, *pairs.labels(r, c), bound, self_column, *pairs.map_arguments, scale)
        lse[:, r] = torch.logaddexp(lse[:, r], part[0])
        total[:, r] += part[1]
        mass[:, r] += part[2]
    return lse, total, mass


def extremes(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Smallest score of each row's positive pairs, largest of its negative ones, and their columns, [2, N]; without such a pair an
    infinity and -1; where a score is NaN, NaN and -1. The lowest column among equal scores."""
    n = len(pairs.x)
    value = pairs.x.new_empty(2, n)
    value[0], value[1] = torch.inf, -torch.inf
    index = torch.full((2, n), -1, device=pairs.x.device)
    for r, c, tile, self_column in pairs.tiles():
        found, column = _ops.pair_tile_extremes(tile, *pairs.labels(r, c)[:2], self_column, *pairs.map_arguments)
        best = value[:, r]
        better = torch.stack([found[0] < best[0], found[1] > best[1]]) | (index[:, r] < 0)
        better = (better & (column >= 0) | found.isnan()) & ~best.isnan()
        value[:, r] = torch.where(better, found, best)
        index[:, r] = torch.where(better, torch.where(column < 0, column, column + c.start), index[:, r])
    return value, index


def gradient(
    pairs: Pairs, d_lse: Tensor, d_sum: Tensor, lse: Tensor, limit: Tensor | None, scale: list[float], wants: list[bool]
) -> tuple[Tensor, Tensor]:
    """(d_input, d_key), empty where not wanted."""
    terms = _terms(pairs, d_lse, d_sum, lse, limit, scale)
    mirrored = pairs.key is None
    d_rows = torch.zeros_like(pairs.rows) if wants[0] else None
    d_columns = torch.zeros_like(pairs.columns) if wants[1] else None
    for r, c, tile, self_column in pairs.tiles():
        of_columns = terms[..., c].contiguous() if mirrored else None
        _ops.pair_tile_stats_backward_(
            tile, *pairs.labels(r, c), terms[..., r].contiguous(), of_columns, self_column, *pairs.map_arguments, scale
        )
        if d_rows is not None:
            d_rows[r].addmm_(tile, pairs.columns[c])
        if d_columns is not None:
            d_columns[c].addmm_(tile.t(), pairs.rows[r])
    embedding, none = pairs.score_map.embedding, pairs.input.new_empty(0)
    d_input = none if d_rows is None else embedding.rows_vjp(pairs.x, d_rows).to(pairs.input.dtype)
    d_key = none if d_columns is None else embedding.classes_vjp(pairs.w, d_columns).to(pairs.input.dtype)
    return d_input, d_key


def _terms(pairs: Pairs, d_lse: Tensor, d_sum: Tensor, lse: Tensor, limit: Tensor | None, scale: list[float]) -> Tensor:
    """Shift, total, rest and limit (if any) of both sides, [3 or 4, 2, N]: a pair's gradient is ``total e + rest (1 - e)``, with
    ``e = e^(scale s - shift)``.

    The difference that a confident row's gradient is, of its part through lse and its part through the sum, is formed here in float64.
    """
    shift = lse.to(pairs.wide)
    lost = torch.where(shift.isinf(), 0.0, lse - shift)
    factor = torch.tensor(scale, dtype=torch.float64).to(lse.device).unsqueeze(1)
    total, rest = factor * (d_lse * torch.exp(-lost) + d_sum), factor * d_sum
    return torch.stack([shift, total.to(pairs.wide), rest.to(pairs.wide), *([] if limit is None else [limit])])
