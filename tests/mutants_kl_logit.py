"""Planted bugs of the two-logit family: (file, old text, new text, tests that must fail)."""

BATTERY, EDGES = "tests/test_kl_logit.py::TestKLLogit", "tests/test_kl_logit_edges.py"
BUDGET, LAYOUTS, REDUCTIONS = (
    f"{BATTERY}::{name}" for name in ("test_error_budget", "test_input_layouts", "test_reductions_follow_from_rows")
)

JS = "tests/test_js_logit.py"
JS_BUDGET = f"{JS}::TestJSLogit::test_error_budget"
OPS, PUBLIC = "python/nearlinear/ops/kl_logit.py", "python/nearlinear/kl_logit.py"
PYTHON = [
    (OPS, "*ctx.saved_tensors, *ctx.options, *wanted)", "*ctx.saved_tensors, *ctx.options, True, False)",
     "tests/test_kl_logit.py::test_a_gradient_goes_where_it_is_required"),
    (OPS, "_gradient, differentiable=(0, 1, 2))", "_gradient, differentiable=(0, 1))", f"{BATTERY}::test_second_derivatives"),
    (OPS, "dtype=stats_dtype(input)) for _ in range(6)", "dtype=input.dtype) for _ in range(6)", f"{BATTERY}::test_opcheck"),
    (PUBLIC, "stats(input, target_logits, 1 / temperature", "stats(input, target_logits.detach(), 1 / temperature", BUDGET),
    (PUBLIC, "target_logits, 1 / temperature", "target_logits, temperature", BUDGET),
    (PUBLIC, "target_logits, 1 / temperature, beta)", "target_logits, 1 / temperature, 1 - beta if beta else 0.0)", f"{JS} -k gkd"),
    (PUBLIC, "float) and 0 < beta < 1", "float) and 0 <= beta < 1", f"{JS} -k messages"),
    (PUBLIC, "else weight.masked_fill(~mask, 0)", "else weight", f"{EDGES}::test_rows_outside_the_mask_may_hold_anything"),
    (PUBLIC, "        divisor = divisor.masked_fill(~mask.any(), 1)", "        divisor = divisor * 1", f"{EDGES}::test_no_row_is_kept"),
    (PUBLIC, "rows.numel() if weight is None else weight.sum()", "rows.numel()", REDUCTIONS),
    (PUBLIC, "divisor = normalizer if normalizer is not None else ", "divisor = ",
     "tests/test_kl_logit.py::test_mask_weights_and_normalizer"),
]  # fmt: skip

ROW, GLUE, SIMD = "csrc/cpu/kl_logit.h", "csrc/cpu/kl_logit.cpp", "csrc/common/simd.h"
CPP = [
    (ROW, "(gap - gap == 0 ? low : op_t(0))", "op_t(0)", f"{EDGES} -k one_far"),
    (ROW, "low = (x - (gap + part)) + (part - t)", "low = (x - (gap + part))", f"{EDGES} -k one_far"),
    (ROW, "- shift.lost * rate", "", f"{EDGES} -k 'neighbours or offsets'"),
    (ROW, "std::fabs(u) < 1 ? q * series : possible", "possible", f"{EDGES} -k neighbours"),
    (ROW, "std::fabs(u) < 1 ? q * (u + series) : p - q", "p - q", f"{EDGES} -k neighbours"),
    (ROW, "possible = q == 0 ? p : far", "possible = far", f"{EDGES} -k impossible"),
    (ROW, "(u == -simd::infinity<op_t> ? simd::infinity<op_t> : op_t(0))", "op_t(0)", f"{EDGES} -k impossible"),
    (ROW, "of_input.rest += difference / rate", "of_input.rest += 0", f"{EDGES} -k neighbours"),
    (ROW, "if (!std::isfinite(origin)) origin = block_max(in, n);", "origin = 0;", f"{EDGES} -k offsets"),
    (ROW, "- target.lost * rate", "", f"{EDGES} -k offsets"),
    (ROW, "pairs = input.pairs(n) && target.pairs(n) && (", "pairs = input.pairs(n) && (",
     "tests/test_kl_logit.py -k each_logit_has_its_dtype"),
    (ROW, "-scale * (q * (u + kl_target))", "-scale * (q * u)", BUDGET),
    (ROW, "y = input * (near ? growth : ratio - 1)", "y = input * (ratio - 1)", f"{JS} -k neighbours"),
    (ROW, "z = target * (near ? -growth * inverse : inverse - 1)", "z = target * (near ? -growth : inverse - 1)", JS_BUDGET),
    (ROW, "{q == 0 ? input * p : q * l.target_excess,", "{q * l.target_excess,", f"{JS} -k 'impossible or meet'"),
    (ROW, "value(kl_target - of_m_in_q * of_m_in_q / 2, kl_input)", "value(kl_target, kl_input)", f"{JS} -k neighbours"),
    (ROW, "(value - input * kl_input) / target", "value", JS_BUDGET),
    (SIMD, "near ? s * (y - (s2 + s2) * tail) : y - far", "y - (near ? s * 2 : far)", f"{JS} -k neighbours"),
    (GLUE, "if (up.d_divergence[r] != 0) {", "if (true) {", f"{EDGES} -k zero_upstream"),
    (SIMD, "odd = odd * s + 1.0f / 6;", "odd = odd * s + 1.0f / 7;", f"{EDGES} -k neighbours"),
]  # fmt: skip

KERNEL, CASES = "triton_kernels/kl_logit.py", "tests/triton_kl_logit.py"
TRITON = [
    (KERNEL, "tl.where(tl.abs(u) < 1, q * series, far)", "far", f"{CASES} -k neighbours"),
    (KERNEL, "u = (((gap - shift) + low) - shift_lost) * rate", "u = ((gap - shift) - shift_lost) * rate", f"{CASES} -k offsets"),
    (KERNEL, 'tl.where(u == -float("inf"), float("inf"), tl.where(', 'tl.where(False, float("inf"), tl.where(', f"{CASES} -k special"),
    (KERNEL, "tl.where(q == 0, p, (p - q) - q * u)", "(p - q) - q * u", f"{CASES} -k special"),
    (KERNEL, "i_o * stride_uo + i_l * stride_ul", "i_o * stride_do + i_l * stride_dl", f"{CASES} -k layouts"),
    (KERNEL, "live = m_n & (d_divergence != 0)", "live = m_n", f"{CASES} -k special"),
    (KERNEL, 'tl.where(sum_x > 0, tl.log(sum_x) * temperature, float("nan"))', "tl.log(sum_x) * temperature", f"{CASES} -k special"),
    (KERNEL, "tl.where(near, -growth * inverse, inverse - 1)", "tl.where(near, -growth, inverse - 1)", f"{CASES} -k tiles"),
    (KERNEL, "tl.where(q == 0, share_x * p, q * e_t)", "q * e_t", f"{CASES} -k mixtures"),
    (KERNEL, "tl.where(near, s * (y - 2 * (s * s) * tail), y - far)", "y - log", f"{CASES} -k neighbours"),
    ("triton_kernels/cross_entropy.py", "d = (z - top) * rate", "d = z - top", f"{CASES} -k tiles"),
]  # fmt: skip
