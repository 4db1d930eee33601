"""Sums over all pairs of a positive and a negative as ops: kernels, shapes, derivatives. Schemas: csrc/schema.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import pair_bins
from ..pairwise_plan import choose_grid
from ..surrogates import KERNELS, logistic_family
from ._register import scaled

_ops = torch.ops.nearlinear
# torch between the bins and the kernels of the device
_KEY = "CompositeExplicitAutograd"
_PART = 1 << 16  # elements, which a cache holds


def _check(input: Tensor, target: Tensor) -> None:
    torch._check(input.dim() == 1 and target.shape == input.shape, lambda: "target must have shape (N,)")


# ---- kernels; of one order of derivative, so without a derivative of their own


@torch.library.register_fake("nearlinear::pair_scan")
def _(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, family: str, value: list[float],
    potential: list[float], method: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(input, target)
    return input.new_empty(num_groups if value else 0, dtype=torch.float64), input.new_empty(input.shape if potential else [0])


@torch.library.register_fake("nearlinear::binned_moments")
def _(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, inv_width: float, first_bin: int,
    bins: int, terms: int,
) -> Tensor:  # fmt: skip
    _check(input, target)
    return input.new_empty(num_groups, 2, bins, terms, dtype=torch.float64)


@torch.library.register_fake("nearlinear::binned_values")
def _(input: Tensor, target: Tensor, group: Tensor | None, table: Tensor, inv_width: float, first_bin: int) -> Tensor:
    _check(input, target)
    return torch.empty_like(input)


# ---- pairwise_sum(input, target, coefficient, group, num_groups, surrogate, surrogate_params, method, score_range, wants_slope)
#      -> total: sum over the pairs of a group of c_i c_j value(x); slope: its derivative by each score


@torch.library.impl("nearlinear::pairwise_sum", _KEY)
def _(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, surrogate: str,
    surrogate_params: list[float], method: str, score_range: list[float], wants_slope: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    record = KERNELS[surrogate](*surrogate_params)
    grid = choose_grid(record, input, num_groups, method, score_range)
    if grid is None:
        family, value = record.kernel(0, input.dtype)
        slope_kernel = record.kernel(1, input.dtype)[1] if wants_slope else []
        total, slope = _ops.pair_scan(input, target, coefficient, group, num_groups, family, value, slope_kernel, method)
        if wants_slope:
            _give_sign(slope, target)
    else:
        moments = _ops.binned_moments(input, target, coefficient, group, num_groups, *grid.arguments)
        kernels = tuple(logistic_family(record).analytic(order) for order in range(1 + wants_slope))
        values, *slopes = pair_bins.potentials(kernels, grid, moments)
        total = (moments[:, 1] * values[:, 1]).sum((1, 2))
        slope = input.new_empty(0)
        for table in slopes:
            table[:, 0].neg_()
            slope = _ops.binned_values(input, target, group, table, grid.inv_width, grid.first)
    if wants_slope and coefficient is not None:
        slope.mul_(coefficient).masked_fill_(coefficient == 0, 0)  # even of a score that is no number
    return total, slope


@torch.library.register_fake("nearlinear::pairwise_sum")
def _(
    input: Tensor, target: Tensor, coefficient: Tensor | None, group: Tensor | None, num_groups: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    _check(input, target)
    return input.new_empty(num_groups, dtype=torch.float64), input.new_empty(input.shape if rest[-1] else [0])


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, target, coefficient, group, num_groups, *options, has_slope = inputs
    ctx.num_groups, ctx.options, ctx.has_slope = num_groups, options, has_slope
    ctx.save_for_backward(input, target, coefficient, group, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _sum_backward(ctx: Any, d_total: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_total is None:
        return (None,) * 10
    input, target, coefficient, group, slope = ctx.saved_tensors
    surrogate, params, method, score_range = ctx.options
    upstream = (d_total if group is None else d_total[group]).to(input.dtype)

    def potential(order: int) -> Tensor:
        c = torch.ones_like(input) if coefficient is None else coefficient
        found: Tensor = _ops.pair_potential(input, target, c, group, ctx.num_groups, surrogate, params, order, method, score_range)
        return found

    d_input = d_coefficient = None
    # create_graph: the slope is a constant; the potential has a derivative
    if ctx.needs_input_grad[0] and (torch.is_grad_enabled() or not ctx.has_slope):
        d_input = _sign(target, input.dtype) * potential(1) * upstream
        d_input = d_input if coefficient is None else d_input * coefficient
    elif ctx.needs_input_grad[0]:
        d_input = scaled(slope, upstream)
    if ctx.needs_input_grad[2]:
        d_coefficient = potential(0) * upstream
    return d_input, None, d_coefficient, *[None] * 7


torch.library.register_autograd("nearlinear::pairwise_sum", _sum_backward, setup_context=_sum_setup)


# ---- pair_potential(input, target, coefficient, group, num_groups, surrogate, surrogate_params, order, method, score_range)
#      -> u_i = sum of c_j times the derivative of the order of the surrogate, over the partners j of i. Its derivatives are potentials.


@torch.library.impl("nearlinear::pair_potential", _KEY)
def _(
    input: Tensor, target: Tensor, coefficient: Tensor, group: Tensor | None, num_groups: int, surrogate: str,
    surrogate_params: list[float], order: int, method: str, score_range: list[float],
) -> Tensor:  # fmt: skip
    record = KERNELS[surrogate](*surrogate_params)
    grid = choose_grid(record, input, num_groups, method, score_range)
    if grid is None:
        family, kernel = record.kernel(order, input.dtype)
        potential: Tensor = _ops.pair_scan(input, target, coefficient, group, num_groups, family, [], kernel, method)[1]
        return potential
    moments = _ops.binned_moments(input, target, coefficient, group, num_groups, *grid.arguments)
    (table,) = pair_bins.potentials((logistic_family(record).analytic(order),), grid, moments)
    values: Tensor = _ops.binned_values(input, target, group, table, grid.inv_width, grid.first)
    return values


@torch.library.register_fake("nearlinear::pair_potential")
def _(input: Tensor, target: Tensor, *_: Any) -> Tensor:
    _check(input, target)
    return torch.empty_like(input)


def _potential_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, target, coefficient, group, *ctx.options = inputs
    ctx.save_for_backward(input, target, coefficient, group)


def _potential_backward(ctx: Any, d_potential: Tensor) -> tuple[Tensor | None, ...]:
    input, target, c, group = ctx.saved_tensors
    num_groups, surrogate, params, order, method, score_range = ctx.options

    def of(weight: Tensor, derivative: int) -> Tensor:
        found: Tensor = _ops.pair_potential(
            input, target, weight, group, num_groups, surrogate, params, derivative, method, score_range
        )  # fmt: skip
        return found

    d_input = d_coefficient = None
    if ctx.needs_input_grad[0]:
        d_input = _sign(target, input.dtype) * (d_potential * of(c, order + 1) + c * of(d_potential, order + 1))
    if ctx.needs_input_grad[2]:
        d_coefficient = of(d_potential, order)
    return d_input, None, d_coefficient, *[None] * 7


torch.library.register_autograd("nearlinear::pair_potential", _potential_backward, setup_context=_potential_setup)


def _sign(target: Tensor, dtype: torch.dtype) -> Tensor:
    """d x / d s: 1 for a positive, -1 for a negative."""
    return target.to(dtype).mul_(2).sub_(1)


def _give_sign(slope: Tensor, target: Tensor) -> None:
    """``slope *= _sign``; on a CPU by parts, because the pages of a second buffer of that size would cost more than the product."""
    length = _PART if slope.device.type == "cpu" else max(1, slope.numel())
    for part, positive in zip(slope.split(length), target.split(length), strict=True):
        part.mul_(_sign(positive, slope.dtype))
