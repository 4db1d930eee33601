// attention over pairs of keys: tensors of any strides as rows, and blocks of one key axis packed for products of tiles.
#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "../common/matmul_tile.h"
#include "row_blocks.h"

namespace nearlinear {

template <typename T>
constexpr int64_t whole_lines(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// [first, last)
struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// how far keys may lie from a query, -1 for any distance
struct Window {
  int64_t left, right;
  Range keys(int64_t query, int64_t count) const {
    const int64_t last = right < 0 ? count : std::min(query + std::min(right, count) + 1, count);
    return {left < 0 ? 0 : std::clamp<int64_t>(query - left, 0, std::max<int64_t>(last, 0)), std::max<int64_t>(last, 0)};
  }
};

// A tensor [B, heads, count, channels], or [B, heads, count] of one channel, of any dtype and strides; elements are read as T.
template <typename T>
class TensorRows {
 public:
  TensorRows(const Tensor& t, const char* op, const char* argument)
      : heads(t.size(1)),
        count(t.size(2)),
        channels(t.dim() == 4 ? t.size(3) : 1),
        values_(t, op, argument),
        stride_{t.stride(0), t.stride(1), t.stride(2), t.dim() == 4 ? t.stride(3) : 1} {}
  void load(int64_t b, int64_t h, int64_t i, T* out) const { values_.load(at(b, h, i), stride_[3], channels, out); }
  void store(int64_t b, int64_t h, int64_t i, const T* in) const { values_.store(in, channels, at(b, h, i), stride_[3]); }
  T element(int64_t b, int64_t h, int64_t i) const { return values_.element(at(b, h, i)); }

  int64_t heads, count, channels;

 private:
  int64_t at(int64_t b, int64_t h, int64_t i) const { return b * stride_[0] + h * stride_[1] + i * stride_[2]; }

  Blocks<T> values_;
  int64_t stride_[4];
};

// maxima over vectors of their 2-norm, 3-norm and largest channel
template <typename T>
struct Norms {
  T two = 0, three = 0, top = 0;
};

template <typename T>
NL_CLONES void add_norms(const T* __restrict x, int64_t n, Norms<T>* norms) {
  T top = 0, squares = 0, cubes = 0;
#pragma omp simd reduction(max : top)
  for (int64_t c = 0; c < n; ++c) top = std::fabs(x[c]) > top ? std::fabs(x[c]) : top;
  const T inverse = top > 0 ? 1 / top : T(0);  // powers of small numbers would vanish, and with them the bound
#pragma omp simd reduction(+ : squares, cubes)
  for (int64_t c = 0; c < n; ++c) {
    const T a = std::fabs(x[c]) * inverse;
    squares += a * a;
    cubes += a * a * a;
  }
  const T two = top * std::sqrt(squares), three = top * std::cbrt(cubes);
  // in this order NaN wins and stays
  norms->two = norms->two >= two ? norms->two : two;
  norms->three = norms->three >= three ? norms->three : three;
  norms->top = norms->top >= top ? norms->top : top;
}

// |sum_c q_c a_c b_c| <= this, by Hoelder's inequality for 1/3 + 1/3 + 1/3 and the three of 1/2 + 1/2 + 0
template <typename T>
T logit_bound(const Norms<T>& q, const Norms<T>& a, const Norms<T>& b) {
  const T bounds[] = {q.three * a.three * b.three, q.top * a.two * b.two, q.two * a.top * b.two, q.two * a.two * b.top};
  T least = bounds[0];
  for (T bound : bounds) least = least <= bound ? least : bound;
  return least;
}

// One key axis: its tensors, and how far its keys may lie from a query
template <typename T>
struct Axis {
  TensorRows<T> key, value;
  std::optional<TensorRows<T>> bias;
  Window window;
};

template <typename T>
int64_t value_stride(int64_t channels) {  // a line of lanes follows the channels
  return padded_stride<T>(channels + kLanes<T>);
}

// The keys of a range that take part, packed: those with bias -inf are left out, so that nothing they hold is ever read.
template <typename T>
class KeyBlock {
 public:
  static constexpr int64_t W = kLanes<T>;

  KeyBlock(const Axis<T>& axis, int64_t capacity, bool columns)
      : capacity(capacity),
        key_stride(padded_stride<T>(axis.key.channels)),
        value_stride(nearlinear::value_stride<T>(axis.value.channels)),
        column_stride(padded_stride<T>(capacity)),
        keys(lines<T>(capacity * key_stride)),
        values(lines<T>(capacity * value_stride)),
        bias(lines<T>(column_stride)),
        axis_(axis) {
    if (!columns) return;
    key_columns = lines<T>(axis.key.channels * column_stride);
    value_columns = lines<T>(axis.value.channels * column_stride);
  }

  const T* key(int64_t j) const { return keys.get() + j * key_stride; }
  const T* value(int64_t j) const { return values.get() + j * value_stride; }

  // `weight`: what a bias counts as without `bias_taken`, and what stands behind the last key
  template <typename weight_t>
  void pack(int64_t b, int64_t g, Range range, const weight_t& weight, T bias_taken) {
    index.clear();
    norms = {};
    bias_top = 0;
    for (int64_t j = range.first; j < range.last; ++j) {
      const T added = axis_.bias ? axis_.bias->element(b, g, j) : T(0);
      if (added == -simd::infinity<T>) continue;
      const int64_t row = static_cast<int64_t>(index.size());
      axis_.key.load(b, g, j, keys.get() + row * key_stride);
      T* value = values.get() + row * value_stride;
      axis_.value.load(b, g, j, value);
      std::fill_n(value + whole_lines<T>(axis_.value.channels), W, T(1));  // they meet the lanes of the row sums
      bias[row] = weight.bias(added - bias_taken);
      bias_top = bias_top >= std::fabs(added) ? bias_top : std::fabs(added);
      if (weight_t::kShifts) add_norms(key(row), axis_.key.channels, &norms);
      index.push_back(j);
    }
    count = static_cast<int64_t>(index.size());
    padded = whole_lines<T>(count);
    std::fill(bias.get() + count, bias.get() + padded, weight.kAbsent);
    if (key_columns) transpose(keys.get(), key_stride, axis_.key.channels, key_columns.get());
    if (value_columns) transpose(values.get(), value_stride, axis_.value.channels, value_columns.get());
  }

  // places of the keys of a range: those behind the last key too if it ends there, because no weight is on them
  Range places(Range range) const {
    const auto place = [&](int64_t j) { return std::lower_bound(index.begin(), index.end(), j) - index.begin(); };
    const int64_t last = place(range.last);
    return {place(range.first), last == count ? padded : last};
  }

  int64_t capacity, key_stride, value_stride, column_stride, count = 0, padded = 0;
  Lines<T> keys, values, bias, key_columns, value_columns;  // [count, channels], [count], [channels, count]
  std::vector<int64_t> index;                               // in the tensors
  Norms<T> norms;
  T bias_top = 0;

 private:
  void transpose(const T* rows, int64_t stride, int64_t channels, T* columns) const {
    for (int64_t j = 0; j < padded; j += W)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t l = 0; l < W; ++l) columns[c * column_stride + j + l] = j + l < count ? rows[(j + l) * stride + c] : T(0);
  }

  const Axis<T>& axis_;
};

}  // namespace nearlinear
