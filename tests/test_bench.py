"""The benchmark runner measures what it says, its files follow the schema, its tables and plots show what the files hold."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nearlinear.__main__ import main
from nearlinear.bench import measure, roofline, run, table
from nearlinear.bench.job import Effort, Job
from nearlinear.bench.registry import CASES, Baseline, Case, compiled, load, register
from nearlinear.bench.schema import problems

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The document of ``bench --smoke``: every case and every baseline."""
    path = tmp_path_factory.mktemp("bench") / "smoke.json"
    assert main(["bench", "--smoke", "--device", "cpu", "--quiet", "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.timeout(300)
def test_smoke_runs_every_case_and_baseline(smoke):
    assert problems(smoke) == []
    for case in load():
        for name, baseline in {"ours": None, **case.baselines}.items():
            rows = [row for row in smoke["rows"] if row["case"] == case.name and row["impl"] == name]
            assert {row["pass"] for row in rows} == {"fwd", "full"}, (case.name, name)
            for row in rows:
                refusal = baseline.refuse(CPU, run.DTYPES[row["dtype"]]) if baseline else ""
                assert (row["status"], row["reason"]) == (("unsupported", refusal) if refusal else ("ok", "")), row
    assert {row["dtype"] for row in smoke["rows"] if row["case"] == "index"} == {"float32", "bfloat16"}


def test_every_baseline_computes_the_same_loss_and_gradient(smoke):
    """A rival that computes something else would be a strawman; a fast wrong row of ours would be a lie."""
    for row in smoke["rows"]:
        if row["error"]:
            exact = row["dtype"] == "float32" or row["impl"] == "ours" or row["impl"].endswith("_fp32")
            assert row["error"]["loss"] < (2e-6 if exact else 2e-2), row
            assert row["error"]["gradient"] < (2e-6 if row["dtype"] == "float32" else 1e-2), row


def test_smoke_times_are_those_of_the_clock(smoke):
    for row in smoke["rows"]:
        if row["status"] == "ok" and row["pass"] != "floor":
            assert row["repeats"] == 3
            assert row["gbs"] == pytest.approx(row["bytes"] / (row["ms"]["p50"] * 1e6))
            assert 0 < row["pct_roof"] < run.ROOF_TOLERANCE
            assert row["host_us"] > 0
            assert (row["compile_s"] is not None) == row["impl"].startswith("compiled")


def test_committed_results_follow_the_schema(smoke):
    for path in [*(ROOT / "bench/results").rglob("*.json")]:
        document = json.loads(path.read_text())
        assert problems(document) == [], path
        assert not document["smoke"], path
        assert not document["nearlinear"]["dirty"], path
    wrong = copy.deepcopy(smoke)
    wrong["rows"][0]["ms"] = None
    assert problems(wrong) == ["rows[0] must have times exactly if its status is ok"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.pop("roof"), "document lacks roof"),
        (lambda d: d.update(schema=2), "schema must be 1, got 2"),
        (lambda d: d["nearlinear"].pop("commit"), "nearlinear lacks commit"),
        (lambda d: d.update(rows=[]), "rows must not be empty"),
        (lambda d: d["rows"].append(d["rows"][0]), "repeats"),
        (lambda d: d["rows"][3].update(status="slow"), "rows[3].status must be one of"),
        (lambda d: d["rows"][3].update({"pass": "bwd"}), "rows[3].pass must be"),
        (lambda d: d["rows"][3].update(repeats=True), "rows[3].repeats must be"),
        (lambda d: d["rows"][3].update(status="oom", ms=None), "without a reason"),
        (lambda d: d["rows"][3]["ms"].update(p20=1e9), "must hold p20 <= p50 <= p80"),
    ],
)
def test_schema_finds(smoke, change, problem):
    document = copy.deepcopy(smoke)
    change(document)
    assert any(problem in found for found in problems(document)), problems(document)


# ---- the clock, the memory gauge, the floors


def test_interleave_alternates_the_order_and_prepares_outside():
    log = []
    calls = {name: (lambda name=name: log.append(name)) for name in "ab"}
    laps = measure.interleave(calls, CPU, seconds=0.0, rounds=(3, 9), prepare={"b": lambda: log.append("before b")})
    assert log == ["a", "before b", "b", "before b", "b", "a", "a", "before b", "b"]
    assert {name: len(found) for name, found in laps.items()} == {"a": 3, "b": 3}


def test_interleave_times_each_call_alone():
    import time

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


# ---- command line, tables, plots


def test_deadline_is_recorded_as_timed_out(tmp_path, capsys):
    path = tmp_path / "late.json"
    assert main(["bench", "--smoke", "--device", "cpu", "--quiet", "--deadline", "-1", "--case", "small", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert problems(document) == []
    assert {row["status"] for row in document["rows"]} == {"timeout"}
    assert "timeout: the deadline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "bench: op must be one of ['cross_entropy'], got nothing"),
        (["--sizes", "N=x"], "bench: sizes must be published, sweep or like N=4096,V=50257, got 'N=x'"),
        (["--case", "no such case"], "bench: no case has these sizes"),
    ],
)
def test_wrong_arguments(words, message, capsys):
    assert main(["bench", "--device", "cpu", *words]) == 2
    assert capsys.readouterr().err.strip() == message


def set_times(document, times):
    """The document with one case and dtype, and these medians."""
    document = copy.deepcopy(document)
    rows = [row for row in document["rows"] if row["case"] == "index" and row["dtype"] == "float32" and row["pass"] != "fwd"]
    for row in rows:
        if row["impl"] in times and row["status"] == "ok":
            row["ms"] = {"p20": times[row["impl"]] / 2, "p50": times[row["impl"]], "p80": times[row["impl"]] * 2}
    return {**document, "rows": rows}


def test_tables_compute_the_ratios(smoke):
    document = set_times(smoke, {"ours": 2.0, "eager": 12.0, "compiled": 1.0})
    lines = table.render(document, markdown=True).splitlines()
    heads, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], lines[2]))
    row = dict(zip(heads, cells, strict=True))
    assert row["ours, ms"] == "2 [1, 4]"
    assert row["eager"] == "12 [6, 24] (6.0x)"
    assert row["compiled"] == "1 [0.5, 2] (0.50x)"
    assert "eager_fp32" not in row  # refused everywhere
    assert lines[3] == ""
    plain = table.render(document, markdown=False)
    assert re.search(r"^eager +12 \[6, 24\] +6\.0x", plain, re.MULTILINE)
    assert "unsupported: Liger runs on CUDA only" in plain
    assert "SMOKE RUN" in plain


def test_a_stored_run_is_printed_and_red_tests_give_no_table(smoke, tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(smoke))
    assert main(["bench", "--from", str(path), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| case |")
    junit = tmp_path / "junit.xml"
    junit.write_text('<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1"/></testsuites>')
    tests = run._tests(str(junit), "abc")
    assert tests == {"status": "red", "passed": 2, "failed": 2, "skipped": 1, "commit": "abc"}
    path.write_text(json.dumps({**smoke, "tests": tests}))
    assert main(["bench", "--from", str(path)]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "2 tests of this commit failed" in streams.err


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib")
    matplotlib.use("agg")
    plt = pytest.importorskip("matplotlib.pyplot", reason="plots need matplotlib")
    yield plt
    plt.close("all")


def stamp(ax):
    return [text.get_text() for text in ax.texts if text.get_text().startswith("nearlinear ")]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_bars_show_the_numbers_of_the_file(smoke, pyplot):
    from nearlinear.plotting import plot_bars

    document = set_times(smoke, {"ours": 2.0, "eager": 12.0, "compiled": 8.0})
    ax = plot_bars(document)
    assert legend(ax) == ["ours", "eager", "compiled"]
    assert [bar.get_width() for bar in ax.patches] == [1.0, 6.0, 4.0]
    assert [text.get_text() for text in ax.texts][:3] == ["2", "12", "8"]
    assert "time of ours" in ax.get_xlabel()
    (corner,) = stamp(ax)
    assert (smoke["nearlinear"]["commit"] or "unknown commit")[:9] in corner
    assert "SMOKE" in corner
    assert len({bar.get_hatch() for bar in ax.patches}) == 3  # apart in greyscale
    memory = plot_bars(document, quantity="memory")
    assert memory.get_xlabel() == "peak memory above the inputs in MB"
    limit = plot_bars(document, quantity="roofline")
    assert [bar.get_width() for bar in limit.patches] == [row["pct_roof"] for row in document["rows"] if row["pct_roof"]]


def test_scaling_shows_lines_bands_limit_and_failures(smoke, pyplot):
    from nearlinear.plotting import plot_scaling

    small, large = (set_times(smoke, {"ours": 2.0 * k, "eager": 12.0 * k, "compiled": 8.0 * k}) for k in (1, 10))
    for row in large["rows"]:
        row["sizes"] = {**row["sizes"], "V": 330}
        if row["impl"] == "eager":
            row.update(status="oom", reason="memory", ms=None)
    ax = plot_scaling({**small, "rows": small["rows"] + large["rows"]})
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines["ours float32"].get_ydata()) == [2.0, 20.0]
    assert list(lines["ours float32"].get_xdata()) == [33, 330]
    assert list(lines["eager float32"].get_ydata()) == [12.0]
    assert "limit of the machine float32" in lines
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "log", "V", "time in ms")
    assert len(ax.collections) == 3  # bands
    assert "oom" in [text.get_text() for text in ax.texts]
    assert len(stamp(ax)) == 1
    with pytest.raises(ValueError, match="several sizes"):
        plot_scaling(small)


def test_gradient_error_plot(smoke, pyplot):
    from nearlinear.plotting import plot_gradient_error

    _, given = pyplot.subplots()
    ax = plot_gradient_error(smoke, ax=given)
    assert ax is given
    assert {"ours: gradient", "ours: loss", "eager: gradient", "compiled_fp32: loss"} <= set(legend(ax))
    ours = next(line for line in ax.get_lines() if line.get_label() == "ours: gradient")
    assert list(ours.get_xdata()) == [row["error"]["gradient"] for row in smoke["rows"] if row["impl"] == "ours" and row["pass"] == "full"]
    assert ax.get_xscale() == "log"


def test_training_curves_stay_apart_where_they_are_equal(pyplot):
    from nearlinear.plotting import plot_training_curves

    ax = plot_training_curves({"eager": [3.0, 2.0, 1.0], "nearlinear": [3.0, 2.0, 1.0]}, steps=[0, 10, 20], ylabel="loss in nats")
    first, second = ax.get_lines()
    assert list(first.get_xdata()) == [0, 10, 20]
    assert list(second.get_ydata()) == [3.0, 2.0, 1.0]
    assert first.get_linewidth() > second.get_linewidth()
    assert first.get_linestyle() != second.get_linestyle()
    assert legend(ax) == ["eager", "nearlinear"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss in nats")
    assert len(stamp(ax)) == 1


@pytest.mark.parametrize("kind", ["time", "memory", "roofline", "error"])
def test_plot_command_writes_a_picture(kind, smoke, pyplot, tmp_path, capsys):
    source, out = tmp_path / "run.json", tmp_path / "picture.svg"
    source.write_text(json.dumps(smoke))
    assert main(["plot", str(source), "--kind", kind, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text().count("<path") > 20


def test_plot_command_refuses_what_is_no_result_file(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text('{"schema": 1}')
    assert main(["plot", str(path)]) == 2
    assert f"plot: {path} is not a result file: document lacks" in capsys.readouterr().err


# ---- the GPU run


@pytest.mark.timeout(240)
def test_gpu_run_dry(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(ROOT / "bench/run_gpu.sh"), "--dry-run"], env=environment, capture_output=True, text=True, check=False
    )
    steps = json.loads((tmp_path / "out/steps.json").read_text())
    log = (tmp_path / "out/log.txt").read_text()
    assert done.returncode == 0, done.stdout + log
    assert steps["dry_run"] is True
    assert {step["name"]: step["status"] for step in steps["steps"]} == {
        "build": "skipped", "env": "ok", "warm-up": "ok", "tests": "ok", "sanitize memcheck": "skipped", "sanitize racecheck": "skipped",
        "bench": "ok",
    }  # fmt: skip
    assert all(step["reason"] for step in steps["steps"] if step["status"] != "ok")
    assert json.loads((tmp_path / "out/env.json").read_text())["ok"] is True
    assert problems(json.loads((tmp_path / "out/bench.json").read_text())) == []
    assert [tool["name"] for tool in json.loads((tmp_path / "out/sanitizer.json").read_text())["tools"]] == ["memcheck", "racecheck"]
    assert "| case |" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith("results in out")


def test_gpu_run_fits_into_nine_minutes_and_stops_where_a_step_hangs(tmp_path):
    text = (ROOT / "bench/run_gpu.sh").read_text()
    limits = [int(value) for value in re.findall(r"(?:step [\w-]+|limited) (\d+) ", text)]
    sanitizer_runs = 2
    total = sum(limits) + (sanitizer_runs - 1) * 30
    assert len(limits) == 6
    assert total <= int(re.search(r"TOTAL=(\d+)", text).group(1)) == 540
    # an interpreter that never answers: the self-test is stopped, recorded, and the run ends red
    hang = tmp_path / "python"
    hang.write_text("#!/bin/sh\nsleep 600\n")
    hang.chmod(0o755)
    script = tmp_path / "bench/run_gpu.sh"
    script.parent.mkdir()
    script.write_text(text.replace("step env 30", "step env 1"))
    environment = {**os.environ, "PYTHON": str(hang), "OUT": str(tmp_path / "out")}
    done = subprocess.run(["bash", str(script), "--dry-run"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    steps = json.loads((tmp_path / "out/steps.json").read_text())["steps"]
    assert (steps[-1]["name"], steps[-1]["status"], steps[-1]["reason"]) == ("env", "timeout", "stopped after 1 s")
