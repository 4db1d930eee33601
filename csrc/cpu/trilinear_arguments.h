// attention over pairs of keys: the arguments of its ops, checked, and the problem that they state.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "trilinear_tile.h"

namespace nearlinear {

using OptionalTensor = std::optional<Tensor>;

// the arguments that all four ops share
struct Arguments {
  const Tensor &query, &key1, &key2, &value1, &value2;
  const OptionalTensor &bias1, &bias2;
  double scale;
  const std::vector<int64_t>& window;
};

inline void check_axis(const Tensor& key, const Tensor& value, const OptionalTensor& bias, const Arguments& a, const char* name,
                       const char* op) {
  const int64_t B = a.query.size(0), G = a.key1.size(1), D = a.query.size(3), E = a.value1.size(3);
  const ScalarType dtype = a.query.scalar_type();
  check(key.dim() == 4 && key.size(0) == B && key.size(1) == G && key.size(3) == D, op, "key", name, " must have shape (", B, ", ", G,
        ", N", name, ", ", D, ")");
  const int64_t N = key.size(2);
  check(value.dim() == 4 && value.size(0) == B && value.size(1) == G && value.size(2) == N && value.size(3) == E, op, "value", name,
        " must have shape (", B, ", ", G, ", ", N, ", ", E, ")");
  check(key.scalar_type() == dtype, op, "key", name, " must have the dtype of query");
  check(value.scalar_type() == dtype, op, "value", name, " must have the dtype of query");
  if (!bias) return;
  check(bias->dim() == 3 && bias->size(0) == B && bias->size(1) == G && bias->size(2) == N, op, "bias", name, " must have shape (", B, ", ",
        G, ", ", N, ")");
  check(bias->scalar_type() == opmath_dtype(dtype), op, "bias", name, " must have the dtype of the statistics");
}

inline void check_arguments(const Arguments& a, const char* op) {
  check(a.query.dim() == 4, op, "query must have shape (B, H, N, D), got ", a.query.dim(), " dimensions");
  check(a.key1.dim() == 4, op, "key1 must have shape (B, G, N1, D), got ", a.key1.dim(), " dimensions");
  check(a.value1.dim() == 4, op, "value1 must have shape (B, G, N1, E), got ", a.value1.dim(), " dimensions");
  const int64_t H = a.query.size(1), G = a.key1.size(1);
  check(G > 0 && H % G == 0, op, "the heads of key1 must divide those of query, got ", G, " and ", H);
  check_axis(a.key1, a.value1, a.bias1, a, "1", op);
  check_axis(a.key2, a.value2, a.bias2, a, "2", op);
  check(a.window.size() == 4, op, "window must have 4 numbers, got ", a.window.size());
  for (int64_t width : a.window) check(width >= -1, op, "window must hold distances >= 0, or -1 for any, got ", width);
}

template <typename T>
TrilinearProblem<T> problem_of(const Arguments& a, const char* op) {
  auto axis = [&](const Tensor& key, const Tensor& value, const OptionalTensor& bias, int64_t left, int64_t right) {
    Axis<T> made{TensorRows<T>(key, op, "key"), TensorRows<T>(value, op, "value"), std::nullopt, {left, right}};
    if (bias) made.bias.emplace(*bias, op, "bias");
    return made;
  };
  Axis<T> first = axis(a.key1, a.value1, a.bias1, a.window[0], a.window[1]);
  Axis<T> second = axis(a.key2, a.value2, a.bias2, a.window[2], a.window[3]);
  auto width = [](const Axis<T>& x) {
    const Window& w = x.window;
    return w.left < 0 || w.right < 0 ? x.key.count
                                     : std::min(x.key.count, std::min(w.left, x.key.count) + std::min(w.right, x.key.count) + 1);
  };
  const bool swapped = width(first) > width(second);
  if (swapped) std::swap(first, second);
  return {TensorRows<T>(a.query, op, "query"), {std::move(first), std::move(second)}, static_cast<T>(a.scale), swapped, a.query.size(0)};
}

template <typename F>
void dispatch_opmath(const Tensor& query, F&& f) {
  if (query.scalar_type() == ScalarType::Double) return f(double{});
  f(float{});
}

}  // namespace nearlinear
