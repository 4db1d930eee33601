"""Vessels of a retina: training with Dice alone, and with Dice and Betti matching, which asks for the right components and loops too.

    python examples/vessel_segmentation.py            # minutes on two cores
    python examples/vessel_segmentation.py --quick    # seconds: shows that it runs

The picture is the fundus photograph that scikit-image ships. The vessels to find are the ridges of its clean green channel; the network
sees a noisy copy, in which thin vessels are broken. It learns from crops of the left half and is tested on crops of the right one. Both
trainings begin with the same weights and see the same crops and noise; the second adds the Betti matching loss to the last two thirds of
its steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nearlinear
import torch
from nearlinear.betti_plots import plot_matched_pixels
from nearlinear.progress import progress
from skimage import data, filters, morphology, transform
from torch import Tensor, nn

NOISE = 0.06  # standard deviation, of a green channel in [0, 1]
WARM_UP = 1 / 3  # of the steps, before the second loss is worth its time


class Picture(NamedTuple):
    green: Tensor
    vessels: Tensor


class Crops(NamedTuple):
    images: Tensor
    targets: Tensor


def retina() -> Picture:
    """The square inside the round frame, at half resolution; its ridges that a hysteresis threshold keeps, specks removed."""
    green = transform.rescale(data.retina()[..., 1] / 255.0, 0.5, anti_aliasing=True)[104:-104, 104:-104]
    ridges = filters.sato(green, sigmas=(1, 2, 3), black_ridges=True)
    vessels = filters.apply_hysteresis_threshold(ridges, 0.012, 0.03)
    vessels = morphology.remove_small_objects(vessels, max_size=80)
    return Picture(torch.tensor(green, dtype=torch.float32), torch.tensor(vessels, dtype=torch.float32))


def crops(picture: Picture, columns: slice, count: int, side: int, generator: torch.Generator) -> Crops:
    """Random crops (count, 1, side, side) of a part of the picture, with noise."""
    green, vessels = picture.green[:, columns], picture.vessels[:, columns]
    height, width = green.shape
    ys = torch.randint(height - side, (count,), generator=generator).tolist()
    xs = torch.randint(width - side, (count,), generator=generator).tolist()
    cut = [(slice(y, y + side), slice(x, x + side)) for y, x in zip(ys, xs, strict=True)]
    images = torch.stack([green[c] for c in cut]).unsqueeze(1)
    return Crops(images + NOISE * torch.randn(images.shape, generator=generator), torch.stack([vessels[c] for c in cut]).unsqueeze(1))


class UNet(nn.Module):
    """Three levels, a few thousand weights each."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()

        def block(n: int, m: int) -> nn.Module:
            convs = [
                nn.Conv2d(n, m, 3, padding=1),
                nn.GroupNorm(4, m),
                nn.ReLU(),
                nn.Conv2d(m, m, 3, padding=1),
                nn.GroupNorm(4, m),
                nn.ReLU(),
            ]
            return nn.Sequential(*convs)

        self.down = nn.ModuleList([block(1, width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x)
        b = self.down[1](self.pool(a))
        c = self.down[2](self.pool(b))
        b = self.up[0](torch.cat([self.grow(c), b], 1))
        a = self.up[1](torch.cat([self.grow(b), a], 1))
        probability: Tensor = self.head(a).sigmoid()
        return probability


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    overlap = (probability * target).sum((1, 2, 3))
    return (1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)).mean()


class Training(NamedTuple):
    model: nn.Module
    step_ms: float  # of the steps after the warm-up
    betti_ms: float  # of these, Betti matching and its backward


def train(batches: Callable[[], Iterator[Crops]], steps: int, weight: float, seed: int, name: str) -> Training:
    torch.manual_seed(seed)
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step_seconds, betti_seconds = [], []
    for step, batch in zip(bar := progress(range(steps), desc=name), batches(), strict=False):
        begin = time.perf_counter()
        optimizer.zero_grad()
        probability = model(batch.images)
        loss = dice_loss(probability, batch.targets)
        inside = 0.0
        if weight > 0 and step >= WARM_UP * steps:
            start = time.perf_counter()
            loss = loss + weight * nearlinear.betti_matching_loss(probability, batch.targets)
            inside = time.perf_counter() - start
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= WARM_UP * steps:
            step_seconds.append(time.perf_counter() - begin)
            betti_seconds.append(inside)
        bar.note(f"loss {loss.item():.3f}")
    return Training(model, 1e3 * statistics.median(step_seconds), 1e3 * statistics.median(betti_seconds))


class Score(NamedTuple):
    dice: float
    components: float  # bars without a partner in a crop, dimension 0
    loops: float


@torch.no_grad()
def score(model: nn.Module, test: Crops) -> Score:
    found = (model(test.images) >= 0.5).float()
    errors = [float(nearlinear.betti_matching_error(found, test.targets, dims=(d,))) for d in (0, 1)]
    overlap = 2 * (found * test.targets).sum((1, 2, 3)) / (found + test.targets).sum((1, 2, 3)).clamp(min=1)
    return Score(float(overlap.mean()), *errors)


def plot(models: dict[str, nn.Module], test: Crops, out: Path) -> None:
    """The crop in which the first network is most wrong: the components that each finds, and those without a partner."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        found = {name: (model(test.images) >= 0.5).float() for name, model in models.items()}
    errors = nearlinear.betti_matching_error(next(iter(found.values())), test.targets, dims=(0,), reduction="none")
    k = int(errors.argmax())
    figure = Figure(figsize=(11, 5.5 * len(models)))
    for axes, (name, masks) in zip(figure.subplots(len(models), 2, squeeze=False), found.items(), strict=True):
        matching = nearlinear.betti_matching(masks, test.targets, spatial_dims=2)
        plot_matched_pixels(matching, masks, test.targets, image=k, dim=0, axes=axes)
        axes[0].set_title(f"{name}: found")
        axes[1].set_title("vessels (numbers: matched, orange: no partner)")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=96, help="of a crop, in pixels")
    parser.add_argument("--weight", type=float, default=0.01, help="of the Betti matching loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/demo/vessel_segmentation.png"))
    parser.add_argument("--quick", action="store_true", help="60 steps on crops of 64 x 64")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.side = 60, 64
    picture = retina()
    middle = picture.green.shape[1] // 2
    test = crops(picture, slice(middle, None), 32, options.side, torch.Generator().manual_seed(options.seed + 1))

    def batches() -> Iterator[Crops]:
        generator = torch.Generator().manual_seed(options.seed)
        while True:
            yield crops(picture, slice(0, middle), options.batch, options.side, generator)

    share = float(picture.vessels.mean())
    print(f"{options.steps} steps of {options.batch} crops of {options.side} x {options.side} pixels, {share:.1%} of them vessels")
    print(f"{'':22} {'Dice':>7} {'components':>11} {'loops':>7} {'step, ms':>9} {'of it Betti matching':>21}")
    models = {}
    for name, weight in {"Dice": 0.0, "Dice + Betti matching": options.weight}.items():
        run = train(batches, options.steps, weight, options.seed, name)
        s = score(run.model, test)
        part = f"{run.betti_ms:.1f} ms, {run.betti_ms / run.step_ms:.0%}" if weight else ""
        print(f"{name:22} {s.dice:>7.4f} {s.components:>11.2f} {s.loops:>7.2f} {run.step_ms:>9.1f} {part:>21}")
        models[name] = run.model
    print("components, loops: Betti matching error, bars without a partner in a crop of the test")
    plot(models, test, options.out)
    print(f"plot: {options.out}")


if __name__ == "__main__":
    main()
