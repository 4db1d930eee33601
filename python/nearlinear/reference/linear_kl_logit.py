"""Definition of the divergence of two linear heads: the logits are built, then :mod:`.kl_logit` is applied to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import kl_logit

__all__ = ["linear_js_logit_loss", "linear_kl_logit_loss", "linear_two_logit_stats"]


def linear_two_logit_stats(
    input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor, inv_temperature: float, beta: float = 0.0,
    max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Divergence of the softmaxes of ``target_input target_weight^T`` and ``input linear_weight^T``, per row."""
    return kl_logit.two_logit_stats(input @ linear_weight.T, target_input @ target_weight.T, inv_temperature, beta)[0]


def linear_kl_logit_loss(
    input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor, *, temperature: float = 1.0,
    mask: Tensor | None = None, sample_weight: Tensor | None = None, reduction: str = "batchmean",
    normalizer: float | Tensor | None = None, max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Same arguments as :func:`nearlinear.linear_kl_logit_loss`, the last without effect."""
    options = {"temperature": temperature, "mask": mask, "sample_weight": sample_weight, "normalizer": normalizer}
    return _of_logits(kl_logit.kl_logit_loss, (input, linear_weight), (target_input, target_weight), reduction=reduction, **options)


def linear_js_logit_loss(
    input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor, *, beta: float = 0.5, temperature: float = 1.0,
    mask: Tensor | None = None, sample_weight: Tensor | None = None, reduction: str = "batchmean",
    normalizer: float | Tensor | None = None, max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Same arguments as :func:`nearlinear.linear_js_logit_loss`, the last without effect."""
    options = {"beta": beta, "temperature": temperature, "mask": mask, "sample_weight": sample_weight, "normalizer": normalizer}
    return _of_logits(kl_logit.js_logit_loss, (input, linear_weight), (target_input, target_weight), reduction=reduction, **options)


def _of_logits(function: Callable[..., Tensor], *heads: tuple[Tensor, Tensor], reduction: str, **options: Any) -> Tensor:
    shape = heads[0][0].shape[:-1]
    logits = [x.reshape(-1, x.shape[-1]) @ w.T for x, w in heads]
    rows = {name: None if options[name] is None else options[name].reshape(-1) for name in ("mask", "sample_weight")}
    loss = function(*logits, reduction=reduction, **{**options, **rows})
    return loss.reshape(shape) if reduction == "none" else loss
