"""A token-level language model of Python's own standard library, trained twice from the same seed: with ``F.cross_entropy`` and with
``nearlinear.cross_entropy``. Prints both loss curves (they must agree within float32 noise), the time and the memory of each, and writes
a plot.

    python examples/language_model.py                  # about 1.1 million tokens, 22,000 classes; minutes on two cores
    python examples/language_model.py --quick          # seconds: shows that it runs, measures nothing

The two models live in two processes and train in lockstep, one step of one, then one step of the other, in alternating order: a busy
machine slows both alike, and the peak memory of each process is its own.
"""

from __future__ import annotations

import argparse
import collections
import math
import multiprocessing
import statistics
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.progress import progress
from torch import Tensor, nn

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"eager": F.cross_entropy, "nearlinear": nearlinear.cross_entropy}
# other people's code, tests, tables, applications, and what newer Pythons no longer ship
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "encodings", "pydoc_data", "idlelib", "turtledemo", "distutils", "lib2to3"}
LAYOUT = {tokenize.NEWLINE: "<newline>", tokenize.INDENT: "<indent>", tokenize.DEDENT: "<dedent>"}
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
# The two runs may differ by this fraction of the loss. The same sums in another order, fed back through every optimiser step, were seen to
# give 2e-7; a gradient of the target logits 1 % too small gives 5e-4, a label smoothing of 0.001 in the gradient alone 7e-5.
CURVE_TOLERANCE = 1e-5


def tokens_of(path: Path) -> list[str]:
    """Tokens of one source file; none if this Python cannot read it."""
    try:
        with tokenize.open(path) as file:
            tokens = list(tokenize.generate_tokens(file.readline))
    except (OSError, SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return []
    return [LAYOUT.get(token.type, token.string) for token in tokens if token.type not in SILENT]


def standard_library(limit: int) -> tuple[Tensor, int]:
    """(token ids, number of classes) of the standard library: class 0 is <unk>, the others are the tokens seen at least twice."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if not SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1])]
    tokens: list[str] = []
    for path in progress(files, desc="reading the standard library"):
        tokens += tokens_of(path)
        if len(tokens) >= limit:
            break
    tokens = tokens[:limit]
    counts = collections.Counter(tokens)
    classes = {token: i for i, token in enumerate((token for token, count in counts.most_common() if count > 1), start=1)}
    return torch.tensor([classes.get(token, 0) for token in tokens]), len(classes) + 1


class LanguageModel(nn.Module):
    """The neural probabilistic model of Bengio et al. 2003: the last tokens' embeddings, one hidden layer, one logit per class."""

    def __init__(self, num_classes: int, context: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Embedding(num_classes, width), nn.Flatten(), nn.Linear(context * width, width), nn.Tanh(), nn.Linear(width, num_classes)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)


def batches(ids: Tensor, rows: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random places: the tokens before each [rows, context], and the token there [rows]."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(ids) - context, (rows, 1), generator=generator)
        windows = ids[starts + torch.arange(context + 1)]
        yield windows[:, :-1], windows[:, -1]


def peak_memory_mb() -> float:
    """Largest resident size of this process so far. Not getrusage: that also counts the parent's size at the time of the fork."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def train(connection: Connection, name: str, ids: Tensor, num_classes: int, options: argparse.Namespace) -> None:
    """One process: a step for every "step" received; held-out loss and memory at the end."""
    torch.manual_seed(options.seed)
    loss_function = LOSSES[name]
    model = LanguageModel(num_classes, options.context)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    loss_function(torch.zeros(2, num_classes), torch.zeros(2, dtype=torch.long))  # first-call costs belong to no step
    held_out = len(ids) // 20
    training, held = ids[:-held_out], ids[-held_out:]
    data = batches(training, options.batch, options.context, options.seed)
    before = peak_memory_mb()
    while connection.recv() == "step":
        tokens, targets = next(data)
        begin = time.perf_counter()
        optimizer.zero_grad()
        logits = model(tokens)
        marks = [time.perf_counter()]
        # the hook runs when d loss / d logits is complete: between the marks lie the loss and its backward, nothing else
        logits.register_hook(lambda gradient, marks=marks: marks.append(time.perf_counter()))
        loss = loss_function(logits, targets)
        loss.backward()
        optimizer.step()
        connection.send((loss.item(), time.perf_counter() - begin, marks[1] - marks[0]))
        del logits, loss  # else two steps' logits would overlap in the next forward
    peak = peak_memory_mb()
    with torch.no_grad():
        windows = batches(held, options.batch, options.context, options.seed + 1)
        scores = [loss_function(model(tokens), targets).item() for tokens, targets in (next(windows) for _ in range(4))]
    connection.send((statistics.mean(scores), peak, peak - before))


def run(ids: Tensor, num_classes: int, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Both processes in lockstep. Per loss: losses, seconds per step, seconds in the loss; held-out loss, peak MB, MB above the start."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in LOSSES:
        pipes[name], far_end = context.Pipe()
        processes.append(context.Process(target=train, args=(far_end, name, ids, num_classes, options), daemon=True))
        processes[-1].start()
        far_end.close()  # so that a child that dies is an EOFError here, not a wait without end
    results: dict[str, dict[str, list[float]]] = {name: {"loss": [], "step": [], "loss part": []} for name in LOSSES}
    for step in progress(range(options.steps), desc="training, eager and nearlinear"):
        for name in list(LOSSES) if step % 2 else reversed(LOSSES):
            pipes[name].send("step")
            for values, value in zip(results[name].values(), pipes[name].recv(), strict=True):
                values.append(value)
    for name, pipe in pipes.items():
        pipe.send("finish")
        results[name]["held-out loss"], results[name]["peak memory"], results[name]["memory above start"] = ([x] for x in pipe.recv())
    for process in processes:
        process.join()
    return results


def unigram_entropy(ids: Tensor) -> float:
    """Loss of the best model that ignores the context."""
    p = ids.bincount().double() / len(ids)
    return float(-(p * p.log()).nan_to_num().sum())


def figures(results: dict[str, dict[str, list[float]]], steps: int) -> list[tuple[str, float, float]]:
    """(what, eager, nearlinear): medians without the first steps, which pay for page faults and thread pools."""
    eager, ours = (results[name] for name in LOSSES)
    warm = min(3, steps - 1)
    times = [("training step, ms", "step"), ("its loss and backward, ms", "loss part")]
    memory = [("memory above start, MB", "memory above start"), ("peak memory, MB", "peak memory")]
    return [
        *((label, *(1e3 * statistics.median(r[key][warm:]) for r in (eager, ours))) for label, key in times),
        *((label, eager[key][0], ours[key][0]) for label, key in memory),
    ]


def report(results: dict[str, dict[str, list[float]]], steps: int) -> float:
    """Print curves and figures; the largest relative difference of the two curves."""
    eager, ours = (results[name] for name in LOSSES)
    print(f"\n{'step':>6} {'eager':>12} {'nearlinear':>12} {'difference':>12}")
    for step in sorted({*range(0, steps, max(1, steps // 12)), steps - 1}):
        print(f"{step:>6} {eager['loss'][step]:>12.6f} {ours['loss'][step]:>12.6f} {ours['loss'][step] - eager['loss'][step]:>12.1e}")
    print(f"{'held-out':>6} {eager['held-out loss'][0]:>10.6f} {ours['held-out loss'][0]:>12.6f}")
    print(f"\n{'':28} {'eager':>10} {'nearlinear':>10} {'ratio':>8}")
    for label, a, b in figures(results, steps):
        print(f"{label:28} {a:>10.1f} {b:>10.1f} {a / b:>7.2f}x")
    return max(abs(a - b) / a for a, b in zip(eager["loss"], ours["loss"], strict=True))


def plot(results: dict[str, dict[str, list[float]]], steps: int, out: Path) -> None:
    from matplotlib.figure import Figure

    eager, ours = (results[name] for name in LOSSES)
    figure = Figure(figsize=(12, 4), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    curves.plot(eager["loss"], color="#0072b2", linewidth=4, alpha=0.4, label="F.cross_entropy")
    curves.plot(ours["loss"], color="black", linewidth=1, linestyle="--", label="nearlinear.cross_entropy")
    curves.set(xlabel="step", ylabel="training loss (nats per token)", title="Same seed, same curve")
    curves.legend()
    labels, ratios = zip(*((label.split(",")[0], a / b) for label, a, b in figures(results, steps)), strict=True)
    bars.bar_label(bars.barh(labels, ratios, color="#e69f00", edgecolor="black"), fmt="%.2fx", padding=3)
    bars.invert_yaxis()
    bars.margins(x=0.15)
    bars.axvline(1, color="black", linewidth=1, linestyle=":")
    bars.set(xlabel="eager / nearlinear", title=f"nearlinear {nearlinear.__version__}, torch {torch.__version__}, CPU")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=10**9, help="use at most this many tokens (default: all)")
    parser.add_argument("--batch", type=int, default=2048, help="predicted tokens per step")
    parser.add_argument("--context", type=int, default=8, help="tokens that the model sees")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/demo/language_model.png"))
    parser.add_argument("--quick", action="store_true", help="20,000 tokens, 8 small steps")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.steps, options.batch = 20_000, 8, 64
    ids, num_classes = standard_library(options.tokens)
    print(f"{len(ids):,} tokens, {num_classes:,} classes; {options.steps} steps of {options.batch:,} tokens")
    print(f"loss of a uniform guess {math.log(num_classes):.3f}, of token frequencies {unigram_entropy(ids):.3f}")
    results = run(ids, num_classes, options)
    difference = report(results, options.steps)
    plot(results, options.steps, options.out)
    print(f"\nplot: {options.out}")
    if not difference <= CURVE_TOLERANCE:
        raise SystemExit(f"the loss curves differ by {difference:.1e} of the loss, more than {CURVE_TOLERANCE:.0e}")
    print(f"the loss curves agree: largest relative difference {difference:.1e} (allowed {CURVE_TOLERANCE:.0e})")


if __name__ == "__main__":
    main()
