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
    ops,  # noqa: F401  registers their fakes and derivatives
    pair_forms,
    reference,
    row_losses,
    score_maps,
    surrogates,
)
from ._checks import NearlinearWarning
from ._version import __version__
from .betti_matching import (
    BettiMatchingLoss,
    betti_matching,
    betti_matching_error,
    betti_matching_loss,
    betti_number_error,
    betti_numbers,
    persistence_barcode,
)  # fmt: skip
from .betti_metrics import BettiMatchingError, BettiNumberError, BettiNumbers
from .betti_results import BettiMatching, PersistenceBarcode
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
from .heads import (
    ArcFaceLoss,
    CosFaceLoss,
    ElasticArcFaceLoss,
    ElasticCosFaceLoss,
    HarmonicLoss,
    UNPGLoss,
    arcface_loss,
    cosface_loss,
    elastic_arcface_loss,
    elastic_cosface_loss,
    harmonic_loss,
    unpg_loss,
)  # fmt: skip
from .kl_logit import JSLogitLoss, KLLogitLoss, js_logit_loss, kl_logit_loss
from .linear_cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy
from .linear_kl_logit import LinearJSLogitLoss, LinearKLLogitLoss, linear_js_logit_loss, linear_kl_logit_loss
from .linear_mw import LinearMWLoss, linear_mw_loss
from .linear_plan import Plan, plan
from .logit_maps import Scale, SoftCap
from .metrics import RocAUC
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
from .pairwise_auc import PairwiseAUCLoss, pairwise_auc_loss, pairwise_auc_plan
from .pairwise_moments import PairwiseAUCAccumulator
from .pairwise_plan import PairwisePlan
from .ranking import (
    LambdaRankLoss,
    SmoothAveragePrecisionLoss,
    lambda_rank_loss,
    sigmoid_rank,
    smooth_average_precision_loss,
)  # fmt: skip
from .roc_auc import roc_auc_score, roc_curve
from .row_losses import GCE, MAE, CompSum, CrossEntropy, Floored, Focal, Poly1, SumExponential, SymmetricCE, TruncatedGCE
from .row_weights import dataset_equity_weight, density_weights
from .segment_moments import (
    OrthogonalProjectionLoss,
    PamCLoss,
    class_prototypes,
    gaussian_nb_head,
    neural_collapse,
    orthogonal_projection_loss,
    pamc_loss,
    segment_moments,
)  # fmt: skip
from .segment_results import NeuralCollapse, SegmentMoments
from .sface import SFaceLoss, sface_loss
from .taylor_attention import (
    TensorAttentionErrorBound,
    tensor_attention_error_bound,
    tensor_attention_error_estimate,
    tensor_attention_n,
)  # fmt: skip
from .tensor_attention import TensorAttention, tensor_attention, tree_attention
from .tensor_attention_plan import TensorAttentionPlan, tensor_attention_plan

__all__ = [
    "GCE",
    "MAE",
    "ArcFaceLoss",
    "BatchHardTripletLoss",
    "BettiMatching",
    "BettiMatchingError",
    "BettiMatchingLoss",
    "BettiNumberError",
    "BettiNumbers",
    "BrayCurtis",
    "Canberra",
    "Chebyshev",
    "CompSum",
    "CompSumLoss",
    "CosFaceLoss",
    "CrossEntropy",
    "CrossEntropyLoss",
    "DistanceMatrix",
    "ElasticArcFaceLoss",
    "ElasticCosFaceLoss",
    "Floored",
    "Focal",
    "FocalLoss",
    "GCELoss",
    "HarmonicLoss",
    "InfoNCELoss",
    "JSLogitLoss",
    "KLLogitLoss",
    "LambdaRankLoss",
    "LinearCrossEntropyLoss",
    "LinearJSLogitLoss",
    "LinearKLLogitLoss",
    "LinearMWLoss",
    "MAELoss",
    "Manhattan",
    "Minkowski",
    "MultiSimilarityLoss",
    "NearlinearWarning",
    "NeuralCollapse",
    "OrthogonalProjectionLoss",
    "PairLoss",
    "PairwiseAUCAccumulator",
    "PairwiseAUCLoss",
    "PairwisePlan",
    "PamCLoss",
    "PersistenceBarcode",
    "Plan",
    "Poly1",
    "PolyLoss",
    "ProtoTripletLoss",
    "ProxyAnchorLoss",
    "RocAUC",
    "SFaceLoss",
    "Scale",
    "SegmentMoments",
    "SmoothAveragePrecisionLoss",
    "SmoothChebyshev",
    "SoftCap",
    "SumExponential",
    "SupconLoss",
    "SymmetricCE",
    "TensorAttention",
    "TensorAttentionErrorBound",
    "TensorAttentionPlan",
    "TruncatedGCE",
    "TruncatedGCELoss",
    "UNPGLoss",
    "__version__",
    "arcface_loss",
    "batch_hard_triplet_loss",
    "betti_matching",
    "betti_matching_error",
    "betti_matching_loss",
    "betti_number_error",
    "betti_numbers",
    "class_prototypes",
    "comp_sum_loss",
    "cosface_loss",
    "cross_entropy",
    "dataset_equity_weight",
    "density_weights",
    "distance_matrix",
    "distances",
    "elastic_arcface_loss",
    "elastic_cosface_loss",
    "focal_loss",
    "gaussian_nb_head",
    "gce_loss",
    "harmonic_loss",
    "info_nce_loss",
    "js_logit_loss",
    "kl_logit_loss",
    "lambda_rank_loss",
    "linear_cross_entropy",
    "linear_js_logit_loss",
    "linear_kl_logit_loss",
    "linear_mw_loss",
    "logit_maps",
    "mae_loss",
    "multi_similarity_loss",
    "neural_collapse",
    "orthogonal_projection_loss",
    "pair_forms",
    "pair_loss",
    "pairwise_auc_loss",
    "pairwise_auc_plan",
    "pamc_loss",
    "persistence_barcode",
    "plan",
    "poly_loss",
    "proto_triplet_loss",
    "proxy_anchor_loss",
    "reference",
    "roc_auc_score",
    "roc_curve",
    "row_losses",
    "score_maps",
    "segment_moments",
    "sface_loss",
    "sigmoid_rank",
    "smooth_average_precision_loss",
    "supcon_loss",
    "surrogates",
    "tensor_attention",
    "tensor_attention_error_bound",
    "tensor_attention_error_estimate",
    "tensor_attention_n",
    "tensor_attention_plan",
    "tree_attention",
    "truncated_gce_loss",
    "unpg_loss",
]  # fmt: skip
