"""``python -m nearlinear plot``: pictures from result files only, never from a live run, so that every picture has its numbers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearlinear import plotting

from .schema import problems

__all__ = ["EXAMPLES", "KINDS", "add_arguments", "draw", "save"]

KINDS = ("time", "memory", "roofline", "error")
EXAMPLES = """\
  python -m nearlinear plot out.json                           out-time.png beside it
  python -m nearlinear plot out.json --kind memory --out m.svg
  python -m nearlinear plot sweep.json --out scaling.png       lines over the sizes where a case has several"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="result files of bench --json")
    parser.add_argument("--kind", choices=KINDS, default="time", help="default: %(default)s")
    parser.add_argument("--out", metavar="PNG|SVG", help="one file only; default: FILE-KIND.png")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> int:
    if arguments.out and len(arguments.files) > 1:
        print("plot: out must name the picture of one file; leave it out for several", file=sys.stderr)
        return 2
    for file in arguments.files:
        document = json.loads(Path(file).read_text())
        wrong = problems(document)
        if wrong:
            print(f"plot: {file} is not a result file: {wrong[0]}", file=sys.stderr)
            return 2
        print(save(document, arguments.kind, arguments.out or f"{Path(file).with_suffix('')}-{arguments.kind}.png"))
    return 0


def draw(document: Mapping[str, Any], kind: str) -> Any:
    """Axes of the picture: lines over the sizes where a case has several, else bars over the cases."""
    if kind == "error":
        return plotting.plot_gradient_error(document)
    if kind != "roofline" and plotting.scaling_rows(document):
        return plotting.plot_scaling(document, quantity=kind)
    return plotting.plot_bars(document, quantity=kind)


def save(document: Mapping[str, Any], kind: str, out: str) -> str:
    """Draws without a display and writes ``out``; returns it."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("plot: matplotlib is not installed; pip install matplotlib") from None
    matplotlib.use("agg")
    ax = draw(document, kind)
    ax.figure.savefig(out, dpi=150, bbox_inches="tight")
    return out
