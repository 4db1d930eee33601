"""The benchmark runner measures what it says: clock, memory gauge, floors, rivals that fail, overwrite or err."""

import dataclasses
import functools
import re
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nearlinear.bench import measure, roofline, run, table
from nearlinear.bench.job import Effort, Job
from nearlinear.bench.registry import CASES, Baseline, Case, compiled, load, register
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def test_interleave_alternates_the_order_and_prepares_outside():
    log = []
    calls = {name: (lambda name=name: log.append(name)) for name in "ab"}
    laps = measure.interleave(calls, CPU, seconds=0.0, rounds=(3, 9), prepare={"b": lambda: log.append("before b")})
    assert log == ["a", "before b", "b", "before b", "b", "a", "a", "before b", "b"]
    assert {name: len(found) for name, found in laps.items()} == {"a": 3, "b": 3}


def test_interleave_times_each_call_alone():
    laps = measure.interleave({"nap": lambda: time.sleep(0.02), "none": lambda: None}, CPU, seconds=0.0, rounds=(3, 3))
    assert all(lap.wall_ms >= 20 for lap in laps["nap"])
    assert all(lap.cpu_ms < 15 for lap in laps["nap"])  # asleep: no process time
    assert min(lap.wall_ms for lap in laps["none"]) < 1


def test_quantiles():
    assert measure.quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == pytest.approx({"p20": 2.0, "p50": 3.5, "p80": 5.0})


@pytest.mark.skipif(sys.platform != "linux", reason="the gauge reads /proc")
def test_peak_memory_is_the_peak_above_what_was_held():
    held = torch.ones(5_000_000)

    def large_then_small():
        x = torch.ones(12_000_000)  # 48 MB, and 24 MB while both live
        y = x[:6_000_000] * 2
        del x
        return y

    def many_small_blocks():
        return [torch.ones(8192) for _ in range(400)]  # 13 MB from the heap

    for _ in range(2):  # the second time the heap holds freed blocks
        assert measure.peak_mb(large_then_small, CPU) == pytest.approx(72, rel=0.03)
        assert measure.peak_mb(many_small_blocks, CPU) == pytest.approx(13.1, rel=0.1)
        assert measure.peak_mb(lambda: held.sum(), CPU) < 1


@pytest.mark.parametrize("nbytes", [400, (1 << 22) + 4 * 4097])
def test_the_copy_floor_copies(nbytes):
    source, target = torch.arange(nbytes // 4).float(), torch.zeros(nbytes // 4)
    roofline._copier(source, target)()
    assert torch.equal(source, target)
    found = roofline.floors(nbytes, CPU)
    assert set(found) == set(roofline.FLOORS)
    assert [moved for _, moved in found.values()] == [nbytes // 4 * 4 * k for k in (1, 2, 2)]


# ---- jobs


def toy(**fields):
    """A case outside the registry: mean of squares of 8 x 4 numbers, with a wrong or right rival."""

    def inputs(sizes, dtype, device):
        return (torch.randn(sizes["N"], 4, dtype=dtype).requires_grad_(),)

    def square(x):
        return x.square().mean()

    defaults = {
        "family": "toy", "op": "toy", "name": "toy", "ours": square, "definition": square, "baselines": {}, "inputs": inputs,
        "sizes": {"cpu": [{"N": 8}]}, "tiny": {"N": 8}, "bytes": lambda sizes, itemsize: {"fwd": 1, "full": 2},
        "moved": lambda sizes, itemsize: {"fwd": 1, "full": 2},
    }  # fmt: skip
    return Case(**{**defaults, **fields})


def rows_of(case, dtype=torch.float32, sizes=None):
    job = Job(case, dtype, sizes or {"N": 8}, CPU)
    return {(r["impl"], r["pass"]): r for r in job.measure(list(case.baselines), Effort(0.0, (3, 3)), lambda dtype: 1.0)}


def test_a_rival_that_overwrites_its_input_harms_nobody():
    def greedy(x):
        loss = x.square().mean() + 0  # the graph holds the values
        value, grad = loss.detach(), 2 * x.detach() / x.numel()
        with torch.no_grad():
            x.zero_()
        return Stored.apply(x, value, grad)

    class Stored(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, value, grad):
            ctx.grad = grad
            return value.clone()

        @staticmethod
        def backward(ctx, upstream):
            return upstream * ctx.grad, None, None

    seen = []

    def watched(x):
        seen.append(float(x.detach().abs().sum()))
        return x.square().mean()

    case = toy(ours=watched, baselines={"greedy": Baseline(greedy, overwrites_input=True)})
    found = rows_of(case)
    assert found["greedy", "full"]["status"] == "ok"
    assert found["greedy", "full"]["error"]["gradient"] < 1e-6
    assert 0.0 not in seen
    # the same rival without the declaration is caught by the watch above
    seen.clear()
    rows_of(toy(ours=watched, baselines={"greedy": Baseline(greedy)}))
    assert 0.0 in seen


def test_what_a_rival_fails_with_is_a_result_and_what_we_fail_with_is_an_error():
    def refuse(x):
        raise NotImplementedError("no kernel for this")

    def hog(x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    found = rows_of(toy(baselines={"refuses": Baseline(refuse), "hog": Baseline(hog), "works": Baseline(toy().ours)}))
    assert [found["refuses", which]["status"] for which in ("fwd", "full")] == ["unsupported"] * 2
    assert found["refuses", "fwd"]["reason"] == "NotImplementedError: no kernel for this"
    assert found["hog", "full"]["status"] == "oom"
    assert found["works", "full"]["status"] == found["ours", "full"]["status"] == "ok"
    with pytest.raises(NotImplementedError, match="no kernel"):
        rows_of(toy(ours=refuse))


def test_the_error_of_a_wrong_rival_is_visible():
    found = rows_of(toy(baselines={"wrong": Baseline(lambda x: 1.01 * x.square().mean())}))
    assert found["wrong", "full"]["error"]["loss"] == pytest.approx(0.01, rel=1e-3)
    assert found["wrong", "full"]["error"]["gradient"] == pytest.approx(0.01, rel=1e-3)
    assert found["ours", "full"]["error"]["gradient"] < 1e-6


def test_a_declaration_above_what_the_machine_can_do_is_reported():
    rows = list(rows_of(toy(bytes=lambda sizes, itemsize: {"fwd": 1, "full": 10**12})).values())
    assert [(row["impl"], row["pass"]) for row in run.over_the_roof(rows)] == [("ours", "full")]


def test_flops_are_held_against_the_gemm_rate():
    found = rows_of(toy(flops=lambda sizes: {"fwd": 0, "full": 10**9}))["ours", "full"]
    # 1e9 FLOPs at the 1 TFLOP/s that rows_of claims take 1 ms
    assert found["pct_roof"] == pytest.approx(100 / found["ms"]["p50"])
    assert found["tflops"] == pytest.approx(1e9 / (found["ms"]["p50"] * 1e9))


def test_products_alone_are_timed_beside_the_rivals_and_are_the_limit():
    log = []

    def products(inputs):
        assert inputs[0].dtype == torch.float32
        return {which: lambda which=which: (log.append(which), time.sleep(1e-3)) for which in ("fwd", "full")}

    case = toy(
        flops=lambda sizes: {"fwd": 10**6, "full": 3 * 10**6}, products=products, ours=lambda x: (time.sleep(2e-3), x.square().mean())[1]
    )
    # 16-bit products are emulated where their rate is lower
    job = Job(case, torch.bfloat16, {"N": 8}, CPU)
    rate = {torch.float32: 1.0, torch.bfloat16: 0.1}
    found = {(r["impl"], r["pass"]): r for r in job.measure([], Effort(0.0, (3, 3)), rate.__getitem__)}
    assert log == ["fwd"] * 4 + ["full"] * 4
    for which, flops in (("fwd", 10**6), ("full", 3 * 10**6)):
        alone, ours = found[f"products {which}", "floor"], found["ours", which]
        assert alone["tflops"] == pytest.approx(flops / (alone["ms"]["p50"] * 1e9))
        assert ours["pct_roof"] == pytest.approx(100 * alone["ms"]["p50"] / ours["ms"]["p50"])


def test_yardsticks_are_timed_and_shown_but_are_no_rivals():
    def sort(x):
        assert not x.requires_grad
        time.sleep(1e-3)

    job = Job(toy(yardsticks={"torch.sort": sort}), torch.float32, {"N": 8}, CPU)
    rows = job.measure([], Effort(0.0, (3, 3)), lambda dtype: 1.0)
    (row,) = (r for r in rows if r["impl"] == "torch.sort")
    assert (row["pass"], row["repeats"], row["error"]) == ("floor", 3, None)
    assert row["ms"]["p50"] > 1
    assert list(table.yardsticks(rows).values()) == [{"torch.sort": row}]
    text = table._plain(table.group(rows), table.yardsticks(rows))
    assert text.count("torch.sort, no loss") == 2


def test_products_of_a_head_are_those_of_the_loss():
    """Their FLOPs, and what they compute: scores and both gradients, without the loss between."""
    from nearlinear.bench.cases import linear_cross_entropy as cases

    x, w = torch.randn(3, 2), torch.randn(5, 2)
    counter = FlopCounterMode(display=False)
    for which, call in cases.products((x, w, torch.tensor([0, 1, 2]))).items():
        with counter:
            call()
        assert counter.get_total_flops() == cases.flops({"N": 3, "D": 2, "V": 5})[which]


def test_flops_of_polynomial_attention_are_those_of_its_products():
    """Forward and with the backward, of the plain torch that has no product beside them."""
    from nearlinear.bench.cases import taylor_attention as cases

    case = CASES["taylor_attention", "degree 2, long"]
    tensors = case.inputs(case.tiny, torch.float32, CPU)
    counter = FlopCounterMode(display=False)
    with counter:
        loss = cases.squared(functools.partial(cases.by_moments, 2))(*tensors)
    assert counter.get_total_flops() == case.flops(case.tiny)["fwd"]
    with counter:
        loss.backward()
    assert counter.get_total_flops() == case.flops(case.tiny)["full"] - case.flops(case.tiny)["fwd"]


def test_pairs_of_windows_are_counted():
    from nearlinear.bench.cases import tensor_attention as cases
    from nearlinear.reference.tensor_attention import seen

    for n in (7, 40):
        near1, near2 = (seen(n, n, [left, 0], CPU) for left in cases.WIDE)
        assert cases.pairs_of((32, 512), n) == int((near1.sum(1) * near2.sum(1)).sum())


def test_the_first_case_of_each_op_comes_before_the_second_of_any():
    cases = load()
    ops = {case.op for case in cases}
    assert {case.op for case in cases[: len(ops)]} == ops
    assert [case.name for case in load(["cross_entropy"])][:2] == ["index", "smoothing + class weights + z-loss"]


def test_compiled_baselines_are_compiled():
    import torch._dynamo.testing as dynamo_testing

    counter = dynamo_testing.CompileCounter()
    case = toy(baselines={"compiled": compiled(lambda x: F.relu(x).mean())})
    original = torch.compile
    options = []
    try:
        torch.compile = lambda run, **kwargs: options.append(kwargs) or original(run, backend=counter, **kwargs)
        rows_of(case)
    finally:
        torch.compile = original
    assert options == [{"fullgraph": True, "dynamic": False}]
    assert counter.frame_count >= 1


def test_registry_refuses_a_second_case_of_the_same_name():
    load()
    case = next(iter(CASES.values()))
    with pytest.raises(ValueError, match="exists already"):
        register(dataclasses.replace(case))


def test_bytes_are_those_of_the_kernel_header():
    header = (ROOT / "csrc/cpu/cross_entropy.cpp").read_text().split("// Cost:")[1].split(";")[0]
    reads_forward = re.search(r"reads N V forward", header)
    reads_and_writes_backward = re.search(r"reads and writes N V backward", header)
    assert reads_forward
    assert reads_and_writes_backward
    load()
    case = CASES["cross_entropy", "index"]
    assert case.moved({"N": 3, "V": 5}, 4) == {"fwd": 60, "full": 60 + 120}
    assert case.bytes({"N": 3, "V": 5}, 4) == {"fwd": 60, "full": 120}
