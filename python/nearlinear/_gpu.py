"""Who serves the CUDA key: Triton, compiled C++, or a text that says what is missing. Nothing falls back to anything."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from . import _C

TRITON_OPS = (
    "binned_moments", "binned_values",
    "distance_tile", "distance_tile_backward", "pair_distances", "pair_distances_backward",
    "logit_stats", "logit_stats_backward", "logit_stats_backward_", "logit_sum", "logit_sum_backward", "logit_sum_backward_",
    "pair_tile_extremes", "pair_tile_stats", "pair_tile_stats_backward_",
    "segment_moments", "segment_moments_backward",
    "soft_logit_stats", "soft_logit_stats_backward",
    "taylor_apply", "taylor_apply_backward", "taylor_moments", "taylor_moments_backward", "taylor_scan", "taylor_scan_backward",
    "trilinear_softmax", "trilinear_softmax_backward", "trilinear_sums", "trilinear_sums_backward",
    "two_logit_stats", "two_logit_stats_backward",
)  # fmt: skip
COMPILED_OPS = (
    "betti_matching", "betti_matching_loss", "first_invalid_target", "pair_scan", "persistence_barcode", "roc_auc_class_sums",
    "roc_auc_counts", "roc_auc_sums",
)  # fmt: skip

# torch drops the registrations of a Library that is collected
_library = torch.library.Library("nearlinear", "IMPL")


def _raising(text: str) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise RuntimeError(text)

    return call


def register(has_triton: bool, cuda_skipped: str) -> None:
    """``cuda_skipped``: why the build has no compiled CUDA kernels, empty if it has them."""
    if has_triton:
        import_module("nearlinear.triton_kernels").register(_library)
    else:
        for op in TRITON_OPS:
            _library.impl(op, _raising(f"{op}: CUDA needs Triton, which is not installed (pip install triton)"), "CUDA")
    if cuda_skipped:
        for op in COMPILED_OPS:
            text = f"{op}: built without CUDA: {cuda_skipped}; set CUDA_HOME and reinstall nearlinear"
            _library.impl(op, _raising(text), "CUDA")


register(find_spec("triton") is not None, _C.build_info()["cuda_skipped"])
