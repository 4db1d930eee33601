"""cross_entropy on a real GPU: what only a GPU can show. Synchronisation, graphs, streams, addresses beyond 2^31, repeatability, memory,
torch.compile and derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import nearlinear
import pytest
import torch
from gpu_oracle import DEVICE, MARKS, check, close, labels, normal, seed  # noqa: F401  a fixture
from nearlinear import reference
from torch import Tensor

pytestmark = MARKS


@pytest.fixture
def forbidden_sync() -> Iterator[Callable[[], None]]:
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def every_option(input: Tensor, target: Tensor) -> Tensor:
    weight = torch.linspace(0.1, 1, input.shape[1], device=input.device)
    v = torch.linspace(0, 1, input.shape[0], device=input.device)
    hard = nearlinear.cross_entropy(input, target, weight, label_smoothing=0.1, z_loss=1e-3, softcap=3.0, sample_weight=v)
    return hard + nearlinear.cross_entropy(input, input.detach().softmax(1)) + nearlinear.gce_loss(input, target)


def test_no_synchronisation(forbidden_sync: Callable[[], None]) -> None:
    input = normal(64, 3000).requires_grad_()
    target = labels(input)
    torch.autograd.grad(every_option(input, target), input)  # compiles
    torch.cuda.synchronize()
    forbidden_sync()
    torch.autograd.grad(every_option(input, target), input)


def test_graph_replay_with_new_data() -> None:
    input = normal(64, 3000).requires_grad_()
    target = labels(input)

    def step() -> tuple[Tensor, Tensor]:
        loss = every_option(input, target)
        return loss.detach(), torch.autograd.grad(loss, input)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        with torch.no_grad():
            input.copy_(torch.randn_like(input))
        target.copy_(labels(input))
        graph.replay()
        for got, want in zip(captured, step(), strict=True):
            assert torch.equal(got, want)


def test_side_stream_with_a_late_producer() -> None:
    source, target = normal(64, 3000), torch.zeros(64, dtype=torch.int64, device=DEVICE)
    want = nearlinear.cross_entropy(source, target)
    input = torch.zeros_like(source)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        leaf = input.copy_(source).requires_grad_()
        loss = nearlinear.cross_entropy(leaf, target)
        loss.backward()
    side.synchronize()
    assert torch.equal(loss.detach(), want)
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_current() -> None:
    input = normal(5, 300)
    target = labels(input)
    there = input.to("cuda:1").requires_grad_()
    loss = nearlinear.cross_entropy(there, target.to("cuda:1"))
    loss.backward()
    assert loss.device == torch.device("cuda:1")
    assert float(loss) == float(nearlinear.cross_entropy(input, target))


def test_thirty_runs_give_the_same_bits() -> None:
    input = normal(257, 5003, dtype=torch.bfloat16).requires_grad_()
    target = labels(input)

    def run() -> tuple[Tensor, Tensor]:
        loss = nearlinear.cross_entropy(input, target, label_smoothing=0.1, reduction="none")
        return loss.detach(), torch.autograd.grad(loss.sum(), input)[0]

    first = run()
    for _ in range(29):
        assert all(map(torch.equal, run(), first))


def needs_memory(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory, {free:.0f} are free")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16400, 131073), (1, 33, 2**26 + 1), (2**28 + 1, 8)], ids=str)
def test_more_than_two_billion_logits(shape: tuple[int, ...]) -> None:
    """The first and the last rows against the definition; between them a wrapped offset would have written somewhere."""
    needs_memory(24)
    input = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    assert input.numel() > 2**31
    for part in input.split(2**24 // math.prod(shape[1:]) + 1) if len(shape) == 2 else input.split(2**22, 2):
        part.normal_()
    target = torch.randint(0, shape[1], [shape[0], *shape[2:]], device=DEVICE)
    loss = nearlinear.cross_entropy(input.requires_grad_(), target, reduction="none")
    (gradient,) = torch.autograd.grad(loss, input, torch.ones((), device=DEVICE).expand_as(loss))
    for cut in (slice(None, 3), slice(-3, None)):
        at = (cut,) if len(shape) == 2 else (slice(None), slice(None), cut)
        wide = input.detach()[at].double().requires_grad_()
        want = reference.cross_entropy.cross_entropy(wide, target[at[0] if len(shape) == 2 else at[1:]], reduction="none")
        close(loss.detach()[at[0] if len(shape) == 2 else at[1:]], want.detach(), 1e-6)
        close(gradient[at], torch.autograd.grad(want.sum(), wide)[0], 5e-3)


@pytest.mark.slow
def test_strides_beyond_two_billion() -> None:
    needs_memory(10)
    storage = torch.empty(2**32 + 64, dtype=torch.int8, device=DEVICE).view(torch.bfloat16)
    for strides in ((2**30 + 8, 1), (1, 2**30 + 8)):  # the last element lies beyond 2^31
        input = storage.as_strided((3, 3), strides)
        input.copy_(normal(3, 3))
        check(input, labels(input, ignored=False))


def test_forward_memory_is_linear_in_rows() -> None:
    input = normal(256, 32000).requires_grad_()
    target = labels(input)
    torch.autograd.grad(nearlinear.cross_entropy(input, target), input)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = nearlinear.cross_entropy(input, target)
    assert torch.cuda.max_memory_allocated() - before < 64 * 1024
    torch.autograd.grad(loss, input)
    assert torch.cuda.max_memory_allocated() - before < input.numel() * 4 + 64 * 1024


def test_compile_fullgraph() -> None:
    compiled = torch.compile(every_option, fullgraph=True)
    for rows in (64, 65):
        input = normal(rows, 300).requires_grad_()
        target = labels(input)
        got, want = compiled(input, target), every_option(input, target)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, input), torch.autograd.grad(want, input))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    input, target, weight = normal(5, 33), torch.arange(5, device=DEVICE), torch.rand(33, device=DEVICE)
    ops, identity = torch.ops.nearlinear, ("identity", [])
    torch.library.opcheck(ops.logit_stats, (input.requires_grad_(requires_grad), target, weight, -100, *identity, True))
    soft = torch.rand(5, 33, device=DEVICE).softmax(1)
    torch.library.opcheck(ops.soft_logit_stats, (input, soft, weight, 0.1, *identity))
    if not requires_grad:
        nll, lse, spread, residual = ops.logit_stats(input, target, weight, -100, *identity, True)
        torch.library.opcheck(
            ops.logit_stats_backward, (nll, lse, spread, input, target, weight, nll, lse, residual, -100, *identity, True)
        )
        xent, lse, residual, mass = ops.soft_logit_stats(input, soft, weight, 0.1, *identity)
        rest = (input, soft, weight, lse, residual, mass, 0.1, *identity, True)
        torch.library.opcheck(ops.soft_logit_stats_backward, (xent, lse, *rest))


def test_first_and_second_derivatives() -> None:
    input = normal(4, 7, dtype=torch.float64).requires_grad_()
    target, weight = torch.tensor([0, 3, -100, 6], device=DEVICE), torch.rand(7, device=DEVICE, dtype=torch.float64)

    def loss(input: Tensor) -> Tensor:
        return nearlinear.cross_entropy(input, target, weight, label_smoothing=0.1, z_loss=0.1, softcap=2.0, reduction="none")

    assert torch.autograd.gradcheck(loss, input)
    assert torch.autograd.gradgradcheck(loss, input)
