"""Degenerate images, what the published programs get wrong, class handling, and the metrics over batches and processes."""

from __future__ import annotations

import math
import socket
import threading
import time
from pathlib import Path
from typing import Any

import nearlinear
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from betti_data import pair
from measure import evaluate, same, threads
from torch import Tensor

ops = torch.ops.nearlinear


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (3, 0, 4, 4), (0, 0, 5), (0, 2, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("filtration", ["superlevel", "both"])
def test_no_image(shape: tuple[int, ...], filtration: str) -> None:
    """0 with a graph, so that an empty batch does not end a training run."""
    x, y = torch.zeros(shape, requires_grad=True), torch.zeros(shape)
    for reduction in ("mean", "sum"):
        loss = nearlinear.betti_matching_loss(x, y, filtration=filtration, sphere=True, reduction=reduction)
        assert loss.item() == 0
        same(torch.autograd.grad(loss, x)[0], torch.zeros(shape), "gradient")
    assert nearlinear.betti_matching_loss(x, y, reduction="none").shape == shape[:2]
    found = nearlinear.betti_matching(x, y, spatial_dims=len(shape) - 2)
    assert found.matched.shape == (0, 4)
    assert found.unmatched_input.shape == found.unmatched_target.shape == (0, 2)
    assert found.num_images == 0
    assert nearlinear.betti_matching_error(x, y).isnan()
    assert nearlinear.betti_numbers(x).shape == (*shape[:2], len(shape) - 2)


def test_images_without_bars() -> None:
    """One pixel, constant images, all-background labels: no bars, and tables of no rows with the usual width."""
    for shape in ((1, 1, 1, 1), (1, 1, 6, 5), (1, 1, 1, 9), (1, 1, 1, 1, 1), (2, 1, 7)):
        x = torch.full(shape, 0.5, requires_grad=True)
        loss = nearlinear.betti_matching_loss(x, torch.zeros(shape), filtration="both")
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, x)[0].any()
        assert nearlinear.persistence_barcode(x, spatial_dims=len(shape) - 2).pairs.shape == (0, 2)
    loss = nearlinear.betti_matching_loss(torch.full((1, 1, 3, 3), 0.75), torch.zeros(1, 1, 3, 3), essential=True)
    assert loss.item() == 2 * 0.75**2


def test_infinities() -> None:
    """What would enter at the far infinity never does. Betti-Matching-3D loses finite bars, and lists bars that die there."""
    rows = torch.tensor([[0.0, 3, 1], [math.inf, math.inf, math.inf], [0.5, 4, 0.25]])[None]
    bars = nearlinear.persistence_barcode(rows, spatial_dims=2, filtration="sublevel")
    assert sorted(map(tuple, bars.pairs.tolist())) == [(2, 1), (6, 7)]
    ring = torch.tensor([[0.0, 0, 0], [0, math.inf, 0], [0, 0, 0]])[None]
    assert len(nearlinear.persistence_barcode(ring, spatial_dims=2, filtration="sublevel").pairs) == 0  # the loop never dies
    found = nearlinear.betti_matching(ring, ring.clamp(max=1), spatial_dims=2, filtration="sublevel")
    assert (len(found.matched), len(found.unmatched_target)) == (0, 1)
    image = rows.clamp(max=9)
    image[0, 0, 0] = -math.inf
    assert nearlinear.betti_matching_loss(image[None], torch.zeros(1, 1, 3, 3), filtration="sublevel").isfinite()  # of the first pixel
    image[0, 2, 0] = -math.inf
    assert nearlinear.betti_matching_loss(image[None], torch.zeros(1, 1, 3, 3), filtration="sublevel") == math.inf
    # births at -inf in both are equal, and only one of them is never charged
    assert nearlinear.betti_matching_loss(image[None], image[None], filtration="sublevel", essential=True) == 0


def test_values_are_compared_exactly() -> None:
    """Neighbouring doubles, denormals in a process that flushes them, and zeros of both signs."""
    one = torch.tensor([[1.0, 1 + 2**-52, 1.0]], dtype=torch.float64)
    assert nearlinear.persistence_barcode(one, spatial_dims=1, filtration="sublevel").pairs.tolist() == [[2, 1]]
    assert len(nearlinear.persistence_barcode(one.float(), spatial_dims=1).pairs) == 0
    tiny = torch.tensor([[1e-45, 0.0, 3e-45, 1e-45]])
    try:
        torch.set_flush_denormal(True)
        assert nearlinear.persistence_barcode(tiny, spatial_dims=1, filtration="sublevel").pairs.tolist() == [[3, 2]]
    finally:
        torch.set_flush_denormal(False)
    assert len(nearlinear.persistence_barcode(torch.tensor([[0.0, -0.0, 0.0, -0.0]]), spatial_dims=1).pairs) == 0


def test_the_first_nan_is_named() -> None:
    x = torch.rand(2, 2, 3, 3)
    x[1, 0, 2, 1] = x[1, 1, 0, 0] = math.nan
    for call in (nearlinear.betti_matching_loss, nearlinear.betti_matching_error):
        with pytest.raises(ValueError, match=r"must not be NaN, got NaN at input\[1, 0, 2, 1\]"):
            call(x, x)


def test_min_persistence_is_strict_and_of_the_input_alone() -> None:
    x, y = torch.tensor([[[1.0, 0.0, 0.25, 0.0, 0.5, 0.0]]]), torch.zeros(1, 1, 6)
    loss = nearlinear.betti_matching_loss
    assert [float(loss(x, y, min_persistence=m)) for m in (0.0, 0.125, 0.25, 0.5)] == [0.3125, 0.3125, 0.25, 0.0]
    assert float(loss(y, x, min_persistence=0.5)) == 0.3125


def test_float64_stays_float64() -> None:
    x, y = (torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert nearlinear.betti_matching_loss(x, y).dtype == torch.float64
    assert nearlinear.betti_matching_loss(x.float(), y).dtype == torch.float64  # as torch promotes
    assert nearlinear.betti_matching_loss(x.half(), y.half()).dtype == torch.float32


def test_pixels_beyond_a_million_along_a_side() -> None:
    """Packed coordinates wrap at 2^20 in Betti-Matching-3D."""
    n = 2**20 + 10
    x, y = torch.zeros(n), torch.zeros(n)
    x[[n - 1, n - 5]], y[[n - 1, n - 4]] = torch.tensor([1.0, 0.75]), torch.tensor([1.0, 0.5])
    found = nearlinear.betti_matching(x, y, spatial_dims=1)
    assert found.matched.tolist() == [[n - 5, n - 2, n - 4, n - 2]]


def test_threads_are_bounded_and_the_interpreter_runs() -> None:
    """Betti-Matching-3D: a thread for every image, 253 at a time, and the interpreter locked for the whole call."""
    status = Path("/proc/self/status")  # Linux, the platform of the project's tests
    images = torch.rand(2000, 24, 24)
    ticks, most, done = 0, 0, threading.Event()

    def tick() -> None:
        nonlocal ticks, most
        while not done.wait(0.001):
            ticks += 1
            most = max(most, int(status.read_text().split("Threads:")[1].split()[0]))

    with threads(2):
        torch.ones(10**6).sum()  # torch's own threads
        before = int(status.read_text().split("Threads:")[1].split()[0])
        clock = threading.Thread(target=tick)
        clock.start()
        start = time.perf_counter()
        nearlinear.betti_matching(images, images.flip(0), spatial_dims=2)
        elapsed = time.perf_counter() - start
        done.set()
        clock.join()
    assert most <= before + 3
    assert ticks >= elapsed / 0.05


def test_two_threads_give_the_bits_of_one() -> None:
    for shape in ((5, 2, 20, 20), (1, 1, 64, 64), (3, 1, 6, 7, 8)):
        x, y = torch.rand(shape), torch.rand(shape)
        results = []
        for count in (1, 2):
            with threads(count):
                found = nearlinear.betti_matching(x, y, spatial_dims=len(shape) - 2)
                loss = evaluate(nearlinear.betti_matching_loss, {"input": x, "target": y}, {}, ("input",))
                results.append((found.matched, found.unmatched_input, found.unmatched_target, loss))
        same(results[0], results[1], str(shape))


# ---- channels


def test_classes_are_monais() -> None:
    logits, labels = torch.randn(2, 3, 6, 6), torch.randint(3, (2, 1, 6, 6))
    one_hot = torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1)
    loss = nearlinear.betti_matching_loss
    expected = loss(logits.softmax(1), one_hot, reduction="none")
    for target in (labels, labels.byte(), labels.float()):
        same(loss(logits, target, softmax=True, to_onehot_y=True, reduction="none"), expected, "one-hot")
    same(loss(logits, labels, softmax=True, to_onehot_y=True, include_background=False, reduction="none"), expected[:, 1:], "background")
    same(loss(logits, one_hot, sigmoid=True), loss(logits.sigmoid(), one_hot), "sigmoid")
    module = nearlinear.BettiMatchingLoss(softmax=True, to_onehot_y=True, include_background=False)
    torch.testing.assert_close(module(logits, labels), expected[:, 1:].mean())


def test_a_single_channel_is_kept() -> None:
    """topolosses drops it; there is nothing left then."""
    x, y = torch.rand(2, 1, 5, 5), torch.rand(2, 1, 5, 5)
    with pytest.warns(nearlinear.NearlinearWarning, match="include_background=False has no effect on a single channel"):
        kept = nearlinear.betti_matching_loss(x, y, include_background=False)
    same(kept, nearlinear.betti_matching_loss(x, y), "kept")


def test_the_frame() -> None:
    """One pixel on every side of every axis, volumes too; a frame that enters last changes nothing."""
    x, y = torch.rand(1, 1, 4, 4, 4, requires_grad=True), torch.rand(1, 1, 4, 4, 4)
    loss = nearlinear.betti_matching_loss
    same(loss(x, y, sphere=True), loss(x, y), "superlevel")
    framed = [torch.nn.functional.pad(image, [1] * 6) for image in (x, y)]
    same(loss(x, y, sphere=True, filtration="sublevel"), loss(*framed, filtration="sublevel"), "sublevel")
    assert loss(x, y, sphere=True, filtration="sublevel") != loss(x, y, filtration="sublevel")
    same(loss(x, y, pad_value=0.0, filtration="both"), loss(x, y, sphere=True, filtration="both"), "pad_value")


def test_targets_without_a_mask_of_their_own() -> None:
    """uint8 and bool masks are the float mask; any leading dims."""
    x, mask = torch.rand(2, 3, 7, 7), torch.rand(2, 3, 7, 7) > 0.5
    expected = nearlinear.betti_matching_loss(x, mask.float(), reduction="none")
    for target in (mask, mask.byte(), mask.long(), mask.half()):
        same(nearlinear.betti_matching_loss(x, target, reduction="none"), expected, str(target.dtype))
    same(nearlinear.betti_matching_loss(x[0, 1], mask[0, 1], spatial_dims=2, reduction="none"), expected[0, 1], "one image")
    found, floats = (nearlinear.betti_matching(x > 0.5, m, spatial_dims=2) for m in (mask, mask.float()))
    same(found.matched, floats.matched, "bool")


# ---- metrics


def test_what_betti_numbers_count() -> None:
    pixels = torch.zeros(5, 7)
    pixels[:3, :3] = 1
    pixels[1, 1] = 0  # a ring; diagonal neighbours are two components
    pixels[4, 4], pixels[3, 5] = 1, 1
    assert nearlinear.betti_numbers(pixels, spatial_dims=2).tolist() == [3, 1]
    assert nearlinear.betti_numbers(1 - pixels, spatial_dims=2).tolist() == [2, 0]
    shell = torch.ones(3, 3, 3)
    shell[1, 1, 1] = 0
    assert nearlinear.betti_numbers(shell, spatial_dims=3).tolist() == [1, 0, 1]
    shell[1, 1, 0] = 0
    assert nearlinear.betti_numbers(shell, spatial_dims=3).tolist() == [1, 0, 0]
    shell[1, 1, 2] = 0
    assert nearlinear.betti_numbers(shell, spatial_dims=3, dims=(1,)).tolist() == [1]
    assert nearlinear.betti_numbers(torch.zeros(4, 4), spatial_dims=2).tolist() == [0, 0]
    half = torch.tensor([0.5, 0.4, 0.5])
    assert nearlinear.betti_numbers(half, spatial_dims=1).tolist() == [2]  # closed: the threshold itself is foreground


def test_errors_see_places() -> None:
    """Betti numbers agree where features are elsewhere; an empty segmentation has one essential bar less."""
    left, right = torch.zeros(1, 1, 1, 9), torch.zeros(1, 1, 1, 9)
    left[..., [0, 2]], right[..., [6, 8]] = 1, 1
    assert nearlinear.betti_number_error(left, right) == 0
    assert nearlinear.betti_matching_error(left, right) == 2
    empty, whole = torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    for a, b, error in ((empty, whole, 2), (whole, empty, 2), (empty, empty, 0), (whole, whole, 0)):
        assert nearlinear.betti_matching_error(a, b, essential=True) == error
        assert nearlinear.betti_matching_error(a, b) == 0
    assert nearlinear.betti_number_error(empty, whole) == 1


METRICS: tuple[tuple[type, Any, dict[str, Any]], ...] = (
    (nearlinear.BettiMatchingError, nearlinear.betti_matching_error, {"essential": True}),
    (nearlinear.BettiNumberError, nearlinear.betti_number_error, {"dims": (0,)}),
    (nearlinear.BettiNumbers, nearlinear.betti_numbers, {"threshold": 0.25}),
)  # fmt: skip


def arguments(kind: type, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (x,) if kind is nearlinear.BettiNumbers else (x, y)


@pytest.mark.parametrize(("kind", "function", "options"), METRICS, ids=lambda m: getattr(m, "__name__", ""))
def test_metrics_over_batches(kind: Any, function: Any, options: dict[str, Any]) -> None:
    x, y = (image[:, None] for image in pair("soft_and_binary", (24, 6, 6), 1))
    x = x.clamp(max=0.5)
    each = function(*arguments(kind, x, y), **options, **({} if kind is nearlinear.BettiNumbers else {"reduction": "none"}))
    expected = each.flatten(0, 1).double().mean(0)
    metrics = [kind(**options) for _ in range(2)]
    for begin in range(0, 24, 4):
        metrics[begin // 12].update(*arguments(kind, x[begin : begin + 4], y[begin : begin + 4]))
    metrics[0].merge(metrics[1])
    torch.testing.assert_close(metrics[0].compute(), expected, rtol=1e-15, atol=0)
    metrics[0].merge(kind(**options))
    torch.testing.assert_close(metrics[0].compute(), expected, rtol=1e-15, atol=0)
    metrics[0].reset()
    assert metrics[0].compute().isnan()


SHARES = ((5, 9), (14, 0))  # of the images, by rank; one has nothing


def work(rank: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    x, y = (image[:, None] for image in pair("binary", (14, 6, 6), 3))
    for shares, (kind, _, options) in zip((*SHARES, SHARES[0]), METRICS, strict=True):
        own = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
        metric, whole = kind(process_group=dist.group.WORLD, **options), kind(**options)
        if shares[rank]:
            metric.update(*arguments(kind, x[own], y[own]))
        whole.update(*arguments(kind, x, y))
        torch.testing.assert_close(metric.compute(), whole.compute(), rtol=0, atol=0)
    dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_metrics_over_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port,), nprocs=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_volumes_of_a_gpu_come_back() -> None:
    """They are computed by the CPU; results and gradients are where the images are."""
    x, y = torch.rand(2, 2, 1, 4, 5, 6)
    on_gpu, on_cpu = (
        evaluate(nearlinear.betti_matching_loss, {"input": a, "target": b}, {"filtration": "both"}, ("input", "target"))
        for a, b in ((x.cuda(), y.cuda()), (x, y))
    )
    assert on_gpu[0].is_cuda
    same((on_gpu[0].cpu(), [g.cpu() for g in on_gpu[1]]), on_cpu, "loss")
    found, expected = (nearlinear.betti_matching(a, b, spatial_dims=3) for a, b in ((x.cuda(), y.cuda()), (x, y)))
    same(found.matched.cpu(), expected.matched, "pairs")
    assert found.matched_dim.is_cuda
    assert nearlinear.betti_matching_error(x.cuda(), y.cuda()).is_cuda
    with pytest.raises(RuntimeError, match=r"\.cpu\(\)"):
        ops.persistence_barcode(x.cuda().flatten(0, 1), [0], True)
