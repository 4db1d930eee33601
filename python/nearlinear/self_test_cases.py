"""The self-test of every op: the same small computation through the op and through its definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .reference import cross_entropy as reference
from .reference import distance as distance_reference
from .reference import kl_logit as kl_reference
from .reference import linear_kl_logit as linear_kl_reference
from .reference import pair_loss as pair_reference
from .reference import sface as sface_reference

__all__ = [
    "HARD",
    "SELF_TESTS",
    "SOFT",
    "SelfTest",
    "class_weight",
    "head",
    "labels",
    "probabilities",
    "upstream",
    "wave",
]


@dataclass(frozen=True)
class SelfTest:
    """The same computation twice: ``ours`` through the op, ``definition`` in plain torch; both map leaves to differentiable outputs."""

    leaves: Callable[[], list[Tensor]]
    ours: Callable[..., Sequence[Tensor]]
    definition: Callable[..., Sequence[Tensor]]
    differentiable: bool = True


def wave(like: Tensor, phase: float = 0.4) -> Tensor:
    """Numbers of both signs that no symmetry of the op can cancel; the same float32 numbers in either dtype."""
    return torch.sin(torch.arange(like.numel(), dtype=torch.float64) * 1.3 + phase).float().view(like.shape).to(like)


_ops = torch.ops.nearlinear
_ROWS, _CLASSES = 6, 37
HARD = (-100, "soft_cap", [5.0], True)  # ignore_index, logit map and its parameters, spread
_BETAS = (0.0, 0.3)  # of a divergence of two logits
SOFT: tuple[float, str, list[float]] = (0.1, "identity", [])


def _logits() -> Tensor:
    return 3 * wave(torch.empty(_ROWS, _CLASSES))


def labels(like: Tensor) -> Tensor:
    return torch.tensor([0, 36, 5, -100, 17, 5], device=like.device)


def class_weight(like: Tensor) -> Tensor:
    return wave(like[0], 2.0).detach().abs()


def probabilities() -> Tensor:
    return wave(torch.empty(_ROWS, _CLASSES), 1.0).softmax(1)


def upstream(like: Tensor, count: int) -> list[Tensor]:
    return [wave(like[:, 0], float(k)).detach() for k in range(1, count + 1)]


def _logit_stats(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor) -> Sequence[Tensor]:
        return stats(input, labels(input), class_weight(input), *HARD)[:3]

    return outputs


def _logit_stats_backward(input: Tensor) -> Sequence[Tensor]:
    target, weight = labels(input), class_weight(input)
    with torch.no_grad():
        nll, lse, _, residual = _ops.logit_stats(input, target, weight, *HARD)
    return [_ops.logit_stats_backward(*upstream(input, 3), input, target, weight, nll, lse, residual, *HARD)]


def _logit_stats_gradient(input: Tensor) -> Sequence[Tensor]:
    outputs = _logit_stats(reference.logit_stats)(input)
    return torch.autograd.grad(outputs, input, upstream(input, 3), create_graph=True)


def _soft_stats(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, target: Tensor) -> Sequence[Tensor]:
        return stats(input, target, class_weight(input), *SOFT)[:2]

    return outputs


def _soft_stats_backward(input: Tensor, target: Tensor) -> Sequence[Tensor]:
    weight = class_weight(input)
    with torch.no_grad():
        _, lse, residual, mass = _ops.soft_logit_stats(input, target, weight, *SOFT)
    d_input, d_target = _ops.soft_logit_stats_backward(*upstream(input, 2), input, target, weight, lse, residual, mass, *SOFT, True)
    return [d_input, d_target]


def _soft_stats_gradient(input: Tensor, target: Tensor) -> Sequence[Tensor]:
    outputs = _soft_stats(reference.soft_logit_stats)(input, target)
    return torch.autograd.grad(outputs, (input, target), upstream(input, 2), create_graph=True)


def _logit_stats_backward_(input: Tensor) -> Sequence[Tensor]:
    target, weight, logits = labels(input), class_weight(input), input.detach().clone()
    nll, lse, _, residual = _ops.logit_stats(logits, target, weight, *HARD)
    _ops.logit_stats_backward_(*upstream(input, 3), logits, target, weight, nll, lse, residual, *HARD)
    return [logits]


def _overwritten(input: Tensor) -> Sequence[Tensor]:
    logits = input.detach().requires_grad_()
    return [gradient.detach() for gradient in _logit_stats_gradient(logits)]


def head() -> list[Tensor]:
    """Features, class vectors, bias."""
    return [wave(torch.empty(_ROWS, 5)), wave(torch.empty(_CLASSES, 5), 1.0), wave(torch.empty(_CLASSES), 2.0)]


_SFACE = (-100, "sface", [3.0, 1.2])


def _cosines() -> list[Tensor]:
    return [wave(torch.empty(_ROWS, _CLASSES))]


def _sum(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    return lambda input: [function(input, labels(input), *_SFACE)]


def _sum_backward(input: Tensor) -> Sequence[Tensor]:
    return [_ops.logit_sum_backward(*upstream(input, 1), input, labels(input), *_SFACE)]


def _sum_backward_(input: Tensor) -> Sequence[Tensor]:
    cosines = input.detach().clone()
    _ops.logit_sum_backward_(*upstream(input, 1), cosines, labels(input), *_SFACE)
    return [cosines]


def _sum_gradient(input: Tensor) -> Sequence[Tensor]:
    outputs = _sum(sface_reference.logit_sum)(input)
    return torch.autograd.grad(outputs, input, upstream(input, 1), create_graph=True)


def _linear_sum(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    return lambda input, weight: [function(input, weight, labels(input), *_SFACE)]


def _linear_sum_backward(input: Tensor, weight: Tensor) -> Sequence[Tensor]:
    found = _ops.linear_logit_sum_backward(*upstream(input, 1), input, weight, labels(input), *_SFACE, None, [True, True])
    return list(found)


def _linear_sum_gradient(*leaves: Tensor) -> Sequence[Tensor]:
    outputs = _linear_sum(sface_reference.linear_logit_sum)(*leaves)
    return torch.autograd.grad(outputs, leaves, upstream(leaves[0], 1), create_graph=True)


def _two_heads() -> list[Tensor]:
    return [*head()[:2], wave(torch.empty(_ROWS, 4), 3.0), wave(torch.empty(_CLASSES, 4), 4.0)]


def _linear_two(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Kullback-Leibler and Jensen-Shannon."""
    return lambda *leaves: [function(*leaves, 0.5, beta) for beta in _BETAS]


def _linear_two_backward(*leaves: Tensor) -> Sequence[Tensor]:
    up = upstream(leaves[0], 1)
    return [d for beta in _BETAS for d in _ops.linear_two_logit_stats_backward(*up, *leaves, 0.5, beta, None, [True] * 4)]


def _linear_two_gradient(*leaves: Tensor) -> Sequence[Tensor]:
    outputs = _linear_two(linear_kl_reference.linear_two_logit_stats)(*leaves)
    up = upstream(leaves[0], 1)
    return [d for output in outputs for d in torch.autograd.grad(output, leaves, up, create_graph=True)]


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
    return [wave(lse.detach(), float(k)).detach() for k in (1, 2)]


def _pairs() -> list[Tensor]:
    return [wave(torch.empty(_ROWS, 5))]


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


def _two_stats(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    return lambda input, target: [stats(input, target, 0.5, beta)[0] for beta in _BETAS]


def _two_stats_backward(input: Tensor, target: Tensor) -> Sequence[Tensor]:
    found: list[Tensor] = []
    for beta in _BETAS:
        with torch.no_grad():
            stats = _ops.two_logit_stats(input, target, 0.5, beta)
        found += _ops.two_logit_stats_backward(*upstream(input, 1), input, target, *stats, 0.5, beta, True, True)
    return found


def _two_stats_gradient(input: Tensor, target: Tensor) -> Sequence[Tensor]:
    outputs = _two_stats(kl_reference.two_logit_stats)(input, target)
    return [d for output in outputs for d in torch.autograd.grad(output, (input, target), upstream(input, 1), create_graph=True)]


def _two_logits() -> list[Tensor]:
    return [_logits(), 2 * wave(torch.empty(_ROWS, _CLASSES), 1.7)]


_METRIC: tuple[str, list[float]] = ("minkowski", [1.5])


def _vectors() -> list[Tensor]:
    return [wave(torch.empty(1, _ROWS, _CLASSES)), wave(torch.empty(1, _ROWS + 2, _CLASSES), 2.0)]


def _tile() -> list[Tensor]:
    return [vectors[0] for vectors in _vectors()]


def _distances(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    return lambda input, other: [function(input, other, *_METRIC)]


def _distances_backward(input: Tensor, other: Tensor) -> Sequence[Tensor]:
    grad = wave(input.new_empty(1, _ROWS, _ROWS + 2)).detach()
    return list(_ops.pair_distances_backward(grad, input, other, *_METRIC, True, True))


def _distances_gradient(input: Tensor, other: Tensor) -> Sequence[Tensor]:
    distances = distance_reference.pair_distances(input, other, *_METRIC)
    return torch.autograd.grad(distances, (input, other), wave(distances).detach(), create_graph=True)


def _written(function: Callable[..., None]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, other: Tensor) -> Sequence[Tensor]:
        out = input.new_empty(_ROWS, _ROWS + 2)
        function(input, other, *_METRIC, out)
        return [out]

    return outputs


def _added(input: Tensor, other: Tensor) -> Sequence[Tensor]:
    gradients = [torch.ones_like(input), torch.ones_like(other)]
    _ops.distance_tile_backward(*gradients, wave(input.new_empty(_ROWS, _ROWS + 2)), input, other, *_METRIC, True, True)
    return gradients


def _added_gradient(input: Tensor, other: Tensor) -> Sequence[Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in (input[None], other[None])]
    return [1 + gradient[0].detach() for gradient in _distances_gradient(*leaves)]


SELF_TESTS: dict[str, SelfTest] = {
    "logit_stats": SelfTest(lambda: [_logits()], _logit_stats(_ops.logit_stats), _logit_stats(reference.logit_stats)),
    "logit_stats_backward": SelfTest(lambda: [_logits()], _logit_stats_backward, _logit_stats_gradient),
    "soft_logit_stats": SelfTest(
        lambda: [_logits(), probabilities()], _soft_stats(_ops.soft_logit_stats), _soft_stats(reference.soft_logit_stats)
    ),
    "soft_logit_stats_backward": SelfTest(lambda: [_logits(), probabilities()], _soft_stats_backward, _soft_stats_gradient),
    "logit_stats_backward_": SelfTest(lambda: [_logits()], _logit_stats_backward_, _overwritten, differentiable=False),
    "logit_sum": SelfTest(_cosines, _sum(_ops.logit_sum), _sum(sface_reference.logit_sum)),
    # linear in d_total, and the weights are constants: there is no derivative by input to compare
    "logit_sum_backward": SelfTest(
        _cosines, _sum_backward, lambda input: _sum_gradient(input.clone().requires_grad_()), differentiable=False
    ),
    "logit_sum_backward_": SelfTest(
        _cosines, _sum_backward_, lambda input: _sum_gradient(input.clone().requires_grad_()), differentiable=False
    ),
    "linear_logit_sum": SelfTest(lambda: head()[:2], _linear_sum(_ops.linear_logit_sum), _linear_sum(sface_reference.linear_logit_sum)),
    "linear_logit_sum_backward": SelfTest(lambda: head()[:2], _linear_sum_backward, _linear_sum_gradient),
    "linear_two_logit_stats": SelfTest(
        _two_heads, _linear_two(_ops.linear_two_logit_stats), _linear_two(linear_kl_reference.linear_two_logit_stats)
    ),
    "linear_two_logit_stats_backward": SelfTest(_two_heads, _linear_two_backward, _linear_two_gradient),
    "pair_tile_stats": SelfTest(
        lambda: [_logits()],
        _pair_tile(_ops.pair_tile_stats, None, None, None, 1),
        _pair_tile(pair_reference.pair_tile_stats, None, None, None, 1),
        differentiable=False,
    ),
    "pair_tile_stats_backward_": SelfTest(lambda: [_logits()], _pair_tile_backward_, _pair_tile_gradient, differentiable=False),
    "pair_tile_extremes": SelfTest(
        lambda: [_logits()], _pair_tile(_ops.pair_tile_extremes, 1), _pair_tile(pair_reference.pair_tile_extremes, 1), differentiable=False
    ),
    "pair_stats": SelfTest(_pairs, _pair_stats(_ops.pair_stats), _pair_stats(pair_reference.pair_stats)),
    "pair_stats_backward": SelfTest(_pairs, _pair_stats_backward, _pair_stats_gradient),
    "pair_extremes": SelfTest(
        _pairs, _pair_extremes(_ops.pair_extremes), _pair_extremes(pair_reference.pair_extremes), differentiable=False
    ),
    "first_invalid_target": SelfTest(
        lambda: [torch.tensor([3, -100, 6, 7, -1])], _invalid(_ops.first_invalid_target), _invalid(reference.first_invalid_target)
    ),
    "two_logit_stats": SelfTest(_two_logits, _two_stats(_ops.two_logit_stats), _two_stats(kl_reference.two_logit_stats)),
    "two_logit_stats_backward": SelfTest(_two_logits, _two_stats_backward, _two_stats_gradient),
    "pair_distances": SelfTest(_vectors, _distances(_ops.pair_distances), _distances(distance_reference.pair_distances)),
    "pair_distances_backward": SelfTest(_vectors, _distances_backward, _distances_gradient),
    "distance_tile": SelfTest(_tile, _written(_ops.distance_tile), _written(distance_reference.distance_tile), differentiable=False),
    "distance_tile_backward": SelfTest(_tile, _added, _added_gradient, differentiable=False),
}
