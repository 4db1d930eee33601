"""Planted bugs of the distance family: (file, old text, new text, tests that must fail)."""

BATTERY, TILE = "tests/test_distance.py::TestDistance", "tests/test_distance_tile.py"
BUDGET = f"{BATTERY}::test_error_budget"

OPS, PUBLIC, RECORDS = (f"python/nearlinear/{name}.py" for name in ("ops/distance", "distance", "distances"))
PYTHON = [
    (OPS, "input.shape[0], input.shape[1], other.shape[1])", "input.shape[0], other.shape[1], input.shape[1])", f"{BATTERY}::test_opcheck"),
    (OPS, "differentiable=(0, 1, 2)", "differentiable=(0, 1)", f"{BATTERY}::test_second_derivatives"),
    (OPS, "wanted = ctx.needs_input_grad[:2]", "wanted = ctx.needs_input_grad[1::-1]", f"{BATTERY}::test_gradients_in_float64"),
    (PUBLIC, "rows = x.reshape(1, x.shape[:-1].numel(), x.shape[-1])", "rows = x.reshape(1, x.shape[-1], x.shape[:-1].numel()).mT",
     f"{BUDGET} -k shared"),
    (RECORDS, '(power.masked_fill(equal, 1) ** (1 / self.p)).masked_fill(equal, 0)', 'power ** (1 / self.p)', f"{TILE} -k equal_vectors"),
    (RECORDS, 'return f"{self.kernel}_abs" if self.absolute else self.kernel', 'return self.kernel', f"{BUDGET} -k bray_curtis_abs"),
]  # fmt: skip

FUNCTORS, KERNELS, GLUE = "csrc/functors/distance.h", "csrc/cpu/distance_tiles.h", "csrc/cpu/distance.cpp"
CPP = [
    (KERNELS, "? static_cast<bits>(k) : place[r][c]", "? place[r][c] : static_cast<bits>(k)", f"{TILE} -k first_of_equal"),
    (KERNELS, "double sum[ROWS][W] = {};", "T sum[ROWS][W] = {};", f"{TILE} -k long_sums"),
    (KERNELS, "metric_t::kBounded || g != 0 ? g * slope : T(0)", "g * slope", f"{TILE} -k zero_upstream"),
    (KERNELS, "coefficient[r][c] = g != 0 ? g * metric.scale(pair) : T(0);", "coefficient[r][c] = g * metric.scale(pair);",
     f"{TILE} -k zero_upstream"),
    (GLUE, "std::copy_n(line, lanes, out.row(i + r) + j);", "std::copy_n(line, W, out.row(i + r) + j);", f"{TILE} -k tile_layouts"),
    (GLUE, "d_a.row(begin + c)[k] += s->d_packed", "d_a.row(begin + c)[k] = s->d_packed", f"{TILE} -k accumulators"),
    (GLUE, "g[b].data, 1, g.stride)", "g[b].data, g.stride, 1)", BUDGET),
    (FUNCTORS, "std::islessgreater(d, T(0)) ? std::copysign(T(1), d) : T(0)", "std::copysign(T(1), d)", f"{TILE} -k equal_vectors"),
    (FUNCTORS, "return -s.sum * sign(s.moment)", "return -s.sum", f"{BUDGET} -k negative"),
    (FUNCTORS, "s.top == simd::infinity<T> ? s.top : ", "", f"{TILE} -k not_a_number"),
]  # fmt: skip

TRITON_TILES, TRITON_METRICS = "triton_kernels/distance.py", "triton_kernels/distance_metrics.py"
CASES, AHEAD = "tests/triton_distance.py", "tests/test_triton_aot.py"
TRITON = [
    (TRITON_TILES, "m_i, m_j = i < R, j < C", "m_i, m_j = i < R, j <= C", CASES),
    (TRITON_TILES, "i = (i_tile % tiles_i).to(tl.int64) * BI", "i = (i_tile % tiles_i) * BI", f"{AHEAD} -k offsets"),
    (TRITON_TILES, "up = (a > top) | ((a != a) & (top == top))", "up = a >= top", CASES),
    (TRITON_TILES, "tl.load(p_out, mask=mask, other=0) + total", "total", CASES),
    (TRITON_TILES, "part += tl.where(c != 0, s, 0)", "part += s", CASES),
    (TRITON_METRICS, "tl.abs(d) * inverse * sign(x)", "tl.abs(d) * inverse * sign(w)", CASES),
]  # fmt: skip
