// features of a tile of tokens: all monomials of D channels up to a degree, feature-major, and their reverse.
//
// Of degree m, the features with channels below c are the first S_m(c) = C(c + m - 1, m); the block of channel c, from S_m(c) to S_m(c +
// 1), is u_c times the first S_{m-1}(c + 1) features of degree m - 1 (python/nearlinear/taylor_features.py). So any run of features is made
// where it is needed, one multiplication each: the features up to a degree `low` are stored; one of degree m is the product of its last
// m - low channels, shared by a whole run, times a stored one. No workspace depends on their number.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../common/check.h"
#include "../common/matmul_tile.h"

namespace nearlinear {

constexpr int64_t kTokens = 128;  // of a tile: the lanes
constexpr int64_t kMostDegree = 1000;
constexpr int64_t kMostLow = 640;  // features that are stored: 360 KB of float
template <typename T>
constexpr int64_t kRow = padded_stride<T>(kTokens);  // elements from a row of a tile to the next

class FeatureTable {
 public:
  const int64_t dim, degree;

  FeatureTable(int64_t dim_, int64_t degree_, const char* op, int64_t most_low = kMostLow) : dim(dim_), degree(degree_), width_(dim_ + 1) {
    check(degree >= 0 && degree <= kMostDegree && dim >= 1, op, "degree must be 0 to ", kMostDegree,
          " and queries and keys must have a channel, got ", degree, " and ", dim);
    below_.assign(static_cast<size_t>((degree + 1) * width_), 1);
    start_.assign(static_cast<size_t>(degree + 2), 0);
    for (int64_t m = 0; m <= degree; ++m) {
      if (m > 0) below_[index(m, 0)] = 0;
      for (int64_t c = 0; m > 0 && c < dim; ++c) {
        below_[index(m, c + 1)] = below(m, c) + below(m - 1, c + 1);
        check(start(m) + below(m, c + 1) < kMost, op, "degree ", degree, " of ", dim, " channels has too many features");
      }
      start_[static_cast<size_t>(m + 1)] = start(m) + below(m, dim);
    }
    low_ = std::min<int64_t>(degree, 1);
    while (low_ < degree && start(low_ + 2) <= most_low) ++low_;
  }

  int64_t below(int64_t m, int64_t c) const { return below_[index(m, c)]; }
  int64_t start(int64_t m) const { return start_[static_cast<size_t>(m)]; }  // of degree m among all features
  int64_t count() const { return start(degree + 1); }
  int64_t low() const { return low_; }
  int64_t low_count() const { return start(low_ + 1); }
  // the last channel of feature i of degree m > 0
  int64_t channel(int64_t m, int64_t i) const {
    const int64_t* row = &below_[index(m, 0)];
    return std::upper_bound(row, row + width_, i) - row - 1;
  }

  // Calls f(m, a, b) for runs of at most `most` features that make up [first, last); features a to b of degree m, or, where m is low(),
  // of all that are stored.
  template <typename F>
  void runs(int64_t first, int64_t last, int64_t most, F&& f) const {
    for (int64_t m = low_, begin = first; begin < last;) {
      while (begin >= start(m + 1)) ++m;
      const int64_t end = std::min({last, start(m + 1), begin + most}), origin = m == low_ ? 0 : start(m);
      f(m, begin - origin, end - origin);
      begin = end;
    }
  }

 private:
  static constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 4;
  size_t index(int64_t m, int64_t c) const { return static_cast<size_t>(m * width_ + c); }

  int64_t width_, low_;
  std::vector<int64_t> below_, start_;
};

// rows of a tile: out = w * in. tokens: padded to whole vectors, as everywhere below
template <typename T>
NL_CLONES void scale_rows(const T* __restrict w, const T* __restrict in, int64_t rows, int64_t tokens, T* __restrict out) {
  for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
    for (int64_t t = 0; t < tokens; ++t) out[r * kRow<T> + t] = w[t] * in[r * kRow<T> + t];
}

// the reverse: d_in += d_out * w, d_w += sum over rows of d_out * in
template <typename T>
NL_CLONES void fold_rows(const T* __restrict w, const T* __restrict in, const T* __restrict d_out, int64_t rows, int64_t tokens,
                         T* __restrict d_in, T* __restrict d_w) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t begin = 0; begin < tokens; begin += W) {
    T sum[W] = {};
    for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) {
        const int64_t at = r * kRow<T> + begin + l;
        d_in[at] += d_out[at] * w[begin + l];
        sum[l] += d_out[at] * in[at];
      }
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) d_w[begin + l] += sum[l];
  }
}

// the features that are stored [low_count, kRow] of u [D, kRow]
template <typename T>
void low_features(const FeatureTable& table, const T* u, int64_t tokens, T* low) {
  std::fill_n(low, tokens, T(1));
  for (int64_t m = 1; m <= table.low(); ++m)
    for (int64_t c = 0; c < table.dim; ++c)
      scale_rows(u + c * kRow<T>, low + table.start(m - 1) * kRow<T>, table.below(m - 1, c + 1), tokens,
                 low + (table.start(m) + table.below(m, c)) * kRow<T>);
}

template <typename T>
void fold_low_features(const FeatureTable& table, const T* u, const T* low, int64_t tokens, T* d_low, T* d_u) {
  for (int64_t m = table.low(); m > 0; --m)
    for (int64_t c = 0; c < table.dim; ++c) {
      const int64_t from = table.start(m - 1) * kRow<T>, to = (table.start(m) + table.below(m, c)) * kRow<T>;
      fold_rows(u + c * kRow<T>, low + from, d_low + to, table.below(m - 1, c + 1), tokens, d_low + from, d_u + c * kRow<T>);
    }
}

// out [b - a, kRow] = w * features a to b of degree m >= low, from the stored ones
template <typename T>
void features(const FeatureTable& table, const T* u, const T* low, int64_t tokens, int64_t m, int64_t a, int64_t b, const T* w, T* out) {
  if (m == table.low()) return scale_rows(w, low + (table.start(m) + a) * kRow<T>, b - a, tokens, out);
  for (int64_t c = table.channel(m, a); a < b; ++c) {
    const int64_t origin = table.below(m, c), end = std::min(b, table.below(m, c + 1));
    alignas(64) T product[kTokens];
    scale_rows(w, u + c * kRow<T>, 1, tokens, product);
    features(table, u, low, tokens, m - 1, a - origin, end - origin, product, out);
    out += (end - a) * kRow<T>;
    a = end;
  }
}

// the reverse: adds to d_low, d_u and d_w
template <typename T>
void fold_features(const FeatureTable& table, const T* u, const T* low, int64_t tokens, int64_t m, int64_t a, int64_t b, const T* w,
                   const T* d_out, T* d_low, T* d_u, T* d_w) {
  const int64_t at = (table.start(m) + a) * kRow<T>;
  if (m == table.low()) return fold_rows(w, low + at, d_out, b - a, tokens, d_low + at, d_w);
  for (int64_t c = table.channel(m, a); a < b; ++c) {
    const int64_t origin = table.below(m, c), end = std::min(b, table.below(m, c + 1));
    alignas(64) T product[kTokens], d_product[kTokens] = {};
    scale_rows(w, u + c * kRow<T>, 1, tokens, product);
    fold_features(table, u, low, tokens, m - 1, a - origin, end - origin, product, d_out, d_low, d_u, d_product);
    fold_rows(w, u + c * kRow<T>, d_product, 1, tokens, d_u + c * kRow<T>, d_w);
    d_out += (end - a) * kRow<T>;
    a = end;
  }
}

}  // namespace nearlinear
