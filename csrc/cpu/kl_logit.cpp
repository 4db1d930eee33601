// two_logit_stats, CPU.   q = softmax(target / T),  p = softmax(input / T),  lse = T log sum_j e^{z_j / T},  g = d_divergence / T
//   beta = 0: kl = sum_j q_j log(q_j / p_j);   d_input = g (p_j - q_j),   d_target = g q_j (log(q_j / p_j) - kl)
//   else, with m = beta q + (1 - beta) p:  beta KL(q || m) + (1 - beta) KL(p || m);
//     d_input = g (1 - beta) p_j (log(p_j / m_j) - KL(p || m)),   d_target = g beta q_j (log(q_j / m_j) - KL(q || m))
// Shapes: input and target [N, V] or [N, V, P], any strides and floating dtypes each; statistics float32 (float64 for float64).
// Algorithm: per row an online pass (Milakov and Gimelshein 2018) over each logit, then a pass over both while they are in the cache that
//   adds q_j (e^{u_j} - 1 - u_j), u = log(p / q), whose sum is kl because p and q add up to 1, or q_j (y - log(1 + y)), y = m / q - 1 =
//   (1 - beta) (e^u - 1), and the same of p, whose sums are KL(q || m) and KL(p || m) for that reason; the backward recomputes p and q.
// Cost: reads 2 N V forward, reads 2 N V and writes N V (2 N V with d_target) backward; 4 N V and 2 N V exponentials, with beta 2 N V
//   logarithms in each pass; no [N, V] temporary.
// Numerics: every term is >= 0 and keeps its relative accuracy: u comes from the exact difference of the logits, and e^u - 1 - u and
//   y - log(1 + y) from series near 0. So a divergence has the relative error of its terms, (6 + |log p_j|) eps, and gradients that of
//   their largest, however near the two softmaxes are and under any common offset of either. -inf in both logits of a class adds 0, in
//   input alone kl is +inf and the mixture's divergence finite; NaN, +inf and a row of -inf give NaN in that row only; rows with zero
//   upstream are not read; run_to_run, the same bits for any number of threads.
#include "kl_logit.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/memory.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;

void check_two_logits(const Tensor& input, const Tensor& target, double inv_temperature, double beta, const char* op) {
  const Logits L(input, op, "input"), T(target, op, "target");
  check(L.batch == T.batch && L.classes == T.classes && L.pixels == T.pixels, op, "target must have the shape of input");
  check(opmath_dtype(input.scalar_type()) == opmath_dtype(target.scalar_type()), op,
        "target must be float64 exactly if input is, because both share the dtype of the statistics");
  check(std::isfinite(inv_temperature) && inv_temperature > 0, op, "inv_temperature must be finite and > 0, got ", inv_temperature);
  check(beta >= 0 && beta < 1, op, "beta must be 0 for KL, or lie between 0 and 1, got ", beta);
}

template <typename op_t, typename F>
void dispatch_form(double beta, F&& f) {
  if (beta == 0) return f(KullbackLeibler<op_t>{});
  f(JensenShannon<op_t>{static_cast<op_t>(beta), static_cast<op_t>(1 - beta)});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> two_logit_stats_cpu(const Tensor& input, const Tensor& target,
                                                                               double inv_temperature, double beta) {
  const char* op = "two_logit_stats";
  check_two_logits(input, target, inv_temperature, beta, op);
  auto output = [&] { return torch::stable::new_empty(input, row_shape(input), opmath_dtype(input.scalar_type())); };
  Tensor divergence = output(), kl_input = beta == 0 ? torch::stable::new_empty(divergence, {0}) : output(), lse_input = output(),
         lse_target = output(), residual_input = output(), residual_target = output();
  dispatch_opmath(input.scalar_type(), [&](auto zero) {
    using op_t = decltype(zero);
    const Plane<op_t> x(input, op, "input"), t(target, op, "target");
    const TwoLogitOutputs<op_t> out{divergence.mutable_data_ptr<op_t>(),     beta == 0 ? nullptr : kl_input.mutable_data_ptr<op_t>(),
                                    lse_input.mutable_data_ptr<op_t>(),      lse_target.mutable_data_ptr<op_t>(),
                                    residual_input.mutable_data_ptr<op_t>(), residual_target.mutable_data_ptr<op_t>()};
    dispatch_form<op_t>(beta, [&](auto form) {
      parallel_for(0, x.layout.rows(), row_grain(x.layout.classes), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) two_logit_forward_row(form, x, t, inv_temperature, r, out);
      });
    });
  });
  return {divergence, kl_input, lse_input, lse_target, residual_input, residual_target};
}

// a gradient that is not wanted has no elements
Tensor gradient_of(const Tensor& logits, bool wanted) {
  Tensor gradient = wanted ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, {0});
  advise_huge_pages(gradient.data_ptr(), gradient.numel() * gradient.element_size());
  return gradient;
}

std::tuple<Tensor, Tensor> two_logit_stats_backward_cpu(const Tensor& d_divergence, const Tensor& input, const Tensor& target,
                                                        const Tensor& divergence, const Tensor& kl_input, const Tensor& lse_input,
                                                        const Tensor& lse_target, const Tensor& residual_input,
                                                        const Tensor& residual_target, double inv_temperature, double beta,
                                                        bool input_gradient, bool target_gradient) {
  const char* op = "two_logit_stats_backward";
  check_two_logits(input, target, inv_temperature, beta, op);
  Tensor d_input = gradient_of(input, input_gradient), d_target = gradient_of(target, target_gradient);
  dispatch_opmath(input.scalar_type(), [&](auto zero) {
    using op_t = decltype(zero);
    const Plane<op_t> x(input, op, "input"), t(target, op, "target");
    OptionalPlane<op_t> d_x, d_t;
    if (input_gradient) d_x.emplace(d_input, op, "d_input");
    if (target_gradient) d_t.emplace(d_target, op, "d_target");
    Tensor rows[7] = {d_divergence, divergence, lse_input, lse_target, residual_input, residual_target, kl_input};
    const op_t* p[7] = {};
    for (int i = 0; i < (beta == 0 ? 6 : 7); ++i) p[i] = row_values<op_t>(rows[i], x.layout, op);
    const TwoLogitUpstream<op_t> up{p[0], p[1], p[6], p[2], p[3], p[4], p[5]};
    dispatch_form<op_t>(beta, [&](auto form) {
      parallel_for(0, x.layout.rows(), row_grain(x.layout.classes), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          if (up.d_divergence[r] != 0) {
            two_logit_backward_row(form, x, t, inv_temperature, r, up, d_x, d_t);
            continue;
          }
          for (const auto* d : {&d_x, &d_t})
            if (*d) zero_row((*d)->layout, r, (*d)->values);
        }
      });
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
