// two_logit_stats, CPU.   q = softmax(target / T),  p = softmax(input / T),  kl = sum_j q_j log(q_j / p_j),  lse = T log sum_j e^{z_j / T}
//                         d_input = (d_kl / T) (p_j - q_j),   d_target = (d_kl / T) q_j (log(q_j / p_j) - kl)
// Shapes: input and target [N, V] or [N, V, P], any strides and floating dtypes each; statistics float32 (float64 for float64).
// Algorithm: per row an online pass (Milakov and Gimelshein 2018) over each logit, then a pass over both while they are in the cache that
//   adds q_j (e^{u_j} - 1 - u_j), u = log(p / q), whose sum is kl because p and q add up to 1; the backward recomputes p and q.
// Cost: reads 2 N V forward, reads 2 N V and writes N V (2 N V with d_target) backward; 4 N V and 2 N V exponentials; no [N, V] temporary.
// Numerics: u comes from the exact difference of the logits, so kl and both gradients keep their relative accuracy however near the two
//   softmaxes are, and under any common offset of either; -inf in both logits of a class adds 0, in input alone kl is +inf; NaN, +inf and
//   a row of -inf give NaN in that row only; rows with zero upstream are not read; run_to_run, the same bits for any number of threads.
#include "kl_logit.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/memory.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;

void check_two_logits(const Tensor& input, const Tensor& target, double inv_temperature, const char* op) {
  const Logits L(input, op, "input"), T(target, op, "target");
  check(L.batch == T.batch && L.classes == T.classes && L.pixels == T.pixels, op, "target must have the shape of input");
  check(opmath_dtype(input.scalar_type()) == opmath_dtype(target.scalar_type()), op,
        "target must be float64 exactly if input is, because both share the dtype of the statistics");
  check(std::isfinite(inv_temperature) && inv_temperature > 0, op, "inv_temperature must be finite and > 0, got ", inv_temperature);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> two_logit_stats_cpu(const Tensor& input, const Tensor& target, double inv_temperature) {
  const char* op = "two_logit_stats";
  check_two_logits(input, target, inv_temperature, op);
  auto output = [&] { return torch::stable::new_empty(input, row_shape(input), opmath_dtype(input.scalar_type())); };
  Tensor kl = output(), lse_input = output(), lse_target = output(), residual_input = output(), residual_target = output();
  dispatch_opmath(input.scalar_type(), [&](auto zero) {
    using op_t = decltype(zero);
    const Plane<op_t> x(input, op, "input"), t(target, op, "target");
    const TwoLogitOutputs<op_t> out{kl.mutable_data_ptr<op_t>(), lse_input.mutable_data_ptr<op_t>(), lse_target.mutable_data_ptr<op_t>(),
                                    residual_input.mutable_data_ptr<op_t>(), residual_target.mutable_data_ptr<op_t>()};
    parallel_for(0, x.layout.rows(), row_grain(x.layout.classes), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) two_logit_forward_row(x, t, inv_temperature, r, out);
    });
  });
  return {kl, lse_input, lse_target, residual_input, residual_target};
}

// a gradient that is not wanted has no elements
Tensor gradient_of(const Tensor& logits, bool wanted) {
  Tensor gradient = wanted ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, {0});
  advise_huge_pages(gradient.data_ptr(), gradient.numel() * gradient.element_size());
  return gradient;
}

std::tuple<Tensor, Tensor> two_logit_stats_backward_cpu(const Tensor& d_kl, const Tensor& input, const Tensor& target, const Tensor& kl,
                                                        const Tensor& lse_input, const Tensor& lse_target, const Tensor& residual_input,
                                                        const Tensor& residual_target, double inv_temperature, bool input_gradient,
                                                        bool target_gradient) {
  const char* op = "two_logit_stats_backward";
  check_two_logits(input, target, inv_temperature, op);
  Tensor d_input = gradient_of(input, input_gradient), d_target = gradient_of(target, target_gradient);
  dispatch_opmath(input.scalar_type(), [&](auto zero) {
    using op_t = decltype(zero);
    const Plane<op_t> x(input, op, "input"), t(target, op, "target");
    OptionalPlane<op_t> d_x, d_t;
    if (input_gradient) d_x.emplace(d_input, op, "d_input");
    if (target_gradient) d_t.emplace(d_target, op, "d_target");
    Tensor rows[6] = {d_kl, kl, lse_input, lse_target, residual_input, residual_target};
    const op_t* p[6];
    for (int i = 0; i < 6; ++i) p[i] = row_values<op_t>(rows[i], x.layout, op);
    const TwoLogitUpstream<op_t> up{p[0], p[1], p[2], p[3], p[4], p[5]};
    parallel_for(0, x.layout.rows(), row_grain(x.layout.classes), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        if (up.d_kl[r] != 0) {
          two_logit_backward_row(x, t, inv_temperature, r, up, d_x, d_t);
          continue;
        }
        for (const auto* d : {&d_x, &d_t})
          if (*d) zero_row((*d)->layout, r, (*d)->values);
      }
    });
  });
  return {d_input, d_target};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("two_logit_stats", TORCH_BOX(&nearlinear::two_logit_stats_cpu));
  m.impl("two_logit_stats_backward", TORCH_BOX(&nearlinear::two_logit_stats_backward_cpu));
}
