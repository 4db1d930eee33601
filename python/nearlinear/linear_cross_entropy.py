"""Softmax cross-entropy of a linear head, the logits never stored; and the heads that are not linear: margins, distances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import _checks
from .linear_cross_entropy_soft import soft_cross_entropy
from .logit_maps import Identity, LogitMap, SoftCap
from .ops._register import stats_dtype
from .ops.linear_cross_entropy import row_terms
from .row_losses import ROW_LOSSES, RowLoss, get_row_loss
from .score_maps import Dot, ScoreMap
from .vocab_parallel import ClassShard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["LinearCrossEntropyLoss", "linear_cross_entropy"]

_NAME = "linear_cross_entropy"


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    row_loss: str | RowLoss = "ce",
    logit_map: LogitMap | ScoreMap | None = None,
    margin: Tensor | None = None,
    extra_lse: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    process_group: ProcessGroup | None = None,
    check_targets: bool = False,
) -> Tensor:
    r"""``cross_entropy(linear(input, linear_weight, linear_bias), target)`` without the logits: never a (rows x classes) tensor.

    Scores exist one tile at a time in a workspace of at most ``max_workspace_bytes``. With ``"mean"`` or ``"sum"`` the gradients are
    computed in the same walk (3 matrix products); ``"none"``, ``create_graph`` and ``process_group`` compute the scores twice (4).

    Args:
        input: features of shape (..., D); float32, float64, bfloat16 or float16; any strides.
        linear_weight: class vectors of shape (V, D), dtype of ``input`` (under autocast both are cast, as by ``F.linear``; distance maps
            compute in float32).
        target: class indices in [0, V), int64 or uint8, of the shape of ``input`` without its last dim; or class probabilities, floating,
            of shape (..., V), differentiable.
        linear_bias: shape (V,); only with the plain head (no ``logit_map``, or an elementwise one) and with ``HyperbolicMLR``.
        weight: class weights w, shape (V,); must not require a gradient.
        ignore_index, reduction, label_smoothing, z_loss, sample_weight, normalizer, row_loss, check_targets: as in
            :func:`nearlinear.cross_entropy`.
        softcap: shorthand for ``logit_map=SoftCap(softcap)``.
        logit_map: a record of :mod:`nearlinear.logit_maps`, applied to each dot product, or of :mod:`nearlinear.score_maps`, which says
            how a feature and a class vector make a logit: cosine, margins, distances.
        margin: per-row margins of the shape of ``target`` for a margin map, in place of the record's own; differentiable.
        extra_lse: log-sum-exp of further negatives, a scalar or of the shape of ``target``, added to the softmax; differentiable.
        max_workspace_bytes: limit of everything allocated beside the results; None is 256 MiB on CPU and 1 GiB on CUDA.
            :func:`nearlinear.plan` tells what will be used.
        process_group: ``linear_weight``, ``linear_bias`` and ``weight`` are this rank's shard of the classes, in rank order, of any sizes;
            ``input`` and ``target`` are the same on all ranks. Loss and gradient of ``input`` are those of the whole head.

    Returns:
        Scalar, or for ``"none"`` the shape of ``target``; float32 (float64 for float64).

    Raises:
        IndexError: a label outside [0, V) that is not ``ignore_index`` (CUDA: NaN row, zero gradient; see ``check_targets``).
        TypeError, ValueError: a dtype, a shape, an option or a workspace that does not fit, with what was expected.
        NotImplementedError: class probabilities with ``process_group``; ``weight`` requires a gradient; forward-mode AD; double backward
            with ``process_group``.

    Cost: 6 N V D FLOP forward and backward together (8 in the forms named above and for class probabilities), O(N) saved besides the
    gradients.
    Determinism: run_to_run, as far as torch's matrix product is. The weight's gradient is accumulated in float32.
    Source: the head of every language model; fused by Liger, CCE and others (see docs); logit maps cite theirs.

    Example:
        >>> import torch, nearlinear
        >>> x, w = torch.ones(2, 3), torch.zeros(5, 3)
        >>> nearlinear.linear_cross_entropy(x, w, torch.tensor([0, 4]))
        tensor(1.6094)
    """
    record = get_row_loss(row_loss, _NAME)
    score_map = _score_map(logit_map, softcap)
    input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias, score_map)
    _check(
        input, linear_weight, target, linear_bias, weight, score_map, sample_weight=sample_weight, margin=margin, extra_lse=extra_lse
    )  # fmt: skip
    _checks.check_options(_NAME, record, label_smoothing, z_loss, normalizer, reduction)
    if target.is_floating_point():
        return soft_cross_entropy(
            input, linear_weight, target, linear_bias, weight, ignore_index, reduction, label_smoothing, z_loss, sample_weight, normalizer,
            record, score_map, extra_lse, max_workspace_bytes, process_group,
        )  # fmt: skip
    shape, dtype = target.shape, stats_dtype(input)
    x, y = input.reshape(-1, input.shape[-1]), target.reshape(-1).long()
    weight = None if weight is None else weight.to(dtype).contiguous()
    margin = None if margin is None else margin.reshape(-1)
    extra = None if extra_lse is None else extra_lse.to(dtype).reshape(-1 if extra_lse.dim() else ())
    shard = ClassShard.of(linear_weight, weight, process_group)
    if check_targets:
        _checks.raise_invalid_target(_NAME, target.long(), shard.num_classes, ignore_index)

    v = None if sample_weight is None else sample_weight.to(dtype).reshape(-1).masked_fill(y == ignore_index, 0)
    w_y = shard.class_weight(y, ignore_index, dtype)
    scale = _row_scale(reduction, v, w_y, normalizer)

    divisor_of_nothing = reduction == "mean" and normalizer is None and y.numel() == 0  # 0 / 0, as torch
    fused = scale is not None and reduction != "none" and process_group is None and type(record) is ROW_LOSSES.get(record.name)
    try:
        if fused:
            wants = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in (x, linear_weight, linear_bias, margin)]
            loss: Tensor = torch.ops.nearlinear.linear_row_loss(
                x, linear_weight, linear_bias, y, weight, margin, scale, extra, ignore_index, score_map.map_name, score_map.params,
                record.name, record.params, label_smoothing, z_loss, max_workspace_bytes, wants,
            )[0]  # fmt: skip
            return loss + math.nan if divisor_of_nothing else loss
        stats = shard.stats(
            x, linear_weight, linear_bias, y, weight, margin, ignore_index, score_map, label_smoothing > 0, max_workspace_bytes
        )
    except RuntimeError as error:
        if "is out of range" in str(error):
            _checks.raise_invalid_target(_NAME, target.long(), shard.num_classes, ignore_index)
        raise
    rows = row_terms(*stats, w_y, shard.mass, extra, record, shard.num_classes, label_smoothing, z_loss)
    rows = rows.masked_fill(y == ignore_index, 0)
    rows = rows if scale is None else rows * scale
    if reduction == "none":
        return rows.reshape(shape)
    return rows.sum() + math.nan if divisor_of_nothing else rows.sum()


def _row_scale(reduction: str, v: Tensor | None, w_y: Tensor, normalizer: float | Tensor | None) -> Tensor | None:
    """Factor of each row in the sum that is the loss; None: 1. ``w_y``: the class weight of its label, 0 where ignored."""
    if reduction == "none":
        return v
    if reduction == "sum":
        return w_y.new_ones(()) if v is None else v
    if normalizer is None:
        divisor = (w_y if v is None else v * w_y).sum()
        divisor = divisor.masked_fill(divisor == 0, math.nan)
    else:
        divisor = torch.as_tensor(normalizer, dtype=w_y.dtype, device=w_y.device)
    return (1 if v is None else v) / divisor


def _score_map(logit_map: LogitMap | ScoreMap | None, softcap: float | None) -> ScoreMap:
    _checks.require(softcap is None or logit_map is None, ValueError, _NAME, "softcap must not be combined with logit_map; use one of them")
    if isinstance(logit_map, ScoreMap):
        return logit_map
    if logit_map is not None and not isinstance(logit_map, LogitMap):
        raise TypeError(f"{_NAME}: logit_map must be a LogitMap or a ScoreMap, got {type(logit_map).__name__}")
    return Dot(SoftCap(softcap) if softcap is not None else Identity() if logit_map is None else logit_map)


def _autocast(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, score_map: ScoreMap
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The plain head in autocast's dtype, as F.linear; others in float32, because a 16-bit product moves a distance's logit by units."""
    device = input.device.type if isinstance(input, Tensor) else "cpu"
    if not torch.is_autocast_enabled(device) or not all(isinstance(t, Tensor) for t in (input, linear_weight)):
        return input, linear_weight, linear_bias
    dtype = torch.get_autocast_dtype(device) if isinstance(score_map, Dot) else torch.float32
    cast = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (input, linear_weight, linear_bias)]
    return cast[0], cast[1], cast[2]  # type: ignore[return-value]


def _check(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None, score_map: ScoreMap,
    **by_row: Tensor | None,
) -> None:  # fmt: skip
    require = _checks.require
    check_head(_NAME, input, linear_weight, target, linear_bias, probabilities=True, **by_row)
    if linear_bias is not None:
        no_bias = f"linear_bias must be None with logit_map={score_map}: such a logit has no bias"
        require(isinstance(score_map, Dot) or score_map.embedding.holds_bias, ValueError, _NAME, no_bias)
    if weight is not None:
        _checks.check_class_weight(_NAME, weight, len(linear_weight))
        _checks.check_devices(_NAME, input, weight=weight)
    no_margin = f"margin must be None with logit_map={score_map}; use a margin map"
    require(by_row["margin"] is None or score_map.takes_margin, ValueError, _NAME, no_margin)


def check_head(
    function: str, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None, *, probabilities: bool = False,
    **by_row: Tensor | None,
) -> None:  # fmt: skip
    """Features, class vectors, labels (or probabilities), and tensors with one number a row (``extra_lse`` may be a scalar)."""
    require = _checks.require
    native = {"linear_weight": linear_weight, "linear_bias": linear_bias}
    for name, tensor in {"input": input, **native, **by_row}.items():
        if tensor is not None:
            _checks.check_tensor(function, name, tensor)
            _checks.check_floating(function, name, tensor)
    require(input.dim() >= 1, ValueError, function, "input must have shape (..., D), got ()")
    rows, features, got = tuple(input.shape[:-1]), input.shape[-1], tuple(linear_weight.shape)
    require(
        len(got) == 2 and got[1] == features, ValueError, function, f"linear_weight must have shape (V, D) with D={features}, got {got}"
    )
    num_classes = got[0]
    require(num_classes > 0, ValueError, function, "linear_weight must have at least one class, got V=0")
    _check_target(function, input, target, num_classes, probabilities)
    if linear_bias is not None:
        _checks.check_shape(function, "linear_bias", linear_bias, (num_classes,), f"(V,) with V={num_classes}")
    for name, tensor in by_row.items():
        if tensor is not None and not (name == "extra_lse" and tensor.dim() == 0):
            _checks.check_shape(function, name, tensor, rows, f"() or {rows}" if name == "extra_lse" else "")
    for name, tensor in native.items():
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError(f"{function}: {name} must have the dtype of input, {input.dtype}, got {tensor.dtype}")
    _checks.check_devices(function, input, target=target, **native, **by_row)


def _check_target(function: str, input: Tensor, target: Tensor, num_classes: int, probabilities: bool) -> None:
    _checks.check_tensor(function, "target", target)
    rows = tuple(input.shape[:-1])
    if probabilities and target.is_floating_point() and target.shape == (*rows, num_classes):
        return
    if target.dtype not in (torch.int64, torch.uint8):
        of_shape = f"; class probabilities need the shape {(*rows, num_classes)}" if probabilities else ""
        remedy = of_shape if target.is_floating_point() else "; use target.long()"
        raise TypeError(f"{function}: target must be int64 (or uint8), got {target.dtype}{remedy}")
    _checks.check_shape(function, "target", target, rows, f"{rows} for input of shape {tuple(input.shape)}")


class LinearCrossEntropyLoss(nn.Module):
    """Module form of :func:`linear_cross_entropy`: options at construction, tensors that change every step in the call. The class vectors
    stay the caller's parameter, as a language model ties them to its embedding."""

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
        logit_map: LogitMap | ScoreMap | None = None,
        max_workspace_bytes: int | None = None,
        process_group: ProcessGroup | None = None,
        check_targets: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        _checks.check_reduction(type(self).__name__, reduction)
        self.row_loss = get_row_loss(row_loss, type(self).__name__)
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing, "z_loss": z_loss,
            "softcap": softcap, "logit_map": logit_map, "max_workspace_bytes": max_workspace_bytes, "process_group": process_group,
            "check_targets": check_targets,
        }  # fmt: skip

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
        margin: Tensor | None = None,
        extra_lse: Tensor | None = None,
    ) -> Tensor:
        return linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, weight=self.weight, sample_weight=sample_weight, normalizer=normalizer,
            margin=margin, extra_lse=extra_lse, row_loss=self.row_loss, **self.options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join([f"row_loss={self.row_loss}", *(f"{key}={value!r}" for key, value in self.options.items())])
