"""What the generic tests measure with: seeded cases, value and gradients of a call, the error budget, equality of bits.

The oracle is the definition in float64 on the CPU, evaluated at the values that the tested dtype really holds; the baseline that earns
the tolerance is the same definition in the dtype of the statistics (float32 for half inputs).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Draw:
    """Seeded float64 values and int64 labels on the CPU."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def positive(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64) + 0.25

    def labels(self, classes: int, *shape: int) -> Tensor:
        return torch.randint(classes, shape, generator=self.generator)


@dataclass(frozen=True)
class Case:
    """Inputs for ``rows`` rows as a function of random draws; ``native`` inputs take the tested dtype, others that of the statistics."""

    name: str
    make: Callable[[Draw, int], Inputs]
    reason: str
    rows: int = 33
    options: Mapping[str, Any] = field(default_factory=dict)
    native: tuple[str, ...] = ("input",)
    differentiable: tuple[str, ...] = ("input",)
    checked: bool = False  # small enough for gradcheck

    def __str__(self) -> str:
        return self.name

    def inputs(self, dtype: torch.dtype, device: torch.device | str = "cpu", rows: int | None = None) -> Inputs:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        made = self.make(Draw(), self.rows if rows is None else rows)
        return {name: (t.to(dtype if name in self.native else wide) if t.is_floating_point() else t).to(device) for name, t in made.items()}


def points(rows: int = 7, classes: int = 6, features: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Features, class vectors and labels; inside the unit ball, so that every score map is defined."""
    draw = Draw()
    x, w = draw.normal(rows, features), draw.normal(classes, features)
    x, w = (t / (1.3 + t.norm(dim=1, keepdim=True)) for t in (x, w))
    return x, w, draw.labels(classes, rows)


def to(inputs: Inputs, dtype: torch.dtype, device: torch.device | str = "cpu") -> Inputs:
    return {name: (t.to(dtype) if t.is_floating_point() else t).to(device) for name, t in inputs.items()}


def random_like(t: Tensor, seed: int = 1) -> Tensor:
    """Normal values that float32 and float64 hold exactly alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(t.shape, generator=generator, dtype=torch.float32).to(t.dtype).to(t.device)


def evaluate(
    function: Callable[..., Tensor], inputs: Inputs, options: Mapping[str, Any], wrt: Sequence[str], upstream: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients; strides of the inputs are kept."""
    leaves = {name: t.detach().requires_grad_(name in wrt) if t.is_floating_point() else t for name, t in inputs.items()}
    value = function(**leaves, **options)
    gradients = torch.autograd.grad(value, [leaves[n] for n in wrt], random_like(value) if upstream is None else upstream)
    return value.detach(), list(gradients)


def within_budget(ours: Tensor, eager: Tensor, oracle: Tensor, factor: float, what: str) -> None:
    """``|ours - oracle| <= factor |eager - oracle| + eps scale``, scale = the largest finite magnitude of the oracle.

    In float64 the oracle is the eager result itself: there 1e-12 scale is allowed.
    """
    assert ours.shape == oracle.shape, what
    if ours.numel() == 0:
        return
    eps, double = torch.finfo(ours.dtype).eps, ours.dtype == torch.float64
    ours, eager = ours.double().cpu(), eager.double().cpu()
    finite = oracle.isfinite()
    assert torch.equal(ours[~finite].nan_to_num(nan=7.0), oracle[~finite].nan_to_num(nan=7.0)), f"{what}: non-finite values differ"
    if not finite.any():
        return
    error, baseline = (ours - oracle)[finite].abs().max().item(), (eager - oracle)[finite].abs().max().item()
    allowed = factor * baseline + (1e-12 if double else eps) * oracle[finite].abs().max().item()
    if not oracle[finite].any():
        allowed += torch.finfo(torch.float64).eps ** 1.5  # the definition saturated to exactly 0; without its cancellation 1e-29 remains
    assert error <= allowed, f"{what}: error {error:.3e} > {allowed:.3e} (eager {baseline:.3e})"


def unbiased(ours: Tensor, oracle: Tensor, what: str, common_roundings: int = 1, few_terms: bool = False) -> None:
    """Cosine 1 and no signed drift, which a largest error cannot see: the mean error is below eps for each rounding that all elements
    share; ``few_terms``: or within 4 of its standard errors, because a mean over a handful of elements is no estimate of a bias."""
    ours, eps = ours.double().cpu().flatten(), torch.finfo(ours.dtype).eps
    oracle = oracle.flatten()
    norm = oracle.norm() * ours.norm()
    if norm == 0:
        assert torch.equal(ours, oracle), what
        return
    assert 1 - (ours @ oracle) / norm <= 4 * eps**2 + 1e-12, f"{what}: cosine"
    error, total = ours - oracle, oracle.abs().sum()
    drift, chance = error.sum().abs() / total, 4 * len(error) ** 0.5 * error.std(correction=0) / total
    assert drift <= max(common_roundings * eps, 1e-12, chance if few_terms else 0.0), f"{what}: signed bias {drift:.2e}"


def same(a: Any, b: Any, what: str) -> None:
    """Same bits, NaN included."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, check_stride=False, msg=lambda text: f"{what}: {text}")


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [s for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every torch.empty, in C++ too, returns NaN (largest integers for integers)."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def by_backward(function: Callable[..., Tensor], inputs: Inputs, wrt: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """:func:`evaluate` through ``.backward()``."""
    leaves = {n: t.detach().clone().requires_grad_(n in wrt) if t.is_floating_point() else t for n, t in inputs.items()}
    value = function(**leaves)
    value.backward(random_like(value))
    return value.detach(), [leaves[n].grad for n in wrt]
