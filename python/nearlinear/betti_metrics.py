"""Integers that compare the topology of two segmentations: Betti numbers, their error, and bars without a partner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import betti_checks as checks
from ._checks import check_devices, check_reduction, check_shape, check_tensor, require
from .betti_images import stacked

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Self

__all__ = ["BettiMatchingError", "BettiNumberError", "BettiNumbers", "betti_matching_error", "betti_number_error", "betti_numbers"]

_NUMBERS, _NUMBER_ERROR, _MATCHING_ERROR = "betti_numbers", "betti_number_error", "betti_matching_error"
_ops = torch.ops.nearlinear


def betti_numbers(
    input: Tensor, *, spatial_dims: int | None = None, threshold: float = 0.5, dims: Sequence[int] | None = None
) -> Tensor:  # fmt: skip
    r"""Betti numbers of the foreground ``input >= threshold``: components, loops and, of volumes, cavities.

    Args:
        input: images (N, C, \*S), or (..., \*S) with ``spatial_dims``; any real dtype, masks too.
        spatial_dims: 1, 2 or 3; all dims after (N, C) by default.
        threshold: pixels of at least this value are foreground. They connect along axes (4 neighbours, 6 in volumes), background pixels in
            all directions.
        dims: which numbers, all by default.

    Returns:
        int64 (N, C, len(dims)).

    Raises:
        TypeError, ValueError, NotImplementedError: an argument that does not fit, with what was expected; NaN too.

    Cost, determinism: those of :func:`nearlinear.persistence_barcode` of an image with two values.

    Example:
        >>> import torch, nearlinear
        >>> ring = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> nearlinear.betti_numbers(ring, spatial_dims=2)  # one component, one loop
        tensor([1, 1])
    """
    nd, wanted = _check(_NUMBERS, spatial_dims, dims, input=input)
    return _numbers(input, nd, threshold, wanted)


def betti_number_error(
    input: Tensor,
    target: Tensor,
    *,
    spatial_dims: int | None = None,
    threshold: float = 0.5,
    dims: Sequence[int] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sum over the dimensions of the absolute difference of the Betti numbers of two segmentations, wherever their features are.

    Args:
        input, target: images of one shape, as for :func:`betti_numbers`, both compared with ``threshold``.
        spatial_dims, threshold, dims: as for :func:`betti_numbers`.
        reduction: ``"mean"`` over all images (float64; NaN if there is none), ``"sum"`` or ``"none"`` (int64; the shape (N, C)).

    Example:
        >>> import torch, nearlinear
        >>> ring = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> nearlinear.betti_number_error(ring, torch.ones(3, 3), spatial_dims=2)
        tensor(1., dtype=torch.float64)
    """
    check_reduction(_NUMBER_ERROR, reduction)
    nd, wanted = _check(_NUMBER_ERROR, spatial_dims, dims, input=input, target=target)
    ours, true = (_numbers(image, nd, threshold, wanted) for image in (input, target))
    return _reduced((ours - true).abs().sum(-1), reduction)


def betti_matching_error(
    input: Tensor,
    target: Tensor,
    *,
    spatial_dims: int | None = None,
    threshold: float = 0.5,
    dims: Sequence[int] | None = None,
    essential: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Number of features of either segmentation without a partner in the other, by :func:`nearlinear.betti_matching` of the binary images.

    Args:
        input, target, spatial_dims, threshold, dims, reduction: as for :func:`betti_number_error`.
        essential: add 2 where exactly one of the two segmentations is empty. Its first component is not among the bars.

    Example:
        >>> import torch, nearlinear
        >>> left, right = torch.zeros(1, 5), torch.zeros(1, 5)
        >>> left[0, [0, 2]], right[0, [2, 4]] = 1.0, 1.0
        >>> nearlinear.betti_matching_error(left, right, spatial_dims=2), nearlinear.betti_number_error(left, right, spatial_dims=2)
        (tensor(2., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    check_reduction(_MATCHING_ERROR, reduction)
    nd, wanted = _check(_MATCHING_ERROR, spatial_dims, dims, input=input, target=target)
    f, g = (_foreground(image, nd, threshold) for image in (input, target))
    offsets = _ops.betti_matching(f, g, wanted, True, False)[-1]
    errors = offsets[::nd, 1:].diff(dim=0).sum(1)
    if essential:
        errors = errors + 2 * (_occupied(f) != _occupied(g))
    return _reduced(errors.view(input.shape[: input.dim() - nd]).to(input.device), reduction)


def _check(function: str, spatial_dims: int | None, dims: Sequence[int] | None, **images: Tensor) -> tuple[int, list[int]]:
    first = images["input"]
    nd = checks.check_spatial(function, first, spatial_dims)
    for name, image in images.items():
        check_tensor(function, name, image)
        require(not image.is_complex(), TypeError, function, f"{name} must be real, got {image.dtype}")
        check_shape(function, name, image, tuple(first.shape))
    check_devices(function, first, target=images.get("target"))
    if not torch.compiler.is_compiling():
        checks.raise_not_a_number(function, **images)
    return nd, checks.check_dims(function, dims, nd)


def _foreground(image: Tensor, nd: int, threshold: float) -> Tensor:
    return stacked(image.detach(), nd) >= threshold


def _occupied(foreground: Tensor) -> Tensor:
    return foreground.flatten(1).any(1)


def _numbers(image: Tensor, nd: int, threshold: float, dims: list[int]) -> Tensor:
    """Every bar of a binary image lives while the foreground does; the component that never dies is not among them."""
    foreground = _foreground(image, nd, threshold)
    counts = _ops.persistence_barcode(foreground, dims, True)[1].diff().view(-1, nd)
    counts[:, 0] += _occupied(foreground)
    return counts[:, dims].view(*image.shape[: image.dim() - nd], len(dims)).to(image.device)


def _reduced(errors: Tensor, reduction: str) -> Tensor:
    return errors if reduction == "none" else errors.sum() if reduction == "sum" else errors.double().mean()


class _Mean:
    """Mean of integers over everything that was given, by all ranks of ``process_group`` together."""

    def __init__(self, process_group: ProcessGroup | None, **options: Any) -> None:
        self.options, self.process_group = options, process_group
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._total: Tensor | None = None
        self._count = 0

    def merge(self, other: Self) -> None:
        """Add what another metric was given."""
        if other._total is not None:
            self._add(other._total, other._count)

    def compute(self) -> Tensor:
        """The mean so far, float64; NaN where there is nothing. The ranks of a ``process_group`` call it together."""
        parts: list[Any] = [(self._total, self._count)]
        if self.process_group is not None:
            own = (None if self._total is None else self._total.cpu(), self._count)
            parts = [None] * dist.get_world_size(self.process_group)
            dist.all_gather_object(parts, own, group=self.process_group)
        totals = [total for total, count in parts if count]
        device = torch.device("cpu") if self._total is None else self._total.device
        total = torch.stack(totals).sum(0) if totals else torch.zeros((), dtype=torch.int64)
        return total.to(device).double() / sum(count for _, count in parts)

    def _add(self, total: Tensor, count: int) -> None:
        self._total = total if self._total is None else self._total + total.to(self._total.device)
        self._count += count


class BettiNumbers(_Mean):
    """Mean :func:`betti_numbers` of everything that :meth:`update` was given.

    Args:
        spatial_dims, threshold, dims: as for :func:`betti_numbers`.
        process_group: its ranks call :meth:`compute` together, and each gets the mean over all; a rank may have nothing.
    """

    def __init__(
        self, *, spatial_dims: int | None = None, threshold: float = 0.5, dims: Sequence[int] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        super().__init__(process_group, spatial_dims=spatial_dims, threshold=threshold, dims=dims)

    def update(self, input: Tensor) -> None:
        """Add a batch."""
        numbers = betti_numbers(input, **self.options)
        numbers = numbers.reshape(-1, numbers.shape[-1])
        self._add(numbers.sum(0), len(numbers))


class BettiNumberError(_Mean):
    """Mean :func:`betti_number_error` of everything that :meth:`update` was given.

    Args:
        spatial_dims, threshold, dims: as for :func:`betti_number_error`.
        process_group: as for :class:`BettiNumbers`.
    """

    def __init__(
        self, *, spatial_dims: int | None = None, threshold: float = 0.5, dims: Sequence[int] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        super().__init__(process_group, spatial_dims=spatial_dims, threshold=threshold, dims=dims)

    def update(self, input: Tensor, target: Tensor) -> None:
        """Add a batch."""
        errors = betti_number_error(input, target, reduction="none", **self.options)
        self._add(errors.sum(), errors.numel())


class BettiMatchingError(_Mean):
    """Mean :func:`betti_matching_error` of everything that :meth:`update` was given.

    Args:
        spatial_dims, threshold, dims, essential: as for :func:`betti_matching_error`.
        process_group: as for :class:`BettiNumbers`.

    Sums and counts are kept, not images; how these are spread over batches and ranks does not change the result.

    Example:
        >>> import torch, nearlinear
        >>> metric = nearlinear.BettiMatchingError(spatial_dims=1)
        >>> metric.update(torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1, 1, 1]]))
        >>> metric.update(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1, 1, 1]]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(
        self, *, spatial_dims: int | None = None, threshold: float = 0.5, dims: Sequence[int] | None = None, essential: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        super().__init__(process_group, spatial_dims=spatial_dims, threshold=threshold, dims=dims, essential=essential)

    def update(self, input: Tensor, target: Tensor) -> None:
        """Add a batch."""
        errors = betti_matching_error(input, target, reduction="none", **self.options)
        self._add(errors.sum(), errors.numel())
