"""Registrations of the ops: fakes, derivatives, and the walks over tiles that are the kernels of the fused heads."""

from . import (
    betti_matching,
    cross_entropy,
    distance,
    kl_logit,
    linear_cross_entropy,
    linear_cross_entropy_soft,
    linear_kl_logit,
    linear_mw,
    pair_loss,
    pairwise_auc,
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
    "linear_cross_entropy_soft",
    "linear_kl_logit",
    "linear_mw",
    "pair_loss",
    "pairwise_auc",
    "roc_auc",
    "segment_moments",
    "sface",
    "taylor_attention",
    "tensor_attention",
]
