"""Eager definitions of every op and loss: oracle in float64, baseline in native dtype."""

from . import (
    betti_matching,
    cross_entropy,
    distance,
    kl_logit,
    linear_cross_entropy,
    linear_kl_logit,
    linear_mw,
    pair_loss,
    pairwise_auc,
    ranking,
    roc_auc,
    segment_moments,
    sface,
    taylor_attention,
    tensor_attention,
)

__all__ = [
    "betti_matching",
    "cross_entropy",
    "distance",
    "kl_logit",
    "linear_cross_entropy",
    "linear_kl_logit",
    "linear_mw",
    "pair_loss",
    "pairwise_auc",
    "ranking",
    "roc_auc",
    "segment_moments",
    "sface",
    "taylor_attention",
    "tensor_attention",
]
