"""A face-recognition head of 200,000 identities, trained on CPU with an ArcFace margin: the (rows x identities) logits never exist, and the
loss keeps to 1 GiB beside its gradients.

    python examples/face_recognition.py            # minutes on two cores
    python examples/face_recognition.py --quick    # seconds: 2,000 identities, shows that it runs

Identities are synthetic: a point on a sphere each. A picture shows its identity through noise and, stronger than that, what has nothing to
do with it: pose and light, random numbers in other directions. A linear map has to find the directions that matter. As usual the head is
only the teacher, and the map is judged by its embeddings: of 1,000 identities that are in no training batch, does the nearest of 1,000
enrolled pictures show the same one? Class vectors start at the embedding of one picture each (weight imprinting, arXiv:1712.07136).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.bench.measure import peak_mb
from nearlinear.plotting import plot_training_curves
from nearlinear.progress import progress
from nearlinear.score_maps import ArcMargin
from torch import Tensor, nn

SIZE = 64  # numbers of a picture that depend on the identity, and as many that do not
HEAD = ArcMargin(scale=64.0, margin=0.5)
WORKSPACE = 1 << 30
GRADIENT_TOLERANCE = 2e-5  # of the norm; a float32 logit of 64 times a cosine is known to 1e-5, and a probability with it
CPU = torch.device("cpu")


class Identities:
    """Pictures of ``count`` people, and of ``held_out`` more for the test."""

    def __init__(self, count: int, held_out: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.centres = F.normalize(self._normal(count + held_out, SIZE)) * SIZE**0.5
        self.mixing = torch.linalg.qr(self._normal(2 * SIZE, 2 * SIZE))[0]
        self.count, self.held_out = count, torch.arange(count, count + held_out)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def pictures(self, who: Tensor) -> Tensor:
        shown = self.centres[who] + 0.5 * self._normal(len(who), SIZE)
        return torch.cat([shown, 3 * self._normal(len(who), SIZE)], 1) @ self.mixing

    def batch(self, rows: int) -> tuple[Tensor, Tensor]:
        who = torch.randint(self.count, (rows,), generator=self.generator)
        return self.pictures(who), who


def fused(features: Tensor, centres: Tensor, who: Tensor) -> Tensor:
    return nearlinear.linear_cross_entropy(features, centres, who, logit_map=HEAD, max_workspace_bytes=WORKSPACE)


def eager(features: Tensor, centres: Tensor, who: Tensor) -> Tensor:
    cosine, label = F.linear(F.normalize(features), F.normalize(centres)), who.unsqueeze(1)
    angle = torch.acos(cosine.gather(1, label).clamp(-1 + 1e-7, 1 - 1e-7))
    return F.cross_entropy(HEAD.scale * cosine.scatter(1, label, torch.cos(angle + HEAD.margin)), who)


@torch.no_grad()
def accuracy(backbone: nn.Module, identities: Identities) -> float:
    """Fraction of held-out identities whose second picture is nearest, by angle, to their first."""
    enrolled, seen = (F.normalize(backbone(identities.pictures(identities.held_out))) for _ in range(2))
    return ((seen @ enrolled.T).argmax(1) == torch.arange(len(seen))).float().mean().item()


def train(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Identities, dict[str, list[float]]]:
    torch.manual_seed(options.seed)
    identities = Identities(options.identities, options.held_out, options.seed)
    backbone = nn.Linear(2 * SIZE, options.features)
    with torch.no_grad():
        centres = nn.Parameter(F.normalize(backbone(identities.pictures(torch.arange(identities.count)))))
    optimizers = [torch.optim.Adam(backbone.parameters(), lr=1e-2), torch.optim.SGD([centres], lr=1.0)]
    found: dict[str, list[float]] = {"loss": [], "seconds": [], "step": [0], "accuracy": [accuracy(backbone, identities)]}
    for step in (bar := progress(range(1, options.steps + 1), desc="training")):
        pictures, who = identities.batch(options.batch)
        begin = time.perf_counter()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = fused(backbone(pictures), centres, who)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        found["seconds"].append(time.perf_counter() - begin)
        found["loss"].append(loss.item())
        if step % max(1, options.steps // 10) == 0:
            found["step"].append(step)
            found["accuracy"].append(accuracy(backbone, identities))
            bar.note(f"loss {loss.item():.2f}, accuracy {found['accuracy'][-1]:.1%}")
    return backbone, centres, identities, found


def compare(backbone: nn.Module, centres: Tensor, identities: Identities, rows: int) -> dict[str, tuple[float, float | None]]:
    """Seconds, and peak memory in MB above the parameters, of loss and gradients: median of three, in turn; then once for the memory."""
    pictures, who = identities.batch(rows)
    features = backbone(pictures).detach().requires_grad_()

    def gradients(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(features, centres, who), [features, centres])

    times: dict[str, list[float]] = {"eager": [], "nearlinear": []}
    losses = {"eager": eager, "nearlinear": fused}
    for _ in range(3):
        for name, loss in losses.items():
            begin = time.perf_counter()
            gradients(loss)
            times[name].append(time.perf_counter() - begin)
    for ours, theirs in zip(gradients(fused), gradients(eager), strict=True):
        error = ((ours - theirs).norm() / theirs.norm()).item()
        if not error <= GRADIENT_TOLERANCE:
            raise SystemExit(f"the gradients differ by {error:.1e} of their norm, more than {GRADIENT_TOLERANCE:.0e}")
    return {name: (statistics.median(times[name]), peak_mb(lambda loss=loss: gradients(loss), CPU)) for name, loss in losses.items()}


def plot(found: dict[str, list[float]], measured: dict[str, tuple[float, float | None]], identities: int, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4))
    left, middle, right = figure.subplots(1, 3, gridspec_kw={"wspace": 0.3})
    plot_training_curves({"training loss": found["loss"]}, steps=range(1, len(found["loss"]) + 1), ax=left)
    accuracies = [100 * value for value in found["accuracy"]]
    plot_training_curves(
        {"held-out identities": accuracies}, steps=found["step"], ylabel="nearest enrolled picture is right (%)", ax=middle
    )
    bars = right.bar(list(measured), [peak or 0.0 for _, peak in measured.values()], color=["#56B4E9", "#E69F00"], edgecolor="black")
    right.bar_label(bars, fmt="%.0f MB")
    right.set(ylabel="peak memory of loss and gradients (MB)", title=f"{identities:,} identities")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=200_000)
    parser.add_argument("--held-out", type=int, default=1000, help="identities of the test")
    parser.add_argument("--features", type=int, default=128, help="size of an embedding")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/demo/face_recognition.png"))
    parser.add_argument("--quick", action="store_true", help="2,000 identities, 40 steps of 128 pictures")
    options = parser.parse_args()
    if options.quick:
        options.identities, options.steps, options.batch = 2000, 40, 128
    sizes = (options.batch, options.identities, options.features)
    tiling = nearlinear.plan(*sizes, torch.float32, score_map=HEAD, max_workspace_bytes=WORKSPACE)
    print(f"{options.identities:,} identities, {options.steps} steps of {options.batch} pictures, embeddings of {options.features}")
    print(
        f"{tiling.rows} x {tiling.classes:,} logits at a time, workspace {tiling.workspace_bytes / 1e6:.0f} MB of {WORKSPACE / 1e6:.0f} MB"
    )
    backbone, centres, identities, found = train(options)
    print(f"\n{'step':>6} {'loss':>8} {'held-out accuracy':>18}")
    for step, value in zip(found["step"], found["accuracy"], strict=True):
        loss = f"{found['loss'][int(step) - 1]:.3f}" if step else ""
        print(f"{step:>6} {loss:>8} {value:>18.1%}")
    print(f"training step {1e3 * statistics.median(found['seconds']):.0f} ms")
    measured = compare(backbone, centres, identities, options.batch)
    print(f"\nloss and gradients of one batch, measured here; the two agree\n{'':12} {'ms':>8} {'peak MB':>10}")
    for name, (seconds, peak) in measured.items():
        print(f"{name:12} {1e3 * seconds:>8.0f} {'not known' if peak is None else format(peak, '.0f'):>10}")
    plot(found, measured, options.identities, options.out)
    print(f"plot: {options.out}")


if __name__ == "__main__":
    main()
