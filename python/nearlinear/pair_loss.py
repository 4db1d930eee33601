"""Losses over pairs of embeddings that never hold a (batch x batch) tensor: the public names, and a Module for each function."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import _checks
from .logit_maps import LogitMap
from .pair_forms import PairForm, get_pair_form
from .pair_functions import batch_hard_triplet_loss, multi_similarity_loss, pair_loss, supcon_loss
from .proxy_functions import info_nce_loss, proto_triplet_loss, proxy_anchor_loss
from .score_maps import ScoreMap

__all__ = [
    "BatchHardTripletLoss", "InfoNCELoss", "MultiSimilarityLoss", "PairLoss", "ProtoTripletLoss", "ProxyAnchorLoss", "SupconLoss",
    "batch_hard_triplet_loss", "info_nce_loss", "multi_similarity_loss", "pair_loss", "proto_triplet_loss", "proxy_anchor_loss",
    "supcon_loss",
]  # fmt: skip


class _Options(nn.Module):
    """Options at construction, tensors in the call. Proxies stay the caller's parameters."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        _checks.check_reduction(type(self).__name__, options["reduction"])
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items())


class SupconLoss(_Options):
    """Module form of :func:`supcon_loss`."""

    def __init__(
        self, *, temperature: float = 0.1, logit_map: LogitMap | ScoreMap | None = None, reduction: str = "mean",
        max_workspace_bytes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(temperature=temperature, logit_map=logit_map, reduction=reduction, max_workspace_bytes=max_workspace_bytes)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return supcon_loss(input, target, **self.options)


class MultiSimilarityLoss(_Options):
    """Module form of :func:`multi_similarity_loss`."""

    def __init__(
        self, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, mining_margin: float | None = None,
        exclude_above: float | None = None, normalize: bool = True, reduction: str = "mean", max_workspace_bytes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            alpha=alpha, beta=beta, base=base, mining_margin=mining_margin, exclude_above=exclude_above, normalize=normalize,
            reduction=reduction, max_workspace_bytes=max_workspace_bytes,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return multi_similarity_loss(input, target, **self.options)


class BatchHardTripletLoss(_Options):
    """Module form of :func:`batch_hard_triplet_loss`."""

    def __init__(
        self, *, margin: float = 0.2, normalize: bool = True, reduction: str = "mean", max_workspace_bytes: int | None = None
    ) -> None:
        super().__init__(margin=margin, normalize=normalize, reduction=reduction, max_workspace_bytes=max_workspace_bytes)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return batch_hard_triplet_loss(input, target, **self.options)


class ProxyAnchorLoss(_Options):
    """Module form of :func:`proxy_anchor_loss`."""

    def __init__(
        self, *, alpha: float = 32.0, delta: float = 0.1, normalize: bool = True, reduction: str = "mean",
        max_workspace_bytes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(alpha=alpha, delta=delta, normalize=normalize, reduction=reduction, max_workspace_bytes=max_workspace_bytes)

    def forward(self, input: Tensor, proxies: Tensor, target: Tensor) -> Tensor:
        return proxy_anchor_loss(input, proxies, target, **self.options)


class PairLoss(_Options):
    """Module form of :func:`pair_loss`."""

    def __init__(
        self, *, form: str | PairForm = "multi_similarity", normalize: bool = True, reduction: str = "mean",
        max_workspace_bytes: int | None = None,
    ) -> None:  # fmt: skip
        form = get_pair_form(form, type(self).__name__)
        super().__init__(form=form, normalize=normalize, reduction=reduction, max_workspace_bytes=max_workspace_bytes)

    def forward(
        self, input: Tensor, target: Tensor, *, key: Tensor | None = None, key_target: Tensor | None = None,
        soft_label: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        return pair_loss(input, target, key=key, key_target=key_target, soft_label=soft_label, **self.options)


class ProtoTripletLoss(_Options):
    """Module form of :func:`proto_triplet_loss`."""

    def __init__(self, *, margin: float = 0.5, reduction: str = "mean", max_workspace_bytes: int | None = None) -> None:
        super().__init__(margin=margin, reduction=reduction, max_workspace_bytes=max_workspace_bytes)

    def forward(self, query: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
        return proto_triplet_loss(query, prototypes, target, **self.options)


class InfoNCELoss(_Options):
    """Module form of :func:`info_nce_loss`."""

    def __init__(
        self, *, temperature: float = 0.1, logit_map: LogitMap | ScoreMap | None = None, reduction: str = "mean",
        max_workspace_bytes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(temperature=temperature, logit_map=logit_map, reduction=reduction, max_workspace_bytes=max_workspace_bytes)

    def forward(self, query: Tensor, key: Tensor, *, extra_lse: Tensor | None = None) -> Tensor:
        return info_nce_loss(query, key, extra_lse=extra_lse, **self.options)
