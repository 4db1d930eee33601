"""Polynomial attention over gloo: 2 and 4 processes with uneven slices of queries and keys equal one process in result and gradients."""

from __future__ import annotations

import socket
from typing import Any

import nearlinear
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import Draw
from nearlinear.collectives import summed_over_ranks
from torch import Tensor

QUERIES, KEYS1, KEYS2 = 11, 13, 9
# rows of query, key1 and key2 on each rank; a rank may have none
SLICES = {
    2: {"query": (4, 7), "key1": (12, 1), "key2": (0, 9)},
    4: {"query": (3, 0, 6, 2), "key1": (1, 7, 2, 3), "key2": (4, 1, 4, 0)},
}
OF = {"value1": "key1", "value2": "key2", "key1_padding_mask": "key1", "key2_padding_mask": "key2"}
SCENARIOS: dict[str, dict[str, Any]] = {
    "softmax": {"method": "polynomial", "degree": 2, "scale": 0.02},
    "taylor, masked": {"kernel": "taylor", "degree": 4, "masks": True, "enable_gqa": True},
}


def made(masks: bool) -> dict[str, Tensor]:
    """The same on every process."""
    draw, heads = Draw(), 2 if masks else 4
    tensors = {"query": draw.normal(2, 4, QUERIES, 3)}
    for t, n in ((1, KEYS1), (2, KEYS2)):
        tensors |= {f"key{t}": draw.normal(2, heads, n, 3), f"value{t}": draw.normal(2, heads, n, 5)}
        if masks:
            tensors[f"key{t}_padding_mask"] = draw.normal(2, heads, n)
            tensors[f"key{t}_padding_mask"][0, :, n // 2] = -torch.inf
    return tensors


def cut(name: str, tensor: Tensor, rank: int, slices: dict[str, tuple[int, ...]]) -> Tensor:
    sizes = slices[OF.get(name, name)]
    return tensor.narrow(2, sum(sizes[:rank]), sizes[rank])


def call(tensors: dict[str, Tensor], upstream: Tensor, **options: Any) -> dict[str, Tensor]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    out = nearlinear.tensor_attention(**leaves, **options)
    gradients = torch.autograd.grad(out, list(leaves.values()), upstream)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def check_function(rank: int, slices: dict[str, tuple[int, ...]]) -> None:
    for name, asked in SCENARIOS.items():
        options = {key: value for key, value in asked.items() if key != "masks"}
        tensors = made(asked.get("masks", False))
        upstream = Draw().normal(2, 4, QUERIES, 5)
        want = call(tensors, upstream, **options)
        mine = {n: cut(n, t, rank, slices) for n, t in tensors.items()}
        got = call(mine, cut("query", upstream, rank, slices), **options, process_group=dist.group.WORLD)
        for n, value in got.items():
            expected = cut("query" if n == "out" else n, want[n], rank, slices)
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13, msg=lambda text, n=n, name=name: f"{name}, {n}: {text}")


def check_any_order(rank: int, slices: dict[str, tuple[int, ...]]) -> None:
    tensors = made(False)
    query, keys, values = tensors["query"], (tensors["key1"], tensors["key2"]), (tensors["value1"], tensors["value2"])
    want = nearlinear.tensor_attention_n(query, keys, values, method="polynomial", degree=2, scale=0.02)
    keys, values = (tuple(cut(f"key{t}", x, rank, slices) for t, x in enumerate(sets, 1)) for sets in (keys, values))
    got = nearlinear.tensor_attention_n(
        cut("query", query, rank, slices), keys, values, method="polynomial", degree=2, scale=0.02, process_group=dist.group.WORLD
    )
    torch.testing.assert_close(got, cut("query", want, rank, slices), rtol=1e-11, atol=1e-13)


def check_sum(rank: int, processes: int) -> None:
    """The same bits on all ranks in the sum, its gradient and the gradient's; other orders of these numbers have other bits."""
    parts = torch.tensor([1.0, 1e8, -1e8, 1.0])[:processes].unsqueeze(1).requires_grad_()
    total = summed_over_ranks(parts[rank], dist.group.WORLD)
    assert torch.equal(total, parts.detach().sum(0))
    # a loss of rank r is (r + 1) total^3: the sum of all losses has the gradient sum (r + 1) 3 total^2
    (first,) = torch.autograd.grad((rank + 1) * total.pow(3).sum(), parts, create_graph=True)
    ranks = processes * (processes + 1) / 2
    torch.testing.assert_close(first[rank], ranks * 3 * total.detach() ** 2)
    assert not first[torch.arange(processes) != rank].any()
    (second,) = torch.autograd.grad(first.sum(), parts)
    torch.testing.assert_close(second[rank], processes * ranks * 6 * total.detach())


def work(rank: int, processes: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    check_sum(rank, processes)
    check_function(rank, SLICES[processes])
    check_any_order(rank, SLICES[processes])
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", SLICES)
def test_slices_equal_one_process(processes: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (processes, port), nprocs=processes)
