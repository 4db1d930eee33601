"""Every documented message: one row per error, with the class and the full text."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import errors_attention
import errors_betti
import errors_linear
import errors_mw
import errors_pair
import errors_pairwise
import errors_roc_auc
import nearlinear
import pytest
import torch
from nearlinear import (
    BrayCurtis,
    Canberra,
    Minkowski,
    SmoothChebyshev,
    _checks,
    betti_checks,
    betti_images,
    roc_auc_checks,
    row_losses,
    tensor_attention_checks,
)
from nearlinear.logit_maps import SoftCap
from torch.autograd import forward_ad


class DTensor(torch.Tensor):
    """Stands for torch's class of the same name, which needs a process group."""


X, Y = torch.zeros(3, 5), torch.tensor([0, 1, 2])
SOFT = torch.full((3, 5), 0.2)
WEIGHT = torch.ones(5)


def ce(input: Any = X, target: Any = Y, weight: Any = None, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.cross_entropy(input, target, weight, **options)


def kl(input: Any = X, target_logits: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.kl_logit_loss(input, target_logits, **options)


def dm(input: Any = X, other: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.distance_matrix(input, other, **options)


FLOATS = "must be float32, float64, bfloat16 or float16, got"
ROWS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # tensors
    (ce(input=[1.0]), TypeError, "cross_entropy: input must be a Tensor, got list"),
    (ce(target=3), TypeError, "cross_entropy: target must be a Tensor, got int"),
    (ce(weight=[1.0]), TypeError, "cross_entropy: weight must be a Tensor, got list"),
    (ce(sample_weight=1.0), TypeError, "cross_entropy: sample_weight must be a Tensor, got float"),
    (ce(input=X.long()), TypeError, f"cross_entropy: input {FLOATS} torch.int64"),
    (ce(weight=WEIGHT.int()), TypeError, f"cross_entropy: weight {FLOATS} torch.int32"),
    (ce(sample_weight=Y), TypeError, f"cross_entropy: sample_weight {FLOATS} torch.int64"),
    (ce(input=X.as_subclass(DTensor)), TypeError, "cross_entropy: input is a DTensor; pass input.full_tensor()"),
    # dtype of the labels
    (ce(target=Y.int()), TypeError, "cross_entropy: target must be int64 (or uint8), got torch.int32; use target.long()"),
    (ce(target=Y.bool()), TypeError, "cross_entropy: target must be int64 (or uint8), got torch.bool; use target.long()"),
    (
        ce(target=Y.float()), TypeError,
        "cross_entropy: target must be int64 (or uint8), got torch.float32; class probabilities need the shape (3, 5)",
    ),
    # shapes
    (ce(input=torch.tensor(1.0)), ValueError, "cross_entropy: input must have shape (V,), (N, V) or (N, V, d1, ...), got ()"),
    (ce(target=Y[:2]), ValueError, "cross_entropy: target must have shape (3,) for input of shape (3, 5), got (2,)"),
    (ce(target=Y.repeat(2)), ValueError, "cross_entropy: target must have shape (3,) for input of shape (3, 5), got (6,)"),
    (ce(target=Y[:, None]), ValueError, "cross_entropy: target must have shape (3,) for input of shape (3, 5), got (3, 1)"),
    (ce(target=Y[0]), ValueError, "cross_entropy: target must have shape (3,) for input of shape (3, 5), got ()"),
    (ce(input=X[0]), ValueError, "cross_entropy: target must have shape () for input of shape (5,), got (3,)"),
    (ce(weight=WEIGHT[:4]), ValueError, "cross_entropy: weight must have shape (V,) with V=5, got (4,)"),
    (ce(weight=WEIGHT[:0]), ValueError, "cross_entropy: weight must have shape (V,) with V=5, got (0,)"),
    (ce(sample_weight=torch.ones(3, 1)), ValueError, "cross_entropy: sample_weight must have shape (3,), got (3, 1)"),
    (
        ce(weight=WEIGHT.to("meta")), ValueError,
        "cross_entropy: weight must be on the device of input, cpu, got meta",
    ),
    (ce(target=Y.to("meta")), ValueError, "cross_entropy: target must be on the device of input, cpu, got meta"),
    # labels out of range
    (ce(target=Y + 3), IndexError, "cross_entropy: target[2] = 5 is out of range [0, 5) and is not ignore_index=-100"),
    (ce(target=Y - 1, ignore_index=7), IndexError, "cross_entropy: target[0] = -1 is out of range [0, 5) and is not ignore_index=7"),
    (ce(input=X[0], target=Y[2] + 3), IndexError, "cross_entropy: target = 5 is out of range [0, 5) and is not ignore_index=-100"),
    (
        ce(input=torch.zeros(2, 5, 2, 2), target=torch.tensor([[[0, 0], [0, 0]], [[0, 9], [0, 0]]])), IndexError,
        "cross_entropy: target[1, 0, 1] = 9 is out of range [0, 5) and is not ignore_index=-100",
    ),
    (
        ce(input=torch.zeros(2, 5, 2), target=torch.tensor([[0, 1], [8, 0]]), check_targets=True), IndexError,
        "cross_entropy: target[1, 0] = 8 is out of range [0, 5) and is not ignore_index=-100",
    ),
    # options
    (ce(reduction="avg"), ValueError, "cross_entropy: reduction must be one of ('none', 'mean', 'sum'), got 'avg'"),
    (ce(label_smoothing=1.5), ValueError, "cross_entropy: label_smoothing must be in [0, 1], got 1.5"),
    (ce(label_smoothing=-0.1), ValueError, "cross_entropy: label_smoothing must be in [0, 1], got -0.1"),
    (ce(label_smoothing=float("nan")), ValueError, "cross_entropy: label_smoothing must be in [0, 1], got nan"),
    (ce(z_loss=-1.0), ValueError, "cross_entropy: z_loss must be >= 0, got -1.0"),
    (ce(softcap=0.0), ValueError, "SoftCap: cap must be > 0, got 0.0"),
    (
        ce(softcap=1.0, logit_map=SoftCap(1.0)), ValueError,
        "cross_entropy: softcap must not be combined with logit_map; use one of them",
    ),
    (ce(logit_map=torch.tanh), TypeError, "cross_entropy: logit_map must be a LogitMap, got builtin_function_or_method"),
    (
        ce(row_loss="cee"), ValueError,
        f"cross_entropy: row_loss must be a RowLoss or one of {sorted(row_losses.ROW_LOSSES)}, got 'cee'",
    ),
    (ce(target=SOFT, row_loss="gce"), ValueError, "cross_entropy: row_loss must be 'ce' with class probabilities, got 'gce'"),
    (
        ce(target=SOFT, ignore_index=2), ValueError,
        "cross_entropy: ignore_index must be negative with class probabilities (it has no effect there), got 2",
    ),
    (ce(row_loss="mae", label_smoothing=0.1), ValueError, "cross_entropy: label_smoothing must be 0 with row_loss='mae', got 0.1"),
    (ce(reduction="sum", normalizer=3), ValueError, "cross_entropy: normalizer must be None unless reduction='mean', got reduction='sum'"),
    # divergence of two logits
    (kl(input=None), TypeError, "kl_logit_loss: input must be a Tensor, got NoneType"),
    (kl(target_logits=3), TypeError, "kl_logit_loss: target_logits must be a Tensor, got int"),
    (kl(target_logits=Y), TypeError, f"kl_logit_loss: target_logits {FLOATS} torch.int64"),
    (kl(X[0], X[0]), ValueError, "kl_logit_loss: input must have shape (N, V) or (N, V, d1, ...), got (5,)"),
    (kl(target_logits=X[:, :4]), ValueError, "kl_logit_loss: target_logits must have the shape of input, (3, 5), got (3, 4)"),
    (
        kl(target_logits=X.double()), TypeError,
        "kl_logit_loss: target_logits must be float64 exactly if input is, got torch.float64 with torch.float32; cast one of them",
    ),
    (kl(temperature=0.0), ValueError, "kl_logit_loss: temperature must be a finite number > 0, got 0.0"),
    (kl(temperature=float("nan")), ValueError, "kl_logit_loss: temperature must be a finite number > 0, got nan"),
    (kl(temperature=float("inf")), ValueError, "kl_logit_loss: temperature must be a finite number > 0, got inf"),
    (
        lambda: nearlinear.js_logit_loss(X, X, beta=0), ValueError,
        "js_logit_loss: beta must be a number between 0 and 1, got 0; for the ends call kl_logit_loss, with the two sides "
        "exchanged for beta=1",
    ),
    (kl(mask=[True]), TypeError, "kl_logit_loss: mask must be a Tensor, got list"),
    (kl(mask=torch.ones(3)), TypeError, "kl_logit_loss: mask must be bool, got torch.float32; weigh rows by sample_weight"),
    (kl(mask=X > 0), ValueError, "kl_logit_loss: mask must have one value per row, shape (3,), got (3, 5)"),
    (
        kl(sample_weight=torch.ones(3, 1)), ValueError,
        "kl_logit_loss: sample_weight must have one value per row, shape (3,), got (3, 1)",
    ),
    (kl(sample_weight=Y), TypeError, f"kl_logit_loss: sample_weight {FLOATS} torch.int64"),
    (kl(mask=Y.bool().to("meta")), ValueError, "kl_logit_loss: mask must be on the device of input, cpu, got meta"),
    (
        kl(reduction="mean"), ValueError,
        "kl_logit_loss: reduction must be one of ('none', 'batchmean', 'sum'), got 'mean'; "
        "a mean over classes too ('mean' of F.kl_div) is no divergence",
    ),
    (
        kl(reduction="sum", normalizer=3), ValueError,
        "kl_logit_loss: normalizer must be None unless reduction='batchmean', got reduction='sum'",
    ),
    # derivatives that do not exist
    (
        ce(weight=WEIGHT.clone().requires_grad_()), NotImplementedError,
        "cross_entropy: no gradient for weight, as in torch; pass weight.detach(), or weigh rows by sample_weight",
    ),
    # records
    (lambda: row_losses.CompSum(-1.0), ValueError, "CompSum: tau must be >= 0, got -1.0"),
    (lambda: row_losses.GCE(0.0), ValueError, "GCE: q must be in (0, 1], got 0.0"),
    (lambda: row_losses.GCE(1.5), ValueError, "GCE: q must be in (0, 1], got 1.5"),
    (lambda: row_losses.TruncatedGCE(2.0), ValueError, "TruncatedGCE: q must be in (0, 1], got 2.0"),
    (lambda: row_losses.TruncatedGCE(0.7, 1.0), ValueError, "TruncatedGCE: k must be in (0, 1), got 1.0"),
    (lambda: row_losses.Focal(-0.5), ValueError, "Focal: gamma must be >= 0, got -0.5"),
    (lambda: row_losses.Floored(0.0), ValueError, "Floored: a must be > 0, got 0.0"),
    (lambda: row_losses.SymmetricCE(A=0.0), ValueError, "SymmetricCE: A must be < 0, got 0.0"),
    # distances
    (dm(input=[1.0]), TypeError, "distance_matrix: input must be a Tensor, got list"),
    (dm(other=3), TypeError, "distance_matrix: other must be a Tensor, got int"),
    (dm(input=X.long()), TypeError, f"distance_matrix: input {FLOATS} torch.int64"),
    (dm(other=X.bool()), TypeError, f"distance_matrix: other {FLOATS} torch.bool"),
    (
        dm(other=X.double()), TypeError,
        "distance_matrix: other must have the dtype of input, torch.float32, got torch.float64; convert one of them",
    ),
    (dm(other=X.to("meta")), ValueError, "distance_matrix: other must be on the device of input, cpu, got meta"),
    (dm(input=X[0]), ValueError, "distance_matrix: input must have shape (..., R, D), got (5,)"),
    (dm(other=X[0]), ValueError, "distance_matrix: other must have shape (..., C, D) with D=5, got (5,)"),
    (dm(other=X[:, :4]), ValueError, "distance_matrix: other must have shape (..., C, D) with D=5, got (3, 4)"),
    (
        dm(input=torch.zeros(2, 3, 5), other=torch.zeros(4, 3, 5)), ValueError,
        "distance_matrix: other must have leading dimensions that broadcast with (2,), got (4,)",
    ),
    (
        dm(metric="manhattan"), TypeError,
        "distance_matrix: metric must be a DistanceMetric, got str; take a record of nearlinear.distances",
    ),
    (
        lambda: nearlinear.DistanceMatrix(1.5), TypeError,
        "DistanceMatrix: metric must be a DistanceMetric, got float; take a record of nearlinear.distances",
    ),
    (lambda: Minkowski(0.5), ValueError, "Minkowski: p must be >= 1 and finite, got 0.5; for p = inf use Chebyshev()"),
    (lambda: SmoothChebyshev(0.0), ValueError, "SmoothChebyshev: alpha must be > 0 and finite, got 0.0"),
    (lambda: Canberra(-1.0), ValueError, "Canberra: eps must be > 0 and finite, got -1.0"),
    (lambda: BrayCurtis(0.0), ValueError, "BrayCurtis: eps must be > 0 and finite, got 0.0"),
    # modules name themselves
    (
        lambda: nearlinear.GCELoss(reduction="avg"), ValueError,
        "GCELoss: reduction must be one of ('none', 'mean', 'sum'), got 'avg'",
    ),
    (
        lambda: nearlinear.CrossEntropyLoss(row_loss=3), ValueError,
        f"CrossEntropyLoss: row_loss must be a RowLoss or one of {sorted(row_losses.ROW_LOSSES)}, got 3",
    ),
    *errors_attention.ROWS,
    *errors_betti.ROWS,
    *errors_linear.ROWS,
    *errors_mw.ROWS,
    *errors_pair.ROWS,
    *errors_pairwise.ROWS,
    *errors_roc_auc.ROWS,
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), ROWS, ids=[text.replace("cross_entropy: ", "")[:60] for _, _, text in ROWS])
def test_message(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value) == text


FORWARD_MODE = "cross_entropy: forward-mode AD is not implemented; use nearlinear.reference with the same arguments, or reverse mode"


def test_forward_mode_is_refused() -> None:
    for name in ("input", "weight", "sample_weight"):
        arguments = {"input": X, "target": Y, "weight": WEIGHT, "sample_weight": torch.ones(3)}
        with forward_ad.dual_level():
            arguments[name] = forward_ad.make_dual(arguments[name], torch.ones_like(arguments[name]))
            with pytest.raises(NotImplementedError) as caught:
                nearlinear.cross_entropy(**arguments)
        assert str(caught.value) == FORWARD_MODE
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda x: nearlinear.cross_entropy(x, Y), (X,), (X,))


def test_op_messages() -> None:
    """The ops check what their callers could get wrong, in the same format."""
    op, soft, two = (getattr(torch.ops.nearlinear, f"{name}logit_stats") for name in ("", "soft_", "two_"))
    for call, text in (
        (lambda: op(X[0], Y, None, -100, "identity", [], False), "input must have shape (N, V) or (N, V, P), got 1 dimensions"),
        (lambda: op(X, Y[:2], None, -100, "identity", [], False), "target must have one label per row, 3, got 2"),
        (lambda: op(X, Y.int(), None, -100, "identity", [], False), "target must be int64"),
        (lambda: op(X, Y, None, -100, "tanh", [1.0], False), "logit_map must be identity, scale, soft_cap, power or arcosh, got tanh"),
        (lambda: op(X, Y, None, -100, "scale", [], False), "map_params has the wrong length for logit_map=scale"),
        (lambda: op(X, Y, WEIGHT.double(), -100, "identity", [], True), "weight must have the dtype of the statistics"),
        (lambda: op(X, Y, WEIGHT[:4], -100, "identity", [], True), "weight must be contiguous with shape (V,)"),
        (lambda: op(X.int(), Y, None, -100, "identity", [], False), "input must be float32, float64, bfloat16 or float16"),
        (lambda: soft(X, SOFT[:2], None, 0.0, "identity", []), "target must have the shape of input"),
        (lambda: two(X, SOFT[:2], 1.0), "target must have the shape of input"),
        (lambda: two(X, X.double(), 1.0), "because both share the dtype of the statistics"),
        (lambda: two(X, X, 0.0), "inv_temperature must be finite and > 0, got 0"),
    ):
        with pytest.raises(RuntimeError, match="logit_stats: ") as caught:
            call()
        assert str(caught.value).splitlines()[0].endswith(text), text


def literals(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


@pytest.mark.parametrize(
    "module",
    [
        nearlinear.betti_matching_loss,
        betti_checks.check_spatial,
        betti_images.Classes,
        nearlinear.betti_numbers,
        nearlinear.cross_entropy,
        nearlinear.distance_matrix,
        nearlinear.kl_logit_loss,
        nearlinear.linear_cross_entropy,
        nearlinear.linear_mw_loss,
        nearlinear.plan,
        nearlinear.roc_auc_score,
        nearlinear.tensor_attention,
        nearlinear.tensor_attention_n,
        tensor_attention_checks.check_sets,
        nearlinear.RocAUC,
        roc_auc_checks.check_samples,
        _checks.require,
        row_losses.RowLoss,
        SoftCap,
        Minkowski,
    ],
    ids=lambda m: m.__module__,
)
def test_the_table_is_complete(module: Any) -> None:
    """Every raise and every requirement in the source has a row: the longest literal piece of its text occurs in one."""
    tree = ast.parse(Path(inspect.getsourcefile(module)).read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith("require")]
    raised = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    texts = [max(found, key=len) for node in calls + raised if (found := literals(node))]
    assert texts
    shown = " ".join([text for _, _, text in ROWS] + [FORWARD_MODE])
    missing = [text for text in texts if text.split("; ")[-1].strip() not in shown]
    assert not missing
