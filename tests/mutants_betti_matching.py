"""Planted bugs of Betti matching: (file, old text, new text, tests that must fail)."""

LOSS, REFERENCE, EDGES = (f"tests/test_betti_{name}.py" for name in ("matching", "reference", "edges"))

TRITON: list[tuple[str, str, str, str]] = []

PUBLIC, IMAGES, METRICS, CHECKS = (f"python/nearlinear/betti_{name}.py" for name in ("matching", "images", "metrics", "checks"))
OPS = "python/nearlinear/ops/betti_matching.py"
PYTHON = [
    (PUBLIC, "/ max(images.numel(), 1)", "/ images.numel()", f"{EDGES} -k no_image"),
    (PUBLIC, "[1] * (2 * nd)", "[1] * 4", f"{EDGES} -k frame"),
    (PUBLIC, "(found[0] + found[1]) / 2", "found[0] + found[1]", f"{REFERENCE} -k both"),
    (PUBLIC, "for weight in each for factor in factors", "for factor in factors for weight in each",
     f"{LOSS} -k 'error_budget and options'"),
    (PUBLIC, "flat.argmax(1) if", "flat.argmin(1) if", f"{LOSS} -k rows_and_their_places"),
    (IMAGES, "return group % nd, group // nd", "return group // nd, group % nd", f"{LOSS} -k rows_and_their_places"),
    (IMAGES, "if input.shape[1] != 1:", "if True:", f"{EDGES} -k single_channel"),
    (METRICS, "counts[:, 0] += _occupied(foreground)", "counts[:, 0] += 1", f"{REFERENCE} -k ranks"),
    (METRICS, ">= threshold\n", "> threshold\n", f"{EDGES} -k count"),
    (METRICS, "offsets[::nd, 1:]", "offsets[::nd]", f"{REFERENCE} -k ranks"),
    (METRICS, "dist.all_gather_object(parts, own, group=self.process_group)", "parts = [own]", f"{EDGES} -k processes"),
    (CHECKS, "missing.nonzero()[0]", "missing.nonzero()[-1]", "tests/test_betti_edges.py -k first_nan"),
    (OPS, "if torch.is_grad_enabled() else gradient", "if False else gradient", f"{LOSS} -k second_derivatives"),
    (OPS, "if needed and not ctx.wants[i]:", "if False:", f"{LOSS} -k wants"),
]  # fmt: skip

FORMULA, TREES, MERGES, LOOPS = "csrc/functors/betti_loss.h", *(f"csrc/cpu/betti_{name}.h" for name in ("trees", "merges", "loops"))
CPP = [
    (TREES, "hope[root] |= hope[dead];", "", REFERENCE),
    (TREES, "return value_of(least[basin]) >= value;", "return value_of(least[basin]) > value;", REFERENCE),
    (MERGES, "if (pay != nullptr && !older((*pay)[0], other, p)) return p;", "(void)pay;", REFERENCE),
    (LOOPS, "(b[i] == m) & (out[i] == lone) ? k", "(b[i] == m) ? k", REFERENCE),
    (FORMULA, "(b > d ? b - d : d - b) > min_persistence", "(b > d ? b - d : d - b) >= min_persistence", f"{EDGES} -k strict"),
    (FORMULA, "return push ? 4 * w * (b - over())", "return push ? 2 * w * (b - over())", f"{LOSS} -k 'error_budget and options'"),
    (FORMULA, "superlevel ? 0.0 : 1.0", "superlevel ? 1.0 : 0.0", f"{LOSS} -k 'error_budget and options'"),
]  # fmt: skip
