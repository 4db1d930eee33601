"""Row losses: every record of ROW_LOSSES against its second formula, its own derivative, its limits, and the public function."""

from __future__ import annotations

import inspect
import math

import nearlinear
import pytest
import torch
from measure import Draw, evaluate
from nearlinear import GCE, MAE, CompSum, CrossEntropy, Floored, Focal, Poly1, SumExponential, SymmetricCE, TruncatedGCE, row_losses
from nearlinear.row_losses import ROW_LOSSES, RowLoss
from torch import Tensor

CLASSES = 50
# each record at its default, at an end of its range and in between
MEMBERS: tuple[RowLoss, ...] = (
    CrossEntropy(), CompSum(), CompSum(0.0), CompSum(0.5), CompSum(1.5), CompSum(2.0), SumExponential(), GCE(), GCE(1.0), GCE(0.01),
    TruncatedGCE(), TruncatedGCE(0.3, 0.9), MAE(), Focal(), Focal(0.0), Focal(0.5), Focal(1.0), Focal(5.0), Poly1(), Poly1(-1.0),
    Poly1(0.0), Floored(), Floored(1.0), SymmetricCE(), SymmetricCE(1.0, 0.0), SymmetricCE(0.5, 2.0, -6.0),
)  # fmt: skip
NLL = torch.cat([torch.logspace(-6, 1.5, 60, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)])
over_members = pytest.mark.parametrize("record", MEMBERS, ids=str)


def test_every_record_is_here() -> None:
    assert {type(record) for record in MEMBERS} == set(ROW_LOSSES.values())
    assert len(ROW_LOSSES) >= 10
    assert set(row_losses.__all__) == {c.__name__ for c in ROW_LOSSES.values()} | {"ROW_LOSSES", "RowLoss", "get_row_loss"}
    for name, record in ROW_LOSSES.items():
        assert record.name == name
        assert record.source
        assert record.__doc__
        assert record() == record()
        assert hash(record()) == hash(record())


@over_members
def test_value_is_the_papers_formula(record: RowLoss) -> None:
    """1 - p in the formula loses digits as p nears 1, more so divided by q: absolute there, 1e-12 relative elsewhere."""
    atol = 4e-15 / min(1.0, getattr(record, "q", 1.0))
    torch.testing.assert_close(record.value(NLL, CLASSES), record.formula(torch.exp(-NLL), CLASSES), rtol=1e-12, atol=atol)


@over_members
def test_slope_is_the_derivative_of_value(record: RowLoss) -> None:
    nll = torch.cat([torch.zeros(1, dtype=torch.float64), NLL, torch.tensor([200.0, 800.0], dtype=torch.float64)]).requires_grad_()
    (derivative,) = torch.autograd.grad(record.value(nll, CLASSES).sum(), nll)
    torch.testing.assert_close(derivative, record.slope(nll.detach(), CLASSES), rtol=1e-12, atol=1e-300)
    assert derivative.isfinite().all()
    single = NLL.float().requires_grad_()  # 1 + expm1 would keep nothing of a slope below 1e-7
    (derivative,) = torch.autograd.grad(record.value(single, CLASSES).sum(), single)
    atol = 2e-7 if record == Poly1(-1.0) else 1e-20  # its two terms cancel
    torch.testing.assert_close(derivative.double(), record.slope(single.detach().double(), CLASSES), rtol=1e-5, atol=atol)


@over_members
def test_slope_by_finite_differences_of_the_formula(record: RowLoss) -> None:
    """slope = -d formula / d log p, from the paper's expression alone."""
    log_p = -torch.tensor([0.05, 0.3, 1.0, 2.5, 5.0], dtype=torch.float64)
    step = 1e-5
    up, down = (record.formula(torch.exp(log_p + s), CLASSES) for s in (step, -step))
    torch.testing.assert_close(-(up - down) / (2 * step), record.slope(-log_p, CLASSES), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@over_members
def test_ends(record: RowLoss, dtype: torch.dtype) -> None:
    """p = 1, p = 0 and NaN: finite, the limit of the formula, NaN; the derivative is never NaN for a real loss."""
    nll = torch.tensor([0.0, 1e-30, 100.0, 1e4, math.inf, math.nan], dtype=dtype, requires_grad=True)
    value = record.value(nll, CLASSES)
    (derivative,) = torch.autograd.grad(value.sum(), nll)
    assert value.dtype == dtype
    assert value[:3].isfinite().all()
    assert not value[:5].isnan().any()
    assert derivative[:5].isfinite().all()
    assert value[5].isnan()
    p = torch.tensor([1.0, 0.0], dtype=torch.float64)
    one, zero = record.formula(p, CLASSES)
    torch.testing.assert_close(value[0].double(), one, rtol=1e-6, atol=1e-7)
    if isinstance(record, (CompSum, SumExponential)) and getattr(record, "tau", 0.0) < 1:
        assert value[4] >= math.exp(79)  # documented clamp of an infinite limit
    else:
        torch.testing.assert_close(value[4].double(), zero, rtol=1e-6, atol=0)


@over_members
def test_small_losses_keep_relative_accuracy(record: RowLoss) -> None:
    """float32 against float64 at nll down to 1e-30, where 1 - p is 0 in either format."""
    nll = torch.logspace(-30, 1, 63, dtype=torch.float64).float()
    value, exact = record.value(nll, CLASSES).double(), record.value(nll.double(), CLASSES)
    # the two terms of these cancel, or the limit is not 0: nothing small to keep
    size = torch.ones_like(exact) if record == Poly1(-1.0) or isinstance(record, Floored) else exact.abs()
    assert ((value - exact).abs() <= 3e-6 * size + 1e-38).all()


def test_comp_sum_is_continuous_in_tau() -> None:
    for tau in (1 - 1e-6, 1 + 1e-6):
        torch.testing.assert_close(CompSum(tau).value(NLL, CLASSES), NLL, rtol=5e-5, atol=0)
        single = NLL.float()
        torch.testing.assert_close(CompSum(tau).value(single, CLASSES), single, rtol=2e-4, atol=0)


@pytest.mark.parametrize(
    ("general", "member"),
    [
        (CompSum(0.0), SumExponential()), (CompSum(1.0), CrossEntropy()), (CompSum(1.3), GCE(0.3)), (CompSum(2.0), MAE()),
        (GCE(1.0), MAE()), (Focal(0.0), CrossEntropy()), (Poly1(0.0), CrossEntropy()), (SymmetricCE(1.0, 0.0), CrossEntropy()),
        (SymmetricCE(0.0, 1.0, -4.0), None),
    ],
    ids=str,
)  # fmt: skip
def test_members_of_members(general: RowLoss, member: RowLoss | None) -> None:
    """Special cases that the papers state; symmetric CE without CE is 4 MAE."""
    expected = 4 * MAE().value(NLL, CLASSES) if member is None else member.value(NLL, CLASSES)
    torch.testing.assert_close(general.value(NLL, CLASSES), expected, rtol=1e-12, atol=0)


def test_truncation_point() -> None:
    """Flat at and above -log k, with slope 0 exactly at the knot; GCE below."""
    record, knot = TruncatedGCE(0.7, 0.5), -math.log(0.5)
    nll = torch.tensor([knot - 1e-9, knot, knot + 1e-9, 50.0], dtype=torch.float64)
    leaf = nll.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(record.value(leaf, CLASSES).sum(), leaf)
    for slope in (derivative, record.slope(nll, CLASSES)):
        assert (slope[1:] == 0).all()
        assert slope[0] > 0.6
    assert len(set(record.value(nll, CLASSES)[1:].tolist())) == 1


@over_members
def test_public_gradient_is_slope_times_p_minus_onehot(record: RowLoss, device: torch.device) -> None:
    draw = Draw()
    x, y = draw.normal(9, CLASSES, scale=3.0).to(device), draw.labels(CLASSES, 9).to(device)
    upstream = draw.normal(9).to(device)
    value, (gradient,) = evaluate(
        nearlinear.cross_entropy, {"input": x, "target": y}, {"row_loss": record, "reduction": "none"}, ["input"], upstream
    )
    p = x.softmax(1)
    p_y = p.gather(1, y[:, None]).squeeze(1)
    onehot = torch.nn.functional.one_hot(y, CLASSES)
    torch.testing.assert_close(value, record.formula(p_y, CLASSES), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, (upstream * record.slope(-p_y.log(), CLASSES))[:, None] * (p - onehot), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "options", "record"),
    [
        (nearlinear.comp_sum_loss, {"tau": 0.5}, CompSum(0.5)), (nearlinear.gce_loss, {"q": 0.4}, GCE(0.4)),
        (nearlinear.truncated_gce_loss, {"q": 0.4, "k": 0.1}, TruncatedGCE(0.4, 0.1)), (nearlinear.mae_loss, {}, MAE()),
        (nearlinear.focal_loss, {"gamma": 1.5}, Focal(1.5)), (nearlinear.poly_loss, {"epsilon": 2.0}, Poly1(2.0)),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)  # fmt: skip
def test_thin_functions_pass_everything_on(function: object, options: dict[str, float], record: RowLoss) -> None:
    """Each own parameter and each shared option reaches the loss; the definition is evaluated with the record itself."""
    draw = Draw()
    x, y, w, v = draw.normal(9, 7), draw.labels(7, 9), draw.positive(7), draw.positive(9)
    shared = {"ignore_index": 3, "reduction": "mean", "z_loss": 0.1, "softcap": 4.0, "sample_weight": v}
    got: Tensor = function(x, y, w, **options, **shared)
    torch.testing.assert_close(got, nearlinear.reference.cross_entropy.cross_entropy(x, y, w, row_loss=record, **shared))
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items() if name in options}
    torch.testing.assert_close(function(x, y), nearlinear.reference.cross_entropy.cross_entropy(x, y, row_loss=type(record)(**defaults)))
