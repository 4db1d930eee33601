"""Fused linear heads. Rivals are what a torch user writes, torch.compile of it, and torch's own fused head plain and chunked; the limit is
the matrix products alone, at the same sizes and in the same run. No label is ignored: leaving such rows out, as ours does on CPU, is no
merit of the fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import linear_cross_entropy as reference
from nearlinear.score_maps import ArcMargin, Harmonic
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register
from .cross_entropy import needs_liger, only_half

ARC, HARMONIC = ArcMargin(scale=64.0, margin=0.5), Harmonic(exponent=22.0)  # the root of D = 512


def eager(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(input, linear_weight), target)


def wide(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    return eager(input.float(), linear_weight.float(), target)


def torch_fused(input: Tensor, linear_weight: Tensor, target: Tensor, *, chunked: bool) -> Tensor:
    return F.linear_cross_entropy(input, linear_weight, target, options=torch.nn.LinearCrossEntropyOptions() if chunked else None)


def liger(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss = liger_fused_linear_cross_entropy(input, linear_weight, target)
    return loss[0] if isinstance(loss, tuple) else loss


def eager_arc(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    cosine, label = F.linear(F.normalize(input), F.normalize(linear_weight)), target.unsqueeze(1)
    angle = torch.acos(cosine.gather(1, label).clamp(-1 + 1e-7, 1 - 1e-7))
    return F.cross_entropy(ARC.scale * cosine.scatter(1, label, torch.cos(angle + ARC.margin)), target)


def eager_harmonic(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    # by one matrix product: the backward of torch.cdist is none, and slower
    squares = input.square().sum(1, keepdim=True) + linear_weight.square().sum(1) - 2 * F.linear(input, linear_weight)
    return F.cross_entropy(-HARMONIC.exponent * torch.log(squares.clamp_min(0) + HARMONIC.eps), target)


def not_emulated(device: torch.device, dtype: torch.dtype) -> str:
    """Without instructions for it, a CPU multiplies bfloat16 matrices some fifty times slower than float32: minutes for one call."""
    emulated = device.type == "cpu" and dtype.itemsize == 2 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return f"products of {dtype} matrices are emulated on this processor, minutes per call; see eager_fp32" if emulated else ""


def needs_torch_fused(device: torch.device, dtype: torch.dtype) -> str:
    return not_emulated(device, dtype) if hasattr(F, "linear_cross_entropy") else "this torch has no F.linear_cross_entropy"


def head(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Features of unit variance and class vectors of norm 3, so that logits have a trained model's spread."""
    n, d, v = (sizes[k] for k in "NDV")
    input = torch.randn(n, d, device=device, dtype=dtype).requires_grad_()
    linear_weight = torch.randn(v, d, device=device, dtype=dtype).mul_(3 / d**0.5).requires_grad_()
    return input, linear_weight, torch.randint(v, (n,), device=device)


def products(inputs: tuple[Tensor, ...]) -> Mapping[str, Callable[[], object]]:
    """Scores and both gradients, into buffers that exist already."""
    x, w = (t.detach() for t in inputs[:2])
    scores, d_x, d_w = x.new_ones(len(x), len(w)), torch.empty_like(x), torch.empty_like(w)

    def forward() -> None:
        torch.mm(x, w.T, out=scores)

    def full() -> None:
        forward()
        torch.mm(scores, w, out=d_x)
        torch.mm(scores.T, x, out=d_w)

    return {"fwd": forward, "full": full}


def flops(sizes: Sizes) -> dict[str, int]:
    once = 2 * sizes["N"] * sizes["V"] * sizes["D"]
    return {"fwd": once, "full": 3 * once}


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    operands = (sizes["N"] + sizes["V"]) * sizes["D"] * itemsize
    return {"fwd": operands, "full": 2 * operands}


def moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """With every row in one tile: float32 scores written and read; then replaced by their gradient, which two products read."""
    scores, operands = 4 * sizes["N"] * sizes["V"], (sizes["N"] + sizes["V"]) * sizes["D"] * itemsize
    return {"fwd": operands + 2 * scores, "full": 3 * operands + 6 * scores}


def add(name: str, baselines: dict[str, Baseline], sizes: Any, options: dict[str, Any] | None = None, **fields: Any) -> None:
    options = options or {}
    register(
        Case(
            family="linear_cross_entropy",
            op="linear_cross_entropy",
            name=name,
            inputs=head,
            sizes=sizes,
            baselines=baselines,
            ours=partial(nearlinear.linear_cross_entropy, **options),
            definition=partial(reference.linear_cross_entropy, **options),
            tiny={"N": 14, "D": 8, "V": 33},
            bytes=floor,
            moved=moved,
            flops=flops,
            products=products,
            error_rows={"N": 128, "V": 4096},
            **fields,
        )
    )


add(
    "language model head",
    {
        "eager": Baseline(eager, refuse=not_emulated),
        "compiled": compiled(eager, not_emulated),
        "eager_fp32": Baseline(wide, refuse=only_half),
        "compiled_fp32": compiled(wide, only_half),
        "torch": Baseline(partial(torch_fused, chunked=False), refuse=needs_torch_fused),
        "torch_chunked": Baseline(partial(torch_fused, chunked=True), refuse=needs_torch_fused),
        "liger": Baseline(liger, refuse=needs_liger),
    },
    {
        "cpu": [{"N": 2048, "D": 512, "V": 32000}],
        "cuda": [{"N": 8192, "D": 4096, "V": 128256}],
        "sweep": [{"N": 1024, "D": 256, "V": v} for v in (512, 2048, 8192, 32768, 131072)],
    },
)
add(
    "face head, arc margin",
    {"eager": Baseline(eager_arc), "compiled": compiled(eager_arc)},
    {"cpu": [{"N": 512, "D": 512, "V": 200000}], "cuda": [{"N": 4096, "D": 512, "V": 1000000}]},
    {"logit_map": ARC},
    dtypes=(torch.float32,),
)
add(
    "harmonic head",
    {"eager": Baseline(eager_harmonic), "compiled": compiled(eager_harmonic)},
    {"cpu": [{"N": 1024, "D": 512, "V": 32000}], "cuda": [{"N": 8192, "D": 768, "V": 50257}]},
    {"logit_map": HARMONIC},
    dtypes=(torch.float32,),
)
