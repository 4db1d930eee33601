"""Kernels k(x) of sums over pairs, x = s_positive - s_negative, as lists of numbers that the scans take.

Two families, in both of which a sorted scan carries a sum from one score to the next without cancellation:

    ``power``     [constant, (side, knot, factor, power), ...]
                  k(x) = constant + sum of factor (knot - x)_+^power for side 0, factor (x - knot)_+^power for side 1; power 0 is the
                  indicator of a positive difference, so that the knot itself counts for nothing
    ``logistic``  [scale, constant, slope, a_1 ... a_d, b_1 ... b_d],   z = e^(-scale |x|)
                  k(x) = sum a_k z^k for x > 0,   constant + slope x + sum b_k z^k for x < 0; the two sides of a tie are told apart by
                  the order of the samples

:func:`logistic_coefficients` gives the a_k of the derivatives of softplus. Their error is a bound on that of every sum of one sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["DEGREES", "evaluate", "logistic", "logistic_coefficients", "power"]

# terms in z for float32 and for float64: relative error 1.3e-9 and 1e-15 of the slope, where float32 keeps 6e-8
DEGREES = {torch.float32: 12, torch.float64: 21}


def power(constant: float, *terms: tuple[int, float, float, int]) -> list[float]:
    """Kernel of the family ``power`` from terms (side, knot, factor, power)."""
    return [float(constant), *(float(number) for term in terms for number in term)]


def logistic(scale: float, constant: float, slope: float, above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Kernel of the family ``logistic``; ``above`` and ``below`` are a and b."""
    return [float(scale), float(constant), float(slope), *above, *below]


def evaluate(family: str, kernel: Sequence[float], x: Tensor) -> Tensor:
    """k(x). At x = 0 the logistic family gives the mean of its two sides, which differ by their fit, or by a jump that means nothing."""
    if family == "power":
        value = torch.full_like(x, kernel[0])
        for side, knot, factor, exponent in zip(*(kernel[1 + i :: 4] for i in range(4)), strict=True):
            distance = x - knot if side else knot - x
            part = torch.where(distance > 0, distance.clamp(min=0) ** int(exponent), 0)
            value = value + factor * part.masked_fill(distance.isnan(), torch.nan)
        return value
    scale, constant, slope = kernel[:3]
    degree = (len(kernel) - 3) // 2
    z = torch.exp(-scale * x.abs())
    above, below, power_of_z = torch.zeros_like(z), torch.zeros_like(z), z
    for a, b in zip(kernel[3 : 3 + degree], kernel[3 + degree :], strict=True):
        above, below, power_of_z = above + a * power_of_z, below + b * power_of_z, power_of_z * z
    linear = constant + torch.where(x < 0, slope * x, 0) if slope else constant
    return torch.where(x > 0, above, torch.where(x < 0, linear + below, (above + constant + below) / 2))


# f(z) / z for f = softplus(-x) and the absolute values of its derivatives, z = e^-x
_QUOTIENTS = (
    lambda z: (1 + z).ln() / z,
    lambda z: 1 / (1 + z),
    lambda z: 1 / (1 + z) ** 2,
    lambda z: (1 - z) / (1 + z) ** 3,
)


@lru_cache
def logistic_coefficients(order: int, degree: int) -> tuple[float, ...]:
    """a_1 ... a_degree with sum a_k z^k = f(z) on [0, 1]: f = log(1 + z), and its absolute derivatives z / (1 + z), z / (1 + z)^2, ...
    by x. f(z) / z is interpolated at Chebyshev nodes, in 60 digits: the error relative to f falls like 5.83^-degree, because the nearest
    singularity is z = -1 (Trefethen 2013, Approximation Theory and Approximation Practice, theorem 8.2)."""
    with localcontext() as context:
        context.prec = 60
        nodes = [(1 + _cosine_of_pi(Decimal(2 * k + 1) / (2 * degree))) / 2 for k in range(degree)]
        newton = [_QUOTIENTS[order](z) for z in nodes]
        for gap in range(1, degree):  # divided differences
            for k in range(degree - 1, gap - 1, -1):
                newton[k] = (newton[k] - newton[k - 1]) / (nodes[k] - nodes[k - gap])
        monomial = [Decimal(0)] * degree
        for k in range(degree - 1, -1, -1):  # Horner: p <- p (z - node) + newton
            monomial = [(monomial[i - 1] if i else 0) - nodes[k] * monomial[i] for i in range(degree)]
            monomial[0] += newton[k]
        return tuple(float(c) for c in monomial)


def _cosine_of_pi(x: Decimal) -> Decimal:
    """cos(pi x), 0 <= x <= 1, by its series."""
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    square, term, total, k = -((pi * x) ** 2), Decimal(1), Decimal(1), 0
    while abs(term) > Decimal(10) ** -62:
        k += 2
        term *= square / (k * (k - 1))
        total += term
    return total
