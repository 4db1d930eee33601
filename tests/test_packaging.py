"""What the build must keep true: stable ABI, needed libraries, registered kernels, compiled architectures, no spills, no torch_python."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nearlinear
import pytest
import torch
from nearlinear import _C

LIBRARY = Path(_C.__file__)
INFO = _C.build_info()
HAS_CUDA_CODE = bool(INFO["cuda_version"])
OPS = re.findall(r'"(\w+)\(', (Path(__file__).parents[1] / "csrc/schema.cpp").read_text())


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def cuobjdump() -> str:
    spec = importlib.util.find_spec("triton")
    bundled = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec and spec.origin else None
    return str(bundled) if bundled and bundled.exists() else shutil.which("cuobjdump") or ""


def test_needed_libraries() -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", str(LIBRARY)))
    # libtorch.so is what resolves the weak CUDA symbols; without it they are null on a CUDA machine only
    assert "libtorch.so" in needed
    assert "libtorch_cpu.so" in needed
    foreign = [name for name in needed if re.match(r"libtorch_python|libtorch_cuda|libc10_cuda|libcudart|libgomp", name)]
    assert not foreign


def test_weak_cuda_symbols() -> None:
    symbols = run("nm", "-D", "--undefined-only", str(LIBRARY))
    # aoti_torch_device_type_cuda is a constant of libtorch_cpu; the others live in libtorch_cuda
    cuda = [found for found in re.findall(r"^\s*(\w) (\w*cuda\w*)$", symbols, re.MULTILINE) if "device_type" not in found[1]]
    assert all(kind == "w" for kind, _ in cuda), cuda
    if HAS_CUDA_CODE:
        assert ("w", "aoti_torch_get_current_cuda_stream") in cuda


def test_only_stable_symbols() -> None:
    # every symbol taken from torch is part of its C interface: no C++ name of c10, at or torch
    symbols = re.findall(r" U (\w+)", run("nm", "-D", "--undefined-only", str(LIBRARY)))
    unstable = [name for name in symbols if re.match(r"_Z(N|NK|TI|TV)*\d*(2at|3c10|5torch|6caffe2)", name)]
    assert not unstable
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)


def test_glibc_floor() -> None:
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_(\d+\.\d+)", run("objdump", "-T", str(LIBRARY)))}
    assert max(versions) <= (2, 34)


def test_build_info_is_this_package() -> None:
    assert INFO["version"] == nearlinear.__version__
    assert INFO["torch_target"] == "2.11"
    assert INFO["simd"] in ("baseline", "x86-64-v3", "x86-64-v4")
    assert "march=native" not in INFO["cxx_flags"]
    assert "fast-math" not in INFO["cxx_flags"]
    assert bool(INFO["cuda_skipped"]) != HAS_CUDA_CODE


@pytest.mark.parametrize("op", OPS)
def test_cpu_kernel_registered(op: str) -> None:
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"nearlinear::{op}", "CPU")


@pytest.mark.parametrize("op", OPS)
def test_cuda_kernel_registered(op: str) -> None:
    # compiled, Triton, or a kernel that raises with the reason: never the dispatcher's own dump
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"nearlinear::{op}", "CUDA")


def test_exports_only_its_entry_point() -> None:
    exported = [line.split()[-1] for line in run("nm", "-D", "--defined-only", str(LIBRARY)).splitlines() if " T " in line]
    assert "PyInit__C" in exported
    assert all("nearlinear" not in name for name in exported), "kernels are hidden symbols"


@pytest.mark.skipif(not HAS_CUDA_CODE, reason="built without CUDA")
def test_cuda_architectures_and_spills() -> None:
    tool = cuobjdump()
    assert tool, "cuobjdump comes with triton or the CUDA toolkit"
    elf, ptx = run(tool, "-lelf", str(LIBRARY)), run(tool, "-lptx", str(LIBRARY))
    for arch in INFO["cuda_archs"].split():
        number = arch.replace(".", "").removesuffix("+PTX")
        assert f"sm_{number}" in elf
        if arch.endswith("+PTX"):
            assert f"sm_{number}" in ptx
    usage = run(tool, "--dump-resource-usage", str(LIBRARY))
    stacks = [int(size) for size in re.findall(r"STACK:(\d+)", usage)]
    assert stacks
    assert max(stacks) == 0, usage


def test_missing_torch_message(tmp_path: Path) -> None:
    # setup.py without torch says what to do, instead of a traceback
    root = Path(__file__).parents[1]
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version']; exec(open({str(root / 'setup.py')!r}).read())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert "pip install torch, then pip install --no-build-isolation ." in result.stderr
    assert "Traceback" not in result.stderr


def test_import_cost_and_side_effects() -> None:
    code = (
        "import sys, time, torch; before = set(sys.modules); a = time.perf_counter(); import nearlinear; b = time.perf_counter() - a;"
        "print(b, [m for m in ('matplotlib', 'tqdm', 'transformers', 'sklearn', 'triton') if m in set(sys.modules) - before])"
    )
    seconds, modules = run(sys.executable, "-c", code).split(" ", 1)
    assert modules.strip() == "[]"
    # 0.2 s beyond torch is the promise; the bound here leaves room for a loaded machine
    assert float(seconds) < 2.0


def test_editable_and_wheel_have_the_same_modules() -> None:
    for name in ("nearlinear.triton_kernels", "nearlinear.bench", "nearlinear.reference", "nearlinear.ops"):
        assert importlib.util.find_spec(name) is not None
    assert importlib.util.find_spec("triton_kernels") is None or "nearlinear" not in str(importlib.util.find_spec("triton_kernels"))


def test_header_change_rebuilds(tmp_path: Path) -> None:
    """Build's own rule: an object older than any header, or than setup.py, is removed before the build."""
    text = (Path(__file__).parents[1] / "setup.py").read_text()
    source = text[text.index("class Build(") : text.index("def extension()")]
    root = tmp_path / "root"
    (root / "csrc/common").mkdir(parents=True)
    (root / "build/csrc").mkdir(parents=True)
    header, obj, setup = root / "csrc/common/check.h", root / "build/csrc/a.o", root / "setup.py"
    for path, when in ((setup, 1), (header, 1), (obj, 2)):
        path.write_text("")
        os.utime(path, (when, when))

    class Base:
        build_temp = str(root / "build")

        def build_extensions(self) -> None:
            pass

    namespace = {"Path": Path, "ROOT": root, "cpp_extension": type("m", (), {"BuildExtension": Base})}
    exec(source, namespace)
    namespace["Build"]().build_extensions()
    assert obj.exists()
    os.utime(header, (3, 3))
    namespace["Build"]().build_extensions()
    assert not obj.exists()
