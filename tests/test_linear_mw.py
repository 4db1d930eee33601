"""The in-batch Mann-Whitney loss: the battery, other ways to the same number, edges, and the memory promise."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from battery import Battery
from measure import Case, Draw, Inputs, evaluate, within_budget
from nearlinear.ops.linear_mw import _BINS
from nearlinear.reference import linear_mw as reference
from test_linear_memory import peak_bytes
from torch import Tensor

ops = torch.ops.nearlinear
THREE = ("query", "document", "hard_negatives")


def embeddings(features: int, negatives: int = 0, *, unit: bool = True, correlated: float = 0.0) -> Any:
    """``correlated``: how much of its query a document is."""

    def make(draw: Draw, rows: int) -> Inputs:
        query = draw.normal(rows, features)
        made = {"query": query, "document": draw.normal(rows, features) + correlated * query}
        if negatives:
            made["hard_negatives"] = draw.normal(negatives, features)
        return {name: F.normalize(x) if unit else x for name, x in made.items()}

    return make


def duplicates(draw: Draw, rows: int) -> Inputs:
    """Every query and every document twice: ties between positives and negatives."""
    made = embeddings(6)(draw, (rows + 1) // 2)
    return {name: x.repeat(2, 1)[:rows] for name, x in made.items()}


CASES = (
    Case("hard", embeddings(8, 5, correlated=1.0), "hard negatives", rows=37, native=THREE, differentiable=THREE),
    Case(
        "pair", embeddings(3), "two queries", rows=2, native=THREE, differentiable=THREE[:2], options={"temperature": 0.3}, checked=True,
    ),
    Case(
        "lengths", embeddings(3, 2, unit=False), "rows of any length, divided by the queries alone", rows=5, native=THREE,
        differentiable=THREE, options={"temperature": 1.0, "normalizer": "queries"}, checked=True,
    ),
    Case("cold", embeddings(8, 5), "a low temperature: far fields", native=THREE, differentiable=THREE, options={"temperature": 0.01}),
    Case("duplicates", duplicates, "ties", native=THREE, differentiable=THREE[:2], options={"temperature": 0.3}),
    Case(
        "tiles", embeddings(5, 3), "several tiles of rows", rows=40, native=THREE, differentiable=THREE,
        options={"max_workspace_bytes": 9_000, "temperature": 0.2},
    ),
    Case("large", embeddings(64, 7, correlated=0.5), "a batch", rows=192, native=THREE, differentiable=THREE),
)  # fmt: skip


class TestLinearMW(Battery):
    function = staticmethod(nearlinear.linear_mw_loss)
    definition = staticmethod(reference.linear_mw_loss)
    cases = CASES
    rowwise: ClassVar[dict[str, Any]] = {}
    test_reductions_follow_from_rows = None  # there are none
    bits_of_threads = False
    compiled: ClassVar[dict[str, str]] = {"hard": "aot_eager", "lengths": "inductor"}
    modules = ((nearlinear.LinearMWLoss, nearlinear.linear_mw_loss, {"temperature": 0.1, "normalizer": "queries"}),)

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        return view.is_contiguous() and view.data_ptr() % 64 == 0

    def saved_bytes(self, case: Case, rows: int) -> int:
        """Moments of the most bins, and documents with the hard negatives behind them."""
        document = case.inputs(torch.float32)["document"]
        return 2 * _BINS * 5 * 8 + 2 * document.nbytes + 64

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        query, document = (x.float().to(device) for x in (draw.normal(5, 3), draw.normal(7, 3)))
        _, moments, bound = ops.linear_mw_sum(query, document, 2.0)
        up = torch.tensor(0.7, dtype=torch.float64, device=device)
        return [
            (ops.linear_mw_sum.default, (query, document, 2.0, None), (0, 1)),
            (ops.linear_mw_sum_backward.default, (up, query, document, moments, bound, 2.0, None, [True, False]), ()),
        ]


def test_it_is_the_loop_over_pairs() -> None:
    """Python's own numbers, in the order of the words: every positive against every negative of every query."""
    made = embeddings(3, 2)(Draw(), 3)
    documents = torch.cat([made["document"], made["hard_negatives"]]).tolist()
    scores = [[sum(a * b for a, b in zip(q, d, strict=True)) / 0.3 for d in documents] for q in made["query"].tolist()]
    pairs = [
        math.log1p(math.exp(scores[a][b] - scores[i][i])) for i in range(3) for a in range(3) for b in range(5) if a != b
    ]  # fmt: skip
    assert len(pairs) == 36
    assert float(nearlinear.linear_mw_loss(**made, temperature=0.3)) == pytest.approx(sum(pairs) / 36, rel=1e-13)
    by_query = nearlinear.linear_mw_loss(**made, temperature=0.3, normalizer="queries")
    assert float(by_query) == pytest.approx(sum(pairs) / 3, rel=1e-13)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_it_is_the_pairwise_loss_of_the_scores(dtype: torch.dtype, temperature: float) -> None:
    """400 queries: enough scores for the finer bins."""
    case = Case("", embeddings(8, 3, correlated=1.0), "", rows=400)
    made = {name: x.to(dtype) for name, x in case.inputs(torch.float64).items()}
    got, gradients = evaluate(nearlinear.linear_mw_loss, made, {"temperature": temperature}, THREE)

    def stored(query: Tensor, document: Tensor, hard_negatives: Tensor) -> Tensor:
        scores = query @ torch.cat([document, hard_negatives]).T / temperature
        own = torch.eye(*scores.shape, dtype=torch.bool)
        return nearlinear.pairwise_auc_loss(scores.flatten(), own.flatten(), method="scan")

    oracle, exact = evaluate(stored, {name: x.double() for name, x in made.items()}, {}, THREE)
    eager, eager_gradients = evaluate(stored, made, {}, THREE)
    within_budget(got, eager, oracle, 2, "value")
    for name, ours, base, true in zip(THREE, gradients, eager_gradients, exact, strict=True):
        within_budget(ours, base, true, 3, f"gradient of {name}")


def test_it_bounds_the_area_over_the_curve() -> None:
    for correlated in (0.0, 1.0, 3.0):
        made = embeddings(16, 4, correlated=correlated)(Draw(), 50)
        scores = made["query"] @ torch.cat([made["document"], made["hard_negatives"]]).T
        area = nearlinear.roc_auc_score(scores.flatten(), torch.eye(*scores.shape, dtype=torch.bool).flatten())
        assert 1 - float(area) <= float(nearlinear.linear_mw_loss(**made)) / math.log(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_scores_at_the_ends_of_the_bins(dtype: torch.dtype) -> None:
    """Largest and smallest possible scores, at the lowest temperature; queries that lie on documents and opposite to them."""
    query = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    options = {"temperature": 1 / 250}
    loss = nearlinear.linear_mw_loss(query, query, **options)
    exact = reference.linear_mw_loss(query.double(), query.double(), **options)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    assert torch.autograd.grad(loss, query)[0].isfinite().all()


def test_lengths_that_underflow() -> None:
    made = embeddings(3)(Draw(), 9)
    loss = nearlinear.linear_mw_loss(1e-24 * made["query"].float(), made["document"].float())
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_without_a_negative(rows: int) -> None:
    query, document = torch.ones(rows, 3, requires_grad=True), torch.ones(rows, 3, requires_grad=True)
    loss = nearlinear.linear_mw_loss(query, document)
    assert loss.item() == 0
    assert not any(d.any() for d in torch.autograd.grad(loss, (query, document)))
    alone = torch.ones(2, 3, requires_grad=True)
    loss = nearlinear.linear_mw_loss(query, document, hard_negatives=alone)
    assert loss.item() == pytest.approx(rows * math.log(2))
    assert bool(torch.autograd.grad(loss, alone)[0].any()) == (rows == 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", THREE)
def test_what_is_not_finite_shows(name: str, value: float) -> None:
    made = embeddings(3, 2)(Draw(), 4)
    made[name][1, 2] = value
    loss, gradients = evaluate(nearlinear.linear_mw_loss, made, {}, THREE)
    assert loss.isnan()
    assert all(d.isnan().all() for d in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
def test_workspace_keeps_to_its_limit(dtype: torch.dtype) -> None:
    """Tables between the bins come on top; the scores alone would take 36 MB in float32."""
    n, limit = 3000, 2_000_000
    made = [F.normalize(torch.randn(n, 16)).to(dtype).requires_grad_() for _ in range(2)]

    def step() -> Any:
        return torch.autograd.grad(nearlinear.linear_mw_loss(*made, max_workspace_bytes=limit), made)

    step()
    tables = 4_000_000 if dtype == torch.float64 else 1_000_000
    assert peak_bytes(step) <= sum(x.nbytes for x in made) + limit + tables
