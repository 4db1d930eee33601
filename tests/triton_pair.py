"""The Triton launchers of pair tiles on CPU tensors: against the definition in float64, and the CPU kernels for the gradient. Collected by
test_triton_interpreter.py, with TRITON_INTERPRET set."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nearlinear.reference import pair_loss as reference
from nearlinear.triton_kernels import pair_loss
from triton_oracle import MARKS, poison  # noqa: F401  a fixture

pytestmark = MARKS
ops = torch.ops.nearlinear
SCALE = [3.0, -2.0]
CASES: dict[str, dict[str, Any]] = {
    "hard": {},
    "limited": {"limited": True, "self_column": 0, "ends": 2},
    "soft": {"soft": True, "limited": True, "logit_map": ("arcosh", [1.0])},
    "shifted": {"self_column": -3, "ends": 2, "logit_map": ("scale", [-1.0]), "shape": (9, 5)},
    "blocks": {"limited": True, "self_column": 5, "ends": 2, "logit_map": ("power", [1.0, 0.1]), "shape": (3, 1100)},
    "no columns": {"shape": (2, 0)},
    "no rows": {"shape": (0, 2)},
}


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    scale = float(want[want.isfinite()].abs().max()) if want.isfinite().any() else 1.0
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * max(scale, 1.0), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_launchers(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    case = {"shape": (6, 7), "limited": False, "soft": False, "self_column": None, "ends": 1, "logit_map": ("identity", []), **CASES[name]}
    rows, columns = case["shape"]
    tile = torch.rand(rows, columns, dtype=dtype)
    labels = torch.randint(3, (rows,)), torch.randint(3, (columns,))
    mixture = (torch.randint(3, (columns,)), torch.rand(columns, dtype=dtype)) if case["soft"] else (None, None)
    limit = torch.tensor([[0.7], [-0.2]], dtype=dtype).expand(2, rows).contiguous() if case["limited"] else None
    rest = (case["self_column"], *case["logit_map"])
    wide = [None if t is None else t.double() if t.is_floating_point() else t for t in (*mixture, limit)]
    got = pair_loss.pair_tile_stats(tile, *labels, *mixture, limit, *rest, SCALE)
    for value, want in zip(got, reference.pair_tile_stats(tile.double(), *labels, *wide, *rest, SCALE), strict=True):
        close(value, want, dtype)
    terms = [torch.rand(4 if case["limited"] else 3, 2, n, dtype=dtype) for n in (rows, columns)]
    arguments = (*labels, *mixture, terms[0], terms[1] if case["ends"] == 2 else None, *rest, SCALE)
    ours, theirs = tile.clone(), tile.clone()
    pair_loss.pair_tile_stats_backward_(ours, *arguments)
    ops.pair_tile_stats_backward_(theirs, *arguments)
    close(ours, theirs, dtype)
    value, index = pair_loss.pair_tile_extremes(tile, *labels, *rest)
    want_value, want_index = reference.pair_tile_extremes(tile.double(), *labels, *rest)
    close(value, want_value, dtype)
    assert torch.equal(index, want_index)


def test_ties_and_nan() -> None:
    tile = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 2.0, math.nan, 4.0, 5.0]])
    labels = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 0, 1, 1, 0])
    value, index = pair_loss.pair_tile_extremes(tile, *labels, 0, "identity", [])
    assert index.tolist() == [[1, -1], [2, -1]]
    assert value[:, 0].tolist() == [1.0, 1.0]
    assert value[:, 1].isnan().all()
    lse, total, _ = pair_loss.pair_tile_stats(tile, *labels, None, None, None, 0, "identity", [], SCALE)
    assert lse[1, 1].isnan()
    assert total[1, 1].isnan()
    assert lse[:, 0].isfinite().all()


def test_errors_are_those_of_the_cpu_kernel() -> None:
    tile, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for change, text in (
        ({0: tile.T}, "tile must be contiguous"), ({0: tile.half()}, "tile must be float32 or float64"),
        ({1: y.int()}, "labels must be int64"), ({1: torch.zeros(3, dtype=torch.int64)}, "labels must have one element per row"),
        ({4: tile[0]}, "must be given together"),
        ({5: tile[0]}, "two elements per row"), ({9: [1.0]}, "scale must have two elements"), ({7: "cube"}, "logit_map must be"),
    ):  # fmt: skip
        arguments = [tile, y, torch.zeros(3, dtype=torch.int64), None, None, None, None, "identity", [], SCALE]
        for place, value in change.items():
            arguments[place] = value
        for launcher in (pair_loss.pair_tile_stats, ops.pair_tile_stats):
            with pytest.raises(RuntimeError, match=text):
                launcher(*arguments)
