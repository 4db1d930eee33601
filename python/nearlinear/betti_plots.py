"""Plots of Betti matching (extra ``[plot]``): the two barcodes with their matches, and the critical pixels on the two images."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from .betti_results import BettiMatching
from .plotting import STYLES, _axes, _stamp, _this_tree

__all__ = ["plot_barcode_matching", "plot_matched_pixels"]

ALONE = "#D55E00"  # bars without a partner
NAMES = ("component", "loop", "cavity")


class _Bars(NamedTuple):
    """Of one image: flat pixels of birth and death, [., 4] of pairs and [., 2] of the rest, longest first, and their dimensions."""

    matched: Tensor
    matched_dim: Tensor
    input: Tensor
    input_dim: Tensor
    target: Tensor
    target_dim: Tensor


def plot_barcode_matching(matching: BettiMatching, input: Tensor, target: Tensor, *, image: int = 0, most: int = 30, ax: Any = None) -> Any:
    """The bars of both images over the values of the filtration: matched ones as pairs, input above target, then those left alone.

    ``input`` and ``target`` are what ``matching`` was made of; ``image`` counts along the flattened batch. Of matched bars, and of each
    image's others, the ``most`` longest are drawn; the title says how many there are.
    """
    f, g = _flat(matching, input, image), _flat(matching, target, image)
    bars = _of_image(matching, image, f, g)
    ax = _axes(ax, height=1.5 + 0.12 * sum(min(most, len(t)) for t in (bars.matched, bars.matched, bars.input, bars.target)))
    y = 0.0

    def draw(values: Tensor, ends: Tensor, dim: int, color: str, line: Any) -> None:
        b, d = (float(values[int(e)]) for e in ends)
        ax.plot([b, d], [y, y], color=color, linestyle=line, linewidth=2.5, solid_capstyle="butt")
        ax.plot([b], [y], marker="os^"[dim], color=color, markersize=4)

    for k, (row, dim) in enumerate(zip(bars.matched[:most], bars.matched_dim[:most].tolist(), strict=True)):
        color = str(STYLES[1 + (k + 1) % 6]["color"])
        draw(f, row[:2], dim, color, "-")
        y += 0.8
        draw(g, row[2:], dim, color, (0, (2, 1)))
        y += 1.6
    for values, rows, dims, line in ((f, bars.input, bars.input_dim, "-"), (g, bars.target, bars.target_dim, (0, (2, 1)))):
        y += 1.0
        for row, dim in zip(rows[:most], dims[:most].tolist(), strict=True):
            draw(values, row, dim, "0.45", line)
            y += 1.0
    ax.invert_yaxis()
    ax.set_yticks([])
    ax.set(xlabel="value at birth (marker) and death; input solid, target dashed; grey: no partner")
    ax.set_title(f"{len(bars.matched)} matched, {len(bars.input)} of the input alone, {len(bars.target)} of the target alone")
    handles = [ax.plot([], [], marker="os^"[d], color="0.2", linestyle="none", label=NAMES[d])[0] for d in _dims(bars)]
    if handles:
        ax.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return _stamp(ax, _this_tree())


def plot_matched_pixels(
    matching: BettiMatching, input: Tensor, target: Tensor, *, image: int = 0, dim: int | None = None, most: int = 20, axes: Any = None
) -> Any:
    """Both images with the critical pixels of the longest bars: births as rings, deaths as crosses, partners in one colour and number.

    Two spatial dimensions. ``dim``: draw the bars of one homology dimension. ``axes``: two axes (new ones by default), which are returned.
    """
    side = tuple(input.shape[-2:])
    if math.prod(input.shape[:-2]) != matching.num_images or len(side) != 2:
        raise ValueError(
            f"plot_matched_pixels: input must be {matching.num_images} images of two dimensions, got shape {tuple(input.shape)}"
        )
    values = [_flat(matching, t, image) for t in (input, target)]
    bars = _of_image(matching, image, *values)
    axes = _two_axes() if axes is None else axes
    for ax, pixels, title in zip(axes, values, ("input", "target"), strict=True):
        ax.imshow(pixels.reshape(side).numpy(), cmap="gray", interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])
    shown = [k for k, d in enumerate(bars.matched_dim.tolist()) if dim is None or d == dim][:most]
    for k, row in enumerate(bars.matched[shown]):
        color = str(STYLES[1 + (k + 1) % 6]["color"])
        for ax, ends in zip(axes, (row[:2], row[2:]), strict=True):
            _mark(ax, ends, side[1], color, str(k + 1))
    for ax, rows, dims in zip(axes, (bars.input, bars.target), (bars.input_dim, bars.target_dim), strict=True):
        alone = [k for k, d in enumerate(dims.tolist()) if dim is None or d == dim][:most]
        for row in rows[alone]:
            _mark(ax, row, side[1], ALONE, "")
    _stamp(axes[1], _this_tree())
    return axes


def _mark(ax: Any, ends: Tensor, width: int, color: str, text: str) -> None:
    (by, bx), (dy, dx) = (divmod(int(e), width) for e in ends)
    ax.plot([bx], [by], marker="o", markersize=7, markerfacecolor="none", color=color, markeredgewidth=1.6)
    ax.plot([dx], [dy], marker="x", markersize=6, color=color, markeredgewidth=1.6)
    if text:
        ax.annotate(text, (bx, by), textcoords="offset points", xytext=(4, 4), fontsize=7, color=color)


def _flat(matching: BettiMatching, t: Tensor, image: int) -> Tensor:
    if not 0 <= image < matching.num_images:
        raise ValueError(f"plot of a Betti matching: image must be in [0, {matching.num_images}), got {image}")
    return t.detach().reshape(matching.num_images, -1)[image].cpu().double()


def _of_image(matching: BettiMatching, image: int, f: Tensor, g: Tensor) -> _Bars:
    def pick(rows: Tensor, dims: Tensor, images: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        here = images == image
        rows, dims = rows[here].cpu(), dims[here].cpu()
        order = (values[rows[:, 0]] - values[rows[:, 1]]).abs().argsort(descending=True, stable=True)
        return rows[order], dims[order]

    m = matching
    return _Bars(
        *pick(m.matched, m.matched_dim, m.matched_image, f),
        *pick(m.unmatched_input, m.unmatched_input_dim, m.unmatched_input_image, f),
        *pick(m.unmatched_target, m.unmatched_target_dim, m.unmatched_target_image, g),
    )


def _dims(bars: _Bars) -> list[int]:
    return sorted({int(d) for dims in (bars.matched_dim, bars.input_dim, bars.target_dim) for d in dims})


def _two_axes() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("nearlinear.betti_plots needs matplotlib, which is not installed; pip install matplotlib") from error
    return plt.subplots(1, 2, figsize=(10, 5), layout="constrained")[1]
