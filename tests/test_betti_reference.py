"""Pairs and losses against stored runs of the published programs, and against the definition on small images.

Stored: coordinates by Betti-Matching-3D (commit 50d7379), loss and gradients by topolosses 0.2.0; tests/data/betti/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nearlinear
import numpy as np
import pytest
import torch
from betti_data import KINDS, STORED, groups, index, pair, stored
from nearlinear.reference import betti_matching as reference
from torch import Tensor

ops = torch.ops.nearlinear
PICTURES = Path(__file__).parents[2] / "shared" / "data" / "betti"  # third-party pictures, not part of this repository
HERE = [record for record in index() if record["group"] != "d2_skimage"]
RUNS = json.loads((STORED / "loss_topolosses.json").read_text())["runs"]


def check(record: dict[str, Any], folder: Path = STORED) -> None:
    """Coordinates exactly, in both widths; the loss and each of its terms."""
    f, g, answer = stored(record, folder)
    nd = f.dim()
    for dtype in (torch.float32, torch.float64):
        x, y = f[None].to(dtype), g[None].to(dtype)
        *tables, offsets = ops.betti_matching(x, y, list(range(nd)), False, False)
        assert groups(tables, offsets) == answer
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for dim, terms in enumerate(record["loss_terms_per_dim"]):
            for kind, term in enumerate(terms.values()):
                weights = [float(k == 3 * dim + kind) for k in range(3 * nd)]
                loss = ops.betti_matching_loss(x, y, weights, False, False, 0.0, False, False, False, False)[0]
                assert float(loss) == pytest.approx(term, rel=tolerance, abs=float(torch.finfo(dtype).smallest_normal) * tolerance)


@pytest.mark.parametrize("record", HERE, ids=lambda r: f"{r['group']}-{r['name']}")
def test_stored_pairs(record: dict[str, Any]) -> None:
    check(record)


def test_stored_pairs_of_pictures() -> None:
    if not (PICTURES / "d2_skimage.npz").exists():
        pytest.skip("scikit-image's sample pictures are not part of this repository")
    for record in index():
        if record["group"] == "d2_skimage":
            check(record, PICTURES)


def test_all_groups_are_stored() -> None:
    assert len(HERE) == 98
    assert {len(record["shape"]) for record in HERE} == {1, 2, 3}


def probabilities(run: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """p, target, and the stored gradient for p."""
    with np.load(STORED / "loss_topolosses.npz") as data:
        logits, target = (torch.from_numpy(data[f"{run['data']}/{name}"]) for name in ("logits", "target"))
        name = f"{run['data']}/{run['config']}"
        place, value = (torch.from_numpy(data[f"{name}/grad_prob_nz_{part}"]) for part in ("index", "value"))
    gradient = torch.zeros(logits.numel()).index_put((place.long(),), value)
    p = logits.sigmoid() if run["activation"] == "sigmoid" else logits.softmax(1)
    return p.requires_grad_(), target.float(), gradient.view_as(p)


def options(run: dict[str, Any]) -> dict[str, Any]:
    """Our words for the options of a run, without its filtration and frame."""
    matched, unmatched = run["kwargs"].get("topology_weights", (1.0, 1.0))
    return {
        "matched_weight": matched, "unmatched_input_weight": unmatched,
        "min_persistence": run["kwargs"].get("barcode_length_threshold", 0.0),
        "push_unmatched_to": "opposite" if run["kwargs"].get("push_unmatched_to_1_0") else "diagonal",
    }  # fmt: skip


def agrees(run: dict[str, Any], loss: Tensor, p: Tensor, gradient: Tensor) -> None:
    assert float(loss.detach()) == pytest.approx(run["loss"], rel=1e-5)
    got = torch.autograd.grad(loss, p)[0]
    assert float((got - gradient).abs().max()) <= 1e-6 * float(gradient.abs().max())


run_by_run = pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r['data']}-{r['config']}")


@run_by_run
def test_stored_losses_of_complements(run: dict[str, Any]) -> None:
    """Superlevel sets as the published loss takes them: sublevel sets of 1 - p, rounded."""
    p, target, gradient = probabilities(run)
    filtration, frame = run["kwargs"].get("filtration_type", "superlevel"), run["kwargs"].get("sphere", False)
    losses = []
    if filtration != "sublevel":
        losses.append((1 - p, 1 - target, 1.0 if frame else None))
    if filtration != "superlevel":
        losses.append((p, target, 0.0 if frame else None))
    found = [nearlinear.betti_matching_loss(x, y, filtration="sublevel", pad_value=v, **options(run)) for x, y, v in losses]
    agrees(run, sum(found) / len(found), p, gradient)


@run_by_run
def test_stored_losses(run: dict[str, Any]) -> None:
    """The same by the public options. In one data set rounding 1 - p merges two values that are one unit in the last place apart."""
    p, target, gradient = probabilities(run)
    filtration = run["kwargs"].get("filtration_type", "superlevel").replace("bothlevels", "both")
    loss = nearlinear.betti_matching_loss(p, target, filtration=filtration, sphere=run["kwargs"].get("sphere", False), **options(run))
    if run["data"] != "B2C3_32":
        agrees(run, loss, p, gradient)
    else:
        assert (1 - p).unique().numel() < p.unique().numel()
        assert float(loss.detach()) == pytest.approx(run["loss"], rel=4e-3)  # pushing charges 2 for the bar that is merged away


SHAPES = {
    1: [(n,) for n in (1, 2, 3, 5, 8, 12, 17, 2, 9, 30)],
    2: [(1, 1), (1, 7), (6, 1), (2, 2), (3, 4), (4, 3), (5, 5), (2, 9), (6, 4), (5, 6)],
    3: [(1, 1, 1), (1, 3, 4), (4, 1, 3), (3, 4, 1), (2, 2, 2), (3, 3, 3), (2, 3, 4), (4, 3, 2), (3, 2, 3), (2, 4, 2)],
}


@pytest.mark.parametrize("positive", [False, True], ids=["all", "positive"])
@pytest.mark.parametrize("nd", SHAPES)
def test_definition(nd: int, positive: bool) -> None:
    """1,000 pairs of images of each number of dimensions: without ties, with many, alike, with infinities."""
    pairs = 0
    for i, shape in enumerate(SHAPES[nd]):
        for j, kind in enumerate(KINDS):
            f, g = pair(kind, (15, *shape), 100 * i + j, torch.float64 if (i + j) % 3 == 0 else torch.float32)
            superlevel = (i + j) % 2 == 1
            f, g = (-f, -g) if superlevel else (f, g)
            arguments = (f, g, list(range(nd)), superlevel, positive)
            *tables, offsets = ops.betti_matching(*arguments)
            *expected, starts = reference.betti_matching(*arguments)
            assert torch.equal(offsets, starts), (shape, kind)
            assert groups(tables, offsets) == groups(expected, starts), (shape, kind)
            pairs += len(f)
            found, begin = ops.persistence_barcode(f, list(range(nd)), superlevel)
            bars, starts = reference.persistence_barcode(f, list(range(nd)), superlevel)
            assert groups([found], begin) == groups([bars], starts)
    assert pairs >= 1000


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_definition_of_some_dimensions(dims: tuple[int, ...]) -> None:
    for nd in (2, 3):
        wanted = [d for d in dims if d < nd]
        f, g = pair("distinct", (20, *(3, 4, 3)[:nd]), sum(dims))
        *tables, offsets = ops.betti_matching(f, g, wanted, False, False)
        *expected, starts = reference.betti_matching(f, g, wanted, False, False)
        assert groups(tables, offsets) == groups(expected, starts)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_metrics_against_ranks(nd: int) -> None:
    """Betti numbers by the ranks of boundary matrices, errors by one matching for each pair."""
    for i, shape in enumerate(SHAPES[nd]):
        x, y = pair("binary", (30, *shape), i)
        x, y = (image.view(6, 5, *shape) for image in (x, y))
        assert torch.equal(nearlinear.betti_numbers(x), reference.betti_numbers(x))
        for name in ("betti_number_error", "betti_matching_error"):
            for reduction in ("none", "sum", "mean"):
                got, expected = (getattr(module, name)(x, y, reduction=reduction) for module in (nearlinear, reference))
                assert got.dtype == expected.dtype
                assert torch.equal(got, expected)
        got, expected = (module.betti_matching_error(x, y, essential=True, dims=(0,)) for module in (nearlinear, reference))
        assert torch.equal(got, expected)
