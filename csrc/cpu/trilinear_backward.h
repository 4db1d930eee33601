// attention over pairs of keys, backward: gradients of a tile of queries, added to those of the keys that a share of the tiles owns.
#pragma once
#include "trilinear_forward.h"
#include "trilinear_shares.h"

namespace nearlinear {

constexpr int64_t kBackwardColumns = 64;                // of a product with keys of axis 1
constexpr int64_t kBackwardBytes = int64_t{128} << 10;  // of a block of axis 1, which is held in rows, in columns, and as gradients

// Logits x become weights, and products g = <d_out, value1 * value2> become slope (g - delta): 0 outside a row's range. Sums over
// weight (g - delta) along rows and columns are the gradients of biases.
template <typename weight_t, typename T>
NL_CLONES void weigh_rows_backward(weight_t weight, int64_t rows, int64_t n, const Range* range, const T* __restrict bias,
                                   const T* __restrict offset, const T* __restrict delta, T* __restrict x, T* __restrict g, int64_t stride,
                                   T* __restrict row_sums, T* __restrict column_sums) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t r = 0; r < rows; ++r, x += stride, g += stride) {
    const int64_t first = range[r].first, last = range[r].last;
    alignas(64) T sum[W], w[W], slope[W];
    for (int64_t l = 0; l < W; ++l) sum[l] = 0;
    int64_t k = first;
    for (; k + W <= last; k += W) {
      weight(x + k, bias + k, offset[r], w, slope);
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) {
        const T from_mean = g[k + l] - delta[r], by_bias = w[l] * from_mean;
        sum[l] += by_bias;
        column_sums[k + l] += by_bias;
        x[k + l] = w[l];
        g[k + l] = slope[l] * from_mean;
      }
    }
    if (k < last) {
      alignas(64) T some[W], some_bias[W];
      for (int64_t l = 0; l < W; ++l) some[l] = some_bias[l] = 0;
      for (int64_t l = 0; l < last - k; ++l) some[l] = x[k + l], some_bias[l] = bias[k + l];
      weight(some, some_bias, offset[r], w, slope);
      for (int64_t l = 0; l < last - k; ++l) {
        const T from_mean = g[k + l] - delta[r], by_bias = w[l] * from_mean;
        sum[l] += by_bias;
        column_sums[k + l] += by_bias;
        x[k + l] = w[l];
        g[k + l] = slope[l] * from_mean;
      }
    }
    for (k = 0; k < first; ++k) x[k] = g[k] = 0;
    for (k = last; k < n; ++k) x[k] = g[k] = 0;
    T total = 0;
    for (int64_t l = 0; l < W; ++l) total += sum[l];
    row_sums[r] = total;
  }
}

// sum_c += sum_r a_rc b_rc
template <typename T>
NL_CLONES void add_products(int64_t rows, int64_t n, const T* __restrict a, int64_t a_stride, const T* __restrict b, int64_t b_stride,
                            T* __restrict sum) {
  for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) sum[c] += a[r * a_stride + c] * b[r * b_stride + c];
}

template <typename T>
NL_CLONES void add_row(const T* __restrict x, int64_t n, T* __restrict sum) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) sum[c] += x[c];
}

template <typename weight_t, typename T>
class BackwardTile {
 public:
  BackwardTile(const TrilinearProblem<T>& problem, const weight_t& weight, const Wanted& wanted)
      : tile(problem, kBackwardBytes),
        weight_(weight),
        wanted_(wanted),
        key_channels_(problem.query.channels),
        value_channels_(problem.value_channels()),
        value_stride_(tile.inner.value_stride),
        stride_(padded_stride<T>(kBackwardColumns)),
        upstream_(lines<T>(kTileRows * value_stride_)),
        outs_(lines<T>(kTileRows * value_stride_)),
        weights_(lines<T>(kTileRows * stride_)),
        slopes_(lines<T>(kTileRows * stride_)),
        by_key_(lines<T>(kTileRows * tile.stride)),
        by_value_(lines<T>(kTileRows * value_stride_)),
        d_query_(lines<double>(kTileRows * tile.stride)),
        d_inner_key_(lines<T>(tile.inner.capacity * tile.stride)),
        d_inner_value_(lines<T>(tile.inner.capacity * value_stride_)),
        d_inner_bias_(lines<T>(tile.inner.column_stride)),
        column_sums_(lines<T>(kBackwardColumns)) {
    ones_.fill(1);
    double_ones_.fill(1);
  }

  // `load(slot, upstream row, delta, shift)`: d out, what is taken from each product with it, what is taken from each logit
  template <typename F>
  void run(int64_t task, F&& load, std::array<KeyGradients<T>, 2>* gradients) {
    tile.load(task, weight_);
    for (int64_t s = 0; s < tile.count; ++s) load(tile, s, upstream_.get() + s * value_stride_, &delta_[s], &shift_[s]);
    std::fill_n(d_query_.get(), kTileRows * tile.stride, 0.0);
    tile.for_each_block(weight_, [&] {
      std::fill_n(d_inner_key_.get(), tile.inner.count * tile.stride, T(0));
      std::fill_n(d_inner_value_.get(), tile.inner.count * value_stride_, T(0));
      std::fill_n(d_inner_bias_.get(), tile.inner.padded, T(0));
      tile.for_each_batch([&](const Batch& batch) { add(batch, (*gradients)[0]); });
      flush((*gradients)[1]);
    });
  }

  const double* d_query(int64_t s) const { return d_query_.get() + s * tile.stride; }

  QueryTile<T> tile;

 private:
  void add(const Batch& batch, KeyGradients<T>& outer) {
    const Range columns = tile.multiply(batch);
    int64_t row = 0;
    for (int64_t i = 0; i < batch.segments; row += batch.list[i++].rows) {
      const Segment& s = batch.list[i];
      multiply_rows(s.rows, value_channels_, upstream_.get() + s.slot * value_stride_, value_stride_, tile.outer.value(s.key),
                    outs_.get() + row * value_stride_);
    }
    std::fill_n(by_key_.get(), batch.rows * tile.stride, T(0));
    std::fill_n(by_value_.get(), batch.rows * value_stride_, T(0));
    bias_sums_.fill(0);
    for (int64_t k = columns.first; k < columns.last; k += kBackwardColumns) {
      const int64_t n = std::min(kBackwardColumns, tile.inner.padded - k);
      logits(batch, k, n);
      weigh(batch, k, n);
      products(batch, k, std::min(n, tile.inner.count - k));
    }
    fold(batch, outer);
  }

  void logits(const Batch& batch, int64_t k, int64_t n) {
    const auto& inner = tile.inner;
    matmul_tile<Layout::kRows, false>(batch.rows, n, key_channels_, tile.rows.get(), tile.stride, inner.key_columns.get() + k,
                                      inner.column_stride, weights_.get(), stride_);
    if (!wanted_.slopes()) return;
    matmul_tile<Layout::kRows, false>(batch.rows, n, value_channels_, outs_.get(), value_stride_, inner.value_columns.get() + k,
                                      inner.column_stride, slopes_.get(), stride_);
  }

  void weigh(const Batch& batch, int64_t k, int64_t n) {
    std::array<Range, kTileRows> range;
    std::array<T, kTileRows> offset, delta, sums;
    for (int64_t r = 0; r < batch.rows; ++r) {
      const int64_t slot = tile.slot[r];
      const Range& seen = tile.places[1][slot];
      range[r] = {std::clamp<int64_t>(seen.first - k, 0, n), std::clamp<int64_t>(seen.last - k, 0, n)};
      offset[r] = weight_t::row(tile.bias[r], shift_[slot]);
      delta[r] = delta_[slot];
    }
    std::fill_n(column_sums_.get(), n, T(0));
    weigh_rows_backward(weight_, batch.rows, n, range.data(), tile.inner.bias.get() + k, offset.data(), delta.data(), weights_.get(),
                        slopes_.get(), stride_, sums.data(), column_sums_.get());
    add_row(sums.data(), batch.rows, bias_sums_.data());
    add_row(column_sums_.get(), n, d_inner_bias_.get() + k);
  }

  // the four products with weights and slopes; n: keys
  void products(const Batch& batch, int64_t k, int64_t n) {
    const auto& inner = tile.inner;
    const int64_t keys = whole_lines<T>(key_channels_), values = whole_lines<T>(value_channels_);
    if (wanted_.value[1])
      matmul_tile<Layout::kColumns, true>(n, values, batch.rows, weights_.get(), stride_, outs_.get(), value_stride_,
                                          d_inner_value_.get() + k * value_stride_, value_stride_);
    if (wanted_.key[1])
      matmul_tile<Layout::kColumns, true>(n, keys, batch.rows, slopes_.get(), stride_, tile.rows.get(), tile.stride,
                                          d_inner_key_.get() + k * tile.stride, tile.stride);
    if (wanted_.query || wanted_.key[0])
      matmul_tile<Layout::kRows, true>(batch.rows, keys, n, slopes_.get(), stride_, inner.key(k), inner.key_stride, by_key_.get(),
                                       tile.stride);
    if (wanted_.value[0])
      matmul_tile<Layout::kRows, true>(batch.rows, values, n, weights_.get(), stride_, inner.value(k), value_stride_, by_value_.get(),
                                       value_stride_);
  }

  void fold(const Batch& batch, KeyGradients<T>& outer) {
    int64_t row = 0;
    for (int64_t i = 0; i < batch.segments; row += batch.list[i++].rows) {
      const Segment& s = batch.list[i];
      const int64_t j = tile.outer.index[s.key];
      const T *by_key = by_key_.get() + row * tile.stride, *by_value = by_value_.get() + row * value_stride_;
      fold_rows(s.rows, key_channels_, by_key, tile.stride, tile.outer.key(s.key), double_ones_.data(), ones_.data(),
                d_query_.get() + s.slot * tile.stride);
      add_products(s.rows, key_channels_, by_key, tile.stride, tile.queries.get() + s.slot * tile.stride, tile.stride, outer.key(j));
      add_products(s.rows, value_channels_, by_value, value_stride_, upstream_.get() + s.slot * value_stride_, value_stride_,
                   outer.value(j));
      for (int64_t r = 0; r < s.rows; ++r) *outer.bias(j) += bias_sums_[row + r];
    }
  }

  void flush(KeyGradients<T>& inner) {
    for (int64_t k = 0; k < tile.inner.count; ++k) {
      const int64_t j = tile.inner.index[k];
      add_row(d_inner_key_.get() + k * tile.stride, key_channels_, inner.key(j));
      add_row(d_inner_value_.get() + k * value_stride_, value_channels_, inner.value(j));
      *inner.bias(j) += d_inner_bias_[k];
    }
  }

  weight_t weight_;
  Wanted wanted_;
  int64_t key_channels_, value_channels_, value_stride_, stride_;
  Lines<T> upstream_, outs_, weights_, slopes_, by_key_, by_value_;
  Lines<double> d_query_;
  Lines<T> d_inner_key_, d_inner_value_, d_inner_bias_, column_sums_;
  std::array<T, kTileRows> delta_, shift_, bias_sums_, ones_;
  std::array<double, kTileRows> double_ones_;
};

}  // namespace nearlinear
