"""How far the softmax and its Taylor polynomial can be apart, row by row, without a pass over pairs; and an estimate of how far they are.

Letters: x the logits of a row, e^bias the weights of its pairs, means are over pairs by these weights, g the even degree, T_g the Taylor
polynomial of e^x, TV half the sum of |P^ - P| over the pairs::

    B     >= max |x|: scale times the least product of norms |q|_p max |a|_q max |b|_r with 1/p + 1/q + 1/r = 1, after equal rms per channel
    rho    = mean x^g sum_m>=1 B^m / (g + m)!  >=  mean |e^x - T_g(x)|, as |e^x - T_g(x)| <= |x|^g sum |x|^m / (g + m)!
    TV    <= rho / max(e^(mean x), mean T_g(x) - rho)

The last line: the sum of |P^ - P| is at most twice rho over the mean of e^x, which is at least e^(mean x) by Jensen, and at least the mean
of T_g less rho. Means of powers come from the moments of the keys, so that it costs about two calls of the polynomial. All is
computed in float64, with more added for rounding than it makes; float32 would lose x^6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import factorial

import torch
from torch import Tensor

from .taylor_features import feature_weights, taylor_coefficients
from .tensor_attention_checks import KeySets
from .tensor_attention_sums import beyond_range, per_head, without_absent

__all__ = ["Certificate", "certificate", "output_bound", "sampled_distance"]

_ops = torch.ops.nearlinear
_SLACK = 1e-10  # of sums of absolute values: sums of 1e6 terms in float64 are far better


@dataclass(frozen=True)
class Certificate:
    """[B, H, N] in float64: bounds of TV and of |x|, the mean of x^2 (not a bound), and a lower bound of the mean of e^x."""

    tv: Tensor
    logit: Tensor
    square: Tensor
    mass: Tensor


@torch.no_grad()
def certificate(x: KeySets, degree: int) -> Certificate:
    """Of the Taylor polynomial of an even degree in the place of the softmax."""
    query, keys = x.query.double(), [without_absent(k.double(), b) for k, b in zip(x.keys, x.biases, strict=True)]
    biases = [_weights(k, b) for k, b in zip(keys, x.biases, strict=True)]
    query, keys = _equalised(query, keys)
    bound = abs(x.scale) * _norms(query, keys, x.causal)
    ones = [_one_power(m, degree) for m in (0, 1, 2, degree)]
    count, mean, square, highest, polynomial = _sums(x, query, keys, biases, [*ones, taylor_coefficients(degree)])
    none = count == 0  # a row that sees no pair is 0 in either way
    mean, square, highest, polynomial = ((s / count.masked_fill(none, 1)).masked_fill(none, 0) for s in (mean, square, highest, polynomial))
    slack = _SLACK * bound.exp()
    rho = _tail(bound, degree) * (highest.clamp(min=0) + _SLACK * bound**degree) * (1 + _SLACK)
    overflow = rho == torch.inf  # then nothing is certified, and infinite differences have no value
    mass = torch.maximum((mean - _SLACK * bound).exp(), torch.where(overflow, 0, polynomial - slack - rho))
    tv = torch.where(bound == 0, 0, torch.where(overflow, torch.inf, rho / mass))
    tv = (tv + 8 * torch.finfo(torch.float64).eps).masked_fill(none, 0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    lost = beyond_range(x)
    tv = tv if lost is None else tv.masked_fill(lost, torch.inf)
    return Certificate(tv, bound, square.clamp(min=0), mass)


def output_bound(x: KeySets, found: Certificate, exact: bool) -> Tensor:
    """[B, H, N] in the dtype of the statistics: of |out - softmax attention| in any channel, with an allowance for rounding."""
    sizes = [_channel_bound(v, b) for v, b in zip(x.values, x.biases, strict=True)]
    value = per_head(reduce(torch.mul, sizes).amax(2), x.query).unsqueeze(2)
    eps = torch.finfo(torch.float64 if x.query.dtype == torch.float64 else torch.float32).eps
    # a rounded logit moves the weights; in the sums of a polynomial terms of the size of e^B cancel
    rounding = 32 * eps * (1 + (found.logit if exact else found.logit.exp() / found.mass)) + torch.finfo(x.query.dtype).eps
    bound = value * (rounding if exact else 2 * found.tv.clamp(max=1) + rounding)
    nothing = bound.isnan() | (found.tv.isinf() & (not exact))  # products that overflow, rows beyond the range of sums
    bound = bound.masked_fill(nothing, torch.inf)
    return bound.to(torch.float64 if x.query.dtype == torch.float64 else torch.float32)


def _channel_bound(value: Tensor, bias: Tensor | None) -> Tensor:
    """[B, G, E]: largest absolute value of the keys that take part."""
    value = without_absent(value.detach(), bias).double()
    return value.abs().amax(2) if value.shape[2] else value.new_zeros(*value.shape[:2], value.shape[3])


def _weights(key: Tensor, bias: Tensor | None) -> Tensor | None:
    """Biases in float64, of at most 0: means do not see a common factor."""
    if bias is None or bias.shape[2] == 0:
        return None
    top = bias.double().amax(2, keepdim=True)
    return bias.double() - top.masked_fill(top == -torch.inf, 0)


def _equalised(query: Tensor, keys: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The same logits with query and keys of one rms per channel, where Hoelder's inequality loses least."""
    batch, heads, rows, dim = query.shape
    groups = keys[0].shape[1]
    by_group = query.reshape(batch, groups, heads // groups * rows, dim)
    sizes = torch.stack([t.square().sum(2) / max(t.shape[2], 1) for t in (by_group, *keys)])
    logs = sizes.log() / 2
    powers = (logs.mean(0) - logs).masked_fill(~logs.isfinite().all(0), 0)
    factors = powers.exp().unsqueeze(3)
    return query * per_head(factors[0], query), [key * factor for key, factor in zip(keys, factors[1:], strict=True)]


def _norms(query: Tensor, keys: list[Tensor], causal: bool) -> Tensor:
    """[B, H, N]: the least product of norms, over the balanced exponents and those with one infinite."""
    sets = len(keys)
    exponents = [[sets + 1.0] * (sets + 1)]
    exponents += [[torch.inf if t == least else float(sets) for t in range(sets + 1)] for least in range(sets + 1)]
    found = query.new_full(query.shape[:3], torch.inf)
    for first, *others in exponents:
        product = torch.linalg.vector_norm(query, first, 3)
        for key, power in zip(keys, others, strict=True):
            norms = torch.linalg.vector_norm(key, power, 3)
            if causal:
                largest = norms.cummax(2).values if key.shape[2] else norms
            else:
                largest = norms.amax(2, keepdim=True) if key.shape[2] else norms.new_zeros(*norms.shape[:2], 1)
            product = product * per_head(largest, query)
        found = torch.minimum(found, product)
    return found * (1 + _SLACK)


def _one_power(power: int, degree: int) -> list[float]:
    return [float(m == power) for m in range(degree + 1)]


def _sums(
    x: KeySets, query: Tensor, keys: list[Tensor], biases: list[Tensor | None], polynomials: list[list[float]]
) -> tuple[Tensor, ...]:  # fmt: skip
    """[B, H, N] for each polynomial: its sum over the pairs of a row, by their weights."""
    degree = len(polynomials[0]) - 1
    weights = [feature_weights(query.shape[3], p, x.scale, query) for p in polynomials]
    nothing = [key.new_empty(*key.shape[:3], 0) for key in keys]
    if x.causal:
        return tuple(_ops.taylor_scan(query, *keys, *nothing, *biases, weight, degree).squeeze(3) for weight in weights)
    moments = [_ops.taylor_moments(k, v, b, degree) for k, v, b in zip(keys, nothing, biases, strict=True)]
    return _ops.taylor_apply(query, reduce(torch.mul, moments) * torch.stack(weights, 1), degree).unbind(3)


def _tail(bound: Tensor, degree: int) -> Tensor:
    """sum_m>=1 B^m / (g + m)! = (e^B - T_g(B)) / B^g. The difference has no digits where B is small, the series none where it is cut."""
    series = torch.zeros_like(bound)
    for m in reversed(range(1, 25)):
        series = (series + 1 / factorial(degree + m)) * bound
    large = bound.clamp(min=1)
    polynomial = sum(large**m / factorial(m) for m in range(degree + 1))
    return torch.where(bound < 1, series, (large.exp() - polynomial) / large**degree) * (1 + _SLACK)


# ---- an estimate


@torch.no_grad()
def sampled_distance(x: KeySets, degree: int, samples: int, generator: torch.Generator | None) -> Tensor:
    """[B, H, N] in float64: TV over tuples of keys drawn by their weights, the same for all queries of a head."""
    product = x.query.new_full((), x.scale, dtype=torch.float64)
    for key, bias in zip(x.keys, x.biases, strict=True):
        index = _drawn(key, bias, samples, generator)
        product = product * without_absent(key.double(), bias).gather(2, index.unsqueeze(3).expand(-1, -1, -1, key.shape[3]))
    logits = x.query.double() @ per_head(product, x.query).transpose(2, 3)
    polynomial = sum(logits**m / factorial(m) for m in range(degree + 1))
    assert isinstance(polynomial, Tensor)
    return (polynomial / polynomial.sum(3, keepdim=True) - logits.softmax(3)).abs().sum(3) / 2


def _drawn(key: Tensor, bias: Tensor | None, samples: int, generator: torch.Generator | None) -> Tensor:
    """[B, G, samples]: rows of the keys; any where none takes part."""
    batch, groups, length, _ = key.shape
    if bias is None:
        return torch.randint(length, (batch, groups, samples), generator=generator, device=key.device)
    weights = bias.double().softmax(2).nan_to_num(nan=1.0).view(batch * groups, length)
    return torch.multinomial(weights, samples, replacement=True, generator=generator).view(batch, groups, samples)
