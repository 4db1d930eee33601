"""Planted bugs of the pair family: (file, old text, new text, tests that must fail)."""

SUPCON = "tests/test_pair_loss.py::TestSupcon"
BUDGET = "tests/test_pair_loss.py -k 'error_budget and float32'"
EDGES = "tests/test_pair_loss_edges.py"
INTERPRETED = "tests/triton_pair.py"

WALK, COMMON, PAIRS = "python/nearlinear/pair_tiles.py", "python/nearlinear/pair_common.py", "python/nearlinear/pair_functions.py"
PYTHON = [
    (WALK, "lse[:, r] = torch.logaddexp(lse[:, r], part[0])", "lse[:, r] = part[0]", BUDGET),
    (WALK, "column + c.start", "column", BUDGET),
    (WALK, "d_rows[r].addmm_(tile, pairs.columns[c])", "d_rows[r] = tile @ pairs.columns[c]", BUDGET),
    (WALK, "top - left if self.key is None else None", "0 if self.key is None else None", BUDGET),
    (PAIRS, "limit = torch.stack([below, mining_margin - low])", "limit = torch.stack([below, -low])", BUDGET),
    (PAIRS, "own - total[0] / mass[0].clamp(min=1) + log_1_plus(lse[1] - own)",
     "torch.logaddexp(lse[1], own) - total[0] / mass[0].clamp(min=1)", f"{EDGES} -k relative_accuracy"),
    (COMMON, "count.clamp(min=1) if isinstance", "count if isinstance", f"{EDGES} -k degenerate"),
]  # fmt: skip

KERNELS, GLUE = "csrc/cpu/pair_loss.h", "csrc/cpu/pair_loss.cpp"
CPP = [
    (KERNELS, "weight[self - begin] = 0;", "weight[self - begin] = 1;", f"{SUPCON}::test_error_budget"),
    (KERNELS, "exponentials *= std::exp(shift - top);", "exponentials *= 1;", f"{EDGES} -k blocks"),
    (GLUE, "if (inside) segment(self + 1, P.columns);", "if (inside) segment(self, P.columns);", f"{EDGES} -k no_positive"),
    (GLUE, "if (invalid != 0) low = high", "if (false) low = high", f"{EDGES} -k nan"),
]

LAUNCHER = "triton_kernels/pair_loss.py"
TRITON = [
    (LAUNCHER, "exponentials * tl.exp(before - shift).to(tl.float64)", "exponentials", INTERPRETED),
    (LAUNCHER, "m &= j.to(tl.int64)[None, :] != (i_n + first_self)[:, None]\n    same", "same", INTERPRETED),
    (LAUNCHER, "step = 2 * count.to(tl.int64)", "step = count.to(tl.int64)", INTERPRETED),
]
