"""Sums of an analytic kernel over all pairs without a sort: Chebyshev moments in bins, and products of small tables between bins.

    every sample     bin b and place t there, s = (b + (t + 1) / 2) h;     A_b += c (T_0(t) ... T_{p-1}(t))        ``binned_moments``
    pairs of bins    near   k(h (d + (t - t') / 2)) = sum of F_d[a, c] T_a(t) T_c(t'), |d| <= reach:   V_b += F_d A_{b-d}
                     far    a line on the left, e^(-scale x) on the right: running sums over the bins
    every sample     its potential, the expansion V_b at t                                                         ``binned_values``

h is a power of two and bins are counted from 0, so that tables of different batches and ranks add up. Between bins all is float64 on
tensors of (bins, p). Cost: N (3 + 2p) multiply-adds for each element pass, bins (2 reach + 1) p^2 between them.

Error: interpolating k in p Chebyshev nodes of a bin leaves at most 2 (h scale / 4)^p / p! max |k^(p)| in each of two variables
(Trefethen 2013, theorem 7.2 and its lemma), and |k^(p)| <= C_p |k|: :func:`error_bound`. Sums of one sign carry no larger relative error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Analytic", "Grid", "error_bound", "potentials"]

# beyond it e^-x is all that is left of a logistic kernel: 2e-8 and 3e-17 of it are neglected
REACH = {torch.float32: 18.0, torch.float64: 38.0}
TERMS = {torch.float32: (4, 5), torch.float64: (10, 11)}  # in bins of at most 1/16 and 1/4 of 1 / scale
_MANY = 1 << 17  # scores from which more bins of fewer terms are faster
_ROWS = 1 << 16  # elements of the windows of tables at a time: they are copied, and should be in a cache when read


@dataclass(frozen=True)
class Analytic:
    """``factor phi_k(scale x)``, ``phi_k`` the derivative ``number`` of softplus(-x): ``constant + slope x + left e^(scale x)`` far on the
    left, ``right e^(-scale x)`` far on the right."""

    number: int
    factor: float
    scale: float
    constant: float
    slope: float
    left: float
    right: float

    def value(self, x: Tensor) -> Tensor:
        x = self.scale * x
        functions: tuple[Callable[[], Tensor], ...] = (
            lambda: torch.logaddexp(-x, torch.zeros_like(x)),
            lambda: -torch.sigmoid(-x),
            lambda: torch.sigmoid(x) * torch.sigmoid(-x),
            lambda: -torch.sigmoid(x) * torch.sigmoid(-x) * torch.tanh(x / 2),
        )
        return self.factor * functions[self.number]()


@dataclass(frozen=True)
class Grid:
    """Bins ``first`` to ``first + bins`` of width ``1 / inv_width``, ``terms`` polynomials in each, ``reach`` in x of the near field."""

    inv_width: float
    first: int
    bins: int
    terms: int
    reach: float

    @classmethod
    def over(cls, low: float, high: float, scale: float, dtype: torch.dtype, count: int) -> Grid | None:
        """The grid for ``count`` scores of a range, or None if that needs more bins than pay."""
        spread = scale * (high - low)
        if not spread <= 512:  # NaN and infinities too
            return None
        fine = dtype == torch.float32 and spread <= 32 and count >= _MANY
        inv_width = 2.0 ** math.ceil(math.log2(scale * (16 if fine else 4)))
        first, last = math.floor(low * inv_width), math.floor(high * inv_width)
        if max(-first, last + 1) >= (1 << 24 if dtype == torch.float32 else 1 << 52):
            return None  # the bins of such scores have no exact number
        return cls(inv_width, first, last + 1 - first, TERMS[dtype][0 if fine or dtype == torch.float64 else 1], REACH[dtype] / scale)

    @property
    def arguments(self) -> tuple[float, int, int, int]:
        """As ``binned_moments`` takes them."""
        return self.inv_width, self.first, self.bins, self.terms


def potentials(kernels: tuple[Analytic, ...], grid: Grid, moments: Tensor) -> list[Tensor]:
    """V [G, 2, bins, terms] of each kernel: the expansions of sum c k(x) over the partners, of a negative and of a positive, from their
    moments."""
    negatives, positives = moments.unbind(1)
    # x of the mirrored scores: bins in the other order, T_k(-t) = (-1)^k T_k(t)
    signs = torch.tensor([(-1.0) ** k for k in range(grid.terms)], dtype=torch.float64, device=moments.device)
    sources = torch.cat([negatives, (positives * signs).flip(1)])
    gap = math.ceil(grid.reach * grid.inv_width)  # in bins
    found = []
    for kernel, value in zip(kernels, _near(kernels, grid, sources, min(gap, grid.bins - 1)), strict=True):
        upper, lower = (value if grid.bins <= gap + 1 else value + _far(kernel, grid, sources, gap + 1)).chunk(2)
        found.append(torch.stack([(lower * signs).flip(1), upper], 1))
    return found


def _far(kernel: Analytic, grid: Grid, moments: Tensor, beyond: int) -> Tensor:
    """What V [G, bins, terms] at targets x above sources takes from the bins that are ``beyond`` or more away, by their moments."""
    width, bins = 1 / grid.inv_width, grid.bins
    rise, fall = _exponential(kernel.scale * width / 2, grid.terms, moments.device)
    decay = math.exp(-kernel.scale * width)
    below = _shift(_decayed_sum(moments @ rise, decay), beyond) * decay**beyond  # sources far below: x large
    value = kernel.right * below[..., None] * fall
    above = moments.flip(1)
    if kernel.left:
        far = _shift(_decayed_sum(above @ fall, decay), beyond).flip(1) * decay**beyond
        value = value + kernel.left * far[..., None] * rise
    if kernel.constant or kernel.slope:
        place = width * torch.arange(bins, dtype=torch.float64, device=moments.device)
        mass = _shift(above[..., 0].cumsum(1), beyond).flip(1)
        mean = _shift((place.flip(0) * above[..., 0] + width / 2 * above[..., 1 % grid.terms]).cumsum(1), beyond).flip(1)
        line = torch.zeros_like(value)
        line[..., 0] = kernel.constant * mass + kernel.slope * (place * mass - mean)
        if grid.terms > 1:
            line[..., 1] = kernel.slope * width / 2 * mass
        value = value + line
    return value


def _near(kernels: tuple[Analytic, ...], grid: Grid, moments: Tensor, near: int) -> Tensor:
    """Sum over |d| <= near of F_d A_{b-d}, [kernels, G, bins, terms]: one matrix product of overlapping windows for all of them. The few
    rows of the tables are on its left: with so few columns on the right it takes twice as long."""
    groups, bins, terms = moments.shape
    table = torch.cat([_near_table(kernel, 1 / grid.inv_width, near, terms) for kernel in kernels]).to(moments.device)
    padded = torch.nn.functional.pad(moments, (0, 0, near, near))
    windows = padded.unfold(1, 2 * near + 1, 1).transpose(2, 3)  # [G, bins, 2 near + 1, terms], a view
    step = max(1, _ROWS // (groups * (2 * near + 1) * terms))
    parts = [table @ windows[:, b : b + step].reshape(-1, table.shape[1]).T for b in range(0, bins, step)]
    return torch.cat([part.view(len(kernels), terms, groups, -1) for part in parts], 3).permute(0, 2, 3, 1)


@lru_cache(maxsize=32)
def _near_table(kernel: Analytic, width: float, near: int, terms: int) -> Tensor:
    """[terms, (2 near + 1) terms]: rows a; columns (d, c), where the d-th window entry is the bin d - near above the target."""
    nodes = torch.cos(math.pi * (torch.arange(terms, dtype=torch.float64) + 0.5) / terms)
    order = torch.arange(terms, dtype=torch.float64)[:, None]
    fit = 2 / terms * torch.cos(math.pi * order * (torch.arange(terms, dtype=torch.float64) + 0.5) / terms)
    fit[0] /= 2
    distance = torch.arange(near, -near - 1, -1, dtype=torch.float64)[:, None, None]
    values = kernel.value(width * (distance + (nodes[:, None] - nodes) / 2))  # [d, target, source]
    return (fit @ values @ fit.T).transpose(0, 1).reshape(terms, -1)


@lru_cache(maxsize=32)
def _exponential(half: float, terms: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Chebyshev coefficients of e^(half t) and of e^(-half t)."""
    nodes = torch.cos(math.pi * (torch.arange(terms, dtype=torch.float64) + 0.5) / terms)
    order = torch.arange(terms, dtype=torch.float64)[:, None]
    fit = 2 / terms * torch.cos(math.pi * order * (torch.arange(terms, dtype=torch.float64) + 0.5) / terms)
    fit[0] /= 2
    return (fit @ torch.exp(half * nodes)).to(device), (fit @ torch.exp(-half * nodes)).to(device)


def _decayed_sum(x: Tensor, decay: float) -> Tensor:
    """y_b = x_b + decay y_{b-1} along the last dimension, in log2(bins) steps."""
    step = 1
    while step < x.shape[-1] and decay**step > 0:
        x = x + decay**step * _shift(x, step)
        step *= 2
    return x


def _shift(x: Tensor, bins: int) -> Tensor:
    """x_{b - bins}, zeros before."""
    return torch.nn.functional.pad(x, (bins, 0))[..., : x.shape[-1]]


def error_bound(kernel: Analytic, grid: Grid) -> float:
    """Bound on the relative error of k in exact arithmetic, with the far field's; infinite where k changes sign."""
    if kernel.number > 2:
        return math.inf
    p, h = grid.terms, kernel.scale / grid.inv_width
    lebesgue = 2 / math.pi * math.log(p) + 1
    # k at the nodes is at most e^(2 h) times k at the pair, because |k'| <= scale |k|
    near = (1 + lebesgue) * 2 * (h / 4) ** p / math.factorial(p) * _derivative_ratio(kernel.number, p) * math.exp(2 * h)
    far = math.exp(-kernel.scale * grid.reach) * 2
    return near + far


@lru_cache
def _derivative_ratio(number: int, order: int) -> float:
    """max |k^(order)| / |k| of derivative ``number`` of softplus, through polynomials of y = 1 / (1 + e^-x), y' = y - y^2."""
    if number == 0:  # softplus(x) >= y
        return _derivative_ratio(1, order - 1)
    base = torch.tensor([0.0, 1.0] if number == 1 else [0.0, 1.0, -1.0], dtype=torch.float64)
    polynomial = base
    for _ in range(order):
        slope = polynomial[1:] * torch.arange(1, len(polynomial), dtype=torch.float64)
        polynomial = torch.zeros(len(polynomial) + 1, dtype=torch.float64)
        polynomial[1 : 1 + len(slope)] += slope
        polynomial[2 : 2 + len(slope)] -= slope
    y = torch.linspace(0, 1, 4097, dtype=torch.float64)[1:-1]

    def at(coefficients: Tensor) -> Tensor:
        return torch.stack([c * y**k for k, c in enumerate(coefficients)]).sum(0)

    return float((at(polynomial) / at(base)).abs().max())
