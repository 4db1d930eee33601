"""Planted bugs of the all-pairs and ranking losses: (file, old text, new text, tests that must fail)."""

TESTS, EDGES, RANKS = "tests/test_pairwise_auc.py", "tests/test_pairwise_auc_edges.py", "tests/test_ranking.py"

TRITON: list[tuple[str, str, str, str]] = []  # mutants_pair_bins.py

PUBLIC, CHECKS, BINS, CLOSED, TAILS, MOMENTS, KINDS, RANKING, OPS = (
    f"python/nearlinear/{name}.py"
    for name in (
        "pairwise_auc", "pairwise_checks", "pair_bins", "closed_forms", "tail_weights", "pairwise_moments", "surrogates", "ranking",
        "ops/pairwise_auc",
    )
)  # fmt: skip
NEAR = f"{TESTS} -k bins_keep"
PYTHON = [
    (PUBLIC, "means.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1), valid", "means.masked_fill(~valid, 0).mean(), valid",
     f"{EDGES} -k 'one_class or loop'"),
    (PUBLIC, "weight * (x.level <= level)", "weight", f"{EDGES} -k levels"),
    (PUBLIC, "None if min_tpr is None else 1 - min_tpr", "min_tpr", f"{EDGES} -k tails"),
    (CHECKS, "group[:, None] * columns + place", "place", f"{EDGES} -k columns"),
    (OPS, ".masked_fill_(coefficient == 0, 0)", "", f"{EDGES} -k not_a_number"),
    (OPS, "table[:, 0].neg_()", "table[:, 1].neg_()", f"{TESTS} -k 'all_pairs and bins'"),
    (OPS, "zip(slope.split(length), target.split(length), strict=True)", "zip(slope.split(length)[:1], target.split(length))",
     f"{TESTS} -k many_samples"),
    (OPS, "c * of(d_potential, order + 1))", "c * of(d_potential, order))", f"{TESTS} -k second_derivative"),
    (BINS, "_far(kernel, grid, sources, gap + 1)", "_far(kernel, grid, sources, gap)", NEAR),
    (BINS, "kernel.slope * (place * mass - mean)", "kernel.slope * (mean - place * mass)", NEAR),
    (BINS, "value = kernel.right * below[..., None] * fall", "value = kernel.right * below[..., None] * rise", NEAR),
    (BINS, "value = value + kernel.left * far[..., None] * rise", "pass", NEAR),
    (BINS, ".transpose(0, 1).reshape(terms, -1)", ".reshape(terms, -1)", NEAR),
    (BINS, "line[..., 1] = kernel.slope * width / 2 * mass", "pass", NEAR),
    (CLOSED, "scores = scores - _of(middle, x.group)", "scores = scores - 0 * _of(middle, x.group)", f"{TESTS} -k 'all_pairs and closed'"),
    (CLOSED, "weight * torch.exp(", "torch.exp(", f"{TESTS} -k 'exponential'"),
    (TAILS, "(groups.cumsum(0) - groups)[g]", "0 * groups[g]", f"{TESTS} -k 'tails'"),
    (MOMENTS, "d_weight = of_samples(values * upstream) - (mean * upstream * other).to(input.dtype)",
     "d_weight = of_samples(values * upstream)", f"{EDGES} -k micro"),
    (KINDS, "self.scale**order * (-1) ** self.first", "(-1) ** self.first", f"{TESTS} -k kernels_are"),
    (KINDS, "-constant, -slope, numbers", "constant, slope, numbers", f"{RANKS} -k lambda_rank_with"),
    (RANKING, "return counts[:n] - weight / 2", "return counts[:n]", f"{RANKS} -k ranks_of_tied"),
    (RANKING, "discount.masked_fill(rank > k, 0)", "discount.masked_fill(rank >= k, 0)", f"{RANKS} -k lambda_rank_with"),
    (RANKING, "end - place", "end - place - 1", f"{RANKS} -k lambda_rank_with"),
]  # fmt: skip

CELLS = "csrc/cpu/pair_bins.cpp"
KERNELS = "tests/test_pair_bins.py"
CPP = [
    (CELLS, "(!c || c[first + i] != 0)", "true", KERNELS),
    (CELLS, "cell[i] < 0 ? -1 : cell[i] + (2 *", "cell[i] < -1 ? -1 : cell[i] + (2 *", KERNELS),
    (CELLS, "const bool inside = b >= 0 && b < bins.count;", "const bool inside = b >= 0 && b <= bins.count;", KERNELS),
    (CELLS, "const scalar_t next = row[k] + 2 * t[i] * now - after;", "const scalar_t next = row[k] + t[i] * now - after;", KERNELS),
]  # fmt: skip
