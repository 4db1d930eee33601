"""Result files: what a smoke run writes, the schema, tables, plots and the commands that read them."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from bench_smoke import smoke_fixture  # noqa: F401  the fixture
from nearlinear.__main__ import main
from nearlinear.bench import run, table
from nearlinear.bench.registry import load
from nearlinear.bench.schema import problems

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
OPS = sorted({case.op for case in load()})


@pytest.mark.timeout(300)
def test_smoke_runs_every_case_and_baseline(smoke):
    assert problems(smoke) == []
    for case in load():
        for name, baseline in {"ours": None, **case.baselines}.items():
            rows = [row for row in smoke["rows"] if row["case"] == case.name and row["impl"] == name]
            assert {row["pass"] for row in rows} == set(case.passes), (case.name, name)
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
            assert (row["error"]["gradient"] or 0) < (2e-6 if row["dtype"] == "float32" else 1e-2), row


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


SHOWN = [
    (page.name, block)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for block in re.findall(r"<!-- bench:begin -->\n(.*?)\n<!-- bench:end -->", page.read_text(), re.DOTALL)
]


@pytest.mark.parametrize(("page", "shown"), SHOWN, ids=[page for page, _ in SHOWN])
def test_pages_show_their_stored_runs(page, shown):
    stored = re.search(r"--json ([^\s`]+)", shown)[1]
    assert shown == table.render(json.loads((ROOT / stored).read_text()), markdown=True)


def test_the_readme_shows_a_run():
    assert "README.md" in dict(SHOWN)


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
        (
            ["nothing"],
            f"bench: op must be one of {OPS}, got nothing",
        ),
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
