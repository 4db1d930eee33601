"""Row weights from papers, for the ``sample_weight`` of any loss of this package. Plain torch: vectors of one number a row."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks

__all__ = ["dataset_equity_weight", "density_weights"]


def dataset_equity_weight(likelihood: Tensor, *, eta: float = 1.0, gamma: float = 5.0) -> Tensor:
    """``(eta + (1 - p)^gamma) / (eta + 1)``: rare samples count more (DatasetEquity, arXiv:2308.09878).

    ``likelihood``: p in [0, 1], any shape, of each sample among the data (a constant: the paper takes it from a clustering of deep
    features). The paper averages over the number of samples, so pass ``normalizer=N`` beside ``sample_weight``.
    """
    _checks.require(eta >= 0, ValueError, "dataset_equity_weight", f"eta must be >= 0, got {eta}")
    return (eta + (1 - likelihood) ** gamma) / (eta + 1)


def density_weights(
    target: Tensor, *, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0, separate: bool = False, background: int = 0,
    empty: str = "sum",
) -> Tensor:  # fmt: skip
    """Weights whose weighted sum of cross-entropies is the graph density-aware loss (arXiv:2005.08230); use ``reduction="sum"``.

    With M_FG edges whose label is not ``background`` and M_BG whose label is: foreground ``gamma alpha / M_FG``, background
    ``gamma beta / M_FG``, or ``gamma beta / M_BG`` with ``separate``. (The paper's "dnorm" is alpha = beta = 1, "dnorm-fgbg" is
    ``separate``.)

    ``empty``: what divides where a count is zero: ``"sum"`` 1, as the public code, which makes the loss a plain sum; ``"mean"`` the number
    of edges; ``"zero"`` infinity. Shape of ``target``, float32.
    """
    divisors = {"sum": 1.0, "mean": float(target.numel()), "zero": float("inf")}
    _checks.require(empty in divisors, ValueError, "density_weights", f"empty must be one of {sorted(divisors)}, got {empty!r}")
    foreground = target != background
    counts = [part.sum().to(torch.float32) for part in (foreground, ~foreground)]
    in_front, behind = (torch.where(count > 0, count, divisors[empty]) for count in counts)
    return gamma * torch.where(foreground, alpha / in_front, beta / (behind if separate else in_front))
