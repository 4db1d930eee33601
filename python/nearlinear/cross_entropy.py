"""Softmax cross-entropy on given logits, and every loss that is a function of the target's probability."""

from __future__ import annotations

import math
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from . import _checks
from .logit_maps import Identity, LogitMap, SoftCap
from .ops._register import stats_dtype
from .row_losses import GCE, MAE, CompSum, Focal, Poly1, RowLoss, TruncatedGCE, get_row_loss

__all__ = [
    "CompSumLoss", "CrossEntropyLoss", "FocalLoss", "GCELoss", "MAELoss", "PolyLoss", "TruncatedGCELoss",
    "comp_sum_loss", "cross_entropy", "focal_loss", "gce_loss", "mae_loss", "poly_loss", "truncated_gce_loss",
]  # fmt: skip

_NAME = "cross_entropy"


class Options(TypedDict, total=False):
    """Keyword arguments that every loss of this module takes; see :func:`cross_entropy`."""

    ignore_index: int
    reduction: str
    label_smoothing: float
    z_loss: float
    softcap: float | None
    sample_weight: Tensor | None
    normalizer: float | Tensor | None
    logit_map: LogitMap | None
    check_targets: bool


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    row_loss: str | RowLoss = "ce",
    logit_map: LogitMap | None = None,
    check_targets: bool = False,
) -> Tensor:
    r"""Drop-in for :func:`torch.nn.functional.cross_entropy` that never stores the log-probabilities.

    With ``z = logit_map(input)``, ``nll = -log softmax(z)[y]`` and ``lse = logsumexp(z)``, the loss of row i is

        ``loss_i = v_i ((1 - e) w_y psi(nll) + e / V sum_j w_j (lse - z_j) + z_loss lse^2)``

    Args:
        input: logits of shape (N, V), (N, V, d1, ...) or (V,); float32, float64, bfloat16 or float16; any strides; any finite value,
            ``-inf`` allowed.
        target: class indices in [0, V), int64 or uint8, of shape (N,), (N, d1, ...) or (); or class probabilities, floating, of the shape
            of ``input`` (they may require a gradient).
        weight: class weights w, shape (V,), any floating dtype; must not require a gradient (as in torch).
        ignore_index: label whose rows contribute nothing and get a zero gradient (index targets only).
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. ``"mean"`` divides by ``sum_i v_i w_{y_i}`` over the rows kept, for probability
            targets by ``sum_i v_i``; without ``sample_weight`` that is torch's rule, and weight k equals repeating the row k times.
        label_smoothing: e in [0, 1]; only with ``row_loss="ce"``.
        z_loss: factor of ``lse^2``, >= 0; not class-weighted.
        softcap: shorthand for ``logit_map=SoftCap(softcap)``.
        sample_weight: row weights v, shape of the index target (or of the rows); any sign; differentiable.
        normalizer: number or 0-d tensor that replaces the divisor of ``"mean"`` (gradient accumulation, global token counts).
        row_loss: psi, a record of :mod:`nearlinear.row_losses` or its name; index targets only unless ``"ce"``.
        logit_map: a record of :mod:`nearlinear.logit_maps`, applied inside the kernel.
        check_targets: on CUDA, read back and raise for invalid labels (synchronises). On CPU they always raise.

    Returns:
        Scalar, or for ``"none"`` the shape of the rows. float32 (float64 for float64), where torch returns bfloat16 for bfloat16 logits.

    Raises:
        IndexError: a label outside [0, V) that is not ``ignore_index`` (on CUDA without ``check_targets``: that row's loss is NaN and its
            gradient zero; no address out of range is ever formed).
        TypeError, ValueError: a dtype, a shape or an option that does not fit, with what was expected.
        NotImplementedError: ``weight`` requires a gradient; forward-mode AD.

    Cost: N V reads forward, N V reads and writes backward, 2 N V exponentials; saves O(N). torch stores the N V log-probabilities.
    Determinism: run_to_run, the same bits for any number of CPU threads. Double backward is exact, at eager cost.
    Source: Milakov, Gimelshein 2018, arXiv:1805.02867 (online softmax).

    Example:
        >>> import torch, nearlinear
        >>> logits = torch.tensor([[2.0, -1.0], [0.0, 0.0]], requires_grad=True)
        >>> nearlinear.cross_entropy(logits, torch.tensor([0, 1]))
        tensor(0.3709, grad_fn=<DivBackward0>)
    """
    record = get_row_loss(row_loss, _NAME)
    input, target, rows_shape = _check(input, target, weight, sample_weight, ignore_index)
    soft = target.is_floating_point()
    _check_options(record, soft, label_smoothing, z_loss, softcap, logit_map, normalizer, reduction)
    stats_type, num_classes = stats_dtype(input), input.shape[1]
    weight = None if weight is None else weight.to(stats_type).contiguous()
    map_record = SoftCap(softcap) if softcap is not None else Identity() if logit_map is None else logit_map

    if soft:
        rows, lse, _, _ = torch.ops.nearlinear.soft_logit_stats(input, target, weight, label_smoothing, map_record.name, map_record.params)
        row_weight: Tensor | None = None
    else:
        nll, lse, spread, _ = _logit_stats(
            input, target, weight if label_smoothing else None, ignore_index, map_record, label_smoothing > 0, rows_shape
        )
        kept = target != ignore_index
        # the clamp: on CUDA a label out of range has poisoned its row by now, and must not become an address here
        row_weight = kept.to(stats_type) if weight is None else weight[target.masked_fill(~kept, 0).clamp(0, num_classes - 1)] * kept
        rows = record.value(nll, num_classes)
        if weight is not None or record.name != "ce":  # nll is already 0 where ignored
            rows = rows * row_weight
        if label_smoothing:
            rows = (1 - label_smoothing) * rows + (label_smoothing / num_classes) * spread
    if z_loss:
        rows = rows + z_loss * lse**2
    if sample_weight is not None:
        v = sample_weight.to(stats_type).reshape(rows.shape)
        v = v if soft else v.masked_fill(~kept, 0)  # an ignored row's weight gets a zero gradient, in an all-ignored batch too
        rows = rows * v
        row_weight = v if row_weight is None else row_weight * v
    if check_targets and not soft:
        _checks.raise_invalid_target(_NAME, target.reshape(rows_shape), num_classes, ignore_index)
    if reduction == "none":
        return rows.reshape(rows_shape)
    if reduction == "sum":
        return rows.sum()
    divisor = normalizer if normalizer is not None else rows.numel() if row_weight is None else row_weight.sum()
    if isinstance(divisor, Tensor) and normalizer is None and (label_smoothing or z_loss or sample_weight is not None):
        divisor = divisor.masked_fill(divisor == 0, math.nan)  # these terms do not vanish with the weights; torch gives NaN, not inf
    return rows.sum() / divisor


def _logit_stats(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, record: LogitMap, spread: bool, rows_shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op, with its RuntimeError for an invalid label turned into the IndexError that a user expects."""
    try:
        stats: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.nearlinear.logit_stats(
            input, target, weight, ignore_index, record.name, record.params, spread
        )
        return stats
    except RuntimeError as error:
        if "is out of range" in str(error):
            _checks.raise_invalid_target(_NAME, target.reshape(rows_shape), input.shape[1], ignore_index)
        raise


def _check(
    input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, torch.Size]:
    """Checked input as (N, V) or (N, V, P), target alike, and the shape of reduction="none"."""
    for name, value in (("input", input), ("target", target)):
        _checks.check_tensor(_NAME, name, value)
    _checks.check_floating(_NAME, "input", input)
    _checks.require(input.dim() >= 1, ValueError, _NAME, "input must have shape (V,), (N, V) or (N, V, d1, ...), got ()")
    rows_shape = torch.Size(input.shape[:1] + input.shape[2:]) if input.dim() > 1 else torch.Size()
    num_classes = input.shape[1] if input.dim() > 1 else input.shape[0]
    soft = target.is_floating_point() and target.shape == input.shape
    if not soft:
        if target.dtype not in (torch.int64, torch.uint8):
            remedy = (
                "; use target.long()" if not target.is_floating_point() else f"; class probabilities need the shape {tuple(input.shape)}"
            )
            raise TypeError(f"{_NAME}: target must be int64 (or uint8), got {target.dtype}{remedy}")
        _checks.require(
            target.shape == rows_shape, ValueError, _NAME,
            f"target must have shape {tuple(rows_shape)} for input of shape {tuple(input.shape)}, got {tuple(target.shape)}",
        )  # fmt: skip
    elif ignore_index >= 0:
        raise ValueError(f"{_NAME}: ignore_index must be negative with class probabilities (it has no effect there), got {ignore_index}")
    if weight is not None:
        _checks.check_class_weight(_NAME, weight, num_classes)
    if sample_weight is not None:
        _checks.check_tensor(_NAME, "sample_weight", sample_weight)
        _checks.check_floating(_NAME, "sample_weight", sample_weight)
        _checks.check_shape(_NAME, "sample_weight", sample_weight, rows_shape)
    _checks.check_devices(_NAME, input, target=target, weight=weight, sample_weight=sample_weight)
    if input.dim() == 1:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    elif input.dim() > 3:
        input, target = input.flatten(2), target.flatten(2 if soft else 1)
    return input, target.long() if target.dtype == torch.uint8 else target, rows_shape


def _check_options(
    record: RowLoss, soft: bool, label_smoothing: float, z_loss: float, softcap: float | None, logit_map: LogitMap | None,
    normalizer: float | Tensor | None, reduction: str,
) -> None:  # fmt: skip
    require = _checks.require
    _checks.check_options(_NAME, record, label_smoothing, z_loss, normalizer, reduction)
    require(softcap is None or logit_map is None, ValueError, _NAME, "softcap must not be combined with logit_map; use one of them")
    if logit_map is not None and not isinstance(logit_map, LogitMap):
        raise TypeError(f"{_NAME}: logit_map must be a LogitMap, got {type(logit_map).__name__}")
    plain = f"row_loss must be 'ce' with class probabilities, got {record.name!r}"
    require(record.name == "ce" or not soft, ValueError, _NAME, plain)


def comp_sum_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, *, tau: float = 1.0, **options: Unpack[Options]) -> Tensor:
    """:func:`cross_entropy` with :class:`~nearlinear.row_losses.CompSum`: ``(p_y^(tau-1) - 1) / (1 - tau)`` (arXiv:2304.07288)."""
    return cross_entropy(input, target, weight, row_loss=CompSum(tau), **options)


def gce_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, *, q: float = 0.7, **options: Unpack[Options]) -> Tensor:
    """:func:`cross_entropy` with :class:`~nearlinear.row_losses.GCE`: ``(1 - p_y^q) / q``, robust to label noise (arXiv:1805.07836)."""
    return cross_entropy(input, target, weight, row_loss=GCE(q), **options)


def truncated_gce_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, q: float = 0.7, k: float = 0.5, **options: Unpack[Options]
) -> Tensor:
    """:func:`cross_entropy` with :class:`~nearlinear.row_losses.TruncatedGCE`: GCE above ``p_y = k``, flat below (arXiv:1805.07836)."""
    return cross_entropy(input, target, weight, row_loss=TruncatedGCE(q, k), **options)


def mae_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Unpack[Options]) -> Tensor:
    """:func:`cross_entropy` with :class:`~nearlinear.row_losses.MAE`: ``1 - p_y`` (arXiv:1712.09482)."""
    return cross_entropy(input, target, weight, row_loss=MAE(), **options)


def focal_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, *, gamma: float = 2.0, **options: Unpack[Options]) -> Tensor:
    """:func:`cross_entropy` with :class:`~nearlinear.row_losses.Focal`: ``(1 - p_y)^gamma (-log p_y)`` (arXiv:1708.02002)."""
    return cross_entropy(input, target, weight, row_loss=Focal(gamma), **options)


def poly_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, *, epsilon: float = 1.0, **options: Unpack[Options]) -> Tensor:
    """:func:`cross_entropy` with :class:`~nearlinear.row_losses.Poly1`: ``-log p_y + epsilon (1 - p_y)`` (arXiv:2204.12511)."""
    return cross_entropy(input, target, weight, row_loss=Poly1(epsilon), **options)


class CrossEntropyLoss(nn.Module):
    """Module form of :func:`cross_entropy`: options at construction, tensors that change every step in the call."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        row_loss: str | RowLoss = "ce",
        logit_map: LogitMap | None = None,
        check_targets: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        _checks.check_reduction(type(self).__name__, reduction)
        self.row_loss = get_row_loss(row_loss, type(self).__name__)
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing, "z_loss": z_loss,
            "softcap": softcap, "logit_map": logit_map, "check_targets": check_targets,
        }  # fmt: skip

    def forward(
        self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, normalizer: float | Tensor | None = None
    ) -> Tensor:
        return cross_entropy(
            input, target, self.weight, sample_weight=sample_weight, normalizer=normalizer, row_loss=self.row_loss, **self.options
        )

    def extra_repr(self) -> str:
        return ", ".join([f"row_loss={self.row_loss}", *(f"{key}={value!r}" for key, value in self.options.items())])


class CompSumLoss(CrossEntropyLoss):
    """Module form of :func:`comp_sum_loss`."""

    def __init__(self, weight: Tensor | None = None, *, tau: float = 1.0, **options: Any) -> None:
        super().__init__(weight, row_loss=CompSum(tau), **options)


class GCELoss(CrossEntropyLoss):
    """Module form of :func:`gce_loss`."""

    def __init__(self, weight: Tensor | None = None, *, q: float = 0.7, **options: Any) -> None:
        super().__init__(weight, row_loss=GCE(q), **options)


class TruncatedGCELoss(CrossEntropyLoss):
    """Module form of :func:`truncated_gce_loss`."""

    def __init__(self, weight: Tensor | None = None, *, q: float = 0.7, k: float = 0.5, **options: Any) -> None:
        super().__init__(weight, row_loss=TruncatedGCE(q, k), **options)


class MAELoss(CrossEntropyLoss):
    """Module form of :func:`mae_loss`."""

    def __init__(self, weight: Tensor | None = None, **options: Any) -> None:
        super().__init__(weight, row_loss=MAE(), **options)


class FocalLoss(CrossEntropyLoss):
    """Module form of :func:`focal_loss`."""

    def __init__(self, weight: Tensor | None = None, *, gamma: float = 2.0, **options: Any) -> None:
        super().__init__(weight, row_loss=Focal(gamma), **options)


class PolyLoss(CrossEntropyLoss):
    """Module form of :func:`poly_loss`."""

    def __init__(self, weight: Tensor | None = None, *, epsilon: float = 1.0, **options: Any) -> None:
        super().__init__(weight, row_loss=Poly1(epsilon), **options)
