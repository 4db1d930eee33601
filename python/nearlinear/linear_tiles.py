"""The walk over (rows x classes) tiles that all fused linear heads share. Scores exist one tile at a time, in a workspace.

    tile = rows(x_c) classes(w_b)^T (+ bias)          one matrix product
    row statistics of the tile, merged over b          logit_stats, with a shard of the classes
    tile <- d loss / d tile                            the reducer, in place
    d_x_c += tile classes(w_b);  d_w_b += tile^T rows(x_c)

Shapes: input [N, D], linear_weight [V, D], target [N]; statistics [N]. Accumulates in float32 (float64 for float64): 16-bit operands are
converted a tile at a time on CPU, and multiplied as they are with a float32 result on CUDA. Order is fixed: the same bits from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .distances import DistanceMetric
from .embeddings import with_bias
from .linear_plan import Plan, plan
from .ops._register import stats_dtype
from .score_maps import ScoreMap


@dataclass
class Head:
    """One call's tensors and options. ``target``: a label per row, or class probabilities [N, V], which want all classes in one tile."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    margin: Tensor | None
    ignore_index: int
    score_map: ScoreMap
    spread: bool
    first_class: int = 0
    num_classes: int | None = None
    max_workspace_bytes: int | None = None

    def __post_init__(self) -> None:
        self.wide = stats_dtype(self.input)
        self.embedding = self.score_map.embedding
        elementwise = self.score_map.elementwise
        self.map_arguments = elementwise.name, elementwise.params
        self.on_half = self.input.dtype.itemsize == 2 and self.input.is_cuda and self.embedding.identity
        self.held = self.linear_weight.shape[0]
        self.soft = self.target.dim() == 2
        self.classes_in_all = self.held if self.num_classes is None else self.num_classes

    @property
    def weight_sum(self) -> Tensor | float:
        return float(self.held) if self.weight is None else self.weight.sum()

    def plan(self, num_rows: int) -> Plan:
        return plan(
            num_rows, self.held, self.input.shape[1], self.input.dtype, device_type=self.input.device.type, score_map=self.score_map,
            soft_target=self.soft, max_workspace_bytes=self.max_workspace_bytes,
        )  # fmt: skip


class Gradients:
    """Accumulators of the wanted gradients; what is not wanted is empty."""

    def __init__(self, head: Head, wants: list[bool], one_tile_of_rows: bool) -> None:
        def like(t: Tensor | None, wanted: bool, dtype: torch.dtype | None = None) -> Tensor:
            return head.input.new_empty(0) if t is None or not wanted else torch.empty_like(t, dtype=dtype)

        self.wants = wants  # of input, class vectors, bias, margin
        direct = one_tile_of_rows or head.linear_weight.dtype == head.wide
        self.d_input = like(head.input, wants[0])
        self.d_weight = like(head.linear_weight, wants[1], None if direct else head.wide)
        self.d_bias = like(head.linear_bias, wants[2], head.wide)
        self.d_margin = like(head.margin, wants[3], head.wide)

    def results(self, head: Head) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        bias, margin = head.linear_bias, head.margin
        return (
            self.d_input,
            self.d_weight.to(head.linear_weight.dtype),
            self.d_bias if bias is None else self.d_bias.to(bias.dtype),
            self.d_margin if margin is None else self.d_margin.to(margin.dtype),
        )


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
        walker.enter(index, first=begin == 0)
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
    """Rows that are not ignored, on CPU, where leaving the others out saves their share of the products; None: all, or on CUDA, where
    finding them would synchronise."""
    if head.input.is_cuda or head.soft:
        return None
    kept = head.target != head.ignore_index
    return None if bool(kept.all()) else kept.nonzero().flatten()


class _Walker:
    def __init__(self, head: Head, reducer: Any, tiles: Plan, gradients: Gradients) -> None:
        self.head, self.reducer, self.tiles, self.gradients = head, reducer, tiles, gradients
        size = tiles.rows * tiles.classes
        self.buffers = [head.input.new_empty(size, dtype=head.wide) for _ in range(head.embedding.buffers)]
        self.spare: list[Tensor] = []
        self.one_block = tiles.classes >= head.held
        self.blocks = [(b, min(b + tiles.classes, head.held)) for b in range(0, head.held, tiles.classes)]
        self.classes_of_block: tuple[Tensor, Tensor] | None = None  # kept where there is one block
        self.tile: Tensor | None = None
        self.mark: _Target | None = None

    def enter(self, index: slice | Tensor, first: bool) -> None:
        """Go to the next rows."""
        head = self.head
        self.index, self.first, self.tile = index, first, None
        raw = head.input[index]
        self.x = self.converted(raw)
        self.rows = head.embedding.rows(self.x)
        self.labels = head.target[index]
        self.margin = None if head.margin is None else head.margin[index].to(head.wide)

    def converted(self, raw: Tensor) -> Tensor:
        """Vectors in the dtype of the products; dense for an embedding, whose sums would else add in an order that depends on strides."""
        if self.head.on_half:
            return raw
        wide = raw.to(self.head.wide)
        return wide if self.head.embedding.identity else wide.contiguous()

    def classes(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """(class vectors, their embedding) of one block."""
        if self.classes_of_block is not None:
            return self.classes_of_block
        raw = self.head.linear_weight[begin:end]
        w = self.converted(raw)
        if self.head.embedding.holds_bias:
            w = with_bias(w, None if self.head.linear_bias is None else self.head.linear_bias[begin:end])
        found = w, self.head.embedding.classes(w)
        if self.one_block:
            self.classes_of_block = found
        return found

    def fill(self, begin: int, end: int) -> Tensor:
        """Scores of the rows against one block, before the elementwise map; the target's under its margin."""
        head = self.head
        w, embedded = self.classes(begin, end)
        shape = len(self.rows), end - begin
        tile, *self.spare = (buffer[: shape[0] * shape[1]].view(shape) for buffer in self.buffers)
        metric = head.embedding.metric
        if metric is not None:
            torch.ops.nearlinear.distance_tile(self.rows, embedded, metric.name, metric.params, tile)
        elif head.on_half:
            torch.mm(self.rows, embedded.t(), out_dtype=head.wide, out=tile)
        else:
            torch.mm(self.rows, embedded.t(), out=tile)
        head.embedding.bend(tile, embedded, self.spare)
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
        if self.one_block or not self.head.input.is_cuda:
            return merged
        ignored = self.labels == self.head.ignore_index  # CPU has left them out
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
        w, embedded = self.classes(begin, end)
        d_last = head.embedding.unbend(tile, embedded, self.spare)
        if out.d_bias.numel() and not head.embedding.holds_bias:
            self.add(out.d_bias[begin:end], tile.sum(0))
        if head.embedding.metric is not None:
            return self.accumulate_distances(head.embedding.metric, tile, w, out.d_weight[begin:end], d_rows)
        left = tile.to(head.input.dtype) if head.on_half else tile
        if out.d_input.numel():
            # straight into the result where the product is the whole gradient
            into = out.d_input[self.index] if isinstance(self.index, slice) else None
            if into is None or not head.embedding.identity or not self.one_block or into.dtype != head.wide or not into.is_contiguous():
                d_rows = product(left, embedded, head.wide, d_rows)
            else:
                torch.mm(left, embedded, out=into)
        if d_last is not None:
            self.accumulate_planes(left, w, d_last, begin, end)
        elif out.d_weight.numel():
            block = out.d_weight[begin:end]
            if head.embedding.identity and block.dtype == head.wide:
                product_into(block, left.t(), self.rows, self.first)
            else:
                self.add(block, head.embedding.classes_vjp(w, product(left.t(), self.rows, head.wide)))
        return d_rows

    def accumulate_planes(self, left: Tensor, w: Tensor, d_last: Tensor, begin: int, end: int) -> None:
        """Class vectors that hold their bias, and a last column whose gradient is no product."""
        out = self.gradients
        if not (out.d_weight.numel() or out.d_bias.numel()):
            return
        d = product(left.t(), self.rows, self.head.wide)
        d[:, -1] = d_last
        d = self.head.embedding.classes_vjp(w, d)
        if out.d_weight.numel():
            self.add(out.d_weight[begin:end], d[:, :-1])
        if out.d_bias.numel():
            self.add(out.d_bias[begin:end], d[:, -1])

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


def product(a: Tensor, b: Tensor, dtype: torch.dtype, onto: Tensor | None = None) -> Tensor:
    if onto is not None:
        product_into(onto, a, b, first=False)
        return onto
    return torch.mm(a, b) if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)


def product_into(into: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``into (+)= a b``."""
    if a.dtype == into.dtype:
        torch.mm(a, b, out=into) if first else into.addmm_(a, b)
    elif first:
        torch.mm(a, b, out_dtype=into.dtype, out=into)
    else:
        torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
