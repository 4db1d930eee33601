"""Rows of test_errors.py for Betti matching and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearlinear
import torch

P, T = torch.full((2, 3, 4, 5), 0.5), torch.zeros(2, 3, 4, 5)
LABELS = torch.zeros(2, 1, 4, 5, dtype=torch.int64)
NAN = P.clone().index_put_((torch.tensor(1), torch.tensor(2), torch.tensor(0), torch.tensor(3)), torch.tensor(torch.nan))
WORDS = "must be float32, float64, bfloat16, float16, uint8 or bool, got"


def loss(input: Any = P, target: Any = T, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.betti_matching_loss(input, target, **options)


def match(input: Any = P, target: Any = T, spatial_dims: Any = 2, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.betti_matching(input, target, spatial_dims=spatial_dims, **options)


def bars(input: Any = P, spatial_dims: Any = 2, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.persistence_barcode(input, spatial_dims=spatial_dims, **options)


def module(input: Any = P, target: Any = T, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.BettiMatchingLoss(**options)(input, target)


ROWS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (loss(input=[0.5]), TypeError, "betti_matching_loss: input must be a Tensor, got list"),
    (loss(target=None), TypeError, "betti_matching_loss: target must be a Tensor, got NoneType"),
    (loss(input=LABELS), TypeError, "betti_matching_loss: input must be float32, float64, bfloat16 or float16, got torch.int64"),
    (
        loss(target=T.to(torch.complex64)), TypeError,
        f"betti_matching_loss: target with the dtype of input promoted {WORDS} torch.complex64",
    ),
    (loss(target=T[:1]), ValueError, "betti_matching_loss: target must have shape (2, 3, 4, 5), got (1, 3, 4, 5)"),
    (loss(target=T[:, 0]), ValueError, "betti_matching_loss: target must have shape (2, 3, 4, 5), got (2, 4, 5)"),
    (loss(target=T.to("meta")), ValueError, "betti_matching_loss: target must be on the device of input, cpu, got meta"),
    (
        loss(input=P[0, 0], target=T[0, 0]), ValueError,
        "betti_matching_loss: input must have shape (N, C, *S) with 1 to 3 spatial sides, got (4, 5)",
    ),
    (
        loss(input=P[..., None, None], target=T[..., None, None]), NotImplementedError,
        "betti_matching_loss: spatial_dims must be 1, 2 or 3, got 4; there is no algorithm for more",
    ),
    (loss(spatial_dims=0), ValueError, "betti_matching_loss: spatial_dims must be 1, 2 or 3, got 0"),
    (
        loss(input=P[0, 0], target=T[0, 0], spatial_dims=3), ValueError,
        "betti_matching_loss: input must have at least spatial_dims=3 dimensions, got (4, 5)",
    ),
    (
        loss(input=P[..., :0], target=T[..., :0]), ValueError,
        "betti_matching_loss: input must have spatial sides of at least one pixel, got (4, 0)",
    ),
    (
        loss(filtration="upper"), ValueError,
        "betti_matching_loss: filtration must be one of ('superlevel', 'sublevel', 'both'), got 'upper'",
    ),
    (
        loss(push_unmatched_to="1_0"), ValueError,
        "betti_matching_loss: push_unmatched_to must be one of ('diagonal', 'opposite'), got '1_0'",
    ),
    (loss(image_intervals="some"), ValueError, "betti_matching_loss: image_intervals must be one of ('all', 'positive'), got 'some'"),
    (loss(reduction="avg"), ValueError, "betti_matching_loss: reduction must be one of ('none', 'mean', 'sum'), got 'avg'"),
    (loss(min_persistence=-1), ValueError, "betti_matching_loss: min_persistence must be finite and >= 0, got -1"),
    (loss(sphere=True, pad_value=1.0), ValueError, "betti_matching_loss: sphere must be False with pad_value, got pad_value=1.0"),
    (loss(dim_weight=(1.0,)), ValueError, "betti_matching_loss: dim_weight must have one number per homology dimension, 2, got (1.0,)"),
    (
        loss(matched_weight=-1.0), ValueError,
        "betti_matching_loss: dim_weight and the weights of bars must be finite and >= 0, got None and (-1.0, 1.0)",
    ),
    (loss(sigmoid=True, softmax=True), ValueError, "betti_matching_loss: sigmoid must be False with softmax; use one of them"),
    (
        loss(softmax=True, spatial_dims=1), ValueError,
        "betti_matching_loss: input must have shape (N, C, *S) where channels are classes, got (2, 3, 4, 5) with spatial_dims=1",
    ),
    (
        loss(P[:, :1], T[:, :1], softmax=True), ValueError,
        "betti_matching_loss: softmax must be False for one channel, where it would give 1 everywhere",
    ),
    (loss(P[:, :1], LABELS, to_onehot_y=True), ValueError, "betti_matching_loss: to_onehot_y must be False for 1 channels"),
    (loss(to_onehot_y=True), ValueError, "betti_matching_loss: target must have shape (2, 1, 4, 5), got (2, 3, 4, 5)"),
    (
        loss(target=LABELS + 3, to_onehot_y=True), IndexError,
        "betti_matching_loss: target must hold class indices from 0 to 2, got 3",
    ),
    (loss(input=NAN), ValueError, "betti_matching_loss: input must not be NaN, got NaN at input[1, 2, 0, 3]"),
    (loss(target=NAN), ValueError, "betti_matching_loss: target must not be NaN, got NaN at target[1, 2, 0, 3]"),
    (
        loss(2 * P + 1, push_unmatched_to="opposite"), ValueError,
        "betti_matching_loss: input must have values in [0, 1] here, got 2 to 2",
    ),
    (module(input=P - 1), ValueError, "betti_matching_loss: input must have values in [0, 1] here, got -0.5 to -0.5"),
    (module(target=T + 255), ValueError, "betti_matching_loss: target must have values in [0, 1] here, got 255 to 255"),
    (lambda: nearlinear.BettiMatchingLoss(reduction="avg"), ValueError,
     "BettiMatchingLoss: reduction must be one of ('none', 'mean', 'sum'), got 'avg'"),
    (match(input=LABELS), TypeError, f"betti_matching: input {WORDS} torch.int64"),
    (match(spatial_dims="2"), ValueError, "betti_matching: spatial_dims must be 1, 2 or 3, got '2'"),
    (match(filtration="both"), ValueError, "betti_matching: filtration must be one of ('superlevel', 'sublevel'), got 'both'"),
    (match(dims=(2,)), ValueError, "betti_matching: dims must be distinct homology dimensions from 0 to 1, got (2,)"),
    (match(dims=(0, 0)), ValueError, "betti_matching: dims must be distinct homology dimensions from 0 to 1, got (0, 0)"),
    (match(target=NAN), ValueError, "betti_matching: target must not be NaN, got NaN at target[1, 2, 0, 3]"),
    (bars(input=LABELS), TypeError, f"persistence_barcode: input {WORDS} torch.int64"),
    (bars(input=NAN), ValueError, "persistence_barcode: input must not be NaN, got NaN at input[1, 2, 0, 3]"),
    (bars(filtration="both"), ValueError, "persistence_barcode: filtration must be one of ('superlevel', 'sublevel'), got 'both'"),
    (
        lambda: nearlinear.betti_numbers(P.to(torch.complex64)), TypeError,
        "betti_numbers: input must be real, got torch.complex64",
    ),
    (lambda: nearlinear.betti_numbers(NAN), ValueError, "betti_numbers: input must not be NaN, got NaN at input[1, 2, 0, 3]"),
    (
        lambda: nearlinear.betti_number_error(P, T[:1]), ValueError,
        "betti_number_error: target must have shape (2, 3, 4, 5), got (1, 3, 4, 5)",
    ),
    (
        lambda: nearlinear.betti_matching_error(P, NAN), ValueError,
        "betti_matching_error: target must not be NaN, got NaN at target[1, 2, 0, 3]",
    ),
    (
        lambda: nearlinear.BettiMatchingError(dims=(3,)).update(P, T), ValueError,
        "betti_matching_error: dims must be distinct homology dimensions from 0 to 1, got (3,)",
    ),
]  # fmt: skip
