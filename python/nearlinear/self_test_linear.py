"""Self-tests of the fused linear heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference import linear_cross_entropy as reference
from .reference import linear_mw as mw_reference
from .self_test_cases import HARD, SOFT, SelfTest, class_weight, head, labels, probabilities, upstream, wave

__all__ = ["LINEAR_TESTS"]

_ops = torch.ops.nearlinear


def _linear_stats(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
        return stats(input, weight, bias, labels(input), class_weight(weight.T), None, *HARD)[:3]

    return outputs


def _linear_stats_backward(input: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
    tensors = (input, weight, bias, labels(input), class_weight(weight.T), None)
    with torch.no_grad():
        nll, lse, _, residual = _ops.linear_logit_stats(*tensors, *HARD)
    arguments = (*upstream(input, 3), *tensors, nll, lse, residual, *HARD, 0, None, None, [True, True, True, False])
    return list(_ops.linear_logit_stats_backward(*arguments)[:3])


def _linear_stats_gradient(*leaves: Tensor) -> Sequence[Tensor]:
    outputs = _linear_stats(reference.linear_logit_stats)(*leaves)
    return torch.autograd.grad(outputs, leaves, upstream(leaves[0], 3), create_graph=True)


def _linear_loss(loss: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
        scale = upstream(input, 1)[0]
        options = (-100, "soft_cap", [4.0], "gce", [0.7], 0.0, 0.1, None, [True, True, True, False])
        return loss(input, weight, bias, labels(input), class_weight(weight.T), None, scale, None, *options)[:1]

    return outputs


def _linear_soft(stats: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(input: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Sequence[Tensor]:
        xent, lse, _, mass = stats(input, weight, bias, target, class_weight(weight.T), *SOFT)
        return [xent, lse, mass]

    return outputs


def _linear_soft_backward(*leaves: Tensor) -> Sequence[Tensor]:
    weight = class_weight(leaves[1].T)
    with torch.no_grad():
        _, *known = _ops.linear_soft_logit_stats(*leaves, weight, *SOFT)
    return list(_ops.linear_soft_logit_stats_backward(*upstream(leaves[0], 3), *leaves, weight, *known, *SOFT, None, [True] * 4))


def _linear_soft_gradient(*leaves: Tensor) -> Sequence[Tensor]:
    outputs = _linear_soft(reference.linear_soft_logit_stats)(*leaves)
    return torch.autograd.grad(outputs, leaves, upstream(leaves[0], 3), create_graph=True)


def _mw_sum(query: Tensor, document: Tensor) -> Sequence[Tensor]:
    return _ops.linear_mw_sum(query, document, 2.0)[:1]


def _mw_definition(query: Tensor, document: Tensor) -> Sequence[Tensor]:
    return [mw_reference.linear_mw_sum(query, document, 2.0)]


def _mw_sum_backward(query: Tensor, document: Tensor) -> Sequence[Tensor]:
    with torch.no_grad():
        total, *known = _ops.linear_mw_sum(query, document, 2.0)
    return list(_ops.linear_mw_sum_backward(wave(total), query, document, *known, 2.0, None, [True, True]))


def _mw_gradient(*leaves: Tensor) -> Sequence[Tensor]:
    outputs = _mw_definition(*leaves)
    return torch.autograd.grad(outputs, leaves, wave(outputs[0]).detach(), create_graph=True)


LINEAR_TESTS: dict[str, SelfTest] = {
    "linear_logit_stats": SelfTest(head, _linear_stats(_ops.linear_logit_stats), _linear_stats(reference.linear_logit_stats)),
    "linear_logit_stats_backward": SelfTest(head, _linear_stats_backward, _linear_stats_gradient),
    "linear_soft_logit_stats": SelfTest(
        lambda: [*head(), probabilities()],
        _linear_soft(_ops.linear_soft_logit_stats),
        _linear_soft(reference.linear_soft_logit_stats),
    ),
    "linear_soft_logit_stats_backward": SelfTest(lambda: [*head(), probabilities()], _linear_soft_backward, _linear_soft_gradient),
    "linear_mw_sum": SelfTest(lambda: head()[:2], _mw_sum, _mw_definition),
    "linear_mw_sum_backward": SelfTest(lambda: head()[:2], _mw_sum_backward, _mw_gradient),
    "linear_row_loss": SelfTest(head, _linear_loss(_ops.linear_row_loss), _linear_loss(reference.linear_row_loss)),
}
