"""One value and one gradient per op against its definition in float64, at a size that takes a millisecond."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import implementations
from .reference import cross_entropy as reference
from .reference import linear_cross_entropy as linear_reference
from .reference import pair_loss as pair_reference

__all__ = ["SELF_TESTS", "TOLERANCE", "Outcome", "SelfTest", "self_test"]

TOLERANCE = 1e-5  # float32 sums of 37 terms, twice differentiated, give 2e-6; a wrong formula gives 1e-2


@dataclass(frozen=True)
class SelfTest:
    """The same computation twice: ``ours`` through the op, ``definition`` in plain torch; both map leaves to differentiable outputs."""

    leaves: Callable[[], list[Tensor]]
    ours: Callable[..., Sequence[Tensor]]
    definition: Callable[..., Sequence[Tensor]]


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
        values, gradients = _evaluate(test.ours, [leaf.to(device) for leaf in leaves])
    except Exception as error:  # the report must name the op that fails, whatever it raises
        return Outcome(found.op, device, None, None, False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    true_values, true_gradients = _evaluate(test.definition, [leaf.double() if leaf.is_floating_point() else leaf for leaf in leaves])
    value = _error(values, true_values)
    gradient = _error(gradients, true_gradients) if true_gradients else None
    ok = value <= TOLERANCE and (gradient is None or gradient <= TOLERANCE)
    return Outcome(found.op, device, value, gradient, ok, "" if ok else f"relative error above {TOLERANCE}")


def _evaluate(function: Callable[..., Sequence[Tensor]], leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of a fixed combination of them with respect to the floating leaves."""
    leaves = [leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    outputs = list(function(*leaves))
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    total = sum(((output * _wave(output)).sum() for output in outputs), outputs[0].new_zeros(()))
    if not total.requires_grad:  # no floating leaf, or an op that is not differentiable
        return outputs, []
    return outputs, list(torch.autograd.grad(total, wanted))


def _wave(like: Tensor, phase: float = 0.4) -> Tensor:
    """Numbers of both signs that no symmetry of the op can cancel; the same float32 numbers in either dtype."""
    return torch.sin(torch.arange(like.numel(), dtype=torch.float64) * 1.3 + phase).float().view(like.shape).to(like)


def _error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest deviation of each tensor over its largest entry; infinite if anything is not finite or has another shape."""
    worst = 0.0
    for value, true in zip(values, expected, strict=True):
        value, true = value.detach().double().cpu(), true.detach().double().cpu()
        if value.shape != true.shape or not bool(value.isfinite().all()):
            return float("inf")
        worst = max(worst, float((value - true).abs().max() / true.abs().max().clamp(min=1e-30)))
    return worst


_ops = torch.ops.nearlinear
_ROWS, _CLASSES = 6, 37
_HARD = (-100, "soft_cap", [5.0], True)  # ignore_index, logit map and its parameters, spread
_SOFT: tuple[float, str, list[float]] = (0.1, "identity", [])


def _logits() -> Tensor:
    return 3 * _wave(torch.empty(_ROWS, _CLASSES))


def _labels(like: Tensor) -> Tensor:
    return torch.tensor([0, 36, 5, -100, 17, 5], device=like.device)


def _class_weight(like: Tensor) -> Tensor:
    return _wave(like[0], 2.0).detach().abs()


def _probabilities() -> Tensor:
    return _wave(torch.empty(_ROWS, _CLASSES), 1.0).softmax(1)


def _upstream(like: Tensor, count: int) -> list[Tensor]:
    return [_wave(like[:, 0], float(k)).detach() for k in range(1, count + 1)]


def _logit_stats(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor) -> Sequence[Tensor]:
        return stats(input, _labels(input), _class_weight(input), *_HARD)[:3]

    return outputs


def _logit_stats_backward(input: Tensor) -> Sequence[Tensor]:
    labels, weight = _labels(input), _class_weight(input)
    with torch.no_grad():
        nll, lse, _, residual = _ops.logit_stats(input, labels, weight, *_HARD)
    return [_ops.logit_stats_backward(*_upstream(input, 3), input, labels, weight, nll, lse, residual, *_HARD)]


def _logit_stats_gradient(input: Tensor) -> Sequence[Tensor]:
    outputs = _logit_stats(reference.logit_stats)(input)
    return torch.autograd.grad(outputs, input, _upstream(input, 3), create_graph=True)


def _soft_stats(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, target: Tensor) -> Sequence[Tensor]:
        return stats(input, target, _class_weight(input), *_SOFT)[:2]

    return outputs


def _soft_stats_backward(input: Tensor, target: Tensor) -> Sequence[Tensor]:
    weight = _class_weight(input)
    with torch.no_grad():
        _, lse, residual, mass = _ops.soft_logit_stats(input, target, weight, *_SOFT)
    d_input, d_target = _ops.soft_logit_stats_backward(*_upstream(input, 2), input, target, weight, lse, residual, mass, *_SOFT, True)
    return [d_input, d_target]


def _soft_stats_gradient(input: Tensor, target: Tensor) -> Sequence[Tensor]:
    outputs = _soft_stats(reference.soft_logit_stats)(input, target)
    return torch.autograd.grad(outputs, (input, target), _upstream(input, 2), create_graph=True)


def _logit_stats_backward_(input: Tensor) -> Sequence[Tensor]:
    labels, weight, logits = _labels(input), _class_weight(input), input.detach().clone()
    nll, lse, _, residual = _ops.logit_stats(logits, labels, weight, *_HARD)
    _ops.logit_stats_backward_(*_upstream(input, 3), logits, labels, weight, nll, lse, residual, *_HARD)
    return [logits]


def _overwritten(input: Tensor) -> Sequence[Tensor]:
    logits = input.detach().requires_grad_()
    return [gradient.detach() for gradient in _logit_stats_gradient(logits)]


def _head() -> list[Tensor]:
    """Features, class vectors, bias."""
    return [_wave(torch.empty(_ROWS, 5)), _wave(torch.empty(_CLASSES, 5), 1.0), _wave(torch.empty(_CLASSES), 2.0)]


def _linear_stats(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
        return stats(input, weight, bias, _labels(input), _class_weight(weight.T), None, *_HARD)[:3]

    return outputs


def _linear_stats_backward(input: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
    tensors = (input, weight, bias, _labels(input), _class_weight(weight.T), None)
    with torch.no_grad():
        nll, lse, _, residual = _ops.linear_logit_stats(*tensors, *_HARD)
    arguments = (*_upstream(input, 3), *tensors, nll, lse, residual, *_HARD, 0, None, None, [True, True, True, False])
    return list(_ops.linear_logit_stats_backward(*arguments)[:3])


def _linear_stats_gradient(*leaves: Tensor) -> Sequence[Tensor]:
    outputs = _linear_stats(linear_reference.linear_logit_stats)(*leaves)
    return torch.autograd.grad(outputs, leaves, _upstream(leaves[0], 3), create_graph=True)


def _linear_loss(loss: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
        scale = _upstream(input, 1)[0]
        options = (-100, "soft_cap", [4.0], "gce", [0.7], 0.0, 0.1, None, [True, True, True, False])
        return loss(input, weight, bias, _labels(input), _class_weight(weight.T), None, scale, None, *options)[:1]

    return outputs


_PAIR_SCALE = [-2.0, 3.0]
_PAIR_MAP: tuple[str, list[float]] = ("soft_cap", [5.0])


def _groups(like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device) % 3


def _pair_tile(function: Callable[..., tuple[Tensor, ...]], *options: object) -> Callable[..., Sequence[Tensor]]:
    """``options``: those between the labels and the map."""

    def outputs(input: Tensor) -> Sequence[Tensor]:
        tile = input.detach()
        scale = [_PAIR_SCALE] if len(options) > 1 else []
        return function(tile, _groups(tile), _groups(tile.T), *options, *_PAIR_MAP, *scale)

    return outputs


def _pair_tile_gradient(input: Tensor) -> Sequence[Tensor]:
    tile = input.detach().requires_grad_()
    stats = pair_reference.pair_tile_stats(tile, _groups(tile), _groups(tile.T), None, None, None, 1, *_PAIR_MAP, _PAIR_SCALE)
    return [d.detach() for d in torch.autograd.grad(stats[:2], tile, _pair_upstream(stats[0]))]


def _pair_tile_backward_(input: Tensor) -> Sequence[Tensor]:
    tile = input.detach().clone()
    labels = _groups(tile), _groups(tile.T), None, None
    lse = _ops.pair_tile_stats(tile, *labels, None, 1, *_PAIR_MAP, _PAIR_SCALE)[0]
    d_lse, d_sum = _pair_upstream(lse)
    scale = torch.tensor(_PAIR_SCALE).to(lse).unsqueeze(1)
    terms = torch.stack([lse, scale * (d_lse + d_sum), scale * d_sum]).to(tile.dtype)
    _ops.pair_tile_stats_backward_(tile, *labels, terms, None, 1, *_PAIR_MAP, _PAIR_SCALE)
    return [tile]


def _pair_upstream(lse: Tensor) -> list[Tensor]:
    return [_wave(lse.detach(), float(k)).detach() for k in (1, 2)]


def _pairs() -> list[Tensor]:
    return [_wave(torch.empty(_ROWS, 5))]


def _pair_stats(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    return lambda input: stats(input, None, _groups(input), None, None, None, None, *_PAIR_MAP, _PAIR_SCALE)[:2]


def _pair_stats_backward(input: Tensor) -> Sequence[Tensor]:
    tensors = (input, None, _groups(input), None, None, None, None)
    with torch.no_grad():
        lse = _ops.pair_stats(*tensors, *_PAIR_MAP, _PAIR_SCALE)[0]
    return [_ops.pair_stats_backward(*_pair_upstream(lse), *tensors, lse, *_PAIR_MAP, _PAIR_SCALE, None, [True, False])[0]]


def _pair_stats_gradient(input: Tensor) -> Sequence[Tensor]:
    outputs = _pair_stats(pair_reference.pair_stats)(input)
    return torch.autograd.grad(outputs, input, _pair_upstream(outputs[0]), create_graph=True)


def _pair_extremes(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    return lambda input: function(input.detach(), None, _groups(input), None, "rbf", [1.0])


def _invalid(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    return lambda target: [function(target, 7, -100)]


SELF_TESTS: dict[str, SelfTest] = {
    "logit_stats": SelfTest(lambda: [_logits()], _logit_stats(_ops.logit_stats), _logit_stats(reference.logit_stats)),
    "logit_stats_backward": SelfTest(lambda: [_logits()], _logit_stats_backward, _logit_stats_gradient),
    "soft_logit_stats": SelfTest(
        lambda: [_logits(), _probabilities()], _soft_stats(_ops.soft_logit_stats), _soft_stats(reference.soft_logit_stats)
    ),
    "soft_logit_stats_backward": SelfTest(lambda: [_logits(), _probabilities()], _soft_stats_backward, _soft_stats_gradient),
    "logit_stats_backward_": SelfTest(lambda: [_logits()], _logit_stats_backward_, _overwritten),
    "linear_logit_stats": SelfTest(_head, _linear_stats(_ops.linear_logit_stats), _linear_stats(linear_reference.linear_logit_stats)),
    "linear_logit_stats_backward": SelfTest(_head, _linear_stats_backward, _linear_stats_gradient),
    "linear_row_loss": SelfTest(_head, _linear_loss(_ops.linear_row_loss), _linear_loss(linear_reference.linear_row_loss)),
    "pair_tile_stats": SelfTest(
        lambda: [_logits()],
        _pair_tile(_ops.pair_tile_stats, None, None, None, 1),
        _pair_tile(pair_reference.pair_tile_stats, None, None, None, 1),
    ),
    "pair_tile_stats_backward_": SelfTest(lambda: [_logits()], _pair_tile_backward_, _pair_tile_gradient),
    "pair_tile_extremes": SelfTest(
        lambda: [_logits()], _pair_tile(_ops.pair_tile_extremes, 1), _pair_tile(pair_reference.pair_tile_extremes, 1)
    ),
    "pair_stats": SelfTest(_pairs, _pair_stats(_ops.pair_stats), _pair_stats(pair_reference.pair_stats)),
    "pair_stats_backward": SelfTest(_pairs, _pair_stats_backward, _pair_stats_gradient),
    "pair_extremes": SelfTest(_pairs, _pair_extremes(_ops.pair_extremes), _pair_extremes(pair_reference.pair_extremes)),
    "first_invalid_target": SelfTest(
        lambda: [torch.tensor([3, -100, 6, 7, -1])], _invalid(_ops.first_invalid_target), _invalid(reference.first_invalid_target)
    ),
}
