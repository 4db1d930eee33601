"""What the pair losses share: checks of their arguments, statistics, partners of a row, reductions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from .logit_maps import Identity, LogitMap
from .ops._register import stats_dtype
from .pair_tiles import LEAST_TILE_BYTES
from .score_maps import Cosine, Dot, ScoreMap

_ops = torch.ops.nearlinear


def check_pairs(
    name: str, input: Tensor, target: Tensor, reduction: str, max_workspace_bytes: int | None, *, key_target: Tensor | None = None,
    soft_label: tuple[Tensor, Tensor, Tensor] | None = None, first: str = "input", **vectors: Tensor | None,
) -> Tensor:  # fmt: skip
    """Raise for what does not fit; the labels as int64. ``first`` is what the function calls its rows, ``vectors`` further ones."""
    require = _checks.require
    _check_vectors(name, first, input)
    _check_labels(name, "target", target, input)
    labels = {"target": target}
    for other, tensor in vectors.items():
        if tensor is None:
            continue
        _check_vectors(name, other, tensor)
        if tensor.shape[1] != input.shape[1]:  # a text built for every call would fix the size for torch.compile
            raise ValueError(f"{name}: {other} must have D={input.shape[1]} columns, as {first}, got {tensor.shape[1]}")
        if tensor.dtype != input.dtype:
            raise TypeError(f"{name}: {other} must have the dtype of {first}, {input.dtype}, got {tensor.dtype}")
    if "key" in vectors:
        labels |= _check_key_labels(name, vectors["key"], key_target, soft_label)
    _checks.check_devices(name, input, **labels, **vectors)
    _checks.check_reduction(name, reduction)
    least = f"max_workspace_bytes must be >= {LEAST_TILE_BYTES}, got {max_workspace_bytes}"
    require(max_workspace_bytes is None or max_workspace_bytes >= LEAST_TILE_BYTES, ValueError, name, least)
    return target.long()


def _check_key_labels(
    name: str, key: Tensor | None, key_target: Tensor | None, soft_label: tuple[Tensor, Tensor, Tensor] | None
) -> dict[str, Tensor]:
    require = _checks.require
    if key is None:
        alone = "key_target and soft_label must be None without key"
        require(key_target is None and soft_label is None, ValueError, name, alone)
        return {}
    one = "key needs either key_target or soft_label, got " + ("both" if key_target is not None else "neither")
    require((key_target is None) != (soft_label is None), ValueError, name, one)
    if soft_label is None:
        assert key_target is not None
        _check_labels(name, "key_target", key_target, key)
        return {"key_target": key_target}
    require(len(soft_label) == 3, ValueError, name, f"soft_label must have three tensors, got {len(soft_label)}")
    for i in (0, 1):
        _check_labels(name, f"soft_label[{i}]", soft_label[i], key)
    _checks.check_tensor(name, "soft_label[2]", soft_label[2])
    _checks.check_floating(name, "soft_label[2]", soft_label[2])
    _checks.check_shape(name, "soft_label[2]", soft_label[2], tuple(key.shape[:1]))
    if soft_label[2].requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(f"{name}: no gradient for soft_label[2]; pass soft_label[2].detach()")
    return {f"soft_label[{i}]": t for i, t in enumerate(soft_label)}


def _check_vectors(name: str, argument: str, tensor: Tensor) -> None:
    _checks.check_tensor(name, argument, tensor)
    _checks.check_floating(name, argument, tensor)
    _checks.require(tensor.dim() == 2, ValueError, name, f"{argument} must have two dimensions, got shape {tuple(tensor.shape)}")


def _check_labels(name: str, argument: str, labels: Tensor, vectors: Tensor) -> None:
    _checks.check_tensor(name, argument, labels)
    if labels.dtype not in (torch.int64, torch.uint8):
        remedy = "" if labels.is_floating_point() else f"; use {argument}.long()"
        raise TypeError(f"{name}: {argument} must be int64 (or uint8), got {labels.dtype}{remedy}")
    _checks.check_shape(name, argument, labels, tuple(vectors.shape[:1]))


def check_positive(name: str, **values: float) -> None:
    for argument, value in values.items():
        _checks.require(value > 0, ValueError, name, f"{argument} must be > 0, got {value}")


def score_map_of(name: str, logit_map: LogitMap | ScoreMap | None) -> ScoreMap:
    """None is the cosine."""
    if logit_map is None:
        return Cosine(1.0)
    if isinstance(logit_map, ScoreMap):
        no_margin = f"logit_map must be a map without a margin, got {logit_map}"
        _checks.require(not logit_map.takes_margin, ValueError, name, no_margin)
        no_classes = f"logit_map must be a map of two embeddings, got {logit_map}: its class vectors are hyperplanes"
        _checks.require(not logit_map.embedding.holds_bias, ValueError, name, no_classes)
        return logit_map
    if not isinstance(logit_map, LogitMap):
        raise TypeError(f"{name}: logit_map must be a LogitMap or a ScoreMap, got {type(logit_map).__name__}")
    return Dot(logit_map)


def similarity(normalize: bool) -> ScoreMap:
    return Cosine(1.0) if normalize else Dot(Identity())


def limits(input: Tensor, below: float, above: float) -> Tensor:
    """The same limits for every row, [2, N]."""
    column = torch.tensor([[below], [above]], dtype=stats_dtype(input), device=input.device)
    return column.expand(2, input.shape[0])


def statistics(
    rows: Tensor, target: Tensor, score_map: ScoreMap, scale: list[float], max_workspace_bytes: int | None,
    keys: tuple[Tensor | None, ...] | None = None, limit: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``keys``: (vectors, label, second label, share of the first); None: the other rows."""
    return _ops.pair_stats(
        rows, (keys or (None,))[0], target, *(keys or (None,) * 4)[1:], limit, score_map.map_name, score_map.params, scale,
        max_workspace_bytes,
    )  # fmt: skip


def extremes(
    rows: Tensor, target: Tensor, score_map: ScoreMap, max_workspace_bytes: int | None, keys: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Smallest score of the positive and largest of the negative pairs, and their columns, [2, N]: constants to autograd."""
    key, key_target = keys or (None, None)
    return _ops.pair_extremes(
        rows.detach(), None if key is None else key.detach(), target, key_target, score_map.map_name, score_map.params, max_workspace_bytes
    )


def partner(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x by position, row 0 where there is none; an embedding lookup, whose gradient is summed in a fixed order."""
    return F.embedding(index.clamp(min=0), x) if x.shape[0] else x


def reduced(rows: Tensor, reduction: str, count: Tensor | int, dtype: torch.dtype) -> Tensor:
    if reduction == "none":
        return rows.to(dtype)
    total = rows.sum()
    if reduction == "mean":
        total = total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
    return total.to(dtype)
