"""Logistic losses over all pairs of samples that are never in one place: of several micro-batches, or of several ranks.

All that a sample must know of the others is the table of their Chebyshev moments, which adds up: a few kilobytes for any number of samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import pair_bins
from ._checks import require
from .collectives import gathered_sum
from .pair_bins import Grid
from .pairwise_checks import Samples, check_samples
from .surrogates import LogisticFamily, Surrogate, get_surrogate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["PairwiseAUCAccumulator", "moments_of", "share_of_loss"]

_NAME = "PairwiseAUCAccumulator"
_ops = torch.ops.nearlinear


def moments_of(x: Samples, grid: Grid) -> Tensor:
    weight = None if x.weight is None else x.weight.detach()
    moments: Tensor = _ops.binned_moments(x.input.detach(), x.positive, weight, None, 1, *grid.arguments)
    return moments


def share_of_loss(x: Samples, moments: Tensor, grid: Grid, record: LogisticFamily) -> Tensor:
    """What these samples add to the mean over all pairs of the samples of ``moments``, theirs included: half of each pair of theirs.

    The gradient is that of the whole loss, so that the shares' sum has it too."""
    weight = torch.ones_like(x.input) if x.weight is None else x.weight
    share: Tensor = _Share.apply(x.input, weight, x.positive, moments, grid, record)
    return share


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, positive: Tensor, moments: Tensor, grid: Grid, record: LogisticFamily) -> Tensor:
        (table,) = pair_bins.potentials((record.analytic(0),), grid, moments)
        own = _ops.binned_moments(input, positive, weight, None, 1, *grid.arguments)
        ctx.grid, ctx.record = grid, record
        ctx.save_for_backward(input, weight, positive, moments, table)
        mass = moments[0, :, :, 0].sum(1)
        pairs = mass[0] * mass[1]
        return torch.where(pairs > 0, (own * table).sum() / (2 * torch.where(pairs > 0, pairs, 1)), 0)

    @staticmethod
    def backward(ctx: Any, d_share: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("pairwise_auc_loss: double backward is not implemented with process_group or in parts")
        input, weight, positive, moments, values = ctx.saved_tensors
        grid: Grid = ctx.grid
        mass = moments[0, :, :, 0].sum(1)
        pairs = mass[0] * mass[1]
        upstream = torch.where(pairs > 0, d_share / torch.where(pairs > 0, pairs, 1), 0)

        def of_samples(table: Tensor) -> Tensor:
            found: Tensor = _ops.binned_values(input, positive, None, table, grid.inv_width, grid.first)
            return found

        slopes = pair_bins.potentials((ctx.record.analytic(1),), grid, moments)[0] * upstream
        slopes[:, 0].neg_()
        d_input = (of_samples(slopes) * weight).masked_fill(weight == 0, 0)
        d_weight = None
        if ctx.needs_input_grad[1]:
            # of the sum over pairs, and of the weight of all pairs by which it is divided
            mean = (moments[:, 1] * values[:, 1]).sum() / torch.where(pairs > 0, pairs, 1)
            other = torch.where(positive, mass[0], mass[1])
            d_weight = of_samples(values * upstream) - (mean * upstream * other).to(input.dtype)
        return d_input, d_weight, None, None, None, None


class PairwiseAUCAccumulator:
    """:func:`pairwise_auc_loss` of a batch that does not fit: its micro-batches are seen twice, and nothing of them is kept.

    The first time :meth:`update` adds their moments; the second time :meth:`loss` gives each its share of the loss of all, with the
    gradient that the whole batch would give its scores. The shares add up to the loss.

    Args:
        score_range: bounds of the scores, at most 512 / scale apart. A score outside makes the loss NaN.
        surrogate: ``"logistic"``, ``"sigmoid"`` or a record of them.
        scale: as for :func:`pairwise_auc_loss`.
        dtype: float32, or float64 for finer bins.

    Example:
        >>> import torch, nearlinear
        >>> scores, labels = torch.tensor([0.1, 0.4, 0.35, 0.8], requires_grad=True), torch.tensor([0, 0, 1, 1])
        >>> whole = nearlinear.PairwiseAUCAccumulator(score_range=(-20, 20))
        >>> for part in (slice(0, 3), slice(3, 4)):
        ...     whole.update(scores[part], labels[part])
        >>> sum(whole.loss(scores[part], labels[part]) for part in (slice(0, 3), slice(3, 4)))
        tensor(0.5451, grad_fn=<AddBackward0>)
    """

    def __init__(
        self, *, score_range: tuple[float, float], surrogate: str | Surrogate = "logistic", scale: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        record = get_surrogate(surrogate, _NAME, scale=scale)
        fits = isinstance(record, LogisticFamily) and record.methods[0] == "bins"
        require(fits, ValueError, _NAME, f"surrogate must be 'logistic' or 'sigmoid', got {record.name!r}")
        assert isinstance(record, LogisticFamily)
        require(dtype in (torch.float32, torch.float64), TypeError, _NAME, f"dtype must be float32 or float64, got {dtype}")
        low, high = (float(end) for end in score_range)
        grid = Grid.over(low, high, record.scale, dtype, 0) if low <= high else None
        text = f"score_range must be (low, high) within 512 / scale of each other, got {score_range}"
        if grid is None:
            raise ValueError(f"{_NAME}: {text}")
        self.record, self.grid, self.dtype = record, grid, dtype
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self.moments: Tensor | None = None

    def update(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> None:
        """Add the samples of a micro-batch; no gradient is kept."""
        moments = moments_of(self._samples(input, target, sample_weight), self.grid)
        self.moments = moments if self.moments is None else self.moments + moments

    def merge(self, process_group: ProcessGroup) -> None:
        """Add the samples of the other ranks, which call together. A rank's shares are then those of its own samples."""
        assert self.moments is not None
        self.moments = gathered_sum(self.moments, process_group)

    def loss(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Share of a micro-batch that was added: its gradient is that of the whole loss; 0 where there are no pairs."""
        require(self.moments is not None, RuntimeError, _NAME, "call update with every micro-batch before loss")
        assert self.moments is not None
        return share_of_loss(self._samples(input, target, sample_weight), self.moments, self.grid, self.record).to(self.dtype)

    def _samples(self, input: Tensor, target: Tensor, sample_weight: Tensor | None) -> Samples:
        x = check_samples(_NAME, input, target, sample_weight, None, None, None)
        require(input.dim() == 1, ValueError, _NAME, f"input must have shape (N,), got {tuple(input.shape)}")
        scores = x.input if x.known is None else x.input.masked_fill(~x.known, torch.nan)
        weight = None if x.weight is None else x.weight.to(self.dtype)
        return Samples(scores.to(self.dtype), x.positive, weight, None, None)
