"""Definition of the distances in plain torch: the oracle (in float64), the baseline (in native dtype), the mathematics.

Letters: R rows of ``input`` and C classes of ``other``, vectors of D numbers, ``d = x - w`` of a row and a class, ``s = sign(d)``::

    Manhattan          a = sum |d|                         da/dx_k = s_k                (d/dw: the same with x and w exchanged)
    Minkowski          a = (sum |d|^p)^(1/p)               da/dx_k = s_k |d_k|^(p-1) a^(1-p), 0 at a = 0
    Chebyshev          a = max |d|                         da/dx_k = s_k at the first largest coordinate, else 0
    smooth Chebyshev   a = log(sum e^(alpha |d|)) / alpha  da/dx_k = s_k softmax(alpha |d|)_k
    Canberra           a = sum |d| / n, n = |x| + |w| + e  da/dx_k = (s_k - |d_k| sign(x_k) / n_k) / n_k
    Bray-Curtis        a = sum |d| / n, n = |b| + e        da/dx_k = (s_k - a sign(b) m_k) / n
                       b = sum (x + w), m = 1; absolute: b = sum (|x| + |w|), m_k = sign(x_k)

Edges: R, C = 0 give an empty result, D = 0 gives 0 (smooth Chebyshev: -inf); sign(0) = sign(NaN) = 0; NaN in a vector gives NaN in its row
or column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distances import DISTANCES, DistanceMetric, Manhattan

__all__ = ["distance_matrix", "distance_tile", "pair_distances"]


def pair_distances(input: Tensor, other: Tensor, metric: str, metric_params: list[float]) -> Tensor:
    """Distances [B, R, C] of input [B, R, D] and other [B, C, D]."""
    return DISTANCES[metric](*metric_params)(input, other)


def distance_tile(input: Tensor, other: Tensor, metric: str, metric_params: list[float], out: Tensor) -> None:
    """Distances of input [R, D] and other [C, D], written to out [R, C]."""
    with torch.no_grad():
        out.copy_(pair_distances(input, other, metric, metric_params))


def distance_matrix(input: Tensor, other: Tensor, metric: DistanceMetric = Manhattan()) -> Tensor:  # noqa: B008  frozen
    """Same arguments as :func:`nearlinear.distance_matrix`."""
    return metric(input, other)
