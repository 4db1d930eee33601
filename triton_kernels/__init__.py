"""Triton implementations of the ops, for the CUDA key. Importing this imports no Triton; the first call of an op does."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch


def _launcher(module: str, op: str) -> Callable[..., Any]:
    """Importing Triton costs 0.2 s, which a process that never runs on a GPU need not pay."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f".{module}", __name__), op)(*arguments)

    return call


def register(library: torch.library.Library, key: str = "CUDA", **options: Any) -> None:
    """One line per op; launcher name and signature are the op's. torch drops the registrations of a Library that is collected."""
    library.impl("logit_stats", _launcher("cross_entropy", "logit_stats"), key, **options)
    library.impl("logit_stats_backward", _launcher("cross_entropy", "logit_stats_backward"), key, **options)
    library.impl("logit_stats_backward_", _launcher("cross_entropy", "logit_stats_backward_"), key, **options)
    library.impl("soft_logit_stats", _launcher("cross_entropy_soft", "soft_logit_stats"), key, **options)
    library.impl("soft_logit_stats_backward", _launcher("cross_entropy_soft", "soft_logit_stats_backward"), key, **options)
    library.impl("logit_sum", _launcher("sface", "logit_sum"), key, **options)
    library.impl("logit_sum_backward", _launcher("sface", "logit_sum_backward"), key, **options)
    library.impl("logit_sum_backward_", _launcher("sface", "logit_sum_backward_"), key, **options)
    library.impl("two_logit_stats", _launcher("kl_logit", "two_logit_stats"), key, **options)
    library.impl("two_logit_stats_backward", _launcher("kl_logit", "two_logit_stats_backward"), key, **options)
    library.impl("distance_tile", _launcher("distance", "distance_tile"), key, **options)
    library.impl("distance_tile_backward", _launcher("distance", "distance_tile_backward"), key, **options)
    library.impl("pair_distances", _launcher("distance", "pair_distances"), key, **options)
    library.impl("pair_distances_backward", _launcher("distance", "pair_distances_backward"), key, **options)
    library.impl("pair_tile_stats", _launcher("pair_loss", "pair_tile_stats"), key, **options)
    library.impl("pair_tile_stats_backward_", _launcher("pair_loss", "pair_tile_stats_backward_"), key, **options)
    library.impl("pair_tile_extremes", _launcher("pair_loss", "pair_tile_extremes"), key, **options)
    library.impl("binned_moments", _launcher("pair_bins", "binned_moments"), key, **options)
    library.impl("binned_values", _launcher("pair_bins", "binned_values"), key, **options)
    library.impl("segment_moments", _launcher("segment_moments", "segment_moments"), key, **options)
    library.impl("segment_moments_backward", _launcher("segment_moments", "segment_moments_backward"), key, **options)
    library.impl("trilinear_softmax", _launcher("tensor_attention", "trilinear_softmax"), key, **options)
    library.impl("trilinear_softmax_backward", _launcher("tensor_attention_backward", "trilinear_softmax_backward"), key, **options)
    library.impl("trilinear_sums", _launcher("tensor_attention", "trilinear_sums"), key, **options)
    library.impl("trilinear_sums_backward", _launcher("tensor_attention_backward", "trilinear_sums_backward"), key, **options)
    library.impl("taylor_moments", _launcher("taylor_attention", "taylor_moments"), key, **options)
    library.impl("taylor_moments_backward", _launcher("taylor_attention_backward", "taylor_moments_backward"), key, **options)
    library.impl("taylor_apply", _launcher("taylor_attention", "taylor_apply"), key, **options)
    library.impl("taylor_apply_backward", _launcher("taylor_attention_backward", "taylor_apply_backward"), key, **options)
    library.impl("taylor_scan", _launcher("taylor_scan", "taylor_scan"), key, **options)
    library.impl("taylor_scan_backward", _launcher("taylor_scan_backward", "taylor_scan_backward"), key, **options)
