"""Planted bugs of the moments of monomials: (file, old text, new text, tests that must fail)."""

PYTHON: list[tuple[str, str, str, str]] = []
TRITON: list[tuple[str, str, str, str]] = []

FEATURES, TILES, SUMS, KERNEL = (f"csrc/cpu/taylor_{name}" for name in ("features.h", "tiles.h", "sums.h", "attention.cpp"))
TESTS = "tests/test_taylor_moments.py"
CPP = [
    (FEATURES, "low + (table.start(m) + a) * kRow<T>, b - a", "low + table.start(m) * kRow<T>, b - a", f"{TESTS} -k run_that_begins"),
    (FEATURES, "fold_rows(w, u + c * kRow<T>, d_product, 1", "fold_rows(w, u + c * kRow<T>, product, 1", f"{TESTS} -k float64"),
    (TILES, "bias[t] == -simd::infinity<T>) place_", "bias[t] == simd::infinity<T>) place_", f"{TESTS} -k masked_keys_take"),
    (SUMS, "to = (part + 1) * all_tiles / cut.parts;", "to = from + all_tiles / cut.parts;", f"{TESTS} -k long_sums"),
    (KERNEL, "problem * queries.group + place / queries.tiles", "problem + place / queries.tiles", f"{TESTS} -k any_shape"),
    (KERNEL, "weights.clear_columns(keys.D, fold.d_u);", ";", f"{TESTS} -k upstream_that_is_no_number"),
]
