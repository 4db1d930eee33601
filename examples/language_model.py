"""A token-level language model of Python's own standard library, trained three times from the same seed: with ``F.cross_entropy``, with
``nearlinear.cross_entropy``, and with ``nearlinear.linear_cross_entropy``, which takes the output layer instead of its logits. Prints the
loss curves (they must agree within float32 noise), the time and the memory of each, and writes a plot.

    python examples/language_model.py                  # about 1.1 million tokens, 22,000 classes; minutes on two cores
    python examples/language_model.py --quick          # seconds: shows that it runs, measures nothing

Each model lives in a process of its own and they train in lockstep, one step of each in turn, in alternating order: a busy machine slows
all alike, and the peak memory of each process is its own.
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

Loss = Callable[[Tensor, nn.Linear, Tensor], Tensor]  # features, output layer, targets
LOSSES: dict[str, Loss] = {
    "eager": lambda features, head, targets: F.cross_entropy(head(features), targets),
    "nearlinear": lambda features, head, targets: nearlinear.cross_entropy(head(features), targets),
    "fused head": lambda features, head, targets: nearlinear.linear_cross_entropy(features, head.weight, targets, linear_bias=head.bias),
}
LABELS = {"eager": "F.cross_entropy", "nearlinear": "nearlinear.cross_entropy", "fused head": "nearlinear.linear_cross_entropy"}
# other people's code, tests, tables, applications, and what newer Pythons no longer ship
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "encodings", "pydoc_data", "idlelib", "turtledemo", "distutils", "lib2to3"}
LAYOUT = {tokenize.NEWLINE: "<newline>", tokenize.INDENT: "<indent>", tokenize.DEDENT: "<dedent>"}
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
# The runs may differ by this fraction of the loss. The same sums in another order, fed back through every optimiser step, were seen to
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
        self.features = nn.Sequential(nn.Embedding(num_classes, width), nn.Flatten(), nn.Linear(context * width, width), nn.Tanh())
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.features(tokens))


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
    loss_function(
        torch.zeros(2, model.head.in_features), model.head, torch.zeros(2, dtype=torch.long)
    )  # first-call costs belong to no step
    held_out = len(ids) // 20
    training, held = ids[:-held_out], ids[-held_out:]
    data = batches(training, options.batch, options.context, options.seed)
    marks: dict[str, list[float]] = {}

    def watch(part: str, tensor: Tensor) -> None:
        """From here until the gradient of ``tensor`` is complete lies this part of the step, with its backward, and nothing else."""
        marks[part] = [time.perf_counter()]
        tensor.register_hook(lambda gradient: marks[part].append(time.perf_counter()))

    watching = model.head.register_forward_hook(lambda module, inputs, logits: watch("loss part", logits))  # the fused head has no logits
    before = peak_memory_mb()
    while connection.recv() == "step":
        tokens, targets = next(data)
        begin = time.perf_counter()
        optimizer.zero_grad()
        features = model.features(tokens)
        watch("head part", features)
        loss = loss_function(features, model.head, targets)
        loss.backward()
        optimizer.step()
        parts = [marks[part][1] - marks[part][0] if part in marks else math.nan for part in ("head part", "loss part")]
        connection.send((loss.item(), time.perf_counter() - begin, *parts))
        del features, loss  # else two steps' graphs would overlap in the next forward
    peak = peak_memory_mb()
    watching.remove()
    with torch.no_grad():
        windows = batches(held, options.batch, options.context, options.seed + 1)
        pairs = [(model.features(tokens), targets) for tokens, targets in (next(windows) for _ in range(4))]
        scores = [loss_function(features, model.head, targets).item() for features, targets in pairs]
    connection.send((statistics.mean(scores), peak, peak - before))


def run(ids: Tensor, num_classes: int, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """All processes in lockstep. Per loss: losses, seconds per step and in its parts; held-out loss, peak MB, MB above the start."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in LOSSES:
        pipes[name], far_end = context.Pipe()
        processes.append(context.Process(target=train, args=(far_end, name, ids, num_classes, options), daemon=True))
        processes[-1].start()
        far_end.close()  # so that a child that dies is an EOFError here, not a wait without end
    results: dict[str, dict[str, list[float]]] = {name: {key: [] for key in ("loss", "step", "head part", "loss part")} for name in LOSSES}
    for step in progress(range(options.steps), desc=f"training, {', '.join(LOSSES)}"):
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


def figures(results: dict[str, dict[str, list[float]]], steps: int) -> list[tuple[str, list[float]]]:
    """(what, its value per loss): medians without the first steps, which pay for page faults and thread pools; NaN where there is none."""
    warm = min(3, steps - 1)
    times = [("training step", "step"), ("output layer, loss, backward", "head part"), ("its loss and backward", "loss part")]
    memory = [("memory above start", "memory above start"), ("peak memory", "peak memory")]
    return [
        *((f"{label}, ms", [1e3 * statistics.median(found[key][warm:]) for found in results.values()]) for label, key in times),
        *((f"{label}, MB", [found[key][0] for found in results.values()]) for label, key in memory),
    ]


def report(results: dict[str, dict[str, list[float]]], steps: int) -> float:
    """Print curves and figures; the largest relative difference of a curve from eager's."""
    eager, *others = results.values()
    print(f"\n{'step':>8}" + "".join(f"{name:>13}" for name in results))
    for step in sorted({*range(0, steps, max(1, steps // 12)), steps - 1}):
        print(f"{step:>8}" + "".join(f"{found['loss'][step]:>13.6f}" for found in results.values()))
    print(f"{'held-out':>8}" + "".join(f"{found['held-out loss'][0]:>13.6f}" for found in results.values()))
    print(f"\n{'eager / other in brackets':32}" + "".join(f"{name:>18}" for name in results))
    for label, values in figures(results, steps):
        shown = ["-" if math.isnan(value) else f"{value:.1f} ({values[0] / value:.2f}x)" for value in values]
        print(f"{label:32}" + "".join(f"{text:>18}" for text in shown))
    return max(abs(a - b) / a for other in others for a, b in zip(eager["loss"], other["loss"], strict=True))


def plot(results: dict[str, dict[str, list[float]]], steps: int, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    styles = [("#0072b2", "-", 5.0), ("#e69f00", "--", 2.5), ("black", ":", 1.0)]  # equal curves stay visible
    for (name, found), (color, line, width) in zip(results.items(), styles, strict=True):
        curves.plot(found["loss"], color=color, linestyle=line, linewidth=width, label=LABELS[name])
    curves.set(xlabel="step", ylabel="training loss (nats per token)", title="Same seed, same curve")
    curves.legend()
    measured = figures(results, steps)
    for i, (name, (color, _, _)) in enumerate(zip(results, styles, strict=True)):
        if i > 0:
            ratios = [values[0] / values[i] for _, values in measured]
            places = [k + 0.4 * (i - 1.5) for k in range(len(measured))]
            drawn = bars.barh(places, [0 if math.isnan(ratio) else ratio for ratio in ratios], 0.38, color=color, label=LABELS[name])
            bars.bar_label(drawn, ["none" if math.isnan(ratio) else f"{ratio:.2f}x" for ratio in ratios], padding=3)
    bars.set_yticks(range(len(measured)), [label.rsplit(",", 1)[0] for label, _ in measured])
    bars.invert_yaxis()
    bars.margins(x=0.15)
    bars.axvline(1, color="0.5", linewidth=1, linestyle=":")
    bars.set(xlabel="eager / other", title=f"nearlinear {nearlinear.__version__}, torch {torch.__version__}, CPU")
    bars.legend()
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
