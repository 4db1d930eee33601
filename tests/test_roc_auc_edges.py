"""Degenerate inputs of the ROC metrics, what other implementations get wrong, large counts, memory, and the metric over processes."""

from __future__ import annotations

import socket

import nearlinear
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import Draw, same
from test_roc_auc import problem
from torch import Tensor

ops = torch.ops.nearlinear
NAN, INF = float("nan"), float("inf")


def auc(s: list[float], y: list[int], **options: object) -> float:
    return float(nearlinear.roc_auc_score(torch.tensor(s, dtype=torch.float32), torch.tensor(y), **options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_zeros_and_infinities_are_ties(dtype: torch.dtype) -> None:
    for a, b in ((0.0, -0.0), (-0.0, 0.0), (INF, INF), (-INF, -INF)):
        s = torch.tensor([a, b], dtype=dtype)
        assert float(nearlinear.roc_auc_score(s, torch.tensor([True, False]))) == 0.5
        assert nearlinear.roc_curve(s, torch.tensor([True, False]))[0].tolist() == [0.0, 1.0]
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # subnormal
    s = torch.tensor([tiny, 0.0, -tiny, -INF, INF], dtype=dtype)
    assert ops.roc_auc_counts(s, torch.tensor([1, 0, 0, 0, 1]).bool(), None, 1).tolist() == [[12, 2, 3]]


def test_subnormals_are_apart_where_arithmetic_flushes_them() -> None:
    s, y = torch.tensor([1e-45, 0.0]), torch.tensor([True, False])
    torch.set_flush_denormal(True)
    try:
        assert float(nearlinear.roc_auc_score(s, y)) == 1.0
    finally:
        torch.set_flush_denormal(False)


def test_not_a_number() -> None:
    """NaN among the scores gives NaN, of either sign and label; torchmetrics gives 0.5."""
    for nan in (NAN, -NAN):
        for y in ([1, 0, 0], [0, 1, 0]):
            assert auc([nan, 1, 2], y) != auc([nan, 1, 2], y)
            w = torch.tensor([1.0, 2, 3])
            assert auc([nan, 1, 2], y, sample_weight=w) != auc([nan, 1, 2], y, max_fpr=0.5)
            for curve in nearlinear.roc_curve(torch.tensor([nan, 1, 2]), torch.tensor(y))[:2]:
                assert curve.isnan().all()
    assert auc([NAN, 1, 2], [1, 0, 1], sample_weight=torch.tensor([0.0, 1, 1])) == 1.0
    fpr, tpr, _ = nearlinear.roc_curve(torch.tensor([NAN, 1, 2]), torch.tensor([1, 0, 1]), sample_weight=torch.tensor([0.0, 1, 1]))
    assert (fpr.tolist(), tpr.tolist()) == ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    columns = torch.tensor([[NAN, 0.0, 0], [1, 1, 0], [0, 0, 1]])
    found = nearlinear.roc_auc_score(columns, torch.tensor([0, 1, 2]), multi_class="ovr", average=None)
    assert found.isnan().tolist() == [True, False, False]


def test_one_label_only() -> None:
    """NaN, without an exception or a number: others return 0, 0.5 or raise."""
    for s, y in (([1.0, 2.0], [1, 1]), ([1.0, 2.0], [0, 0]), ([], [])):
        value, valid = nearlinear.roc_auc_score(torch.tensor(s), torch.tensor(y, dtype=torch.int64), return_valid=True)
        assert value.isnan()
        assert not valid
    assert auc([1, 2], [0, 1], sample_weight=torch.zeros(2)) != 1


def test_groups_with_one_label_are_left_out_and_counted() -> None:
    """torchrec counts them as 0.5. A NaN that is left out with its group does not count either."""
    s, y = torch.tensor([1.0, 2, 3, 4, NAN, 6]), torch.tensor([0, 1, 1, 0, 1, 1])
    g = torch.tensor([5, 5, 9, 9, 7, 7])
    value, valid = nearlinear.roc_auc_score(s, y, group=g, average=None, return_valid=True)
    torch.testing.assert_close(value, torch.tensor([1.0, NAN, 0.0], dtype=torch.float64), equal_nan=True)
    assert valid.tolist() == [True, False, True]
    assert float(nearlinear.roc_auc_score(s, y, group=g)) == 0.5
    w = torch.tensor([1.0, 1, 1, 5, 1, 1])
    assert float(nearlinear.roc_auc_score(s, y, group=g, sample_weight=w, average="weighted")) == 0.25
    assert nearlinear.roc_auc_score(s[4:], y[4:], group=g[4:]).isnan()
    y[5] = 0  # now the NaN is of a group that counts
    assert nearlinear.roc_auc_score(s, y, group=g).isnan()
    y[5] = 1
    assert nearlinear.roc_auc_score(s, y, group=g, num_groups=20, average=None).isfinite().sum() == 2


@pytest.mark.parametrize("order", [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]])
def test_all_tied(order: list[int]) -> None:
    """torchrec and fbgemm: 1 or 0, by the order of the labels."""
    assert auc([2.5] * 4, order) == 0.5
    assert auc([2.5] * 4, order, sample_weight=torch.tensor([0.1, 0.2, 0.3, 0.4])) == pytest.approx(0.5, abs=1e-15)
    assert auc([2.5] * 4, order, max_fpr=0.3) == pytest.approx(0.5, abs=1e-15)


def test_logits_are_not_squashed() -> None:
    """A sigmoid ties large logits: torchmetrics is off by 0.0166 for logits times 20, and gives 0.5 for larger ones."""
    s, y, _, _ = problem(500, "normal").values()
    expected = nearlinear.roc_auc_score(s, y)
    for scale in (20, 1e4, 1e30):
        same(nearlinear.roc_auc_score(s * scale, y), expected, f"logits x {scale}")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_labels(dtype: torch.dtype) -> None:
    s, y, _, _ = problem(50).values()
    expected = nearlinear.roc_auc_score(s, y)
    same(nearlinear.roc_auc_score(s, y.to(dtype)), expected, "0 and 1")
    if dtype.is_signed:
        same(nearlinear.roc_auc_score(s, 2 * y.to(dtype) - 1), expected, "-1 and 1")


def test_labels_that_cannot_be_raised_give_nan() -> None:
    compiled = torch.compile(nearlinear.roc_auc_score, fullgraph=True, backend="eager")
    s = torch.tensor([1.0, 2, 3])
    assert float(compiled(s, torch.tensor([0, 1, 1]))) == 1
    assert compiled(s, torch.tensor([0, 1, 2])).isnan()


def test_counts_beyond_float32() -> None:
    """float32 counters stop at 2^24; the pairs need 64 bits."""
    n = 2**24 + 3
    s, y = torch.zeros(n + 2), torch.zeros(n + 2, dtype=torch.bool)
    s[-2:], y[-2:] = torch.tensor([1.0, -1.0]), True
    assert ops.roc_auc_counts(s, y, None, 1).tolist() == [[2 * n, 2, n]]
    y[: n // 2] = True
    assert ops.roc_auc_counts(s, y, None, 1).tolist() == [[(n // 2 + 2) * (n - n // 2), n // 2 + 2, n - n // 2]]


def test_many_groups_in_one_pass() -> None:
    draw = Draw()
    n, groups = 300_000, 100_000
    g = (groups * torch.rand(n, generator=draw.generator) ** 3).long()  # some large, many empty
    s, y = (3 * draw.normal(n)).round(), draw.labels(2, n).bool()
    counts = ops.roc_auc_counts(s, y, g, groups)
    assert counts[:, 1:].sum() == n
    chosen = [0, 1, 7, 5000, 99_999]
    for k in chosen:
        same(ops.roc_auc_counts(s[g == k], y[g == k], None, 1)[0], counts[k], str(k))


@pytest.mark.parametrize(("weighted", "most"), [(False, 8), (True, 16)])
def test_memory(weighted: bool, most: int) -> None:
    """Bytes per element beyond the inputs, as the kernel's header says."""
    from nearlinear.bench.measure import peak_mb

    n = 4_000_000
    s, y, w = torch.randn(n), torch.rand(n) < 0.3, torch.rand(n) + 0.5
    call = (lambda: ops.roc_auc_sums(s, y, w, None, 1, 1.0)) if weighted else (lambda: ops.roc_auc_counts(s, y, None, 1))
    call()
    peak = peak_mb(call, torch.device("cpu"))
    if peak is None:
        pytest.skip("the gauge reads /proc")
    assert peak < (most + 0.5) * n / 1e6


# ---- the metric


def test_metric_over_batches() -> None:
    s, y, w, g = problem(300).values()
    for names, options in (
        ((), {}), (("sample_weight",), {"max_fpr": 0.2}), (("group",), {"average": "weighted", "return_valid": True}),
        (("group",), {"num_groups": 8, "average": None}),
    ):  # fmt: skip
        given = {name: {"sample_weight": w, "group": g}[name] for name in names}
        expected = nearlinear.roc_auc_score(s, y, **given, **options)
        metrics = [nearlinear.RocAUC(**options) for _ in range(2)]
        for begin in range(0, 300, 50):
            part = slice(begin, begin + 50)
            metrics[begin // 150].update(s[part], y[part], **{name: t[part] for name, t in given.items()})
        metrics[0].merge(metrics[1])
        torch.testing.assert_close(metrics[0].compute(), expected, rtol=1e-14, atol=0, equal_nan=True)
        metrics[0].reset()
        empty = metrics[0].compute()
        assert (empty[0] if isinstance(empty, tuple) else empty).isnan().all()
    columns = torch.stack([s, -s, s * s], 1)
    metric = nearlinear.RocAUC(multi_class="ovo")
    assert metric.compute().isnan()
    metric.update(columns, g % 3)
    same(metric.compute(), nearlinear.roc_auc_score(columns, g % 3, multi_class="ovo"), "classes")


def test_metric_keeps_copies() -> None:
    s, y = torch.tensor([1.0, 2.0]), torch.tensor([False, True])
    metric = nearlinear.RocAUC()
    metric.update(s, y)
    s.neg_(), y.logical_not_().logical_not_()
    assert metric.compute() == 1


SHARES = (7, 0, 30, 63)  # one rank has no sample, the first no positive


def ranked() -> dict[str, Tensor]:
    p = problem(sum(SHARES))
    p["target"][: SHARES[0]] = False
    return p


def work(rank: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(SHARES))
    begin, p = sum(SHARES[:rank]), ranked()
    for names, options in (((), {}), (("sample_weight", "group"), {"average": "weighted"})):
        metric = nearlinear.RocAUC(process_group=dist.group.WORLD, **options)
        mine = {name: t[begin : begin + SHARES[rank]] for name, t in p.items() if name in ("input", "target", *names)}
        if SHARES[rank]:
            metric.update(**mine)
        expected = nearlinear.roc_auc_score(**{name: p[name] for name in mine}, **options)
        torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=0)
    dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_metric_over_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port,), nprocs=len(SHARES))


def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib")
    matplotlib.use("agg")
    from nearlinear.plotting import plot_roc_curve

    p = problem(100)
    curve = nearlinear.roc_curve(p["input"], p["target"])
    ax = plot_roc_curve({"model": curve, "reverse": nearlinear.roc_curve(-p["input"], p["target"])})
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    area = float(nearlinear.roc_auc_score(p["input"], p["target"]))
    assert labels == [f"model: {area:.4f}", f"reverse: {1 - area:.4f}", "chance: 0.5"]
    assert list(ax.lines[0].get_xdata()) == curve[0].tolist()
    assert ax.get_xlabel() == "false positive rate"
