"""What the registrations of all families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def stats_dtype(input: Tensor) -> torch.dtype:
    """Dtype of statistics and losses: float64 for float64, else float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def register_second_derivative(op: str, definition: Callable[..., Tensor | Sequence[Tensor]], differentiable: Sequence[int]) -> None:
    """Give the backward op ``op`` its own derivative, by autograd of ``definition``.

    ``definition`` has the signature of ``op`` in plain differentiable torch; ``differentiable`` are the positions of the arguments that
    carry a gradient (None among them is passed over). Without this a gradient penalty through the op would be silently wrong. Work and
    memory are those of eager double backward, and the result can be differentiated again.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.plain = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.save_for_backward(*[inputs[i] for i in ctx.places])

    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.plain)
        for i, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            inputs[i] = tensor
        wanted = [i for i in differentiable if inputs[i] is not None]
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # aliases, not the tensors: an upstream gradient may itself depend on input, and that path is the caller's to follow
            for i in wanted:
                inputs[i] = inputs[i].view_as(inputs[i]) if inputs[i].requires_grad else inputs[i].detach().requires_grad_()
            outputs = definition(*inputs)
            pairs = [
                (y, v)
                for y, v in zip([outputs] if isinstance(outputs, Tensor) else outputs, upstream, strict=True)
                if v is not None and y.requires_grad and y.numel()
            ]
            gradients = torch.autograd.grad(
                [y for y, _ in pairs],
                [inputs[i] for i in wanted],
                [v for _, v in pairs],
                create_graph=keep_graph,
                allow_unused=True,
            )
        found = dict(zip(wanted, gradients, strict=True))
        return tuple(found.get(i) for i in range(len(inputs)))

    torch.library.register_autograd(op, backward, setup_context=setup_context)


def scaled(stash: Tensor, upstream: Tensor) -> Tensor:
    """``stash * upstream``, in place where nobody can ask for the stash again: a second buffer of its size is not small."""
    traced = torch._C._len_torch_dispatch_stack() > 0 or torch.compiler.is_compiling()
    if traced or torch._C._functorch.is_batchedtensor(upstream) or torch._C._autograd._get_current_graph_task_keep_graph():
        return (stash * upstream).to(stash.dtype)
    return stash.mul_(upstream)
