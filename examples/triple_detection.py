"""Three numbers that sum to zero: what one layer of attention over pairs of keys learns, and one layer over single keys does not.

    python examples/triple_detection.py            # minutes on two cores
    python examples/triple_detection.py --quick    # seconds: shows that it runs

The task is Match3 of Sanford, Hsu and Telgarsky (2023, arXiv:2306.02896): a token x_i is marked if x_i + x_j + x_k = 0 modulo M for some j
and k of its sequence. They show that a layer of ordinary attention must grow with the length for it, and that a layer over pairs need not.
Each sequence draws its tokens from a few residues, so that about half of the tokens are marked at any length. The same small network is
trained with five attentions: over single keys, then over pairs as written down, over pairs by the exact kernel (the same function: the
curves must agree), and with polynomials in the place of exp. Then all are timed against the length.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.bench.measure import peak_mb
from nearlinear.plotting import STYLES, plot_training_curves
from nearlinear.progress import progress
from torch import Tensor, nn

Attention = Callable[..., Tensor]
CPU = torch.device("cpu")
CURVE_TOLERANCE = 1e-3  # of the loss, over the first STEPS_ALIKE steps; rounding errors of 1e-7 a step grow in training
STEPS_ALIKE = 100
HEADS, HEAD_DIM, WIDTH = 4, 16, 32
LONGEST = 1.0  # seconds of a forward and backward, after which longer sequences are not tried


# ---- attentions: query, keys, values (B, H, N, D), scale D^(-1/2)


def single_keys(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def eager(query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    x = torch.einsum("bhic,bhjc,bhkc->bhijk", query / math.sqrt(query.shape[-1]), key1, key2)
    return torch.einsum("bhijk,bhje,bhke->bhie", x.flatten(3).softmax(3).view(x.shape), value1, value2)


def products_of_keys(query: Tensor, key1: Tensor, key2: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    """torch's attention over all products of two keys and of two values."""
    key, value = ((a.unsqueeze(3) * b.unsqueeze(2)).flatten(2, 3) for a, b in ((key1, key2), (value1, value2)))
    return F.scaled_dot_product_attention(query, key, value)


def ours(**options: Any) -> Attention:
    def attend(query: Tensor, *keys_and_values: Tensor) -> Tensor:
        out = nearlinear.tensor_attention(query, *keys_and_values, scale=1 / math.sqrt(query.shape[-1]), **options)
        assert isinstance(out, Tensor)
        return out

    return attend


TRAINED: dict[str, Attention] = {
    "single keys": single_keys,
    "pairs, eager": eager,
    "pairs, exact": ours(),
    "pairs, degree 2": ours(kernel="taylor", degree=2),
    "pairs, degree 4": ours(kernel="taylor", degree=4),
}
TIMED: dict[str, Attention] = {
    "eager": eager,
    "products of keys": products_of_keys,
    "exact": ours(method="exact"),
    "degree 2, moments": ours(kernel="taylor", degree=2, method="polynomial"),
}


# ---- task and network


class Task(NamedTuple):
    modulus: int
    residues: int  # of a sequence
    length: int

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens (count, length), and which of them are in a triple."""
        few = torch.rand(count, self.modulus, generator=generator).argsort(1)[:, : self.residues]
        tokens = few.gather(1, torch.randint(self.residues, (count, self.length), generator=generator))
        sums = (tokens.unsqueeze(1) + tokens.unsqueeze(2)).flatten(1) % self.modulus
        there = torch.zeros(count, self.modulus, dtype=torch.bool).scatter_(1, sums, True)
        return tokens, there.gather(1, -tokens % self.modulus)


class Detector(nn.Module):
    """Residues as waves of all frequencies, one layer of attention with a learned key that every query sees, a perceptron on each token."""

    def __init__(self, modulus: int, attend: Attention) -> None:
        super().__init__()
        angles = torch.arange(modulus).unsqueeze(1) * torch.arange(1, modulus // 2 + 1) * (2 * math.pi / modulus)
        self.register_buffer("waves", torch.cat([angles.cos(), angles.sin()], 1) * math.sqrt(2))
        self.attend, self.sets = attend, 1 if attend is single_keys else 2
        self.embed = nn.Linear(self.waves.shape[1], WIDTH)
        self.nothing = nn.Parameter(0.5 * torch.randn(1, 1, WIDTH))
        self.projections = nn.ModuleList(nn.Linear(WIDTH, HEADS * HEAD_DIM) for _ in range(1 + 2 * self.sets))
        self.norms = nn.ModuleList(nn.RMSNorm(HEAD_DIM) for _ in range(1 + self.sets))
        self.output = nn.Linear(HEADS * HEAD_DIM, WIDTH)
        self.decide = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1), nn.Flatten(1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(self.waves[tokens])
        seen = torch.cat([x, self.nothing.expand(len(x), -1, -1)], 1)
        query, *rest = (
            layer(x if i == 0 else seen).unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2) for i, layer in enumerate(self.projections)
        )
        query, *keys = (norm(t) for norm, t in zip(self.norms, [query, *rest[: self.sets]], strict=True))
        found = self.attend(query, *keys, *rest[self.sets :])
        logits: Tensor = self.decide(x + self.output(found.transpose(1, 2).flatten(2)))
        return logits


class Run(NamedTuple):
    losses: list[float]
    accuracy: float  # of the test
    step_ms: float
    parameters: int


def train(task: Task, attend: Attention, steps: int, batch: int, seed: int, name: str) -> Run:
    torch.manual_seed(seed)
    model, generator = Detector(task.modulus, attend), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps, pct_start=0.1)
    losses, seconds = [], []
    for _ in (bar := progress(range(steps), desc=name)):
        tokens, marked = task.batch(batch, generator)
        begin = time.perf_counter()
        loss = F.binary_cross_entropy_with_logits(model(tokens), marked.float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
        bar.note(f"loss {losses[-1]:.3f}")
    with torch.no_grad():
        tokens, marked = task.batch(1000, torch.Generator().manual_seed(seed + 1))
        right = torch.cat([model(part) > 0 for part in tokens.split(50)]) == marked
    return Run(losses, float(right.float().mean()), 1e3 * statistics.median(seconds), sum(p.numel() for p in model.parameters()))


def check_curves(runs: dict[str, Run]) -> float:
    """The largest relative distance of the two curves of the same function, before rounding errors have grown."""
    pairs = zip(runs["pairs, eager"].losses, runs["pairs, exact"].losses, strict=True)
    apart = max([abs(a - b) / max(a, 0.01) for a, b in pairs][:STEPS_ALIKE])
    if not apart <= CURVE_TOLERANCE:
        raise SystemExit(f"the curves of the same function differ by {apart:.1e}, more than {CURVE_TOLERANCE:.0e}")
    return apart


# ---- time and memory against the length


class Point(NamedTuple):
    length: int
    ms: float
    peak: float | None


def points(name: str, attend: Attention, lengths: Iterable[int], dim: int) -> list[Point]:
    """Forward and backward of one head, the best of several; ends where the next would take longer than LONGEST."""
    found: list[Point] = []
    for n in (bar := progress(list(lengths), desc=name)):
        tensors = [*F.rms_norm(torch.randn(3, 1, 1, n, dim), (dim,)), *torch.randn(2, 1, 1, n, dim)]
        leaves = [t.requires_grad_() for t in tensors]

        def call(leaves: list[Tensor] = leaves) -> object:
            return torch.autograd.grad(attend(*leaves).square().mean(), leaves)

        peak, times = peak_mb(call, CPU), []
        while not times or (len(times) < 7 and sum(times) < LONGEST / 2):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        found.append(Point(n, 1e3 * min(times), peak))
        bar.note(f"n = {n}: {found[-1].ms:.1f} ms")
        if 8 * min(times) > LONGEST:  # what all pairs of twice the length take
            break
    return found


def crossing(one: list[Point], two: list[Point]) -> float | None:
    """The length from which on ``two`` is faster, on straight lines between the logarithms."""
    logs = [(math.log(a.length), math.log(a.ms / b.ms)) for a, b in zip(one, two, strict=False)]
    for (n, slower), (next_n, next_slower) in pairwise(logs):
        if slower < 0 <= next_slower:
            return math.exp(n + (next_n - n) * slower / (slower - next_slower))
    return None


def plot(runs: dict[str, Run], times: dict[str, list[Point]], dim: int, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.25})
    smooth = {name: F.avg_pool1d(torch.tensor(run.losses)[None], 15, 1)[0].tolist() for name, run in runs.items()}
    plot_training_curves(smooth, ylabel="loss, mean of 15 steps", ax=left)
    for style, (name, found) in zip(STYLES, times.items(), strict=False):
        right.plot([p.length for p in found], [p.ms for p in found], label=name, **style)
    law = math.sqrt(1.5 * math.comb(dim + 2, 2))
    right.axvline(law, color="0.5", linewidth=1, label=f"sqrt(1.5 r) = {law:.0f}: equal operations")
    right.set(xscale="log", yscale="log", xlabel="length", ylabel="forward + backward of a head in ms", title=f"{dim} channels")
    right.grid(visible=True, alpha=0.3)
    right.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, bbox_inches="tight")


def report(times: dict[str, list[Point]]) -> None:
    lengths = sorted({p.length for found in times.values() for p in found})
    print("\nforward and backward of one head: ms (peak memory in MB)")
    print(f"{'length':>8}" + "".join(f"{name:>24}" for name in times))
    for n in lengths:
        cells = []
        for found in times.values():
            (point,) = [p for p in found if p.length == n] or (None,)
            peak = "" if point is None or point.peak is None else f" ({point.peak:.1f})"
            cells.append("-" if point is None else f"{point.ms:.2f}{peak}")
        print(f"{n:>8}" + "".join(f"{cell:>24}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--modulus", type=int, default=16)
    parser.add_argument("--residues", type=int, default=4, help="of a sequence")
    parser.add_argument("--length", type=int, default=16, help="of a sequence")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dim", type=int, default=32, help="channels of the timed head")
    parser.add_argument("--longest", type=int, default=16384, help="timed length")
    parser.add_argument("--out", type=Path, default=Path("build/demo/triple_detection.png"))
    parser.add_argument("--quick", action="store_true", help="250 steps modulo 12, lengths up to 256")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.modulus, options.residues, options.length, options.longest = 250, 12, 4, 8, 256
    torch.set_num_threads(1)  # at such sizes a second thread is waited for, not used
    task = Task(options.modulus, options.residues, options.length)
    share = float(task.batch(1000, torch.Generator().manual_seed(0))[1].float().mean())
    print(f"{task.length} tokens of {task.residues} residues modulo {task.modulus}; {share:.1%} are in a triple")
    print(f"{'':18} {'test accuracy by seed':>{max(22, 8 * len(options.seeds))}} {'step, ms':>9} {'parameters':>11}")
    first: dict[str, Run] = {}
    for name, attend in TRAINED.items():
        runs = [train(task, attend, options.steps, options.batch, seed, name) for seed in options.seeds]
        first[name] = runs[0]
        accuracies = " ".join(f"{100 * run.accuracy:.1f}%" for run in runs)
        print(f"{name:18} {accuracies:>{max(22, 8 * len(runs))}} {runs[0].step_ms:>9.1f} {runs[0].parameters:>11,}")
    apart = check_curves(first)
    print(f"the curves of eager and exact agree: at most {apart:.1e} apart in the first {STEPS_ALIKE} steps")
    lengths = [2**k for k in range(3, int(math.log2(options.longest)) + 1)]
    times = {name: points(name, attend, lengths, options.dim) for name, attend in TIMED.items()}
    report(times)
    met, law = crossing(times["exact"], times["degree 2, moments"]), math.sqrt(1.5 * math.comb(options.dim + 2, 2))
    print(f"degree 2 is faster than exact from a length of {'?' if met is None else round(met)}; equal operations at {law:.0f}")
    plot(first, times, options.dim, options.out)
    print(f"plot: {options.out}")


if __name__ == "__main__":
    main()
