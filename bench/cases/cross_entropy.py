"""Cross-entropy on given logits. Baselines are what a torch user writes: F.cross_entropy and eager lines around it, and torch.compile of
that. Eager returns bfloat16 for bfloat16 logits, so ``eager_fp32`` and ``compiled_fp32`` (``.float()`` first) stand beside it: they return
a loss as exact as ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import cross_entropy as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register

SMOOTHING, Z_LOSS, TAU, VOID = 0.1, 1e-4, 1.5, 255


def eager_extras(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    kept = target != -100
    divisor = (weight[target.masked_fill(~kept, 0)] * kept).sum()
    squares = (input.logsumexp(1).square() * kept).sum()
    return F.cross_entropy(input, target, weight.to(input.dtype), label_smoothing=SMOOTHING) + Z_LOSS * squares / divisor


def eager_comp_sum(input: Tensor, target: Tensor) -> Tensor:
    nll = F.cross_entropy(input, target, reduction="none")  # 0 where ignored
    return (torch.expm1((1 - TAU) * nll) / (1 - TAU)).sum() / (target != -100).sum()


def upcast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda input, *rest: function(input.float(), *rest)


def only_half(device: torch.device, dtype: torch.dtype) -> str:
    return "" if dtype.itemsize == 2 else f"the same as without .float() for {dtype}"


def needs_liger(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cuda":
        return "Liger runs on CUDA only"
    return "" if importlib.util.find_spec("liger_kernel") else "liger-kernel is not installed"


def liger(input: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy

    loss = liger_cross_entropy(input, target)
    return loss[0] if isinstance(loss, tuple) else loss


def rivals(eager: Callable[..., Tensor], wide: Callable[..., Tensor] | None = None, **more: Baseline) -> dict[str, Baseline]:
    wide = wide or upcast(eager)
    return {
        "eager": Baseline(eager),
        "compiled": compiled(eager),
        "eager_fp32": Baseline(wide, refuse=only_half),
        "compiled_fp32": compiled(wide, only_half),
        **more,
    }


def rows(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Logits of a trained model's spread, and labels of which every seventh is ignored, as padding is."""
    n, v = sizes["N"], sizes["V"]
    input = torch.randn(n, v, device=device, dtype=dtype).mul_(3).requires_grad_()
    target = torch.randint(v, (n,), device=device)
    target[6::7] = -100
    return input, target


def weighted_rows(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return *rows(sizes, dtype, device), torch.rand(sizes["V"], device=device) + 0.5


def soft_rows(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    input, _ = rows(sizes, dtype, device)
    target = torch.randn(sizes["N"], sizes["V"], device=device).softmax(1).to(dtype)
    return input, target


def images(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    b, c, h, w = (sizes[k] for k in "BCHW")
    input = torch.randn(b, c, h, w, device=device, dtype=dtype).mul_(3).requires_grad_()
    target = torch.randint(c, (b, h, w), device=device)
    target[:, :: max(h // 16, 2)] = VOID
    return input, target


def elements(sizes: Sizes) -> int:
    product = 1
    for value in sizes.values():
        product *= value
    return product


def index_floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    x = elements(sizes) * itemsize
    return {"fwd": x, "full": 2 * x}


def index_moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
    x = elements(sizes) * itemsize
    return {"fwd": x, "full": 3 * x}


def soft_floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    x = elements(sizes) * itemsize
    return {"fwd": 2 * x, "full": 3 * x}


def soft_moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
    x = elements(sizes) * itemsize
    return {"fwd": 2 * x, "full": 5 * x}


def add(name: str, eager: Callable[..., Tensor], inputs: Any, sizes: Any, options: dict[str, Any] | None = None, **fields: Any) -> None:
    """A case of nearlinear.cross_entropy with these options; ``more`` among the fields are further baselines."""
    options, more = options or {}, fields.pop("more", {})
    defaults: dict[str, Any] = {"tiny": {"N": 14, "V": 33}, "bytes": index_floor, "moved": index_moved, "error_rows": {"N": 256}}
    register(
        Case(
            family="cross_entropy",
            op="cross_entropy",
            name=name,
            inputs=inputs,
            sizes=sizes,
            baselines=rivals(eager, **more),
            ours=partial(nearlinear.cross_entropy, **options),
            definition=partial(reference.cross_entropy, **options),
            **{**defaults, **fields},
        )
    )


LANGUAGE_MODEL = {"cpu": [{"N": 4096, "V": 50257}], "cuda": [{"N": 8192, "V": 128256}]}

add(
    "index",
    F.cross_entropy,
    rows,
    {**LANGUAGE_MODEL, "sweep": [{"N": 1024, "V": v} for v in (512, 2048, 8192, 32768, 131072)]},
    more={"liger": Baseline(liger, refuse=needs_liger, overwrites_input=True)},
)
add(
    "smoothing + class weights + z-loss",
    eager_extras,
    weighted_rows,
    LANGUAGE_MODEL,
    {"label_smoothing": SMOOTHING, "z_loss": Z_LOSS},
)
add("comp-sum, tau 1.5", eager_comp_sum, rows, LANGUAGE_MODEL, {"row_loss": nearlinear.CompSum(TAU)})
add("small", F.cross_entropy, rows, {where: [{"N": 64, "V": 10}] for where in ("cpu", "cuda")})
add(
    "segmentation",
    partial(F.cross_entropy, ignore_index=VOID),
    images,
    {"cpu": [{"B": 4, "C": 19, "H": 256, "W": 256}], "cuda": [{"B": 16, "C": 19, "H": 512, "W": 1024}]},
    {"ignore_index": VOID},
    tiny={"B": 2, "C": 5, "H": 4, "W": 6},
    error_rows={"B": 1},
)
add(
    "probability targets",
    F.cross_entropy,
    soft_rows,
    {"cpu": [{"N": 1024, "V": 32000}], "cuda": [{"N": 4096, "V": 128256}]},
    bytes=soft_floor,
    moved=soft_moved,
)
