"""Definition of Betti matching by reduction of boundary matrices: the oracle, the mathematics.

Letters: images ``f`` (input) and ``g`` (target) of one shape, ``h = min(f, g)``, ``b`` and ``d`` birth and death value of a bar. A pixel is
a vertex; a cell with k axes has 2^k corners and the largest of their values. The cells with value <= t are a complex that grows with t
(sublevel; superlevel is the sublevel of the negated image). Cells of one dimension are ordered by (value, index): the index counts first
corners, then types, which are the axis of an edge and the normal axis of a face of a volume::

    own bars   : pairs (lowest row, column) of the reduced boundary matrix over Z/2, rows and columns in the order of the image; pairs with
                 b = d are dropped, and those with d = +inf, whose column never enters. The bar of the first vertex never dies: not listed
    image of f : the same with rows in the order of f and columns in that of h; "positive" keeps pairs with value_f(row) < value_h(column)
    matching   : for every bar of h, with death cell e: the rows paired with e in the images of f and of g; where the two are births of bars
                 of f and of g, these two bars are matched. All others are unmatched

    loss       = w0 sum_matched 2 ((b_f - b_g)^2 + (d_f - d_g)^2) + w1 sum_{input only, |b - d| > min_persistence} (b - d)^2
                 + w2 sum_{target only} (b - d)^2 [ + w0 2 (min f - min g)^2 in dimension 0: essential ]
    push       : 2 (b^2 + (1 - d)^2) in the place of (b - d)^2 (superlevel; sublevel 2 ((1 - b)^2 + d^2)), for values in [0, 1]
    gradient   : that of the values at the pixels that own births and deaths, with the pairs as constants: a subgradient. The owner of a
                 cell is its last corner of largest value, that of a cube of a volume its first

The loss is a few eager lines on gathered values, so it can be differentiated any number of times.

Edges: -0.0 = 0.0. A constant image has no bars, an image without a side of two pixels none in dimension 1. NaN is not an image.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["betti_matching", "betti_matching_error", "betti_matching_loss", "betti_number_error", "betti_numbers", "persistence_barcode"]

Rows = list[tuple[int, ...]]


def _flat(pixel: Sequence[int], shape: Sequence[int]) -> int:
    return functools.reduce(lambda i, axis: i * shape[axis] + pixel[axis], range(len(shape)), 0)


@functools.lru_cache
def _cells(shape: tuple[int, ...], dim: int) -> tuple[tuple[int, ...], ...]:
    """Corners of every cell with ``dim`` axes, as ascending flat pixels; cells in the order of their index."""
    spans = list(itertools.combinations(range(len(shape)), dim))
    if (len(shape), dim) == (3, 2):
        spans.reverse()  # by the normal axis
    cells = []
    for base in itertools.product(*map(range, shape)):
        for axes in spans:
            sides = [(x, x + 1) if axis in axes else (x,) for axis, x in enumerate(base)]
            if all(side[-1] < n for side, n in zip(sides, shape, strict=True)):
                cells.append(tuple(_flat(pixel, shape) for pixel in itertools.product(*sides)))
    return tuple(cells)


@functools.lru_cache
def _facets(shape: tuple[int, ...], dim: int) -> tuple[tuple[int, ...], ...]:
    """Index of the 2 dim cells on the boundary of each cell: the corners on one side of an axis, which is a bit of their place."""
    index = {corners: i for i, corners in enumerate(_cells(shape, dim - 1))}
    return tuple(
        tuple(index[tuple(c for i, c in enumerate(corners) if i >> bit & 1 == side)] for bit in range(dim) for side in (0, 1))
        for corners in _cells(shape, dim)
    )


class _Image:
    """Pixels of an image as a filtration; for every dimension the values of the cells and their order."""

    def __init__(self, pixels: Sequence[float], shape: tuple[int, ...]) -> None:
        self.pixels, self.shape = pixels, shape
        dims = range(len(shape) + 1)
        self.values = [[max(pixels[c] for c in corners) for corners in _cells(shape, dim)] for dim in dims]
        self.order = [sorted(range(len(values)), key=lambda cell: (values[cell], cell)) for values in self.values]

    def owner(self, dim: int, cell: int) -> int:
        largest = [c for c in _cells(self.shape, dim)[cell] if self.pixels[c] == self.values[dim][cell]]
        return largest[0] if dim == 3 else largest[-1]

    def bars(self, dim: int) -> dict[int, int]:
        """Birth cell -> death cell of every bar."""
        b, d = self.values[dim], self.values[dim + 1]
        return {row: column for column, row in _reduce(self, self, dim).items() if b[row] != d[column] and d[column] != float("inf")}

    def pair(self, dim: int, birth: int, death: int) -> tuple[int, ...]:
        """The pixels of a bar."""
        return self.owner(dim, birth), self.owner(dim + 1, death)


def _reduce(rows: _Image, columns: _Image, dim: int) -> dict[int, int]:
    """Column -> row of the pairs: (dim + 1)-cells in the order of one image, dim-cells in that of another. A column is a number's bits."""
    order = rows.order[dim]
    place = {cell: i for i, cell in enumerate(order)}
    facets = _facets(rows.shape, dim + 1)
    reduced: dict[int, int] = {}
    pairs = {}
    for cell in columns.order[dim + 1]:
        column = functools.reduce(lambda bits, facet: bits ^ 1 << place[facet], facets[cell], 0)
        while column and (low := column.bit_length() - 1) in reduced:
            column ^= reduced[low]
        if column:
            reduced[low] = column
            pairs[cell] = order[low]
    return pairs


def _match(f: _Image, g: _Image, dim: int, positive: bool) -> tuple[Rows, Rows, Rows]:
    """Pixels of the matched bars, ascending in h's death cell, and of the bars of f and of g alone, ascending in their birth cell."""
    h = _Image([min(a, b) for a, b in zip(f.pixels, g.pixels, strict=True)], f.shape)
    bars, births = [f.bars(dim), g.bars(dim)], []
    for image in (f, g):
        pairs, before, after = _reduce(image, h, dim), image.values[dim], h.values[dim + 1]
        births.append({column: row for column, row in pairs.items() if not positive or before[row] < after[column]})
    matched = []
    for death in sorted(h.bars(dim).values()):
        a, b = (found.get(death) for found in births)
        if a in bars[0] and b in bars[1]:
            matched.append((a, b))
    used = [{pair[side] for pair in matched} for side in (0, 1)]
    rows = [(*f.pair(dim, a, bars[0][a]), *g.pair(dim, b, bars[1][b])) for a, b in matched]
    f_alone, g_alone = (
        [image.pair(dim, b, d) for b, d in sorted(found.items()) if b not in taken]
        for image, found, taken in zip((f, g), bars, used, strict=True)
    )
    return rows, f_alone, g_alone


def _images(input: Tensor, superlevel: bool) -> list[_Image]:
    """Exact in float64: fl(-x) = -x."""
    s = input.detach().double().flatten(1)
    shape = tuple(input.shape[1:])
    return [_Image(values, shape) for values in (-s if superlevel else s).tolist()]


def _table(groups: list[Rows], width: int, device: torch.device) -> Tensor:
    return torch.tensor(list(itertools.chain(*groups)), dtype=torch.int64, device=device).view(-1, width)


def _offsets(tables: list[list[Rows]], device: torch.device) -> Tensor:
    """Rows of each table before every group, and in all."""
    return torch.tensor([list(itertools.accumulate(map(len, groups), initial=0)) for groups in tables], device=device).t().contiguous()


def betti_matching(
    input: Tensor, target: Tensor, dims: Sequence[int], superlevel: bool, positive: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Pixels (birth, death in input, birth, death in target) of matched bars [M, 4], (birth, death) of the others [U, 2], [W, 2], by image
    and dimension; offsets [N nd + 1, 3] of these groups."""
    tables: list[list[Rows]] = [[], [], []]
    for f, g in zip(_images(input, superlevel), _images(target, superlevel), strict=True):
        for dim in range(len(f.shape)):
            found = _match(f, g, dim, positive) if dim in dims else ([], [], [])
            for groups, rows in zip(tables, found, strict=True):
                groups.append(rows)
    matched, input_only, target_only = (_table(t, width, input.device) for t, width in zip(tables, (4, 2, 2), strict=True))
    return matched, input_only, target_only, _offsets(tables, input.device)


def persistence_barcode(input: Tensor, dims: Sequence[int], superlevel: bool) -> tuple[Tensor, Tensor]:
    """Pixels (birth, death) of the bars [P, 2] by image and dimension, ascending in their birth cell; offsets [N nd + 1]."""
    groups = [
        [image.pair(dim, *bar) for bar in sorted(image.bars(dim).items())] if dim in dims else []
        for image in _images(input, superlevel)
        for dim in range(len(image.shape))
    ]
    return _table(groups, 2, input.device), _offsets([groups], input.device)[:, 0]


def betti_matching_loss(
    input: Tensor, target: Tensor, weights: Sequence[float], superlevel: bool, positive: bool, min_persistence: float, push: bool,
    essential: bool, wants_input: bool, wants_target: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss [N], differentiable, with its gradients where wanted. ``weights``: w0, w1, w2 of every dimension."""
    pairs = betti_matching(input, target, [i // 3 for i, w in enumerate(weights) if w], superlevel, positive)
    options = (pairs, weights, superlevel, min_persistence, push, essential)
    with torch.enable_grad():
        x, y = (image.detach().requires_grad_() for image in (input, target))
        gradients = torch.autograd.grad(_loss(x, y, *options).sum(), (x, y), allow_unused=True, materialize_grads=True)
    d_input, d_target = (d if wanted else d.new_zeros(0) for d, wanted in zip(gradients, (wants_input, wants_target), strict=True))
    return _loss(input, target, *options), d_input, d_target


def _apart(x: Tensor, y: Tensor) -> Tensor:
    """x - y, 0 for equal infinities."""
    return (x - y).masked_fill(x.isinf() & (x == y), 0.0)


def _loss(
    input: Tensor, target: Tensor, pairs: tuple[Tensor, ...], weights: Sequence[float], superlevel: bool, min_persistence: float,
    push: bool, essential: bool,
) -> Tensor:  # fmt: skip
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    p, t = (x.to(wide).flatten(1) for x in (input, target))
    *tables, offsets = pairs
    n, nd = len(p), input.dim() - 1
    factors = torch.tensor(weights, dtype=wide, device=p.device).view(nd, 3)
    born, dead = (0.0, 1.0) if superlevel else (1.0, 0.0)  # where push moves births and deaths
    loss = p.new_zeros(n)
    for kind, rows in enumerate(tables):
        group = torch.arange(n * nd, device=p.device).repeat_interleave(offsets[:, kind].diff())
        image = group // nd
        values = [x[image[:, None], pixels] for x, pixels in zip(((p, t), (p,), (t,))[kind], rows.split(2, 1), strict=True)]
        if kind == 0:
            term = 2 * _apart(*values).square().sum(1)
        else:
            birth, death = values[0].unbind(1)
            term = 2 * ((birth - born).square() + (death - dead).square()) if push else (birth - death).square()
            term = term * ((birth - death).detach().abs() > min_persistence) if kind == 1 else term
        loss = loss.index_add(0, image, factors[group % nd, kind] * term)
    if essential:
        first = [(x.argmax(1) if superlevel else x.argmin(1))[:, None] for x in (p, t)]
        loss = loss + 2 * factors[0, 0] * _apart(p.gather(1, first[0]), t.gather(1, first[1])).square()[:, 0]
    return loss


def betti_numbers(
    input: Tensor, *, spatial_dims: int | None = None, threshold: float = 0.5, dims: Sequence[int] | None = None
) -> Tensor:  # fmt: skip
    """Same arguments as :func:`nearlinear.betti_numbers`: cells of a dimension less the ranks of the boundary matrices below and above."""
    nd = input.dim() - 2 if spatial_dims is None else spatial_dims
    lead, shape = input.shape[: input.dim() - nd], tuple(input.shape[input.dim() - nd :])
    rows = []
    for pixels in (input < threshold).reshape(-1, *shape).flatten(1).tolist():
        image = _Image(pixels, shape)
        cells = [values.count(False) for values in image.values]
        inside = [{cell for cell, value in enumerate(values) if not value} for values in image.values]
        ranks = [0, *(sum(column in inside[k + 1] for column in _reduce(image, image, k)) for k in range(len(shape))), 0]
        rows.append([cells[k] - ranks[k] - ranks[k + 1] for k in (range(nd) if dims is None else dims)])
    return torch.tensor(rows, dtype=torch.int64, device=input.device).view(*lead, nd if dims is None else len(dims))


def betti_number_error(
    input: Tensor, target: Tensor, *, spatial_dims: int | None = None, threshold: float = 0.5, dims: Sequence[int] | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Same arguments as :func:`nearlinear.betti_number_error`."""
    numbers = [betti_numbers(x, spatial_dims=spatial_dims, threshold=threshold, dims=dims) for x in (input, target)]
    return _reduced((numbers[0] - numbers[1]).abs().sum(-1), reduction)


def betti_matching_error(
    input: Tensor, target: Tensor, *, spatial_dims: int | None = None, threshold: float = 0.5, dims: Sequence[int] | None = None,
    essential: bool = False, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Same arguments as :func:`nearlinear.betti_matching_error`: bars without a partner, one matching for each pair of images."""
    nd = input.dim() - 2 if spatial_dims is None else spatial_dims
    lead = input.shape[: input.dim() - nd]
    f, g = (x.reshape(-1, *x.shape[input.dim() - nd :]) >= threshold for x in (input, target))
    errors = []
    for a, b in zip(f, g, strict=True):
        _, *alone, _ = betti_matching(a[None], b[None], range(nd) if dims is None else dims, True, False)
        empty = essential and bool(a.any()) != bool(b.any())
        errors.append(sum(map(len, alone)) + 2 * empty)
    return _reduced(torch.tensor(errors, dtype=torch.int64, device=input.device).view(lead), reduction)


def _reduced(errors: Tensor, reduction: str) -> Tensor:
    return errors if reduction == "none" else errors.sum() if reduction == "sum" else errors.double().mean()
