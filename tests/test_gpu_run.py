"""bench/run_gpu.sh: a dry run on CPU, its time limits, and a step that hangs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nearlinear.bench.schema import problems

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.timeout(240)
def test_gpu_run_dry(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(ROOT / "bench/run_gpu.sh"), "--dry-run"], env=environment, capture_output=True, text=True, check=False
    )
    steps = json.loads((tmp_path / "out/steps.json").read_text())
    log = (tmp_path / "out/log.txt").read_text()
    assert done.returncode == 0, done.stdout + log
    assert steps["dry_run"] is True
    assert {step["name"]: step["status"] for step in steps["steps"]} == {
        "build": "skipped", "env": "ok", "warm-up": "ok", "tests": "ok", "sanitize memcheck": "skipped", "sanitize racecheck": "skipped",
        "bench": "ok",
    }  # fmt: skip
    assert all(step["reason"] for step in steps["steps"] if step["status"] != "ok")
    assert json.loads((tmp_path / "out/env.json").read_text())["ok"] is True
    assert problems(json.loads((tmp_path / "out/bench.json").read_text())) == []
    assert [tool["name"] for tool in json.loads((tmp_path / "out/sanitizer.json").read_text())["tools"]] == ["memcheck", "racecheck"]
    assert "| case |" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith("results in out")


def test_gpu_run_fits_into_nine_minutes_and_stops_where_a_step_hangs(tmp_path):
    text = (ROOT / "bench/run_gpu.sh").read_text()
    limits = {name: int(value) for name, value in re.findall(r"(step [\w-]+|limited) (\d+) ", text)}
    assert set(limits) == {"step build", "step env", "step warm-up", "step tests", "limited", "step bench"}
    # the sanitizer runs twice
    assert sum(limits.values()) + limits["limited"] <= int(re.search(r"TOTAL=(\d+)", text).group(1)) == 540
    # an interpreter that never answers: the self-test is stopped, recorded, and the run ends red
    hang = tmp_path / "python"
    hang.write_text("#!/bin/sh\nsleep 600\n")
    hang.chmod(0o755)
    script = tmp_path / "bench/run_gpu.sh"
    script.parent.mkdir()
    script.write_text(text.replace("step env 30", "step env 1"))
    environment = {**os.environ, "PYTHON": str(hang), "OUT": str(tmp_path / "out")}
    done = subprocess.run(["bash", str(script), "--dry-run"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    steps = json.loads((tmp_path / "out/steps.json").read_text())["steps"]
    assert (steps[-1]["name"], steps[-1]["status"], steps[-1]["reason"]) == ("env", "timeout", "stopped after 1 s")
