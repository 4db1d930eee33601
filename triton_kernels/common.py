"""What the Triton kernels of all families share: accurate scalar functions, the layout of rows as tiles, and the launch.

Rows are seen as ``outer`` groups of ``lanes`` rows: element (row, class) of a tensor lies at ``outer * stride_o + lane * stride_l +
class * stride_v``. A program owns BN lanes of one group and walks the classes in blocks of BV. Every offset is int64: the program id
is cast before it is multiplied. Helpers are plain ``tl``, because libdevice does not run in the interpreter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def log1p(x):
    """log(1 + x), x >= 0: the rounding of 1 + x is divided out again."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * (x / (u - 1)))


@triton.jit
def expm1(x):
    """e^x - 1, x <= 0: near 0 the error of u = e^x is divided out by log u, and below -1 nothing cancels."""
    u = tl.exp(x)
    near = tl.where(u == 1, x, (u - 1) * (x / tl.log(u)))
    return tl.where(x < -1, u - 1, near)


@triton.jit
def tanh(x):
    """tanh x and its slope, each with full relative accuracy: 1 - t^2 would cancel where t nears 1, and 1 - e where x nears 0."""
    a = tl.abs(x)
    e = tl.exp(-2 * a)
    slope = 4 * e / ((1 + e) * (1 + e))
    if x.dtype == tl.float64:
        t = -expm1(-2 * a) / (1 + e)
    else:  # an odd polynomial near 0 is cheaper than expm1
        s = x * x
        p = -1382.0 / 155925
        p = p * s + 62.0 / 2835
        p = p * s - 17.0 / 315
        p = p * s + 2.0 / 15
        p = p * s - 1.0 / 3
        t = tl.where(a < 0.25, a + a * s * p, (1 - e) / (1 + e))
    return tl.where(x < 0, -t, t), slope


@triton.jit
def lowest(op: tl.constexpr):
    """Most negative finite number of the dtype ``op``."""
    return -3.4028234663852886e38 if op == tl.float32 else -1.7976931348623157e308


@triton.jit
def row_range(i_tile, tiles, lanes, BN: tl.constexpr):
    """Group of a tile of rows, its lanes [BN] and their mask [BN], in int64; ``tiles`` tiles make a group."""
    i_o = (i_tile // tiles).to(tl.int64)
    i_l = (i_tile % tiles).to(tl.int64) * BN + tl.arange(0, BN)
    return i_o, i_l, i_l < lanes


def dense(tensor: Tensor) -> Tensor:
    """Elements along the last dimension side by side; a copy where they are not."""
    return tensor if tensor.dim() and tensor.stride(-1) == 1 else tensor.contiguous()


def float_pair(value: float) -> tuple[float, float]:
    """A double as two float32, the form in which Triton takes scalars: 48 bits survive, enough for the float64 kernels."""
    high = ctypes.c_float(value).value
    return high, ctypes.c_float(value - high).value


class Rows(NamedTuple):
    """Rows of tensors [N, V] or [N, V, P] as groups of lanes; ``strides`` has (stride_o, stride_v, stride_l) per tensor."""

    outer: int
    lanes: int
    strides: list[tuple[int, int, int]]


def layout_rows(*tensors: Tensor) -> Rows:
    """Tensors of one shape; images become one long group of rows where the strides of all of them allow it."""
    if tensors[0].dim() == 2:
        return Rows(1, tensors[0].shape[0], [(0, t.stride(1), t.stride(0)) for t in tensors])
    batch, _, pixels = tensors[0].shape
    if pixels == 1:
        return Rows(1, batch, [(0, t.stride(1), t.stride(0)) for t in tensors])
    if all(t.stride(0) == pixels * t.stride(2) for t in tensors):
        return Rows(1, batch * pixels, [(0, t.stride(1), t.stride(2)) for t in tensors])
    return Rows(batch, pixels, [(t.stride(0), t.stride(1), t.stride(2)) for t in tensors])


class Tile(NamedTuple):
    """BN rows times BV classes in registers; a program of a backward kernel walks CHUNK classes."""

    BN: int
    BV: int
    CHUNK: int
    num_warps: int


# classes up to which a tile serves, where classes are contiguous or as close as anything is. 4 or 8 elements a thread: up to 16 bytes of a
# half dtype, and with an int64 address for each no registers spill
ROW_TILES = ((16, Tile(32, 16, 64, 4)), (64, Tile(16, 64, 256, 4)), (2048, Tile(8, 256, 1024, 8)))
LONG_TILE = Tile(1, 2048, 8192, 8)
# rows contiguous and classes strided: the longer a run of rows, the fewer cache lines are read in part
LANE_TILE = Tile(128, 4, 64, 4)
LANE_TILE_FROM = 64  # lanes; with fewer, most of the tile would be masked


def choose_tile(rows: Rows, num_classes: int, dtype: torch.dtype, logits: int = 1) -> tuple[Tile, int, int]:
    """Tile by shape, strides, dtype and number of logits a class has; its number per group of rows, and chunks of classes. The first
    tensor's strides count."""
    _, stride_v, stride_l = rows.strides[0]
    if 0 < stride_l < stride_v and rows.lanes > 1:
        tile = LANE_TILE if rows.lanes >= LANE_TILE_FROM else ROW_TILES[1][1]
    else:
        tile = next((tile for limit, tile in ROW_TILES if num_classes <= limit), LONG_TILE)
    if dtype == torch.float64:  # two registers an element
        tile = tile._replace(BN=tile.BN // 2) if tile.BN > 1 else tile._replace(BV=tile.BV // 2)
    elif logits > 1 and tile.BN > 1:  # row values and classes of each; a tile of one row keeps its 16-byte loads
        tile = tile._replace(BN=tile.BN // 2)
    return tile, triton.cdiv(rows.lanes, tile.BN), triton.cdiv(num_classes, tile.CHUNK)


def launch(kernel: Any, programs: int, input: Tensor, arguments: Sequence[Any], num_warps: int, **constants: Any) -> None:
    """Run ``programs`` programs along x, the only axis without a limit of 65535, on the device and the current stream of ``input``."""
    if programs == 0:
        return
    with torch.cuda.device_of(input):
        kernel[(programs,)](*arguments, num_warps=num_warps, num_stages=1, enable_fp_fusion=True, **constants)
