"""Runs triton_cases.py and triton_edges.py, the Triton launchers on CPU tensors, in a process of its own: TRITON_INTERPRET must be set
before anything imports triton, and torch.compile in this process may have imported it already."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_launchers_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="runs Triton kernels")
    import numpy
    import triton

    if triton.__version__ == "3.6.0" and tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4):
        pytest.fail("the interpreter of triton 3.6.0 needs numpy < 2.4: pip install 'numpy<2.4'")
    modules = [str(Path(__file__).with_name(name)) for name in ("triton_cases.py", "triton_edges.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *modules]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 100, run.stdout[-2000:]  # type: ignore[index]
    assert "skipped" not in run.stdout
