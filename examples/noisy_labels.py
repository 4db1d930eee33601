"""Robust losses against wrong labels: scikit-learn's digits, 40 % of the training labels replaced by another class, a small network
trained under four losses that differ in one argument.

    python examples/noisy_labels.py            # about a minute
    python examples/noisy_labels.py --quick    # seconds

Test labels are clean. Cross-entropy ends up learning the wrong labels by heart; GCE (arXiv:1805.07836) weighs the gradient of a row by
p_y^0.7 and so gives up on labels that the rest of the data contradicts. MAE weighs it by p_y: slowest at first, and on this easy data as
good as GCE or better in the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import nearlinear
import torch
from nearlinear.progress import progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
NUM_CLASSES = 10


def truncated_after_half(done: float) -> Loss:
    """As published: GCE until the network knows something, then only the labels that it believes in."""
    return nearlinear.gce_loss if done < 0.5 else nearlinear.truncated_gce_loss


LOSSES: dict[str, Callable[[float], Loss]] = {  # a function of the fraction of the training that is done
    "CE": lambda done: nearlinear.cross_entropy,
    "GCE(q=0.7)": lambda done: nearlinear.gce_loss,
    "GCE, then truncated (k=0.5)": truncated_after_half,
    "MAE": lambda done: nearlinear.mae_loss,
}


def noisy_digits(noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, partly wrong training labels, test images, clean test labels."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(images / 16, labels, test_size=0.3, random_state=seed, stratify=labels)
    generator = torch.Generator().manual_seed(seed)
    clean = torch.tensor(y)
    flipped = torch.rand(len(clean), generator=generator) < noise
    wrong = (clean + torch.randint(1, NUM_CLASSES, clean.shape, generator=generator)) % NUM_CLASSES
    return torch.tensor(x).float(), clean.where(~flipped, wrong), torch.tensor(x_test).float(), torch.tensor(y_test)


def train(choose_loss: Callable[[float], Loss], data: tuple[Tensor, ...], epochs: int, seed: int) -> list[float]:
    """Test accuracy after every epoch."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, NUM_CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    accuracies = []
    for epoch in range(epochs):
        loss_function = choose_loss(epoch / epochs)
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            loss_function(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracies.append((model(x_test).argmax(1) == y_test).float().mean().item())
    return accuracies


def plot(curves: dict[str, Tensor], noise: float, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = zip(("#0072b2", "#d55e00", "#009e73", "#000000"), ("-", "--", "-.", ":"), strict=True)
    for (name, runs), (color, line) in zip(curves.items(), styles, strict=True):
        axes.plot(100 * runs.mean(0), color=color, linestyle=line, label=name)
        axes.fill_between(range(runs.shape[1]), 100 * runs.amin(0), 100 * runs.amax(0), color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="accuracy on clean test labels (%)", title=f"Digits, {noise:.0%} wrong training labels")
    axes.legend(loc="lower right")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.4, help="fraction of wrong training labels")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds: each has its own split, noise and initial weights")
    parser.add_argument("--out", type=Path, default=Path("build/demo/noisy_labels.png"))
    parser.add_argument("--quick", action="store_true", help="2 seeds, 10 epochs")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs = 2, 10
    torch.set_num_threads(1)  # a second thread costs more than it brings on layers this small
    runs: dict[str, list[list[float]]] = {name: [] for name in LOSSES}
    for seed, name in progress([(seed, name) for seed in range(options.seeds) for name in LOSSES], desc="training"):
        runs[name].append(train(LOSSES[name], noisy_digits(options.noise, seed), options.epochs, seed))
    curves = {name: torch.tensor(values) for name, values in runs.items()}
    print(f"test accuracy in per cent, {options.noise:.0%} wrong training labels, {options.seeds} seeds")
    print(f"{'loss':30} {'last epoch':>10} {'worst':>8} {'best':>8} {'peak of the mean curve':>24}")
    for name, values in curves.items():
        last, mean = 100 * values[:, -1], 100 * values.mean(0)
        print(f"{name:30} {last.mean():>10.1f} {last.min():>8.1f} {last.max():>8.1f} {mean.max():>15.1f} (epoch {mean.argmax() + 1})")
    plot(curves, options.noise, options.out)
    winner = max(curves, key=lambda name: curves[name][:, -1].mean().item())
    print(f"most accurate at the end: {winner}\nplot: {options.out}")


if __name__ == "__main__":
    main()
