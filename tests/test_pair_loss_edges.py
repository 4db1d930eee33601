"""Pair losses: second formulas, the traps of other implementations, degenerate batches, and the memory that a call takes."""

from __future__ import annotations

import math
from typing import Any

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from nearlinear import pair_forms, score_maps
from nearlinear.reference import pair_loss as reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DOUBLE = torch.float64


def problem(rows: int = 12, features: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, features, dtype=DOUBLE), torch.arange(rows) % classes


def test_supcon_with_one_positive_is_cross_entropy_of_the_other_rows() -> None:
    x, _ = problem(8)
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    u = F.normalize(x, dim=1)
    z = (u @ u.T / 0.2).fill_diagonal_(-math.inf)
    expected = F.cross_entropy(z, (torch.arange(8) + 4) % 8)
    torch.testing.assert_close(nearlinear.supcon_loss(x, y, temperature=0.2), expected)


def test_small_losses_keep_relative_accuracy() -> None:
    """One positive at cosine 1, negatives far away: the loss is of the size of e^(-2 / t), and float32 sees it."""
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.01], [-1.0, 0.01]])
    y = torch.tensor([0, 0, 1, 1])
    expected = 4 * math.log1p(2 * math.exp((-1 / math.sqrt(1 + 1e-4) - 1) / 0.05))
    for dtype in (torch.float32, DOUBLE):
        loss = nearlinear.supcon_loss(u.to(dtype), y, temperature=0.05, reduction="sum")
        assert float(loss) == pytest.approx(expected, rel=1e-4, abs=0)


@pytest.mark.parametrize("curvature", [0.1, 1.0])
def test_hyperbolic_supcon_by_moebius_addition(curvature: float) -> None:
    x, y = problem()
    x = x / (1.3 + x.norm(dim=1, keepdim=True))
    record = score_maps.Poincare(curvature, 0.5)
    z = record.formula(x, x)
    rows = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        rows.append(torch.stack([z[i, others].logsumexp(0) - z[i, p] for p in others if y[p] == y[i]]).mean())
    torch.testing.assert_close(nearlinear.supcon_loss(x, y, temperature=1.0, logit_map=record, reduction="none"), torch.stack(rows))


FORMS = (pair_forms.Contrastive(0.1), pair_forms.MultiSimilarity(), pair_forms.ProxyAnchor(), pair_forms.ProxyNCA())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_mixed_keys_by_a_loop_over_the_pairs(form: pair_forms.PairForm) -> None:
    x, y = problem()
    key, first, second, share = torch.randn(7, 4, dtype=DOUBLE), torch.arange(7) % 3, torch.arange(7) % 2, torch.rand(7, dtype=DOUBLE)
    s = F.normalize(x, dim=1) @ F.normalize(key, dim=1).T
    shares = [[float(share[j] * (first[j] == y[i]) + (1 - share[j]) * (second[j] == y[i])) for j in range(7)] for i in range(len(x))]
    plus: dict[str, Any] = {
        "contrastive": lambda v: -v, "multi_similarity": lambda v: math.exp(-2 * (v - 0.5)),
        "proxy_anchor": lambda v: math.exp(-32 * (v - 0.1)), "proxy_nca": lambda v: -v,
    }  # fmt: skip
    minus: dict[str, Any] = {
        "contrastive": lambda v: max(v - 0.1, 0), "multi_similarity": lambda v: math.exp(50 * (v - 0.5)),
        "proxy_anchor": lambda v: math.exp(32 * (v + 0.1)), "proxy_nca": math.exp,
    }  # fmt: skip
    outer: dict[str, Any] = {
        "contrastive": lambda a, b: a + b, "multi_similarity": lambda a, b: math.log(1 + a) / 2 + math.log(1 + b) / 50,
        "proxy_anchor": lambda a, b: math.log(1 + a) + math.log(1 + b), "proxy_nca": lambda a, b: a + math.log(b),
    }  # fmt: skip
    rows = []
    for i in range(len(x)):
        positive = sum(w * plus[form.name](float(v)) for w, v in zip(shares[i], s[i], strict=True))
        negative = sum((1 - w) * minus[form.name](float(v)) for w, v in zip(shares[i], s[i], strict=True))
        rows.append(outer[form.name](positive, negative))
    got = nearlinear.pair_loss(x, y, form=form, key=key, soft_label=(first, second, share), reduction="none")
    torch.testing.assert_close(got, torch.tensor(rows, dtype=DOUBLE))


def test_blocks_of_columns_with_rising_scores() -> None:
    """Maxima that rise from block to block, in one tile of several kernel blocks."""
    x = torch.linspace(0.1, 4, 1300).unsqueeze(1) * torch.tensor([1.0, 2.0])
    y = torch.arange(1300) % 10
    for dtype, tolerance in ((torch.float32, 1e-5), (DOUBLE, 1e-12)):
        input = x.to(dtype).requires_grad_()
        options: dict[str, Any] = {"logit_map": score_maps.Dot(nearlinear.Scale(1.0)), "temperature": 0.5}
        loss = nearlinear.supcon_loss(input, y, **options)
        wide = x.double().requires_grad_()
        exact = reference.supcon_loss(wide, y, **options)
        torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=0)
        gradients = torch.autograd.grad(loss, input)[0].double(), torch.autograd.grad(exact, wide)[0]
        assert (gradients[0] - gradients[1]).abs().max() <= 10 * tolerance * gradients[1].abs().max()


def test_hard_labels_are_soft_labels_with_the_whole_share() -> None:
    x, y = problem()
    whole = nearlinear.pair_loss(x, y, key=x, key_target=y, reduction="none")
    for share in (0.0, 1.0):
        labels = (y, 2 - y, torch.full([12], share)) if share else (2 - y, y, torch.full([12], share))
        torch.testing.assert_close(nearlinear.pair_loss(x, y, key=x, soft_label=labels, reduction="none"), whole)


def test_rows_that_mining_empties_count_in_the_mean() -> None:
    x, y = problem()
    y[-1] = 99  # no positive: contributes nothing, is counted
    rows = nearlinear.multi_similarity_loss(x, y, mining_margin=0.1, reduction="none")
    assert rows[-1] == 0
    assert (rows[:-1] != 0).any()
    torch.testing.assert_close(nearlinear.multi_similarity_loss(x, y, mining_margin=0.1), rows.sum() / 12)


def test_exact_duplicates_do_not_vanish_unless_asked_to() -> None:
    x, y = problem(6, 4, 2)
    x[2] = x[0]
    plain = nearlinear.multi_similarity_loss(x, y, reduction="none")
    by_value = nearlinear.multi_similarity_loss(x, y, exclude_above=1 - 1e-5, reduction="none")
    assert plain[0] > by_value[0]
    torch.testing.assert_close(plain[1], by_value[1])


def test_a_row_is_no_positive_of_itself() -> None:
    x, _ = problem(5)
    assert (nearlinear.supcon_loss(x, torch.arange(5), reduction="none") == 0).all()
    assert (nearlinear.batch_hard_triplet_loss(x, torch.arange(5), margin=9.0, reduction="none") == 0).all()
    assert (nearlinear.multi_similarity_loss(x, torch.arange(5), mining_margin=9.0, reduction="none") == 0).all()


def test_batch_hard_takes_the_lowest_of_equal_columns() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]], dtype=DOUBLE, requires_grad=True)
    loss = nearlinear.batch_hard_triplet_loss(x, torch.tensor([0, 0, 0, 1, 1]), margin=9.0, normalize=False, reduction="none")[0]
    touched = torch.autograd.grad(loss, x)[0].abs().sum(1) > 0
    assert touched.tolist()[1:] == [True, False, True, False]


LOSSES: dict[str, Any] = {
    "supcon": nearlinear.supcon_loss, "multi_similarity": nearlinear.multi_similarity_loss,
    "mined": lambda x, y, **o: nearlinear.multi_similarity_loss(x, y, mining_margin=0.1, **o),
    "batch_hard": nearlinear.batch_hard_triplet_loss, "contrastive": lambda x, y, **o: nearlinear.pair_loss(x, y, form="contrastive", **o),
    "proxy_nca": lambda x, y, **o: nearlinear.pair_loss(x, y, form="proxy_nca", **o),
    "poincare": lambda x, y, **o: nearlinear.supcon_loss(x / 9, y, logit_map=score_maps.Poincare(), **o),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", ["one class", "all different", "one row", "no rows", "all rows equal"])
def test_degenerate_batches(name: str, labels: str) -> None:
    """Finite values and gradients, first and second, whatever pairs are missing."""
    rows = {"one row": 1, "no rows": 0}.get(labels, 5)
    x = torch.ones(rows, 3, dtype=DOUBLE) if labels == "all rows equal" else torch.randn(rows, 3, dtype=DOUBLE)
    x.requires_grad_()
    y = torch.zeros(rows, dtype=torch.int64) if labels == "one class" else torch.arange(rows) % (2 if labels == "all rows equal" else 9)
    for reduction in ("mean", "sum"):
        loss = LOSSES[name](x, y, reduction=reduction)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        if gradient.requires_grad and gradient.numel() and labels != "all rows equal":
            assert torch.autograd.grad(gradient.sum(), x, allow_unused=True)[0].isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_nan_reaches_every_row_that_meets_it(name: str) -> None:
    x, y = problem()
    x[5] = math.nan
    rows = LOSSES[name](x, y, reduction="none")
    assert rows.isnan().all()


def test_uint8_labels_and_large_labels() -> None:
    x, y = problem()
    expected = nearlinear.supcon_loss(x, y)
    assert torch.equal(nearlinear.supcon_loss(x, y.to(torch.uint8)), expected)
    assert torch.equal(nearlinear.supcon_loss(x, y * 2**40 - 2**62), expected)


class Allocations(TorchDispatchMode):
    """Largest tensor that any op returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_is_larger_than_the_tile_or_the_embeddings(name: str) -> None:
    x, y = torch.randn(2048, 16, requires_grad=True), torch.arange(2048) % 100
    tile = 1 << 18
    with Allocations() as seen:
        LOSSES[name](x, y, max_workspace_bytes=tile).backward()
    assert seen.largest <= max(tile, 2048 * 18 * 4)  # all scores: 16 MiB


def test_tiles_cover_all_pairs_within_the_limit() -> None:
    from nearlinear.pair_tiles import tile_shape

    for n, m, limit in ((1, 1, 512), (70, 131, 512), (70, 131, 4096), (8192, 8192, 1 << 20), (3, 10**6, 4096)):
        height, width = tile_shape(n, m, 8, limit, "cpu")
        assert height * width * 8 <= limit
        assert 1 <= height <= n
        assert 1 <= width <= m
