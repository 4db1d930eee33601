"""Betti matching and barcodes of pictures and volumes. The rival for the loss is the program inside topolosses 0.2.0 (Betti-Matching-3D),
with the same lines of torch on its pairs; for barcodes GUDHI (for pictures its rectangle algorithm) and cripser. All of them are optional.

``soft``: a prediction with pixel noise against a mask; ``noise``: two independent images. Timed beside: ``torch.sort`` of the three images
(input, target, the smaller of both), and GUDHI's barcodes of the three.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.reference import betti_matching as reference
from torch import Tensor

from ..registry import Baseline, Case, Sizes, register


def soft(sizes: Sizes, nd: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Blobs about eight pixels wide, their mask, and a prediction that has them with 5 % of pixel noise."""
    n, s = sizes["N"], sizes["S"]
    coarse = torch.randn(n, 2, *[max(s // 8, 2)] * nd, device=device)
    field, other = F.interpolate(coarse, size=[s] * nd, mode={2: "bicubic", 3: "trilinear"}[nd]).split(1, 1)
    p = torch.sigmoid(3 * (field + 0.3 * other) + 0.2 * torch.randn_like(field)) * 0.95 + 0.05 * torch.rand_like(field)
    return p.to(dtype), (field > 0).to(dtype)


def noise(sizes: Sizes, nd: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    p, target = torch.rand(2, sizes["N"], 1, *[sizes["S"]] * nd, dtype=dtype, device=device)
    return p, target


KINDS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = {"soft": soft, "noise": noise}


# ---- rivals


@functools.cache
def published() -> Any:
    """The compiled module of topolosses, without the package around it; None if it is not there."""
    package = importlib.util.find_spec("topolosses")
    folder = Path(package.submodule_search_locations[0]) / "losses/betti_matching/src" if package else Path()
    for path in folder.glob("betti_matching.*.so"):
        loader = ExtensionFileLoader("betti_matching", str(path))
        return importlib.util.module_from_spec(importlib.util.spec_from_loader("betti_matching", loader))
    return None


def topolosses(p: Tensor, target: Tensor) -> Tensor:
    """Superlevel sets as its own loss takes them, by complements; all images in one call, as it asks for."""
    images = [[image.numpy() for image in (1 - x.detach().double()).flatten(0, 1)] for x in (p, target)]
    total = p.new_zeros(())
    for result, x, y in zip(published().compute_matching(*images), p.flatten(0, 1), target.flatten(0, 1), strict=True):

        def values(image: Tensor, part: str, found: Any = result) -> Tensor:
            """Birth and death values of the bars of all dimensions."""
            ends = []
            for end in ("birth", "death"):
                rows = [torch.as_tensor(rows.astype("int64")) for rows in getattr(found, f"{part}_{end}_coordinates") if len(rows)]
                ends.append(image[tuple(torch.cat(rows).t())] if rows else image.new_zeros(0))
            return torch.stack(ends)

        matched = values(x, "input1_matched") - values(y, "input2_matched")
        alone = [values(image, f"input{i}_unmatched").diff(dim=0) for i, image in ((1, x), (2, y))]
        total = total + 2 * matched.square().sum() + sum(bars.square().sum() for bars in alone)
    return total / (p.shape[0] * p.shape[1])


def gudhi_picture(image: Any) -> float:
    """Squared lengths of the bars of superlevel sets. Pixels are squares there, so dimensions are exchanged; a frame makes the outside one
    of them, and adds a bar over the whole range."""
    import numpy as np
    from gudhi.sklearn.cubical_persistence import _persistence_on_rectangle_from_top_cells

    low, high = image.min(), image.max()
    bars = np.concatenate(_persistence_on_rectangle_from_top_cells(np.pad(image, 1, constant_values=low), 0.0))
    lengths = bars[np.isfinite(bars[:, 1])] @ [-1.0, 1.0]
    return float((lengths**2).sum() - (float(high) - float(low)) ** 2)


def gudhi_volume(image: Any) -> float:
    import gudhi
    import numpy as np

    complex_ = gudhi.CubicalComplex(vertices=-image)
    complex_.compute_persistence()
    bars = np.concatenate([complex_.persistence_intervals_in_dimension(d) for d in range(image.ndim)])
    return float(((bars[np.isfinite(bars[:, 1])] @ [-1.0, 1.0]) ** 2).sum())


def cripser_bars(image: Any) -> float:
    import cripser

    bars = cripser.computePH(-image.astype("float64"), maxdim=image.ndim - 1)
    return float(((bars[:, 1] - bars[:, 2])[bars[:, 2] < 1e300] ** 2).sum())


def one_by_one(each: Callable[[Any], float]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda p, target: torch.tensor(sum(each(image.numpy()) for image in p.detach().flatten(0, 1)), dtype=torch.float64)


def needs(package: str) -> Callable[[torch.device, torch.dtype], str]:
    def refuse(device: torch.device, dtype: torch.dtype) -> str:
        wanted = ("gudhi", "sklearn") if package == "gudhi" else (package,)  # its rectangle algorithm is behind scikit-learn
        there = all(importlib.util.find_spec(name) for name in wanted) and (package != "topolosses" or published() is not None)
        return "" if there and device.type == "cpu" else f"{package} is not installed, or not for this device"

    return refuse


# ---- cases


def lengths(p: Tensor, found: nearlinear.PersistenceBarcode) -> Tensor:
    values = p.detach().reshape(found.num_images, -1)[found.image[:, None], found.pairs].double()
    return values.diff().square().sum()


def defined_lengths(p: Tensor, target: Tensor) -> Tensor:
    nd = p.dim() - 2
    pairs, offsets = reference.persistence_barcode(p.flatten(0, 1), range(nd), True)
    image = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff()) // nd
    return p.detach().flatten(0, 1).flatten(1)[image[:, None], pairs].diff().square().sum()


def defined_loss(p: Tensor, target: Tensor) -> Tensor:
    weights, x, y = [1.0] * 3 * (p.dim() - 2), p.flatten(0, 1), target.flatten(0, 1)
    loss, _, _ = reference.betti_matching_loss(x, y, weights, True, False, 0.0, False, False, False, False)
    return loss.mean()


def three(p: Tensor, target: Tensor) -> Tensor:
    """Input, target and the comparison image of superlevel sets, pictures (3 N, S, S)."""
    return torch.cat([p, target, torch.maximum(p, target)]).flatten(0, 1)


def yardsticks(nd: int) -> dict[str, Callable[..., object]]:
    found: dict[str, Callable[..., object]] = {"three sorts": lambda p, target: three(p, target).flatten(1).sort()}
    if nd == 2 and not needs("gudhi")(torch.device("cpu"), torch.float32):
        found["gudhi, three barcodes"] = lambda p, target: [gudhi_picture(image) for image in three(p, target).cpu().numpy()]
    return found


def add(op: str, nd: int, kind: str, sizes: Mapping[str, Any], error_side: int) -> None:
    loss = op == "betti_matching_loss"

    def pixels(sizes: Sizes) -> int:
        return sizes["N"] * sizes["S"] ** nd

    def floor(sizes: Sizes, itemsize: int) -> dict[str, int]:
        """The images are read, the gradient is written."""
        return {"fwd": (1 + loss) * itemsize * pixels(sizes), "full": 3 * itemsize * pixels(sizes)}

    def moved(sizes: Sizes, itemsize: int) -> dict[str, int]:
        """Beside these, of each image keys of 4 bytes, written and read, and records of 8 in three passes of a sort."""
        return {which: count + (3 if loss else 1) * 56 * pixels(sizes) for which, count in floor(sizes, itemsize).items()}

    def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        p, target = KINDS[kind](sizes, nd, dtype, device)
        return p.requires_grad_(loss), target

    barcodes = {
        "gudhi": Baseline(one_by_one(gudhi_picture if nd == 2 else gudhi_volume), refuse=needs("gudhi")),
        "cripser": Baseline(one_by_one(cripser_bars), refuse=needs("cripser")),
    }
    register(
        Case(
            family="betti_matching", op=op, name=f"{'picture' if nd == 2 else 'volume'} {kind}{'' if loss else ', bars'}",
            ours=(lambda p, target: nearlinear.betti_matching_loss(p, target)) if loss
            else (lambda p, target: lengths(p, nearlinear.persistence_barcode(p, spatial_dims=nd))),
            definition=defined_loss if loss else defined_lengths,
            baselines={"topolosses": Baseline(topolosses, refuse=needs("topolosses"))} if loss else barcodes,
            inputs=inputs, sizes=sizes, tiny={"N": 2, "S": 8}, bytes=floor, moved=moved, dtypes=(torch.float32,),
            passes=("fwd", "full") if loss else ("fwd",), error_rows={"N": 2, "S": error_side}, yardsticks=yardsticks(nd) if loss else {},
        )
    )  # fmt: skip


PICTURES = {
    "cpu": [*({"N": 1, "S": s} for s in (256, 512, 1024)), {"N": 16, "S": 256}],
    "cuda": [{"N": 16, "S": 256}, {"N": 64, "S": 64}],
    "sweep": [{"N": 1, "S": 2**k} for k in range(6, 13)],
}
VOLUMES = {"cpu": [{"N": 1, "S": s} for s in (32, 64)], "cuda": [], "sweep": [{"N": 1, "S": s} for s in (16, 32, 64)]}
for kind in KINDS:
    add("betti_matching_loss", 2, kind, PICTURES, 24)
    add("betti_matching_loss", 3, kind, VOLUMES, 8)
    add("persistence_barcode", 2, kind, PICTURES, 24)
    add("persistence_barcode", 3, kind, VOLUMES, 8)
