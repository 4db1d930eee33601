// the Python object of the compiled module: build facts only. Loading it registers the ops (schema.cpp and the kernels).
#include <pybind11/pybind11.h>

#include "common/interrupt.h"
#include "facts.h"

namespace py = pybind11;

namespace {

// the level that the function multi-versioning of common/simd.h takes on this machine
const char* simd_level() {
#if defined(__x86_64__) && defined(__gnu_linux__)
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "baseline";
}

py::dict build_info() {
  py::dict info;
  info["version"] = NL_VERSION;
  info["compiler"] = "g++ " __VERSION__;
  info["cxx_flags"] = NL_CXX_FLAGS;
  info["cuda_version"] = NL_CUDA_VERSION;  // empty: built without CUDA, for the reason that follows
  info["cuda_skipped"] = NL_CUDA_SKIPPED;
  info["cuda_archs"] = NL_CUDA_ARCHS;
  info["simd"] = simd_level();
  info["torch_target"] = NL_TORCH_TARGET;
  info["torch_built_with"] = NL_TORCH_BUILT_WITH;
  info["pybind11"] = NL_PYBIND11;
  return info;
}

py::tuple progress() { return py::make_tuple(nearlinear::progress.done.load(), nearlinear::progress.total.load()); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info, "Facts stamped at build time, and the SIMD level chosen at load time.");
  m.def("progress", &progress, "Units of work of the long kernels that run now: done, and altogether.");
}
