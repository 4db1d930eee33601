"""Clocks, the interleaved timing loop, and peak memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

__all__ = ["Clock", "Lap", "clock_of", "host_us", "interleave", "peak_mb", "quantiles"]

Call = Callable[[], object]


class Lap(NamedTuple):
    wall_ms: float
    cpu_ms: float | None  # process time over all threads; None on CUDA, where it says nothing about the kernels


class Clock(Protocol):
    def round(self, calls: Sequence[Call], prepare: Sequence[Call | None] = ()) -> list[Lap]:
        """Time each call once, in order; ``prepare[i]`` runs before call i, outside the timed region."""
        ...


def _prepared(calls: Sequence[Call], prepare: Sequence[Call | None]) -> list[tuple[Call, Call | None]]:
    return list(zip(calls, prepare or [None] * len(calls), strict=True))


class CpuClock:
    def round(self, calls: Sequence[Call], prepare: Sequence[Call | None] = ()) -> list[Lap]:
        laps = []
        for call, before in _prepared(calls, prepare):
            if before is not None:
                before()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            laps.append(Lap(wall * 1e3, cpu * 1e3))
        return laps


class CudaClock:
    """CUDA events around each launch, after a write that pushes the inputs out of L2 (50 MB on H100) and lets the host run ahead."""

    def __init__(self, device: torch.device) -> None:
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)

    def round(self, calls: Sequence[Call], prepare: Sequence[Call | None] = ()) -> list[Lap]:
        events = []
        for call, before in _prepared(calls, prepare):
            if before is not None:
                before()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self.flush.zero_()
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [Lap(start.elapsed_time(end), None) for start, end in events]


def clock_of(device: torch.device) -> Clock:
    return CpuClock() if device.type == "cpu" else CudaClock(device)


def interleave(
    calls: Mapping[str, Call], device: torch.device, *, seconds: float, rounds: tuple[int, int], prepare: Mapping[str, Call] | None = None
) -> dict[str, list[Lap]]:
    """Launch by launch through all calls, forwards and backwards in turn, so that drift of the machine falls on all alike.

    Every call must have run once before (compilation, caches). Stops after ``seconds``, within the least and greatest number of rounds.
    """
    clock, order, laps = clock_of(device), list(calls), {name: [] for name in calls}
    start = time.monotonic()
    for i in range(rounds[1]):
        if i >= rounds[0] and time.monotonic() - start > seconds:
            break
        names = order if i % 2 == 0 else order[::-1]
        results = clock.round([calls[name] for name in names], [(prepare or {}).get(name) for name in names])
        for name, lap in zip(names, results, strict=True):
            laps[name].append(lap)
    return laps


def quantiles(values: Sequence[float]) -> dict[str, float]:
    data = torch.tensor(values, dtype=torch.float64)
    return {f"p{q}": float(torch.quantile(data, q / 100)) for q in (20, 50, 80)}


def host_us(call: Call, device: torch.device, *, batches: int = 7, calls: int = 30) -> float:
    """Host time to issue one call (on CUDA nothing is waited for inside a batch): median over batches."""
    times = []
    for _ in range(batches):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return quantiles(times)["p50"]


def peak_mb(call: Call, device: torch.device) -> float | None:
    """Peak memory (1e6 bytes) during ``call`` above what was held before, results included. None where it cannot be measured.

    CPU: the kernel's high-water mark of resident memory, reset just before; freed heap is first given back, so that reuse of it counts.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    reset = Path("/proc/self/clear_refs")
    libc = ctypes.CDLL(None)
    if not reset.exists() or not hasattr(libc, "malloc_trim"):
        return None
    libc.malloc_trim(0)
    try:
        reset.write_text("5")
    except OSError:
        return None
    before = _status_kb("VmRSS")
    call()
    return max(0, _status_kb("VmHWM") - before) * 1024 / 1e6


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {field}")
