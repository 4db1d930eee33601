"""In-batch Mann-Whitney loss of unit rows. The rivals visit every pair of a positive and a negative score, and eager holds them all,
(B, B (B - 1)). The limit is the matrix products alone, in the same run: one forward, and the backward's two gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import linear_mw as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register

TEMPERATURE = 0.05


def ours(query: Tensor, document: Tensor) -> Tensor:
    return nearlinear.linear_mw_loss(query, document, temperature=TEMPERATURE)


def definition(query: Tensor, document: Tensor) -> Tensor:
    return reference.linear_mw_loss(query, document, temperature=TEMPERATURE)


def eager(query: Tensor, document: Tensor) -> Tensor:
    """As the formula is written with torch's own functions."""
    s = query @ document.T / TEMPERATURE
    own = torch.eye(len(s), dtype=torch.bool, device=s.device)
    return F.softplus(s[~own] - s[own].unsqueeze(1)).mean()


def static(query: Tensor, document: Tensor) -> Tensor:
    """The same without shapes that depend on values."""
    s = query @ document.T / TEMPERATURE
    b = len(s)
    others = s.flatten()[1:].view(b - 1, b + 1)[:, :-1].reshape(-1)
    return F.softplus(others - s.diagonal().unsqueeze(1)).mean()


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Documents near their queries."""
    query = torch.randn(sizes["B"], sizes["D"], device=device)
    document = query + torch.randn_like(query)
    return tuple(F.normalize(x).to(dtype).requires_grad_() for x in (query, document))


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    operands = 2 * sizes["B"] * sizes["D"] * itemsize
    return {"fwd": operands, "full": 2 * operands}


def moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Every score is written and read; in the backward anew, and its slope written and read twice: float32 and a byte of label."""
    scores, operands = sizes["B"] ** 2, floor(sizes, itemsize)
    return {"fwd": operands["fwd"] + 9 * scores, "full": operands["fwd"] + operands["full"] + 30 * scores}


def flops(sizes: Sizes) -> dict[str, int]:
    product = 2 * sizes["B"] ** 2 * sizes["D"]
    return {"fwd": product, "full": 3 * product}


def products(tensors: tuple[Tensor, ...]) -> Mapping[str, Callable[[], object]]:
    """Scores and both gradients, into buffers that exist already."""
    q, d = (x.detach() for x in tensors)
    scores, d_q, d_d = q.new_ones(len(q), len(d)), torch.empty_like(q), torch.empty_like(d)

    def forward() -> None:
        torch.mm(q, d.T, out=scores)

    def full() -> None:
        forward()
        torch.mm(scores, d, out=d_q)
        torch.mm(scores.T, q, out=d_d)

    return {"fwd": forward, "full": full}


register(
    Case(
        family="linear_mw",
        op="linear_mw_loss",
        name="in-batch pairs",
        ours=ours,
        definition=definition,
        baselines={"eager": Baseline(eager), "compiled": compiled(static)},
        inputs=inputs,
        sizes={"cpu": [{"B": 384, "D": 64}, {"B": 1024, "D": 64}], "cuda": [{"B": 512, "D": 768}, {"B": 2048, "D": 768}]},
        tiny={"B": 12, "D": 5},
        bytes=floor,
        moved=moved,
        flops=flops,
        products=products,
        error_rows={"B": 128},
    )
)
