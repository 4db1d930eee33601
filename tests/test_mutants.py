"""The list of planted bugs stays applicable: each old text occurs exactly once, each named test exists. The bugs are run on demand."""

from __future__ import annotations

import re
import shlex
from collections import Counter

import pytest
from mutants import KINDS, ROOT, Mutant, mutants

MUTANTS = list(mutants())


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{m.kind}-{i}" for i, m in enumerate(MUTANTS)])
def test_mutant_applies(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.old != mutant.new
    for place in (part for part in shlex.split(mutant.tests) if part.startswith("tests/")):
        file, *names = place.split("::")
        text = (ROOT / file).read_text()
        for name in names:
            assert re.search(rf"(def|class) {name}\b", text + (ROOT / "tests/battery.py").read_text()), place


def test_at_least_ten_bugs_for_every_kernel() -> None:
    count = Counter(m.kind for m in MUTANTS)
    assert min(count[kind] for kind in KINDS) >= 10
