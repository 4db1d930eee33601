"""nearlinear: fused kernels for losses and attention whose naive form costs too much.

Public functions and modules are listed in ``__all__``; ``torch.ops.nearlinear`` holds the ops under them and
:mod:`nearlinear.reference` their definitions in plain torch.
"""

import torch  # noqa: F401  the compiled module needs torch's libraries in the process

from . import (
    _C,  # noqa: F401  registers the ops
    _gpu,  # noqa: F401  registers the GPU implementations
    logit_maps,
    reference,
    row_losses,
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
from .kl_logit import KLLogitLoss, kl_logit_loss
from .logit_maps import Scale, SoftCap
from .ops import cross_entropy as _cross_entropy_ops  # noqa: F401  fakes and derivatives
from .ops import kl_logit as _kl_logit_ops  # noqa: F401
from .row_losses import GCE, MAE, CompSum, CrossEntropy, Floored, Focal, Poly1, SumExponential, SymmetricCE, TruncatedGCE

__all__ = [
    "GCE", "MAE", "CompSum", "CompSumLoss", "CrossEntropy", "CrossEntropyLoss", "Floored", "Focal", "FocalLoss", "GCELoss", "KLLogitLoss",
    "MAELoss", "NearlinearWarning", "Poly1", "PolyLoss", "Scale", "SoftCap", "SumExponential", "SymmetricCE", "TruncatedGCE",
    "TruncatedGCELoss", "__version__", "comp_sum_loss", "cross_entropy", "focal_loss", "gce_loss", "kl_logit_loss", "logit_maps",
    "mae_loss", "poly_loss", "reference", "row_losses", "truncated_gce_loss",
]  # fmt: skip
