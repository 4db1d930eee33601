"""Planted bugs of the cross-entropy family: (file, old text, new text, tests that must fail)."""

BATTERY = "tests/test_cross_entropy.py::TestCrossEntropy"
ACCURACY = "tests/test_cross_entropy_accuracy.py"
EDGES = "tests/test_cross_entropy_edges.py"
RUNTIME = "tests/test_cross_entropy_runtime.py"
ERRORS = "tests/test_errors.py"
ROWS = "tests/test_row_losses.py"
BUDGET, LAYOUTS, BITS = f"{BATTERY}::test_error_budget", f"{BATTERY}::test_input_layouts", f"{BATTERY}::test_same_bits"

OPS, PUBLIC, RECORDS = "python/nearlinear/ops/cross_entropy.py", "python/nearlinear/cross_entropy.py", "python/nearlinear/row_losses.py"
PYTHON = [
    # fakes and derivatives
    (OPS, "shape, dtype = _rows(input), stats_dtype(input)", "shape, dtype = _rows(input), input.dtype", f"{BATTERY}::test_opcheck"),
    (OPS, "shape if spread else [0]", "shape", f"{BATTERY}::test_opcheck"),
    (OPS, "logit_stats_backward(d_nll, d_lse, d_spread, *", "logit_stats_backward(d_lse, d_nll, d_spread, *", BUDGET),
    (OPS, "logit_stats_backward(d_nll, d_lse,", "logit_stats_backward(d_nll.flatten()[:1].expand_as(d_nll), d_lse,", BUDGET),
    (OPS, '_gradient, differentiable=(0, 1, 2, 3))\n\n\n# ---- soft', '_gradient, differentiable=(0, 1, 2))\n\n\n# ---- soft',
     f"{BATTERY}::test_second_derivatives"),
    (OPS, "ctx.save_for_backward(input, target, weight, nll", "ctx.save_for_backward(input.clone(), target, weight, nll",
     f"{BATTERY}::test_saved_memory"),
    (OPS, "return d_input, d_target if wants_target else None", "return d_input, None", f"{BATTERY}::test_gradients_in_float64"),
    ("python/nearlinear/ops/_register.py", "else torch.float32", "else torch.get_default_dtype()", BITS),
    # the public lines
    (PUBLIC, "kept = target != ignore_index", "kept = target != -100", f"{BATTERY}::test_reductions_follow_from_rows"),
    (PUBLIC, "] * kept\n        rows = record", "]\n        rows = record", "tests/test_cross_entropy.py::test_drop_in_for_torch"),
    (PUBLIC, "(label_smoothing / num_classes) * spread", "label_smoothing * spread", BUDGET),
    (PUBLIC, "z_loss * lse**2", "z_loss * lse", BUDGET),
    (PUBLIC, "row_weight = v if row_weight is None else row_weight * v", "row_weight = v if row_weight is None else row_weight",
     f"{BATTERY}::test_reductions_follow_from_rows"),
    (PUBLIC, "divisor = normalizer if normalizer is not None else ", "divisor = ", "tests/test_cross_entropy.py::test_normalizer"),
    (PUBLIC, "v = v if soft else v.masked_fill(~kept, 0)", "v = v.clone()", f"{EDGES}::test_all_rows_ignored_with_every_option"),
    (PUBLIC, "soft = target.is_floating_point()\n    _check_options",
     "soft = input.data.clamp_(max=2.0) is target or target.is_floating_point()\n    _check_options",
     f"{BATTERY}::test_nothing_is_overwritten"),
    (PUBLIC, "return rows.reshape(rows_shape)", "return rows.reshape(rows_shape) * (1 + 1e-6 * torch.rand(()))", BITS),
    (PUBLIC, '"softcap": softcap, "logit_map"', '"softcap": None, "logit_map"', f"{BATTERY}::test_modules"),
    (PUBLIC, "target.reshape(rows_shape), input.shape[1], ignore_index)\n        raise",
     "target, input.shape[1], ignore_index)\n        raise", ERRORS),
    ("python/nearlinear/_checks.py", "forward_ad.unpack_dual(value).tangent is not None", "False",
     f"{ERRORS}::test_forward_mode_is_refused"),
    # row losses
    (RECORDS, "return _one_minus_exp(self.q * nll) / self.q", "return _one_minus_exp(self.q * nll)",
     f"{ROWS}::test_value_is_the_papers_formula"),
    (RECORDS, "torch.where(nll >= -math.log(self.k), (1 -", "torch.where(nll > -math.log(self.k), (1 -",
     f"{ROWS}::test_truncation_point"),
    (RECORDS, "torch.where(x < 0.5, -torch.expm1(-x), 1 - torch.exp(-x))", "-torch.expm1(-x)",
     f"{ROWS}::test_slope_is_the_derivative_of_value"),
    (RECORDS, "torch.where(x < 0.5, -torch.expm1(-x), 1 - torch.exp(-x))", "1 - torch.exp(-x)",
     f"{ROWS}::test_small_losses_keep_relative_accuracy"),
    (RECORDS, "return torch.where(inside, (-torch.expm1(-n)) ** self.gamma * n, nll)", "return (-torch.expm1(-nll)) ** self.gamma * nll",
     f"{ROWS}::test_slope_is_the_derivative_of_value"),
    (RECORDS, "self.alpha - self.beta * self.A", "self.alpha + self.beta * self.A",
     f"{ROWS}::test_slope_by_finite_differences_of_the_formula"),
]  # fmt: skip

ROW, TILE, SOFT = "csrc/cpu/cross_entropy_rows.h", "csrc/cpu/cross_entropy_tiles.h", "csrc/cpu/cross_entropy_soft.h"
BLOCKS, GLUE, SIMD = "csrc/cpu/row_blocks.h", "csrc/cpu/cross_entropy.cpp", "csrc/common/simd.h"
CPP = [
    # layout
    (SIMD, "for (int64_t i = 0; i < n; ++i) out[i] = to_op(in[i * stride]);", "for (int64_t i = 0; i < n; ++i) out[i] = to_op(in[i]);",
     LAYOUTS),
    (BLOCKS, "(row % pixels) * stride_p", "(row % pixels)", LAYOUTS),
    (TILE, "stride_outer(L.pixels == 1 ? 0 : L.stride_b)", "stride_outer(L.pixels == 1 ? 0 : L.classes * L.pixels)", LAYOUTS),
    (SOFT, "d_target->store(d, n, DT->offset(row)", "d_target->store(d, n, D.offset(row)", LAYOUTS),
    # the online sum
    (BLOCKS, "sum = sum * std::exp(shift - top) + sum_exp_max", "sum = sum + sum_exp_max", f"{ACCURACY} -k rising"),
    (BLOCKS, "if (top - shift > 40) {", "if (false) {", f"{ACCURACY} -k rising"),
    (ROW, "has_target = k >= 0 && k < n;", "has_target = k >= 0 && k < n - 1;", f"{BUDGET} -k blocks"),
    (ROW, "add(k + 1, n - k - 1);", "add(k, n - k);", BUDGET),
    (ROW, "has_target && w == nullptr && in.pairs", "has_target && in.pairs", f"{ACCURACY} -k weighted_halves"),
    (TILE, "k[l] == j ? -simd::infinity<op_t> : v;", "v;", f"{BUDGET} -k image_tiles"),
    (TILE, "relative = y[l] - begin;", "relative = y[l];", f"{BUDGET} -k image_tiles"),
    (TILE, "add[l] = s.sum[l] * simd::exp(s.max[l] - shift[l]);", "add[l] = s.sum[l];", f"{BUDGET} -k image_tiles"),
    (TILE, "accumulate_deviation(tile, n, weight == nullptr ? nullptr : weight + begin, s)", "accumulate_deviation(tile, n, weight, s)",
     f"{BUDGET} -k image_tiles"),
    # numerics
    (ROW, "(d_nll[row] + without_nll(row)) * simd::exp(-residual[row]);", "d_nll[row] + without_nll(row);", f"{ACCURACY} -k offset"),
    (BLOCKS, "*lse = loss == loss ? high : loss;", "*lse = high;", f"{EDGES} -k not_a_number"),
    (BLOCKS, "*residual = high - high == 0 ? low : op_t(0);", "*residual = op_t(0);", f"{ACCURACY} -k offset"),
    (BLOCKS, "simd::log1p(target_on_top ? sum * e : (sum - 1) + e)", "std::log(1 + (target_on_top ? sum * e : (sum - 1) + e))",
     f"{ACCURACY} -k confident"),
    (ROW, "d_nll[row] * simd::one_minus_exp(loss)", "d_nll[row] * (1 - std::exp(-static_cast<float>(loss)))", f"{ACCURACY} -k confident"),
    (TILE, "up.d_nll[l] * simd::one_minus_exp(up.nll[l])", "up.d_nll[l] * (1 - simd::exp(-up.nll[l]))", f"{ACCURACY} -k confident"),
    (SOFT, "(residual - (z[j] - lse))", "(lse - z[j])", f"{ACCURACY} -k probabilities"),
    (SOFT, "if (!std::isfinite(origin) && std::isfinite(top)) origin = top;", "origin = 0;", f"{ACCURACY} -k probabilities"),
    (SIMD, "p = p * r + 0.16667637f;", "p = p * r + 0.16667f;", f"{ACCURACY} -k exponential"),
    (SIMD, "const float c = lowest > x ? lowest : x;", "const float c = x;", f"{EDGES} -k 'not_a_number or minus_infinity'"),
    (SIMD, "(bits >> 23) - 127;", "(bits >> 23) - 126;", f"{ACCURACY} -k confident"),
    (SIMD, "p = p * s + 2.0f / 15;", "p = p * s + 2.0f / 16;", f"{ACCURACY} -k capped"),
    (SIMD, "(u + 0x7fffu + ((u >> 16) & 1u)) >> 16", "u >> 16", f"{ACCURACY} -k rounded_once"),
    (SIMD, "h = a < 0x38800000 ? subnormal : normal", "h = a < 0x38000000 ? subnormal : normal", f"{ACCURACY} -k rounded_once"),
    (SIMD, "(magnitude | 0x7f800000) : finite", "finite : finite", f"{EDGES} -k minus_infinity"),
    (SIMD, "encode<half_t>(even[i]) | (encode<half_t>(odd[i]) << 16)", "encode<half_t>(odd[i]) | (encode<half_t>(even[i]) << 16)",
     f"{BUDGET} -k blocks"),
    # options
    (ROW, "out.weight_sum * gap + deviation", "L.classes * gap + deviation", BUDGET),
    (ROW, "times_map_slope(map, raw, d_z, n)", "times_map_slope(map, z, d_z, n)", f"{BUDGET} -k capped_rows"),
    (SOFT, "g != 0 || up.d_lse[row] != 0;", "g != 0 || total != 0;", f"{EDGES} -k 'zero_upstream or may_hold'"),
    (SOFT, "(w == nullptr ? op_t(1) : w[j]) * (keep * t[j] + uniform)", "(w == nullptr ? op_t(1) : w[j]) * keep * t[j] + uniform", BUDGET),
    # rows that are not to be read, memory that must be written
    (ROW, "return d_nll[row] == 0 && d_lse[row] == 0 && (", "return false && (", f"{EDGES} -k 'zero_upstream or may_hold'"),
    (GLUE, "out.nll[r] = out.lse[r] = out.residual[r] = 0;", "out.nll[r] = out.residual[r] = 0;", BITS),
    (GLUE, "zero_row(D, r, d_in);", "continue;", BITS),
    (TILE, "up.live[l] ? value : op_t(0)", "value", EDGES),
    (GLUE, "target[i] >= classes) && target[i] != ignore_index) return i", "target[i] > classes) && target[i] != ignore_index) return i",
     f"{EDGES} -k invalid"),
    # threads
    (ROW, "  alignas(64) op_t scratch[kBlock];\n", "  static op_t scratch[kBlock];\n", f"{RUNTIME} -k scratch"),
]  # fmt: skip

TRITON_HARD, TRITON_SOFT, TRITON_COMMON = (f"triton_kernels/{name}.py" for name in ("cross_entropy", "cross_entropy_soft", "common"))
CASES, SPECIAL, AHEAD = "tests/triton_cases.py", "tests/triton_edges.py", "tests/test_triton_aot.py"
TRITON = [
    # masks, strides, index width
    (TRITON_HARD, "m = live[:, None] & (j < V)[None, :]", "m = live[:, None] & (j <= V)[None, :]", CASES),
    (TRITON_HARD, "p_d_input + i_o * stride_do + i_l * stride_dl", "p_d_input + i_o * stride_do + i_l * stride_il", CASES),
    (TRITON_SOFT, "i_o * stride_uo + i_l * stride_ul", "i_o * stride_to + i_l * stride_tl", CASES),
    (TRITON_HARD, "mask=m_n[:, None] & m_v)", "mask=live[:, None] & m_v)", CASES),
    (TRITON_SOFT, "d.to(p_d_input.dtype.element_ty), mask=m_write", "d.to(p_d_input.dtype.element_ty), mask=m_read", SPECIAL),
    (TRITON_COMMON, "i_o = (i_tile // tiles).to(tl.int64)", "i_o = i_tile // tiles", f"{AHEAD} -k offsets"),
    (TRITON_HARD, "o_v = j.to(tl.int64)[None, :]", "o_v = j[None, :]", f"{AHEAD} -k offsets"),
    (TRITON_HARD, "begin = (tl.program_id(0) % chunks).to(tl.int64) * CHUNK", "begin = (tl.program_id(0) % 2).to(tl.int64) * CHUNK", CASES),
    # the online sum
    (TRITON_HARD, "tl.where(up, total * e + 1, total + e)", "tl.where(up, total + 1, total + e)", CASES),
    (TRITON_HARD, "tl.where(m & (j[None, :] != y[:, None]), z, -infinity)", "tl.where(m, z, -infinity)", CASES),
    (TRITON_SOFT, "tl.where(mass != 0, mass * (top - before), 0) + ", "", CASES),
    (TRITON_SOFT, "    deviation += tl.where(mass != 0, mass * (highest[:, None] - top), 0)\n", "", CASES),
    # numerics
    (TRITON_HARD, "d_nll * expm1(-nll)", "d_nll * (tl.exp(-nll) - 1)", f"{SPECIAL} -k confident"),
    (TRITON_HARD, "tl.exp((z - lse[:, None]) - lost[:, None])", "tl.exp(z - lse[:, None])", f"{SPECIAL} -k offset"),
    (TRITON_COMMON, "tl.where(u == 1, x, tl.log(u) * (x / (u - 1)))", "tl.log(u)", f"{SPECIAL} -k confident"),
    (TRITON_COMMON, "p = p * s + 2.0 / 15", "p = p * s + 2.0 / 16", f"{CASES} -k functions"),
    (TRITON_HARD, "tl.where(nll == nll, lse, nll)", "lse", f"{SPECIAL} -k special_values"),
    (TRITON_HARD, "(total - 1) + e)", "total + e)", CASES),
    # options, labels, rows that are not to be read
    (TRITON_HARD, "weight_sum * gap + tl.sum(deviation, 1)", "V * gap + tl.sum(deviation, 1)", CASES),
    (TRITON_HARD, "d = tl.where(live[:, None], d * slope, 0)", "d = tl.where(live[:, None], d, 0)", CASES),
    (TRITON_SOFT, "-(keep * d_xent)[:, None]", "-d_xent[:, None]", CASES),
    (TRITON_HARD, "    live &= nonzero\n", "", f"{SPECIAL} -k zero_upstream"),
    (TRITON_HARD, "live = kept & (label >= 0) & (label < num_classes)", "live = kept & (label >= 0) & (label <= num_classes)",
     f"{SPECIAL} -k out_of_range"),
    (TRITON_HARD, 'tl.where(kept, float("nan"), 0.0)', 'tl.where(kept, 0.0, 0.0)', f"{SPECIAL} -k out_of_range"),
]  # fmt: skip
