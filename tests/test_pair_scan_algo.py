"""The GPU form of pair_scan (csrc/algo/pair_scan.h), compiled for Thrust's host backend and run here against the CPU kernel."""

from __future__ import annotations

import ctypes

import pytest
import torch
from measure import Draw, same
from test_pair_scan import KERNELS, Kernel, problem
from test_roc_auc_algo import address, compiled
from torch import Tensor

ops = torch.ops.nearlinear


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("pair_scan", tmp_path_factory.mktemp("algo"))


def host(library: ctypes.CDLL, s: Tensor, y: Tensor, c: Tensor | None, g: Tensor | None, groups: int, kernel: Kernel, method: str = "scan"
) -> tuple[Tensor, Tensor]:  # fmt: skip
    family, value, slope = kernel
    total = torch.full((groups if value else 0,), -7, dtype=torch.float64)
    potential = torch.full((len(s) if slope else 0,), -7, dtype=s.dtype)
    function = getattr(library, f"pair_scan_f{8 * s.element_size()}")
    function.restype = ctypes.c_int64
    lists = [torch.tensor(numbers, dtype=torch.float64) for numbers in (value, slope)]
    descriptions = [x for numbers in lists for x in (address(numbers), ctypes.c_int64(len(numbers)))]
    sizes = (ctypes.c_int64(len(s)), ctypes.c_int64(groups))
    unused = function(
        family.encode(), ctypes.c_bool(method == "direct"), *descriptions, address(s), address(y), address(c), address(g), *sizes,
        address(total), address(potential),
    )  # fmt: skip
    assert unused >= 0
    return total, potential


def close(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        eps = torch.finfo(a.dtype).eps
        finite = b[b.isfinite()].abs()
        torch.testing.assert_close(a, b, rtol=64 * eps, atol=float(64 * eps * finite.max()) if len(finite) else 0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("n", [0, 1, 2, 128, 129, 3000, 128 * 128 + 1])
def test_the_source_for_gpus(library: ctypes.CDLL, n: int, name: str, dtype: torch.dtype) -> None:
    """One tile, a tile of tiles, their neighbours."""
    p = problem(n, "levels")
    s, y, c, g = p["input"].to(dtype), p["target"], p["coefficient"].to(dtype), p["group"]
    for group, groups in ((None, 1), (g, 9), (torch.arange(n).flip(0) // 2, n)):
        for weight in (None, c):
            arguments = (s, y, weight, group, groups)
            expected = ops.pair_scan(*arguments, *KERNELS[name], "scan")
            for method in ("scan", "direct") if n < 200 else ("scan",):
                close(host(library, *arguments, KERNELS[name], method), expected)


@pytest.mark.parametrize("name", KERNELS)
def test_edges_of_the_source_for_gpus(library: ctypes.CDLL, name: str) -> None:
    inf, nan = float("inf"), float("nan")
    for seed in range(40):
        draw = Draw(seed)
        s = torch.tensor([-inf, inf, 0.0, -0.0, 1, 2, -3, nan])[draw.labels(8 if seed % 2 else 7, 14)]
        y, c, g = draw.labels(2, 14).bool(), draw.labels(3, 14).float(), draw.labels(4, 14)
        for weight in (None, c):
            for method in ("scan", "direct"):
                close(host(library, s, y, weight, g, 5, KERNELS[name], method), ops.pair_scan(s, y, weight, g, 5, *KERNELS[name], "scan"))


def test_one_output_only(library: ctypes.CDLL) -> None:
    s, y, c, g = problem(400).values()
    for family, value, slope in KERNELS.values():
        for kernel in ((family, value, []), (family, [], slope), (family, [], [])):
            close(host(library, s, y, c, g, 7, kernel), ops.pair_scan(s, y, c, g, 7, *kernel, "scan"))


def test_ids_out_of_range_count_nowhere(library: ctypes.CDLL) -> None:
    """They cannot be raised without waiting for the GPU; no address may leave the arrays."""
    s, y, c, _ = problem(400).values()
    g = Draw(2).labels(9, 400) - 3
    inside = (g >= 0) & (g < 4)
    for kernel in KERNELS.values():
        total, potential = host(library, s, y, c, g, 4, kernel)
        expected = ops.pair_scan(s[inside], y[inside], c[inside], g[inside], 4, *kernel, "scan")
        close((total, potential[inside]), expected)
        assert not potential[~inside].any()


def test_the_same_bits_each_time(library: ctypes.CDLL) -> None:
    s, y, c, g = problem(60_000, "normal").values()
    for kernel in KERNELS.values():
        first = host(library, s, y, c, g, 50, kernel)
        for _ in range(3):
            same(host(library, s, y, c, g, 50, kernel), first, "again")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", KERNELS)
def test_on_a_gpu(name: str) -> None:
    for n in (0, 1, 1000, 200_000):
        for dtype in (torch.float32, torch.float64):
            s, y, c, g = problem(n).values()
            arguments = (s.to(dtype), y, c.to(dtype), g)
            got = ops.pair_scan(*(a.cuda() for a in arguments), 7, *KERNELS[name], "auto")
            close((got[0].cpu(), got[1].cpu()), ops.pair_scan(*arguments, 7, *KERNELS[name], "scan"))
