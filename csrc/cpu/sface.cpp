// logit_sum, CPU.   total = sum_{j != y} r(C_j) C_j,   r(C) = sigma(-k (acos C - b));   d_input_j = d_total r(C_j), 0 at y
// Shapes: input [N, V] any strides, target [N] int64; total [N] float32 (float64 for float64).
// Algorithm: one pass per row in blocks of 2048 classes; r is a weight of the paper, a constant in the gradient.
// Cost: reads N V forward, reads and writes N V backward; one exponential and one root each; no [N, V] temporary.
// Numerics: blocks are added in float64; |C| > 1 counts as 1 in the angle; NaN stays in its row; ignored rows are never read and give 0;
//   run_to_run, the same bits for any number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <vector>

#include "row_blocks.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;

struct SigmoidConstraint {
  double k, b;
  template <typename T>
  NL_INLINE T operator()(T cosine) const {
    const T t = T(k) * (simd::acos(cosine) - T(b)), e = simd::exp(-std::fabs(t));
    return (t > T(0) ? e : T(1)) / (T(1) + e);
  }
};

// sum_j r(C_j) C_j
template <typename op_t>
NL_CLONES op_t weighted_sum(const op_t* __restrict c, int64_t n, SigmoidConstraint r) {
  op_t s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t j = 0; j < n; ++j) s += r(c[j]) * c[j];
  return s;
}

template <typename op_t>
NL_CLONES void weights(op_t* __restrict c, int64_t n, SigmoidConstraint r, op_t factor) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) c[j] = factor * r(c[j]);
}

struct Call {
  Logits L;
  Tensor labels;
  SigmoidConstraint r;

  Call(const Tensor& input, const Tensor& target, const std::string& logit_map, const std::vector<double>& params, const char* op)
      : L(input, op, "input"), labels(torch::stable::contiguous(target)), r{} {
    check(input.dim() == 2, op, "input must have shape (N, V), got ", input.dim(), " dimensions");
    check(target.scalar_type() == ScalarType::Long, op, "target must be int64");
    check(target.numel() == L.batch, op, "target must have one label per row, ", L.batch, ", got ", target.numel());
    check(logit_map == "sface", op, "logit_map must be sface, got ", logit_map);
    check(params.size() == 2, op, "map_params has the wrong length for logit_map=", logit_map);
    r = {params[0], params[1]};
  }
};

template <typename F>
void for_opmath(const Tensor& input, F&& f) {
  if (input.scalar_type() == ScalarType::Double) return f(double{});
  f(float{});
}

Tensor logit_sum_cpu(const Tensor& input, const Tensor& target, int64_t ignore_index, const std::string& logit_map,
                     const std::vector<double>& params, int64_t first_class) {
  const char* op = "logit_sum";
  const Call call(input, target, logit_map, params, op);
  const Logits& L = call.L;
  Tensor total = torch::stable::new_empty(input, {L.batch}, opmath_dtype(input.scalar_type()));
  for_opmath(input, [&](auto zero) {
    using op_t = decltype(zero);
    const Blocks<op_t> in(input, op, "input");
    const int64_t* y = call.labels.const_data_ptr<int64_t>();
    op_t* out = total.mutable_data_ptr<op_t>();
    parallel_for(0, L.batch, row_grain(L.classes), [&](int64_t begin, int64_t end) {
      alignas(64) op_t scratch[kBlock];
      for (int64_t row = begin; row < end; ++row) {
        double sum = 0;
        const int64_t place = y[row] - first_class;
        for (int64_t first = 0; first < L.classes && y[row] != ignore_index; first += kBlock) {
          const int64_t n = std::min(kBlock, L.classes - first), k = place - first;
          const op_t* c = in.read(L.offset(row) + first * L.stride_v, L.stride_v, n, scratch);
          const bool has_target = k >= 0 && k < n;  // it splits its block
          sum += weighted_sum(c, has_target ? k : n, call.r);
          if (has_target) sum += weighted_sum(c + k + 1, n - k - 1, call.r);
        }
        out[row] = static_cast<op_t>(sum);
      }
    });
  });
  return total;
}

// d_input may be input itself: a block is read as a whole before it is written
void write_gradient(Tensor& d_input, const Tensor& d_total, const Tensor& input, const Tensor& target, int64_t ignore_index,
                    const std::string& logit_map, const std::vector<double>& params, int64_t first_class, const char* op) {
  const Call call(input, target, logit_map, params, op);
  const Logits &L = call.L, D(d_input, op, "d_input");
  check(d_total.numel() == L.batch && d_total.scalar_type() == opmath_dtype(input.scalar_type()), op,
        "d_total must have one value per row in the dtype of the total");
  const Tensor upstream = torch::stable::contiguous(d_total);
  for_opmath(input, [&](auto zero) {
    using op_t = decltype(zero);
    const Blocks<op_t> in(input, op, "input"), d_in(d_input, op, "d_input");
    const int64_t* y = call.labels.const_data_ptr<int64_t>();
    const op_t* up = upstream.const_data_ptr<op_t>();
    parallel_for(0, L.batch, row_grain(L.classes), [&](int64_t begin, int64_t end) {
      alignas(64) op_t c[kBlock];
      for (int64_t row = begin; row < end; ++row) {
        const bool live = y[row] != ignore_index && up[row] != 0;
        const int64_t place = y[row] - first_class;
        for (int64_t first = 0; first < L.classes; first += kBlock) {
          const int64_t n = std::min(kBlock, L.classes - first), k = place - first;
          if (live) {
            in.load(L.offset(row) + first * L.stride_v, L.stride_v, n, c);
            weights(c, n, call.r, up[row]);
            if (k >= 0 && k < n) c[k] = 0;
          } else {
            std::fill_n(c, n, op_t(0));
          }
          d_in.store(c, n, D.offset(row) + first * D.stride_v, D.stride_v);
        }
      }
    });
  });
}

Tensor logit_sum_backward_cpu(const Tensor& d_total, const Tensor& input, const Tensor& target, int64_t ignore_index,
                              const std::string& logit_map, const std::vector<double>& params, int64_t first_class) {
  Tensor d_input = torch::stable::empty_like(input);
  write_gradient(d_input, d_total, input, target, ignore_index, logit_map, params, first_class, "logit_sum_backward");
  return d_input;
}

void logit_sum_backward_cpu_(const Tensor& d_total, Tensor input, const Tensor& target, int64_t ignore_index, const std::string& logit_map,
                             const std::vector<double>& params, int64_t first_class) {
  write_gradient(input, d_total, input, target, ignore_index, logit_map, params, first_class, "logit_sum_backward_");
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("logit_sum", TORCH_BOX(&nearlinear::logit_sum_cpu));
  m.impl("logit_sum_backward", TORCH_BOX(&nearlinear::logit_sum_backward_cpu));
  m.impl("logit_sum_backward_", TORCH_BOX(&nearlinear::logit_sum_backward_cpu_));
}
