"""The class side of an embedding over one call of a fused head: its terms of all classes, its part of a tile, the end of their gradient.

    tile <- (tile + row_columns columns) / divisor                           scores
    tile <- tile / divisor;  d_columns += row_columns^T tile                 gradient by [w, columns]
    d_w <- complete_(d_w, ...)                                               once all rows are in

Temporaries are those of a panel of class vectors; the vectors themselves are neither copied nor scaled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .embeddings import Plain


class ClassEmbedding:
    def __init__(self, embedding: Plain, linear_weight: Tensor, dtype: torch.dtype, panel: int) -> None:
        self.embedding, self.panel = embedding, panel
        # dense, or sums would add in an order that depends on strides
        found = [embedding.class_terms(linear_weight[p].to(dtype).contiguous()) for p in self.panels(len(linear_weight))]
        divisors, columns = zip(*found, strict=True)
        self.divisor = None if divisors[0] is None else torch.cat(divisors)
        self.columns = torch.cat(columns, 1)
        self.d_columns = torch.empty_like(self.columns)

    def panels(self, classes: int) -> Iterator[slice]:
        return (slice(p, min(p + self.panel, classes)) for p in range(0, classes, self.panel))

    def finish_scores(self, tile: Tensor, row_columns: Tensor, begin: int, end: int) -> None:
        for k in range(self.embedding.extra):  # one at a time: |w|^2 meets what the cancellation of |x|^2 has left, and rounds less
            tile.addcmul_(row_columns[:, k : k + 1], self.columns[k, begin:end])
        self.divide(tile, begin, end)

    def divide(self, tile: Tensor, begin: int, end: int) -> None:
        if self.divisor is not None:
            tile.div_(self.divisor[begin:end])

    def finish_gradient(self, d: Tensor, w: Tensor, begin: int) -> None:
        """``d`` of the class vectors ``w`` that begin at ``begin``, in place."""
        for p in self.panels(len(w)):
            q = slice(begin + p.start, begin + p.stop)
            divisor = None if self.divisor is None else self.divisor[q]
            self.embedding.complete_(d[p], w[p], divisor, self.columns[:, q], self.d_columns[:, q])
