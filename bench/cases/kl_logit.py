"""Divergences of two given logits, the teacher's without a gradient, as in distillation. Baselines are what a torch user writes (F.kl_div
of log-softmaxes; for Jensen-Shannon TRL's lines), and torch.compile of that; in bfloat16 also with ``.float()`` first, as exact as ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import kl_logit as reference
from torch import Tensor

from ..registry import Case, Sizes, register
from .cross_entropy import rivals, soft_floor, soft_moved

TEMPERATURE, BETA = 2.0, 0.5


def eager(input: Tensor, target_logits: Tensor) -> Tensor:
    log_p, log_q = ((logits / TEMPERATURE).log_softmax(1) for logits in (input, target_logits))
    return F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(1).mean()


def eager_js(input: Tensor, target_logits: Tensor) -> Tensor:
    log_p, log_q = ((logits / TEMPERATURE).log_softmax(1) for logits in (input, target_logits))
    log_m = torch.logsumexp(torch.stack([log_p + math.log(1 - BETA), log_q + math.log(BETA)]), dim=0)
    of_target, of_input = (F.kl_div(log_m, z, log_target=True, reduction="none") for z in (log_q, log_p))
    return (BETA * of_target + (1 - BETA) * of_input).sum(1).mean()


def wide(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: function(*(tensor.float() for tensor in tensors))


def logits(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """A teacher of a trained model's spread, and a student near it."""
    shape = tuple(sizes.values())
    teacher = torch.randn(shape, device=device, dtype=dtype).mul_(3)
    return torch.randn(shape, device=device, dtype=dtype).add_(teacher).requires_grad_(), teacher


DISTILLATION = {"cpu": [{"N": 4096, "V": 50257}], "cuda": [{"N": 8192, "V": 128256}]}
for op, name, plain, options, where, fields in (
    ("kl_logit_loss", "distillation", eager, {}, DISTILLATION, {"tiny": {"N": 14, "V": 33}}),
    (
        "kl_logit_loss", "segmentation", eager, {},
        {"cpu": [{"B": 4, "C": 19, "P": 65536}], "cuda": [{"B": 16, "C": 19, "P": 524288}]},
        {"tiny": {"B": 2, "C": 5, "P": 24}, "error_rows": {"B": 1}},
    ),
    ("js_logit_loss", "distillation, Jensen-Shannon", eager_js, {"beta": BETA}, DISTILLATION, {"tiny": {"N": 14, "V": 33}}),
):  # fmt: skip
    defaults = {"error_rows": {"N": 256}}
    register(
        Case(
            family="kl_logit",
            op=op,
            name=name,
            ours=partial(getattr(nearlinear, op), temperature=TEMPERATURE, **options),
            definition=partial(getattr(reference, op), temperature=TEMPERATURE, **options),
            baselines=rivals(plain, wide(plain)),
            inputs=logits,
            sizes=where,
            bytes=soft_floor,
            moved=soft_moved,
            **{**defaults, **fields},
        )
    )
