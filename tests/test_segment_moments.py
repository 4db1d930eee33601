"""Moments of segments and the losses on them: the battery on the projection loss, sizes around pieces, order, layouts, rivals' forms."""

from __future__ import annotations

from typing import Any, ClassVar

import nearlinear
import pytest
import torch
from battery import Battery
from layouts import LAYOUTS
from measure import DTYPES, Case, Draw, Inputs, same, threads
from nearlinear.reference import segment_moments as reference
from torch import Tensor

ops = torch.ops.nearlinear
KINDS = ("none", "diag", "full")


def rows(classes: int, dim: int) -> Any:
    def make(draw: Draw, rows: int) -> Inputs:
        return {"features": draw.normal(rows, dim), "labels": draw.labels(classes, rows)}

    return make


def case(name: str, make: Any, reason: str, **fields: Any) -> Case:
    return Case(name, make, reason, native=("features",), differentiable=("features",), **fields)


CASES = (
    case("mean", rows(3, 5), "pairs of one class and of two", rows=7, checked=True),
    case("abs_mean", rows(3, 5), "a negative mean", rows=7, options={"variant": "abs_mean", "gamma": 2.0}, checked=True),
    case("long", rows(4, 33), "many rows of a class"),
    case("one_class", rows(1, 5), "no pair of two classes", rows=7, checked=True),
)


class TestOrthogonalProjection(Battery):
    function = staticmethod(nearlinear.orthogonal_projection_loss)
    definition = staticmethod(reference.orthogonal_projection_loss)
    cases = CASES
    rowwise: ClassVar[dict[str, Any]] = {}
    few_terms = True
    compiled: ClassVar[dict[str, str]] = {"mean": "inductor", "abs_mean": "aot_eager"}
    modules = ((nearlinear.OrthogonalProjectionLoss, nearlinear.orthogonal_projection_loss, {"gamma": 1.0, "variant": "abs_mean"}),)
    test_reductions_follow_from_rows = None  # there are none

    def saved_bytes(self, case: Case, rows: int) -> int:
        """The unit vectors, class sums in float64 and the numbers of the rows."""
        n, d = case.inputs(torch.float32)["features"].shape
        return 6 * n * (4 * d + 2 * 8 * d + 64)

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        """The norms of the rows are torch's."""
        return False

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        x, index = draw.normal(7, 3).float().to(device), draw.labels(4, 7).to(device)
        samples: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = []
        for kind in KINDS:
            samples.append((ops.segment_moments.default, (x, index, 4, kind), (0,)))
            grads = [torch.randn_like(t) for t in ops.segment_moments(x, index, 4, kind)[:2]]
            samples.append((ops.segment_moments_backward.default, (*grads, x, index, 4, kind), ()))
        return samples


# ---- the op


def check(x: Tensor, index: Tensor, segments: int, kind: str) -> None:
    """Sums of at most 1e4 terms in float64; the gradient is rounded once to the dtype of the rows."""
    leaf, wide = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    ours, exact = ops.segment_moments(leaf, index, segments, kind), reference.segment_moments(wide, index, segments, kind)
    assert torch.equal(ours[2], exact[2])
    torch.testing.assert_close(ours[:2], exact[:2], rtol=1e-12, atol=1e-12)
    sums, exact = ([t for t, asked in zip(found[:2], (True, kind != "none"), strict=True) if asked] for found in (ours, exact))
    upstream = [torch.randn_like(t) for t in sums]
    got, expected = torch.autograd.grad(sums, leaf, upstream), torch.autograd.grad(exact, wide, upstream)
    torch.testing.assert_close(got[0].double(), expected[0], rtol=torch.finfo(x.dtype).eps, atol=1e-7)  # halves below 1e-7 have few digits


# no row, no segment, no column; a full and a broken tile of 64 rows, pieces of 1024 rows, whole vectors of 8 and one more
SIZES = ((0, 3, 4), (5, 1, 0), (1, 1, 1), (64, 2, 8), (65, 3, 9), (1023, 1, 7), (1024, 2, 3), (3000, 2, 5), (2050, 300, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("ordered", [False, True], ids=["any_order", "ordered"])
def test_sizes(size: tuple[int, int, int], kind: str, ordered: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    n, segments, d = size
    index = torch.randint(segments, (n,))
    check(torch.randn(n, d).to(device), (index.sort()[0] if ordered else index).to(device), segments, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_dtypes_and_layouts(dtype: torch.dtype, kind: str, device: torch.device) -> None:
    torch.manual_seed(0)
    x, index = torch.randn(37, 6).to(dtype).to(device), torch.randint(5, (37,)).to(device)
    check(x, index, 7, kind)  # two segments are empty
    for name, layout in LAYOUTS.items():
        view = layout(x)
        got = ops.segment_moments(view, index.repeat_interleave(2)[::2], 7, kind)
        same(got, ops.segment_moments(view.clone(memory_format=torch.contiguous_format), index, 7, kind), name)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind: str, device: torch.device) -> None:
    torch.manual_seed(0)
    x, index = torch.randn(6, 3, dtype=torch.float64, device=device, requires_grad=True), torch.tensor([2, 0, 2, 2, 0, 3], device=device)

    def moments(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for t in ops.segment_moments(x, index, 5, kind)[:2] if t.numel())

    assert torch.autograd.gradcheck(moments, x)
    assert torch.autograd.gradgradcheck(lambda x: sum((t**2).sum() for t in moments(x)), x)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_threads(kind: str) -> None:
    torch.manual_seed(0)
    x, index = torch.randn(9000, 20), torch.randint(3, (9000,))
    torch.set_num_threads(1)
    expected = ops.segment_moments(x, index, 3, kind)
    with threads(2):
        same(ops.segment_moments(x, index, 3, kind), expected, "two threads")


def test_one_not_a_number_stays_in_its_segment(device: torch.device) -> None:
    x, index = torch.ones(5, 2, device=device), torch.tensor([0, 1, 1, 2, 0], device=device)
    x[1, 0] = torch.nan
    total = nearlinear.segment_moments(x, index, 3).sum
    assert total[1, 0].isnan()
    assert total.isnan().sum() == 1


def test_cancellation_is_that_of_float64(device: torch.device) -> None:
    """A variance of 1 about 1e4: float32 sums of squares would keep no digit of it."""
    torch.manual_seed(0)
    x, index = 1e4 + torch.randn(4000, 3, device=device), torch.randint(2, (4000,), device=device)
    _, bias = nearlinear.gaussian_nb_head(x, index, 2)
    _, exact = reference.gaussian_nb_head(x.double(), index, 2)
    torch.testing.assert_close(bias.double(), exact, rtol=1e-6, atol=0)


# ---- what is made of it


def test_prototypes(device: torch.device) -> None:
    torch.manual_seed(0)
    x, labels = (
        torch.randn(9, 4, dtype=torch.float64, device=device, requires_grad=True),
        torch.tensor([0, 3, 3, 0, 0, 1, 1, 3, 0], device=device),
    )
    means, present = nearlinear.class_prototypes(x, labels, 5)
    expected, known = reference.class_prototypes(x, labels, 5)
    torch.testing.assert_close(means, expected)
    assert present.tolist() == known.tolist() == [True, True, False, True, False]
    upstream = torch.randn_like(means)
    torch.testing.assert_close(torch.autograd.grad(means, x, upstream), torch.autograd.grad(expected, x, upstream))


def test_naive_bayes_is_the_classifier(device: torch.device) -> None:
    """The linear head's posteriors are those of the densities, written with torch.distributions."""
    torch.manual_seed(0)
    labels = torch.randint(3, (60,), device=device)
    x = torch.randn(60, 4, dtype=torch.float64, device=device) * torch.tensor([1.0, 2.0, 0.5, 3.0], device=device) + labels.unsqueeze(1)
    weight, bias = nearlinear.gaussian_nb_head(x, labels, 3, eps=0)
    torch.testing.assert_close((weight, bias), reference.gaussian_nb_head(x, labels, 3, eps=0))
    means = torch.stack([x[labels == c].mean(0) for c in range(3)])
    spread = ((x - means[labels]) ** 2).mean(0).sqrt()
    density = torch.distributions.Normal(means, spread).log_prob(x.unsqueeze(1)).sum(2) + torch.log(torch.bincount(labels) / 60.0)
    torch.testing.assert_close(torch.softmax(x @ weight.T + bias, 1), torch.softmax(density, 1), rtol=1e-7, atol=0)
    assert nearlinear.gaussian_nb_head(x, labels, 4)[1][3] == -torch.inf


def collapsed(scale: float) -> tuple[Tensor, Tensor]:
    """Features around the vertices of a simplex."""
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(50)
    vertices = torch.eye(4, dtype=torch.float64) - 0.25
    noise = torch.randn(200, 4, dtype=torch.float64)
    return vertices[labels] + scale * noise, labels


def test_neural_collapse(device: torch.device) -> None:
    for scale, bound in ((0.0, 1e-12), (1e-3, 1e-2)):
        x, labels = (t.to(device) for t in collapsed(scale))
        means = torch.stack([x[labels == c].mean(0) for c in range(4)])
        found = nearlinear.neural_collapse(x, labels, 4, 3 * (means - means.mean(0)))
        assert all(0 <= float(value) <= bound for value in found if value is not None)  # each is 0 where it is complete
    x, labels = (t.to(device) for t in collapsed(0.3))
    means = torch.stack([x[labels == c].mean(0) for c in range(4)])
    within = sum((x[labels == c] - means[c]).T @ (x[labels == c] - means[c]) for c in range(4)) / 200
    centred = means - means.mean(0)
    nc1 = torch.trace(within @ torch.linalg.pinv(centred.T @ centred / 4)) / 4
    torch.testing.assert_close(nearlinear.neural_collapse(x, labels, 4).nc1, nc1)
    torch.testing.assert_close(nearlinear.neural_collapse(x, labels, 6).nc1, nc1)  # absent classes do not count


def test_projection_loss_knows_labels_by_equality(device: torch.device) -> None:
    torch.manual_seed(0)
    f, labels = torch.randn(20, 5, device=device), torch.randint(4, (20,), device=device)
    names = torch.tensor([-7, 10**12, 3, 0], device=device)[labels]
    same(nearlinear.orthogonal_projection_loss(f, names), nearlinear.orthogonal_projection_loss(f, names.clone()), "second run")
    exact = reference.orthogonal_projection_loss(f.double(), labels)
    torch.testing.assert_close(nearlinear.orthogonal_projection_loss(f, names).double(), exact, rtol=0, atol=1e-6)
    for n in (0, 1):
        assert nearlinear.orthogonal_projection_loss(f[:n], names[:n]) == 1


def test_absolute_values_of_pairs(device: torch.device) -> None:
    torch.manual_seed(0)
    f, labels = torch.randn(9, 4, dtype=torch.float64, device=device, requires_grad=True), torch.randint(3, (9,), device=device)
    ours, exact = (
        function(f, labels, gamma=2.0, variant="abs_pair")
        for function in (nearlinear.orthogonal_projection_loss, reference.orthogonal_projection_loss)
    )
    torch.testing.assert_close((ours, *torch.autograd.grad(ours, f)), (exact, *torch.autograd.grad(exact, f)))


def graph(device: torch.device) -> dict[str, Tensor]:
    torch.manual_seed(0)
    edges = torch.randint(12, (2, 50))
    edges[:, :3] = torch.arange(3)  # self loops
    made = {
        "z": torch.randn(12, 5, dtype=torch.float64), "edge_index": edges, "edge_weight": torch.rand(50, dtype=torch.float64),
        "assignment": torch.rand(12, 4, dtype=torch.float64),
    }  # fmt: skip
    return {name: t.to(device) for name, t in made.items()}


def test_pamc(device: torch.device) -> None:
    for tau in (1.0, 3.0):
        inputs = graph(device)
        leaves = {n: inputs[n].requires_grad_() for n in ("z", "edge_weight")}
        ours, exact = nearlinear.pamc_loss(**inputs, tau=tau), reference.pamc_loss(**inputs, tau=tau)
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.autograd.grad(ours, leaves.values()), torch.autograd.grad(exact, leaves.values()))
    same(nearlinear.PamCLoss(tau=3.0)(**inputs), ours, "Module")


# ---- errors


def test_messages(device: torch.device) -> None:
    x, index = torch.randn(3, 2), torch.tensor([0, 1, 9])
    with pytest.raises(IndexError, match=r"segment_moments: index\[2\] = 9 is out of range \[0, 2\)"):
        nearlinear.segment_moments(x, index, 2)
    with pytest.raises(RuntimeError, match=r"segment_moments: index\[2\] = 9 is out of range \[0, 2\)"):
        ops.segment_moments(x, index, 2, "none")
    with pytest.raises(ValueError, match=r"second_moment must be None, 'diag' or 'full', got 'cov'"):
        nearlinear.segment_moments(x, index, 10, second_moment="cov")
    with pytest.raises(TypeError, match=r"index must be int64, got torch.int32; use index.long\(\)"):
        nearlinear.segment_moments(x, index.int(), 10)
    with pytest.raises(ValueError, match=r"labels must have shape \(N,\) with N=3, got \(2,\)"):
        nearlinear.class_prototypes(x, index[:2], 10)
    with pytest.raises(ValueError, match=r"variant must be one of .*, got 'max'"):
        nearlinear.orthogonal_projection_loss(x, index, variant="max")
    with pytest.raises(ValueError, match=r"weight must have shape \(C, D\)=\(10, 2\), got \(3, 3\)"):
        nearlinear.neural_collapse(x, index, 10, torch.zeros(3, 3))
    with pytest.raises(IndexError, match=r"pamc_loss: edge_index\[0\] = 12 is out of range \[0, 12\)"):
        nearlinear.pamc_loss(**{**graph(device), "edge_index": torch.full((2, 50), 12, device=device)})
