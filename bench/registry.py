"""What a benchmark case is, and the table of all of them. A family adds ``bench/cases/FAMILY.py`` and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor

__all__ = ["CASES", "PASSES", "Baseline", "Case", "Sizes", "compiled", "load", "register"]

Sizes = Mapping[str, int]
Bytes = Callable[[Sizes, int], Mapping[str, int]]
PASSES = ("fwd", "full")  # without a graph; forward and gradient


@dataclass(frozen=True)
class Baseline:
    """A rival: the same arguments as ours. ``refuse`` says why it cannot be measured for a device and dtype ("" if it can)."""

    run: Callable[..., Tensor]
    compile: bool = False
    refuse: Callable[[torch.device, torch.dtype], str] = lambda device, dtype: ""
    overwrites_input: bool = False  # then it gets a private copy, refreshed outside the timed region


def compiled(run: Callable[..., Tensor], refuse: Callable[[torch.device, torch.dtype], str] | None = None) -> Baseline:
    """``torch.compile`` of a baseline, for static shapes (its best case)."""
    return Baseline(run, compile=True) if refuse is None else Baseline(run, compile=True, refuse=refuse)


@dataclass(frozen=True)
class Case:
    """``inputs(sizes, dtype, device)`` gives the arguments; those that require a gradient are differentiated in the full pass.

    ``bytes(sizes, itemsize)`` is the floor per pass: what any implementation must read and write. ``moved`` is what ours reads and writes
    by design (the number of the kernel header). ``flops`` counts matrix products only: everything else is limited by bytes.
    ``products(inputs)`` runs those products alone, per pass; their time is then the limit, not that of a square product.
    ``yardsticks`` are timed beside the rivals on the same inputs, but are no rivals: what they compute is not the loss.
    """

    family: str
    op: str
    name: str
    ours: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    baselines: Mapping[str, Baseline]
    inputs: Callable[[Sizes, torch.dtype, torch.device], tuple[Tensor, ...]]
    sizes: Mapping[str, Sequence[Sizes]]  # "cpu", "cuda": published; "sweep": for scaling plots
    tiny: Sizes  # smoke runs and host time
    bytes: Bytes
    moved: Bytes
    flops: Callable[[Sizes], Mapping[str, int]] = lambda sizes: dict.fromkeys(PASSES, 0)
    products: Callable[[tuple[Tensor, ...]], Mapping[str, Callable[[], object]]] | None = None
    yardsticks: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)
    passes: Sequence[str] = PASSES  # ("fwd",): a metric, which has no gradient
    error_rows: Mapping[str, int] = field(default_factory=dict)  # sizes are cut to these for the comparison with float64


CASES: dict[tuple[str, str], Case] = {}


def register(case: Case) -> Case:
    key = (case.op, case.name)
    if key in CASES:
        raise ValueError(f"register: case {key} exists already")
    CASES[key] = case
    return case


def load(ops: Sequence[str] = ()) -> list[Case]:
    """Registered cases of the given ops (all if none is given), in order of importance: the first of each op, then the second."""
    from . import cases

    for module in pkgutil.iter_modules(cases.__path__):
        importlib.import_module(f"{cases.__name__}.{module.name}")
    known = {op for op, _ in CASES}
    unknown = sorted(set(ops) - known)
    if unknown:
        raise ValueError(f"bench: op must be one of {sorted(known)}, got {', '.join(unknown)}")
    wanted = [case for (op, _), case in CASES.items() if not ops or op in ops]
    by_op = [[case for case in wanted if case.op == op] for op in dict.fromkeys(case.op for case in wanted)]
    return [case for rank in zip_longest(*by_op) for case in rank if case is not None]
