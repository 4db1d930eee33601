"""Build of nearlinear: one extension, three source roots in one package. See CONTRIBUTING.md for every decision taken here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    raise SystemExit(
        "nearlinear builds against the torch in your environment: pip install torch, then pip install --no-build-isolation ."
    ) from None

ROOT = Path(__file__).resolve().parent
VERSION = (ROOT / "python/nearlinear/_version.py").read_text().split('"')[1]
TORCH_TARGET = "2.11"  # lowest supported torch: the compiled module uses nothing newer than its stable ABI


def find_cuda() -> tuple[str, str, str]:
    """(CUDA home, version, reason for building without it); the GPU of the build machine is never asked."""
    wish = os.environ.get("NEARLINEAR_CUDA", "auto")
    if wish == "0":
        return "", "", "NEARLINEAR_CUDA=0"
    nvcc = shutil.which("nvcc")
    beside_nvcc = nvcc and Path(nvcc).resolve().parents[1]  # not a CUDA home if the nvcc on PATH is a wrapper script
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), cpp_extension.CUDA_HOME, beside_nvcc, "/usr/local/cuda"]
    home = next((str(h) for h in homes if h and (Path(h) / "bin/nvcc").exists() and (Path(h) / "include/cuda_runtime.h").exists()), "")
    if not home:
        if wish == "1":
            raise SystemExit("NEARLINEAR_CUDA=1, but nvcc was not found: set CUDA_HOME")
        return "", "", "nvcc not found at build time"
    if wish == "auto" and torch.version.cuda is None:
        return "", "", "torch was built without CUDA (NEARLINEAR_CUDA=1 compiles the CUDA sources all the same)"
    text = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = text.split("release ")[1].split(",")[0]
    if torch.version.cuda and version.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise SystemExit(
            f"nvcc is {version}, torch uses CUDA {torch.version.cuda}: set CUDA_HOME to a matching toolkit, or NEARLINEAR_CUDA=0"
        )
    if torch.version.cuda and version != torch.version.cuda:
        print(f"nearlinear: warning: nvcc {version} with torch for CUDA {torch.version.cuda}")
    return home, version, ""


def gencode(archs: list[str]) -> list[str]:
    flags = []
    for arch in archs:
        number = arch.replace(".", "").removesuffix("+PTX")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


class Build(cpp_extension.BuildExtension):
    """Rebuild when a header is newer than the objects: nvcc writes no dependency files when torch is the CPU build."""

    def build_extensions(self) -> None:
        headers = [p.stat().st_mtime for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cuh")]
        for obj in Path(self.build_temp).rglob("*.o"):
            if obj.stat().st_mtime < max([*headers, (ROOT / "setup.py").stat().st_mtime]):
                obj.unlink()
        super().build_extensions()


def extension() -> cpp_extension.CppExtension:
    home, cuda_version, skipped = find_cuda()
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX").replace(" ", ";").split(";") if home else []
    if skipped:
        print(f"nearlinear: building for CPU only: {skipped}")
    try:
        import pybind11

        pybind_include, pybind_version = [pybind11.get_include()], pybind11.__version__
    except ImportError:  # torch ships a copy
        pybind_include, pybind_version = [], "from torch"
    sources = ["csrc/module.cpp", "csrc/schema.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
    if home:
        sources += [*sorted(map(str, Path("csrc").glob("*/*.cu")))]
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = home
    sanitize = os.environ.get("NEARLINEAR_SANITIZE") == "1"
    optimise = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize=vptr"] if sanitize else ["-O3", "-g0"]
    flags = [*optimise, "-std=c++20", "-fvisibility=hidden", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
    facts = {
        "VERSION": VERSION, "CXX_FLAGS": " ".join(flags),
        "CUDA_VERSION": cuda_version, "CUDA_SKIPPED": skipped, "CUDA_ARCHS": " ".join(archs),
        "TORCH_TARGET": TORCH_TARGET, "TORCH_BUILT_WITH": torch.__version__, "PYBIND11": pybind_version,
    }  # fmt: skip
    (ROOT / "build").mkdir(exist_ok=True)
    stamp = ROOT / "build/facts.h"
    text = "".join(f'#define NL_{key} "{value}"\n' for key, value in facts.items())
    if not stamp.exists() or stamp.read_text() != text:
        stamp.write_text(text)
    # classic half operators are switched off by torch's build flags; undo that once for every file
    halves = [f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")]
    shared = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA" if home else "-DNL_CPU_ONLY"]
    nvcc = ["-O3", "-std=c++20", "--extended-lambda", "-Xptxas=--warn-on-spills", "-Werror=all-warnings"]
    nvcc += ["-Xcompiler=-fvisibility=hidden,-Wno-psabi", *halves]
    return cpp_extension.CppExtension(
        "nearlinear._C",
        sources,
        include_dirs=[*pybind_include, str(ROOT / "build"), *([f"{home}/include"] if home else [])],
        extra_compile_args={
            "cxx": [*flags, *shared, "-Wall", "-Wextra", "-Wno-unused-parameter", f"-fmacro-prefix-map={ROOT}/="],
            "nvcc": [*nvcc, *gencode(archs), *shared],
        },
        library_dirs=[f"{home}/lib64"] if home else [],
        libraries=["cudart_static", "dl", "rt", "pthread"] if home else [],
        # libtorch must be a needed library even where nothing of it is used yet: the weak CUDA symbols resolve through it
        extra_link_args=["-Wl,--no-as-needed", "-ltorch", *(["-fsanitize=address,undefined"] if sanitize else ["-Wl,-s"])],
    )


ext = extension()
ext.libraries = [name for name in ext.libraries if name != "torch_python"]
os.environ.setdefault("MAX_JOBS", str(max(1, min(os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") >> 30))))
setup(version=VERSION, ext_modules=[ext], cmdclass={"build_ext": Build}, script_args=sys.argv[1:])
