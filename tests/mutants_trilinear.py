"""Planted bugs of the attention over all pairs of keys: (file, old text, new text, tests that must fail)."""

TESTS = "tests/test_trilinear.py"

PYTHON: list[tuple[str, str, str, str]] = []  # the layer of ops has its own lines in the family of the public functions

TILE, KEYS, FORWARD, BACKWARD = (f"csrc/cpu/trilinear_{name}.h" for name in ("tile", "keys", "forward", "backward"))
WEIGHTS, SHARES, GLUE = "csrc/cpu/trilinear_weights.h", "csrc/cpu/trilinear_shares.h", "csrc/cpu/tensor_attention.cpp"
CPP = [
    (KEYS, "if (added == -simd::infinity<T>) continue;", "", f"{TESTS} -k all_keys_masked"),
    (FORWARD, "row_shift_[r] = top;\n  }", "}", f"{TESTS} -k common_bias"),
    (TILE, "places[1][s.slot + s.rows - 1].last", "places[1][s.slot].last", f"{TESTS} -k 'definition and causal'"),
    (WEIGHTS, "const auto near = (x[h] > -1) & (x[h] < 1);", "const auto near = x[h] != x[h];", f"{TESTS} -k excess_does_not_cancel"),
    (BACKWARD, "delta[r] = delta_[slot];", "delta[r] = delta_[r];", f"{TESTS} -k 'definition and band'"),
    (SHARES, "share < (bg + 1) * parts_", "share + 1 < (bg + 1) * parts_", f"{TESTS} -k 'definition and large'"),
    (GLUE, "double sum = -static_cast<double>(d_lses.element(tile.b, h, i));", "double sum = 0;", f"{TESTS} -k gradcheck"),
]  # fmt: skip

TRITON: list[tuple[str, str, str, str]] = []  # with the Triton kernels
