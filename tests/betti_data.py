"""Images for the tests of Betti matching: stored cases, small random pairs, and the public loss on top of the definition."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nearlinear.reference import betti_matching as reference
from torch import Tensor

STORED = Path(__file__).parent / "data" / "betti"
KINDS = ("distinct", "levels", "binary", "soft_and_binary", "near", "identical", "infinite")


def definition(
    input: Tensor, target: Tensor, *, filtration: str = "superlevel", pad_value: float | None = None,
    push_unmatched_to: str = "diagonal", matched_weight: float = 1.0, unmatched_input_weight: float = 1.0,
    include_unmatched_target: bool = True, dim_weight: Sequence[float] | None = None, min_persistence: float = 0.0,
    essential: bool = False, image_intervals: str = "all", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """The options of nearlinear.betti_matching_loss that are not a map of the images, by the definition of its op."""
    nd, lead = input.dim() - 2, input.shape[:2]
    x, y = (image.flatten(0, 1) for image in (input, target.to(input.dtype)))
    if pad_value is not None:
        x, y = (F.pad(image, [1] * 2 * nd, value=pad_value) for image in (x, y))
    factors = (matched_weight, unmatched_input_weight, float(include_unmatched_target))
    weights = [w * factor for w in dim_weight or [1.0] * nd for factor in factors]
    levels = {"superlevel": [True], "sublevel": [False], "both": [True, False]}[filtration]
    rest = (image_intervals == "positive", min_persistence, push_unmatched_to == "opposite", essential, False, False)
    images = sum(reference.betti_matching_loss(x, y, weights, level, *rest)[0] for level in levels) / len(levels)
    images = images.view(lead)
    return images if reduction == "none" else getattr(images, reduction)()


def pair(kind: str, shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two stacks of images; values that half precision holds, so that a dtype changes nothing."""
    draw = torch.Generator().manual_seed(seed)
    count = 2 * torch.Size(shape).numel() // shape[0]
    both = torch.stack([torch.randperm(count, generator=draw) for _ in range(shape[0])]).view(shape[0], 2, *shape[1:]) / 256
    f, g = both.unbind(1)
    if kind == "levels":
        f, g = ((8 * 256 / count * image).floor().div(4).remainder(1) - 0.5 for image in (f, g))
        f = torch.where(f == 0, -0.0, f)
    if kind in ("binary", "soft_and_binary"):
        g = (g > g.flatten(1).median(1).values.view(-1, *[1] * (len(shape) - 1))).float()
        f = f if kind == "soft_and_binary" else (f > 0.4 * count / 256).float()
    if kind == "near":
        f = g + torch.randint(-3, 4, f.shape, generator=draw) / 256
    if kind == "identical":
        f = g.clone()
    if kind == "infinite":
        f, g = (x.masked_fill(torch.rand(x.shape, generator=draw) < 0.2, torch.inf) for x in (f, g))
    return f.to(dtype), g.to(dtype)


def groups(tables: Sequence[Tensor], offsets: Tensor) -> list[Counter[tuple[int, ...]]]:
    """Rows of every image, dimension and table as a multiset."""
    found = []
    for table, starts in zip(tables, offsets.view(len(offsets), -1).unbind(1), strict=True):
        rows = [tuple(row) for row in table.tolist()]
        found += [Counter(rows[begin:end]) for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    return found


@functools.cache
def index() -> list[dict[str, Any]]:
    return json.loads((STORED / "index.json").read_text())["cases"]


def stored(record: dict[str, Any], folder: Path = STORED) -> tuple[Tensor, Tensor, list[Counter[tuple[int, ...]]]]:
    """Input, target, and the answer in the form of :func:`groups` for one image."""
    with np.load(folder / record["file"]) as data:
        name, shape = record["name"], record["shape"]
        f, g = (torch.from_numpy(data[f"{name}/{key}"]) for key in "fg")
        answer = []
        for key in ("m{}", "u0_{}", "u1_{}"):
            for dim in range(len(shape)):
                rows = data[f"{name}/{key.format(dim)}"].astype(np.int64)
                flat = np.ravel_multi_index(tuple(np.moveaxis(rows, -1, 0)), shape) if len(rows) else rows[..., 0]
                answer.append(Counter(map(tuple, flat.tolist())))
    return f, g, answer
