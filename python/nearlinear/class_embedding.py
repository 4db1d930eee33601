"""The class side of an embedding over one call of a fused head: its terms of all classes, its part of a tile, the end of their gradient.

    tile <- bend((tile + row_columns columns) / divisor)                   scores
    tile <- unbend(tile) / divisor;  d_columns += row_columns^T tile       gradient by [w, columns]
    d_w <- complete_(d_w, ...)                                             once all rows are in

Temporaries are those of a panel of class vectors; the vectors themselves are neither copied nor scaled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .embeddings import Plain


class ClassEmbedding:
    def __init__(self, embedding: Plain, linear_weight: Tensor, bias: Tensor | None, dtype: torch.dtype, panel: int) -> None:
        self.embedding, self.panel = embedding, panel
        terms = [
            # dense, or sums would add in an order that depends on strides
            embedding.class_terms(linear_weight[p].to(dtype).contiguous(), None if bias is None else bias[p])
            for p in self.panels(len(linear_weight))
        ]
        divisors = [divisor for divisor, _ in terms if divisor is not None]
        self.divisor = torch.cat(divisors) if divisors else None
        self.columns = torch.cat([columns for _, columns in terms], 1)
        self.d_columns = torch.empty_like(self.columns)

    def panels(self, classes: int) -> Iterator[slice]:
        return (slice(p, min(p + self.panel, classes)) for p in range(0, classes, self.panel))

    def finish_scores(self, tile: Tensor, row_columns: Tensor, begin: int, end: int, spare: list[Tensor]) -> None:
        for k in range(self.embedding.extra):  # one at a time: |w|^2 meets what the cancellation of |x|^2 has left, and rounds less
            tile.addcmul_(row_columns[:, k : k + 1], self.columns[k, begin:end])
        self.divide(tile, begin, end)
        self.embedding.bend(tile, self.columns[:, begin:end], spare)

    def start_gradient(self, tile: Tensor, begin: int, end: int, spare: list[Tensor]) -> Tensor | None:
        """Gradient of the scores to that of the product of ``[w, columns]``, in place; returns that of a last column outside it."""
        d_last = self.embedding.unbend(tile, self.columns[:, begin:end], spare)
        self.divide(tile, begin, end)
        return d_last

    def divide(self, tile: Tensor, begin: int, end: int) -> None:
        if self.divisor is not None:
            tile.div_(self.divisor[begin:end])

    def finish_gradient(self, d: Tensor, w: Tensor, begin: int, d_bias: Tensor) -> None:
        """``d`` of the class vectors ``w`` that begin at ``begin``, in place; ``d_bias`` of all where they hold it."""
        for p in self.panels(len(w)):
            q = slice(begin + p.start, begin + p.stop)
            divisor = None if self.divisor is None else self.divisor[q]
            of_bias = self.embedding.complete_(d[p], w[p], divisor, self.columns[:, q], self.d_columns[:, q])
            if of_bias is not None and d_bias.numel():
                d_bias[q] = of_bias
