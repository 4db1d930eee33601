"""Planted bugs of the segments: (file, old text, new text, tests that must fail)."""

TESTS = "tests/test_segment_moments.py"

OPS, PUBLIC = (f"python/nearlinear/{name}.py" for name in ("ops/segment_moments", "segment_moments"))
PYTHON = [
    (OPS, "differentiable=(0, 1, 2)", "differentiable=(0, 1)", f"{TESTS} -k second_derivatives"),
    (OPS, '"full": [segments, dim, dim]', '"full": [segments, dim]', f"{TESTS} -k opcheck"),
    (PUBLIC, "(ordered[1:] != ordered[:-1]).cumsum(0)", "(ordered[1:] != ordered[:-1]).long()", f"{TESTS} -k labels_by_equality"),
    (PUBLIC, "torch.where(count > 0, total / (count + 1e-6), 0.0)", "total / (count + 1e-6)", f"{TESTS} -k one_class"),
    (PUBLIC, "cosine = torch.where(i == j, 0.0,", "cosine = torch.where(i == -1, 0.0,", f"{TESTS} -k pamc"),
    (PUBLIC, "centred = (means - means.sum(0) / classes) * present", "centred = means - means.sum(0) / classes",
     f"{TESTS} -k neural_collapse"),
]  # fmt: skip

KERNEL = "csrc/cpu/segment_moments.cpp"
CPP = [
    (KERNEL, "rows[next[index[i]]++] = i;", "rows[next[index[i]]++] = index[i];", f"{TESTS} -k sizes"),
    (KERNEL, "whole ? -1 : slots++", "-1", f"{TESTS} -k sizes"),
    (KERNEL, "matrix[k * d + l] + matrix[l * d + k]", "2 * matrix[k * d + l]", f"{TESTS} -k sizes"),
    (KERNEL, "s < 0 || s >= segments", "s < 0 || s > segments + 9", f"{TESTS} -k messages"),
]  # fmt: skip

TILES = "triton_kernels/segment_moments.py"
INTERPRETED = "tests/test_triton_interpreter.py -k segments"
TRITON = [
    (TILES, "first = 0\n", "first = 1\n", INTERPRETED),
    (TILES, "(begin > p * PIECE).to(tl.int64)", "(begin >= p * PIECE).to(tl.int64)", INTERPRETED),
]  # fmt: skip
