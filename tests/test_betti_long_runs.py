"""Long volumes: Ctrl-C, the interpreter lock, what is read of the progress, parts on several threads, sides of 1."""

import io
import os
import signal
import threading
import time

import nearlinear
import pytest
import torch
from nearlinear import _C

SIDE = 72


def volumes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator) for _ in range(2)]


def test_ctrl_c_ends_a_long_volume():
    f, g = volumes(2 * SIDE, 2 * SIDE, SIDE)  # takes over a second
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        nearlinear.betti_matching(f, g, spatial_dims=3)
    assert time.monotonic() - start < 1.0
    assert _C.progress() == (0, 0), "work that was left is no longer counted"
    small = nearlinear.betti_matching(f[:4, :4, :4], g[:4, :4, :4], spatial_dims=3)
    assert len(small.matched) + len(small.unmatched_input) > 0, "the next call works"


def test_progress_grows_while_other_threads_run():
    seen: list[tuple[int, int]] = []
    over = threading.Event()

    def watch():
        while not over.wait(0.001):
            seen.append(_C.progress())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        nearlinear.betti_matching(*volumes(SIDE, SIDE, SIDE), spatial_dims=3)
    finally:
        over.set()
        thread.join()
    running = [done / total for done, total in seen if total > 0]
    assert len(running) > 20, "the interpreter lock was held"
    assert running == sorted(running)
    assert len(set(running)) > 8
    assert _C.progress() == (0, 0)


def test_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    f, g = volumes(20, 20, 20)
    for file, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", file)
        shown = nearlinear.betti_matching(f, g, spatial_dims=3, progress=True)
        assert ("betti_matching" in file.getvalue()) == drawn
        assert torch.equal(shown.matched, nearlinear.betti_matching(f, g, spatial_dims=3).matched)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_of_volumes_on_threads_change_nothing(count):
    f, g = volumes(count, 16, 17, 18)
    threads = torch.get_num_threads()
    found = []
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        found.append(torch.ops.nearlinear.betti_matching(f, g, [0, 1, 2], True, False))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("levels", [2, 3, 10**6])
def test_thin_volumes_are_pictures_wherever_the_side_of_1_is(levels):
    f, g = ((image * levels).floor() for image in volumes(23, 31, seed=levels))
    picture = nearlinear.betti_matching(f, g, spatial_dims=2)
    for axis in range(3):
        thin = nearlinear.betti_matching(f.unsqueeze(axis), g.unsqueeze(axis), spatial_dims=3)
        for name in ("matched", "matched_dim", "unmatched_input", "unmatched_input_dim", "unmatched_target", "unmatched_target_dim"):
            rows, expected = getattr(thin, name), getattr(picture, name)
            assert sorted(rows.tolist()) == sorted(expected.tolist()), (axis, name)


def test_dimensions_alone_are_those_of_all():
    f, g = volumes(9, 10, 11)
    everything = nearlinear.betti_matching(f, g, spatial_dims=3)
    for dims in ([0], [1], [2], [0, 2], [1, 2]):
        some = nearlinear.betti_matching(f, g, spatial_dims=3, dims=dims)
        for kind in ("matched", "unmatched_input", "unmatched_target"):
            keep = torch.isin(getattr(everything, f"{kind}_dim"), torch.tensor(dims))
            assert torch.equal(getattr(some, kind), getattr(everything, kind)[keep]), (dims, kind)
