"""The in-batch Mann-Whitney loss as it is written down: every pair is built. O(B^2 M) time and memory.

Letters: B queries, M >= B documents, s = <q_i, d_j> / temperature. Positives are the scores of the diagonal, negatives all others of all
rows; a pair is one of each, of whatever rows.

    total = sum over pairs of log(1 + e^(s_negative - s_positive))
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_mw_loss", "linear_mw_sum"]


def linear_mw_sum(query: Tensor, document: Tensor, inv_temperature: float, max_workspace_bytes: int | None = None) -> Tensor:
    """The sum over all pairs."""
    s = query @ document.T * inv_temperature
    own = torch.eye(*s.shape, dtype=torch.bool, device=s.device)
    lack = s[~own] - s[own].unsqueeze(1)
    return torch.logaddexp(lack, torch.zeros_like(lack)).sum()


def linear_mw_loss(
    query: Tensor, document: Tensor, *, hard_negatives: Tensor | None = None, temperature: float = 0.05, normalizer: str = "pairs",
    max_workspace_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Over the number of pairs, or of queries; 0 without a pair."""
    documents = document if hard_negatives is None else torch.cat([document, hard_negatives])
    count = len(query) if normalizer == "queries" else len(query) * (len(query) * len(documents) - len(query))
    return linear_mw_sum(query, documents, 1 / temperature) / max(count, 1)
