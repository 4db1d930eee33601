"""What a fused head does with a tile of scores: how its rows are reduced, how two tiles' results merge, and what overwrites the scores.

A reducer is built on one call's :class:`~nearlinear.linear_head.Head`. Its statistics and upstream gradients are NamedTuples of row
vectors; a vector that is not wanted is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .linear_head import Head

__all__ = ["PlainSum", "SoftStats", "SoftTarget", "SoftUpstream", "Softmax", "Stats", "Total", "Upstream", "merge"]

_ops = torch.ops.nearlinear


class Stats(NamedTuple):
    """Row statistics as ``logit_stats`` returns them; ``lse_residual`` is what rounding took from lse."""

    nll: Tensor
    lse: Tensor
    spread: Tensor
    lse_residual: Tensor


class Upstream(NamedTuple):
    d_nll: Tensor
    d_lse: Tensor
    d_spread: Tensor


class Softmax:
    """Negative log-likelihood, log-sum-exp and spread of the classes."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def empty(self, rows: int, zeros: bool) -> Stats:
        return Stats(*(_rows(self.head, rows if wanted else 0, zeros) for wanted in (True, True, self.head.spread, True)))

    def of_tile(self, tile: Tensor, labels: Tensor, begin: int, end: int) -> Stats:
        head = self.head
        shard = head.first_class + begin, head.classes_in_all
        found = _ops.logit_stats(tile, labels, self._weight(begin, end), head.ignore_index, *head.map_arguments, head.spread, *shard)
        return Stats(*found)

    def merge(self, a: Stats, b: Stats, begin: int, end: int) -> Stats:
        """``a`` of classes 0 to begin, ``b`` of begin to end."""
        return merge(a, self._mass(0, begin), b, self._mass(begin, end))

    def overwrite(self, tile: Tensor, labels: Tensor, stats: Stats, up: Upstream, begin: int, end: int) -> None:
        head, d_lse = self.head, up.d_lse
        if head.spread and end - begin < head.held:
            # lse carries d_spread times the weights of all classes held; the kernel adds those that it sees
            d_lse = d_lse + up.d_spread * (self._mass(0, head.held) - self._mass(begin, end))
        _ops.logit_stats_backward_(
            up.d_nll, d_lse, up.d_spread, tile, labels, self._weight(begin, end), stats.nll, stats.lse, stats.lse_residual,
            head.ignore_index, *head.map_arguments, head.spread, head.first_class + begin, head.classes_in_all,
        )  # fmt: skip

    def _weight(self, begin: int, end: int) -> Tensor | None:
        return None if self.head.weight is None else self.head.weight[begin:end]

    def _mass(self, begin: int, end: int) -> Tensor | float:
        """Sum of the class weights."""
        weight = self._weight(begin, end)
        return float(end - begin) if weight is None else weight.sum()


def merge(a: Stats, mass_a: Tensor | float, b: Stats, mass_b: Tensor | float) -> Stats:
    """Statistics over the classes of two shards. The label lies in one at most; in float64, so nll keeps its relative accuracy."""
    lse_a, lse_b = (s.lse.double() + s.lse_residual for s in (a, b))
    equal = lse_a == lse_b  # so that two infinities make no NaN
    gap = torch.where(equal, 0.0, lse_a - lse_b)  # NaN stays NaN
    lse = torch.logaddexp(lse_a, lse_b)
    zero = torch.zeros_like(gap)
    gain_a, gain_b = torch.logaddexp(-gap, zero), torch.logaddexp(gap, zero)  # lse - lse_a, lse - lse_b
    nll = torch.where(torch.isposinf(b.nll), a.nll + gain_a, b.nll + gain_b)
    nll = torch.where(torch.isnan(a.nll), a.nll, nll)
    high = lse.to(a.lse.dtype)
    residual = torch.where(torch.isfinite(high), lse - high, zero)
    spread = a.spread
    if spread.numel():
        spread = (a.spread + mass_a * gain_a + (b.spread + mass_b * gain_b)).to(a.lse.dtype)
    return Stats(nll.to(a.lse.dtype), high, spread, residual.to(a.lse.dtype))


class SoftStats(NamedTuple):
    """Row statistics as ``soft_logit_stats`` returns them."""

    xent: Tensor
    lse: Tensor
    lse_residual: Tensor
    mass: Tensor


class SoftUpstream(NamedTuple):
    d_xent: Tensor
    d_lse: Tensor
    d_mass: Tensor | None
    d_target: Tensor  # where the gradient of these rows' target is written


class SoftTarget:
    """Cross-entropy against class probabilities, and the log-sum-exp. All classes are in one tile, so nothing is merged."""

    def __init__(self, head: Head, label_smoothing: float) -> None:
        self.head, self.label_smoothing = head, label_smoothing
        self.options = head.weight, label_smoothing, *head.map_arguments

    def empty(self, rows: int, zeros: bool) -> SoftStats:
        return SoftStats(*(_rows(self.head, rows, zeros) for _ in range(4)))

    def of_tile(self, tile: Tensor, target: Tensor, begin: int, end: int) -> SoftStats:
        return SoftStats(*_ops.soft_logit_stats(tile, target, *self.options))

    def overwrite(self, tile: Tensor, target: Tensor, stats: SoftStats, up: SoftUpstream, begin: int, end: int) -> None:
        weight, *options = self.options
        wants_target, (_, *known) = up.d_target.numel() > 0, stats
        d_tile, d_target = _ops.soft_logit_stats_backward(up.d_xent, up.d_lse, tile, target, weight, *known, *options, wants_target)
        tile.copy_(d_tile)
        if wants_target:
            up.d_target.copy_(d_target)
            if up.d_mass is not None:
                slope = (1 - self.label_smoothing) * up.d_mass.unsqueeze(1)
                up.d_target.add_(slope if weight is None else slope * weight)


class Total(NamedTuple):
    """One number a row: a sum over classes, or the upstream gradient of one."""

    total: Tensor


class PlainSum:
    """``sum_{j != y} map(score)`` where the scores' map is that of the op ``logit_sum``."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def empty(self, rows: int, zeros: bool) -> Total:
        return Total(_rows(self.head, rows, zeros))

    def of_tile(self, tile: Tensor, labels: Tensor, begin: int, end: int) -> Total:
        return Total(_ops.logit_sum(tile, labels, self.head.ignore_index, *self.head.map_arguments, begin))

    def merge(self, a: Total, b: Total, begin: int, end: int) -> Total:
        return Total(a.total + b.total)

    def overwrite(self, tile: Tensor, labels: Tensor, stats: Total, up: Total, begin: int, end: int) -> None:
        _ops.logit_sum_backward_(up.total, tile, labels, self.head.ignore_index, *self.head.map_arguments, begin)


def _rows(head: Head, rows: int, zeros: bool) -> Tensor:
    make = torch.zeros if zeros else torch.empty
    return make(rows, dtype=head.wide, device=head.input.device)
