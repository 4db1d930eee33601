"""Softmax attention over pairs of keys, exact. The rivals are the definition as it is written down, eager and compiled, and torch's own
attention over the products of all keys and of all values, the strongest there is where these N^2 rows fit. Queries and keys have RMS 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import tensor_attention as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, compiled, register

WIDE = (31, 511)  # keys before the query that it sees, of either set: the 32 and 512 of Roy et al. 2025 with its own
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def normalised(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Query (B, H, N, D), two keys and two values (B, G, N, D)."""
    heads = [sizes["H"], *[sizes.get("G", sizes["H"])] * 4]
    made = [torch.randn(sizes["B"], h, sizes["N"], sizes["D"], device=device) for h in heads]
    made[:3] = [F.rms_norm(t, t.shape[-1:]) for t in made[:3]]
    return tuple(t.to(dtype).requires_grad_() for t in made)


def squared(attend: Attention) -> Callable[..., Tensor]:
    """A loss with a gradient of full rank, as a training step has it."""
    return lambda *tensors: attend(*tensors).float().square().mean()


# ---- rivals


def eager(query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, is_causal: bool = False) -> Tensor:
    """All logits, [B, H, N, N, N]."""
    x = torch.einsum("bhic,bhjc,bhkc->bhijk", query / query.shape[-1], key1, key2)
    if is_causal:
        late = torch.ones(x.shape[2:4], dtype=torch.bool, device=x.device).triu(1)
        x = x.masked_fill(late.unsqueeze(2) | late.unsqueeze(1), -torch.inf)
    return torch.einsum("bhijk,bhje,bhke->bhie", x.flatten(3).softmax(3).view(x.shape), value1, value2)


def sdpa(query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, is_causal: bool = False) -> Tensor:
    """The products of all keys and of all values, [B, H, N^2, D] each."""
    key, value = ((a.unsqueeze(3) * b.unsqueeze(2)).flatten(2, 3) for a, b in ((key1, key2), (value1, value2)))
    early = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()
    mask = (early.unsqueeze(2) & early.unsqueeze(1)).flatten(1) if is_causal else None
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1 / query.shape[-1])


def unfolded(query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    """The keys of each query gathered, [B, G, N, 32 or 512, D]; the heads that share keys in one product, nothing outside the windows."""
    n, group = query.shape[2], key1.shape[1]
    near = [torch.arange(n, device=query.device).unsqueeze(1) + torch.arange(-left, 1, device=query.device) for left in WIDE]
    (key1, value1), (key2, value2) = (
        (key[:, :, j.clamp(min=0)], value[:, :, j.clamp(min=0)]) for key, value, j in zip((key1, key2), (value1, value2), near, strict=True)
    )
    q = query.unflatten(1, (group, -1)) / query.shape[-1]
    x = torch.einsum("bghic,bgijc,bgikc->bgihjk", q, key1, key2)
    inside = (near[0] >= 0).unsqueeze(2) & (near[1] >= 0).unsqueeze(1)
    weights = x.masked_fill(~inside.unsqueeze(1), -torch.inf).flatten(4).softmax(4).view(x.shape)
    return torch.einsum("bgihjk,bgikd,bgijd->bghid", weights, value2, value1).flatten(1, 2)


# ---- cases


def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Inputs read, the output written; backward: those, the output and its gradient read, gradients written."""
    rows = sizes["B"] * sizes["N"] * sizes["D"] * itemsize
    inputs, output = rows * (sizes["H"] + 4 * sizes.get("G", sizes["H"])), rows * sizes["H"]
    return {"fwd": inputs + output, "full": 3 * inputs + 3 * output}


def pairs_of(left: Sequence[int], n: int) -> int:
    """Pairs that all queries see together, with so many keys before each."""
    return sum(min(i, left[0]) * min(i, left[1]) for i in range(1, n + 1))


def add(name: str, seen: Callable[[int], int], options: Mapping[str, Any], baselines: Mapping[str, Baseline], **fields: Any) -> None:
    def flops(sizes: Sizes) -> dict[str, int]:
        """Two products forward, six backward."""
        product = 2 * sizes["B"] * sizes["H"] * seen(sizes["N"]) * sizes["D"]
        return {"fwd": 2 * product, "full": 8 * product}

    register(
        Case(
            family="tensor_attention",
            op="tensor_attention",
            name=name,
            ours=squared(partial(nearlinear.tensor_attention, **options)),
            definition=squared(partial(reference.tensor_attention, **options)),
            baselines=baselines,
            inputs=normalised,
            bytes=floor,
            moved=floor,  # key2 and value2 stay in a cache while the rows of key1 pass
            flops=flops,
            error_rows={"N": 64, "H": 2},
            **fields,
        )
    )


def sizes_of(*pairs: tuple[int, int], heads: int = 1) -> list[Sizes]:
    return [{"B": 1, "H": heads, "N": n, "D": d} for n, d in pairs]


SMALL = sizes_of((256, 32), (512, 32), (256, 64), (512, 64))
TINY = {"B": 2, "H": 2, "N": 7, "D": 5}
add(
    "all pairs", lambda n: n**3, {},
    {"eager": Baseline(squared(eager)), "compiled": compiled(squared(eager)), "sdpa": Baseline(squared(sdpa))}, tiny=TINY,
    sizes={
        "cpu": SMALL, "cuda": sizes_of((512, 64), (2048, 64), (2048, 128), heads=8), "sweep": sizes_of(*((2**k, 32) for k in range(5, 10))),
    },
)  # fmt: skip
CAUSAL = {"is_causal": True}
add(
    "causal pairs", lambda n: pairs_of((n, n), n), CAUSAL,
    {name: Baseline(squared(partial(attend, is_causal=True))) for name, attend in {"eager": eager, "sdpa": sdpa}.items()},
    tiny=TINY, sizes={"cpu": SMALL[::3], "cuda": sizes_of((2048, 64), heads=8)},
)  # fmt: skip
add(
    "windows of 32 and 512", lambda n: pairs_of((32, 512), n), {"window_size": tuple((left, 0) for left in WIDE), "enable_gqa": True},
    {"eager": Baseline(squared(unfolded))}, tiny={"B": 1, "H": 4, "G": 2, "N": 7, "D": 5},
    sizes={
        "cpu": [{"B": 1, "H": 1, "G": 1, "N": 1024, "D": 64}],
        "cuda": [{"B": 4, "H": 64, "G": 1, "N": n, "D": 128} for n in (1024, 4096, 16384)],
    },
)  # fmt: skip
