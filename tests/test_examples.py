"""The demos run at tiny size, say what they promise, and their own check can fail."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nearlinear
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
for needed in ("sklearn", "skimage", "matplotlib"):
    pytest.importorskip(needed, reason="the demos need examples/requirements.txt")


def run(name: str, out: Path) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--quick", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    assert result.stderr == "", "no progress bar and no warning in a log"
    return result.stdout


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_language_model(tmp_path: Path) -> None:
    text = run("language_model", tmp_path / "figures/out.png")
    assert "20,000 tokens" in text
    assert re.search(r"eager +nearlinear +fused head", text)
    for words in ("training step, ms", "its loss and backward, ms", "memory above start, MB", "peak memory, MB", "held-out"):
        assert words in text
    assert "the loss curves agree" in text


def test_noisy_labels(tmp_path: Path) -> None:
    text = run("noisy_labels", tmp_path / "out.png")
    accuracies = {line[:30].strip(): float(line[30:].split()[0]) for line in text.splitlines()[2:6]}
    assert list(accuracies) == ["CE", "GCE(q=0.7)", "GCE, then truncated (k=0.5)", "MAE"]
    assert all(accuracy > 70 for accuracy in accuracies.values()), accuracies


def test_face_recognition(tmp_path: Path) -> None:
    text = run("face_recognition", tmp_path / "out.png")
    assert "2,000 identities" in text
    assert "the two agree" in text
    accuracies = [float(line.split()[-1].rstrip("%")) for line in text.splitlines() if line.endswith("%")]
    assert accuracies[0] < 5
    assert accuracies[-1] > 30, accuracies


def test_auc_training(tmp_path: Path) -> None:
    text = run("auc_training", tmp_path / "out.png")
    assert "the two forms of the loss agree" in text

    def aucs(name: str) -> list[float]:
        return [float(line[24:].split()[0]) for line in text.splitlines() if line.startswith(name)]

    *small, clicks = aucs("BCE")
    assert len(small) == 2
    assert min(small) > 0.95, small
    assert aucs("all pairs, nearlinear") == pytest.approx(aucs("all pairs, eager"), abs=1e-3)
    assert aucs("AUC within users")[0] > clicks + 5, "who clicks much does not order the list of a user"


def test_vessel_segmentation(tmp_path: Path) -> None:
    text = run("vessel_segmentation", tmp_path / "out.png")
    rows = {line[:22].strip(): [float(x) for x in line[22:].split()[:4]] for line in text.splitlines() if re.match(r"Dice( \+|  )", line)}
    alone, both = rows["Dice"], rows["Dice + Betti matching"]
    assert both[0] > alone[0] - 0.05  # in two runs the two were within 0.01 of each other
    assert both[1] < alone[1], "fewer components without a partner"
    assert "%" in text.splitlines()[3], "the share of the step"


def test_triple_detection(tmp_path: Path) -> None:
    text = run("triple_detection", tmp_path / "out.png")
    accuracies = {line[:18].strip(): float(line[18:].split()[0].rstrip("%")) for line in text.splitlines()[2:7]}
    assert list(accuracies) == ["single keys", "pairs, eager", "pairs, exact", "pairs, degree 2", "pairs, degree 4"]
    assert accuracies["pairs, exact"] > accuracies["single keys"] + 2, accuracies
    assert accuracies["pairs, exact"] == pytest.approx(accuracies["pairs, eager"], abs=2)
    assert "the curves of eager and exact agree" in text
    assert [line.split()[0] for line in text.splitlines() if re.match(r" +\d+ ", line)] == ["8", "16", "32", "64", "128", "256"]
    assert "equal operations at 29" in text


def test_the_tolerance_of_the_curves_sees_a_wrong_gradient() -> None:
    demo = load("language_model")
    ids, num_classes = demo.standard_library(10_000)

    def curve(loss_function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        torch.manual_seed(0)
        model, data, losses = demo.LanguageModel(num_classes, 8), demo.batches(ids, 128, 8, 0), []
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(15):
            tokens, targets = next(data)
            optimizer.zero_grad()
            loss = loss_function(model(tokens), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def target_gradient_too_small(logits: Tensor, targets: Tensor) -> Tensor:
        target_logit = logits.gather(1, targets.unsqueeze(1)).mean()
        return nearlinear.cross_entropy(logits, targets) + 0.01 * (target_logit - target_logit.detach())

    eager = curve(F.cross_entropy)
    assert ((curve(nearlinear.cross_entropy) - eager).abs() / eager).max() < demo.CURVE_TOLERANCE / 5
    assert ((curve(target_gradient_too_small) - eager).abs() / eager).max() > 5 * demo.CURVE_TOLERANCE
