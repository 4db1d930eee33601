"""Moments of the rows of each segment (class, cluster, node) in one pass, and what is a few lines on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from . import _checks
from .ops._register import stats_dtype
from .sample_checks import check_range
from .segment_results import NeuralCollapse, SegmentMoments

__all__ = [
    "OrthogonalProjectionLoss", "PamCLoss", "class_prototypes", "gaussian_nb_head", "neural_collapse", "orthogonal_projection_loss",
    "pamc_loss", "segment_moments",
]  # fmt: skip

_VARIANTS = ("mean", "abs_mean", "abs_pair")


def segment_moments(input: Tensor, index: Tensor, num_segments: int, *, second_moment: str | None = None) -> SegmentMoments:
    r"""Number, sum and, if wanted, sum of squares of the rows of each segment, in one deterministic pass.

    Args:
        input: rows, (N, D); float32, float64, bfloat16 or float16.
        index: segment of each row, int64 (N,), of 0 to ``num_segments`` - 1, in any order.
        num_segments: S; a segment may be empty, and has zeros then.
        second_moment: None, ``"diag"`` (elementwise squares, (S, D)) or ``"full"`` (:math:`\sum x x^\top`, (S, D, D)).

    Returns:
        :class:`SegmentMoments`; the sums are float64, in which they are added, and differentiable.

    Raises:
        IndexError: an index out of range (on CPU; on CUDA such a row is left out).
        TypeError, ValueError: a dtype or a shape that does not fit.

    Cost: one read of ``input`` forward, one read and one write backward; for ``"full"`` 2 N D^2 operations in each. Determinism:
    run_to_run, the same bits for any number of CPU threads. Double backward is exact.

    Example:
        >>> import torch, nearlinear
        >>> moments = nearlinear.segment_moments(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 0, 1]), 2)
        >>> moments.count.tolist(), moments.sum.flatten().tolist()
        ([1, 2], [2.0, 5.0])
    """
    name = "segment_moments"
    _check_rows(name, "input", input)
    _check_index(name, "index", index, input, num_segments)
    known = second_moment in (None, "diag", "full")
    _checks.require(known, ValueError, name, f"second_moment must be None, 'diag' or 'full', got {second_moment!r}")
    total, square, count = torch.ops.nearlinear.segment_moments(input, index, num_segments, second_moment or "none")
    return SegmentMoments(count, total, square if second_moment else None)


def class_prototypes(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of each class (C, D), zeros for a class without rows, and which classes have rows, bool (C,).

    Arguments, cost and errors as in :func:`segment_moments`; the means have the dtype of the features (Snell et al. 2017,
    arXiv:1703.05175, eq. (1)).
    """
    name = "class_prototypes"
    _check_rows(name, "features", features)
    _check_index(name, "labels", labels, features, num_classes)
    count, total, _ = segment_moments(features, labels, num_classes)
    return (total / count.clamp(min=1).unsqueeze(1)).to(features.dtype), count > 0


def gaussian_nb_head(features: Tensor, labels: Tensor, num_classes: int, *, eps: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of the linear head that a Gaussian naive Bayes classifier is, in one pass over the features.

    With one variance for each feature, pooled over the classes, ``features @ weight.T + bias`` is the log posterior of the classes up to a
    number for each row: a closed form with which to compare, or start, a discriminative head (Zheng et al. 2023, arXiv:2302.02334).
    A class without rows has weight 0 and bias -inf. ``eps`` is added to the variances.

    Arguments, cost and errors as in :func:`segment_moments`. The variance is a difference of float64 sums: with means above 1e3 standard
    deviations, subtract a common mean from the features first.
    """
    name = "gaussian_nb_head"
    _check_rows(name, "features", features)
    _check_index(name, "labels", labels, features, num_classes)
    _checks.require(eps >= 0, ValueError, name, f"eps must be >= 0, got {eps}")
    count, total, square = segment_moments(features, labels, num_classes, second_moment="diag")
    assert square is not None
    n = count.clamp(min=1).unsqueeze(1)
    means, rows = total / n, max(len(features), 1)
    variance = (square - total * means).sum(0) / rows + eps
    bias = torch.log(count.double() / rows) - 0.5 * (means**2 / variance).sum(1)
    dtype = stats_dtype(features)
    return (means / variance).to(dtype), torch.where(count > 0, bias, -torch.inf).to(dtype)


def neural_collapse(features: Tensor, labels: Tensor, num_classes: int, weight: Tensor | None = None) -> NeuralCollapse:
    r"""How far the features of a classifier have collapsed (Papyan, Han, Donoho 2020, PNAS 117(40), their NC1 to NC3).

    ``nc1``: :math:`\mathrm{tr}(S_W S_B^+) / C`, variation within the classes over that between their means; ``nc2``: distance of the
    normalised Gram matrix of the centred class means to that of a simplex equiangular tight frame; ``nc3``: distance of the normalised
    ``weight`` (C, D) of the last layer to the normalised centred means. Classes without rows count as absent in all three.

    Arguments, cost (a D x D second moment and its eigenvalues) and errors as in :func:`segment_moments`; no gradient.
    """
    name = "neural_collapse"
    _check_rows(name, "features", features)
    _check_index(name, "labels", labels, features, num_classes)
    shape = (num_classes, features.shape[1])
    fits = weight is None or tuple(weight.shape) == shape
    _checks.require(fits, ValueError, name, f"weight must have shape (C, D)={shape}, got {None if weight is None else tuple(weight.shape)}")
    with torch.no_grad():
        count, total, _ = segment_moments(features, labels, num_classes)
        everything = torch.zeros_like(labels)
        gram = segment_moments(features, everything, 1, second_moment="full").square
        assert gram is not None
        present = (count > 0).double().unsqueeze(1)
        classes, rows = present.sum().clamp(min=1), max(len(features), 1)
        means = total / count.clamp(min=1).unsqueeze(1)
        within = (gram[0] - total.T @ means) / rows
        centred = (means - means.sum(0) / classes) * present
        between = centred.T @ centred / classes
        nc1 = torch.trace(within @ torch.linalg.pinv(between, hermitian=True)) / classes
        frame = (torch.diag(present.squeeze(1)) - present @ present.T / classes) / (classes - 1).clamp(min=1).sqrt()
        nc2 = torch.linalg.matrix_norm(_unit(centred @ centred.T) - frame)
        nc3 = None if weight is None else torch.linalg.matrix_norm(_unit(weight.double() * present) - _unit(centred))
    return NeuralCollapse(nc1, nc2, nc3)


def orthogonal_projection_loss(features: Tensor, labels: Tensor, *, gamma: float = 0.5, variant: str = "mean") -> Tensor:
    r"""Features of one class together, those of two orthogonal, without the (B, B) matrix (Ranasinghe et al. 2021, arXiv:2103.14021).

    .. math:: 1 - \mathrm{mean}_{y_i = y_j,\, i \ne j} \cos(f_i, f_j) + \gamma\, \mathrm{mean}_{y_i \ne y_j} \cos(f_i, f_j)

    Three forms are in use: ``"mean"`` is the formula above, that of the published code with gamma 0.5; ``"abs_mean"`` takes the absolute
    value of the second mean, as the paper writes it (eq. (4) to (6)); ``"abs_pair"`` takes that of every cosine (a second version of the
    code, with gamma 2), which is no function of class sums: it takes B^2 D operations and the (B, B) matrix.

    Args:
        features: (B, D), not necessarily normalised; float32, float64, bfloat16 or float16.
        labels: int64 (B,), any values.
        gamma: share of the pairs of two classes.
        variant: ``"mean"``, ``"abs_mean"`` or ``"abs_pair"``.

    Returns:
        A 0-dim tensor, float32 (float64 for float64). Without a pair of a kind its mean is 0.

    Cost: O(B D) and a sort of the labels for the first two forms.
    """
    name = "orthogonal_projection_loss"
    _check_rows(name, "features", features)
    _check_index(name, "labels", labels, features, None)
    _checks.require(variant in _VARIANTS, ValueError, name, f"variant must be one of {_VARIANTS}, got {variant!r}")
    f = normalize(features.to(stats_dtype(features)), dim=1)
    if variant == "abs_pair":
        with torch.autocast(f.device.type, enabled=False):
            cosine = (f @ f.T).abs()
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        own = torch.eye(len(f), dtype=torch.bool, device=f.device)
        near, far = ((cosine * m).sum() / (m.sum(dtype=f.dtype) + 1e-6) for m in (same & ~own, ~same))
        return 1 - near + gamma * far
    ids = _dense_ids(labels)
    read = not (labels.is_cuda or labels.is_meta or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()) and len(ids) > 0
    classes = int(ids.max()) + 1 if read else None  # as many as rows where reading a value back would wait
    total, _, count = torch.ops.nearlinear.segment_moments(f, ids, classes, "none")
    n, by_class = count.double(), (total**2).sum()
    same_pairs = (n**2).sum() - n.sum()
    other_pairs = n.sum() ** 2 - (n**2).sum()
    near = _mean(by_class - torch.linalg.vector_norm(f, dtype=torch.float64) ** 2, same_pairs)
    far = _mean((total.sum(0) ** 2).sum() - by_class, other_pairs)
    return (1 - near + gamma * (far.abs() if variant == "abs_mean" else far)).to(f.dtype)


def pamc_loss(z: Tensor, edge_index: Tensor, edge_weight: Tensor, assignment: Tensor, *, tau: float = 1.0) -> Tensor:
    r"""Block contrastive loss of a graph: neighbours against the centres of clusters (Kulatilleke et al. 2022, arXiv:2209.14067).

    .. math:: -\mathrm{mean}_i \log\Bigl(\sum_{(i,j)} A_{ij} e^{\tau \cos(z_i, z_j)} + 10^{-10}\Bigr)
              + \mathrm{mean}_c \log\Bigl(\sum_{c'} e^{\tau \cos(\mu_c, \mu_{c'})} + 10^{-10}\Bigr)

    with :math:`\mu_c = \sum_i z_i` over the nodes whose largest assignment is c; the cosine of a node with itself, and of a centre with
    itself, counts as 0, as in the published code.

    Args:
        z: embeddings of the nodes, (N, D).
        edge_index: int64 (2, E): edges (i, j), as in PyTorch Geometric.
        edge_weight: (E,), the entries of A.
        assignment: soft assignment of the nodes, (N, k); its largest entry counts, without a gradient.
        tau: inverse temperature, at most 80 in float32.

    Returns:
        A 0-dim tensor, float32 (float64 for float64).

    Cost: O(E D + N D + k^2 D); the published code builds an (N, k, D) one-hot product.
    """
    name = "pamc_loss"
    _check_rows(name, "z", z)
    _checks.require(
        edge_index.dim() == 2 and edge_index.shape[0] == 2 and edge_index.dtype == torch.int64, ValueError, name,
        f"edge_index must be int64 of shape (2, E), got {edge_index.dtype} of shape {tuple(edge_index.shape)}",
    )  # fmt: skip
    _checks.check_shape(name, "edge_weight", edge_weight, tuple(edge_index.shape[1:]), f"(E,) with E={edge_index.shape[1]}")
    _checks.require(
        assignment.dim() == 2 and len(assignment) == len(z), ValueError, name,
        f"assignment must have shape (N, k) with N={len(z)}, got {tuple(assignment.shape)}",
    )  # fmt: skip
    for row in edge_index:
        check_range(name, "edge_index", row, len(z))
    i, j = edge_index
    wide = stats_dtype(z)
    unit = normalize(z.to(wide), dim=1)
    cosine = torch.where(i == j, 0.0, (unit[i] * unit[j]).sum(1))
    positive = segment_moments((edge_weight.to(wide) * torch.exp(tau * cosine)).unsqueeze(1), i, len(z)).sum
    centre = normalize(segment_moments(z, assignment.argmax(1), assignment.shape[1]).sum, dim=1)
    between = (centre @ centre.T).masked_fill(torch.eye(len(centre), dtype=torch.bool, device=z.device), 0)
    negative = torch.exp(tau * between).sum(1)
    return (torch.log(negative + 1e-10).mean() - torch.log(positive + 1e-10).mean()).to(wide)


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """0 of nothing, where only rounding is left of the total."""
    return torch.where(count > 0, total / (count + 1e-6), 0.0)


def _unit(matrix: Tensor) -> Tensor:
    return matrix / torch.linalg.matrix_norm(matrix).clamp(min=torch.finfo(matrix.dtype).tiny)


def _dense_ids(labels: Tensor) -> Tensor:
    """Labels as 0 to their number - 1, without reading a value back."""
    ordered, place = torch.sort(labels, stable=True)
    rank = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).cumsum(0)])[: labels.shape[0]]
    return torch.empty_like(rank).scatter(0, place, rank)


def _check_rows(function: str, argument: str, rows: Any) -> None:
    _checks.check_tensor(function, argument, rows)
    _checks.check_floating(function, argument, rows)
    _checks.require(rows.dim() == 2, ValueError, function, f"{argument} must have shape (N, D), got {tuple(rows.shape)}")


def _check_index(function: str, argument: str, index: Any, rows: Tensor, end: int | None) -> None:
    _checks.check_tensor(function, argument, index)
    _checks.require(index.dtype == torch.int64, TypeError, function, f"{argument} must be int64, got {index.dtype}; use {argument}.long()")
    if index.shape != rows.shape[:1]:  # the text is made then only: in a trace it would fix N
        raise ValueError(f"{function}: {argument} must have shape (N,) with N={len(rows)}, got {tuple(index.shape)}")
    _checks.check_devices(function, rows, **{argument: index})
    if end is not None:
        check_range(function, argument, index, end)


class OrthogonalProjectionLoss(nn.Module):
    """Module form of :func:`orthogonal_projection_loss`."""

    def __init__(self, *, gamma: float = 0.5, variant: str = "mean") -> None:
        super().__init__()
        _checks.require(variant in _VARIANTS, ValueError, type(self).__name__, f"variant must be one of {_VARIANTS}, got {variant!r}")
        self.gamma, self.variant = gamma, variant

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return orthogonal_projection_loss(features, labels, gamma=self.gamma, variant=self.variant)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, variant={self.variant!r}"


class PamCLoss(nn.Module):
    """Module form of :func:`pamc_loss`."""

    def __init__(self, *, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, z: Tensor, edge_index: Tensor, edge_weight: Tensor, assignment: Tensor) -> Tensor:
        return pamc_loss(z, edge_index, edge_weight, assignment, tau=self.tau)

    def extra_repr(self) -> str:
        return f"tau={self.tau}"
