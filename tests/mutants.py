"""Planted bugs. Each mutant is applied to a copy of the tree, its named tests run there, and it must make them fail.

    python tests/mutants.py                  all of them
    python tests/mutants.py python           one kind: python, cpp or triton
    python tests/mutants.py --match tile     those whose file or texts contain a word

A family lists its mutants in tests/mutants_FAMILY.py as (file, old text, new text, tests that must fail, in pytest's words). A surviving
mutant is a defect of the tests; the exit code is then 1. C++ mutants are rebuilt one after another in the same copy.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = ("python", "cpp", "triton")
TIMEOUT = 600


@dataclass(frozen=True)
class Mutant:
    kind: str
    file: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        change = " ".join(f"{self.old.strip()}  ->  {self.new.strip()}".split())
        return f"{self.kind:7s}{self.file}: {change if len(change) < 110 else change[:107] + '...'}"


def mutants() -> Iterator[Mutant]:
    sys.path.insert(0, str(ROOT / "tests"))
    for path in sorted((ROOT / "tests").glob("mutants_*.py")):
        family = importlib.import_module(path.stem)
        for kind in KINDS:
            for row in getattr(family, kind.upper()):
                yield Mutant(kind, *row)


class Copy:
    """A copy of the working tree, importable through a folder of links: the package with its subpackages from other top folders."""

    def __init__(self, folder: Path) -> None:
        self.tree, site = folder / "tree", folder / "site"
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)
        package = site / "nearlinear"
        package.mkdir(parents=True)
        self.extension = package / self.built().name
        shutil.copy2(self.built(), self.extension)
        for source in [*(self.tree / "python/nearlinear").iterdir(), self.tree / "triton_kernels", self.tree / "bench"]:
            (package / source.name).symlink_to(source)
        paths = [str(site), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", "import nearlinear; print(nearlinear.__file__)"]
        imported = subprocess.run(command, cwd=self.tree, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(imported).is_relative_to(folder):
            raise SystemExit(f"the copy is shadowed by {imported}: no bug could be seen")

    @staticmethod
    def built() -> Path:
        from nearlinear import _C

        return Path(_C.__file__)

    def build(self) -> None:
        """Compile the CPU kernels; objects that no mutant touches keep a time newer than any header."""
        for made in (self.tree / "build").rglob("*.o"):
            if made.parent.name != "cpu":
                made.touch()
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=self.tree, env={**self.environment, "NEARLINEAR_CUDA": "0"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the mutant does not compile:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        shutil.copy2(self.tree / "python/nearlinear" / self.extension.name, self.extension)

    def run(self, tests: str) -> str:
        """passed, failed, crashed or timeout; anything else is a mistake in the mutant's entry and stops the run.

        Files that pytest does not collect by name run launchers on CPU tensors, in Triton's interpreter.
        """
        interpreted = {} if Path(tests.split()[0].split("::")[0]).name.startswith("test_") else {"TRITON_INTERPRET": "1"}
        environment = {**self.environment, **interpreted}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not gpu", *shlex.split(tests)]
        try:
            done = subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return "timeout"
        if done.returncode < 0:
            return "crashed"
        if done.returncode > 1:
            raise SystemExit(f"pytest {tests}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        return "failed" if done.returncode else "passed"

    def verify(self, mutant: Mutant) -> str:
        path = self.tree / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant}: the old text occurs {text.count(mutant.old)} times")
        try:
            path.write_text(text.replace(mutant.old, mutant.new))
            if mutant.kind == "cpp":
                self.build()
            return self.run(mutant.tests)
        finally:
            path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"any of {', '.join(KINDS)}; all by default")
    parser.add_argument("--match", default="", help="only mutants whose file, old or new text contains this")
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"KIND must be one of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    chosen = [m for m in mutants() if m.kind in (arguments.kinds or KINDS) and arguments.match in m.file + m.old + m.new]
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for tests in sorted({m.tests for m in chosen}):
            print(f"unchanged: {tests}", file=sys.stderr)
            if copy.run(tests) != "passed":
                raise SystemExit(f"pytest {tests} does not pass before any bug is planted")
        for number, mutant in enumerate(chosen, 1):
            start = time.monotonic()
            outcome = copy.verify(mutant)
            survived += outcome == "passed"
            verdict = "SURVIVED" if outcome == "passed" else f"caught ({outcome})"
            print(f"{number:3d}/{len(chosen)}  {verdict:16s} {time.monotonic() - start:4.0f} s  {mutant}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main())
