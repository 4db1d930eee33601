"""Betti matching: bars of two images that are the same feature in the same place, and the loss and the metrics on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _C
from . import betti_checks as checks
from ._checks import check_reduction, require
from .betti_images import Classes, places, stacked
from .betti_metrics import betti_matching_error, betti_number_error, betti_numbers
from .betti_results import BettiMatching, PersistenceBarcode
from .progress import watched

__all__ = [
    "BettiMatchingLoss",
    "betti_matching",
    "betti_matching_error",
    "betti_matching_loss",
    "betti_number_error",
    "betti_numbers",
    "persistence_barcode",
]

_MATCHING, _BARCODE, _LOSS = "betti_matching", "persistence_barcode", "betti_matching_loss"
_ops = torch.ops.nearlinear


def betti_matching(
    input: Tensor,
    target: Tensor,
    *,
    spatial_dims: int,
    filtration: str = "superlevel",
    image_intervals: str = "all",
    dims: Sequence[int] | None = None,
    progress: bool = False,
) -> BettiMatching:
    r"""Match the bars of the persistence barcodes of two images through their images in the barcode of both together (Stucki et al. 2023,
    arXiv:2211.15272; volumes: arXiv:2407.04683).

    Args:
        input, target: images of one shape (..., \*S), any strides; leading dims are a batch. float32, float64, bfloat16, float16, uint8 or
            bool, of different dtypes as torch promotes them. Infinities are allowed: what enters at the far one never does.
        spatial_dims: length of S: 1, 2 or 3.
        filtration: ``"superlevel"``, large values enter first, or ``"sublevel"``. Pixels connect along axes (4 neighbours, 6 in volumes).
        image_intervals: ``"all"``, as the published programs, or ``"positive"``: only intervals that are born before they die match.
        dims: homology dimensions, all by default: 0 components, 1 loops, 2 cavities. Those left out cost nothing.
        progress: draw a bar on a terminal, for large volumes. Ctrl-C ends them at once.

    Returns:
        :class:`nearlinear.BettiMatching`: pixels, without gradient. Bars of zero length and the one that never dies are not among them.

    Raises:
        TypeError, ValueError, NotImplementedError: an argument that does not fit, with what was expected. ValueError too for NaN, with its
            position.

    Cost: images are sorted and swept with union-find, near-linear; dimension 1 of volumes reduces a matrix. Volumes on a GPU are copied to
    the CPU, which computes them. Determinism: the same pixels for any number of threads and on any device. Equal values enter in order of
    their index: a transposed image may match otherwise.

    Example:
        >>> import torch, nearlinear
        >>> predicted, truth = torch.full((4, 4), 0.2), torch.zeros(4, 4)
        >>> predicted[1, 1], predicted[3, 3], truth[1, 1], truth[3, 3] = 0.9, 0.8, 1.0, 1.0
        >>> found = nearlinear.betti_matching(predicted, truth, spatial_dims=2)
        >>> found.matched[:, [0, 2]].tolist(), len(found.unmatched_input)  # the second spot, in both; the first one never dies
        ([[15, 15]], 0)
    """
    nd = checks.check_spatial(_MATCHING, input, spatial_dims)
    dtype = checks.check_pair(_MATCHING, input, target)
    checks.check_word(_MATCHING, "filtration", filtration, checks.FILTRATIONS)
    checks.check_word(_MATCHING, "image_intervals", image_intervals, checks.INTERVALS)
    wanted = checks.check_dims(_MATCHING, dims, nd)
    x, y = (stacked(image.detach(), nd).to(dtype) for image in (input, target))
    try:
        with watched(_C.progress, _MATCHING) if progress else nullcontext():
            results = _ops.betti_matching(x, y, wanted, filtration == "superlevel", image_intervals == "positive")
    except RuntimeError as error:
        checks.raise_better(error, _MATCHING, input=input, target=target)
        raise
    *tables, offsets = (result.to(input.device) for result in results)
    matched, input_only, target_only = ((rows, *places(rows, offsets[:, i], nd)) for i, rows in enumerate(tables))
    return BettiMatching(*matched, *input_only, *target_only, len(x))


def persistence_barcode(
    input: Tensor, *, spatial_dims: int, filtration: str = "superlevel", dims: Sequence[int] | None = None, essential: bool = False
) -> PersistenceBarcode:
    r"""Persistence barcode of images: when components, loops and cavities appear and vanish as the threshold moves.

    Args:
        input, spatial_dims, filtration, dims: as for :func:`betti_matching`.
        essential: also return where the bar of dimension 0 is born that never dies: the first pixel of the first value.

    Returns:
        :class:`nearlinear.PersistenceBarcode`: pixels, without gradient; bars of zero length are left out.

    Raises, cost, determinism: as :func:`betti_matching`.

    Example:
        >>> import torch, nearlinear
        >>> signal = torch.tensor([0.1, 0.9, 0.3, 0.7, 0.2])
        >>> bars = nearlinear.persistence_barcode(signal, spatial_dims=1, essential=True)
        >>> bars.pairs, bars.essential  # 0.7 joins the larger hill at 0.3
        (tensor([[3, 2]]), tensor([1]))
    """
    nd = checks.check_spatial(_BARCODE, input, spatial_dims)
    checks.check_dtype(_BARCODE, "input", input.dtype)
    checks.check_word(_BARCODE, "filtration", filtration, checks.FILTRATIONS)
    wanted = checks.check_dims(_BARCODE, dims, nd)
    x = stacked(input.detach(), nd)
    try:
        pairs, offsets = (result.to(input.device) for result in _ops.persistence_barcode(x, wanted, filtration == "superlevel"))
    except RuntimeError as error:
        checks.raise_better(error, _BARCODE, input=input)
        raise
    first = offsets.new_empty(0)
    if essential and 0 in wanted:
        flat = (x.to(torch.uint8) if x.dtype == torch.bool else x).flatten(1)
        first = (flat.argmax(1) if filtration == "superlevel" else flat.argmin(1)).to(input.device)
    return PersistenceBarcode(pairs, *places(pairs, offsets, nd), first, len(x))


def betti_matching_loss(
    input: Tensor,
    target: Tensor,
    *,
    filtration: str = "superlevel",
    spatial_dims: int | None = None,
    sphere: bool = False,
    pad_value: float | None = None,
    push_unmatched_to: str = "diagonal",
    matched_weight: float = 1.0,
    unmatched_input_weight: float = 1.0,
    include_unmatched_target: bool = True,
    dim_weight: Sequence[float] | None = None,
    min_persistence: float = 0.0,
    essential: bool = False,
    image_intervals: str = "all",
    include_background: bool = True,
    to_onehot_y: bool = False,
    sigmoid: bool = False,
    softmax: bool = False,
    check_input: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Topological loss: twice the squared distance of matched bars, and of unmatched ones to the diagonal.

        ``w_0 sum_matched 2 ((b - b')^2 + (d - d')^2) + w_1 sum_{input only} (b - d)^2 + sum_{target only} (b - d)^2``

    Args:
        input: predictions (N, C, \*S), or (..., \*S) with ``spatial_dims``; float32, float64, bfloat16 or float16. Any values: only
            differences count.
        target: the same shape, any real dtype, promoted with ``input`` as torch does. It may require a gradient.
        filtration: ``"superlevel"``, ``"sublevel"`` or ``"both"``, the mean of these two.
        spatial_dims: 1, 2 or 3; all dims after (N, C) by default.
        sphere: ``pad_value=0.0``, in the published loss's word.
        pad_value: frame of one pixel of this value around both images, without gradient.
        push_unmatched_to: ``"diagonal"``: an unmatched bar shrinks, ``(b - d)^2``. ``"opposite"``: it is pushed across the diagonal to the
            other corner, ``2 (b^2 + (1 - d)^2)`` (sublevel: ``2 ((1 - b)^2 + d^2)``), for values in [0, 1].
        matched_weight, unmatched_input_weight: w_0 and w_1.
        include_unmatched_target: whether features that the prediction misses are charged.
        dim_weight: factor of each homology dimension; one of 0 costs nothing.
        min_persistence: unmatched bars of ``input`` count if they are longer than this.
        essential: also charge the bar that never dies, ``2 w_0`` times the squared difference of the two first values.
        image_intervals: as for :func:`betti_matching`.
        include_background: whether channel 0 counts; a single channel always does.
        to_onehot_y: ``target`` (N, 1, \*S) holds class indices.
        sigmoid, softmax: applied to ``input`` first; softmax over the channels.
        check_input: read the values on a GPU too, which waits for it; on the CPU they always are.
        reduction: ``"mean"`` over all images, ``"sum"``, or ``"none"``: the shape of the leading dims.

    Returns:
        float32 (float64 where the images are). The gradient is that of the values with the pairs as constants, a subgradient, and sparse.

    Raises:
        TypeError, ValueError, NotImplementedError, IndexError: an argument that does not fit, with what was expected. ValueError for NaN on
            the CPU (elsewhere loss NaN and gradient 0). NotImplementedError for a second derivative: differentiate values gathered at the
            pixels of :func:`betti_matching` instead.

    Cost: that of :func:`betti_matching` forward, one multiplication backward; saved: the gradient image. Determinism: run_to_run, the same
    bits for any number of threads and any place in the batch.

    Example:
        >>> import torch, nearlinear
        >>> logits, mask = torch.randn(2, 1, 8, 8, requires_grad=True), torch.ones(2, 1, 8, 8)
        >>> nearlinear.betti_matching_loss(logits, mask, sigmoid=True).backward()
        >>> logits.grad.shape
        torch.Size([2, 1, 8, 8])
    """
    nd = checks.check_spatial(_LOSS, input, spatial_dims)
    checks.check_word(_LOSS, "filtration", filtration, (*checks.FILTRATIONS, "both"))
    checks.check_word(_LOSS, "push_unmatched_to", push_unmatched_to, checks.PUSHES)
    checks.check_word(_LOSS, "image_intervals", image_intervals, checks.INTERVALS)
    check_reduction(_LOSS, reduction)
    checks.check_numbers(_LOSS, min_persistence, sphere, pad_value)
    weights = _weights(nd, dim_weight, matched_weight, unmatched_input_weight, float(include_unmatched_target))
    reads = checks.reads_values(input, check_input)
    classes = Classes(include_background, to_onehot_y, sigmoid, softmax)
    x, y = classes.channels(_LOSS, input, target, nd, reads)
    dtype, lead, push = checks.check_pair(_LOSS, x, y), x.shape[: x.dim() - nd], push_unmatched_to == "opposite"
    if reads and push:
        checks.check_probabilities(_LOSS, input=x, target=y)
    if reads and input.device.type != "cpu":
        checks.raise_not_a_number(_LOSS, input=input, target=target)
    x, y = (stacked(image, nd).to(dtype) for image in (x, y))
    if sphere or pad_value is not None:
        x, y = (F.pad(image, [1] * (2 * nd), value=0.0 if pad_value is None else pad_value) for image in (x, y))
    wants = [torch.is_grad_enabled() and image.requires_grad for image in (x, y)]
    rest = (image_intervals == "positive", min_persistence, push, essential, *wants)
    names = checks.FILTRATIONS if filtration == "both" else (filtration,)
    try:
        found = [_ops.betti_matching_loss(x, y, weights, name == "superlevel", *rest)[0] for name in names]
    except RuntimeError as error:
        checks.raise_better(error, _LOSS, input=input, target=target)
        raise
    images = (found[0] if len(found) == 1 else (found[0] + found[1]) / 2).view(lead).to(input.device)
    if reduction == "none":
        return images
    return images.sum() if reduction == "sum" else images.sum() / max(images.numel(), 1)


def _weights(nd: int, dim_weight: Sequence[float] | None, *factors: float) -> list[float]:
    """Factors of matched, input and target bars of every dimension, as the op takes them."""
    each = [1.0] * nd if dim_weight is None else list(dim_weight)
    require(len(each) == nd, ValueError, _LOSS, f"dim_weight must have one number per homology dimension, {nd}, got {dim_weight}")
    weights = [float(weight * factor) for weight in each for factor in factors]
    finite = all(0 <= weight < math.inf for weight in weights)
    require(finite, ValueError, _LOSS, f"dim_weight and the weights of bars must be finite and >= 0, got {dim_weight} and {factors[:2]}")
    return weights


class BettiMatchingLoss(nn.Module):
    """Module form of :func:`betti_matching_loss`, for probabilities: without ``sigmoid`` or ``softmax`` it raises on values outside [0, 1]
    (where values are read), because logits in their place are a mistake that no other error would show."""

    def __init__(
        self,
        *,
        filtration: str = "superlevel",
        spatial_dims: int | None = None,
        sphere: bool = False,
        pad_value: float | None = None,
        push_unmatched_to: str = "diagonal",
        matched_weight: float = 1.0,
        unmatched_input_weight: float = 1.0,
        include_unmatched_target: bool = True,
        dim_weight: Sequence[float] | None = None,
        min_persistence: float = 0.0,
        essential: bool = False,
        image_intervals: str = "all",
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        check_input: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_reduction(type(self).__name__, reduction)
        self.options: dict[str, Any] = {
            "filtration": filtration, "spatial_dims": spatial_dims, "sphere": sphere, "pad_value": pad_value,
            "push_unmatched_to": push_unmatched_to, "matched_weight": matched_weight, "unmatched_input_weight": unmatched_input_weight,
            "include_unmatched_target": include_unmatched_target, "dim_weight": dim_weight, "min_persistence": min_persistence,
            "essential": essential, "image_intervals": image_intervals, "include_background": include_background,
            "to_onehot_y": to_onehot_y, "sigmoid": sigmoid, "softmax": softmax, "check_input": check_input, "reduction": reduction,
        }  # fmt: skip

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        options = self.options
        if isinstance(input, Tensor) and checks.reads_values(input, options["check_input"]):
            given = {} if options["sigmoid"] or options["softmax"] else {"input": input}
            checks.check_probabilities(_LOSS, **given if options["to_onehot_y"] else {**given, "target": target})
        return betti_matching_loss(input, target, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items())
