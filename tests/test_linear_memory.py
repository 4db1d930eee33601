"""The memory promise of the fused heads: every allocation of a training step is counted, and the peak is results + planned workspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearlinear
import pytest
import torch
from nearlinear import plan, score_maps
from nearlinear.linear_plan import DEFAULT_WORKSPACE_BYTES, workspace
from torch import Tensor

MAPS = {
    "dot": None, "cosine": score_maps.Cosine(8.0), "arc": score_maps.ArcMargin(8.0), "harmonic": score_maps.Harmonic(2.0),
    "cosine_harmonic": score_maps.CosineHarmonic(2.0), "hyperplanes": score_maps.HyperbolicMLR(1e-3),
}  # fmt: skip


def peak_bytes(function: Callable[[], Any]) -> int:
    """Largest sum of live allocations made by ``function``, from the allocator's own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert peak > 0, "the profiler saw no allocation"
    return peak


def step(x: Tensor, w: Tensor, y: Tensor, **options: Any) -> Callable[[], Any]:
    def run() -> Any:
        return torch.autograd.grad(nearlinear.linear_cross_entropy(x, w, y, **options), (x, w))

    run()  # whatever is set up once
    return run


def test_the_counter_sees_an_eager_step() -> None:
    n, d, v = 256, 32, 5000
    x, w, y = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True), torch.randint(v, (n,))
    peak = peak_bytes(lambda: torch.autograd.grad(torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w), y), (x, w)))
    assert peak >= 2 * n * v * 4  # logits and log-probabilities at least


@pytest.mark.parametrize("limit", [2_000_000, 8_000_000, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", MAPS)
def test_peak_is_results_and_workspace(name: str, dtype: torch.dtype, limit: int | None) -> None:
    n, d, v = 500, 32, 5000
    torch.manual_seed(0)
    x, w = torch.randn(n, d).to(dtype).requires_grad_(), torch.randn(v, d).to(dtype).requires_grad_()
    y = torch.randint(v, (n,))
    y[::5] = -100
    planned = plan(n, v, d, dtype, score_map=MAPS[name], max_workspace_bytes=limit)
    assert planned.workspace_bytes <= (limit or DEFAULT_WORKSPACE_BYTES["cpu"])
    results = x.nbytes + w.nbytes
    for reduction in ("mean", "none"):
        options = {"logit_map": MAPS[name], "max_workspace_bytes": limit, "reduction": reduction}
        run = step(x, w, y, **options) if reduction == "mean" else _rows(x, w, y, **options)
        peak = peak_bytes(run)
        assert peak <= results + planned.workspace_bytes + (64 << 10), f"{reduction}: {peak - results:,} beside the results"
        assert planned.workspace_bytes <= 1.25 * (peak - results) + (64 << 10), f"{reduction}: only {peak - results:,} beside the results"


def _rows(x: Tensor, w: Tensor, y: Tensor, **options: Any) -> Callable[[], Any]:
    ones = torch.ones(len(y), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return lambda: torch.autograd.grad(nearlinear.linear_cross_entropy(x, w, y, **options), (x, w), ones)


@pytest.mark.parametrize("limit", [3_000_000, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
def test_peak_with_class_probabilities(dtype: torch.dtype, limit: int | None) -> None:
    n, d, v = 500, 32, 5000
    torch.manual_seed(0)
    x, w = torch.randn(n, d).to(dtype).requires_grad_(), torch.randn(v, d).to(dtype).requires_grad_()
    t = torch.randn(n, v).softmax(1).requires_grad_()
    planned = plan(n, v, d, dtype, soft_target=True, max_workspace_bytes=limit)
    assert planned.classes == v
    results = x.nbytes + w.nbytes + t.nbytes

    def run() -> Any:
        return torch.autograd.grad(nearlinear.linear_cross_entropy(x, w, t, max_workspace_bytes=limit), (x, w, t))

    run()
    peak = peak_bytes(run)
    assert peak <= results + planned.workspace_bytes + (64 << 10), f"{peak - results:,} beside the results"


def test_without_gradients_scores_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from nearlinear.linear_tiles import _Walker

    filled = []
    fill = _Walker.fill
    monkeypatch.setattr(_Walker, "fill", lambda self, begin, end: filled.append((begin, end)) or fill(self, begin, end))
    x, w, y = torch.randn(70, 9), torch.randn(131, 9), torch.randint(131, (70,))
    planned = plan(70, 131, 9, torch.float32, max_workspace_bytes=20_000)
    nearlinear.linear_cross_entropy(x, w, y, max_workspace_bytes=20_000)
    assert planned.products == 4
    assert len(filled) == -(-70 // planned.rows) * -(-131 // planned.classes)


def test_a_step_of_the_acceptance_size_fits_150_megabytes() -> None:
    """By formula, (2048, 512, 32000) float32: results and workspace; eager holds the logits and their gradient."""
    planned = plan(2048, 32000, 512, torch.float32)
    results = 4 * 512 * (2048 + 32000)
    assert planned.products == 3
    assert results + planned.workspace_bytes <= 150e6
    assert 2 * 2048 * 32000 * 4 > 500e6


@pytest.mark.parametrize(
    "record", [score_maps.ArcMargin(), score_maps.Harmonic(28.0), score_maps.CosineHarmonic(28.0)], ids=lambda r: r.name
)
def test_an_embedding_takes_no_room_from_the_tile(record: score_maps.ScoreMap) -> None:
    """No copy of the class vectors: the tiles of the plain head, at the acceptance size and for 200,000 faces within 1 GiB."""
    for n, v, limit in ((2048, 32000, None), (512, 200_000, 1 << 30)):
        plain, embedded = (plan(n, v, 512, torch.float32, score_map=m, max_workspace_bytes=limit) for m in (None, record))
        assert (embedded.rows, embedded.classes, embedded.products) == (plain.rows, plain.classes, 3)
        assert embedded.workspace_bytes <= 1.15 * plain.workspace_bytes


def test_the_formula_of_cuda() -> None:
    """(8192, 4096, 128256) bfloat16 on CUDA: a float32 tile, its 16-bit gradient, and the float32 accumulator of the weight's gradient."""
    n, d, v = 8192, 4096, 128256
    accumulator = 4 * v * d
    whole = plan(n, v, d, torch.bfloat16, device_type="cuda", max_workspace_bytes=8 << 30)
    assert whole.products == 3
    assert whole.workspace_bytes >= whole.rows * v * 6 + accumulator
    small = plan(n, v, d, torch.bfloat16, device_type="cuda")
    assert small.workspace_bytes <= DEFAULT_WORKSPACE_BYTES["cuda"] < accumulator
    assert (small.products, small.rows) == (4, n)  # all rows at once: each block of the weight's gradient is written once
    # the tile twice, a block's gradient before it is converted, the rows without what they may hold where ignored and their gradient
    assert small.workspace_bytes == 6 * n * small.classes + 4 * small.classes * d + 8 * n * d + 24 * 8 * n
    assert workspace(n, small.classes, n, v, d, torch.bfloat16, "cuda", None) == small.workspace_bytes


@pytest.mark.parametrize("n", [1, 7, 512, 4096])
@pytest.mark.parametrize("v", [1, 100, 50257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_a_plan_never_exceeds_its_limit(n: int, v: int, dtype: torch.dtype) -> None:
    for limit in (4 << 20, 16 << 20, 1 << 30):
        for device in ("cpu", "cuda"):
            found = plan(n, v, 64, dtype, device_type=device, max_workspace_bytes=limit)
            assert found.workspace_bytes <= limit
            assert 1 <= found.rows <= n
            assert 1 <= found.classes <= v
            assert found.products == (3 if found.classes == v else 4)
