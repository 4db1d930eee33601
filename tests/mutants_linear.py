"""Planted bugs of the fused linear heads: (file, old text, new text, tests that must fail)."""

BATTERY = "tests/test_linear_cross_entropy.py::TestLinearCrossEntropy::test_error_budget"
FORWARD = "tests/test_linear_cross_entropy.py::TestGradientsInForward"
PROBABILITIES = "tests/test_linear_cross_entropy.py::TestClassProbabilities::test_gradients_in_float64"
RIVALS, MEMORY, HEADS = "tests/test_linear_rivals.py", "tests/test_linear_memory.py", "tests/test_heads.py"
MAPS = "tests/test_score_maps.py"
SHARDS, SFACE = "tests/test_cross_entropy_shards.py", "tests/test_sface.py"

TILES, REDUCERS, PLAN = (f"python/nearlinear/{name}.py" for name in ("linear_tiles", "reducers", "linear_plan"))
OPS, PUBLIC, PARALLEL = (f"python/nearlinear/{name}.py" for name in ("ops/linear_cross_entropy", "linear_cross_entropy", "vocab_parallel"))
EMBEDDINGS, CLASSES, FACES = (f"python/nearlinear/{name}.py" for name in ("embeddings", "class_embedding", "heads"))
PYTHON = [
    # merging tiles of classes
    (REDUCERS, "nll = torch.where(torch.isposinf(b.nll), a.nll + gain_a, b.nll + gain_b)",
     "nll = torch.where(torch.isposinf(b.nll), a.nll, b.nll)", f"{SHARDS} -k merged"),
    (REDUCERS, "lse_a, lse_b = (s.lse.double() + s.lse_residual for s in (a, b))", "lse_a, lse_b = (s.lse.double() for s in (a, b))",
     f"{SHARDS} -k merged"),
    (REDUCERS, "d_lse = d_lse + up.d_spread * (self._mass(0, head.held) - self._mass(begin, end))", "pass",
     f"{BATTERY} -k everything_tiles"),
    # accumulating over tiles of rows
    (TILES, "            into.copy_(part)\n", "            into.add_(part)\n", f"{BATTERY} -k 'arc_tiles or everything_tiles'"),
    (TILES, "tile.scatter_(1, mark.place, torch.where(mark.here, d * mark.slope, d).unsqueeze(1))",
     "tile.scatter_(1, mark.place, d.unsqueeze(1))", f"{BATTERY} -k arc_margin"),
    (TILES, "index: slice | Tensor = slice(begin, end) if kept is None else kept[begin:end]", "index = slice(begin, end)",
     f"{BATTERY} -k everything"),
    (TILES, "tiles = head.plan(n)", "tiles = head.plan(rows_in_all)", f"{MEMORY} -k peak_is_results"),
    (TILES, "value = exact if found is None else found[0]", "value = None if found is None else found[0]",
     "tests/test_linear_cross_entropy.py -k near_its_class"),
    # memory
    (PLAN, "        total += v * features * wide\n", "        total += 0\n", f"{MEMORY} -k 'formula_of_cuda or peak_is_results'"),
    (PLAN, "total = rows * classes * (wide * embedding.buffers + (2 if on_half else 0))", "total = rows * classes * 2",
     f"{MEMORY} -k peak_is_results"),
    # gradients in forward
    (OPS, "through = torch.sigmoid(above)", "through = torch.sigmoid(-above)", f"{FORWARD}::test_error_budget -k focal"),
    ("python/nearlinear/ops/_register.py", " or torch._C._autograd._get_current_graph_task_keep_graph()", "",
     f"{RIVALS} -k backward_twice"),
    (OPS, "record.slope(nll + gain, num_classes)", "record.slope(nll, num_classes)", f"{FORWARD}::test_error_budget -k focal"),
    (OPS, "if torch.is_grad_enabled():  # create_graph", "if False:  # create_graph", f"{RIVALS} -k double_backward"),
    (OPS, "if not target.is_cuda and (bad", "if False and (bad", f"{RIVALS} -k labels_out_of_range"),
    (PUBLIC, "return loss + math.nan if divisor_of_nothing else loss", "return loss", f"{RIVALS} -k empty_batch"),
    # class probabilities
    (REDUCERS, "slope = (1 - self.label_smoothing) * up.d_mass", "slope = up.d_mass", f"{PROBABILITIES} -k 'soft-'"),
    (TILES, "if any(gradients.wants) or head.soft:", "if any(gradients.wants):", f"{PROBABILITIES} -k 'soft-'"),
    (PLAN, "        total += 2 * rows * classes * wide\n", "        total += 0\n", f"{MEMORY} -k probabilities"),
    # class-parallel
    (PARALLEL, "mass.squeeze() - own_mass", "0.0", "tests/test_vocab_parallel.py"),
    (PARALLEL, "by_place[i] = gathered_sum(by_place[i], ctx.shard.group)", "pass", "tests/test_vocab_parallel.py"),
    # score maps
    (EMBEDDINGS, "d.addcmul_(w, d_columns[1].unsqueeze(1), value=2)", "d.addcmul_(w, d_columns[1].unsqueeze(1), value=1)",
     f"{MAPS} -k derivatives"),
    (EMBEDDINGS, "by_room = (_dot(w, d) + (columns * d_columns).sum(0)) / divisor", "by_room = _dot(w, d) / divisor",
     f"{MAPS} -k derivatives"),
    (CLASSES, "            q = slice(begin + p.start, begin + p.stop)", "            q = p", f"{BATTERY} -k 'arc_tiles or harmonic_tiles'"),
    (TILES, "            if self.last:\n", "            if self.first:\n", f"{BATTERY} -k 'arc_tiles or harmonic_tiles'"),
    (TILES, "raw = raw.masked_fill(ignored.unsqueeze(1), 0)", "pass", "tests/test_linear_cross_entropy.py -k ignored_rows_hold"),
    (PLAN, "total += max(6 * row_bytes, 3 * row_bytes + panel_bytes, 2 * panel_bytes)", "total += 2 * row_bytes",
     f"{MEMORY} -k peak_is_results"),
    # hyperplanes: the bias inside the embedding, the factor of each class
    (TILES, "                self.add(d_columns[extra], d_last)\n", "                d_columns[extra] = 0\n",
     f"{BATTERY} -k hyperbolic_mlr"),
    (CLASSES, "                d_bias[q] = of_bias\n", "                d_bias[: len(of_bias)] = of_bias\n",
     f"{BATTERY} -k hyperplane_tiles"),
    (EMBEDDINGS, "(along * tanh - d_plane", "(along - d_plane", f"{MAPS} -k derivatives"),
    (EMBEDDINGS, "torch.mul(tile, value, out=slope).sum(0)", "tile.sum(0)", f"{BATTERY} -k hyperbolic_mlr"),
    (PLAN, "(wide * embedding.buffers + ", "(wide + ", f"{MEMORY} -k 'peak_is_results and hyperplanes'"),
    (FACES, "scatter(0, order, ranked)", "copy_(ranked[order])", f"{HEADS} -k elastic_plus"),
]  # fmt: skip

ROW, SUM, SIMD = "csrc/cpu/cross_entropy_rows.h", "csrc/cpu/sface.cpp", "csrc/common/simd.h"
CPP = [
    (ROW, "in.load(offset, L.stride_v, n, a);\n    }\n    const op_t *raw = pairs || over ? a", "}\n    const op_t *raw = pairs ? a",
     f"{SHARDS} -k maps"),
    (ROW, "const double gap = here ? out.nll[row] : (others.shift - origin) + std::log(others.sum);",
     "const double gap = out.nll[row];", f"{SHARDS} -k maps"),
    (ROW, "if (out.shard && z_y == -simd::infinity<op_t> && others.sum == 0) {", "if (false) {", f"{SHARDS} -k minus_infinity"),
    (SIMD, "p = p * a - 0.2145988016f;", "p = p * a - 0.2146988016f;", f"{SFACE} -k arc_cosine"),
    (SUM, "if (has_target) sum += weighted_sum(c + k + 1, n - k - 1, call.r);",
     "if (has_target) sum += weighted_sum(c + k, n - k, call.r);",
     f"{SFACE} -k sums"),
    (SUM, "if (k >= 0 && k < n) c[k] = 0;", "", f"{SFACE} -k sums"),
]  # fmt: skip

TRITON_HARD, TRITON_SUM = "triton_kernels/cross_entropy.py", "triton_kernels/sface.py"
TRITON = [
    (TRITON_HARD, "y = tl.where(here, label - first_class, -1).to(tl.int32)", "y = tl.where(here, label, -1).to(tl.int32)",
     f"{SHARDS} -k maps"),
    (TRITON_HARD, "return -param * tl.log(b), -param / b", "return -param * tl.log(b), param / b", f"{SHARDS} -k maps"),
    (TRITON_SUM, "p = p * a - 0.2145988016", "p = p * a - 0.2146988016", f"{SFACE} -k arc_cosine"),
    (TRITON_SUM, "m = live[:, None] & m_v & (o_v != y[:, None])", "m = live[:, None] & m_v", f"{SFACE} -k sums"),
]  # fmt: skip
