"""Command line: ``python -m nearlinear env | bench | plot``; each has ``--help`` with examples."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from . import _C, environment
from .implementations import implementations
from .self_test import Outcome, self_test


def main(argv: Sequence[str] | None = None) -> int:
    from .bench import plot, run

    parser = argparse.ArgumentParser(prog="python -m nearlinear", description="Facts, self-test, benchmarks and plots of nearlinear.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_env(commands.add_parser("env", help="versions, kernels per op, and a self-test of each", **_examples(ENV_EXAMPLES)))
    run.add_arguments(commands.add_parser("bench", help="time and memory beside eager and torch.compile", **_examples(run.EXAMPLES)))
    plot.add_arguments(commands.add_parser("plot", help="pictures from stored results", **_examples(plot.EXAMPLES)))
    arguments = parser.parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else list(argv)
    code: int = arguments.execute(arguments)
    return code


ENV_EXAMPLES = """\
  python -m nearlinear env                  table for people; exit code 1 if an op disagrees with its definition
  python -m nearlinear env --json           the block that a bug report asks for
  python -m nearlinear env --device cuda    fail as well if an op has no CUDA kernel"""


def _examples(text: str) -> dict[str, Any]:
    return {"epilog": f"examples:\n{text}", "formatter_class": argparse.RawDescriptionHelpFormatter}


def _add_env(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--device", help="test this device only, and every op on it (default: all that are present)")
    parser.set_defaults(execute=_env)


def _env(arguments: argparse.Namespace) -> int:
    devices = [arguments.device] if arguments.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    present = {(found.op, found.key) for found in implementations() if found.kind != "missing"}
    outcomes = [
        outcome
        for device in devices
        for outcome in self_test(device)
        # an op without a kernel fails only where the device was asked for by name
        if arguments.device or (outcome.op, outcome.device.upper()) in present
    ]
    passed = all(outcome.ok for outcome in outcomes)
    if arguments.json:
        print(json.dumps(_report(outcomes, passed), indent=1))
    else:
        print("\n".join(_lines(outcomes, devices)))
    return 0 if passed else 1


def _report(outcomes: list[Outcome], passed: bool) -> dict[str, Any]:
    return {
        "versions": environment.versions(),
        "nearlinear": {**environment.git_state(), "build_info": _C.build_info()},
        "host": environment.host(),
        "gpus": environment.gpus(),
        "implementations": [asdict(found) for found in implementations()],
        "self_test": [asdict(outcome) for outcome in outcomes],
        "ok": passed,
    }


def _lines(outcomes: list[Outcome], devices: list[str]) -> list[str]:
    info, versions = _C.build_info(), environment.versions()
    extras = "   ".join(f"{name} {versions[name]}" for name in ("triton", "numpy") if versions[name])
    cuda = f"CUDA archs {info['cuda_archs']} (nvcc {info['cuda_version']})" if info["cuda_version"] else f"no CUDA: {info['cuda_skipped']}"
    lines = [
        f"nearlinear {versions['nearlinear']}   torch {versions['torch']} (built for >= {info['torch_target']}, with "
        f"{info['torch_built_with']})   {extras}   python {versions['python']}",
        f"_C: {info['compiler']}, SIMD {info['simd']}, {cuda}",
    ]
    gpus = environment.gpus()
    lines += [f"GPU {i}: {gpu['name']}, sm_{gpu['capability']}, compiled kernels: {gpu['fit']}" for i, gpu in enumerate(gpus)] or [
        "GPU: none"
    ]
    kinds = {(found.op, found.key): found for found in implementations()}
    ops = sorted({op for op, _ in kinds})
    width = max(map(len, ops)) + 2
    heads = "".join(f"{'self-test on ' + device + ': value, gradient':44}" for device in devices)
    lines += ["", f"{'op':{width}}{'CPU':10}{'CUDA':10}{heads}".rstrip()]
    results = {(outcome.op, outcome.device): outcome for outcome in outcomes}
    for op in ops:
        cells = "".join(f"{_cell(results.get((op, device))):44}" for device in devices)
        lines.append(f"{op:{width}}{kinds[op, 'CPU'].kind:10}{kinds[op, 'CUDA'].kind:10}{cells}".rstrip())
    missing = [found for found in kinds.values() if found.kind == "missing"]
    lines += ["", *(f"{found.op}: {found.key} missing: {found.reason}" for found in missing)] if missing else [""]
    failed = [outcome for outcome in outcomes if not outcome.ok]
    lines += [f"{outcome.op}: FAILED on {outcome.device}: {outcome.reason}" for outcome in failed]
    lines.append(f"{len(outcomes) - len(failed)} of {len(outcomes)} self-tests on {', '.join(devices)} agree with their definitions")
    return lines


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    if outcome.value is None:
        return "FAILED"
    gradient = "none" if outcome.gradient is None else f"{outcome.gradient:.1e}"
    return f"{'ok' if outcome.ok else 'FAILED'}  {outcome.value:.1e}, {gradient}"


if __name__ == "__main__":
    sys.exit(main())
