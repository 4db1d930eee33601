"""Around the call: processes, threads, memory over time, functional transforms, the chain of other ops, NaN-guarded buffers."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nearlinear
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from measure import Draw, evaluate, same
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

SHAPES = ((40, 7), (9, 4100))  # the tile kernel and the row kernel


def problem(rows: int, classes: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    draw = Draw()
    return {"input": draw.normal(rows, classes).float().to(device), "target": draw.labels(classes, rows).to(device)}


# ---- processes and threads


class Losses(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        value, gradients = evaluate(nearlinear.cross_entropy, problem(*SHAPES[index % 2]), {}, ["input"])
        return torch.cat([value.view(1), gradients[0].flatten()[:9]])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_workers_after_use(context: str) -> None:
    """A worker forked after the parent's thread pool has run, and one started from nothing."""
    torch.set_num_threads(2)
    expected = torch.stack([Losses()[i] for i in range(4)])
    workers = DataLoader(Losses(), batch_size=None, num_workers=1, multiprocessing_context=context)
    same(torch.stack(list(workers)), expected, context)


def test_scratch_memory_belongs_to_a_thread() -> None:
    """Halves go through scratch: enough rows that two workers of one call are inside the kernel at once."""
    big = problem(400, 9000)
    big["input"] = big["input"].bfloat16()
    torch.set_num_threads(1)
    expected = evaluate(nearlinear.cross_entropy, big, {}, ["input"])
    torch.set_num_threads(2)
    for _ in range(3):
        same(evaluate(nearlinear.cross_entropy, big, {}, ["input"]), expected, "two threads")


def test_eight_python_threads_at_once() -> None:
    """No shared state: calls that overlap (the dispatcher releases the GIL) return the bits of calls in sequence."""
    problems = [problem(rows + i, classes) for i in range(4) for rows, classes in SHAPES]
    expected = [evaluate(nearlinear.cross_entropy, p, {"label_smoothing": 0.1}, ["input"]) for p in problems]
    got: list[Any] = [None] * len(problems)

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = evaluate(nearlinear.cross_entropy, problems[i], {"label_smoothing": 0.1}, ["input"])

    pool = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    for a, b in zip(got, expected, strict=True):
        same(a, b, "threads")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("rows", "classes"), [(2000, 7), (300, 1000), (5, 50257)])
def test_same_bits_for_any_number_of_threads(rows: int, classes: int, dtype: torch.dtype) -> None:
    """Enough rows for the work to be split, which the small cases are not; converted and mapped logits pass through scratch memory."""
    inputs = problem(rows, classes)
    inputs["input"] = inputs["input"].to(dtype)
    for options in ({}, {"label_smoothing": 0.1, "softcap": 5.0, "reduction": "none"}):
        torch.set_num_threads(1)
        expected = evaluate(nearlinear.cross_entropy, inputs, options, ["input"])
        for count in (2, 3, 4):
            torch.set_num_threads(count)
            same(evaluate(nearlinear.cross_entropy, inputs, options, ["input"]), expected, f"{count} threads")


def _rank(rank: int, store: str, report: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, x, y = training_problem()
    parallel = nn.parallel.DistributedDataParallel(model)
    part = slice(0, 3) if rank == 0 else slice(3, 10)
    count = (y[part] != -100).sum()
    dist.all_reduce(count)
    # DDP averages gradients over the ranks: divide by the mean count of a rank
    nearlinear.cross_entropy(parallel(x[part]), y[part], normalizer=count / 2).backward()
    if rank == 0:
        report.put([p.grad.numpy().copy() for p in model.parameters()])
    dist.barrier()
    dist.destroy_process_group()


def training_problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    draw = Draw()
    y = draw.labels(7, 10)
    y[::4] = -100
    return nn.Linear(5, 7), draw.normal(10, 5).float(), y


@pytest.mark.timeout(180)
def test_two_ranks_of_unequal_size_equal_one_process(tmp_path: Path) -> None:
    model, x, y = training_problem()
    nearlinear.cross_entropy(model(x), y).backward()
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path / "store"), report)) for rank in range(2)]
    for process in ranks:
        process.start()
    gradients = report.get(timeout=150)
    for process in ranks:
        process.join(30)
        assert process.exitcode == 0
    for got, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), parameter.grad)


# ---- memory


def allocated(device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for later is not a leak
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("soft", [False, True])
def test_memory_is_flat_over_200_iterations(soft: bool, device: torch.device) -> None:
    torch.set_num_threads(1)
    inputs = problem(64, 1024, device)  # 256 KiB of logits: a leak of one gradient a step would be 50 MiB
    if soft:
        inputs["target"] = inputs["input"].softmax(1)

    def step() -> None:
        leaf = inputs["input"].clone().requires_grad_()
        loss = nearlinear.cross_entropy(leaf, inputs["target"], label_smoothing=0.1)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        gradient.square().sum().backward()

    for _ in range(30):
        step()
    before = allocated(device)
    for _ in range(200):
        step()
    assert allocated(device) - before < 4 << 20


# ---- chains and transforms


@pytest.mark.parametrize("chain", [torch.softmax, torch.tanh, torch.exp])
def test_input_is_the_output_of_an_op_that_saves_it(chain: Any, device: torch.device) -> None:
    """softmax, tanh and exp read their own output in backward: it must survive ours."""
    x, y = problem(9, 70, device).values()
    for function in (nearlinear.cross_entropy, F.cross_entropy):
        leaf = x.double().clone().requires_grad_()
        hidden = chain(leaf, 1) if chain is torch.softmax else chain(leaf)
        (function(hidden, y) + hidden.square().mean()).backward()
        if function is nearlinear.cross_entropy:
            ours = leaf.grad
    torch.testing.assert_close(ours, leaf.grad, rtol=1e-10, atol=1e-14)


def test_in_place_change_of_the_input_is_detected(device: torch.device) -> None:
    x, y = problem(9, 7, device).values()
    hidden = x.clone().requires_grad_() * 1
    loss = nearlinear.cross_entropy(hidden, y)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradient_penalty_is_not_dropped(device: torch.device) -> None:
    """A constant upstream (plain mean) is where a detached backward would silently lose the penalty."""
    x, y = problem(9, 7, device).values()
    x = x.double()
    found = []
    for function in (nearlinear.cross_entropy, F.cross_entropy):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf, y, label_smoothing=0.1), leaf, create_graph=True)
        gradient.square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)


def test_only_the_row_weights_need_a_gradient(device: torch.device) -> None:
    inputs, one = problem(9, 7, device) | {"sample_weight": torch.rand(9, device=device)}, torch.ones((), device=device)
    (gradient,) = evaluate(nearlinear.cross_entropy, inputs, {"reduction": "sum"}, ["sample_weight"], one)[1]
    same(gradient, nearlinear.cross_entropy(inputs["input"], inputs["target"], reduction="none"), "d loss / d sample_weight")


def test_functional_transforms_are_right_or_refused() -> None:
    """func.grad raises inside torch for every op with registered autograd; vmap loops and is right."""
    x, y = problem(9, 7).values()
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda a: nearlinear.cross_entropy(a, y))(x)
    batch = torch.stack([x, 2 * x, -x])
    mapped = torch.func.vmap(lambda a: nearlinear.cross_entropy(a, y))(batch)
    same(mapped, torch.stack([nearlinear.cross_entropy(a, y) for a in batch]), "vmap")


def test_meta_tensors() -> None:
    x = torch.zeros(9, 7, device="meta", dtype=torch.bfloat16)
    y = torch.zeros(9, dtype=torch.int64, device="meta")
    for reduction, shape in (("none", (9,)), ("mean", ()), ("sum", ())):
        loss = nearlinear.cross_entropy(x, y, reduction=reduction, label_smoothing=0.1)
        assert (loss.shape, loss.dtype, loss.device.type) == (shape, torch.float32, "meta")


def test_export_with_a_dynamic_batch() -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return nearlinear.cross_entropy(x, y, label_smoothing=0.1)

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Loss(), tuple(problem(9, 7).values()), dynamic_shapes=({0: batch}, {0: batch}))
    inputs = problem(33, 7)
    same(program.module()(*inputs.values()), nearlinear.cross_entropy(**inputs, label_smoothing=0.1), "exported")


# ---- writes outside the output, on the CPU where an address past the end would go unnoticed


def guarded(shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    for pad in (1, 64):
        whole = torch.full((shape[0] * shape[1] + 2 * pad,), float("nan"))
        yield whole, whole[pad:-pad].view(shape)


@pytest.mark.parametrize(("rows", "classes"), [*SHAPES, (65, 64), (3, 65)])
def test_reads_stay_inside_the_input(rows: int, classes: int) -> None:
    """Bands of NaN before and after the logits change no bit."""
    inputs = problem(rows, classes)
    expected = evaluate(nearlinear.cross_entropy, inputs, {"label_smoothing": 0.1}, ["input"])
    for whole, view in guarded((rows, classes)):
        view.copy_(inputs["input"])
        same(evaluate(nearlinear.cross_entropy, {**inputs, "input": view}, {"label_smoothing": 0.1}, ["input"]), expected, "bands")
        assert whole.isnan().sum() == whole.numel() - rows * classes
