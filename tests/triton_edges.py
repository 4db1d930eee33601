"""Offsets, confident rows, special values, ignored rows, bad labels, empty inputs and errors of the Triton launchers, on CPU tensors.
Collected by test_triton_interpreter.py, with TRITON_INTERPRET set."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nearlinear.reference import cross_entropy as reference
from nearlinear.triton_kernels import cross_entropy, cross_entropy_soft
from triton_oracle import IDENTITY, IGNORE, MARKS, check_hard, check_soft, labels, poison  # noqa: F401  a fixture

pytestmark = MARKS


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e5, 1e6])
def test_a_common_offset_changes_nothing(offset: float) -> None:
    input = torch.tensor([[2.0, -1.0, 0.5], [-4.0, 3.0, 3.5]]) + offset
    target = torch.tensor([0, 1])
    nll, lse, spread, residual = check_hard(input, target, torch.rand(3))
    want = reference.logit_stats(input.double(), target, None, IGNORE, *IDENTITY, False)[0]
    torch.testing.assert_close(nll.double(), want, rtol=1e-6, atol=0)
    up = (torch.ones(2), torch.zeros(2), spread)
    d_input = cross_entropy.logit_stats_backward(*up, input, target, None, nll, lse, residual, IGNORE, *IDENTITY, False).double()
    assert (d_input.sum(1).abs() <= 1e-6 * d_input.abs().sum(1)).all()
    check_soft(input, torch.rand(2, 3), None)


@pytest.mark.parametrize("lead", [1.0, 10.0, 20.0, 40.0, 69.0])
def test_confident_rows_keep_their_digits(lead: float) -> None:
    input = torch.zeros(1, 50)
    input[0, 7] = lead
    target = torch.tensor([7])
    nll, lse, spread, residual = cross_entropy.logit_stats(input, target, None, IGNORE, *IDENTITY, False)
    want = math.log1p(49 * math.exp(-lead))
    assert abs(float(nll) - want) <= want * (1e-6 + 4 * 1.2e-7 * lead)
    one, zero = torch.ones(1), torch.zeros(1)
    d_input = cross_entropy.logit_stats_backward(one, zero, spread, input, target, None, nll, lse, residual, IGNORE, *IDENTITY, False)
    others = 49 * math.exp(-lead)
    p_not = others / (1 + others)
    assert abs(float(d_input[0, 7]) + p_not) <= p_not * (1e-6 + 4 * 1.2e-7 * lead)
    assert abs(float(d_input.double().sum())) <= p_not * (1e-6 + 4 * 1.2e-7 * lead)


NAN, INF = math.nan, math.inf
# (row, label) -> (nll, lse, spread with weight 1): None where the definition says it
SPECIAL = {
    "nan_at_target": ([NAN, 0.0, 1.0], 0, (NAN, NAN, NAN)),
    "nan_elsewhere": ([0.0, NAN, 1.0], 0, (NAN, NAN, NAN)),
    "inf_at_target": ([INF, 0.0, 1.0], 0, (NAN, NAN, NAN)),
    "inf_elsewhere": ([0.0, INF, 1.0], 0, (NAN, NAN, NAN)),
    "two_inf": ([0.0, INF, INF], 0, (NAN, NAN, NAN)),
    "all_minus_inf": ([-INF, -INF, -INF], 0, (NAN, NAN, NAN)),
    "minus_inf_at_target": ([-INF, 0.0, 0.0], 0, (INF, math.log(2), INF)),
    "minus_inf_elsewhere": ([0.0, -INF, 0.0], 0, (math.log(2), math.log(2), INF)),
    "only_target_finite": ([1.5, -INF, -INF], 0, (0.0, 1.5, INF)),
    "largest": ([3e38, -3e38, 3e38], 0, (math.log(2), 3e38, INF)),
    "most_negative": ([-3.4028234663852886e38] * 3, 1, (math.log(3), -3.4028234663852886e38, 3 * math.log(3))),
}


@pytest.mark.parametrize("images", [False, True])
def test_special_values_stay_in_their_row(images: bool) -> None:
    input = torch.tensor([[0.0, 1.0, 2.0], *(row for row, _, _ in SPECIAL.values()), [2.0, 1.0, 0.0]])
    target = torch.tensor([1, *(label for _, label, _ in SPECIAL.values()), 2])
    want = torch.tensor([row for _, _, row in SPECIAL.values()], dtype=torch.float64).t()
    input = input.t().contiguous().t() if images else input
    got = cross_entropy.logit_stats(input, target, None, IGNORE, *IDENTITY, True)
    plain = reference.logit_stats(input.double(), target, None, IGNORE, *IDENTITY, True)
    for value, expected, definition in zip(got, want, plain, strict=False):
        torch.testing.assert_close(value[1:-1].double(), expected, rtol=1e-6, atol=0, equal_nan=True)
        torch.testing.assert_close(value[[0, -1]].double(), definition[[0, -1]], rtol=1e-6, atol=0)
    ones = torch.ones(len(input))
    d_input = cross_entropy.logit_stats_backward(ones, ones, ones, input, target, None, got[0], got[1], got[3], IGNORE, *IDENTITY, False)
    bad = want[1].isnan()
    assert d_input[1:-1][bad].isnan().any(1).all()
    assert d_input[1:-1][~bad].isfinite().all()
    assert d_input[[0, -1]].isfinite().all()
    position = 1 + list(SPECIAL).index("minus_inf_at_target")
    torch.testing.assert_close(d_input[position], torch.tensor([-1.0, 1.0, 1.0]))
    position = 1 + list(SPECIAL).index("minus_inf_elsewhere")
    assert d_input[position, 1] == 0


def test_special_values_with_soft_targets() -> None:
    """NaN, +inf and a row of -inf: NaN; -inf where the target has mass: +inf; logits that span the range of float32: finite."""
    rows = [[0.0, 1.0, 2.0], [3e38, 3e38, 3e38], [NAN, 0.0, 1.0], [INF, 0.0, 1.0], [INF, INF, 0.0], [-INF, 0.0, 1.0], [-INF] * 3]
    input, target = torch.tensor(rows), torch.tensor([[0.5, 0.3, 0.2]]).expand(len(rows), 3)
    xent, lse, residual, mass = cross_entropy_soft.soft_logit_stats(input, target, None, 0.0, *IDENTITY)
    plain = float(reference.soft_logit_stats(input[:1].double(), target[:1], None, 0.0, *IDENTITY)[0])
    want = torch.tensor([plain, math.log(3), NAN, NAN, NAN, INF])
    torch.testing.assert_close(xent[:-1], want, rtol=1e-6, atol=0, equal_nan=True)
    assert xent[-1].isnan()
    one = torch.ones(len(rows))
    d_input, _ = cross_entropy_soft.soft_logit_stats_backward(one, one, input, target, None, lse, residual, mass, 0.0, *IDENTITY, True)
    finite = torch.tensor([True, True, False, False, False, True, False])
    assert d_input[finite].isfinite().all()
    assert d_input[~finite].isnan().any(1).all()


@pytest.mark.parametrize("shape", [(6, 5), (6, 3000), (2, 5, 3)], ids=str)
def test_ignored_rows_and_zero_upstream_are_never_read(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape)
    target = torch.zeros([shape[0], *shape[2:]], dtype=torch.int64)
    target[1], target[0] = 3, 2
    input[1] = NAN
    got = cross_entropy.logit_stats(input, target, None, 3, *IDENTITY, True)
    assert all((value[1] == 0).all() for value in got)
    assert all(value[0].isfinite().all() for value in got)
    up = [torch.ones(()).expand(target.shape) for _ in range(3)]
    rest = (input, target, None, got[0], got[1], got[3])
    assert (cross_entropy.logit_stats_backward(*up, *rest, 3, *IDENTITY, True)[1] == 0).all()
    zero = torch.zeros(()).expand(target.shape)
    d_input = cross_entropy.logit_stats_backward(zero, zero, zero, input, target, None, got[0] * NAN, got[1], got[3], 9, *IDENTITY, True)
    assert (d_input == 0).all()
    soft = torch.rand(shape)
    stats = cross_entropy_soft.soft_logit_stats(input, soft, None, 0.0, *IDENTITY)
    once = zero.clone()
    once[0] = 1
    d_input, d_target = cross_entropy_soft.soft_logit_stats_backward(once, zero, input, soft, None, *stats[1:], 0.0, *IDENTITY, True)
    assert (d_input[1:] == 0).all()
    assert (d_target[1:] == 0).all()
    assert (d_target[0] != 0).all()


@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 3), (6, 3000)], ids=str)
def test_a_label_out_of_range_poisons_its_row_only(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape)
    good = labels(input, ignored=False)
    target = good.clone()
    wrong = [-1, shape[1], 2**31, -(2**63), 2**62]
    target.view(-1)[:5] = torch.tensor(wrong)
    bad = torch.zeros_like(target, dtype=torch.bool)
    bad.view(-1)[:5] = True
    got = cross_entropy.logit_stats(input, target, None, IGNORE, *IDENTITY, True)
    want = cross_entropy.logit_stats(input, good, None, IGNORE, *IDENTITY, True)
    for i in range(3):
        assert got[i][bad].isnan().all()
        assert torch.equal(got[i][~bad], want[i][~bad])
    one = torch.ones(target.shape)
    d_input = cross_entropy.logit_stats_backward(one, one, one, input, target, None, got[0], got[1], got[3], IGNORE, *IDENTITY, True)
    rows = d_input.movedim(1, -1)
    assert (rows[bad] == 0).all()
    assert (rows[~bad] != 0).any(-1).all()


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (3, 5, 0)], ids=str)
def test_no_rows(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape)
    target = torch.zeros([shape[0], *shape[2:]], dtype=torch.int64)
    got = cross_entropy.logit_stats(input, target, None, IGNORE, *IDENTITY, True)
    assert all(value.shape == target.shape for value in got)
    d_input = cross_entropy.logit_stats_backward(*got[:3], input, target, None, got[0], got[1], got[3], IGNORE, *IDENTITY, True)
    assert d_input.shape == input.shape
    assert all(value.shape == target.shape for value in cross_entropy_soft.soft_logit_stats(input, input, None, 0.0, *IDENTITY))


def test_no_classes_leaves_no_valid_label() -> None:
    got = cross_entropy.logit_stats(torch.empty(2, 0), torch.tensor([IGNORE, 0]), None, IGNORE, *IDENTITY, True)
    assert all(value[0] == 0 for value in got)
    assert all(value[1].isnan() for value in got[:3])


ERRORS = [
    ({"target": torch.zeros(3, dtype=torch.int32)}, "logit_stats: target must be int64"),
    ({"target": torch.zeros(4, dtype=torch.int64)}, "logit_stats: target must have one label per row, 3, got 4"),
    ({"input": torch.zeros(3, dtype=torch.float32)}, r"logit_stats: input must have shape \(N, V\) or \(N, V, P\), got 1 dimensions"),
    ({"input": torch.zeros(3, 5, dtype=torch.int32)}, "logit_stats: input must be float32, float64, bfloat16 or float16"),
    ({"weight": torch.zeros(5, dtype=torch.float64)}, "logit_stats: weight must have the dtype of the statistics"),
    ({"weight": torch.zeros(10)[::2]}, r"logit_stats: weight must be contiguous with shape \(V,\)"),
    ({"logit_map": "cube"}, "logit_stats: logit_map must be one of identity, scale, soft_cap, power, arcosh, got cube"),
    ({"map_params": [1.0]}, "logit_stats: map_params has the wrong length for logit_map=identity"),
]


@pytest.mark.parametrize(("change", "text"), ERRORS, ids=[text for _, text in ERRORS])
def test_errors(change: dict[str, Any], text: str) -> None:
    arguments = {
        "input": torch.zeros(3, 5), "target": torch.zeros(3, dtype=torch.int64), "weight": None, "ignore_index": IGNORE,
        "logit_map": "identity", "map_params": [], "spread": True,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=text):
        cross_entropy.logit_stats(**(arguments | change))


def test_the_cuda_key_leads_to_the_launchers() -> None:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    input, target = torch.randn(3, 4), torch.tensor([0, 3, IGNORE])
    ops = torch.ops.nearlinear
    got = ops.logit_stats.default.redispatch(keys, input, target, None, IGNORE, *IDENTITY, True)
    want = cross_entropy.logit_stats(input, target, None, IGNORE, *IDENTITY, True)
    assert all(map(torch.equal, got, want))
    rest = (input, target, None, got[0], got[1], got[3], IGNORE, *IDENTITY, True)
    assert torch.equal(
        ops.logit_stats_backward.default.redispatch(keys, *got[:3], *rest), cross_entropy.logit_stats_backward(*got[:3], *rest)
    )
    soft = torch.rand(3, 4)
    got = ops.soft_logit_stats.default.redispatch(keys, input, soft, None, 0.1, *IDENTITY)
    assert all(map(torch.equal, got, cross_entropy_soft.soft_logit_stats(input, soft, None, 0.1, *IDENTITY)))
    rest = (*got[:2], input, soft, None, *got[1:], 0.1, *IDENTITY, True)
    pair = ops.soft_logit_stats_backward.default.redispatch(keys, *rest)
    assert all(map(torch.equal, pair, cross_entropy_soft.soft_logit_stats_backward(*rest)))
