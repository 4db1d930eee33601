"""The in-batch Mann-Whitney loss of two sets of embeddings: neither their scores nor the pairs of scores are stored."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from .ops._register import stats_dtype

__all__ = ["LinearMWLoss", "linear_mw_loss"]

_NAME = "linear_mw_loss"
NORMALIZERS = ("pairs", "queries")


def linear_mw_loss(
    query: Tensor,
    document: Tensor,
    *,
    hard_negatives: Tensor | None = None,
    temperature: float = 0.05,
    normalizer: str = "pairs",
    max_workspace_bytes: int | None = None,
) -> Tensor:
    r"""Mean of ``log(1 + e^(s_n - s_p))`` over all pairs of a positive and a negative score of a batch, whatever queries they belong to.

    The scores are ``s_ij = <query_i, document_j> / temperature``. Positives are the B diagonal ones, negatives all others of all queries,
    those with the hard negatives included: B^2 (B + H - 1) pairs. In this form ``log 2`` times the share of misordered pairs, 1 minus the
    area under the ROC curve of the batch, is at most the loss; InfoNCE compares scores of one query alone.

    Args:
        query, document: embeddings of shape (B, D), document i the positive of query i; float32, float64, bfloat16 or float16. They are
            taken as they are: normalise rows for cosines.
        hard_negatives: further documents of shape (H, D), negatives of every query; their gradient is computed as well.
        temperature: finite, > 0. The largest length of a query times that of a document, over the temperature, may be 252; rows of unit
            length thus need a temperature of 0.004.
        normalizer: what the sum over pairs is divided by: ``"pairs"``, their number, as the paper's text has it, or ``"queries"``, B, as
            its equation (3) is printed.
        max_workspace_bytes: limit of the tiles of scores and of converted embeddings; None is 256 MiB on CPU and 1 GiB on CUDA. A CPU
            tile has at most 256 rows.

    Returns:
        Loss in float32, in float64 for float64 inputs. 0, with a gradient of 0, without a negative (B = 1 and no hard negatives). NaN,
        with a gradient of NaN, if an embedding is not finite.

    Raises:
        TypeError, ValueError: an argument that does not fit, with what was expected.

    Cost: 4 products of 2 B (B + H) D FLOP in a training step, 26 operations for each score, 0.2 MB saved (0.3 MB in float64). Accuracy: as
    the scores of the product, float32 sums in bins to 1e-7. Determinism: run_to_run, as far as torch's product is. On CUDA one number, the
    largest score that is possible, is waited for. Source: Sheikholeslami et al. 2025, arXiv:2510.00137, eq. (3).

    Example:
        >>> import torch, nearlinear
        >>> torch.set_printoptions(precision=4)
        >>> nearlinear.linear_mw_loss(torch.eye(3), torch.eye(3), temperature=1.0)
        tensor(0.3133)
    """
    tensors = {"query": query, "document": document}
    if hard_negatives is not None:
        tensors["hard_negatives"] = hard_negatives
    for name, tensor in tensors.items():
        _checks.check_tensor(_NAME, name, tensor)
        _checks.check_floating(_NAME, name, tensor)
        _checks.require(tensor.dim() == 2, ValueError, _NAME, f"{name} must have two dimensions, got shape {tuple(tensor.shape)}")
    for name, tensor in list(tensors.items())[1:]:  # a text built for every call would fix the sizes for torch.compile
        if tensor.shape[1] != query.shape[1]:
            raise ValueError(f"{_NAME}: {name} must have D={query.shape[1]} columns, as query, got {tensor.shape[1]}")
        if tensor.dtype != query.dtype:
            raise TypeError(f"{_NAME}: {name} must have the dtype of query, {query.dtype}, got {tensor.dtype}")
    if len(document) != len(query):
        raise ValueError(f"{_NAME}: document must have B={len(query)} rows, as query, got {len(document)}; pass others as hard_negatives")
    _checks.check_devices(_NAME, query, **tensors)
    _check_options(_NAME, temperature, normalizer)
    documents = document if hard_negatives is None else torch.cat([document, hard_negatives])
    total: Tensor = torch.ops.nearlinear.linear_mw_sum(query, documents, 1 / temperature, max_workspace_bytes)[0]
    rows = len(query)
    count = rows if normalizer == "queries" else rows * (rows * len(documents) - rows)
    return (total / max(count, 1)).to(stats_dtype(query))


def _check_options(name: str, temperature: float, normalizer: str) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"{name}: temperature must be finite and > 0, got {temperature}")
    if normalizer not in NORMALIZERS:
        raise ValueError(f"{name}: normalizer must be one of {NORMALIZERS}, got {normalizer!r}")


class LinearMWLoss(nn.Module):
    """Module form of :func:`linear_mw_loss`: options at construction, tensors in the call."""

    def __init__(self, *, temperature: float = 0.05, normalizer: str = "pairs", max_workspace_bytes: int | None = None) -> None:
        super().__init__()
        _check_options(type(self).__name__, temperature, normalizer)
        self.options: dict[str, Any] = {"temperature": temperature, "normalizer": normalizer, "max_workspace_bytes": max_workspace_bytes}

    def forward(self, query: Tensor, document: Tensor, *, hard_negatives: Tensor | None = None) -> Tensor:
        return linear_mw_loss(query, document, hard_negatives=hard_negatives, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items())
