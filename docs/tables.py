"""Writes the tables of the documentation that have a source in code: ``python docs/tables.py``. A test compares."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import coverage
from nearlinear.row_losses import ROW_LOSSES
from nearlinear.score_maps import SCORE_MAPS

DOCS = Path(__file__).resolve().parent


def row_losses() -> str:
    """One line per record: name, record with its defaults, formula and range (first paragraph of its docstring), source."""
    lines = ["| `row_loss=` | record | loss | source |", "|---|---|---|---|"]
    for name, record in ROW_LOSSES.items():
        lines.append(f'| `"{name}"` | `{record()!r}` | {summary(record)} | {record.source} |')
    return "\n".join(lines)


def score_maps() -> str:
    """One line per record: its fields and defaults, formula, whether it takes ``margin=``, source."""
    lines = ["| record | logit | `margin=` | source |", "|---|---|---|---|"]
    for record in SCORE_MAPS.values():
        fields = (f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default}" for f in dataclasses.fields(record))
        margin = "yes" if record.takes_margin else ""
        lines.append(f"| `{record.__name__}({', '.join(fields)})` | {summary(record)} | {margin} | {record.source} |")
    return "\n".join(lines)


def summary(record: type) -> str:
    """First paragraph of a docstring as a cell of a table."""
    return " ".join((inspect.getdoc(record) or "").split("\n\n")[0].split()).replace("``", "`").replace("|", r"\|")


def papers() -> str:
    done = sum(paper.status == "done" for paper in coverage.PAPERS)
    lines = [
        "# Coverage of papers",
        "",
        "<!-- written by docs/tables.py from docs/coverage.py -->",
        "",
        f"The works that the library sets out to cover, and what covers each: {done} of {len(coverage.PAPERS)} so far. Planned names are",
        'not in this release. "Example" means that plain torch is already the right tool, and an executable example will show it.',
        "",
        "| | paper | family | covered by | status |",
        "|---:|---|---|---|---|",
    ]
    for number, paper in enumerate(coverage.PAPERS, start=1):
        covered = paper.what if paper.status == "planned" else ", ".join(f"`{name}`" for name in paper.what.split(", "))
        lines.append(f"| {number} | {paper.title} ({paper.authors}, arXiv:{paper.arxiv}) | {paper.family} | {covered} | {paper.status} |")
    return "\n".join(lines) + "\n"


def between(text: str, name: str, content: str) -> str:
    """``text`` with the part between the markers ``<!-- name:begin -->`` and ``<!-- name:end -->`` replaced."""
    found, count = re.subn(
        rf"(<!-- {name}:begin -->\n).*?(\n<!-- {name}:end -->)", lambda match: match[1] + content + match[2], text, flags=re.S
    )
    if count != 1:
        raise ValueError(f"{name}: expected one pair of markers, found {count}")
    return found


def pages() -> dict[Path, str]:
    """Every page with a generated part, as it should be."""
    found = {DOCS / "coverage.md": papers()}
    for page, table in (("cross_entropy", row_losses), ("linear_cross_entropy", score_maps)):
        path = DOCS / f"{page}.md"
        found[path] = between(path.read_text(), table.__name__, table())
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
