"""Plots (extra ``[plot]``): each takes stored numbers, draws on ``ax`` (a new one by default), returns it and saves nothing.

Series differ in colour (a colour-blind-safe set), marker and line style, so that they stay apart in greyscale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import environment

__all__ = ["STYLES", "plot_bars", "plot_gradient_error", "plot_roc_curve", "plot_scaling", "plot_training_curves", "scaling_rows"]

# Okabe and Ito's colours, darkest first
STYLES = [
    {"color": color, "marker": marker, "linestyle": line}
    for color, marker, line in zip(
        ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
        "osD^vPX",
        ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))),
        strict=True,
    )
]
HATCHES = ("", "//", "..", "xx", "--", "\\\\", "++")
QUANTITIES = {"time": "time in ms", "memory": "peak memory above the inputs in MB", "roofline": "% of the machine's limit (same run)"}
PASSES = {"fwd": "forward", "full": "forward + backward"}

Document = Mapping[str, Any]
Row = Mapping[str, Any]


def plot_scaling(results: Document, *, quantity: str = "time", case: str | None = None, which: str = "full", ax: Any = None) -> Any:
    """Time or peak memory of one case against its size, log-log: 20-80 % band, limit of the machine, crosses where a run failed.

    ``results`` is a result file of ``python -m nearlinear bench``; ``case`` defaults to its first case with several sizes.
    """
    rows = scaling_rows(results, which) if case is None else [r for r in results["rows"] if r["case"] == case and r["pass"] == which]
    if not rows:
        raise ValueError("plot_scaling: results must hold a case with several sizes; run bench --sizes sweep")
    ax, letter = _axes(ax), _varying(rows)
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(f"{row['impl']} {row['dtype']}", []).append(row)
    top = 1.8 * max(_value(row, quantity) or 0 for row in rows)
    for style, (name, found) in zip(STYLES * 3, series.items(), strict=False):
        good = sorted((row for row in found if _value(row, quantity)), key=lambda row: row["sizes"][letter])
        x = [row["sizes"][letter] for row in good]
        if x:
            ax.plot(x, [_value(row, quantity) for row in good], label=name, **style)
            if quantity == "time":
                ax.fill_between(x, [r["ms"]["p20"] for r in good], [r["ms"]["p80"] for r in good], color=style["color"], alpha=0.15)
        for row in found:
            if row["status"] in ("oom", "timeout"):
                ax.plot(row["sizes"][letter], top, marker="x", markersize=9, color=style["color"], linestyle="none")
                ax.annotate(row["status"], (row["sizes"][letter], top), textcoords="offset points", xytext=(4, 4), fontsize=7)
        if quantity == "time" and found[0]["impl"] == "ours" and x:
            limit = [row["ms"]["p50"] * row["pct_roof"] / 100 for row in good]
            ax.plot(x, limit, color="0.5", linewidth=1, label=f"limit of the machine {found[0]['dtype']}")
    ax.set(xscale="log", yscale="log", xlabel=letter, ylabel=QUANTITIES[quantity])
    ax.set_title(f"{rows[0]['op']}, {rows[0]['case']}: {PASSES[which]}")
    ax.grid(visible=True, which="major", alpha=0.3)
    _legend(ax)
    return _stamp(ax, results)


def scaling_rows(results: Document, which: str = "full") -> list[Row]:
    """Rows of the first case that was run at several sizes; empty if there is none."""
    for case in dict.fromkeys(row["case"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["case"] == case and row["pass"] == which]
        if len({tuple(row["sizes"].values()) for row in rows}) > 1:
            return rows
    return []


def plot_bars(results: Document, *, quantity: str = "time", which: str = "full", ax: Any = None) -> Any:
    """Every case, one bar per implementation with its figure beside it. Times are drawn as multiples of ours, the rest as they are."""
    rows = [row for row in results["rows"] if row["pass"] == which and row["status"] != "unsupported"]
    cases = list(dict.fromkeys(_case(row) for row in rows))
    names = list(dict.fromkeys(row["impl"] for row in rows))
    ours = {_case(row): _value(row, "time") for row in rows if row["impl"] == "ours"} if quantity == "time" else {}
    ax = _axes(ax, height=1.0 + 0.22 * (len(rows) + len(cases)))
    order = {id(row): i + k for k, case in enumerate(cases) for i, row in enumerate(rows) if _case(row) == case}
    for i, name in enumerate(names):
        found = [row for row in rows if row["impl"] == name]
        values = [(_value(row, quantity) or 0.0) / (ours.get(_case(row)) or 1.0) for row in found]
        style = {"color": STYLES[i % 7]["color"], "hatch": HATCHES[i % 7], "edgecolor": "white", "alpha": 0.85}
        bars = ax.barh([order[id(row)] for row in found], values, label=name, **style)
        ax.bar_label(bars, [_label(row, quantity) for row in found], padding=3, fontsize=7)
    middles = [[order[id(row)] for row in rows if _case(row) == case] for case in cases]
    ax.set_yticks([sum(places) / len(places) for places in middles], cases, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="time / time of ours (figures: ms)" if quantity == "time" else QUANTITIES[quantity], title=PASSES[which])
    ax.margins(x=0.12)
    _legend(ax)
    return _stamp(ax, results)


def plot_gradient_error(results: Document, *, ax: Any = None) -> Any:
    """Relative error of the gradient (filled) and of the loss (hollow) against float64, per case and implementation."""
    rows = [row for row in results["rows"] if row["pass"] == "full" and row["error"]]
    cases = list(dict.fromkeys(f"{row['case']}, {row['dtype']}" for row in rows))
    names = list(dict.fromkeys(row["impl"] for row in rows))
    ax = _axes(ax, height=1.5 + 0.35 * len(cases))
    for i, name in enumerate(names):
        found = [row for row in rows if row["impl"] == name]
        places = [cases.index(f"{row['case']}, {row['dtype']}") + 0.12 * (i - (len(names) - 1) / 2) for row in found]
        color, marker = STYLES[i % 7]["color"], STYLES[i % 7]["marker"]
        ax.plot([row["error"]["gradient"] for row in found], places, marker, color=color, label=f"{name}: gradient")
        # a loss that is exact to the last bit has no place on a logarithmic axis
        losses = [max(row["error"]["loss"], 1e-12) for row in found]
        ax.plot(losses, places, marker, color=color, markerfacecolor="none", label=f"{name}: loss")
    ax.set_yticks(range(len(cases)), cases, fontsize=8)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="relative error against float64", title="error of loss and gradient")
    ax.grid(visible=True, axis="x", alpha=0.3)
    _legend(ax)
    return _stamp(ax, results)


def plot_training_curves(
    curves: Mapping[str, Sequence[float]], *, steps: Sequence[float] | None = None, ylabel: str = "loss", ax: Any = None
) -> Any:
    """Curves of the same quantity over the steps of several runs; equal curves stay visible, each thinner than the one below it."""
    ax = _axes(ax)
    for i, (name, values) in enumerate(curves.items()):
        x = range(len(values)) if steps is None else steps
        style = {"color": STYLES[i % 7]["color"], "linestyle": STYLES[i % 7]["linestyle"]}
        ax.plot(x, values, label=name, linewidth=max(4.5 - 3 * i, 1.2), alpha=0.5 if i == 0 and len(curves) > 1 else 1.0, **style)
    ax.set(xlabel="step", ylabel=ylabel)
    ax.grid(visible=True, alpha=0.3)
    ax.legend(fontsize=8)
    return _stamp(ax, _this_tree())


def plot_roc_curve(curves: Mapping[str, Sequence[Any]], *, ax: Any = None) -> Any:
    """ROC curves by name, each ``(fpr, tpr, ...)`` as of :func:`nearlinear.roc_curve`, with the area under each and the line of chance."""
    ax = _axes(ax, height=6.0)
    for style, (name, (fpr, tpr, *_)) in zip(STYLES * 3, curves.items(), strict=False):
        x, y = ([float(value) for value in values] for values in (fpr, tpr))
        area = sum((x[k + 1] - x[k]) * (y[k + 1] + y[k]) / 2 for k in range(len(x) - 1))
        ax.plot(x, y, label=f"{name}: {area:.4f}", color=style["color"], linestyle=style["linestyle"])
    ax.plot([0, 1], [0, 1], color="0.5", linewidth=1, label="chance: 0.5")
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    ax.grid(visible=True, alpha=0.3)
    ax.legend(fontsize=8, loc="lower right")
    return _stamp(ax, _this_tree())


def _this_tree() -> Document:
    return {"nearlinear": {"version": environment.versions()["nearlinear"], **environment.git_state()}}


def _axes(ax: Any, height: float = 4.5) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("nearlinear.plotting needs matplotlib, which is not installed; pip install matplotlib") from error
    return plt.subplots(figsize=(8, height), layout="constrained")[1]


def _legend(ax: Any) -> None:
    """Beside the axes: no place inside is free of data for every file."""
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def _stamp(ax: Any, results: Document) -> Any:
    """Version, commit and machine in the corner: a picture that is passed around says where it is from."""
    near = results["nearlinear"]
    commit = (near["commit"] or "unknown commit")[:9] + ("+" if near["dirty"] else "")
    place = results["gpu"]["name"] if results.get("gpu") else results["host"]["cpu"] if "host" in results else ""
    text = f"nearlinear {near['version']} {commit} {place}".rstrip() + (" SMOKE RUN" if results.get("smoke") else "")
    ax.text(0.995, 0.003, text, transform=ax.figure.transFigure, ha="right", va="bottom", fontsize=6, color="0.4")
    return ax


def _varying(rows: Iterable[Row]) -> str:
    """The size letter that varies most."""
    values: dict[str, set[int]] = {}
    for row in rows:
        for letter, size in row["sizes"].items():
            values.setdefault(letter, set()).add(size)
    return max(values, key=lambda letter: len(values[letter]))


def _value(row: Row, quantity: str) -> float | None:
    if row["status"] != "ok":
        return None
    value: float | None = {"time": (row["ms"] or {}).get("p50"), "memory": row["peak_mb"], "roofline": row["pct_roof"]}[quantity]
    return value


def _label(row: Row, quantity: str) -> str:
    value = _value(row, quantity)
    return row["status"] if row["status"] != "ok" else "not measured" if value is None else f"{value:.3g}"


def _case(row: Row) -> str:
    return f"{row['case']}\n{row['dtype']} ({', '.join(map(str, row['sizes'].values()))})"
