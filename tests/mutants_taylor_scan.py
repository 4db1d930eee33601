"""Planted bugs of the scan of causal polynomial attention: (file, old text, new text, tests that must fail)."""

PYTHON: list[tuple[str, str, str, str]] = []  # mutants_taylor.py
TRITON: list[tuple[str, str, str, str]] = []

GLUE, INPUTS, KERNELS, BACKWARD = (f"csrc/cpu/taylor_scan{name}" for name in (".cpp", "_inputs.h", "_kernels.h", "_backward.h"))
TESTS = "tests/test_taylor_scan.py"
CPP = [
    (KERNELS, "total[l] += s1[l], total[W + l] += s2[l];", "total[l] = base1[l] + s1[l], total[W + l] = base2[l] + s2[l];",
     f"{TESTS} -k long_sums"),
    (KERNELS, "for (int64_t l = W - 1; l >= 0; --l) {", "for (int64_t l = 0; l < W; ++l) {", f"{TESTS} -k definition"),
    (KERNELS, "r[l] = static_cast<T>(after[l]);", "r[l] = 0;", f"{TESTS} -k definition"),
    (INPUTS, "if (weight != 0) simd::load(values.data", "simd::load(values.data", f"{TESTS} -k definition"),
    (GLUE, "std::min(pass + most, in.table.count())", "most", f"{TESTS} -k definition"),
    (BACKWARD, "put<scalar_t>(out.key[side], b, g, token, in.dim, line, [&] {\n        if (present)",
     "put<scalar_t>(out.key[side], b, g, token, in.dim, line, [&] {\n        if (true)", f"{TESTS} -k infinity"),
]  # fmt: skip
