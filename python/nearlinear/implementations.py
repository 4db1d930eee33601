"""Which code serves which op on which device: the only introspection of the package.

The dispatcher says what is registered; the layout of the source tree says what it is: ``csrc/cpu/FAMILY.cpp`` for CPU, and for CUDA
``triton_kernels/FAMILY*.py`` if one of these files defines a launcher of the op's name, else ``csrc/cuda/FAMILY.cu``. An op with one
kernel for every device is a walk over tiles in Python, ``python/nearlinear/ops/FAMILY.py``, on torch's and other ops of this package.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from . import _C, reference

__all__ = ["KEYS", "Implementation", "family_of", "implementations", "ops"]

KEYS = ("CPU", "CUDA")


@dataclass(frozen=True)
class Implementation:
    """``kind`` is ``C++``, ``Triton``, ``Python`` or ``missing``; ``file`` is relative to the source tree;
    ``reason`` says why it is missing."""

    op: str
    key: str
    kind: str
    file: str
    reason: str = ""


# kernels that several families sum with, and algorithms of their own, have a file of their own; the others that of their family
FILES = {"binned_moments": "pair_bins", "binned_values": "pair_bins", "pair_scan": "pair_scan", "taylor_scan": "taylor_scan"}


def ops() -> list[str]:
    """Names of every op in the namespace, without the prefix."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("nearlinear::") for name in names if name.startswith("nearlinear::"))


def family_of(op: str) -> str:
    """The family whose reference module defines the op (or the op that it is the backward of)."""
    for family in reference.__all__:
        if hasattr(getattr(reference, family), op.rstrip("_").removesuffix("_backward")):
            return family
    raise LookupError(f"{op} has no definition in nearlinear.reference")


def implementations() -> list[Implementation]:
    """One record per op and device kind, in the order of the op names."""
    return [_find(op, key) for op in ops() for key in KEYS]


def _find(op: str, key: str) -> Implementation:
    family = family_of(op)
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"nearlinear::{op}", "CompositeExplicitAutograd"):
        return Implementation(op, key, "Python", f"python/nearlinear/ops/{family}.py")
    stem = FILES.get(op.removesuffix("_backward"), family)
    launchers = _triton_launchers(stem)
    if key == "CPU":
        file, kind, reason = f"csrc/cpu/{stem}.cpp", "C++", ""
    elif op in launchers:
        file, kind = f"triton_kernels/{launchers[op]}", "Triton"
        # a raising stand-in is registered where Triton is absent, so the dispatcher alone cannot tell
        reason = "" if importlib.util.find_spec("triton") else "Triton is not installed (pip install triton)"
    else:
        file, kind, reason = f"csrc/cuda/{stem}.cu", "C++", _no_cuda_build()
    if not reason and not torch._C._dispatch_has_kernel_for_dispatch_key(f"nearlinear::{op}", key):
        reason = f"no kernel is registered for {key}"
    return Implementation(op, key, "missing" if reason else kind, file, reason)


def _no_cuda_build() -> str:
    info = _C.build_info()
    return "" if info["cuda_version"] else f"built without CUDA: {info['cuda_skipped']}"


def _triton_launchers(stem: str) -> dict[str, str]:
    """Top-level functions of the Triton files of this name, and the file of each, read without importing Triton."""
    package = importlib.util.find_spec("nearlinear.triton_kernels")
    assert package is not None
    assert package.origin is not None
    return {
        node.name: path.name
        for path in sorted(Path(package.origin).parent.glob(f"{stem}*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
