"""nearlinear: fused kernels for losses and attention whose naive form costs too much.

Public functions and modules are listed in ``__all__``; ``torch.ops.nearlinear`` holds the ops under them and
:mod:`nearlinear.reference` their definitions in plain torch.
"""

import torch  # noqa: F401  the compiled module needs torch's libraries in the process

from . import (
    _C,  # noqa: F401  registers the ops
    _gpu,  # noqa: F401  registers the GPU implementations
    distances,
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
from .distance import DistanceMatrix, distance_matrix
from .distances import BrayCurtis, Canberra, Chebyshev, Manhattan, Minkowski, SmoothChebyshev
from .logit_maps import Scale, SoftCap
from .ops import cross_entropy as _cross_entropy_ops  # noqa: F401  fakes and derivatives
from .ops import distance as _distance_ops  # noqa: F401
from .row_losses import GCE, MAE, CompSum, CrossEntropy, Floored, Focal, Poly1, SumExponential, SymmetricCE, TruncatedGCE

__all__ = [
    "GCE", "MAE", "BrayCurtis", "Canberra", "Chebyshev", "CompSum", "CompSumLoss", "CrossEntropy", "CrossEntropyLoss", "DistanceMatrix",
    "Floored", "Focal", "FocalLoss", "GCELoss", "MAELoss", "Manhattan", "Minkowski", "NearlinearWarning", "Poly1", "PolyLoss", "Scale",
    "SmoothChebyshev", "SoftCap", "SumExponential", "SymmetricCE", "TruncatedGCE", "TruncatedGCELoss", "__version__", "comp_sum_loss",
    "cross_entropy", "distance_matrix", "distances", "focal_loss", "gce_loss", "logit_maps", "mae_loss", "poly_loss", "reference",
    "row_losses", "truncated_gce_loss",
]  # fmt: skip
