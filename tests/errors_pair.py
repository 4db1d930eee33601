"""Rows of test_errors.py for the losses over pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearlinear
import torch
from nearlinear import pair_forms
from nearlinear.score_maps import ArcMargin, HyperbolicMLR, StudentT

X, Y = torch.zeros(3, 4), torch.tensor([0, 1, 0])
K, KEY = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
FLOATS = "must be float32, float64, bfloat16 or float16, got"


def call(name: str, *tensors: Any, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(nearlinear, name)(*(tensors or (X, Y)), **options)


def pair(**options: Any) -> Callable[[], Any]:
    return call("pair_loss", **options)


ROWS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (call("supcon_loss", [1.0], Y), TypeError, "supcon_loss: input must be a Tensor, got list"),
    (call("supcon_loss", Y, Y), TypeError, f"supcon_loss: input {FLOATS} torch.int64"),
    (call("supcon_loss", X[0], Y), ValueError, "supcon_loss: input must have two dimensions, got shape (4,)"),
    (call("supcon_loss", X, Y[:2]), ValueError, "supcon_loss: target must have shape (3,), got (2,)"),
    (call("supcon_loss", X, Y[:, None]), ValueError, "supcon_loss: target must have shape (3,), got (3, 1)"),
    (call("supcon_loss", X, Y.int()), TypeError, "supcon_loss: target must be int64 (or uint8), got torch.int32; use target.long()"),
    (call("supcon_loss", temperature=0.0), ValueError, "supcon_loss: temperature must be > 0, got 0.0"),
    (call("supcon_loss", reduction="batch"), ValueError, "supcon_loss: reduction must be one of ('none', 'mean', 'sum'), got 'batch'"),
    (call("supcon_loss", max_workspace_bytes=8), ValueError, "supcon_loss: max_workspace_bytes must be >= 512, got 8"),
    (call("supcon_loss", logit_map=2.0), TypeError, "supcon_loss: logit_map must be a LogitMap or a ScoreMap, got float"),
    (
        call("supcon_loss", logit_map=ArcMargin()), ValueError,
        f"supcon_loss: logit_map must be a map without a margin, got {ArcMargin()}",
    ),
    (
        call("supcon_loss", logit_map=HyperbolicMLR()), ValueError,
        "supcon_loss: logit_map must be a map of two embeddings, got HyperbolicMLR(c=1.0): its class vectors are hyperplanes",
    ),
    (call("multi_similarity_loss", beta=-1.0), ValueError, "multi_similarity_loss: beta must be > 0, got -1.0"),
    (
        call("proxy_anchor_loss", X, K[:, :3], Y), ValueError,
        "proxy_anchor_loss: proxies must have D=4 columns, as input, got 3",
    ),
    (
        call("proxy_anchor_loss", X, K.double(), Y), TypeError,
        "proxy_anchor_loss: proxies must have the dtype of input, torch.float32, got torch.float64",
    ),
    (call("proto_triplet_loss", X, K, Y + 4), IndexError, "proto_triplet_loss: target[1] = 5 is out of range [0, 5)"),
    (call("proto_triplet_loss", X, 3, Y), TypeError, "proto_triplet_loss: prototypes must be a Tensor, got int"),
    (call("info_nce_loss", X, X[:2]), ValueError, "info_nce_loss: key must have at least N=3 rows, got 2"),
    (call("info_nce_loss", X, X[0]), ValueError, "info_nce_loss: key must have shape (N, D), got (4,)"),
    (
        call("info_nce_loss", X, X, logit_map=StudentT()), ValueError,
        f"info_nce_loss: temperature must be 1 with logit_map={StudentT()}, got 0.1; scale the record instead",
    ),
    (pair(form=3), TypeError, "pair_loss: form must be a name or a PairForm, got int"),
    (pair(form="circle"), ValueError, f"pair_loss: form must be one of {tuple(pair_forms.PAIR_FORMS)}, got 'circle'"),
    (pair(key_target=KEY), ValueError, "pair_loss: key_target and soft_label must be None without key"),
    (pair(key=K), ValueError, "pair_loss: key needs either key_target or soft_label, got neither"),
    (
        pair(key=K, key_target=KEY, soft_label=(KEY, KEY, K[:, 0])), ValueError,
        "pair_loss: key needs either key_target or soft_label, got both",
    ),
    (pair(key=K, key_target=KEY[:2]), ValueError, "pair_loss: key_target must have shape (5,), got (2,)"),
    (pair(key=K, soft_label=(KEY, KEY)), ValueError, "pair_loss: soft_label must have three tensors, got 2"),
    (pair(key=K, soft_label=(KEY, KEY, KEY)), TypeError, f"pair_loss: soft_label[2] {FLOATS} torch.int64"),
    (
        pair(key=K, soft_label=(KEY, KEY, torch.zeros(5, requires_grad=True))), NotImplementedError,
        "pair_loss: no gradient for soft_label[2]; pass soft_label[2].detach()",
    ),
    (lambda: pair_forms.MultiSimilarity(0.0), ValueError, "MultiSimilarity: alpha and beta must be > 0, got 0.0 and 50.0"),
    (lambda: pair_forms.ProxyAnchor(-1.0), ValueError, "ProxyAnchor: alpha must be > 0, got -1.0"),
]  # fmt: skip
