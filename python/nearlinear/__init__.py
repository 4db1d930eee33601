"""nearlinear: fused kernels for losses and attention whose naive form costs too much.

Public functions and modules are listed in ``__all__``; ``torch.ops.nearlinear`` holds the ops under them and
:mod:`nearlinear.reference` their definitions in plain torch.
"""

import torch  # noqa: F401  the compiled module needs torch's libraries in the process

from . import (
    _C,  # noqa: F401  registers the ops
    _gpu,  # noqa: F401  registers the GPU implementations
    logit_maps,
    pair_forms,
    reference,
    row_losses,
    score_maps,
)
from ._checks import NearlinearWarning
from ._version import __version__
from .cross_entropy import (
    CompSumLoss,
    CrossEntropyLoss,
    FocalLoss,
    GCELoss,
    MAELoss,
    PolyLoss,
    TruncatedGCELoss,
    comp_sum_loss,
    cross_entropy,
    focal_loss,
    gce_loss,
    mae_loss,
    poly_loss,
    truncated_gce_loss,
)  # fmt: skip
from .linear_cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy
from .linear_plan import Plan, plan
from .logit_maps import Scale, SoftCap
from .ops import cross_entropy as _cross_entropy_ops  # noqa: F401  fakes and derivatives
from .ops import pair_loss as _pair_loss_ops  # noqa: F401
from .pair_loss import (
    BatchHardTripletLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    PairLoss,
    ProtoTripletLoss,
    ProxyAnchorLoss,
    SupconLoss,
    batch_hard_triplet_loss,
    info_nce_loss,
    multi_similarity_loss,
    pair_loss,
    proto_triplet_loss,
    proxy_anchor_loss,
    supcon_loss,
)  # fmt: skip
from .row_losses import GCE, MAE, CompSum, CrossEntropy, Floored, Focal, Poly1, SumExponential, SymmetricCE, TruncatedGCE

__all__ = [
    "GCE",
    "MAE",
    "BatchHardTripletLoss",
    "CompSum",
    "CompSumLoss",
    "CrossEntropy",
    "CrossEntropyLoss",
    "Floored",
    "Focal",
    "FocalLoss",
    "GCELoss",
    "InfoNCELoss",
    "LinearCrossEntropyLoss",
    "MAELoss",
    "MultiSimilarityLoss",
    "NearlinearWarning",
    "PairLoss",
    "Plan",
    "Poly1",
    "PolyLoss",
    "ProtoTripletLoss",
    "ProxyAnchorLoss",
    "Scale",
    "SoftCap",
    "SumExponential",
    "SupconLoss",
    "SymmetricCE",
    "TruncatedGCE",
    "TruncatedGCELoss",
    "__version__",
    "batch_hard_triplet_loss",
    "comp_sum_loss",
    "cross_entropy",
    "focal_loss",
    "gce_loss",
    "info_nce_loss",
    "linear_cross_entropy",
    "logit_maps",
    "mae_loss",
    "multi_similarity_loss",
    "pair_forms",
    "pair_loss",
    "plan",
    "poly_loss",
    "proto_triplet_loss",
    "proxy_anchor_loss",
    "reference",
    "row_losses",
    "score_maps",
    "supcon_loss",
    "truncated_gce_loss",
]  # fmt: skip
