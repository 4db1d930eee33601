"""Planted bugs of the scan over pairs: (file, old text, new text, tests that must fail)."""

PYTHON: list[tuple[str, str, str, str]] = []  # mutants_pairwise_auc.py
TRITON: list[tuple[str, str, str, str]] = []

KERNEL, WALKS, STATES = "csrc/cpu/pair_scan.cpp", "csrc/cpu/pair_walks.h", "csrc/functors/pair_scan.h"
TESTS = "tests/test_pair_scan.py"
CPP = [
    (WALKS, "out.place[m] = a[k] < b[l] ? b[l] : a[k];", "out.place[m] = a[k] < b[l] ? a[k] : b[l];", TESTS),
    (WALKS, "any_upper(b) ? above[b - 1].prepend(above[b], walk.rate) : void(above[b - 1] = above[b]);", ";", TESTS),
    (WALKS, "const double at = line.place(up ? end - 1 : begin);", "const double at = line.place(end - 1);", TESTS),
    (WALKS, "return a < b || (a == b && tie_leads(i, j));", "return a <= b;", TESTS),
    (WALKS, "state_t::kOrdered && lower.element.record[i].index <", "lower.element.record[i].index <", TESTS),
    (WALKS, "if (factor[k] == 0) continue;", "", TESTS),
    (STATES, "k == 1 || gap > 0 ? rest : 0.0", "rest", TESTS),
    (KERNEL, "if (any_q) (poison ? p : nan_p).fill(kNan);", "if (any_q) p.fill(kNan);", TESTS),
]
