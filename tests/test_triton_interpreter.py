"""The Triton launchers on CPU tensors, in Triton's interpreter: their own cases and edges, and the battery of the CPU kernels with the
launchers in their place. In processes of their own: TRITON_INTERPRET must be set before anything imports triton, and torch.compile in this
process may have imported it already."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# of the battery: whatever exercises a kernel. Compilation, second derivatives and Modules are the same lines for every kernel.
NAMES = ["error_budget", "layouts", "overwritten", "same_bits", "edges", "confident", "offset", "rising", "one_hot", "shard", "sums"]
BATTERY = " or ".join([*NAMES, "arc_cosine"])


def interpreted(*arguments: str) -> str:
    pytest.importorskip("triton", reason="runs Triton kernels")
    import numpy
    import triton

    if triton.__version__ == "3.6.0" and tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4):
        pytest.fail("the interpreter of triton 3.6.0 needs numpy < 2.4: pip install 'numpy<2.4'")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    return run.stdout


def passed(output: str) -> int:
    assert "skipped" not in output
    return int(re.search(r"(\d+) passed", output)[1])  # type: ignore[index]


def test_launchers_in_the_interpreter() -> None:
    assert passed(interpreted(*(str(HERE / f"triton_{part}.py") for part in ("cases", "edges", "kl_logit")))) > 100


PARTS = (("cross_entropy", "cross_entropy_accuracy"), ("cross_entropy_shards", "sface"), ("kl_logit", "kl_logit_edges"), ("js_logit",))


@pytest.mark.parametrize("parts", PARTS, ids=lambda p: p[0])
def test_battery_in_the_interpreter(parts: tuple[str, ...]) -> None:
    files = [str(HERE / f"test_{part}.py") for part in parts]
    assert passed(interpreted("-p", "triton_on_cpu", "-m", "not gpu", "-k", BATTERY, *files)) > 50


def test_distances_in_the_interpreter() -> None:
    """Two tiles of each kind in the first run; the second runs what the CPU kernels must pass, where a small case is enough."""
    assert passed(interpreted(str(HERE / "triton_distance.py"))) > 100
    files = [str(HERE / f"test_distance{part}.py") for part in ("", "_tile")]
    chosen = "error_budget and float32 and not blocks or tile_layouts and float32 or edges or messages"
    assert passed(interpreted("-p", "triton_on_cpu", "-m", "not gpu", "-k", chosen, *files)) > 80


def test_pair_launchers_in_the_interpreter() -> None:
    assert passed(interpreted(str(HERE / "triton_pair.py"))) > 10


def test_pair_losses_in_the_interpreter() -> None:
    """Their lines on the kernels' statistics; the small cases, because the interpreter takes a second a tile."""
    small = "error_budget and (small or mined or proxy_nca or multi_similarity) and not tiles and not float16"
    assert passed(interpreted("-p", "triton_on_cpu", "-m", "not gpu", "-k", small, str(HERE / "test_pair_loss.py"))) > 10


def test_bins_in_the_interpreter() -> None:
    assert passed(interpreted(str(HERE / "triton_bins.py"))) > 50
    assert passed(interpreted("-p", "triton_on_cpu", "-m", "not gpu", str(HERE / "test_pair_bins.py"))) > 200


def test_segments_in_the_interpreter() -> None:
    """Runs that end inside a piece of 256 rows, at its end and in a later one."""
    file = str(HERE / "test_segment_moments.py")
    chosen = "sizes and any_order and (64 or 1023 and diag) or sizes and ordered and 1024 and diag or not_a_number"
    assert passed(interpreted("-p", "triton_on_cpu", "-m", "not gpu", "-k", chosen, file)) > 5


def test_tensor_attention_in_the_interpreter() -> None:
    assert passed(interpreted(str(HERE / "triton_tensor.py"))) > 20


def test_taylor_launchers_in_the_interpreter() -> None:
    assert passed(interpreted(str(HERE / "triton_taylor.py"))) > 50
