"""``python -m nearlinear bench``: run cases, write the result file, print the table. One file is one run: nothing is merged into it."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nearlinear import _C, environment
from nearlinear.progress import progress

from . import roofline, table
from .job import Effort, Job
from .registry import Case, Sizes, load

__all__ = ["EXAMPLES", "add_arguments", "run_cases"]

EXAMPLES = """\
  python -m nearlinear bench                                       published sizes of every case on this machine
  python -m nearlinear bench cross_entropy --dtype float32 --json out.json --plot out.png
  python -m nearlinear bench cross_entropy --sizes N=512,V=8192    one size of your own
  python -m nearlinear bench --sizes sweep --json sweep.json       sizes for a scaling plot
  python -m nearlinear bench --from out.json --markdown            the table of a stored run
  python -m nearlinear bench --smoke                               every case and baseline at a tiny size, seconds"""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROOF_TOLERANCE = 105.0  # per cent: two medians of the same bandwidth differ by a few per cent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("ops", nargs="*", metavar="OP", help="ops to run (default: all)")
    add("--case", action="append", default=[], help="only cases whose name contains this; may be repeated")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:1 (default: %(default)s)")
    add("--sizes", action="append", default=[], metavar="SIZES", help="published (default), sweep, or e.g. N=4096,V=50257; may be repeated")
    add("--dtype", action="append", default=[], choices=DTYPES, help="may be repeated (default: those of the case)")
    add("--baselines", metavar="A,B", help="comma-separated, e.g. eager,compiled; 'none' for ours alone (default: all)")
    add("--threads", type=int, help="CPU threads (default: torch's; 1 in a smoke run)")
    add("--seconds", type=float, default=10.0, help="timed seconds per case and pass, after at least 5 rounds (default: %(default)s)")
    add("--deadline", type=float, metavar="S", help="start no further case after S seconds; what is left is recorded as timed out")
    add("--smoke", action="store_true", help="tiny sizes, three rounds: proves that everything runs, the times mean nothing")
    add("--tests", metavar="JUNIT", help="junit.xml of the tests of this commit, recorded in the file; red tests give no table")
    add("--commit", help="commit to record where the source tree has no git folder")
    add("--json", metavar="FILE", help="write the results; rewritten after every case")
    add("--from", dest="source", metavar="FILE", help="print the table of a stored run instead of running")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--plot", metavar="PNG", help="draw the results that were written or read (needs matplotlib)")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> int:
    if arguments.source:
        document = json.loads(Path(arguments.source).read_text())
    else:
        try:
            document = run_cases(arguments)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    if document["tests"]["status"] == "red":
        print(f"bench: no table: {document['tests']['failed']} tests of this commit failed", file=sys.stderr)
        return 1
    print(table.render(document, markdown=arguments.markdown))
    if arguments.plot:
        from .plot import save

        save(document, "time", arguments.plot)
    wrong = over_the_roof(document["rows"])
    for row in wrong:
        print(
            f"bench: {row['case']} {row['impl']} {row['pass']}: {row['pct_roof']:.0f} % of the limit: bytes are declared wrong",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def run_cases(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the selected jobs and returns the document (schema 1); the file, if any, is complete after every job."""
    if arguments.threads or arguments.smoke:
        torch.set_num_threads(arguments.threads or 1)  # at tiny sizes a second thread is waited for, not used
    device = torch.device(arguments.device)
    document = _head(arguments, device)
    jobs = _jobs(arguments, device)
    effort = Effort(0.0, (3, 3)) if arguments.smoke else Effort(arguments.seconds, (5, 300))
    gemm = functools.cache(lambda dtype: roofline.gemm_tflops(dtype, device, 64 if arguments.smoke else _gemm_size(device)))
    start = time.monotonic()
    bar = progress(jobs, desc="bench", quiet=arguments.quiet)
    for job in bar:
        bar.note(job.label)
        names = _baselines(arguments, job.case)
        if arguments.deadline is not None and time.monotonic() - start > arguments.deadline:
            document["rows"] += job.skipped(["ours", *names], "timeout", f"the deadline of {arguments.deadline:g} s was reached")
        else:
            document["rows"] += job.measure(names, effort, gemm)
        _finish(document, gemm, {job.dtype for job in jobs})
        _write(document, arguments.json)
    return document


def over_the_roof(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows faster than the machine: their declared bytes or FLOPs are wrong."""
    return [row for row in rows if (row["pct_roof"] or 0) > ROOF_TOLERANCE]


def _jobs(arguments: argparse.Namespace, device: torch.device) -> list[Job]:
    """Published sizes first, case by case in order of importance, then what else was asked for."""
    cases = [case for case in load(arguments.ops) if not arguments.case or any(text in case.name for text in arguments.case)]
    several = next((case for case in cases if len(case.dtypes) > 1), None)
    jobs = []
    for wish in arguments.sizes or ["published"]:
        for case in cases:
            for sizes in [case.tiny] if arguments.smoke else _sizes(wish, case, device):
                jobs += [Job(case, dtype, sizes, device) for dtype in _dtypes(arguments, case, first=case is several)]
    if not jobs:
        raise ValueError("bench: no case has these sizes")
    return jobs


def _dtypes(arguments: argparse.Namespace, case: Case, first: bool) -> Sequence[torch.dtype]:
    """Those asked for, or those of the case; in a smoke run only the first case with several, as each compiles its rivals."""
    wanted = [DTYPES[name] for name in arguments.dtype] or case.dtypes
    return wanted if first or not arguments.smoke else wanted[:1]


def _sizes(wish: str, case: Case, device: torch.device) -> Sequence[Sizes]:
    if wish == "published":
        return case.sizes[device.type]
    if wish == "sweep":
        return case.sizes.get("sweep", ())
    try:
        sizes = {key: int(value) for key, value in (part.split("=") for part in wish.split(","))}
    except ValueError:
        raise ValueError(f"bench: sizes must be published, sweep or like N=4096,V=50257, got {wish!r}") from None
    return [sizes] if sizes.keys() == case.tiny.keys() else []


def _baselines(arguments: argparse.Namespace, case: Case) -> list[str]:
    if arguments.baselines is None:
        return list(case.baselines)
    wanted = [] if arguments.baselines == "none" else arguments.baselines.split(",")
    return [name for name in wanted if name in case.baselines]


def _head(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    state, gpus = environment.git_state(), environment.gpus()
    gpu = {**gpus[device.index or 0], "sm_clock_mhz": [environment.sm_clock_mhz(), None]} if device.type == "cuda" else None
    if arguments.commit and state["commit"] is None:
        state = {"commit": arguments.commit, "dirty": None}
    return {
        "schema": 1,
        "command": "python -m nearlinear " + shlex.join(arguments.words),
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "smoke": arguments.smoke,
        "nearlinear": {"version": _C.build_info()["version"], **state, "build_info": _C.build_info()},
        "versions": environment.versions(),
        "host": {**environment.host(), "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY")},
        "gpu": gpu,
        "tests": _tests(arguments.tests, state["commit"]),
        "roof": {"copy_gbs": None, "copy_fresh_gbs": None, "read_gbs": None, "gemm_tflops": {}},
        "rows": [],
    }


def _tests(junit: str | None, commit: str | None) -> dict[str, Any]:
    if junit is None:
        return {"status": "not run", "passed": 0, "failed": 0, "skipped": 0, "commit": commit}
    suites = [*ElementTree.parse(junit).getroot().iter("testsuite")]
    total, failed, skipped = (sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "skipped"))
    failed += sum(int(suite.get("errors", 0)) for suite in suites)
    passed = total - failed - skipped
    status = "red" if failed else "green" if passed else "not run"
    return {"status": status, "passed": passed, "failed": failed, "skipped": skipped, "commit": commit}


def _gemm_size(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 512


def _finish(document: dict[str, Any], gemm: Any, dtypes: set[torch.dtype]) -> None:
    """Limits of the machine as the rows found them (the fastest of each kind), and the clock at the end."""
    roof = document["roof"]
    for key, floor in (("copy_gbs", "copy_warm"), ("copy_fresh_gbs", "copy_fresh"), ("read_gbs", "read")):
        roof[key] = max((row["gbs"] for row in document["rows"] if row["impl"] == floor), default=None)
    roof["gemm_tflops"] = {str(dtype).removeprefix("torch."): gemm(dtype) for dtype in sorted(dtypes, key=str)}
    if document["gpu"]:
        document["gpu"]["sm_clock_mhz"][1] = environment.sm_clock_mhz()


def _write(document: dict[str, Any], path: str | None) -> None:
    if path is None:
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(target)  # a reader never sees half a file
