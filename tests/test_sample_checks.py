"""Labels of two classes: every accepted form gives the same, and nothing near to a label passes for one."""

from __future__ import annotations

import pytest
import torch
from nearlinear.sample_checks import binary_labels

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIGNED = (*FLOATS, torch.int8, torch.int16, torch.int32, torch.int64)
TRUE = torch.tensor([True, False, False, True, True])


@pytest.mark.parametrize("dtype", [*SIGNED, torch.uint8, torch.bool], ids=str)
def test_zero_and_one(dtype: torch.dtype) -> None:
    for labels in (TRUE, TRUE | True, TRUE & False, TRUE.repeat(3)[::3], TRUE[:, None].expand(5, 3)):
        positive, known = binary_labels("f", labels.to(dtype))
        assert (known, positive.dtype) == (None, torch.bool)
        assert torch.equal(positive, labels)


@pytest.mark.parametrize("dtype", SIGNED, ids=str)
def test_minus_one_and_one(dtype: torch.dtype) -> None:
    for labels in (TRUE, TRUE & False):
        target = torch.where(labels, 1, -1).to(dtype)
        positive, known = binary_labels("f", target)
        assert known is None
        assert torch.equal(positive, labels)
        assert int(target.sum()) == 2 * int(labels.sum()) - len(labels), "labels were written to"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_rounds_to_a_label_is_none(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    ends = [torch.nan, torch.inf, -torch.inf, info.max, info.min, info.tiny, info.smallest_normal * info.eps, -info.tiny, 0.5, -0.5]
    for wrong in (*ends, 1 - info.eps / 2, 1 + info.eps, -1 + info.eps / 2, -1 - info.eps):
        for rest in ([0.0, 1.0], [-1.0, 1.0], [1.0, 1.0]):
            target = torch.tensor([*rest, wrong], dtype=torch.float64).to(dtype)
            assert target[2] not in (0, 1, -1)
            with pytest.raises(ValueError, match="f: target must be bool, or of 0 and 1, or of -1 and 1, got"):
                binary_labels("f", target)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8], ids=str)
def test_what_wraps_to_a_label_is_none(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    half = 1 << (info.bits - 1)
    for wrong in {2, 3, info.max, info.min, half - 1, 1 - half, 1 << (info.bits // 2), 255} - {0}:
        if info.min <= wrong <= info.max:
            with pytest.raises(ValueError, match="f: target must be bool"):
                binary_labels("f", torch.tensor([1, wrong], dtype=dtype))
    if info.min < 0:
        with pytest.raises(ValueError, match="f: target must be bool"):
            binary_labels("f", torch.tensor([-1, 0, 1], dtype=dtype))
