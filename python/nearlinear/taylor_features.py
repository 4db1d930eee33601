"""The features of polynomial attention: how many there are, their order, and the weights with which their moments make a power.

The features of u with D channels are its monomials phi_alpha(u) = prod_c u_c^alpha_c up to a degree, by degree. Those of degree m are
the channels' blocks one after another; the block of channel c is u_c times the first C(c + m - 1, m - 1) features of degree m - 1, those
without a channel after c. So a feature with channels c_1 <= ... <= c_m is number C(D + m - 1, m - 1) + sum_t C(c_t + t - 1, t).

    (sum_c u_c v_c w_c ...)^m = sum over |alpha| = m of m! / alpha! phi_alpha(u) phi_alpha(v) phi_alpha(w) ...
"""

from __future__ import annotations

from functools import lru_cache
from math import comb, factorial

import torch
from torch import Tensor

__all__ = ["feature_count", "feature_weights", "taylor_coefficients"]


def feature_count(dim: int, degree: int) -> int:
    """Monomials of ``dim`` channels up to ``degree``."""
    count = 1
    for k in range(degree):  # not math.comb, which torch.compile does not trace for a size that may change
        count = count * (dim + degree - k) // (k + 1)
    return count


def taylor_coefficients(degree: int) -> list[float]:
    """Of e^x about 0."""
    return [1 / factorial(m) for m in range(degree + 1)]


def feature_weights(dim: int, coefficients: list[float], scale: float, like: Tensor) -> Tensor:
    """[R]: with them, sum_alpha weight_alpha phi_alpha(q) phi_alpha(a) phi_alpha(b) = sum_m coefficients[m] (scale sum_c q_c a_c b_c)^m."""
    dim = len(range(dim))  # a size that torch.compile traces becomes a constant here
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0  # a tensor of a trace must not be kept
    return (_weights if traced else _kept_weights)(dim, tuple(coefficients), scale, like.device, like.dtype)


def _weights(dim: int, coefficients: tuple[float, ...], scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    counts = [comb(dim + m - 1, m) for m in range(len(coefficients))]
    powers = torch.tensor([c * factorial(m) * scale**m for m, c in enumerate(coefficients)], dtype=torch.float64, device="cpu")
    by_degree = torch.repeat_interleave(powers, torch.tensor(counts, device="cpu"), output_size=sum(counts))
    return (by_degree * _inverse_factorials(dim, len(coefficients) - 1)).to(device, dtype)


@lru_cache(maxsize=8)
def _kept_weights(dim: int, coefficients: tuple[float, ...], scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference mode cannot be saved for a backward
        return _weights(dim, coefficients, scale, device, dtype)


def _inverse_factorials(dim: int, degree: int) -> Tensor:
    """[R]: 1 / alpha!, float64, on the CPU."""
    found = [torch.ones(1, dtype=torch.float64, device="cpu")]
    last = run = torch.zeros(1, dtype=torch.int64, device="cpu")  # a feature's last channel, and how often the feature has it
    for m in range(1, degree + 1):
        counts = [comb(c + m - 1, m - 1) for c in range(dim)]
        starts = torch.tensor([comb(c + m - 1, m) for c in range(dim)], dtype=torch.int64, device="cpu")
        repeats = torch.tensor(counts, dtype=torch.int64, device="cpu")
        channel = torch.repeat_interleave(torch.arange(dim, device="cpu"), repeats, output_size=sum(counts))
        parent = torch.arange(sum(counts), device="cpu") - starts[channel]
        run = torch.where((m > 1) & (last[parent] == channel), run[parent] + 1, 1)
        found.append(found[-1][parent] / run)
        last = channel
    return torch.cat(found)
