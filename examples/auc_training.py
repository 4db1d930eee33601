"""Training for the area under the ROC curve: every positive against every negative, without the pairs.

    python examples/auc_training.py            # minutes on two cores
    python examples/auc_training.py --quick    # seconds: 100,000 impressions, shows that it runs

First two small data sets of scikit-learn (tumours, and the digit 8 against the other nine): a small network trained on the whole training
set with the cross-entropy (BCE), with the logistic AUC loss written as a matrix of pairs, and with nearlinear's. The last two are the same
loss, and their curves must agree. Then a synthetic recommender: users who click more, whatever they are shown, are shown other things. A
model of clicks learns from what is shown who clicks much, which orders nobody's list; the AUC loss within users learns what is clicked.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.bench.measure import peak_mb
from nearlinear.plotting import plot_roc_curve, plot_training_curves
from nearlinear.progress import progress
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
CPU = torch.device("cpu")
CURVE_TOLERANCE = 1e-3  # of the loss; rounding errors of 1e-7 a step grow in training
FEATURES = 8  # of what is shown


def bce(scores: Tensor, positive: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, positive.to(scores.dtype))


def all_pairs(scores: Tensor, positive: Tensor) -> Tensor:
    return F.softplus(scores[~positive] - scores[positive].unsqueeze(1)).mean()


def ours(scores: Tensor, positive: Tensor) -> Tensor:
    loss = nearlinear.pairwise_auc_loss(scores, positive)
    assert isinstance(loss, Tensor)
    return loss


LOSSES: dict[str, Loss] = {"BCE": bce, "all pairs, eager": all_pairs, "all pairs, nearlinear": ours}


class Split(NamedTuple):
    x: Tensor
    positive: Tensor
    x_test: Tensor
    positive_test: Tensor


def data_sets(seed: int) -> dict[str, Split]:
    """Half to train on, half to test on; features of mean 0 and variance 1."""
    cancer, digits = load_breast_cancer(), load_digits()
    found = {}
    for name, x, positive in (
        ("tumours", cancer.data, cancer.target == 0),
        ("digit 8", digits.data, digits.target == 8),
    ):
        parts = train_test_split(x, positive, test_size=0.5, stratify=positive, random_state=seed)
        train, test = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
        mean, deviation = train.mean(0), train.std(0).clamp(min=1e-3)
        labels = [torch.tensor(part) for part in parts[2:]]
        found[name] = Split((train - mean) / deviation, labels[0], (test - mean) / deviation, labels[1])
    return found


def train(data: Split, loss_of: Loss, steps: int, seed: int) -> tuple[nn.Module, list[float], list[float]]:
    """The network after full-batch steps; the losses, and the seconds of loss and backward in each step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(data.x.shape[1], 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses, seconds = [], []
    for _ in range(steps):
        scores = model(data.x)
        optimizer.zero_grad()
        begin = time.perf_counter()
        loss = loss_of(scores, data.positive)
        loss.backward()
        seconds.append(time.perf_counter() - begin)
        optimizer.step()
        losses.append(loss.item())
    return model, losses, seconds


def gradient_of(loss_of: Loss, scores: Tensor, positive: Tensor) -> Callable[[], object]:
    leaf = scores.detach().requires_grad_()
    return lambda: torch.autograd.grad(loss_of(leaf, positive), leaf)


@torch.no_grad()
def scores_of_test(model: nn.Module, data: Split) -> Tensor:
    scores: Tensor = model(data.x_test)
    return scores


def compare(name: str, data: Split, steps: int, seed: int) -> dict[str, tuple[Tensor, ...]]:
    """Trains with each loss, prints a table, and returns the ROC curves of the test."""
    positives = int(data.positive.sum())
    print(f"\n{name}: {len(data.positive)} samples to train on, {positives} of them positive")
    print(f"{'':24} {'test AUC':>9} {'loss and backward, ms':>22} {'peak memory, MB':>16}")
    curves, losses = {}, {}
    for loss_name, loss_of in LOSSES.items():
        model, losses[loss_name], seconds = train(data, loss_of, steps, seed)
        scores = scores_of_test(model, data)
        curves[loss_name] = nearlinear.roc_curve(scores, data.positive_test)
        peak = peak_mb(gradient_of(loss_of, model(data.x), data.positive), CPU)
        memory = "not known" if peak is None else f"{peak:.2f}"
        auc = float(nearlinear.roc_auc_score(scores, data.positive_test))
        print(f"{loss_name:24} {auc:>9.4f} {1e3 * statistics.median(seconds):>22.2f} {memory:>16}")
    pairs = zip(losses["all pairs, eager"], losses["all pairs, nearlinear"], strict=True)
    apart = max(abs(a - b) / max(a, 0.01) for a, b in pairs)
    if not apart <= CURVE_TOLERANCE:
        raise SystemExit(f"the curves of the same loss differ by {apart:.1e}, more than {CURVE_TOLERANCE:.0e}")
    return curves


class Impressions(NamedTuple):
    x: Tensor
    clicked: Tensor
    user: Tensor
    users: int


def impressions(count: int, users: int, seed: int) -> Impressions:
    generator = torch.Generator().manual_seed(seed)
    user = torch.randint(users, (count,), generator=generator)
    activity = torch.randn(users, generator=generator)[user]
    taste, exposure = torch.linspace(-0.5, 0.5, FEATURES), torch.linspace(1, 0, FEATURES)
    x = torch.randn(count, FEATURES, generator=generator) + activity.unsqueeze(1) * exposure
    logit = x @ taste + 2 * activity - 1
    return Impressions(x, torch.rand(count, generator=generator) < torch.sigmoid(logit), user, users)


def within_users(data: Impressions) -> Loss:
    def loss_of(scores: Tensor, clicked: Tensor) -> Tensor:
        loss = nearlinear.pairwise_auc_loss(scores, clicked, group=data.user, num_groups=data.users)
        assert isinstance(loss, Tensor)
        return loss

    return loss_of


def recommend(data: Impressions, steps: int) -> dict[str, list[float]]:
    """Mean AUC of the users, in per cent, after each full-batch step."""
    found = {}
    for name, loss_of in {"BCE": bce, "AUC within users": within_users(data)}.items():
        weight = torch.zeros(FEATURES, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.1)
        aucs, seconds = [], []
        for _ in (bar := progress(range(steps), desc=name)):
            optimizer.zero_grad()
            scores = data.x @ weight
            begin = time.perf_counter()
            loss_of(scores, data.clicked).backward()
            seconds.append(time.perf_counter() - begin)
            optimizer.step()
            with torch.no_grad():
                auc = nearlinear.roc_auc_score(data.x @ weight, data.clicked, group=data.user, num_groups=data.users)
            aucs.append(100 * float(auc))
            bar.note(f"AUC of a user {aucs[-1]:.2f} %")
        peak = peak_mb(gradient_of(loss_of, data.x @ weight, data.clicked), CPU)
        memory = "not known" if peak is None else f"{peak:.1f}"
        print(f"{name:24} {aucs[-1]:>13.2f} {1e3 * statistics.median(seconds):>22.0f} {memory:>16}")
        found[name] = aucs
    return found


def plot(curves: dict[str, dict[str, tuple[Tensor, ...]]], aucs: dict[str, list[float]], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 5))
    axes = figure.subplots(1, len(curves) + 1, gridspec_kw={"wspace": 0.3})
    for ax, (name, found) in zip(axes, curves.items(), strict=False):
        plot_roc_curve(found, ax=ax)
        ax.set_title(f"{name}, test")
    plot_training_curves(aucs, steps=range(1, len(next(iter(aucs.values()))) + 1), ylabel="mean AUC of a user (%)", ax=axes[-1])
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of the small data sets")
    parser.add_argument("--impressions", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30, help="steps of the recommender")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/demo/auc_training.png"))
    parser.add_argument("--quick", action="store_true", help="60 and 12 steps; 100,000 impressions of 1,000 users")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.rounds, options.impressions, options.users = 60, 12, 100_000, 1000
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at such sizes a second thread is waited for, not used
    curves = {name: compare(name, data, options.steps, options.seed) for name, data in data_sets(options.seed).items()}
    torch.set_num_threads(threads)
    print("the two forms of the loss agree")
    data = impressions(options.impressions, options.users, options.seed)
    print(
        f"\nrecommender: {options.impressions:,} impressions of {options.users:,} users, {float(data.clicked.float().mean()):.1%} clicked"
    )
    print(f"{'':24} {'AUC of a user':>13} {'loss and backward, ms':>22} {'peak memory, MB':>16}")
    aucs = recommend(data, options.rounds)
    plot(curves, aucs, options.out)
    print(f"plot: {options.out}")


if __name__ == "__main__":
    main()
