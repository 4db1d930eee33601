"""Facts about this machine, this installation and this source tree, as JSON-ready values."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import _C
from ._version import __version__

__all__ = ["arch_fit", "git_state", "gpus", "host", "sm_clock_mhz", "source_root", "versions"]


def source_root() -> Path | None:
    """The source tree of this installation (editable) or the one of the current folder; None outside both."""
    places = (Path(__file__).resolve().parents[2], Path.cwd())
    return next((place for place in places if (place / "csrc/schema.cpp").exists()), None)


def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether tracked files differ from it; None where there is no git or no tree."""
    root = source_root()
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD") if root else None
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"))}


def versions() -> dict[str, str | None]:
    """Versions of everything a figure or a bug report can depend on; None if not installed."""
    packages = {name: _package(name) for name in ("triton", "numpy", "liger-kernel")}
    return {
        "nearlinear": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "driver": _smi("driver_version"),
        **packages,
    }


def host() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": _C.build_info()["simd"],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "huge_pages": huge_pages.read_text().split("[")[1].split("]")[0] if huge_pages.exists() else None,
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.system(),
    }


def gpus() -> list[dict[str, Any]]:
    """CUDA devices, each with whether the compiled architectures of this build fit it."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": facts.name,
                "capability": f"{facts.major}.{facts.minor}",
                "memory_gb": round(facts.total_memory / 1e9, 1),
                "fit": arch_fit(_C.build_info()["cuda_archs"], (facts.major, facts.minor)),
            }
        )
    return found


def arch_fit(archs: str, capability: tuple[int, int]) -> str:
    """``native``, ``PTX only`` (compiled by the driver at first use) or ``none``, for an arch list like ``8.0 9.0+PTX``."""
    fits = "none"
    for arch in archs.split():
        major, minor = (int("".join(filter(str.isdigit, part))) for part in arch.removesuffix("+PTX").split("."))
        if major == capability[0] and minor <= capability[1]:
            return "native"
        if arch.endswith("+PTX") and (major, minor) <= capability:
            fits = "PTX only"
    return fits


def sm_clock_mhz() -> int | None:
    """Current clock of the first GPU; None where the driver does not tell."""
    text = _smi("clocks.sm")
    return int(text.split()[0]) if text and text[0].isdigit() else None


def _smi(field: str) -> str | None:
    text = _output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader")
    return text.splitlines()[0].strip() if text else None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
