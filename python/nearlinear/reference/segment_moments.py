"""Moments of the rows of each segment, and the losses on them as they are written down: all pairs of rows are built.

Letters: N rows x of D features, S segments s, index_i the segment of row i; n_c rows of class c, mu_c their mean, B rows in a batch::

    count_s = #{i: index_i = s}      sum_s = sum x_i      square_s = sum x_i^2 (diag) or sum x_i x_i^T (full), over index_i = s
    dx_i    = d_sum_s + 2 x_i d_square_s,  or  d_sum_s + x_i (d_square_s + d_square_s^T),  s = index_i

Edges: an empty segment has zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["class_prototypes", "gaussian_nb_head", "orthogonal_projection_loss", "pamc_loss", "segment_moments"]


def segment_moments(input: Tensor, index: Tensor, num_segments: int | None, second_moment: str) -> tuple[Tensor, Tensor, Tensor]:
    """sum [S, D], square [S, D], [S, D, D] or [0], both float64; count [S]."""
    segments = len(input) if num_segments is None else num_segments
    member = (index == torch.arange(segments, device=index.device).unsqueeze(1)).double()  # [S, N]
    x = input.double()
    square = {
        "none": lambda: x.new_zeros(0),
        "diag": lambda: member @ x**2,
        "full": lambda: torch.einsum("sn,nd,ne->sde", member, x, x),
    }[second_moment]()
    return member @ x, square, member.sum(1).long()


def orthogonal_projection_loss(features: Tensor, labels: Tensor, *, gamma: float = 0.5, variant: str = "mean") -> Tensor:
    """1 - mean cosine of the pairs of one class + gamma times that of the pairs of two; ``abs_mean``: its absolute value;
    ``abs_pair``: the mean of absolute values, and of the cosines of one class too."""
    f = normalize(features, dim=1)
    cosine = f @ f.T
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    other = ~same
    same = same & ~torch.eye(len(f), dtype=torch.bool, device=f.device)
    if variant == "abs_pair":
        cosine = cosine.abs()
    near = (cosine * same).sum() / (same.sum(dtype=f.dtype) + 1e-6)
    far = (cosine * other).sum() / (other.sum(dtype=f.dtype) + 1e-6)
    return 1 - near + gamma * (far.abs() if variant == "abs_mean" else far)


def class_prototypes(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Means of the classes, zeros for a class without rows; and which classes have rows."""
    found = [features[labels == c] for c in range(num_classes)]
    means = [x.mean(0) if len(x) else features.new_zeros(features.shape[1]) for x in found]
    prototypes = torch.stack(means) if means else features.new_zeros(0, features.shape[1])
    return prototypes, torch.tensor([len(x) > 0 for x in found], dtype=torch.bool, device=features.device)


def gaussian_nb_head(features: Tensor, labels: Tensor, num_classes: int, *, eps: float = 1e-9) -> tuple[Tensor, Tensor]:
    """weight and bias of a linear head whose scores are, up to a number for each row, the log posteriors of a Gaussian naive Bayes
    classifier with one variance for each feature, pooled over the classes."""
    means, present = class_prototypes(features, labels, num_classes)
    count = torch.stack([(labels == c).sum() for c in range(num_classes)]).to(features.dtype)
    variance = ((features - means[labels]) ** 2).mean(0) + eps
    bias = torch.log(count / len(features)) - 0.5 * (means**2 / variance).sum(1)
    return means / variance, torch.where(present, bias, -torch.inf)


def pamc_loss(z: Tensor, edge_index: Tensor, edge_weight: Tensor, assignment: Tensor, *, tau: float = 1.0) -> Tensor:
    """-mean_i log(pos_i + 1e-10) + mean_c log(neg_c + 1e-10)."""
    i, j = edge_index
    unit = normalize(z, dim=1)
    cosine = torch.where(i == j, 0.0, (unit[i] * unit[j]).sum(1))
    position = torch.zeros(len(z), dtype=z.dtype, device=z.device).index_add(0, i, edge_weight * torch.exp(tau * cosine))
    member = torch.nn.functional.one_hot(assignment.argmax(1), assignment.shape[1]).to(z.dtype)
    centre = normalize(member.T @ z, dim=1)
    between = centre @ centre.T
    between = between * (1 - torch.eye(len(between), dtype=z.dtype, device=z.device))
    return -torch.log(position + 1e-10).mean() + torch.log(torch.exp(tau * between).sum(1) + 1e-10).mean()
