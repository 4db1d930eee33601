"""Betti matching and barcodes as ops: shapes, and the derivative of the loss. Pairs have no derivative. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._register import scaled, stats_dtype


def _groups(input: Tensor) -> int:
    """Images times homology dimensions."""
    torch._check(input.dim() in (2, 3, 4), lambda: "input must have shape (N, *S) with 1 to 3 sides")
    return input.shape[0] * (input.dim() - 1)


def _rows(input: Tensor, width: int) -> Tensor:
    """As many rows as the values of the image give."""
    return input.new_empty(torch.library.get_ctx().new_dynamic_size(), width, dtype=torch.int64)


@torch.library.register_fake("nearlinear::betti_matching")
def _(input: Tensor, target: Tensor, dims: list[int], superlevel: bool, positive: bool) -> tuple[Tensor, ...]:
    offsets = input.new_empty(_groups(input) + 1, 3, dtype=torch.int64)
    return _rows(input, 4), _rows(input, 2), _rows(input, 2), offsets


@torch.library.register_fake("nearlinear::persistence_barcode")
def _(input: Tensor, dims: list[int], superlevel: bool) -> tuple[Tensor, Tensor]:
    return _rows(input, 2), input.new_empty(_groups(input) + 1, dtype=torch.int64)


# ---- betti_matching_loss(input, target, weights, superlevel, positive, min_persistence, push, essential, wants_input, wants_target)
#      -> loss, d_input, d_target: the gradients for an upstream of 1


@torch.library.register_fake("nearlinear::betti_matching_loss")
def _(input: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(_groups(input) >= 0 and input.shape == target.shape, lambda: "target must have the shape of input")
    loss = input.new_empty(input.shape[0], dtype=stats_dtype(input))
    wants_input, wants_target = rest[-2:]
    return loss, input.new_empty(input.shape if wants_input else [0]), target.new_empty(target.shape if wants_target else [0])


class _LastDerivative(torch.autograd.Function):
    """The gradient as it is; its own derivative is refused rather than left out."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(
            "betti_matching_loss: double backward is not implemented; gather values at the pixels of nearlinear.betti_matching and square "
            "their differences, which has all derivatives"
        )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *stash = output
    ctx.wants = inputs[-2:]
    # the images are there for the refusal alone
    ctx.save_for_backward(*(image if wanted else None for image, wanted in zip(inputs[:2], ctx.wants, strict=True)), *stash)
    ctx.mark_non_differentiable(*stash)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_loss: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    found: list[Tensor | None] = [None, None]
    if d_loss is not None:
        saved = ctx.saved_tensors
        images, stash = [image for image in saved[:2] if image is not None], saved[2:]
        for i, (name, needed) in enumerate(zip(("input", "target"), ctx.needs_input_grad[:2], strict=True)):
            if needed and not ctx.wants[i]:
                raise RuntimeError(f"betti_matching_loss: wants_{name} must be True where {name} requires a gradient")
            if needed:
                gradient = scaled(stash[i], d_loss.view(-1, *[1] * (stash[i].dim() - 1)))
                found[i] = _LastDerivative.apply(gradient, *images) if torch.is_grad_enabled() else gradient
    return *found, *[None] * 8


torch.library.register_autograd("nearlinear::betti_matching_loss", _backward, setup_context=_setup)
