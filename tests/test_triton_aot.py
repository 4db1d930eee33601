"""The Triton kernels as compiled for sm_80 and sm_90, without a GPU: they compile, spill nothing, keep to their budget of registers and
shared memory, and form every offset in 64 bits. ``python tests/test_triton_aot.py`` writes the budget of the Triton installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
BUDGET = HERE / "triton_budget.json"
CAPABILITIES = (80, 90)


def compile_all() -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(report by key, report of the planted kernel); one process per architecture, which also frees them of the interpreter's switch."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE / "triton_compile.py")]
    runs = [subprocess.Popen([*command, str(c)], env=environment, stdout=subprocess.PIPE, text=True) for c in CAPABILITIES]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), "a kernel did not compile; its error is on stderr"
    reports = {report.pop("key"): report for output in outputs for report in map(json.loads, output.splitlines())}
    return reports, reports.pop("planted")


@pytest.fixture(scope="module")
def compiled() -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    pytest.importorskip("triton", reason="compiles Triton kernels")
    return compile_all()


@pytest.fixture(scope="module")
def budget() -> dict[str, list[int]]:
    """[registers, shared bytes] by key. Another compiler allots other registers, so each has a budget of its own."""
    import triton

    budgets = json.loads(BUDGET.read_text())
    if triton.__version__ not in budgets:
        pytest.skip(f"no budget is recorded for Triton {triton.__version__}, only for {', '.join(budgets)}")
    return budgets[triton.__version__]


def test_the_budget_lists_exactly_what_the_launchers_can_choose(compiled: Any, budget: dict[str, list[int]]) -> None:
    assert set(compiled[0]) == set(budget)


def test_registers_and_shared_memory_keep_to_the_budget(compiled: Any, budget: dict[str, list[int]]) -> None:
    used = {key: [report["registers"], report["shared"]] for key, report in compiled[0].items()}
    assert not {key: (used[key], budget[key]) for key in used if used[key][0] > budget[key][0] or used[key][1] > budget[key][1]}


def test_nothing_spills(compiled: Any) -> None:
    assert not {key: report["stack"] for key, report in compiled[0].items() if report["stack"]}


def test_offsets_are_64_bit_products(compiled: Any) -> None:
    assert not {key: report["narrow_products"] for key, report in compiled[0].items() if report["narrow_products"]}


def test_the_check_of_offsets_sees_a_planted_row_and_class_offset(compiled: Any) -> None:
    found = compiled[1]["narrow_products"]
    assert len(found) == 2
    assert any("stride_n" in line for line in found)


def test_long_rows_load_16_bytes_at_once(compiled: Any) -> None:
    """Where the row is long, a half dtype or float32, and V divisible by 16."""
    narrow = [key for key, report in compiled[0].items() if "V32000" in key and "float64" not in key and not report["wide_loads"]]
    assert not narrow


if __name__ == "__main__":
    import triton

    budgets = json.loads(BUDGET.read_text())
    budgets[triton.__version__] = {key: [report["registers"], report["shared"]] for key, report in sorted(compile_all()[0].items())}
    lines = json.dumps(budgets, indent=1)
    BUDGET.write_text(re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", lines) + "\n")
