"""The GPU form of Betti matching (csrc/algo/betti_matching.h), compiled for Thrust's host backend and run here against the CPU kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from measure import Draw, same
from test_roc_auc_algo import address, compiled
from torch import Tensor

STORED = sorted((Path(__file__).parent / "data" / "betti").glob("d[12]*.npz"))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool)
INF, NAN = float("inf"), float("nan")
ops = torch.ops.nearlinear


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("betti_matching", tmp_path_factory.mktemp("algo"))


def sizes(f: Tensor) -> list[ctypes.c_int64]:
    """Images, rows, columns and dimensions."""
    n, *side = f.shape
    return [ctypes.c_int64(x) for x in (n, 1 if len(side) == 1 else side[0], side[-1], len(side))]


def widened(x: Tensor) -> Tensor:
    """What csrc/cuda/betti_matching.cu hands on."""
    return (x if x.dtype == torch.float64 else x.float()).contiguous()


def host(library: ctypes.CDLL, f: Tensor, g: Tensor | None, dims: list[int], superlevel: bool = False, positive: bool = False
) -> tuple[Tensor, ...]:  # fmt: skip
    """The result of betti_matching, or of persistence_barcode without ``g``."""
    nd = f.dim() - 1
    tables = [torch.full((f.numel() * nd, width), -7) for width in (4, 2, 2)]
    offsets = torch.full((len(f) * nd + 1, 3) if g is not None else (len(f) * nd + 1,), -7)
    a, b = widened(f), None if g is None else widened(g)
    nan = torch.zeros(1, dtype=torch.int64)
    function = getattr(library, f"bars_f{8 * a.element_size()}")
    function.restype = ctypes.c_int64
    flags = (ctypes.c_int64(sum(1 << d for d in dims)), ctypes.c_bool(superlevel), ctypes.c_bool(positive))
    assert (
        function(
            address(a), address(b), ctypes.c_bool(g is not None), *sizes(f), *flags, *map(address, tables), address(offsets), address(nan)
        )
        >= 0
    )
    assert int(nan) == -1  # none
    if g is None:
        return tables[1][: offsets[-1]], offsets
    return *(t[:end] for t, end in zip(tables, offsets[-1], strict=True)), offsets


def agree(library: ctypes.CDLL, f: Tensor, g: Tensor, superlevel: bool = False) -> None:
    nd = f.dim() - 1
    for dims in [[*range(nd)], *([[0], [1]] if nd == 2 else [])]:
        for positive in (False, True):
            arguments = (f, g, dims, superlevel, positive)
            same(host(library, *arguments), ops.betti_matching(*arguments), f"{tuple(f.shape)}, {dims}, positive={positive}")
        same(host(library, f, None, dims, superlevel), ops.persistence_barcode(f, dims, superlevel), f"barcode of {tuple(f.shape)}, {dims}")


def images(draw: Draw, levels: int, *shape: int) -> Tensor:
    return draw.labels(levels, *shape).double() / 16 if levels else draw.normal(*shape)


def smooth(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(x[:, None], 5, 1, 2, count_include_pad=False)[:, 0]


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_stored_pairs(library: ctypes.CDLL, path: Path, dtype: torch.dtype) -> None:
    data = np.load(path)
    names = sorted({key.rsplit("/", 1)[0] for key in data.files})
    assert names
    for name in names:
        f, g = (torch.from_numpy(data[f"{name}/{side}"])[None].to(dtype) for side in "fg")
        agree(library, f, g)


@pytest.mark.parametrize("levels", [2, 3, 8, 0])
@pytest.mark.parametrize("other", [2, 5, 0])
def test_small_pictures(library: ctypes.CDLL, levels: int, other: int) -> None:
    """Ties of all kinds; the images of a batch differ, and so do the sides of the pictures."""
    for seed in range(30):
        draw = Draw(seed)
        rows, columns = (int(x) for x in draw.labels(9, 2) + 1)
        shape = (3, rows, columns) if seed % 6 else (3, rows * columns)
        agree(library, images(draw, levels, *shape), images(draw, other, *shape), superlevel=seed % 2 == 1)


def larger(n: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    draw = Draw(n)
    a, b = draw.normal(2, n, n), draw.normal(2, n, n)
    soft = smooth(smooth(a))
    flat, ramp = torch.zeros(2, n, n, dtype=torch.float64), torch.arange(2.0 * n * n, dtype=torch.float64).view(2, n, n)
    comb = (torch.arange(n) % 2 * (torch.arange(n)[:, None] < n - 1)).double().expand(2, n, n)
    yield "noise", a, b
    yield "soft", soft + 0.02 * b, (soft > 0.1).double()
    yield "binary", (soft > 0).double(), (soft > 0.1).double()
    yield "flat", flat, a
    yield "ramp", ramp, a
    yield "falling", -ramp, b
    yield "comb", comb, soft
    yield "checkerboard", ((torch.arange(n) + torch.arange(n)[:, None]) % 2).double().expand(2, n, n), a


@pytest.mark.parametrize(("n", "dtype"), [(33, torch.float64), (96, torch.float32)])
def test_larger_pictures(library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
    """Long chains of hooks, and cells that enter their basin late: a flat picture has one basin."""
    for name, f, g in larger(n):
        for one, other in ((f, g), (g, f)):
            agree(library, one.to(dtype), other.to(dtype), superlevel=name == "soft")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_dtypes(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    draw = Draw()
    f, g = (draw.labels(2 if dtype == torch.bool else 200, 4, 17, 13).to(dtype) for _ in range(2))
    for superlevel in (False, True):
        agree(library, f, g, superlevel)


def test_values_at_the_ends(library: ctypes.CDLL) -> None:
    """Signed zeros are one value, subnormals are not; cells at the last value never enter if it is infinite."""
    values = torch.tensor([-INF, INF, 0.0, -0.0, 1e-45, -1e-45, 1.0, INF])
    for seed in range(20):
        draw = Draw(seed)
        f, g = (values[draw.labels(8, 2, 6, 7)] for _ in range(2))
        for dtype in (torch.float32, torch.float64):
            agree(library, f.to(dtype), g.to(dtype), superlevel=seed % 2 == 1)


def test_empty_batch_and_single_pixels(library: ctypes.CDLL) -> None:
    for shape in ((0, 4, 4), (0, 5), (3, 1, 1), (3, 1), (2, 1, 9), (2, 9, 1), (2, 2, 2)):
        draw = Draw(1)
        agree(library, images(draw, 3, *shape), images(draw, 3, *shape))
        assert_loss(library, images(draw, 3, *shape), images(draw, 3, *shape), [1.0, 2.0, 3.0] * (len(shape) - 1))


Loss = tuple[Tensor, Tensor, Tensor]


def host_loss(library: ctypes.CDLL, f: Tensor, g: Tensor, weights: list[float], superlevel: bool = False, positive: bool = False,
    min_persistence: float = 0.0, push: bool = False, essential: bool = False,
) -> Loss:  # fmt: skip
    a, b = widened(f), widened(g)
    out, d_input, d_target = torch.full((len(f),), -7, dtype=a.dtype), torch.full_like(a, -7), torch.full_like(b, -7)
    options = torch.tensor([*weights, *[0.0] * (6 - len(weights)), min_persistence], dtype=torch.float64)
    function = getattr(library, f"loss_f{8 * a.element_size()}")
    function.restype = ctypes.c_int64
    flags = [ctypes.c_bool(x) for x in (superlevel, positive, push, essential)]
    assert function(address(a), address(b), *sizes(f), address(options), *flags, address(out), address(d_input), address(d_target)) >= 0
    return out, d_input.to(f.dtype), d_target.to(g.dtype)


def close(got: Loss, expected: Loss) -> None:
    """Both add in float64 and round once, in orders of their own."""
    for a, b in zip(got, expected, strict=True):
        eps = torch.finfo(a.dtype).eps
        torch.testing.assert_close(a, b, rtol=4 * eps, atol=1e-14 * float(b.abs().max()) if b.numel() else 0.0)


def assert_loss(library: ctypes.CDLL, f: Tensor, g: Tensor, weights: list[float], *options: bool | float) -> None:
    given = options or (False, False, 0.0, False, False)
    close(host_loss(library, f, g, weights, *given), ops.betti_matching_loss(f, g, weights, *given, True, True))


@pytest.mark.parametrize("dtype", DTYPES[:4], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("levels", [0, 6])
def test_loss(library: ctypes.CDLL, levels: int, dtype: torch.dtype) -> None:
    """Every option, weights of 0 among them, both gradients; levels: a pixel is the end of several bars."""
    for seed in range(24):
        draw = Draw(seed)
        shape = (3, 11, 13) if seed % 6 else (3, 60)
        f, g = (images(draw, levels, *shape).to(dtype) for _ in range(2))
        weights = (draw.labels(4, 3 * (len(shape) - 1)).double() / 2).tolist()
        superlevel, positive, push, essential = (seed >> bit & 1 == 1 for bit in range(4))
        assert_loss(library, f, g, weights, superlevel, positive, 0.25 if seed % 3 else 0.0, push, essential)


def test_loss_of_larger_pictures(library: ctypes.CDLL) -> None:
    """More cells than a tile of tiles."""
    for _, f, g in larger(96):
        assert_loss(library, f, g, [0.5, 1.0, 2.0, 1.5, 0.25, 1.0], True, False, 0.0, False, True)


def test_nan_stays_in_its_image(library: ctypes.CDLL) -> None:
    draw = Draw()
    f, g = draw.normal(4, 9, 8), draw.normal(4, 9, 8)
    f[1, 3, 2] = g[2, 0, 0] = g[2, 8, 7] = NAN
    for dtype in (torch.float32, torch.float64):
        for superlevel in (False, True):
            got = host_loss(library, f.to(dtype), g.to(dtype), [1.0] * 6, superlevel, essential=True)
            for k in range(4):
                one = tuple(t[k : k + 1] for t in got)
                if k in (1, 2):
                    assert one[0].isnan().all()
                    assert not one[1].any()
                    assert not one[2].any()
                else:
                    pair = (f[k : k + 1].to(dtype), g[k : k + 1].to(dtype))
                    close(one, ops.betti_matching_loss(*pair, [1.0] * 6, superlevel, False, 0.0, False, True, True, True))


def test_the_same_bits_each_time_and_at_each_place(library: ctypes.CDLL) -> None:
    draw = Draw()
    f, g = draw.normal(6, 64, 64), draw.labels(2, 6, 64, 64).double()
    first = host_loss(library, f, g, [1.0] * 6)
    for _ in range(3):
        same(host_loss(library, f, g, [1.0] * 6), first, "again")
    order = torch.tensor([3, 0, 5])
    same(host_loss(library, f[order], g[order], [1.0] * 6), tuple(t[order] for t in first), "elsewhere")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    for name, f, g in larger(96):
        for dtype in DTYPES[:5]:
            a, b = (t.clamp(min=0).mul(8).to(dtype) if dtype == torch.uint8 else t.to(dtype) for t in (f, g))
            for positive in (False, True):
                got = ops.betti_matching(a.cuda(), b.cuda(), [0, 1], False, positive)
                same(tuple(t.cpu() for t in got), ops.betti_matching(a, b, [0, 1], False, positive), name)
            got = ops.persistence_barcode(a.cuda(), [0, 1], True)
            same(tuple(t.cpu() for t in got), ops.persistence_barcode(a, [0, 1], True), name)
            if dtype != torch.uint8:
                arguments = ([1.0, 0.5, 2.0] * 2, True, False, 0.1, False, True, True, True)
                loss = ops.betti_matching_loss(a.cuda(), b.cuda(), *arguments)
                close(tuple(t.cpu() for t in loss), ops.betti_matching_loss(a, b, *arguments))
