"""Divergences between two linear heads, Kullback-Leibler and Jensen-Shannon: distillation without either's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import _checks
from .kl_logit import check_beta, check_reduction, check_rows, reduce_rows

__all__ = ["LinearJSLogitLoss", "LinearKLLogitLoss", "linear_js_logit_loss", "linear_kl_logit_loss"]


def linear_kl_logit_loss(
    input: Tensor,
    linear_weight: Tensor,
    target_input: Tensor,
    target_weight: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
    normalizer: float | Tensor | None = None,
    max_workspace_bytes: int | None = None,
) -> Tensor:
    """:func:`kl_logit_loss` of ``linear(input, linear_weight)`` against ``linear(target_input, target_weight)``; neither is stored.

    Args:
        input, linear_weight: features (..., D) and class vectors (V, D) of p; float32, float64, bfloat16 or float16.
        target_input, target_weight: features (..., K) and class vectors (V, K) of q, the reference, of the same dtype. Gradients flow to
            whatever requires one: detach a teacher.
        temperature, mask, sample_weight, reduction, normalizer: as in :func:`kl_logit_loss`; mask and weights have the shape of ``input``
            without its last dim.
        max_workspace_bytes: limit of everything allocated beside the results; None is 256 MiB on CPU and 1 GiB on CUDA.

    Returns, raises: as :func:`kl_logit_loss`; under autocast the four tensors are cast as by ``F.linear``.
    Cost: 2 N V (D + K) FLOP forward and three times that backward; O(N) saved. Determinism: run_to_run, as far as torch's product is.
    """
    tensors = {"input": input, "linear_weight": linear_weight, "target_input": target_input, "target_weight": target_weight}
    options = (temperature, mask, sample_weight, reduction, normalizer, max_workspace_bytes)
    return _loss("linear_kl_logit_loss", tensors, 0.0, *options)


def linear_js_logit_loss(
    input: Tensor,
    linear_weight: Tensor,
    target_input: Tensor,
    target_weight: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
    normalizer: float | Tensor | None = None,
    max_workspace_bytes: int | None = None,
) -> Tensor:
    """:func:`js_logit_loss` of ``linear(input, linear_weight)`` against ``linear(target_input, target_weight)``; neither is stored.

    Args:
        input, linear_weight, target_input, target_weight, max_workspace_bytes: as in :func:`linear_kl_logit_loss`.
        beta, temperature, mask, sample_weight, reduction, normalizer: as in :func:`js_logit_loss`; mask and weights have the shape of
            ``input`` without its last dim.

    Returns, raises, cost, determinism: as :func:`linear_kl_logit_loss`.
    """
    check_beta("linear_js_logit_loss", beta)
    tensors = {"input": input, "linear_weight": linear_weight, "target_input": target_input, "target_weight": target_weight}
    options = (temperature, mask, sample_weight, reduction, normalizer, max_workspace_bytes)
    return _loss("linear_js_logit_loss", tensors, beta, *options)


def _loss(
    function: str, tensors: dict[str, Tensor], beta: float, temperature: float, mask: Tensor | None, sample_weight: Tensor | None,
    reduction: str, normalizer: float | Tensor | None, max_workspace_bytes: int | None,
) -> Tensor:  # fmt: skip
    input = tensors["input"]
    for name, tensor in tensors.items():
        _checks.check_tensor(function, name, tensor)
        _checks.check_floating(function, name, tensor)
    device = input.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tensors = {name: t if t.dtype == torch.float64 else t.to(dtype) for name, t in tensors.items()}
    rows = tuple(input.shape[:-1])
    require = _checks.require
    for features, weight in (("input", "linear_weight"), ("target_input", "target_weight")):
        got, of = tuple(tensors[features].shape), tuple(tensors[weight].shape)
        require(got[:-1] == rows and len(got) > 0, ValueError, function, f"{features} must have shape (*{rows}, D), got {got}")
        require(len(of) == 2 and of[1] == got[-1], ValueError, function, f"{weight} must have shape (V, {got[-1]}), got {of}")
    v, t = len(tensors["linear_weight"]), len(tensors["target_weight"])
    require(v == t > 0, ValueError, function, f"target_weight must have the classes of linear_weight, V={v}, got {t}")
    for name, tensor in tensors.items():
        if tensor.dtype != tensors["input"].dtype:
            raise TypeError(f"{function}: {name} must have the dtype of input, {tensors['input'].dtype}, got {tensor.dtype}")
    _checks.check_devices(function, **tensors)
    check_reduction(function, reduction, normalizer)
    check_rows(function, input, rows, temperature, mask, sample_weight)
    x, w, x_target, w_target = (t if "weight" in name else t.reshape(-1, t.shape[-1]) for name, t in tensors.items())
    divergence = torch.ops.nearlinear.linear_two_logit_stats(x, w, x_target, w_target, 1 / temperature, beta, max_workspace_bytes)
    return reduce_rows(divergence.reshape(rows), mask, sample_weight, reduction, normalizer)


class _LinearLogitLoss(nn.Module):
    """Options at construction, tensors in the call."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target_input: Tensor,
        target_weight: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        return type(self).function(
            input, linear_weight, target_input, target_weight, mask=mask, sample_weight=sample_weight, normalizer=normalizer, **self.options
        )  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items())


class LinearKLLogitLoss(_LinearLogitLoss):
    """Module form of :func:`linear_kl_logit_loss`: options at construction, tensors in the call."""

    function = staticmethod(linear_kl_logit_loss)

    def __init__(self, *, temperature: float = 1.0, reduction: str = "batchmean", max_workspace_bytes: int | None = None) -> None:
        super().__init__(temperature=temperature, reduction=reduction, max_workspace_bytes=max_workspace_bytes)


class LinearJSLogitLoss(_LinearLogitLoss):
    """Module form of :func:`linear_js_logit_loss`: options at construction, tensors in the call."""

    function = staticmethod(linear_js_logit_loss)

    def __init__(
        self, *, beta: float = 0.5, temperature: float = 1.0, reduction: str = "batchmean", max_workspace_bytes: int | None = None
    ) -> None:
        super().__init__(beta=beta, temperature=temperature, reduction=reduction, max_workspace_bytes=max_workspace_bytes)
