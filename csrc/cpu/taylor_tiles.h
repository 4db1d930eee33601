// what the kernels of polynomial attention do with one tile of tokens: load, weigh, multiply by features, fold, store.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "../common/simd.h"
#include "taylor_features.h"

namespace nearlinear {

constexpr int64_t kRun = 132;  // features that are made and multiplied at a time: a panel of them and their factors fit a usual L1 cache

inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// a run of tokens: element c of token t at t * stride_t + c * stride_c
template <typename scalar_t>
struct Tokens {
  scalar_t* data;
  int64_t count, channels, stride_t, stride_c;
};

// [B, heads, N, *] tensors in tiles of tokens; a head is counted over the batch
struct Tiles {
  const int64_t heads, count, tiles;

  explicit Tiles(const torch::stable::Tensor& t) : heads(t.size(1)), count(t.size(2)), tiles(pieces(count, kTokens)) {}

  int64_t tokens(int64_t i) const { return std::min(kTokens, count - i * kTokens); }
  int64_t place(int64_t head, int64_t i) const { return head * count + i * kTokens; }  // of the first token in a contiguous tensor
  template <typename scalar_t>
  Tokens<const scalar_t> of(const torch::stable::Tensor& t, int64_t head, int64_t i, int64_t channels, int64_t first = 0) const {
    const int64_t offset = head / heads * t.stride(0) + head % heads * t.stride(1) + i * kTokens * t.stride(2) + first * t.stride(3);
    return {static_cast<const scalar_t*>(t.data_ptr()) + offset, tokens(i), channels, t.stride(2), t.stride(3)};
  }
};

inline int64_t padded_tokens(int64_t n, int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }

// out [channels, kRow], zeros in the lanes beyond the tokens
template <typename scalar_t, typename T>
NL_CLONES void load_columns(Tokens<const scalar_t> in, T* __restrict out) {
  for (int64_t t = 0; t < in.count; ++t)
    for (int64_t c = 0; c < in.channels; ++c) out[c * kRow<T> + t] = simd::to_op(in.data[t * in.stride_t + c * in.stride_c]);
  const int64_t tokens = padded_tokens(in.count, kLanes<T>);
  for (int64_t c = 0; c < in.channels; ++c) std::fill(out + c * kRow<T> + in.count, out + c * kRow<T> + tokens, T(0));
}

template <typename scalar_t, typename T>
NL_CLONES void store_columns(const T* __restrict in, Tokens<scalar_t> out) {
  for (int64_t t = 0; t < out.count; ++t)
    for (int64_t c = 0; c < out.channels; ++c) simd::from_op(in[c * kRow<T> + t], out.data + t * out.stride_t + c * out.stride_c);
}

// out [count, stride]: rows times the weight of their token, zeros in the columns beyond the channels
template <typename scalar_t, typename T>
NL_CLONES void load_rows(Tokens<const scalar_t> in, const T* __restrict weight, int64_t stride, T* __restrict out) {
  for (int64_t t = 0; t < in.count; ++t) {
    T* __restrict to = out + t * stride;
    const scalar_t* from = in.data + t * in.stride_t;
    if (in.stride_c == 1) {
#pragma omp simd
      for (int64_t c = 0; c < in.channels; ++c) to[c] = simd::to_op(from[c]) * weight[t];
    } else {
      for (int64_t c = 0; c < in.channels; ++c) to[c] = simd::to_op(from[c * in.stride_c]) * weight[t];
    }
    for (int64_t c = in.channels; c < stride; ++c) to[c] = T(0);
  }
}

template <typename T>
NL_CLONES void weigh_columns(const T* __restrict weight, int64_t columns, int64_t tokens, T* __restrict x) {
  for (int64_t c = 0; c < columns; ++c)
#pragma omp simd
    for (int64_t t = 0; t < tokens; ++t) x[c * kRow<T> + t] *= weight[t];
}

// out [n]: sum over columns of x * y
template <typename T>
NL_CLONES void column_products(const T* __restrict x, const T* __restrict y, int64_t columns, int64_t n, T* __restrict out) {
  std::fill_n(out, n, T(0));
  for (int64_t c = 0; c < columns; ++c)
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) out[t] += x[c * kRow<T> + t] * y[c * kRow<T> + t];
}

// e^bias of the tokens of a tile, 1 without a bias, 0 in the lanes beyond them; a bias of -inf says that the token is absent
template <typename T>
class Weights {
 public:
  alignas(64) T value[kTokens];

  void load(const T* bias, int64_t n) {
    absent_ = 0;
    for (int64_t t = 0; t < n; ++t) {
      value[t] = bias == nullptr ? T(1) : std::exp(bias[t]);
      if (bias != nullptr && bias[t] == -simd::infinity<T>) place_[absent_++] = t;
    }
    std::fill(value + n, value + kTokens, T(0));
  }
  // zeros for what absent tokens hold: they may hold NaN
  void clear_columns(int64_t channels, T* columns) const {
    for (int64_t i = 0; i < absent_; ++i)
      for (int64_t c = 0; c < channels; ++c) columns[c * kRow<T> + place_[i]] = T(0);
  }
  void clear_rows(int64_t stride, T* rows) const {
    for (int64_t i = 0; i < absent_; ++i) std::fill_n(rows + place_[i] * stride, stride, T(0));
  }

 private:
  int64_t absent_ = 0, place_[kTokens];
};

// channels of a tile and the features that are stored
template <typename T>
struct FeatureTile {
  const FeatureTable& table;
  const Lines<T> u, low, run;
  int64_t tokens = 0;

  explicit FeatureTile(const FeatureTable& table_)
      : table(table_), u(table.dim * kRow<T>), low(table.low_count() * kRow<T>), run(kRun * kRow<T>) {}

  void prepare(int64_t count) {
    tokens = padded_tokens(count, kLanes<T>);
    low_features<T>(table, u, tokens, low);
  }
  // f(at, n, phi [n, kRow]): features `at` to at + n, for runs that make up [first, last)
  template <typename F>
  void each_run(int64_t first, int64_t last, F&& f) const {
    table.runs(first, last, kRun, [&](int64_t m, int64_t a, int64_t b) {
      if (m == table.low()) return f(a, b - a, static_cast<const T*>(low + a * kRow<T>));
      features<T>(table, u, low, tokens, m, a, b, low, run);  // the first stored feature is 1
      f(table.start(m) + a, b - a, static_cast<const T*>(run));
    });
  }
};

// sums [columns, kRow] = factors [R, columns]^T features
template <typename T>
void multiply_features(const FeatureTile<T>& tile, const T* factors, int64_t columns, T* sums) {
  std::fill_n(sums, columns * kRow<T>, T(0));
  tile.each_run(0, tile.table.count(), [&](int64_t at, int64_t n, const T* phi) {
    matmul_tile<Layout::kColumns, true, T>(columns, tile.tokens, n, factors + at * columns, columns, phi, kRow<T>, sums, kRow<T>);
  });
}

// the gradient of channels of which the features have the gradient factors [R, columns] x [columns, kRow]
template <typename T>
class Fold {
 public:
  explicit Fold(const FeatureTable& table) : d_u(table.dim * kRow<T>), d_low_(table.low_count() * kRow<T>), d_run_(kRun * kRow<T>) {}

  const Lines<T> d_u;

  void operator()(const FeatureTile<T>& tile, const T* factors, int64_t columns, const T* x) {
    const FeatureTable& table = tile.table;
    std::fill_n(static_cast<T*>(d_u), table.dim * kRow<T>, T(0));
    table.runs(0, table.count(), kRun, [&](int64_t m, int64_t a, int64_t b) {
      const bool stored = m == table.low();
      const T* rows = factors + ((stored ? 0 : table.start(m)) + a) * columns;
      T* d_phi = stored ? d_low_ + a * kRow<T> : static_cast<T*>(d_run_);
      matmul_tile<Layout::kRows, false, T>(b - a, tile.tokens, columns, rows, columns, x, kRow<T>, d_phi, kRow<T>);
      alignas(64) T unused[kTokens] = {};  // gradient of the factor 1
      if (!stored) fold_features<T>(table, tile.u, tile.low, tile.tokens, m, a, b, tile.low, d_phi, d_low_, d_u, unused);
    });
    fold_low_features<T>(table, tile.u, tile.low, tile.tokens, d_low_, d_u);
  }

 private:
  const Lines<T> d_low_, d_run_;
};

}  // namespace nearlinear
