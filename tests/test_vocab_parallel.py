"""Class-parallel heads over gloo: 2 and 4 processes, uneven shards, equal one process in loss and in every gradient."""

from __future__ import annotations

import socket
from typing import Any

import nearlinear
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import Draw
from nearlinear import score_maps
from torch import Tensor

CLASSES = 23
SHARDS = {2: (7, 16), 4: (1, 9, 2, 11)}
# name -> options of the call; tensors by name are drawn in ``made``
SCENARIOS: dict[str, dict[str, Any]] = {
    "mean": {"linear_bias": True},
    "everything": {
        "linear_bias": True, "weight": True, "sample_weight": True, "extra_lse": True, "label_smoothing": 0.1, "z_loss": 0.01,
        "ignore_index": 2,
    },
    "rows": {"reduction": "none", "row_loss": "focal"},
    "tiles": {"label_smoothing": 0.2, "weight": True, "max_workspace_bytes": 12_000},
    "margins": {"logit_map": score_maps.ArcMargin(4.0), "margin": True},
    "harmonic": {"logit_map": score_maps.Harmonic(2.0), "reduction": "sum"},
    "hyperplanes": {"logit_map": score_maps.HyperbolicMLR(1e-2), "linear_bias": True, "max_workspace_bytes": 12_000},
}  # fmt: skip


def made(options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, options): the same on every process."""
    draw, rows = Draw(), 12
    sizes = {"linear_bias": CLASSES, "weight": CLASSES, "sample_weight": rows, "extra_lse": rows, "margin": rows}
    tensors = {"input": draw.normal(rows, 5), "linear_weight": draw.normal(CLASSES, 5), "target": draw.labels(CLASSES, rows)}
    tensors["target"][:3] = torch.tensor([0, CLASSES - 1, 2])
    tensors |= {name: draw.positive(size) for name, size in sizes.items() if options.get(name)}
    return tensors, {name: value for name, value in options.items() if name not in sizes}


def call(tensors: dict[str, Tensor], options: dict[str, Any], leaves: list[str]) -> dict[str, Tensor]:
    tensors = {name: t.clone().requires_grad_(name in leaves) for name, t in tensors.items()}
    loss = nearlinear.linear_cross_entropy(**tensors, **options)
    upstream = torch.arange(1.0, loss.numel() + 1, dtype=loss.dtype).view(loss.shape)
    gradients = torch.autograd.grad(loss, [tensors[name] for name in leaves], upstream)
    return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}


def leaves_of(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name in tensors if name not in ("target", "weight")]


def work(rank: int, sizes: tuple[int, ...], port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(sizes))
    begin = sum(sizes[:rank])
    mine = slice(begin, begin + sizes[rank])
    for name, asked in SCENARIOS.items():
        tensors, options = made(asked)
        leaves = leaves_of(tensors)
        want = call(tensors, options, leaves)
        sharded = {n: t[mine] if n in ("linear_weight", "linear_bias", "weight") else t for n, t in tensors.items()}
        got = call(sharded, {**options, "process_group": dist.group.WORLD}, leaves)
        for n, value in got.items():
            expected = want[n][mine] if n in ("linear_weight", "linear_bias") else want[n]
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13, msg=lambda text, n=n, name=name: f"{name}, {n}: {text}")
        if name == "everything":
            parts = [torch.empty_like(got["input"]) for _ in sizes]
            dist.all_gather(parts, got["input"])
            assert all(torch.equal(part, parts[0]) for part in parts), "ranks must hold the same bits"
    x = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(sizes[rank], 5, dtype=torch.float64)
    loss = nearlinear.linear_cross_entropy(x, w, torch.tensor([0, CLASSES - 1]), process_group=dist.group.WORLD)
    with pytest.raises(NotImplementedError, match="double backward is not implemented with process_group"):
        torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(IndexError, match=rf"target\[1\] = {CLASSES} is out of range \[0, {CLASSES}\)"):
        nearlinear.linear_cross_entropy(x, w, torch.tensor([0, CLASSES]), process_group=dist.group.WORLD)
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", SHARDS)
def test_shards_equal_one_process(processes: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (SHARDS[processes], port), nprocs=processes)
