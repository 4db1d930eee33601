"""One value and one gradient per op against its definition in float64, at a size that takes a millisecond."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import implementations
from .self_test_attention import ATTENTION_TESTS
from .self_test_betti import BETTI_TESTS
from .self_test_cases import SELF_TESTS as LOGIT_TESTS
from .self_test_cases import SelfTest, wave
from .self_test_linear import LINEAR_TESTS
from .self_test_ranks import RANK_TESTS
from .self_test_segments import SEGMENT_TESTS

__all__ = ["SELF_TESTS", "TOLERANCE", "Outcome", "SelfTest", "self_test"]

SELF_TESTS = {**LOGIT_TESTS, **LINEAR_TESTS, **RANK_TESTS, **BETTI_TESTS, **ATTENTION_TESTS, **SEGMENT_TESTS}
TOLERANCE = 1e-5  # float32 sums of 37 terms, twice differentiated, give 2e-6; a wrong formula gives 1e-2


@dataclass(frozen=True)
class Outcome:
    """Relative errors; ``gradient`` is None for an op without one; ``reason`` says why a test failed or could not run."""

    op: str
    device: str
    value: float | None
    gradient: float | None
    ok: bool
    reason: str = ""


def self_test(device: str) -> list[Outcome]:
    """Every op that has a kernel on ``device``; an op without a test here fails."""
    key = torch.device(device).type.upper()
    return [_check(found, device) for found in implementations.implementations() if found.key == key]


def _check(found: implementations.Implementation, device: str) -> Outcome:
    if found.kind == "missing" or found.op not in SELF_TESTS:
        return Outcome(found.op, device, None, None, False, found.reason or "no self-test is defined for this op")
    test = SELF_TESTS[found.op]
    leaves = test.leaves()
    try:
        values, gradients = _evaluate(test, test.ours, [leaf.to(device) for leaf in leaves])
    except Exception as error:  # the report must name the op that fails, whatever it raises
        return Outcome(found.op, device, None, None, False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    wide = [leaf.double() if leaf.is_floating_point() else leaf for leaf in leaves]
    true_values, true_gradients = _evaluate(test, test.definition, wide)
    value = _error(values, true_values)
    gradient = _error(gradients, true_gradients) if true_gradients else None
    ok = value <= TOLERANCE and (gradient is None or gradient <= TOLERANCE)
    return Outcome(found.op, device, value, gradient, ok, "" if ok else f"relative error above {TOLERANCE}")


def _evaluate(test: SelfTest, function: Callable[..., Sequence[Tensor]], leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of a fixed combination of them with respect to the floating leaves."""
    leaves = [leaf.detach().requires_grad_(test.differentiable and leaf.is_floating_point()) for leaf in leaves]
    outputs = list(function(*leaves))
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    total = sum(((output * wave(output)).sum() for output in outputs), outputs[0].new_zeros(()))
    if not wanted:
        return outputs, []
    return outputs, list(torch.autograd.grad(total, wanted))


def _error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest deviation of each tensor over its largest entry; infinite if anything is not finite or has another shape."""
    worst = 0.0
    for value, true in zip(values, expected, strict=True):
        value, true = value.detach().double().cpu(), true.detach().double().cpu()
        if value.shape != true.shape or not bool(value.isfinite().all()):
            return float("inf")
        worst = max(worst, float((value - true).abs().max() / true.abs().max().clamp(min=1e-30)))
    return worst
