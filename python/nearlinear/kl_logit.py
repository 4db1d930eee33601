"""Divergences between the softmaxes of two given logits, Kullback-Leibler and Jensen-Shannon: distillation, consistency, trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import _checks
from .ops._register import stats_dtype

__all__ = ["JSLogitLoss", "KLLogitLoss", "js_logit_loss", "kl_logit_loss"]

_REDUCTIONS = ("none", "batchmean", "sum")


def kl_logit_loss(
    input: Tensor,
    target_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""``KL(q || p)`` of ``q = softmax(target_logits / T)`` and ``p = softmax(input / T)``, per row, without storing either softmax.

        ``loss_i = v_i sum_j q_j (log q_j - log p_j)``

    the number of ``F.kl_div(log_softmax(input / T, 1), log_softmax(target_logits / T, 1), log_target=True)``. No factor T^2 is hidden
    in it: multiply by ``temperature**2`` where the recipe says so.

    Args:
        input: logits of p, of shape (N, V) or (N, V, d1, ...); float32, float64, bfloat16 or float16; any strides; ``-inf`` allowed.
        target_logits: logits of q, the reference distribution, of the same shape; a dtype of its own among float32, bfloat16 and
            float16, or float64 with float64. A gradient flows to it if it requires one: detach a teacher.
        temperature: T > 0, for both.
        mask: bool, one value per row; rows outside contribute 0, get a zero gradient and are not counted, whatever they hold.
        sample_weight: row weights v, one per row; any sign; differentiable.
        reduction: ``"none"``, ``"batchmean"`` or ``"sum"``. ``"batchmean"`` divides by the number of rows that ``mask`` keeps (pixels
            d1 x ... are rows), with ``sample_weight`` by ``sum_i v_i`` over them; no row kept: 0 with a zero gradient.
        normalizer: number or 0-d tensor that replaces the divisor of ``"batchmean"``.

    Returns:
        Scalar, or for ``"none"`` the shape of the rows; float32 (float64 for float64). Never negative, and exact to a few units in the
        last place relative to itself, however near the two softmaxes are and whatever the offset of either logit.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option that does not fit, with what was expected.
        NotImplementedError: forward-mode AD.

    Cost: 2 N V reads forward, 2 N V reads and N V writes backward (2 N V with both gradients), 6 N V exponentials; saves O(N).
    Determinism: run_to_run, the same bits for any number of CPU threads. Double backward is exact, at eager cost.
    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531 (temperature); Milakov, Gimelshein 2018, arXiv:1805.02867 (online softmax).

    Example:
        >>> import torch, nearlinear
        >>> student, teacher = torch.tensor([[2.0, -1.0]], requires_grad=True), torch.tensor([[2.0, 0.0]])
        >>> nearlinear.kl_logit_loss(student, teacher)
        tensor(0.0409, grad_fn=<DivBackward0>)
    """
    return _loss("kl_logit_loss", input, target_logits, 0.0, temperature, mask, sample_weight, reduction, normalizer)


def js_logit_loss(
    input: Tensor,
    target_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence of ``q = softmax(target_logits / T)`` and ``p = softmax(input / T)``, without either stored.

        ``loss_i = v_i (beta KL_i(q || m) + (1 - beta) KL_i(p || m)),   m = beta q + (1 - beta) p``

    The convention of GKD, TRL and Liger: ``beta`` is the share of the target, the teacher. The loss is symmetric in the two logits with
    their shares, and at most log 2 at ``beta = 1/2``.

    Args:
        input, target_logits: logits of p and of q, as in :func:`kl_logit_loss`; a gradient flows to whichever requires one.
        beta: 0 < beta < 1. The loss tends to 0 at either end, as beta KL(q || p) and (1 - beta) KL(p || q). TRL and Liger return those
            divergences without their factor at beta = 0 and 1; here the ends raise, and :func:`kl_logit_loss` gives either.
        temperature, mask, sample_weight, reduction, normalizer: as in :func:`kl_logit_loss`.

    Returns:
        As :func:`kl_logit_loss`: never negative, and exact to a few units in the last place relative to itself, however near the two
        softmaxes are. Finite also where a class is impossible (-inf) under one of the two.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option that does not fit, with what was expected.
        NotImplementedError: forward-mode AD.

    Cost: as :func:`kl_logit_loss`, and 4 N V logarithms; saves O(N). Determinism: run_to_run, the same bits for any number of CPU threads.
    Double backward is exact, at eager cost.
    Source: Lin 1991 (generalised Jensen-Shannon divergence); Agarwal et al. 2024, arXiv:2306.13649 (GKD).

    Example:
        >>> import torch, nearlinear
        >>> student, teacher = torch.tensor([[2.0, -1.0]], requires_grad=True), torch.tensor([[2.0, 0.0]])
        >>> nearlinear.js_logit_loss(student, teacher)
        tensor(0.0087, grad_fn=<DivBackward0>)
    """
    check_beta("js_logit_loss", beta)
    return _loss("js_logit_loss", input, target_logits, beta, temperature, mask, sample_weight, reduction, normalizer)


def _loss(
    function: str, input: Tensor, target_logits: Tensor, beta: float, temperature: float, mask: Tensor | None,
    sample_weight: Tensor | None, reduction: str, normalizer: float | Tensor | None,
) -> Tensor:  # fmt: skip
    rows_shape = _check(function, input, target_logits, temperature, mask, sample_weight)
    check_reduction(function, reduction, normalizer)
    if input.dim() > 3:
        input, target_logits = input.flatten(2), target_logits.flatten(2)
    rows = torch.ops.nearlinear.two_logit_stats(input, target_logits, 1 / temperature, beta)[0].reshape(rows_shape)
    return reduce_rows(rows, mask, sample_weight, reduction, normalizer)


def reduce_rows(
    rows: Tensor, mask: Tensor | None, sample_weight: Tensor | None, reduction: str, normalizer: float | Tensor | None
) -> Tensor:
    """Weighted and reduced as :func:`kl_logit_loss` says."""
    weight = None if sample_weight is None else sample_weight.to(rows.dtype)
    if mask is not None:
        rows = rows.masked_fill(~mask, 0)
        weight = mask.to(rows.dtype) if weight is None else weight.masked_fill(~mask, 0)
    if sample_weight is not None and weight is not None:
        rows = rows * weight
    if reduction == "none":
        return rows
    if reduction == "sum" or rows.numel() == 0:
        return rows.sum()
    divisor = normalizer if normalizer is not None else rows.numel() if weight is None else weight.sum()
    if isinstance(divisor, Tensor) and normalizer is None and mask is not None:
        divisor = divisor.masked_fill(~mask.any(), 1)  # no row kept is no divergence, not 0 / 0
    return rows.sum() / divisor


def check_beta(function: str, beta: float) -> None:
    _checks.require(
        isinstance(beta, int | float) and 0 < beta < 1, ValueError, function,
        f"beta must be a number between 0 and 1, got {beta!r}; for the ends call {function.replace('js', 'kl')}, with the two sides "
        "exchanged for beta=1",
    )  # fmt: skip


def check_reduction(function: str, reduction: str, normalizer: float | Tensor | None) -> None:
    no_divergence = "a mean over classes too ('mean' of F.kl_div) is no divergence"
    text = f"reduction must be one of {_REDUCTIONS}, got {reduction!r}; {no_divergence}"
    _checks.require(reduction in _REDUCTIONS, ValueError, function, text)
    unused = f"normalizer must be None unless reduction='batchmean', got reduction={reduction!r}"
    _checks.require(normalizer is None or reduction == "batchmean", ValueError, function, unused)


def check_rows(
    function: str, input: Tensor, rows_shape: tuple[int, ...], temperature: float, mask: Tensor | None, sample_weight: Tensor | None
) -> None:
    """Temperature, mask and weights."""
    require = _checks.require
    require(
        isinstance(temperature, int | float) and 0 < temperature < math.inf, ValueError, function,
        f"temperature must be a finite number > 0, got {temperature}",
    )  # fmt: skip
    for name, row_value in (("mask", mask), ("sample_weight", sample_weight)):
        if row_value is None:
            continue
        _checks.check_tensor(function, name, row_value)
        got = tuple(row_value.shape)
        require(got == tuple(rows_shape), ValueError, function, f"{name} must have one value per row, shape {tuple(rows_shape)}, got {got}")
    if mask is not None:
        require(mask.dtype == torch.bool, TypeError, function, f"mask must be bool, got {mask.dtype}; weigh rows by sample_weight")
    if sample_weight is not None:
        _checks.check_floating(function, "sample_weight", sample_weight)
    _checks.check_devices(function, input, mask=mask, sample_weight=sample_weight)


def _check(
    function: str, input: Tensor, target_logits: Tensor, temperature: float, mask: Tensor | None, sample_weight: Tensor | None
) -> torch.Size:
    """Shape of reduction="none"."""
    require = _checks.require
    for name, value in (("input", input), ("target_logits", target_logits)):
        _checks.check_tensor(function, name, value)
        _checks.check_floating(function, name, value)
    shape = tuple(input.shape)
    require(len(shape) >= 2, ValueError, function, f"input must have shape (N, V) or (N, V, d1, ...), got {shape}")
    require(
        target_logits.shape == input.shape, ValueError, function,
        f"target_logits must have the shape of input, {shape}, got {tuple(target_logits.shape)}",
    )  # fmt: skip
    require(
        stats_dtype(target_logits) == stats_dtype(input), TypeError, function,
        f"target_logits must be float64 exactly if input is, got {target_logits.dtype} with {input.dtype}; cast one of them",
    )  # fmt: skip
    rows_shape = torch.Size(input.shape[:1] + input.shape[2:])
    _checks.check_devices(function, input, target_logits=target_logits)
    check_rows(function, input, rows_shape, temperature, mask, sample_weight)
    return rows_shape


class _LogitLoss(nn.Module):
    """Options at construction, tensors that change every step in the call."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(
        self,
        input: Tensor,
        target_logits: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        return type(self).function(
            input, target_logits, mask=mask, sample_weight=sample_weight, normalizer=normalizer, **self.options
        )  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items())


class KLLogitLoss(_LogitLoss):
    """Module form of :func:`kl_logit_loss`: options at construction, tensors that change every step in the call."""

    function = staticmethod(kl_logit_loss)

    def __init__(self, *, temperature: float = 1.0, reduction: str = "batchmean") -> None:
        super().__init__(temperature=temperature, reduction=reduction)


class JSLogitLoss(_LogitLoss):
    """Module form of :func:`js_logit_loss`: options at construction, tensors that change every step in the call."""

    function = staticmethod(js_logit_loss)

    def __init__(self, *, beta: float = 0.5, temperature: float = 1.0, reduction: str = "batchmean") -> None:
        super().__init__(beta=beta, temperature=temperature, reduction=reduction)
