"""How a fused linear head cuts its (rows x classes) scores into tiles, and what that costs in memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from .embeddings import Plain
from .score_maps import ScoreMap

__all__ = ["DEFAULT_WORKSPACE_BYTES", "Plan", "plan"]

DEFAULT_WORKSPACE_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
# A tile of R rows costs (1 + HALF_SPEED / R) times the same product at full size, and alike in classes: the weight is read again, and its
# gradient read and written again, for every tile of rows. CPU: measured, (2048, 512, 32000) float32; CUDA: 2 F / BW of an H100, computed.
HALF_SPEED = {"cpu": 35, "cuda": 533}
PANEL = {"cpu": 1 << 19, "cuda": 1 << 23}  # numbers of the class vectors that an embedding takes at a time
WORTH = 1.05  # a larger workspace must save this much time
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Plan:
    """``rows`` x ``classes`` scores at a time. With all classes in one tile the scores live until their gradient replaces them and a
    training step is 3 matrix products; else they are computed twice, and it is 4. ``workspace_bytes`` is everything allocated beside
    the results."""

    rows: int
    classes: int
    products: int
    workspace_bytes: int


def plan(
    num_rows: int,
    num_classes: int,
    num_features: int,
    dtype: torch.dtype,
    *,
    device_type: str = "cpu",
    score_map: ScoreMap | None = None,
    soft_target: bool = False,
    max_workspace_bytes: int | None = None,
) -> Plan:
    """The fastest tiling by the chunk law whose workspace keeps to ``max_workspace_bytes``; of nearly equal ones the smallest.

    Args:
        num_rows, num_classes, num_features: N, V, D.
        dtype: of features and weight.
        device_type: ``"cpu"`` or ``"cuda"``.
        score_map: record of :mod:`nearlinear.score_maps`; None is the plain dot product.
        soft_target: the target is class probabilities: all classes in one tile, and its gradient in a tile of its own.
        max_workspace_bytes: limit; None is 256 MiB on CPU and 1 GiB on CUDA.

    Raises:
        ValueError: not even the smallest tile fits, with the bytes it needs.
    """
    limit = DEFAULT_WORKSPACE_BYTES[device_type] if max_workspace_bytes is None else max_workspace_bytes
    n, v = max(num_rows, 1), max(num_classes, 1)
    sizes = {(-(-n // a), -(-v // b)) for a, b in product(_SPLITS, _SPLITS) if a <= n and b <= v} | {(1, 1), (1, v)}
    sizes = {(rows, classes) for rows, classes in sizes if classes == v or not soft_target}
    found = []
    for rows, classes in sizes:
        products = 3 if classes == v else 4
        law = HALF_SPEED[device_type]
        time = products * (1 + law / rows) * (1 + law / classes)
        size = workspace(rows, classes, n, v, num_features, dtype, device_type, score_map, soft_target)
        found.append((time, Plan(rows, classes, products, size)))
    fitting = [(time, p) for time, p in found if p.workspace_bytes <= limit]
    if not fitting:
        least = min(p.workspace_bytes for _, p in found)
        raise ValueError(f"linear_cross_entropy: max_workspace_bytes must be >= {least} for N={n}, V={v}, D={num_features}, got {limit}")
    fastest = min(time for time, _ in fitting)
    return min((p for time, p in fitting if time <= WORTH * fastest), key=lambda p: p.workspace_bytes)


def workspace(
    rows: int, classes: int, n: int, v: int, features: int, dtype: torch.dtype, device_type: str, score_map: ScoreMap | None,
    soft_target: bool = False,
) -> int:  # fmt: skip
    """Bytes beside the results: the tile, converted or embedded operands, the float32 accumulator of a 16-bit weight, row vectors."""
    wide = 8 if dtype == torch.float64 else 4
    half = dtype.itemsize == 2
    embedding = Plain() if score_map is None else score_map.embedding
    on_half = half and embedding.identity and device_type == "cuda"  # 16-bit operands, float32 products
    total = rows * classes * (wide * embedding.buffers + (2 if on_half else 0))
    if soft_target:  # the gradients of scores and target
        total += 2 * rows * classes * wide
    row_bytes = rows * (features + embedding.extra) * wide
    if embedding.identity or embedding.metric is not None:
        total += 2 * row_bytes  # a gathered or converted copy of the rows, and their gradient
    else:
        # rows, embedded rows, their gradient; then what that passes through, or temporaries of a panel, or those before there are rows
        panel_bytes = panel_rows(classes, features, device_type) * features * wide
        total += max(6 * row_bytes, 3 * row_bytes + panel_bytes, 2 * panel_bytes)
        total += 2 * (1 + embedding.extra + embedding.holds_bias) * v * wide
    if half and not on_half:
        total += rows * features * 2  # the rows' gradient converted
    # the classes' copy, and their gradient where it has another dtype than the result or comes from the kernel of a metric
    copies = 2 if embedding.metric is not None else (half and not on_half) + (half and rows >= n)
    total += copies * classes * features * wide
    if half and rows < n:
        total += v * features * wide
    return total + 24 * 8 * n


def panel_rows(classes: int, features: int, device_type: str) -> int:
    """Class vectors that an embedding takes at a time, so that its temporaries stay small."""
    return max(1, min(classes, PANEL[device_type] // max(features, 1)))
