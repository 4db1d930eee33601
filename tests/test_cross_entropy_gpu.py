"""cross_entropy on a real GPU: values and gradients against the definition in float64, edges, labels out of range."""

from __future__ import annotations

import math
from collections.abc import Callable

import nearlinear
import pytest
import torch
from gpu_oracle import DEVICE, MARKS, TOLERANCE, check, close, compiled_cuda, labels, normal, seed  # noqa: F401  a fixture
from nearlinear import reference, row_losses
from torch import Tensor

pytestmark = MARKS
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "rows": lambda: normal(37, 1000),
    "few_classes": lambda: normal(1025, 10),
    "transposed": lambda: normal(1000, 130).t(),
    "every_second": lambda: normal(20, 2002)[::2, ::2],
    "odd_start": lambda: normal(33 * 1001 + 1)[1:].view(33, 1001),
    "same_row": lambda: normal(1, 3000).expand(9, 3000),
    "pixels": lambda: normal(3, 19, 33, 31),
    "channels_last": lambda: normal(3, 19, 33, 31).to(memory_format=torch.channels_last),
    "few_pixels": lambda: normal(40, 19, 3),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    input = LAYOUTS[layout]()
    input = torch.empty_strided(input.shape, input.stride(), dtype=dtype, device=DEVICE).copy_(input) if layout != "same_row" else input
    check(input, labels(input), weight=torch.rand(input.shape[1], device=DEVICE), label_smoothing=0.1, z_loss=1e-3)
    check(input, labels(input), softcap=2.0)


@pytest.mark.parametrize("num_classes", [1, 2, 31, 32, 33, 2048, 2049, 50257, 65536, 65537, 131073, 262144])
def test_class_counts(num_classes: int) -> None:
    input = normal(3, num_classes)
    check(input, labels(input), label_smoothing=0.1)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 65535, 65537])
def test_row_counts(rows: int) -> None:
    input = normal(rows, 5)
    check(input, labels(input))


@pytest.mark.parametrize("name", sorted(row_losses.ROW_LOSSES))
def test_row_losses(name: str) -> None:
    input = 2 * normal(50, 21)
    check(input, labels(input), row_loss=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels", "few_classes"])
def test_probability_targets(layout: str, dtype: torch.dtype) -> None:
    input = LAYOUTS[layout]().to(dtype)
    target = torch.rand(input.shape, device=DEVICE).softmax(1).to(dtype)
    check(input, target, weight=torch.rand(input.shape[1], device=DEVICE), label_smoothing=0.1)
    wide, target = target.double().requires_grad_(), target.requires_grad_()
    (got,) = torch.autograd.grad(nearlinear.cross_entropy(input, target), target)
    (want,) = torch.autograd.grad(reference.cross_entropy.cross_entropy(input.double(), wide), wide)
    close(got, want, TOLERANCE[dtype][1])


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_a_common_offset_changes_nothing(offset: float) -> None:
    input = torch.tensor([[2.0, -1.0, 0.5], [-4.0, 3.0, 3.5]], device=DEVICE) + offset
    check(input, torch.tensor([0, 1], device=DEVICE))


@pytest.mark.parametrize("lead", [1.0, 20.0, 40.0, 69.0])
def test_confident_rows_keep_their_digits(lead: float) -> None:
    input = torch.zeros(1, 50, device=DEVICE)
    input[0, 7] = lead
    loss = nearlinear.cross_entropy(input.requires_grad_(), torch.tensor([7], device=DEVICE))
    (gradient,) = torch.autograd.grad(loss, input)
    others = 49 * math.exp(-lead)
    tolerance = 1e-6 + 4 * 1.2e-7 * lead
    assert abs(float(loss) / math.log1p(others) - 1) <= tolerance
    assert abs(float(gradient[0, 7]) / (-others / (1 + others)) - 1) <= tolerance


@pytest.mark.parametrize("transposed", [False, True])
def test_special_values_as_on_the_cpu(transposed: bool) -> None:
    nan, inf = math.nan, math.inf
    rows = [
        [nan, 0, 1], [0, nan, 1], [inf, 0, 1], [0, inf, 1], [0, inf, inf], [-inf, -inf, -inf], [-inf, 0, 0], [0, -inf, 0],
        [1.5, -inf, -inf], [3e38, -3e38, 3e38], [0, 1, 2],
    ]  # fmt: skip
    input, target = torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64)
    input = input.t().contiguous().t() if transposed else input
    results = []
    for device in ("cpu", DEVICE):
        leaf = input.to(device).requires_grad_()
        loss = nearlinear.cross_entropy(leaf, target.to(device), reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        results.append((loss.detach().cpu(), gradient.cpu()))
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_ignored_rows_are_never_read() -> None:
    input = normal(4, 3000)
    input[1] = math.nan
    target = labels(input)
    leaf = input.requires_grad_()
    loss = nearlinear.cross_entropy(leaf, target)
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert (gradient[1] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("wrong", [-1, 1000, 2**31, 2**62, -(2**63)])
def test_a_label_out_of_range_poisons_its_row_only(wrong: int, weighted: bool) -> None:
    input = normal(6, 1000).requires_grad_()
    target = labels(input, ignored=False)
    target[3] = wrong
    weight = torch.rand(1000, device=DEVICE) if weighted else None
    loss = nearlinear.cross_entropy(input, target, weight, reduction="none")
    (gradient,) = torch.autograd.grad(loss, input, torch.ones_like(loss))
    torch.cuda.synchronize()
    assert loss.isnan().tolist() == [False, False, False, True, False, False]
    assert (gradient[3] == 0).all()
    assert gradient.isfinite().all()


@compiled_cuda
def test_check_targets_names_the_label() -> None:
    input, target = normal(2, 7, 5), torch.zeros(2, 5, dtype=torch.int64, device=DEVICE)
    target[1, 3] = 7
    text = r"target\[1, 3\] = 7 is out of range \[0, 7\) and is not ignore_index=-100"
    with pytest.raises(IndexError, match=text):
        nearlinear.cross_entropy(input, target, check_targets=True)
    target[1, 3] = -100
    assert nearlinear.cross_entropy(input, target, check_targets=True).isfinite()


@compiled_cuda
@pytest.mark.parametrize("size", [0, 1, 255, 257, 1_000_003])
def test_first_invalid_target(size: int) -> None:
    target = torch.randint(0, 9, (size,), device=DEVICE)
    find = torch.ops.nearlinear.first_invalid_target
    assert int(find(target, 9, -1)) == -1
    for position in {size - 1, size // 2, 0} - {-1}:
        target[position] = 9
        assert int(find(target, 9, -1)) == position
        assert int(find(target, 9, 9)) == -1
        assert int(find(target.view(-1, 1).expand(-1, 2), 9, -1)) == 2 * position
