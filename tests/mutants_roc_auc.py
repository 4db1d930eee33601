"""Planted bugs of the ROC metrics: (file, old text, new text, tests that must fail)."""

TESTS, EDGES = "tests/test_roc_auc.py", "tests/test_roc_auc_edges.py"

TRITON: list[tuple[str, str, str, str]] = []  # the CUDA form is C++

PUBLIC, METRIC = (f"python/nearlinear/{name}.py" for name in ("roc_auc", "metrics"))
PYTHON = [
    (PUBLIC, ".masked_fill(twice < 0, torch.nan)", "", f"{EDGES} -k not_a_number"),
    (PUBLIC, "value.masked_fill(~valid, 0)", "value.nan_to_num(0)", f"{EDGES} -k left_out"),
    (PUBLIC, "share = valid * (share", "share = (share", f"{EDGES} -k left_out"),
    (PUBLIC, "last[:-1] = scores[1:] != scores[:-1]", "last[:-1] = True", f"{EDGES} -k zeros"),
    (PUBLIC, "chance = max_fpr * max_fpr / 2", "chance = max_fpr / 2", f"{TESTS} -k 'test_definition and 40'"),
    ("python/nearlinear/sample_checks.py", "if target.dtype.is_signed:", "if True:", "tests/test_errors.py -k target"),
    (METRIC, "value.detach().clone()", "value.detach()", f"{EDGES} -k copies"),
]  # fmt: skip

KERNEL, SORT, KEYS = "csrc/cpu/roc_auc.cpp", "csrc/cpu/sorted_segments.h", "csrc/functors/ordered_key.h"
SORTED = f'{TESTS} -k "radix or rational"'
CPP = [
    (KEYS, "if (bits == sign) return sign;", "", f"{EDGES} -k zeros"),
    (KEYS, "if (x != x) return kNotANumber<key_t>;", "", f"{EDGES} -k not_a_number"),
    (KERNEL, "sum += width * (2 * above + height);", "sum += width * 2 * above;", f"{TESTS} -k rational"),
    (KERNEL, "total += sum + q.size * 2 * above;", "total += sum;", f"{TESTS} -k rational"),
    (KERNEL, "sum += share * width * (above + share * height / 2);", "sum += share * width * (above + height / 2);",
     f"{TESTS} -k 'test_definition and 40'"),
    (KERNEL, "return w[i] != 0; }", "return true; }", f"{EDGES} -k not_a_number"),
    (SORT, "for (size_t d = digit; d < digits; ++d)", "for (size_t d = digit + 1; d < digits; ++d)", SORTED),
    (SORT, "if (from != result) std::copy_n(from, n, result);", "", SORTED),
    (SORT, "if (largest == n) continue;", "if (2 * largest > n) continue;", SORTED),
]  # fmt: skip
