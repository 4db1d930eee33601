"""The GPU form of the ROC kernels (csrc/algo/roc_auc.h), compiled for Thrust's host backend and run here against the CPU kernels."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from measure import Draw, same
from test_roc_auc import EXACT, problem, scores
from torch import Tensor

ROOT = Path(__file__).parents[1]
ops = torch.ops.nearlinear


def compiled(name: str, folder: Path) -> ctypes.CDLL:
    """tests/algo/NAME.cpp."""
    compiler = shutil.which("g++")
    nvcc = shutil.which("nvcc")
    homes = [Path("/usr/local/cuda"), *([Path(nvcc).resolve().parents[1]] if nvcc else [])]
    found = [home / "include" for home in homes if (home / "include/cccl/thrust").exists() or (home / "include/thrust").exists()]
    if compiler is None or not found:
        pytest.skip("g++ and the CCCL headers of a CUDA toolkit are needed")
    out = folder / f"{name}.so"
    backend = ["-x", "c++", "-DTHRUST_DEVICE_SYSTEM=THRUST_DEVICE_SYSTEM_OMP", "-fopenmp", f"-I{found[0] / 'cccl'}", f"-I{found[0]}"]
    source = str(ROOT / f"tests/algo/{name}.cpp")
    command = [compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", *backend, source, "-o", str(out)]
    subprocess.run(command, check=True, timeout=300)
    return ctypes.CDLL(str(out))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("roc_auc", tmp_path_factory.mktemp("algo"))


def address(t: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def host(library: ctypes.CDLL, s: Tensor, y: Tensor, w: Tensor | None, g: Tensor | None, groups: int, max_fpr: float | None) -> Tensor:
    """Counts without ``max_fpr``, else sums."""
    out = torch.full((groups, 3), -7, dtype=torch.int64 if max_fpr is None else torch.float64)
    function = getattr(library, f"{'counts' if max_fpr is None else 'sums'}_f{8 * s.element_size()}")
    function.restype = ctypes.c_int64
    weight = [] if max_fpr is None else [address(w)]
    tail = [] if max_fpr is None else [ctypes.c_double(max_fpr)]
    sizes = (ctypes.c_int64(len(s)), ctypes.c_int64(groups))
    unused = function(address(s), address(y), *weight, address(g), *sizes, *tail, address(out))
    assert unused >= 0
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kind", ["levels", "wide"])
@pytest.mark.parametrize("n", [0, 1, 128, 129, 128 * 128 + 1])
def test_the_source_for_gpus(library: ctypes.CDLL, n: int, kind: str, dtype: torch.dtype) -> None:
    """One tile of the running sums, a tile of tiles, their neighbours."""
    p = problem(n, kind)
    s, y, w, g = p["input"].to(dtype), p["target"], p["sample_weight"].double(), p["group"]
    for group, groups in ((None, 1), (g, 9), (torch.arange(n).flip(0) // 2, n)):
        same(host(library, s, y, None, group, groups, None), ops.roc_auc_counts(s, y, group, groups), f"{groups} groups")
        for weight in (None, w):
            for max_fpr in (1.0, 0.3):
                got = host(library, s, y, weight, group, groups, max_fpr)
                torch.testing.assert_close(got, ops.roc_auc_sums(s, y, weight, group, groups, max_fpr), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("n", [0, 1, 3, 200, 3000])
def test_the_source_for_gpus_on_classes(library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
    draw = Draw(n)
    s, y, w = (2 * draw.normal(n, 4)).round().to(dtype), draw.labels(3, n), draw.labels(3, n).double() / 2
    if n > 3:
        s[5, 1] = s[7, 2] = torch.nan
        w[7] = 0
    for weight in (None, w):
        sums, mass = torch.full((4, 4), -7.0, dtype=torch.float64), torch.full((4,), -7.0, dtype=torch.float64)
        function = getattr(library, f"classes_f{8 * s.element_size()}")
        function.restype = ctypes.c_int64
        sizes = (ctypes.c_int64(n), ctypes.c_int64(4))
        assert function(address(s), address(y), address(weight), *sizes, address(sums), address(mass)) >= 0
        torch.testing.assert_close((sums, mass), ops.roc_auc_class_sums(s, y, weight), rtol=1e-13, atol=1e-12, equal_nan=True)


def test_edges_of_the_source_for_gpus(library: ctypes.CDLL) -> None:
    s = torch.tensor([0.0, -0.0, float("inf"), float("inf"), float("nan"), -1e-45, 1.0, -float("nan")])
    y = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0]).bool()
    for g in ([0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 1, 0, 0, 2]):
        group = torch.tensor(g)
        same(host(library, s, y, None, group, 5, None), ops.roc_auc_counts(s, y, group, 5), "counts")
        w = torch.tensor([1.0, 2, 3, 4, 0, 1, 2, 0], dtype=torch.float64)
        for weight in (None, w):
            got, expected = host(library, s, y, weight, group, 5, 1.0), ops.roc_auc_sums(s, y, weight, group, 5, 1.0)
            torch.testing.assert_close(got, expected, **EXACT)


def test_ids_out_of_range_count_nowhere(library: ctypes.CDLL) -> None:
    """They cannot be raised without waiting for the GPU; no address may leave the arrays."""
    s, y = scores("levels", 400).float(), Draw(1).labels(2, 400).bool()
    g = Draw(2).labels(9, 400) - 3
    inside = (g >= 0) & (g < 4)
    same(host(library, s, y, None, g, 4, None), ops.roc_auc_counts(s[inside], y[inside], g[inside], 4), "counts")


def test_float64_sums_have_the_same_bits_each_time(library: ctypes.CDLL) -> None:
    draw = Draw()
    s, y, w, g = draw.normal(60_000), draw.labels(2, 60_000).bool(), draw.positive(60_000), draw.labels(50, 60_000)
    first = host(library, s, y, w, g, 50, 1.0)
    for _ in range(5):
        same(host(library, s, y, w, g, 50, 1.0), first, "again")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    for n in (0, 1, 1000, 200_000):
        s, y, w, g = problem(n).values()
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            counts, sums = (s.to(dtype), y, g, 7), (s.to(dtype), y, w, g, 7, 0.3)
            classes = (torch.stack([s, -s, s * s], 1).to(dtype), g % 3, w)
            same(
                ops.roc_auc_counts(*(a.cuda() if isinstance(a, Tensor) else a for a in counts)).cpu(), ops.roc_auc_counts(*counts), "counts"
            )
            for op, arguments in ((ops.roc_auc_sums, sums), (ops.roc_auc_class_sums, classes)):
                got = op(*(a.cuda() if isinstance(a, Tensor) else a for a in arguments))
                torch.testing.assert_close(got, op(*arguments), rtol=1e-12, atol=1e-12, check_device=False)
