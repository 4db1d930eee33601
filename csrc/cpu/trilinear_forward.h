// attention over pairs of keys, forward: sums over pairs for a tile of queries, with a shift for each query where the weight needs one.
#pragma once
#include "trilinear_tile.h"

namespace nearlinear {

constexpr int64_t kForwardColumns = 128;               // of a product with keys of axis 1
constexpr int64_t kForwardBytes = int64_t{256} << 10;  // of a block of axis 1: a part of a usual L2 cache

// max over k of x_k + bias_k; NaN is dropped here and comes back through the exponential
template <typename T>
NL_CLONES T largest_logit(const T* __restrict x, const T* __restrict bias, int64_t n) {
  T top = -simd::infinity<T>;
#pragma omp simd reduction(max : top)
  for (int64_t k = 0; k < n; ++k) top = x[k] + bias[k] > top ? x[k] + bias[k] : top;
  return top;
}

template <typename T>
NL_CLONES void scale_row(T* __restrict x, int64_t n, T factor) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) x[c] *= factor;
}

// Logits of rows become weights in place: 0 outside a row's range. Their sum is added in lanes to what lies at `sums`.
template <typename weight_t, typename T>
NL_CLONES void weigh_rows(weight_t weight, int64_t rows, int64_t n, const Range* range, const T* __restrict bias,
                          const T* __restrict offset, T* __restrict x, int64_t stride, T* __restrict sums, int64_t sums_stride) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t r = 0; r < rows; ++r, x += stride, sums += sums_stride) {
    const int64_t first = range[r].first, last = range[r].last;
    alignas(64) T sum[W], w[W];
    for (int64_t l = 0; l < W; ++l) sum[l] = 0;
    int64_t k = first;
    for (; k + W <= last; k += W) {
      weight(x + k, bias + k, offset[r], w);
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) sum[l] += w[l], x[k + l] = w[l];
    }
    if (k < last) {
      alignas(64) T some[W], some_bias[W];
      for (int64_t l = 0; l < W; ++l) some[l] = some_bias[l] = 0;
      for (int64_t l = 0; l < last - k; ++l) some[l] = x[k + l], some_bias[l] = bias[k + l];
      weight(some, some_bias, offset[r], w);
      for (int64_t l = 0; l < last - k; ++l) sum[l] += w[l], x[k + l] = w[l];
    }
    for (k = 0; k < first; ++k) x[k] = 0;
    for (k = last; k < n; ++k) x[k] = 0;
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) sums[l] += sum[l];
  }
}

// total_r = old_r total_r + fresh_r x_r * value: in double, so that the error does not grow with the number of keys
template <typename T>
NL_CLONES void fold_rows(int64_t rows, int64_t n, const T* __restrict x, int64_t stride, const T* __restrict value,
                         const double* __restrict old, const T* __restrict fresh, double* __restrict total) {
  for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
    for (int64_t c = 0; c < n; ++c)
      total[r * stride + c] = total[r * stride + c] * old[r] + static_cast<double>(x[r * stride + c] * (value[c] * fresh[r]));
}

template <typename weight_t, typename T>
class ForwardTile {
 public:
  static constexpr int64_t W = kLanes<T>;
  static constexpr T kBound = 30;  // logits up to this need no shift: e^30 leaves float most of its range either way
  static constexpr T kSlack = 20;  // a shift moves when a logit exceeds it by more

  ForwardTile(const TrilinearProblem<T>& problem, const weight_t& weight)
      : tile(problem, kForwardBytes),
        weight_(weight),
        channels_(whole_lines<T>(problem.value_channels())),
        stride_(value_stride<T>(problem.value_channels())),
        logits_stride_(padded_stride<T>(kForwardColumns)),
        logits_(lines<T>(kTileRows * logits_stride_)),
        products_(lines<T>(kTileRows * stride_)),
        totals_(lines<double>(kTileRows * stride_)) {}

  void run(int64_t task) {
    tile.load(task, weight_);
    std::fill_n(totals_.get(), kTileRows * stride_, 0.0);
    shift_.fill(-simd::infinity<T>);
    tile.for_each_block(weight_, [&] {
      const T bound = logit_bound(tile.norms, tile.outer.norms, tile.inner.norms) + tile.outer.bias_top + tile.inner.bias_top;
      bounded_ = bound <= kBound;
      tile.for_each_batch([&](const Batch& batch) { add(batch); });
    });
  }

  // of a query: [value channels], and the sum of its weights
  const double* totals(int64_t s) const { return totals_.get() + s * stride_; }
  double weights(int64_t s) const {
    double sum = 0;
    for (int64_t l = 0; l < W; ++l) sum += totals(s)[channels_ + l];
    return sum;
  }
  T shift(int64_t s) const { return shift_[s]; }

  QueryTile<T> tile;

 private:
  void add(const Batch& batch) {
    const Range columns = tile.multiply(batch);
    std::fill_n(products_.get(), batch.rows * stride_, T(0));
    for (int64_t r = 0; r < batch.rows; ++r) {
      const T from = shift_[tile.slot[r]];
      row_shift_[r] = bounded_ && !(from > 0) ? T(0) : from;
    }
    const auto& inner = tile.inner;
    for (int64_t k = columns.first; k < columns.last; k += kForwardColumns) {
      const int64_t n = std::min(kForwardColumns, inner.padded - k);
      matmul_tile<Layout::kRows, false>(batch.rows, n, tile.problem.query.channels, tile.rows.get(), tile.stride,
                                        inner.key_columns.get() + k, inner.column_stride, logits_.get(), logits_stride_);
      weigh(batch, k, n);
      matmul_tile<Layout::kRows, true>(batch.rows, channels_, std::min(n, inner.count - k), logits_.get(), logits_stride_, inner.value(k),
                                       inner.value_stride, products_.get(), stride_);
    }
    fold(batch);
  }

  void weigh(const Batch& batch, int64_t k, int64_t n) {
    std::array<Range, kTileRows> range;
    std::array<T, kTileRows> offset;
    const T* bias = tile.inner.bias.get() + k;
    for (int64_t r = 0; r < batch.rows; ++r) {
      const Range& seen = tile.places[1][tile.slot[r]];
      range[r] = {std::clamp<int64_t>(seen.first - k, 0, n), std::clamp<int64_t>(seen.last - k, 0, n)};
      if (weight_t::kShifts && !bounded_) raise(r, range[r], bias);
      offset[r] = weight_t::row(tile.bias[r], row_shift_[r]);
    }
    weigh_rows(weight_, batch.rows, n, range.data(), bias, offset.data(), logits_.get(), logits_stride_, products_.get() + channels_,
               stride_);
  }

  void raise(int64_t r, Range range, const T* bias) {
    const T top = largest_logit(logits_.get() + r * logits_stride_ + range.first, bias + range.first, range.size()) + tile.bias[r];
    if (!(top > row_shift_[r] + kSlack)) return;
    scale_row(products_.get() + r * stride_, stride_, static_cast<T>(std::exp(row_shift_[r] - top)));
    row_shift_[r] = top;
  }

  void fold(const Batch& batch) {
    int64_t row = 0;
    for (int64_t i = 0; i < batch.segments; row += batch.list[i++].rows) {
      const Segment& s = batch.list[i];
      std::array<double, kTileRows> old;
      std::array<T, kTileRows> fresh;
      for (int64_t r = 0; r < s.rows; ++r) {
        const T before = shift_[s.slot + r], now = row_shift_[row + r], top = before > now ? before : now;
        old[r] = before == top ? 1 : std::exp(static_cast<double>(before) - top);  // also where both are -inf
        fresh[r] = now == top ? 1 : std::exp(now - top);
        shift_[s.slot + r] = top;
      }
      fold_rows(s.rows, channels_ + W, products_.get() + row * stride_, stride_, tile.outer.value(s.key), old.data(), fresh.data(),
                totals_.get() + s.slot * stride_);
    }
  }

  weight_t weight_;
  int64_t channels_, stride_, logits_stride_;
  Lines<T> logits_, products_;
  Lines<double> totals_;
  std::array<T, kTileRows> shift_, row_shift_;  // of queries, of rows of the batch
  bool bounded_ = false;
};

}  // namespace nearlinear
