"""KL divergence of two given logits, the teacher's without a gradient, as in distillation. Baselines are what a torch user writes:
F.kl_div of two log-softmaxes, and torch.compile of that; in bfloat16 also with ``.float()`` first, which is as exact as ours."""

from __future__ import annotations

from functools import partial

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import kl_logit as reference
from torch import Tensor

from ..registry import Case, Sizes, register
from .cross_entropy import rivals, soft_floor, soft_moved

TEMPERATURE = 2.0


def eager(input: Tensor, target_logits: Tensor) -> Tensor:
    log_p, log_q = ((logits / TEMPERATURE).log_softmax(1) for logits in (input, target_logits))
    return F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(1).mean()


def eager_fp32(input: Tensor, target_logits: Tensor) -> Tensor:
    return eager(input.float(), target_logits.float())


def logits(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """A teacher of a trained model's spread, and a student near it."""
    shape = tuple(sizes.values())
    teacher = torch.randn(shape, device=device, dtype=dtype).mul_(3)
    return torch.randn(shape, device=device, dtype=dtype).add_(teacher).requires_grad_(), teacher


for name, where, fields in (
    ("distillation", {"cpu": [{"N": 4096, "V": 50257}], "cuda": [{"N": 8192, "V": 128256}]}, {"tiny": {"N": 14, "V": 33}}),
    (
        "segmentation",
        {"cpu": [{"B": 4, "C": 19, "P": 65536}], "cuda": [{"B": 16, "C": 19, "P": 524288}]},
        {"tiny": {"B": 2, "C": 5, "P": 24}, "error_rows": {"B": 1}},
    ),
):
    defaults = {"error_rows": {"N": 256}}
    register(
        Case(
            family="kl_logit",
            op="kl_logit_loss",
            name=name,
            ours=partial(nearlinear.kl_logit_loss, temperature=TEMPERATURE),
            definition=partial(reference.kl_logit_loss, temperature=TEMPERATURE),
            baselines=rivals(eager, eager_fp32),
            inputs=logits,
            sizes=where,
            bytes=soft_floor,
            moved=soft_moved,
            **{**defaults, **fields},
        )
    )
