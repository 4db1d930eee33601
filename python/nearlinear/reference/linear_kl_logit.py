"""Definition of the divergence of two linear heads: the logits are built, then :mod:`.kl_logit` is applied to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import kl_logit

__all__ = ["linear_kl_logit_loss", "linear_two_logit_stats"]


def linear_two_logit_stats(
    input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor, inv_temperature: float,
    max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """KL of the softmaxes of ``target_input target_weight^T`` and ``input linear_weight^T``, per row."""
    return kl_logit.two_logit_stats(input @ linear_weight.T, target_input @ target_weight.T, inv_temperature)[0]


def linear_kl_logit_loss(
    input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor, *, temperature: float = 1.0,
    mask: Tensor | None = None, sample_weight: Tensor | None = None, reduction: str = "batchmean",
    normalizer: float | Tensor | None = None, max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Same arguments as :func:`nearlinear.linear_kl_logit_loss`, the last without effect."""
    shape = input.shape[:-1]
    logits = [x.reshape(-1, x.shape[-1]) @ w.T for x, w in ((input, linear_weight), (target_input, target_weight))]
    rows: dict[str, Any] = {name: None if t is None else t.reshape(-1) for name, t in (("mask", mask), ("sample_weight", sample_weight))}
    loss = kl_logit.kl_logit_loss(*logits, temperature=temperature, reduction=reduction, normalizer=normalizer, **rows)
    return loss.reshape(shape) if reduction == "none" else loss
