"""The command line, the self-test, the table of implementations, and the progress bar."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nearlinear import environment, implementations, reference, self_test
from nearlinear.__main__ import main
from nearlinear.progress import Progress, progress

ROOT = Path(__file__).resolve().parents[1]
OPS = set(implementations.ops())


def test_env_names_versions_and_tests_every_op(capsys):
    assert main(["env", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert f"torch {torch.__version__}" in text
    assert "SIMD" in text
    for op in implementations.ops():
        line = next(line for line in text.splitlines() if line.startswith(op + " "))
        assert line.split()[1] in ("C++", "Python")
        assert " ok " in line
    assert f"{len(implementations.ops())} of {len(implementations.ops())} self-tests on cpu agree" in text


def test_env_json_holds_what_a_bug_report_needs(capsys):
    assert main(["env", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["versions"]["torch"] == torch.__version__
    assert report["nearlinear"]["build_info"]["simd"] in ("baseline", "x86-64-v3", "x86-64-v4")
    assert {entry["op"] for entry in report["self_test"]} == set(implementations.ops())
    assert {(entry["op"], entry["key"]) for entry in report["implementations"]} == {
        (op, key) for op in implementations.ops() for key in ("CPU", "CUDA")
    }


@pytest.mark.parametrize("op", sorted(OPS))
def test_env_fails_when_an_op_disagrees(op, monkeypatch, capsys):
    test = self_test.SELF_TESTS[op]
    # one part in a thousand, or one position
    wrong = dataclasses.replace(test, ours=lambda *leaves: [y + 1 if not y.is_floating_point() else y * 1.001 for y in test.ours(*leaves)])
    monkeypatch.setitem(self_test.SELF_TESTS, op, wrong)
    assert main(["env", "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert f"{op}: FAILED on cpu: relative error above" in text
    assert f"{len(OPS) - 1} of {len(OPS)} self-tests" in text


def test_env_fails_when_only_a_gradient_disagrees(monkeypatch):
    test = self_test.SELF_TESTS["logit_stats"]
    # same values, gradient off by 1 %
    wrong = dataclasses.replace(test, ours=lambda x: [y.detach() + 1.01 * (y - y.detach()) for y in test.ours(x)])
    monkeypatch.setitem(self_test.SELF_TESTS, "logit_stats", wrong)
    (outcome,) = [o for o in self_test.self_test("cpu") if o.op == "logit_stats"]
    assert outcome.value < self_test.TOLERANCE
    assert outcome.gradient == pytest.approx(0.01, rel=0.01)
    assert not outcome.ok


def test_env_fails_when_an_op_has_lost_its_gradient(monkeypatch):
    test = self_test.SELF_TESTS["linear_logit_stats"]
    lost = dataclasses.replace(test, ours=lambda *leaves: [y.detach() for y in test.ours(*leaves)])
    monkeypatch.setitem(self_test.SELF_TESTS, "linear_logit_stats", lost)
    (outcome,) = [o for o in self_test.self_test("cpu") if o.op == "linear_logit_stats"]
    assert not outcome.ok
    assert "does not require grad" in outcome.reason


def test_env_fails_on_nan_on_an_exception_and_on_an_op_without_a_test(monkeypatch):
    def refuse(x):
        raise RuntimeError("refused")

    test = self_test.SELF_TESTS["logit_stats"]
    monkeypatch.setitem(
        self_test.SELF_TESTS, "logit_stats", dataclasses.replace(test, ours=lambda x: [y * float("nan") for y in test.ours(x)])
    )
    monkeypatch.setitem(self_test.SELF_TESTS, "soft_logit_stats", dataclasses.replace(test, ours=refuse))
    monkeypatch.delitem(self_test.SELF_TESTS, "first_invalid_target")
    outcomes = {outcome.op: outcome for outcome in self_test.self_test("cpu")}
    assert outcomes["logit_stats"].value == float("inf")
    assert outcomes["soft_logit_stats"].reason == "RuntimeError: refused"
    assert outcomes["first_invalid_target"].reason == "no self-test is defined for this op"
    assert {op for op, outcome in outcomes.items() if outcome.ok} == OPS - {"logit_stats", "soft_logit_stats", "first_invalid_target"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is absent")
def test_env_fails_on_a_device_that_was_asked_for_and_is_absent(capsys):
    assert main(["env", "--device", "cuda"]) == 1
    assert f"0 of {len(OPS)} self-tests on cuda agree" in capsys.readouterr().out


def test_implementations_name_files_that_exist():
    found = implementations.implementations()
    assert {entry.op for entry in found} == OPS
    for entry in found:
        assert entry.kind in ("C++", "Triton", "Python", "missing")
        assert (entry.kind == "missing") == bool(entry.reason)
        assert implementations.family_of(entry.op) in reference.__all__
        if entry.kind != "missing":
            assert (ROOT / entry.file).exists(), entry
    served = {entry.op: (entry.kind, entry.file) for entry in found if entry.key == "CPU"}
    assert served["logit_stats"] == ("C++", "csrc/cpu/cross_entropy.cpp")
    assert served["linear_row_loss"] == ("Python", "python/nearlinear/ops/linear_cross_entropy.py")


def test_a_triton_launcher_decides_who_serves_cuda(monkeypatch):
    monkeypatch.setattr(implementations, "_triton_launchers", lambda family: {"logit_stats": "cross_entropy.py"})
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: None)
    entry = next(e for e in implementations.implementations() if (e.op, e.key) == ("logit_stats", "CUDA"))
    assert entry.file == "triton_kernels/cross_entropy.py"
    assert (entry.kind, entry.reason) == ("missing", "Triton is not installed (pip install triton)")


@pytest.mark.parametrize(
    ("archs", "capability", "fit"),
    [
        ("8.0 9.0+PTX", (9, 0), "native"),
        ("8.0 9.0+PTX", (8, 6), "native"),
        ("8.0 9.0+PTX", (12, 0), "PTX only"),
        ("8.0 9.0+PTX", (7, 5), "none"),
        ("9.0a", (9, 0), "native"),
        ("8.0", (9, 0), "none"),
        ("", (9, 0), "none"),
    ],
)
def test_arch_fit(archs, capability, fit):
    assert environment.arch_fit(archs, capability) == fit


def test_git_state_is_the_commit_of_the_source_tree():
    state = environment.git_state()
    if not (ROOT / ".git").exists():
        assert state == {"commit": None, "dirty": None}
        return
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert state["commit"] == head
    assert isinstance(state["dirty"], bool)


def test_help_shows_examples(capsys):
    for command in ("env", "bench", "plot"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"python -m nearlinear {command}" in capsys.readouterr().out.split("examples:")[1]


def test_import_brings_no_plotting_and_no_progress_bar():
    code = (
        "import sys, torch; before = set(sys.modules); import nearlinear, nearlinear.plotting, nearlinear.progress; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} & {'matplotlib', 'tqdm', 'triton'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_silent_in_logs_and_when_asked():
    for quiet, file in ((False, io.StringIO()), (True, Terminal())):
        bar = progress([3, 4], quiet=quiet, file=file)
        bar.note("words")
        assert list(bar) == [3, 4]
        assert file.getvalue() == ""


@pytest.mark.parametrize("with_tqdm", [False, True])
def test_progress_on_a_terminal(with_tqdm, monkeypatch):
    if with_tqdm:
        pytest.importorskip("tqdm", reason="tqdm is optional")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)  # import raises ImportError
    file, seen = Terminal(), []
    bar: Progress[int] = progress(iter([1, 2, 3]), total=3, desc="work", file=file)
    for item in bar:
        bar.note(f"item {item}")
        seen.append(item)
    assert seen == [1, 2, 3]
    text = file.getvalue()
    assert "work" in text
    assert "item 2" in text or with_tqdm  # tqdm redraws at most ten times a second
    assert "0/3" in text
    assert "3/3" in text or with_tqdm
