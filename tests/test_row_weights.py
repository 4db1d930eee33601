"""Row weights against their papers' formulas, through the losses that take them."""

from __future__ import annotations

import nearlinear
import pytest
import torch
import torch.nn.functional as F


def test_dataset_equity() -> None:
    torch.manual_seed(0)
    logits, target, p = torch.randn(8, 5).double(), torch.randint(5, (8,)), torch.rand(8).double()
    weight = nearlinear.dataset_equity_weight(p)
    want = sum((1 + (1 - float(p[i])) ** 5) / 2 * F.cross_entropy(logits[i : i + 1], target[i : i + 1]) for i in range(8)) / 8
    torch.testing.assert_close(nearlinear.cross_entropy(logits, target, sample_weight=weight, normalizer=8.0), want)
    assert weight.min() >= 0.5
    with pytest.raises(ValueError, match="dataset_equity_weight: eta must be >= 0, got -1"):
        nearlinear.dataset_equity_weight(p, eta=-1)


@pytest.mark.parametrize("separate", [False, True])
def test_density(separate: bool) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(9, 4).double(), torch.tensor([0, 0, 0, 1, 2, 0, 3, 0, 1])
    rows = F.cross_entropy(logits, target, reduction="none")
    foreground = target > 0
    want = 2 * (1.5 * rows[foreground].sum() / 4 + 0.5 * rows[~foreground].sum() / (5 if separate else 4))
    weight = nearlinear.density_weights(target, alpha=1.5, beta=0.5, gamma=2.0, separate=separate)
    torch.testing.assert_close(nearlinear.cross_entropy(logits, target, sample_weight=weight, reduction="sum"), want)


@pytest.mark.parametrize(("empty", "each"), [("sum", 1.0), ("mean", 1 / 3), ("zero", 0.0)])
def test_no_foreground(empty: str, each: float) -> None:
    assert nearlinear.density_weights(torch.zeros(3, dtype=torch.int64), empty=empty).tolist() == pytest.approx([each] * 3)


def test_message() -> None:
    with pytest.raises(ValueError, match="density_weights: empty must be one of \\['mean', 'sum', 'zero'\\], got 'nan'"):
        nearlinear.density_weights(torch.zeros(3), empty="nan")
