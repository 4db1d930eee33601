"""The walk over (rows x classes) tiles that all fused linear heads share. Scores exist one tile at a time, in a workspace.

    tile = x_c w_b^T (+ bias)                          one matrix product
    row statistics of the tile, merged over b          logit_stats, with a shard of the classes
    tile <- d loss / d tile                            the reducer, in place
    d_x_c += tile w_b;  d_w_b += tile^T x_c

An embedding (:mod:`nearlinear.embeddings`) changes the features of a tile before the first product; of the classes it changes the tile.

Shapes: input [N, D], linear_weight [V, D], target [N]; statistics [N]. Accumulates in float32 (float64 for float64): 16-bit operands are
converted a tile at a time on CPU, and multiplied as they are with a float32 result on CUDA. Order is fixed: the same bits from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .class_embedding import ClassEmbedding
from .distances import DistanceMetric
from .linear_head import Gradients, Head
from .linear_plan import Plan, panel_rows


class _Target(NamedTuple):
    """The target's element of each row of a tile, where a margin or an exact product replaced it."""

    here: Tensor
    place: Tensor
    slope: Tensor | None
    by_margin: Tensor | None


def walk(
    head: Head,
    reducer: Any,
    upstream: Callable[[Any, slice | Tensor], Any] | None,
    wants: list[bool],
    given: tuple[Tensor, ...] | None = None,
) -> tuple[Any, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Statistics of every row, and the gradients that ``upstream`` (of a tile's rows, given their statistics) asks for.

    ``reducer``: one of :mod:`nearlinear.reducers`. ``given``: statistics known already, so that only the gradients are computed.
    """
    n = head.input.shape[0]
    kept = _kept_rows(head)
    rows_in_all = n if kept is None else len(kept)
    tiles = head.plan(n)  # of all rows: which labels are ignored must not change what is allocated
    gradients = Gradients(head, wants if upstream else [False] * 4, rows_in_all <= tiles.rows)
    stats = given or reducer.empty(n, zeros=kept is not None)
    if rows_in_all == 0 or kept is not None:
        gradients.d_input.zero_()
        gradients.d_margin.zero_()
    if rows_in_all == 0:
        gradients.d_weight.zero_()
        gradients.d_bias.zero_()
        return stats, gradients.results(head)
    walker = _Walker(head, reducer, tiles, gradients)
    for begin in range(0, rows_in_all, tiles.rows):
        end = min(begin + tiles.rows, rows_in_all)
        index: slice | Tensor = slice(begin, end) if kept is None else kept[begin:end]
        walker.enter(index, first=begin == 0, last=end == rows_in_all)
        if given is None:
            found = walker.statistics()
            for whole, part in zip(stats, found, strict=True):
                if part.numel():
                    whole[index] = part
        else:
            found = type(given)(*(s[index] if s.numel() else s for s in given))
        if upstream is None:
            continue
        up = upstream(found, index)
        if any(gradients.wants) or head.soft:  # probabilities have a gradient too
            walker.gradient(found, up)
    return stats, gradients.results(head)


def _kept_rows(head: Head) -> Tensor | None:
    """Rows to walk over; None: all."""
    if head.soft or not head.leaves_out_ignored:
        return None
    kept = head.target != head.ignore_index
    return None if bool(kept.all()) else kept.nonzero().flatten()


class _Walker:
    def __init__(self, head: Head, reducer: Any, tiles: Plan, gradients: Gradients) -> None:
        self.head, self.reducer, self.tiles, self.gradients = head, reducer, tiles, gradients
        size = tiles.rows * tiles.classes
        self.buffers = [head.input.new_empty(size, dtype=head.wide) for _ in range(head.embedding.buffers)]
        self.spare: list[Tensor] = []  # of the tile that was filled last
        self.one_block = tiles.classes >= head.held
        self.blocks = [(b, min(b + tiles.classes, head.held)) for b in range(0, head.held, tiles.classes)]
        self.classes_of_block: Tensor | None = None  # kept where there is one block
        self.embedded: ClassEmbedding | None = None
        if head.embeds:
            panel = panel_rows(tiles.classes, head.input.shape[1], head.input.device.type)
            self.embedded = ClassEmbedding(head.embedding, head.linear_weight, head.linear_bias, head.wide, panel)
        self.tile: Tensor | None = None
        self.mark: _Target | None = None

    def enter(self, index: slice | Tensor, first: bool, last: bool) -> None:
        """Go to the next rows."""
        head = self.head
        self.index, self.first, self.last, self.tile = index, first, last, None
        self.labels = head.target[index]
        raw = head.input[index]
        self.margin = None if head.margin is None else head.margin[index].to(head.wide)
        if not head.leaves_out_ignored:  # their gradient of zero must not meet a NaN or an infinity
            ignored = self.labels == head.ignore_index
            raw = raw.masked_fill(ignored.unsqueeze(1), 0)
            self.margin = None if self.margin is None else self.margin.masked_fill(ignored, 0)
        self.x = raw if head.on_half else raw.to(head.wide)
        if not head.embedding.identity:
            self.x = self.x.contiguous()  # or sums would add in an order that depends on strides
        rows = head.embedding.rows(self.x)
        self.rows, self.row_columns = rows.split([self.x.shape[1], head.embedding.extra], 1)

    def classes(self, begin: int, end: int) -> Tensor:
        """Class vectors of one block in the dtype of the products."""
        if self.classes_of_block is not None:
            return self.classes_of_block
        head = self.head
        raw = head.linear_weight[begin:end]
        w = raw if head.on_half else raw.to(head.wide)
        if head.embedding.metric is not None:
            w = w.contiguous()  # as its kernels read it
        if self.one_block:
            self.classes_of_block = w
        return w

    def fill(self, begin: int, end: int) -> Tensor:
        """Scores of the rows against one block, before the elementwise map; the target's under its margin."""
        head = self.head
        w = self.classes(begin, end)
        shape = len(self.rows), end - begin
        tile, *self.spare = (buffer[: shape[0] * shape[1]].view(shape) for buffer in self.buffers)
        metric = head.embedding.metric
        if metric is not None:
            torch.ops.nearlinear.distance_tile(self.rows, w, metric.name, metric.params, tile)
        else:
            product_into(tile, self.rows, w.t(), first=True)
        if self.embedded is not None:
            self.embedded.finish_scores(tile, self.row_columns, begin, end, self.spare)
        if head.linear_bias is not None and not head.embedding.holds_bias:
            tile.add_(head.linear_bias[begin:end].to(head.wide))
        self.mark = self.replace_target(tile, w, begin)
        return tile

    def replace_target(self, tile: Tensor, w: Tensor, begin: int) -> _Target | None:
        head = self.head
        if head.soft:
            return None
        label = self.labels - (head.first_class + begin)
        place = label.clamp(0, tile.shape[1] - 1)
        product = tile.gather(1, place.unsqueeze(1)).squeeze(1)
        # the product of a pair without the cancellation of the matrix product, which matters where x is close to its own class
        exact = None if head.embedding.identity else head.embedding.pair(self.x, w[place])
        found = head.score_map.target(product if exact is None else exact, self.margin)
        value = exact if found is None else found[0]
        if value is None:
            return None
        here = (label >= 0) & (label < tile.shape[1])
        tile.scatter_(1, place.unsqueeze(1), torch.where(here, value, product).unsqueeze(1))
        return _Target(here, place.unsqueeze(1), *(found[1:] if found is not None else (None, None)))

    def statistics(self) -> Any:
        merged: Any = None
        for begin, end in self.blocks:
            self.tile = self.fill(begin, end)
            part = self.reducer.of_tile(self.tile, self.labels, begin, end)
            merged = part if merged is None else self.reducer.merge(merged, part, begin, end)
        if self.one_block or self.head.leaves_out_ignored:
            return merged
        ignored = self.labels == self.head.ignore_index
        return type(merged)(*(s.masked_fill(ignored, 0) if s.numel() else s for s in merged))

    def gradient(self, stats: Any, up: Any) -> None:
        """Add these rows' part to the gradients."""
        head, out = self.head, self.gradients
        d_rows: Tensor | None = None
        d_margin = torch.zeros_like(stats[0]) if out.d_margin.numel() else None
        for begin, end in self.blocks:
            tile = self.fill(begin, end) if self.tile is None or not self.one_block else self.tile
            self.reducer.overwrite(tile, self.labels, stats, up, begin, end)
            self.through_margin(tile, d_margin)
            d_rows = self.accumulate(tile, begin, end, d_rows)
        if d_rows is not None:
            out.d_input[self.index] = head.embedding.rows_vjp(self.x, d_rows).to(head.input.dtype)
        if d_margin is not None:
            out.d_margin[self.index] = d_margin

    def through_margin(self, tile: Tensor, d_margin: Tensor | None) -> None:
        mark = self.mark
        if mark is None or mark.slope is None or mark.by_margin is None:
            return
        d = tile.gather(1, mark.place).squeeze(1)
        tile.scatter_(1, mark.place, torch.where(mark.here, d * mark.slope, d).unsqueeze(1))
        if d_margin is not None:
            d_margin += torch.where(mark.here, d * mark.by_margin, 0.0)

    def accumulate(self, tile: Tensor, begin: int, end: int, d_rows: Tensor | None) -> Tensor | None:
        head, out = self.head, self.gradients
        w = self.classes(begin, end)
        if out.d_bias.numel() and not head.embedding.holds_bias:
            self.add(out.d_bias[begin:end], tile.sum(0))
        if head.embedding.metric is not None:
            return self.accumulate_distances(head.embedding.metric, tile, w, out.d_weight[begin:end], d_rows)
        d_last = None if self.embedded is None else self.embedded.start_gradient(tile, begin, end, self.spare)
        left = tile.to(head.input.dtype) if head.on_half else tile
        if out.d_input.numel():
            # straight into the result where the product is the whole gradient
            into = out.d_input[self.index] if isinstance(self.index, slice) else None
            if into is None or not head.embedding.identity or not self.one_block or into.dtype != head.wide or not into.is_contiguous():
                d_rows = self.add_to_rows(left, w, begin, end, d_rows)
            else:
                torch.mm(left, w, out=into)
        if out.d_weight.numel():
            self.add_to_classes(left.t(), w, d_last, begin, end)
        return d_rows

    def add_to_rows(self, left: Tensor, w: Tensor, begin: int, end: int, d_rows: Tensor | None) -> Tensor:
        size, extra = w.shape[1], self.row_columns.shape[1]
        into = self.buffers[0].new_empty(len(left), size + extra) if d_rows is None else d_rows
        product_into(into[:, :size], left, w, first=d_rows is None)
        if self.embedded is not None and extra:
            product_into(into[:, size:], left, self.embedded.columns[:extra, begin:end].t(), first=d_rows is None)
        return into

    def add_to_classes(self, left: Tensor, w: Tensor, d_last: Tensor | None, begin: int, end: int) -> None:
        block = self.gradients.d_weight[begin:end]
        wide = block.dtype == self.head.wide  # else there is one tile of rows
        whole = block if wide else self.buffers[0].new_empty(block.shape)
        product_into(whole, left, self.rows, self.first)
        if self.embedded is not None:
            extra, d_columns = self.row_columns.shape[1], self.embedded.d_columns[:, begin:end]
            if extra:
                product_into(d_columns[:extra], self.row_columns.t(), left.t(), self.first)
            if d_last is not None:
                self.add(d_columns[extra], d_last)
            if self.last:
                self.embedded.finish_gradient(whole, w, begin, self.gradients.d_bias)
        if not wide:
            block.copy_(whole)

    def accumulate_distances(self, metric: DistanceMetric, tile: Tensor, w: Tensor, block: Tensor, d_rows: Tensor | None) -> Tensor | None:
        wants_rows, wants_classes = bool(self.gradients.d_input.numel()), bool(self.gradients.d_weight.numel())
        into = d_rows if d_rows is not None else torch.zeros_like(self.rows)
        d_classes = torch.zeros_like(w) if wants_classes else w.new_empty(0, w.shape[1])
        torch.ops.nearlinear.distance_tile_backward(
            into, d_classes, tile, self.rows, w, metric.name, metric.params, wants_rows, wants_classes
        )  # fmt: skip
        if wants_classes:
            self.add(block, d_classes)
        return into if wants_rows else None

    def add(self, into: Tensor, part: Tensor) -> None:
        if self.first:
            into.copy_(part)
        else:
            into.add_(part)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mm(a, b) if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)


def product_into(into: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``into (+)= a b``."""
    if a.dtype == into.dtype:
        torch.mm(a, b, out=into) if first else into.addmm_(a, b)
    elif first:
        torch.mm(a, b, out_dtype=into.dtype, out=into)
    else:
        torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
