// trilinear_softmax, CPU.   x_ijk = scale sum_c q_ic a_jc b_kc,  w_ijk = exp(x_ijk + bias1_j + bias2_k),  lse_i = log sum_jk w_ijk,
//                           out_i = sum_jk w_ijk v1_j * v2_k / sum_jk w_ijk
// trilinear_sums, CPU:      sums_i = sum_jk w(x_ijk) e^(bias1_j + bias2_k) (v1_j * v2_k, 1), w a polynomial, or e^x minus one
//   backward: G_ijk = <d_out_i, v1_j * v2_k> - <d_out_i, out_i> + d_lse_i (d_sums: <d_sums_ie, v1_j * v2_k> + d_sums_iE), dx = w'(x) G,
//   d bias from w(x) G; d v1_j = sum_ik w d_out_i * v2_k, d q_i = scale sum_jk dx a_j * b_k, and so on by symmetry.
// Shapes: query [B, H, N, D], keys [B, G, N1 or N2, D], values [B, G, N1 or N2, E], biases [B, G, N1 or N2], any strides; H / G query heads
//   share keys; out like query with E channels, lse [B, H, N] and sums [B, H, N, E + 1] in float32 (float64 for float64).
// Algorithm: a task takes about 48 queries; for each key j of the axis with fewer keys in reach, logits [48, k] = (s q * a_j) B^T,
//   weights in place, U [48, E] = weights V2 over all k, then out += U * v1_j; several j share a product where queries are few. The keys of
//   the other axis are packed, by columns too, block by block. The backward makes six products: logits, G, d v2, d b, and the two for q, a,
//   v1. Windows: each j meets the queries that see it, each k tile those of its reach; its edges are masked.
// Cost: 2 (D + E) flops a pair of keys and query forward, three times that backward; O(N + N1 + N2) memory and about 1 MB a thread; the
// backward keeps the
//   key gradients of up to 32 shares of the queries.
// Numerics: logits and products in float32 (float64), sums over the keys j in float64. Rows have a running shift, which moves when a logit
//   exceeds it by 20, or none where Hoelder's inequality bounds every logit by 30. Keys with bias -inf are never read; a query that sees no
//   pair has out = 0, lse = -inf and no gradient; run_to_run, the same bits for any number of threads.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <tuple>

#include "trilinear_arguments.h"
#include "trilinear_backward.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;

// f(next) on each thread: next() is the number of a task, or -1 after the last. The last tasks are the long ones of a causal window, and go
// first.
template <typename F>
void for_each_task(int64_t tasks, F&& f) {
  std::atomic<int64_t> left{tasks};
  parallel_for(0, tasks, 1, [&](int64_t, int64_t) { f([&] { return std::max<int64_t>(left.fetch_sub(1), 0) - 1; }); });
}

// finish(tile) for each tile of queries with its sums
template <typename T, typename weight_t, typename F>
void forward(const TrilinearProblem<T>& problem, const weight_t& weight, F&& finish) {
  for_each_task(problem.batch * problem.groups() * problem.tiles(), [&](auto next) {
    int64_t task = next();
    if (task < 0) return;
    ForwardTile<weight_t, T> forward(problem, weight);
    for (; task >= 0; task = next()) {
      forward.run(task);
      finish(forward);
    }
  });
}

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients of the seven tensors, those that nobody wants of no elements. `load(b, h, i, upstream row, delta, shift)`: see BackwardTile.
template <typename T, typename weight_t, typename F>
Seven backward(const Arguments& a, const TrilinearProblem<T>& problem, const weight_t& weight, const std::vector<bool>& wants, F&& load,
               const char* op) {
  const OptionalTensor tensors[7] = {a.query, a.key1, a.key2, a.value1, a.value2, a.bias1, a.bias2};
  Tensor made[7];
  bool wanted[7];
  for (int t = 0; t < 7; ++t) {
    wanted[t] = wants[t] && tensors[t];
    const Tensor& like = tensors[t] ? *tensors[t] : a.query;
    std::vector<int64_t> shape{0};
    if (wanted[t]) shape.assign(like.sizes().begin(), like.sizes().end());
    made[t] = torch::stable::new_empty(like, shape);
  }
  const int s = problem.swapped ? 1 : 0;  // axis 0 is that of key1, or of key2
  const Wanted by_axis{wanted[0], {wanted[1 + s], wanted[2 - s]}, {wanted[3 + s], wanted[4 - s]}, {wanted[5 + s], wanted[6 - s]}};
  std::optional<TensorRows<T>> d_query;
  if (wanted[0]) d_query.emplace(made[0], op, "d_query");
  Shares<T> shares(problem);
  for_each_task(shares.count(), [&](auto next) {
    int64_t share = next();
    if (share < 0) return;
    BackwardTile<weight_t, T> backward(problem, weight, by_axis);
    std::vector<T> row(problem.query.channels);
    for (; share >= 0; share = next()) {
      auto* gradients = shares.make(share);
      for (int64_t task = shares.tasks(share).first; task < shares.tasks(share).last; ++task) {
        backward.run(task, load, gradients);
        const auto& tile = backward.tile;
        for (int64_t q = 0; d_query && q < tile.count; ++q) {
          for (size_t c = 0; c < row.size(); ++c) row[c] = static_cast<T>(backward.d_query(q)[c] * problem.scale);
          d_query->store(tile.b, problem.head(tile.g, tile.begin + q), problem.place(tile.begin + q), row.data());
        }
      }
    }
  });
  for (int t = 1; t < 7; ++t)
    if (wanted[t]) shares.store((t - 1) % 2 ^ s, (t - 1) / 2, made[t], op);
  return {made[0], made[1], made[2], made[3], made[4], made[5], made[6]};
}

std::tuple<Tensor, Tensor> trilinear_softmax_cpu(const Tensor& query, const Tensor& key1, const Tensor& key2, const Tensor& value1,
                                                 const Tensor& value2, const OptionalTensor& bias1, const OptionalTensor& bias2,
                                                 double scale, const std::vector<int64_t>& window) {
  const char* op = "trilinear_softmax";
  const Arguments arguments{query, key1, key2, value1, value2, bias1, bias2, scale, window};
  check_arguments(arguments, op);
  const int64_t B = query.size(0), H = query.size(1), N = query.size(2), E = value1.size(3);
  Tensor out = torch::stable::new_empty(query, {B, H, N, E});
  Tensor lse = torch::stable::new_empty(query, {B, H, N}, opmath_dtype(query.scalar_type()));
  dispatch_opmath(query, [&](auto zero) {
    using T = decltype(zero);
    const TrilinearProblem<T> problem = problem_of<T>(arguments, op);
    const TensorRows<T> out_rows(out, op, "out"), lse_rows(lse, op, "lse");
    forward(problem, ExponentialWeight<T>{}, [&](const auto& forward) {
      const auto& tile = forward.tile;
      std::vector<T> row(E);
      for (int64_t s = 0; s < tile.count; ++s) {
        const double sum = forward.weights(s), inverse = sum == 0 ? 0 : 1 / sum;
        for (int64_t e = 0; e < E; ++e) row[e] = static_cast<T>(forward.totals(s)[e] * inverse);
        const T log_sum = sum == 0 ? -simd::infinity<T> : static_cast<T>(forward.shift(s) + std::log(sum));
        const int64_t h = problem.head(tile.g, tile.begin + s), i = problem.place(tile.begin + s);
        out_rows.store(tile.b, h, i, row.data());
        lse_rows.store(tile.b, h, i, &log_sum);
      }
    });
  });
  return {out, lse};
}

void check_like(const Tensor& t, const std::vector<int64_t>& shape, ScalarType dtype, const char* op, const char* argument) {
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = t.size(d) == shape[d];
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  check(fits, op, argument, " must have shape (", text, ")");
  check(t.scalar_type() == dtype, op, argument, " must have the dtype that the forward returns");
}

Seven trilinear_softmax_backward_cpu(const Tensor& d_out, const Tensor& d_lse, const Tensor& query, const Tensor& key1, const Tensor& key2,
                                     const Tensor& value1, const Tensor& value2, const OptionalTensor& bias1, const OptionalTensor& bias2,
                                     const Tensor& out, const Tensor& lse, double scale, const std::vector<int64_t>& window,
                                     const std::vector<bool>& wants) {
  const char* op = "trilinear_softmax_backward";
  const Arguments arguments{query, key1, key2, value1, value2, bias1, bias2, scale, window};
  check_arguments(arguments, op);
  check(wants.size() == 7, op, "wants must have 7 elements, got ", wants.size());
  const int64_t B = query.size(0), H = query.size(1), N = query.size(2), E = value1.size(3);
  const ScalarType dtype = query.scalar_type(), wide = opmath_dtype(dtype);
  check_like(d_out, {B, H, N, E}, dtype, op, "d_out");
  check_like(out, {B, H, N, E}, dtype, op, "out");
  check_like(d_lse, {B, H, N}, wide, op, "d_lse");
  check_like(lse, {B, H, N}, wide, op, "lse");
  Seven gradients;
  dispatch_opmath(query, [&](auto zero) {
    using T = decltype(zero);
    const TrilinearProblem<T> problem = problem_of<T>(arguments, op);
    const TensorRows<T> d_outs(d_out, op, "d_out"), outs(out, op, "out"), d_lses(d_lse, op, "d_lse"), lses(lse, op, "lse");
    auto load = [&](const QueryTile<T>& tile, int64_t s, T* row, T* delta, T* shift) {
      const int64_t h = problem.head(tile.g, tile.begin + s), i = problem.place(tile.begin + s);
      std::vector<T> mean(E);
      d_outs.load(tile.b, h, i, row);
      outs.load(tile.b, h, i, mean.data());
      double sum = -static_cast<double>(d_lses.element(tile.b, h, i));
      for (int64_t e = 0; e < E; ++e) sum += static_cast<double>(row[e]) * mean[e];
      *delta = static_cast<T>(sum);
      *shift = lses.element(tile.b, h, i);
    };
    gradients = backward(arguments, problem, ExponentialWeight<T>{}, wants, load, op);
  });
  return gradients;
}

// f(weight) for w = sum_m coefficients[m] x^m, or e^x minus it
template <typename T, typename F>
void dispatch_weight(const std::vector<double>& coefficients, bool excess, F&& f) {
  if (excess) return f(ExcessTables<T>(coefficients).weight());
  const std::vector<T> c(coefficients.begin(), coefficients.end());
  f(PolynomialWeight<T>{{c.data(), static_cast<int64_t>(c.size())}});
}

Tensor trilinear_sums_cpu(const Tensor& query, const Tensor& key1, const Tensor& key2, const Tensor& value1, const Tensor& value2,
                          const OptionalTensor& bias1, const OptionalTensor& bias2, double scale, const std::vector<int64_t>& window,
                          const std::vector<double>& coefficients, bool excess) {
  const char* op = "trilinear_sums";
  const Arguments arguments{query, key1, key2, value1, value2, bias1, bias2, scale, window};
  check_arguments(arguments, op);
  const int64_t E = value1.size(3);
  Tensor sums = torch::stable::new_empty(query, {query.size(0), query.size(1), query.size(2), E + 1}, opmath_dtype(query.scalar_type()));
  dispatch_opmath(query, [&](auto zero) {
    using T = decltype(zero);
    const TrilinearProblem<T> problem = problem_of<T>(arguments, op);
    const TensorRows<T> rows(sums, op, "sums");
    dispatch_weight<T>(coefficients, excess, [&](const auto& weight) {
      forward(problem, weight, [&](const auto& forward) {
        const auto& tile = forward.tile;
        const double factor = tile.factor();
        std::vector<T> row(E + 1);
        for (int64_t s = 0; s < tile.count; ++s) {
          for (int64_t e = 0; e < E; ++e) row[e] = static_cast<T>(forward.totals(s)[e] * factor);
          row[E] = static_cast<T>(forward.weights(s) * factor);
          rows.store(tile.b, problem.head(tile.g, tile.begin + s), problem.place(tile.begin + s), row.data());
        }
      });
    });
  });
  return sums;
}

Seven trilinear_sums_backward_cpu(const Tensor& d_sums, const Tensor& query, const Tensor& key1, const Tensor& key2, const Tensor& value1,
                                  const Tensor& value2, const OptionalTensor& bias1, const OptionalTensor& bias2, double scale,
                                  const std::vector<int64_t>& window, const std::vector<double>& coefficients, bool excess,
                                  const std::vector<bool>& wants) {
  const char* op = "trilinear_sums_backward";
  const Arguments arguments{query, key1, key2, value1, value2, bias1, bias2, scale, window};
  check_arguments(arguments, op);
  check(wants.size() == 7, op, "wants must have 7 elements, got ", wants.size());
  const int64_t E = value1.size(3);
  check_like(d_sums, {query.size(0), query.size(1), query.size(2), E + 1}, opmath_dtype(query.scalar_type()), op, "d_sums");
  Seven gradients;
  dispatch_opmath(query, [&](auto zero) {
    using T = decltype(zero);
    const TrilinearProblem<T> problem = problem_of<T>(arguments, op);
    const TensorRows<T> rows(d_sums, op, "d_sums");
    auto load = [&](const QueryTile<T>& tile, int64_t s, T* row, T* delta, T* shift) {
      std::vector<T> all(E + 1);
      rows.load(tile.b, problem.head(tile.g, tile.begin + s), problem.place(tile.begin + s), all.data());
      const double factor = tile.factor();
      for (int64_t e = 0; e < E; ++e) row[e] = static_cast<T>(all[e] * factor);
      *delta = static_cast<T>(-all[E] * factor);
      *shift = 0;
    };
    dispatch_weight<T>(coefficients, excess,
                       [&](const auto& weight) { gradients = backward(arguments, problem, weight, wants, load, op); });
  });
  return gradients;
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("trilinear_softmax", TORCH_BOX(&nearlinear::trilinear_softmax_cpu));
  m.impl("trilinear_softmax_backward", TORCH_BOX(&nearlinear::trilinear_softmax_backward_cpu));
  m.impl("trilinear_sums", TORCH_BOX(&nearlinear::trilinear_sums_cpu));
  m.impl("trilinear_sums_backward", TORCH_BOX(&nearlinear::trilinear_sums_backward_cpu));
}
