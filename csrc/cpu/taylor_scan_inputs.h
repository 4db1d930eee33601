// arguments of taylor_scan, and what one task reads of them: tiles of a chunk, and runs of features.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <utility>

#include "taylor_scan_kernels.h"

namespace nearlinear {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// the arguments, checked
struct ScanArguments {
  Tensor query;
  std::array<Tensor, 2> key, value;
  std::array<OptionalTensor, 2> bias;
  Tensor weight;
  const int64_t batch, heads, tokens, dim, groups, columns;
  const FeatureTable table;

  ScanArguments(const char* op, const Tensor& query_, std::array<Tensor, 2> key_, std::array<Tensor, 2> value_,
                std::array<OptionalTensor, 2> bias_, const Tensor& weight_, int64_t degree)
      : query(query_),
        key(std::move(key_)),
        value(std::move(value_)),
        bias(std::move(bias_)),
        weight(torch::stable::contiguous(weight_)),
        batch(size(op, query, "query", 0)),
        heads(query.size(1)),
        tokens(query.size(2)),
        dim(query.size(3)),
        groups(size(op, key[0], "key1", 1)),
        columns(size(op, value[0], "value1", 3)),
        table(dim, degree, op, 0) {
    check(groups > 0 && heads % groups == 0, op, "the heads of key1 must divide those of query, got ", groups, " and ", heads);
    const ScalarType wide = opmath_dtype(query.scalar_type());
    for (size_t t = 0; t < 2; ++t) {
      const char* names[2][3] = {{"key1", "value1", "bias1"}, {"key2", "value2", "bias2"}};
      fits(op, key[t], names[t][0], {batch, groups, tokens, dim}, query.scalar_type());
      fits(op, value[t], names[t][1], {batch, groups, tokens, columns}, query.scalar_type());
      if (bias[t]) fits(op, *bias[t], names[t][2], {batch, groups, tokens}, wide);
    }
    fits(op, weight, "weight", {table.count()}, wide);
  }

  int64_t group() const { return heads / groups; }
  int64_t chunks() const { return pieces(tokens, kChunk); }

  static void fits(const char* op, const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType dtype) {
    bool same = t.dim() == static_cast<int64_t>(shape.size());
    int64_t d = 0;
    std::ostringstream wanted;
    for (const int64_t n : shape) {
      same = same && t.size(d) == n;
      wanted << (d++ ? ", " : "") << n;
    }
    check(same, op, name, " must have shape (", wanted.str(), ")");
    check(t.scalar_type() == dtype, op, name, dtype == ScalarType::Float ? " must be float32" : " must have the dtype of query");
  }

 private:
  static int64_t size(const char* op, const Tensor& t, const char* name, int64_t dim) {
    check(t.dim() == 4, op, name, " must have 4 dimensions, got ", t.dim());
    return t.size(dim);
  }
};

template <typename scalar_t>
TokenRows<scalar_t> rows_of(const Tensor& t, int64_t b, int64_t h, int64_t column = 0) {
  scalar_t* data = static_cast<scalar_t*>(t.data_ptr());
  return {data + b * t.stride(0) + h * t.stride(1) + column * t.stride(3), t.stride(2), t.stride(3)};
}

// e^bias of a token; 0 for one that takes no part
template <typename T>
T key_weight(const OptionalTensor& bias, int64_t b, int64_t g, int64_t t) {
  if (!bias) return T(1);
  const T* data = static_cast<const T*>(bias->data_ptr());
  return std::exp(data[b * bias->stride(0) + g * bias->stride(1) + t * bias->stride(2)]);
}

// what a task works on: query heads [head, head + count) of a group, columns of some panels
struct Task {
  int64_t b, g, head, count, panel, panels;
};

// the tiles of a chunk: channels and weights of all sets, columns of the values
template <typename scalar_t, typename T>
void pack(const ScanArguments& in, const Task& task, int64_t chunk, const Chunks<T>& out, int64_t slot, T* line) {
  const int64_t begin = chunk * kChunk, n = std::min(kChunk, in.tokens - begin), first = task.panel * kLanes<T>;
  const int64_t width = std::min(in.columns - first, task.panels * kLanes<T>);
  if (n < kChunk) out.clear(slot);
  for (int64_t set = 0; set < out.sets; ++set) {
    const bool is_key = set < 2;
    const size_t t = is_key ? static_cast<size_t>(set) : 0;
    const int64_t head = is_key ? task.g : task.g * in.group() + task.head + set - 2;
    const auto channels = rows_of<const scalar_t>(is_key ? in.key[t] : in.query, task.b, head);
    const auto values = rows_of<const scalar_t>(in.value[t], task.b, task.g, first);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t token = begin + i, at = place<T>(i);
      const T weight = is_key ? key_weight<T>(in.bias[t], task.b, task.g, token) : T(1);
      out.weights(slot, set)[at] = weight;
      std::fill_n(line, std::max(in.dim, width), T(0));
      if (weight != 0) simd::load(channels.data + token * channels.stride, channels.step, in.dim, line);
      pack_channels(line, in.dim, out.channels(slot, set), at);
      if (!is_key) continue;
      if (weight != 0) simd::load(values.data + token * values.stride, values.step, width, line);
      pack_columns(line, width, out.columns(slot, set), at);
    }
  }
}

// features a to b of degree m, of the first `sets` sets, times their weights; number `first` among all
template <typename T>
void make_features(const ScanArguments& in, const Chunks<T>& x, int64_t slot, int64_t sets, int64_t first, int64_t m, int64_t a, int64_t b,
                   T* phi) {
  const T* weight = static_cast<const T*>(in.weight.data_ptr()) + first;
  for (int64_t set = 0; set < sets; ++set) {
    T *out = phi + set * kScanRun * kRow<T>, *low = x.channels(slot, set), *w = x.weights(slot, set);
    if (m == in.table.low()) {
      scale_rows(w, low + a * kRow<T>, b - a, kChunk, out);
    } else {
      features(in.table, low + kRow<T>, low, kChunk, m, a, b, w, out);
    }
    if (set < 2) continue;
    for (int64_t r = 0; r < b - a; ++r)
      for (int64_t t = 0; t < kChunk; ++t) out[r * kRow<T> + t] *= weight[r];
  }
}

inline int64_t lanes_of(const ScanArguments& in, int64_t chunk, int64_t steps) {
  return pieces(std::min(kChunk, in.tokens - chunk * kChunk), steps);
}

// calls f(m, a, b, number of the first) for runs of features
template <typename F>
void for_runs(const FeatureTable& table, int64_t first, int64_t last, F&& f) {
  table.runs(first, last, kScanRun, [&](int64_t m, int64_t a, int64_t b) {
    f(m, a, b, first);
    first += b - a;
  });
}

// calls f(integral constant of heads that share the states, first head)
template <typename F>
void for_heads(int64_t heads, F&& f) {
  for (int64_t h = 0; h < heads;) {
    if (heads - h >= 4) {
      f(std::integral_constant<int, 4>{}, h), h += 4;
    } else if (heads - h >= 2) {
      f(std::integral_constant<int, 2>{}, h), h += 2;
    } else {
      f(std::integral_constant<int, 1>{}, h), h += 1;
    }
  }
}

}  // namespace nearlinear
