"""What the documentation says is run: code blocks, examples of docstrings, generated tables, names of commands."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nearlinear
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """docs/tables.py; its neighbour docs/coverage.py must not be taken for the package of that name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    for name in ("coverage", "tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("tables")
    for name in ("coverage", "tables"):
        del sys.modules[name]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path) -> None:
    """The blocks of a page are one session, from its first to its last."""
    torch.manual_seed(0)
    code = "\n".join(blocks(page, "python"))
    module = ModuleType("page")
    sys.modules["page"] = module  # dataclasses look their module up
    try:
        exec(compile(code, str(page), "exec"), module.__dict__)
    finally:
        del sys.modules["page"]


def test_blocks_are_found() -> None:
    """A typing error in the pattern above would make every block pass."""
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 12
    languages = {language for page in PAGES for language, _ in BLOCK.findall(page.read_text())}
    assert languages <= {"python", "sh", "text", "diff", ""}, "a language that nothing here checks"


def test_shell_blocks_name_what_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    words = [line.split("#")[0] for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    lines = "\n".join(words)
    assert set(re.findall(r"\bmake (\w+)", lines)) <= targets
    for path in re.findall(r"\b(?:tests|bench|docs|examples|\.ci)/[\w./-]+\w", lines):
        assert (ROOT / path).exists(), path


def test_links_between_pages() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "name",
    [
        "betti_matching",
        "betti_metrics",
        "cross_entropy",
        "distance",
        "distances",
        "kl_logit",
        "linear_cross_entropy",
        "metrics",
        "roc_auc",
        "taylor_attention",
        "tensor_attention",
        "tensor_attention_plan",
        "row_losses",
        "logit_maps",
        "reference.cross_entropy",
        "reference.distance",
    ],
)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"nearlinear.{name}"))
    assert result.failed == 0
    if name in ("betti_matching", "betti_metrics", "cross_entropy", "distance", "kl_logit", "linear_cross_entropy", "metrics", "roc_auc"):
        assert result.attempted > 0


def test_every_public_function_is_documented() -> None:
    text = (ROOT / "docs/api.md").read_text()
    documented = set(re.findall(r"auto(?:function|class|exception|module):: (?:nearlinear\.)?(\w+)", text))
    assert {name for name in nearlinear.__all__ if name not in ("__version__", "reference")} <= documented
    assert all(f"nearlinear.reference.{family}" in text for family in nearlinear.reference.__all__)


def test_generated_tables_are_fresh(tables: ModuleType) -> None:
    for path, text in tables.pages().items():
        assert path.read_text() == text, f"{path.name} is stale: python docs/tables.py"


def test_coverage_of_papers(tables: ModuleType) -> None:
    papers = tables.coverage.PAPERS
    assert len(papers) == len({paper.arxiv for paper in papers}) == 41
    for paper in papers:
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)
        names = paper.what.split(", ")
        if paper.status == "done":
            assert all(hasattr(nearlinear, name) for name in names), names
        else:
            assert paper.status == "planned"
            # a planned name that exists is a row that nobody updated
            assert not any(hasattr(nearlinear, name) for name in names), names


def test_version_is_stated_once() -> None:
    version = nearlinear.__version__
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
