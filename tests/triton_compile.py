"""Compiles for one GPU architecture, without a GPU, what the Triton launchers launch, and prints what came out as JSON lines.

    python tests/triton_compile.py 90

The launchers run on meta tensors with their launch replaced by a compilation, so tiles, signatures and specialisations are those of a
real call. One line per kernel: its key, registers, stack, shared memory, whether it loads 16 bytes at once, and the 32-bit offset
products of its TTIR. The last line is a planted kernel whose offsets are 32-bit products.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()

import triton
import triton.language as tl
from nearlinear.triton_kernels import (
    cross_entropy,
    cross_entropy_soft,
    distance,
    kl_logit,
    pair_bins,
    pair_loss,
    segment_moments,
    sface,
)
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton_attention_calls import MODULES as ATTENTION_MODULES
from triton_attention_calls import attention_kernels

OPS = (
    "logit_stats",
    "logit_stats_backward",
    "soft_logit_stats",
    "soft_logit_stats_backward",
    "two_logit_stats",
    "two_logit_stats_backward",
    "logit_sum",
    "logit_sum_backward",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# name -> shape of input; one per tile that choose_tile can return, in both orders of the tile of middle size
LAYOUTS = {
    "V10": (4096, 10), "V50": (4096, 50), "V1000": (4096, 1000), "V32000": (4096, 32000), "P65536": (8, 19, 65536), "P50": (8, 19, 50),
}  # fmt: skip
MAPS: dict[str, list[float]] = {"identity": [], "scale": [0.5], "soft_cap": [30.0], "power": [8.0, 1e-4], "arcosh": [1.0]}
# what the launcher makes kernels of: Minkowski's fast powers and any other
METRICS: dict[str, tuple[str, list[float]]] = {
    "manhattan": ("manhattan", []), "chebyshev": ("chebyshev", []), "smooth_chebyshev": ("smooth_chebyshev", [10.0]),
    **{f"minkowski_{p}": ("minkowski", [p]) for p in (1.5, 2.0, 3.0, 2.7)},
    **{name: (name, [1e-3]) for name in ("canberra", "bray_curtis", "bray_curtis_abs")},
}  # fmt: skip


class Driver:
    """What the compiler asks of a driver; nothing is ever launched."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@triton.jit
def planted_kernel(p, V, stride_n, stride_v, BV: tl.constexpr):
    for i_v in range(0, V, BV):
        tl.store(p + tl.program_id(0) * stride_n + (i_v + tl.arange(0, BV)) * stride_v, 0)


def narrow_products(ttir: str) -> list[str]:
    """Lines of 32-bit products with a factor that comes from a program id, a scalar argument or a loop over classes."""
    signature = ttir[ttir.index("tt.func") :].split("attributes")[0]
    wild = set(re.findall(r"(%\w+): i32", signature)) | set(re.findall(r"scf\.for (%\w+) =", ttir))
    found = []
    for line in ttir.splitlines():
        left, _, right = line.partition(" = ")
        if "tt.get_program_id" not in right and wild.isdisjoint(re.findall(r"%\w+", right)):
            continue
        if re.search(r"arith\.muli .*: (tensor<[\dx]*)?i32", right):
            found.append(line.strip())
        if re.search(r"i32>?( loc\(.*)?$", right):  # once extended to 64 bits a value is harmless
            wild |= set(re.findall(r"%\w+", left))
    return found


def resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"{key}:(\d+)", text)[1]) for key, name in (("REG", "registers"), ("STACK", "stack"))}


def variants(op: str, name: str, dtype: torch.dtype) -> Iterator[tuple[str, str, bool]]:
    """(map, name of the variant, all options on): everything on for every tile and dtype, the rest for bfloat16 on two tiles."""
    if op.startswith("logit_sum"):
        if name in ("V10", "V1000", "V32000") and dtype in (torch.float32, torch.float64):  # the tiles of a fused head
            yield "sface", "full", True
        return
    yield "identity", "full", True
    if op.startswith("two_logit"):
        yield "mixture", "full", True
    if dtype == torch.bfloat16 and name in ("V32000", "P65536"):
        yield "identity", "plain", False
        if not op.startswith("two_logit"):
            yield "scale", "full", True
            yield "soft_cap", "full", True
    if dtype == torch.float32 and name in ("V1000", "V32000") and not op.startswith("two_logit"):  # the tiles of a fused head
        yield "power", "full", True
        yield "arcosh", "full", True


def call(op: str, shape: tuple[int, ...], dtype: torch.dtype, logit_map: str, full: bool) -> None:
    """One launcher on meta tensors; ``full``: class weights, spread, gradient of the target."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def tensor(shape: Any, dtype: torch.dtype = wide) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = [shape[0], *shape[2:]]
    input, weight, row = tensor(shape, dtype), tensor(shape[1]) if full else None, tensor(rows)
    label, options = tensor(rows, torch.int64), (logit_map, MAPS.get(logit_map, [80.0, 1.23]))
    beta = 0.3 if logit_map == "mixture" else 0.0
    if op == "logit_sum":
        sface.logit_sum(input, label, -100, *options)
        return
    if op == "logit_sum_backward":
        sface.logit_sum_backward(row, input, label, -100, *options)
        return
    if op == "logit_stats":
        cross_entropy.logit_stats(input, label, weight, -100, *options, full)
    elif op == "logit_stats_backward":
        cross_entropy.logit_stats_backward(row, row, row, input, label, weight, row, row, row, -100, *options, full)
    elif op == "soft_logit_stats":
        cross_entropy_soft.soft_logit_stats(input, input, weight, 0.1, *options)
    elif op == "two_logit_stats":
        kl_logit.two_logit_stats(input, input if full else tensor(shape), 0.5, beta)
    elif op == "two_logit_stats_backward":
        kl_logit.two_logit_stats_backward(row, input, input, row, row, row, row, row, row, 0.5, beta, True, full)
    else:
        cross_entropy_soft.soft_logit_stats_backward(row, row, input, input, weight, row, row, row, 0.1, *options, full)


def call_distance(name: str, dtype: torch.dtype) -> None:
    """Forward, then backward for both sides, on meta tensors; a metric whose slopes depend on the pair reduces the pairs anew between."""
    x, w, tile = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((512, 768), (1000, 768), (512, 1000)))
    distance.distance_tile(x, w, *METRICS[name], tile)
    distance.distance_tile_backward(x, w, tile, x, w, *METRICS[name], True, True)


def pair_calls() -> Iterator[tuple[str, str, torch.dtype, str, str]]:
    """(op, layout, dtype, map, variant) of the kernels of a tile of pair scores."""
    for name in ("V50", "V32000"):  # one tile for all sizes; columns that a vector load can and cannot take
        for dtype in (torch.float32, torch.float64):
            yield "pair_tile_extremes", name, dtype, "identity", "full"
            for op in ("pair_tile_stats", "pair_tile_stats_backward_"):
                yield op, name, dtype, "identity", "full"
                yield op, name, dtype, "identity", "soft"
                if name == "V32000":
                    yield op, name, dtype, "identity", "plain"
                    yield op, name, dtype, "arcosh", "full"


def call_pair(op: str, shape: tuple[int, ...], dtype: torch.dtype, logit_map: str, variant: str) -> None:
    """``full``: limits and the terms of both ends; ``soft``: two labels a column; ``plain``: neither."""
    rows, columns = shape
    full, soft = variant == "full", variant == "soft"

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tile, row_label, column_label = tensor(rows, columns), tensor(rows, dtype=torch.int64), tensor(columns, dtype=torch.int64)
    labels = (row_label, column_label, column_label if soft else None, tensor(columns) if soft else None)
    options = (1024 if full else None, logit_map, MAPS[logit_map])
    if op == "pair_tile_extremes":
        pair_loss.pair_tile_extremes(tile, row_label, column_label, *options)
    elif op == "pair_tile_stats":
        pair_loss.pair_tile_stats(tile, *labels, tensor(2, rows) if full else None, *options, [-2.0, 50.0])
    else:
        terms = 4 if full else 3
        of_columns = tensor(terms, 2, columns) if full else None
        pair_loss.pair_tile_stats_backward_(tile, *labels, tensor(terms, 2, rows), of_columns, *options, [-2.0, 50.0])


def call_bins(terms: int, dtype: torch.dtype, full: bool) -> None:
    """Moments, then values; ``full``: coefficients, for which the largest of them is found first, and groups."""

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    count, groups = 2**20, 5 if full else 1
    input, target = tensor(count), tensor(count, dtype=torch.bool)
    group = tensor(count, dtype=torch.int64) if full else None
    pair_bins.binned_moments(input, target, input if full else None, group, groups, 8.0, -50, 100, terms)
    pair_bins.binned_values(input, target, group, tensor(groups, 2, 100, terms, dtype=torch.float64), 8.0, -50)


def call_segments(dtype: torch.dtype) -> Iterator[str]:
    """Sums, squares and products, and their gradient; the names of the launches."""
    rows, index = torch.empty(4096, 256, dtype=dtype, device="meta"), torch.empty(4096, dtype=torch.int64, device="meta")
    for kind in ("diag", "full"):
        sums = segment_moments.segment_moments(rows, index, 100, kind)
        segment_moments.segment_moments_backward(*sums[:2], rows, index, 100, kind)
        yield from ("sum", "parts", kind, "parts", f"gradient {kind}")


def compiled(kernel: Any) -> dict[str, Any]:
    wide = bool(re.search(r"ld\.global\S*\.v4\.", kernel.asm["ptx"]))
    narrow = narrow_products(kernel.asm["ttir"])
    return {**resources(kernel.asm["cubin"]), "shared": kernel.metadata.shared, "wide_loads": wide, "narrow_products": narrow}


def main(capability: int, report: Callable[[str], None]) -> None:
    driver.set_active(Driver(capability))
    kernels: list[Any] = []

    def compile_only(kernel: Any, programs: int, input: Any, arguments: Any, num_warps: int, **constants: Any) -> None:
        kernels.append(kernel.warmup(*arguments, grid=(programs,), num_warps=num_warps, num_stages=1, enable_fp_fusion=True, **constants))

    cross_entropy.launch = cross_entropy_soft.launch = kl_logit.launch = sface.launch = distance.launch = pair_loss.launch = compile_only
    pair_bins.launch = segment_moments.launch = compile_only
    for module in ATTENTION_MODULES:
        module.launch = compile_only
    for key, kernel in attention_kernels(kernels):
        report(json.dumps({"key": f"{key} sm_{capability}", **compiled(kernel)}))
    for op, name, dtype, logit_map, variant in pair_calls():
        call_pair(op, LAYOUTS[name], dtype, logit_map, variant)
        key = f"{op} {str(dtype).removeprefix('torch.')} {name} {logit_map} {variant} sm_{capability}"
        report(json.dumps({"key": key, **compiled(kernels.pop())}))
    for op in OPS:
        for name, shape in LAYOUTS.items():
            for dtype in DTYPES:
                for logit_map, variant, full in variants(op, name, dtype):
                    call(op, shape, dtype, logit_map, full)
                    key = f"{op} {str(dtype).removeprefix('torch.')} {name} {logit_map} {variant} sm_{capability}"
                    report(json.dumps({"key": key, **compiled(kernels.pop())}))
    for name in METRICS:
        for dtype in (torch.float32, torch.float64):
            call_distance(name, dtype)
            passes = ("forward", *(["pairs"] if len(kernels) == 4 else []), "d_input", "d_other")
            for part, kernel in zip(passes, kernels, strict=True):
                key = f"distance_tile {str(dtype).removeprefix('torch.')} {name} {part} sm_{capability}"
                report(json.dumps({"key": key, **compiled(kernel)}))
            kernels.clear()
    for terms, dtype in ((4, torch.float32), (5, torch.float32), (10, torch.float64), (32, torch.float32), (32, torch.float64)):
        for variant in ("plain", "full"):
            call_bins(terms, dtype, variant == "full")
            for part, kernel in zip(("largest", "moments", "values")[-len(kernels) :], kernels, strict=True):
                key = f"binned_{part} {str(dtype).removeprefix('torch.')} {terms} {variant} sm_{capability}"
                report(json.dumps({"key": key, **compiled(kernel)}))
            kernels.clear()
    for dtype in DTYPES:
        parts = [*call_segments(dtype)]
        for part, kernel in dict(zip(parts, kernels, strict=True)).items():
            key = f"segment {part} {str(dtype).removeprefix('torch.')} sm_{capability}"
            report(json.dumps({"key": key, **compiled(kernel)}))
        kernels.clear()
    planted = planted_kernel.warmup(torch.empty(1, device="meta"), 100, 12, 3, grid=(1,), BV=16)
    report(json.dumps({"key": "planted", **compiled(planted)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), lambda line: print(line, flush=True))
