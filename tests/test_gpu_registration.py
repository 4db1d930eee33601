"""Who serves the CUDA key, on a machine without a GPU: CPU tensors are sent to the key through ``redispatch``."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from nearlinear import _C

OPS = (
    "logit_stats", "logit_stats_backward", "soft_logit_stats", "soft_logit_stats_backward", "first_invalid_target",
    "pair_tile_stats", "pair_tile_stats_backward_", "pair_tile_extremes",
)  # fmt: skip
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # what importlib sees of a package that is not installed
import torch, nearlinear
keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
x, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
try:
    torch.ops.nearlinear.logit_stats.default.redispatch(keys, x, y, None, -100, "identity", [], False)
except RuntimeError as error:
    print(error)
print(float(nearlinear.cross_entropy(x, y)))
"""


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_an_implementation_for_cuda(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"nearlinear::{op}", "CUDA")


def test_first_invalid_target_names_why_the_build_lacks_it() -> None:
    reason = _C.build_info()["cuda_skipped"]
    if not reason:
        pytest.skip("this build has the compiled CUDA kernels")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    text = f"first_invalid_target: built without CUDA: {reason}; set CUDA_HOME and reinstall nearlinear"
    with pytest.raises(RuntimeError, match=text):
        torch.ops.nearlinear.first_invalid_target.default.redispatch(keys, torch.zeros(2, dtype=torch.int64), 3, -100)


def run(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


def test_without_triton_cuda_says_what_to_install_and_cpu_works() -> None:
    text, loss = run(WITHOUT_TRITON)
    assert text == "logit_stats: CUDA needs Triton, which is not installed (pip install triton)"
    assert float(loss) == pytest.approx(1.0986123)


def test_importing_the_package_does_not_import_triton() -> None:
    assert run("import sys, nearlinear; print('triton' in sys.modules)") == ["False"]
