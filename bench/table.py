"""The table of a result file. Ratios are computed here, from the file; the file stores none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["caption", "group", "render"]

Row = Mapping[str, Any]
PASS_NAMES = {"fwd": "forward", "full": "forward + backward"}
HEADS = ("case", "dtype, sizes", "pass", "ours, ms", "limit, ms (% reached)")


def group(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, Row]]:
    """(op, case, dtype, sizes, pass) -> implementation -> row, without the floors."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row["pass"] != "floor":
            key = (row["op"], row["case"], row["dtype"], _sizes(row), row["pass"])
            found.setdefault(key, {})[row["impl"]] = row
    return found


def yardsticks(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, Row]]:
    """(op, case, dtype, sizes) -> name -> row: the floors that are neither of bytes nor of products."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row["pass"] == "floor" and row["bytes"] is None and row["flops"] is None:
            found.setdefault((row["op"], row["case"], row["dtype"], _sizes(row)), {})[row["impl"]] = row
    return found


def render(document: Mapping[str, Any], *, markdown: bool) -> str:
    """Markdown: a line per case and pass, rivals beside ours. Plain text: a line per implementation."""
    groups = group(document["rows"])
    body = _markdown(groups) if markdown else _plain(groups, yardsticks(document["rows"]))
    return f"{body}\n\n{caption(document)}"


def _markdown(groups: Mapping[tuple[str, ...], Mapping[str, Row]]) -> str:
    rivals = _used_rivals(groups)
    names = " / ".join(["ours", *rivals])
    lines = [[*HEADS, *rivals, f"peak MB: {names}", f"loss error: {names}"], ["---"] * 3 + ["---:"] * (len(rivals) + 4)]
    for (_, case, dtype, sizes, which), impls in groups.items():
        ours, shown = impls["ours"], [impls.get(name) for name in ("ours", *rivals)]
        cells = [case, f"{dtype} {sizes}", PASS_NAMES[which], _ms(ours), _limit(ours)]
        cells += [_rival(row, ours) for row in shown[1:]]
        cells += [" / ".join(_number(row and row["peak_mb"]) for row in shown), " / ".join(_loss_error(row) for row in shown)]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _plain(groups: Mapping[tuple[str, ...], Mapping[str, Row]], beside: Mapping[tuple[str, ...], Mapping[str, Row]]) -> str:
    lines = [["impl", "ms [20 %, 80 %]", "ratio", "% of limit", "cpu ms", "peak MB", "host us", "loss error", "gradient error"]]
    titles: dict[int, str] = {}
    for (op, case, dtype, sizes, which), impls in groups.items():
        titles[len(lines)] = f"{op}: {case}, {dtype} {sizes}, {PASS_NAMES[which]}"
        for name, row in impls.items():
            if row["status"] != "ok":
                lines.append([name, f"{row['status']}: {row['reason']}", *[""] * 7])
                continue
            gradient = "-" if row["error"]["gradient"] is None else f"{row['error']['gradient']:.0e}"
            numbers = [_number(row[key]) for key in ("cpu_ms", "peak_mb", "host_us")]
            lines.append([name, _ms(row), _ratio(row, impls["ours"]), f"{row['pct_roof']:.0f}", *numbers, _loss_error(row), gradient])
        for name, row in beside.get((op, case, dtype, sizes), {}).items():
            lines.append([f"{name}, no loss", _ms(row), _ratio(row, impls["ours"]), "", _number(row["cpu_ms"]), *[""] * 4])
    # a reason may be long, and only the last filled cell of its line
    widths = [max(len(cells[i]) for cells in lines if i != 1 or cells[2]) for i in range(len(lines[0]))]
    text = []
    for i, cells in enumerate(lines):
        if i in titles:
            text += ["", titles[i]]
        text.append("  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())
    return "\n".join(text)


def caption(document: Mapping[str, Any]) -> str:
    """Hardware, versions, commit and command of a run, and what makes it unfit for publication."""
    near, versions, host, gpu = (document[key] for key in ("nearlinear", "versions", "host", "gpu"))
    place = f"{gpu['name']}, driver {versions['driver']}" if gpu else f"{host['cpu']}, {host['threads']} threads, {host['simd']}"
    commit = (near["commit"] or "unknown commit")[:12] + (" with changes" if near["dirty"] else "")
    roof = document["roof"]
    limits = f"copy {roof['copy_gbs']:.1f} GB/s" if roof["copy_gbs"] else "copy not measured"
    fresh = f", into a new buffer {roof['copy_fresh_gbs']:.1f} GB/s" if roof.get("copy_fresh_gbs") else ""
    notes = [
        f"{place}; torch {versions['torch']}, nearlinear {near['version']} at {commit}; {limits}{fresh}; "
        f"tests: {document['tests']['status']}.",
        "Median, in brackets the 20 and 80 % quantiles; all implementations in turn in one process. Ratio: time of the rival / ours. Peak: "
        "memory above the inputs, the gradient included. Errors are relative, against float64.",
        f"`{document['command']}`",
    ]
    if document["smoke"]:
        notes.insert(0, "SMOKE RUN: tiny sizes, the times mean nothing.")
    if gpu and _throttled(gpu["sm_clock_mhz"]):
        notes.insert(0, f"CLOCKS MOVED during the run: {gpu['sm_clock_mhz']} MHz.")
    return "\n".join(notes)


def _throttled(clocks: Sequence[int | None]) -> bool:
    first, last = clocks
    return bool(first and last and abs(last - first) > 0.05 * first)


def _used_rivals(groups: Mapping[tuple[str, ...], Mapping[str, Row]]) -> list[str]:
    """Baselines that were measured or failed somewhere; one that was refused everywhere would be an empty column."""
    names: dict[str, None] = {}
    for impls in groups.values():
        names.update(dict.fromkeys(name for name, row in impls.items() if name != "ours" and row["status"] != "unsupported"))
    return list(names)


def _rival(row: Row | None, ours: Row) -> str:
    if row is None or row["status"] == "unsupported":
        return "-"
    return f"{_ms(row)} ({_ratio(row, ours)})" if row["status"] == "ok" else str(row["status"])


def _ratio(row: Row, ours: Row) -> str:
    """Time of the row over ours."""
    both = row["status"] == ours["status"] == "ok"
    ratio = row["ms"]["p50"] / ours["ms"]["p50"] if both else 0.0
    return (f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x") if both else "-"


def _ms(row: Row) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    low, middle, high = (_number(row["ms"][key]) for key in ("p20", "p50", "p80"))
    return f"{middle} [{low}, {high}]"


def _limit(row: Row) -> str:
    if row["status"] != "ok":
        return "-"
    return f"{_number(row['ms']['p50'] * row['pct_roof'] / 100)} ({row['pct_roof']:.0f} %)"


def _loss_error(row: Row | None) -> str:
    return f"{row['error']['loss']:.0e}" if row and row["error"] else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _sizes(row: Row) -> str:
    return "(" + ", ".join(map(str, row["sizes"].values())) + ")"
