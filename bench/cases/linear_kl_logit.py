"""Divergences of two linear heads, the teacher's features and class vectors without a gradient. Rivals are both logits and their divergence
as a torch user writes it, torch.compile of that, and Liger's fused head; the limit is the matrix products alone, in the same run: two
forward, two more in the backward for the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import linear_kl_logit as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register
from . import kl_logit
from .cross_entropy import needs_liger, only_half
from .linear_cross_entropy import not_emulated


def of_heads(divergence: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def eager(input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor) -> Tensor:
        return divergence(F.linear(input, linear_weight), F.linear(target_input, target_weight))

    return eager


def liger(input: Tensor, linear_weight: Tensor, target_input: Tensor, target_weight: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_jsd

    return liger_fused_linear_jsd(
        input, linear_weight, target_input, target_weight, jsd_beta=kl_logit.BETA, temperature=kl_logit.TEMPERATURE
    )  # fmt: skip


def heads(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Features of unit variance and class vectors of norm 3, so that logits have a trained model's spread; the teacher is wider."""
    n, d, k, v = (sizes[key] for key in "NDKV")
    made = []
    for width, trained in ((d, True), (k, False)):
        features = torch.randn(n, width, device=device, dtype=dtype)
        classes = torch.randn(v, width, device=device, dtype=dtype).mul_(3 / width**0.5)
        made += [features.requires_grad_(trained), classes.requires_grad_(trained)]
    return tuple(made)


def products(inputs: tuple[Tensor, ...]) -> Mapping[str, Callable[[], object]]:
    """Scores of both heads, and the student's gradients, into buffers that exist already."""
    x, w, t, u = (tensor.detach() for tensor in inputs)
    scores, teacher, d_x, d_w = x.new_ones(len(x), len(w)), x.new_ones(len(x), len(w)), torch.empty_like(x), torch.empty_like(w)

    def forward() -> None:
        torch.mm(x, w.T, out=scores)
        torch.mm(t, u.T, out=teacher)

    def full() -> None:
        forward()
        torch.mm(scores, w, out=d_x)
        torch.mm(scores.T, x, out=d_w)

    return {"fwd": forward, "full": full}


def flops(sizes: Sizes) -> dict[str, int]:
    student, teacher = (2 * sizes["N"] * sizes["V"] * sizes[width] for width in "DK")
    return {"fwd": student + teacher, "full": 3 * student + teacher}


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    student, teacher = ((sizes["N"] + sizes["V"]) * sizes[width] * itemsize for width in "DK")
    return {"fwd": student + teacher, "full": 2 * student + teacher}


def moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """With every row in one tile: float32 scores of both written and read; in the backward anew, and a gradient written and read twice."""
    scores = 4 * sizes["N"] * sizes["V"]
    operands = floor(sizes, itemsize)
    return {"fwd": operands["fwd"] + 4 * scores, "full": operands["fwd"] + operands["full"] + 11 * scores}


for op, name, plain, options, more in (
    ("linear_kl_logit_loss", "distillation of heads", kl_logit.eager, {}, {}),
    (
        "linear_js_logit_loss", "distillation of heads, Jensen-Shannon", kl_logit.eager_js, {"beta": kl_logit.BETA},
        {"liger": Baseline(liger, refuse=needs_liger)},
    ),
):  # fmt: skip
    eager = of_heads(plain)
    wide = kl_logit.wide(eager)
    register(
        Case(
            family="linear_kl_logit",
            op=op,
            name=name,
            ours=partial(getattr(nearlinear, op), temperature=kl_logit.TEMPERATURE, **options),
            definition=partial(getattr(reference, op), temperature=kl_logit.TEMPERATURE, **options),
            baselines={
                "eager": Baseline(eager, refuse=not_emulated),
                "compiled": compiled(eager, not_emulated),
                "eager_fp32": Baseline(wide, refuse=only_half),
                "compiled_fp32": compiled(wide, only_half),
                **more,
            },
            inputs=heads,
            sizes={"cpu": [{"N": 1024, "D": 256, "K": 512, "V": 32000}], "cuda": [{"N": 8192, "D": 2048, "K": 4096, "V": 128256}]},
            tiny={"N": 14, "D": 8, "K": 6, "V": 33},
            bytes=floor,
            moved=moved,
            flops=flops,
            products=products,
            error_rows={"N": 128, "V": 4096},
        )
    )
