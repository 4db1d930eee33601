"""Distances of pairs of vectors: the battery on every metric, sizes around the blocks, shapes, and torch.cdist where it has the metric."""

from __future__ import annotations

from typing import Any, ClassVar

import nearlinear
import pytest
import torch
from battery import Battery
from measure import Case, Draw, Inputs, evaluate, same, within_budget
from nearlinear import BrayCurtis, Canberra, Chebyshev, Manhattan, Minkowski, SmoothChebyshev
from nearlinear.reference import distance as reference

ops = torch.ops.nearlinear

METRICS = {
    "manhattan": Manhattan(), "minkowski_1": Minkowski(1), "minkowski_1.5": Minkowski(), "minkowski_2": Minkowski(2),
    "minkowski_3": Minkowski(3), "minkowski_2.7": Minkowski(2.7), "chebyshev": Chebyshev(), "smooth_chebyshev": SmoothChebyshev(3.0),
    "canberra": Canberra(), "bray_curtis": BrayCurtis(), "bray_curtis_abs": BrayCurtis(absolute=True),
}  # fmt: skip
BOTH = ("input", "other")


def vectors(classes: int, dim: int, *batch: int, shared: bool = False, mean: float = 1.5) -> Any:
    """A mean that keeps Bray-Curtis' sums away from 0, where they cancel; ``shared``: one set of classes for every batch."""

    def make(draw: Draw, rows: int) -> Inputs:
        return {"input": draw.normal(*batch, rows, dim) + mean, "other": draw.normal(*(() if shared else batch), classes, dim) + mean}

    return make


def case(name: str, make: Any, reason: str, **fields: Any) -> Case:
    return Case(name, make, reason, native=BOTH, differentiable=BOTH, **fields)


CASES = (
    *(case(name, vectors(5, 7), "every metric", rows=6, options={"metric": m}, checked=True) for name, m in METRICS.items()),
    *(
        case(f"{name}_blocks", vectors(37, 67), "two blocks of rows and of classes, two partial sums", rows=35, options={"metric": m})
        for name, m in METRICS.items()
    ),
    case("negative", vectors(5, 9, mean=-1.5), "the sign of Bray-Curtis' sum", rows=6, options={"metric": BrayCurtis()}, checked=True),
    case("batched", vectors(5, 4, 3), "a set of classes for each batch", rows=4, options={"metric": Minkowski(2)}, checked=True),
    case("shared", vectors(5, 4, 2, 3, shared=True), "leading dimensions folded into rows", rows=4),
)


class TestDistance(Battery):
    function = staticmethod(nearlinear.distance_matrix)
    definition = staticmethod(reference.distance_matrix)
    cases = CASES
    rowwise: ClassVar[dict[str, Any]] = {}
    compiled: ClassVar[dict[str, str]] = {"manhattan": "inductor", "chebyshev": "aot_eager", "batched": "aot_eager", "shared": "aot_eager"}
    modules = (
        (nearlinear.DistanceMatrix, nearlinear.distance_matrix, {"metric": Minkowski(3)}),
        (nearlinear.DistanceMatrix, nearlinear.distance_matrix, {}),
    )
    test_reductions_follow_from_rows = None  # there are none

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        samples: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = []
        for metric in (Manhattan(), Minkowski(1.5), BrayCurtis()):
            x, w = (draw.normal(2, n, 7).float().to(device) for n in (4, 5))
            grad = draw.normal(2, 4, 5).float().to(device)
            named = (metric.name, metric.params)
            samples.append((ops.pair_distances.default, (x, w, *named), (0, 1)))
            samples.append((ops.distance_tile.default, (x[0], w[0], *named, torch.empty_like(grad[0])), ()))
            for wanted in ((True, True), (True, False), (False, True)):
                samples.append((ops.pair_distances_backward.default, (grad, x, w, *named, *wanted), ()))
                sums = (torch.zeros_like(x[0]), torch.zeros_like(w[0]))
                samples.append((ops.distance_tile_backward.default, (*sums, grad[0], x[0], w[0], *named, *wanted), ()))
        return samples


# 0 and 1 of each; one block of 16 lanes, 32 rows and 32 terms, four rows of registers, each with its neighbours
SIZES = (
    (0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (4, 16, 32), (5, 17, 33), (3, 15, 31), (31, 7, 5), (32, 8, 3), (33, 129, 2), (129, 33, 7),
    (2, 3, 257),
)  # fmt: skip


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, int, int], metric: Any, device: torch.device) -> None:
    rows, classes, dim = size
    sized = case("size", vectors(classes, dim), "", rows=rows, options={"metric": metric})
    inputs = sized.inputs(torch.float32, device)
    value, gradients = evaluate(nearlinear.distance_matrix, inputs, sized.options, BOTH)
    eager, eager_gradients = evaluate(reference.distance_matrix, inputs, sized.options, BOTH)
    exact, exact_gradients = evaluate(
        reference.distance_matrix, {name: t.double().cpu() for name, t in inputs.items()}, sized.options, BOTH
    )
    within_budget(value, eager, exact, 2, "value")
    for name, a, b, c in zip(BOTH, gradients, eager_gradients, exact_gradients, strict=True):
        within_budget(a, b, c, 3, f"gradient of {name}")


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_torch_cdist(p: float, device: torch.device) -> None:
    """torch has some of the metrics: values and gradients in float64."""
    inputs = case("cdist", vectors(9, 40, 2), "", rows=8).inputs(torch.float64, device)
    ours = evaluate(nearlinear.distance_matrix, inputs, {"metric": Chebyshev() if p == float("inf") else Minkowski(p)}, BOTH)
    theirs = evaluate(lambda input, other: torch.cdist(input, other, p=p, compute_mode="donot_use_mm_for_euclid_dist"), inputs, {}, BOTH)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_leading_dimensions_broadcast(device: torch.device) -> None:
    draw = Draw()
    for a, b in (((), ()), ((3,), ()), ((2, 3), ()), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (3,)), ((0,), ()), ((2, 0), (0,))):
        x, w = draw.normal(*a, 4, 5).to(device), draw.normal(*b, 6, 5).to(device)
        got = nearlinear.distance_matrix(x, w)
        torch.testing.assert_close(got, reference.distance_matrix(x, w), rtol=1e-12, atol=0)
    assert nearlinear.distance_matrix(x.new_empty(2, 3, 0), w.new_empty(4, 0)).shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_halves_are_those_of_their_float32_copies(dtype: torch.dtype, device: torch.device) -> None:
    x, w = (t.to(dtype).to(device) for t in vectors(5, 40)(Draw(), 6).values())
    for metric in METRICS.values():
        half = nearlinear.distance_matrix(x, w, metric)
        assert half.dtype == torch.float32
        same(half, nearlinear.distance_matrix(x.float(), w.float(), metric), str(metric))


def test_meta_tensors() -> None:
    x, w = torch.zeros(2, 9, 7, device="meta", dtype=torch.float16), torch.zeros(5, 7, device="meta", dtype=torch.float16)
    distances = nearlinear.distance_matrix(x, w)
    assert (distances.shape, distances.dtype, distances.device.type) == ((2, 9, 5), torch.float32, "meta")


def test_records_name_their_kernels() -> None:
    assert [(m.name, m.params) for m in (Minkowski(3), Canberra(0.5), BrayCurtis(0.25, absolute=True), Manhattan())] == [
        ("minkowski", [3.0]), ("canberra", [0.5]), ("bray_curtis_abs", [0.25]), ("manhattan", []),
    ]  # fmt: skip
    for metric in METRICS.values():
        assert nearlinear.distances.DISTANCES[metric.name](*metric.params) == metric
    assert repr(nearlinear.DistanceMatrix(Minkowski(3))) == "DistanceMatrix(metric=Minkowski(p=3))"
