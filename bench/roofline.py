"""What the machine can do, timed in the same run as the cases: reading, copying (new and reused buffer), and matrix products."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import torch

from .measure import clock_of

__all__ = ["FLOORS", "floors", "gemm_tflops"]

FLOORS = ("read", "copy_warm", "copy_fresh")
_PARALLEL_COPY = 1 << 22  # below this, starting a thread costs more than the copy


def floors(nbytes: int, device: torch.device) -> dict[str, tuple[Callable[[], object], int]]:
    """Per floor: the call, and the bytes that it moves. ``nbytes`` is the size of the logits-like input of the case.

    ``copy_warm`` writes into pages that exist, ``copy_fresh`` into a new buffer, whose page faults on CPU can cost more than the copy.
    """
    source = torch.ones(max(nbytes // 4, 1), device=device)
    target = torch.zeros_like(source)
    size = source.nbytes
    return {
        "read": (source.amax, size),
        "copy_warm": (_copier(source, target), 2 * size),
        "copy_fresh": (source.clone, 2 * size),
    }


def _copier(source: torch.Tensor, target: torch.Tensor) -> Callable[[], object]:
    """The fastest copy at hand: on CPU memmove in as many threads as torch uses (it streams past the cache, torch's copy does not)."""
    threads = torch.get_num_threads()
    if source.device.type != "cpu" or source.nbytes < _PARALLEL_COPY:
        return lambda: target.copy_(source)
    pool = ThreadPoolExecutor(threads)
    step = -(-source.nbytes // threads // 4096) * 4096
    parts = [(start, min(step, source.nbytes - start)) for start in range(0, source.nbytes, step)]

    def copy() -> None:
        list(pool.map(lambda part: ctypes.memmove(target.data_ptr() + part[0], source.data_ptr() + part[0], part[1]), parts))

    return copy


def gemm_tflops(dtype: torch.dtype, device: torch.device, n: int) -> float:
    """Rate of an n x n x n matrix product, median of five."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    clock = clock_of(device)
    clock.round([lambda: a @ b])
    times = [clock.round([lambda: a @ b])[0].wall_ms for _ in range(5)]
    return 2 * n**3 / (median(times) * 1e9)
