"""Plots of Betti matching: what is drawn, and what is refused."""

from __future__ import annotations

import nearlinear
import pytest
import torch
from torch import Tensor

matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib")
matplotlib.use("agg")


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Two images of a ring with a spot outside; the prediction of the second misses the spot and has another one."""
    target = torch.zeros(2, 1, 7, 9)
    target[:, :, 1:4, 1:4], target[:, :, 2, 2], target[:, :, 5, 7] = 1, 0, 1
    predicted = 0.1 + 0.8 * target
    predicted[1, 0, 5, 7], predicted[1, 0, 0, 6] = 0.1, 0.7
    return predicted, target


def test_the_barcodes_show_every_bar_once(pair: tuple[Tensor, Tensor]) -> None:
    from nearlinear.betti_plots import plot_barcode_matching

    predicted, target = pair
    matching = nearlinear.betti_matching(predicted, target, spatial_dims=2)
    for image, (matched, alone) in enumerate(((2, 0), (1, 2))):
        ax = plot_barcode_matching(matching, predicted, target, image=image)
        bars = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
        assert len(bars) == 2 * matched + alone
        ends = sorted(tuple(sorted(round(float(x), 3) for x in bar)) for bar in bars)
        assert ends == sorted([(0.1, 0.9), (0.0, 1.0)] * matched + [(0.1, 0.7), (0.0, 1.0)] * (alone // 2))
        assert f"{matched} matched, {alone // 2} of the input alone, {alone // 2} of the target alone" in ax.get_title()
    assert len([li for li in plot_barcode_matching(matching, predicted, target, most=0).lines if len(li.get_xdata()) == 2]) == 0


def test_the_pixels_are_those_of_the_matching(pair: tuple[Tensor, Tensor]) -> None:
    from nearlinear.betti_plots import plot_matched_pixels

    predicted, target = pair
    matching = nearlinear.betti_matching(predicted, target, spatial_dims=2)
    left, right = plot_matched_pixels(matching, predicted, target, image=1)

    def births(ax: object) -> set[tuple[int, int]]:
        return {(int(li.get_ydata()[0]), int(li.get_xdata()[0])) for li in ax.lines if li.get_marker() == "o"}  # type: ignore[attr-defined]

    assert (0, 6) in births(left)
    assert (5, 7) in births(right)
    assert len(births(left)) == len(births(right)) == 2
    loops = plot_matched_pixels(matching, predicted, target, image=1, dim=1)
    assert [text.get_text() for text in loops[0].texts] == ["1"]


def test_what_does_not_fit_is_refused(pair: tuple[Tensor, Tensor]) -> None:
    from nearlinear.betti_plots import plot_barcode_matching, plot_matched_pixels

    predicted, target = pair
    matching = nearlinear.betti_matching(predicted, target, spatial_dims=2)
    with pytest.raises(ValueError, match=r"image must be in \[0, 2\), got 2"):
        plot_barcode_matching(matching, predicted, target, image=2)
    with pytest.raises(ValueError, match="2 images of two dimensions"):
        plot_matched_pixels(matching, predicted[:1], target)
