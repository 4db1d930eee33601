"""Self-tests of attention over pairs of keys and of its moments: two heads that share keys, biases, a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import taylor_attention as taylor_reference
from .reference import tensor_attention as reference
from .self_test_cases import SelfTest, wave

__all__ = ["ATTENTION_TESTS"]

_ops = torch.ops.nearlinear
_SOFTMAX = (0.5, [3, 1, -1, 2])  # scale, window
_SUMS = (*_SOFTMAX, [1.0, 1.0, 0.5], True)
_DEGREE = 3
_SCAN = 10  # features of three channels up to degree 2


def _tensors() -> list[Tensor]:
    shapes = ((1, 2, 6, 3), (1, 1, 6, 3), (1, 1, 6, 3), (1, 1, 6, 4), (1, 1, 6, 4), (1, 1, 6), (1, 1, 6))
    return [wave(torch.empty(shape), 0.4 * k) for k, shape in enumerate(shapes)]


def _keys() -> list[Tensor]:
    _, key, _, value, _, bias, _ = _tensors()
    return [key, value, bias]


def _applied() -> list[Tensor]:
    query = _tensors()[0]
    return [query, wave(torch.empty(1, 1, 20, 5), 2.0)]


def _scanned(like: Tensor) -> tuple[Tensor, int]:
    return wave(like.new_empty(_SCAN), 1.0).detach(), 2


def _outputs(function: Callable[..., Any], *options: Any) -> Callable[..., Sequence[Tensor]]:
    def outputs(*leaves: Tensor) -> Sequence[Tensor]:
        found = function(*leaves, *options)
        return [found] if isinstance(found, Tensor) else list(found)

    return outputs


def _scan(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    return lambda *leaves: [function(*leaves, *_scanned(leaves[0]))]


def _softmax_backward(*leaves: Tensor) -> Sequence[Tensor]:
    with torch.no_grad():
        known = _ops.trilinear_softmax(*leaves, *_SOFTMAX)
    upstream = [wave(t).detach() for t in known]
    return list(_ops.trilinear_softmax_backward(*upstream, *leaves, *known, *_SOFTMAX, [True] * 7))


def _backward(name: str, *options: Any) -> Callable[..., Sequence[Tensor]]:
    """The backward op of an op whose backward needs its inputs alone."""
    forward, backward = getattr(_ops, name), getattr(_ops, f"{name}_backward")

    def outputs(*leaves: Tensor) -> Sequence[Tensor]:
        rest = _scanned(leaves[0]) if name == "taylor_scan" else options
        with torch.no_grad():
            upstream = wave(forward(*leaves, *rest))
        return list(backward(upstream, *leaves, *rest, [True] * len(leaves)))

    return outputs


def _gradient(definition: Callable[..., Sequence[Tensor]]) -> Callable[..., Sequence[Tensor]]:
    def outputs(*leaves: Tensor) -> Sequence[Tensor]:
        found = definition(*leaves)
        return torch.autograd.grad(found, leaves, [wave(t).detach() for t in found], create_graph=True)

    return outputs


def _pair(name: str, leaves: Callable[[], list[Tensor]], definition: Callable[..., Any], *options: Any) -> dict[str, SelfTest]:
    """An op and its backward."""
    expected = _scan(definition) if name == "taylor_scan" else _outputs(definition, *options)
    ours = _scan(getattr(_ops, name)) if name == "taylor_scan" else _outputs(getattr(_ops, name), *options)
    backward = _softmax_backward if name == "trilinear_softmax" else _backward(name, *options)
    return {name: SelfTest(leaves, ours, expected), f"{name}_backward": SelfTest(leaves, backward, _gradient(expected))}


ATTENTION_TESTS: dict[str, SelfTest] = {
    **_pair("trilinear_softmax", _tensors, reference.trilinear_softmax, *_SOFTMAX),
    **_pair("trilinear_sums", _tensors, reference.trilinear_sums, *_SUMS),
    **_pair("taylor_moments", _keys, taylor_reference.taylor_moments, _DEGREE),
    **_pair("taylor_apply", _applied, taylor_reference.taylor_apply, _DEGREE),
    **_pair("taylor_scan", _tensors, taylor_reference.taylor_scan),
}
