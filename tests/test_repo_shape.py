"""The house rules, read off the source tree: what every op, kernel file and public function must come with.

``python tests/test_repo_shape.py --update`` rewrites docs/api.txt, the reviewed list of public names and signatures.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nearlinear
import pytest
import torch

ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api.txt"
NON_DIFFERENTIABLE = {
    "betti_matching",
    "binned_moments",
    "binned_values",
    "distance_tile",
    "distance_tile_backward",
    "first_invalid_target",
    "logit_stats_backward_",
    "logit_sum_backward_",
    "pair_extremes",
    "pair_scan",
    "pair_tile_extremes",
    "pair_tile_stats",
    "pair_tile_stats_backward_",
    "persistence_barcode",
    "roc_auc_class_sums",
    "roc_auc_counts",
    "roc_auc_sums",
}
GRADIENTS_IN_FORWARD = {"betti_matching_loss", "linear_row_loss"}  # no backward op: the forward returns the gradients
OWN_DERIVATIVES = {"pair_potential", "pairwise_sum"}  # the derivatives of a potential are potentials
RECORDS = {"TensorAttentionErrorBound"}  # what functions return
# a layer makes tensors of its function by projections, which have sizes of their own, and returns one tensor
LAYERS = {
    "TensorAttention": (
        {"query", "key1", "key2", "value1", "value2", "enable_gqa", "return_lse", "return_error_bound", "process_group"},
        {"input", "embed_dim", "num_heads", "head_dim", "num_kv_heads", "qk_norm", "bias", "device", "dtype"},
    )
}
HEADER = ("Shapes", "Algorithm", "Cost", "Numerics")  # after the line that says what is computed
GOOD_FILE, MAX_FILE, MAX_FUNCTION, MAX_CONSTEXPR = 300, 400, 50, 6


def sources(*patterns: str) -> list[Path]:
    return sorted(p for pattern in patterns for p in ROOT.glob(pattern) if "build" not in p.parts)


PYTHON = sources("python/**/*.py", "triton_kernels/*.py", "bench/**/*.py", "tests/*.py", "examples/*.py", "setup.py")
CPP = sources("csrc/**/*.h", "csrc/**/*.cpp", "csrc/**/*.cu", "csrc/**/*.cuh")
KERNELS = sources("csrc/cpu/*.cpp", "csrc/cuda/*.cu", "triton_kernels/*.py")
KERNELS = [p for p in KERNELS if p.name not in ("__init__.py", "common.py", "distance_metrics.py")]  # parts of kernels
FAMILIES = [p.stem for p in sources("python/nearlinear/reference/*.py") if p.stem != "__init__"]


def schemas() -> dict[str, list[str]]:
    """Op -> argument names, from csrc/schema.cpp."""
    found = {}
    for definition in re.findall(r"m\.def\((.*?)\);", (ROOT / "csrc/schema.cpp").read_text(), re.DOTALL):
        text = "".join(re.findall(r'"([^"]*)"', definition))
        name, arguments = re.match(r"(\w+)\((.*?)\) *->", text).groups()
        found[name] = [argument.split()[-1].split("=")[0] for argument in arguments.split(", ")]
    return found


OPS = schemas()
FORWARD = [op for op in OPS if not op.rstrip("_").endswith("_backward")]
# walks over tiles, in Python: one kernel for every device, on ops that have one for each
COMPOSED = {op for p in sources("python/nearlinear/ops/*.py") for op in re.findall(r'library\.impl\("nearlinear::(\w+)"', p.read_text())}
each_op = pytest.mark.parametrize("op", OPS)


def has_kernel(op: str, key: str) -> bool:
    key = "CompositeExplicitAutograd" if op in COMPOSED and key == "CPU" else key
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"nearlinear::{op}", key)


def family_of(op: str) -> str:
    owners = [f for f in FAMILIES if hasattr(getattr(nearlinear.reference, f), op)]
    assert len(owners) == 1, f"{op}: one reference, found {owners}"
    return owners[0]


# ---- ops


def test_schema_file_is_what_is_loaded() -> None:
    loaded = {name.removeprefix("nearlinear::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("nearlinear::")}
    assert set(OPS) == loaded
    for op, names in OPS.items():
        assert [a.name for a in getattr(torch.ops.nearlinear, op).default._schema.arguments] == names


@each_op
def test_op_has_kernel_fake_and_derivatives(op: str) -> None:
    assert has_kernel(op, "CPU")
    assert torch._library.simple_registry.singleton.find(f"nearlinear::{op}").fake_impl.kernel is not None
    if op in NON_DIFFERENTIABLE:
        assert not has_kernel(op, "Autograd")
        return
    assert has_kernel(op, "Autograd"), "a backward op needs its second derivative, or one that raises"
    if op in FORWARD and op not in GRADIENTS_IN_FORWARD | OWN_DERIVATIVES:
        assert f"{op}_backward" in OPS


@pytest.mark.parametrize("op", FORWARD)
def test_reference_has_the_ops_name_and_arguments(op: str) -> None:
    reference = getattr(getattr(nearlinear.reference, family_of(op)), op)
    assert list(inspect.signature(reference).parameters) == OPS[op]
    assert reference.__doc__


def test_every_op_is_sampled_by_a_battery() -> None:
    """opcheck sees every op: the families' samples together name all of them."""
    sys.path.insert(0, str(ROOT / "tests"))
    sampled = set()
    for family in FAMILIES:
        for value in vars(__import__(f"test_{family}")).values():
            if inspect.isclass(value) and value.__name__.startswith("Test") and hasattr(value, "op_samples"):
                sampled |= {op._schema.name.removeprefix("nearlinear::") for op, _, _ in value.op_samples(torch.device("cpu"))}
    assert sampled == set(OPS)


@pytest.mark.parametrize("family", FAMILIES)
def test_bench_case_and_docs_entry(family: str) -> None:
    missing = [str(p) for p in (Path("bench/cases") / f"{family}.py", Path("docs") / f"{family}.md") if not (ROOT / p).exists()]
    if missing:
        pytest.skip(f"not written yet: {', '.join(missing)}")
    text = "".join((ROOT / "docs" / name).read_text() for name in (f"{family}.md", "api.md"))
    assert [name for name in public_names(family) if name not in text] == []
    assert family in (ROOT / "bench" / "cases" / f"{family}.py").read_text()


def test_one_implementation_per_op_and_key() -> None:
    """C++ registrations and Triton registrations of the CUDA key do not overlap, and no op is registered twice in either."""
    for key, files in (("CPU", sources("csrc/cpu/*.cpp")), ("CUDA", sources("csrc/cuda/*.cu", "triton_kernels/__init__.py"))):
        implemented = [op for file in files for op in re.findall(r'(?:m|library)\.impl\(\s*"(\w+)"', file.read_text())]
        assert len(implemented) == len(set(implemented)), f"{key}: registered twice"
        assert set(implemented) | COMPOSED == set(OPS)
        assert not set(implemented) & COMPOSED


# ---- kernel files


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: str(p.relative_to(ROOT)))
def test_kernel_header(path: Path) -> None:
    """What is computed, then shapes, algorithm, cost and numerics, in this order."""
    head = path.read_text()[:3000]
    assert re.match(r'(//|""") ?\w+, (CPU|CUDA|Triton)\. ', head), "the first line says which op, on what, and its formula"
    positions = [head.find(f"{item}:") for item in HEADER]
    assert min(positions) > 0, f"missing: {[i for i, p in zip(HEADER, positions, strict=True) if p <= 0]}"
    assert positions == sorted(positions)


@pytest.mark.parametrize("path", sources("triton_kernels/*.py"), ids=lambda p: p.name)
def test_constexpr_flags(path: Path) -> None:
    for function in functions(path):
        flags = [a.arg for a in function.args.args if a.annotation is not None and ast.unparse(a.annotation) == "tl.constexpr"]
        assert len(flags) <= MAX_CONSTEXPR, f"{function.name}: {flags}"


# ---- sizes and imports


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def body_lines(function: ast.FunctionDef) -> int:
    """Lines after the signature and the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def cpp_functions(lines: list[str]) -> Iterator[tuple[int, int]]:
    """First line and length of what ends with a brace in column 0, where clang-format puts it; pragmas sit in column 0 too."""
    for end in (i for i, line in enumerate(lines) if line == "}"):
        start = next(i for i in range(end - 1, -1, -1) if lines[i] and lines[i][0] not in " #}")
        yield start, end - start + 1


@pytest.mark.parametrize("path", [*PYTHON, *CPP], ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_FILE, f"{len(lines)} lines"
    if len(lines) > GOOD_FILE:
        warnings.warn(f"{path.relative_to(ROOT)} has {len(lines)} lines", stacklevel=1)
    assert max(map(len, lines), default=0) <= 140
    if path.suffix == ".py":
        long = {f.name: n for f in functions(path) if (n := body_lines(f)) > MAX_FUNCTION}
    else:
        long = {lines[start]: n for start, n in cpp_functions(lines) if n > MAX_FUNCTION + 10}  # signature lines included
    assert not long


def test_one_type_has_one_name() -> None:
    """Two headers' types of one name in the one namespace would be one for the linker: a destructor of either might run for both."""
    owners: dict[str, set[str]] = {}
    for path in sources("csrc/cpu/*.h", "csrc/common/*.h", "csrc/functors/*.h"):
        for name in re.findall(r"^(?:template <[^>]*>\n)?(?:struct|class) (\w+)", path.read_text(), re.MULTILINE):
            owners.setdefault(name, set()).add(path.name)
    assert {name: files for name, files in owners.items() if len(files) > 1} == {}


def test_nobody_imports_the_layers_by_bare_names() -> None:
    """triton_kernels and bench are subpackages of nearlinear; other packages own those names."""
    bare = re.compile(r"^\s*(?:import|from) (?:triton_kernels|bench)\b", re.MULTILINE)
    assert [str(p) for p in PYTHON if bare.search(p.read_text())] == []


def test_importing_the_package_imports_no_optional_one() -> None:
    code = "import sys, torch; before = set(sys.modules); import nearlinear; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "nearlinear.cross_entropy" in loaded
    assert {name.split(".")[0] for name in loaded} & {"triton", "matplotlib", "tqdm", "numpy", "liger_kernel"} == set()


# ---- public surface


def public_names(family: str) -> list[str]:
    return sys.modules[f"nearlinear.{family}"].__all__


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def shape_of(signature: dict[str, inspect.Parameter]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in signature.values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_signature_is_the_public_one(family: str) -> None:
    reference = getattr(nearlinear.reference, family)
    # an op's definition has the op's signature, which is tested above
    shared = [name for name in public_names(family) if name in reference.__all__ and name not in OPS]
    assert shared
    for name in shared:
        assert shape_of(parameters(getattr(reference, name))) == shape_of(parameters(getattr(nearlinear, name)))


@pytest.mark.parametrize("family", FAMILIES)
def test_module_options_are_the_functions(family: str) -> None:
    """Constructor and forward together take what the function takes, with the same defaults: tensors of a step go to forward."""
    for name in public_names(family):
        cls = getattr(nearlinear, name)
        if not inspect.isclass(cls):
            continue
        if name in RECORDS:
            continue
        functions = {n.replace("_", ""): getattr(nearlinear, n) for n in nearlinear.__all__ if n.islower()}
        function = functions.get(name.lower()) or functions[name.lower().removesuffix("loss")]
        built, called = parameters(cls.__init__), parameters(cls.forward)
        taken = {p.name: p.default for p in [*built.values(), *called.values()] if p.name != "self" and p.kind != p.VAR_KEYWORD}
        expected = {p.name: p.default for p in parameters(function).values() if p.kind != p.VAR_KEYWORD}
        if name in LAYERS:
            made, own = LAYERS[name]
            assert made <= set(expected), name
            assert own <= set(taken), name
            expected = {n: d for n, d in expected.items() if n not in made}
            taken = {n: d for n, d in taken.items() if n not in own}
        assert {n: d for n, d in taken.items() if n in expected} == expected, name
        passed_on = {"input", "target", "sample_weight", "normalizer"}
        assert set(taken) - set(expected) <= (passed_on if any(p.kind == p.VAR_KEYWORD for p in built.values()) else set()), name


def api() -> str:
    """Every public name with its signature; for classes that of the constructor and of forward."""
    lines = ["# public names and signatures; regenerate with: python tests/test_repo_shape.py --update"]
    for name in sorted(nearlinear.__all__):
        value = getattr(nearlinear, name)
        if inspect.isclass(value):
            lines.append(f"class {name}{inspect.signature(value.__init__) if value.__init__ is not Warning.__init__ else ''}")
            if hasattr(value, "forward"):
                lines.append(f"    forward{inspect.signature(value.forward)}")
        elif callable(value):
            lines.append(f"{name}{inspect.signature(value)}")
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def test_public_names_are_the_reviewed_ones() -> None:
    assert API.read_text() == api(), "the public surface changed: run python tests/test_repo_shape.py --update and review the diff"


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        raise SystemExit("usage: python tests/test_repo_shape.py --update")
    API.parent.mkdir(exist_ok=True)
    API.write_text(api())
