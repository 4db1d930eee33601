// what the distance kernels are made of: vectors packed so that SIMD runs across them, and the reduction of a block of pairs.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../functors/distance.h"

namespace nearlinear {

// vectors in a packed block: one cache line, so that four rows of sums stay in the registers of AVX2
template <typename T>
constexpr int64_t kWidth = 64 / sizeof(T);
// rows that meet a packed block at a time, and terms of a partial sum, whose rounding errors stay those of 32 terms however long D is
constexpr int64_t kRows = 32, kTerms = 32;
constexpr int64_t kStep = 4;  // rows of a register tile

template <typename T>
struct Vectors {  // [count, dim], elements of a vector contiguous
  T* data;
  int64_t count, dim, stride;
  T* row(int64_t i) const { return data + i * stride; }
};

// the reductions of kRows rows with the vectors of a packed block
template <typename T>
struct PairBlock {
  alignas(64) T sum[kRows][kWidth<T>], top[kRows][kWidth<T>], moment[kRows][kWidth<T>];
  alignas(64) bits_t<T> place[kRows][kWidth<T>];

  NL_INLINE Pair<T> pair(int64_t r, int64_t c) const { return {sum[r][c], top[r][c], moment[r][c], place[r][c]}; }
};

// packed[k][c] = coordinate k of vector begin + c; lanes beyond the vectors are 0
template <typename T>
void pack(const Vectors<const T>& v, int64_t begin, T* __restrict packed) {
  constexpr int64_t W = kWidth<T>;
  const int64_t n = std::min(W, v.count - begin);
  if (n < W) std::fill_n(packed, v.dim * W, T(0));
  for (int64_t c = 0; c < n; ++c) {
    const T* row = v.row(begin + c);
    for (int64_t k = 0; k < v.dim; ++k) packed[k * W + c] = row[k];
  }
}

// largest |x - w| of ROWS rows with the packed vectors, and the first coordinate that has it
template <int ROWS, bool PLACE, typename T>
NL_CLONES void reduce_top(const T* __restrict x, int64_t stride, const T* __restrict packed, int64_t dim, int64_t row, PairBlock<T>* out) {
  constexpr int64_t W = kWidth<T>;
  using bits = bits_t<T>;
  bits top[ROWS][W], place[ROWS][W] = {};
  for (int r = 0; r < ROWS; ++r)
    for (int64_t c = 0; c < W; ++c) top[r][c] = -1;
  for (int64_t k = 0; k < dim; ++k)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const T xr = x[r * stride + k];
#pragma omp simd
      for (int64_t c = 0; c < W; ++c) {
        const bits a = std::bit_cast<bits>(std::fabs(xr - packed[k * W + c]));
        if constexpr (PLACE) place[r][c] = a > top[r][c] ? static_cast<bits>(k) : place[r][c];
        top[r][c] = a > top[r][c] ? a : top[r][c];
      }
    }
  for (int r = 0; r < ROWS; ++r)
#pragma omp simd
    for (int64_t c = 0; c < W; ++c) {
      out->top[row + r][c] = std::bit_cast<T>(top[r][c] > 0 ? top[r][c] : bits(0));
      out->place[row + r][c] = place[r][c];
    }
}

template <int ROWS, typename metric_t, typename T>
NL_CLONES void reduce_sum(metric_t metric, const T* __restrict x, int64_t stride, const T* __restrict packed, int64_t dim, int64_t row,
                          PairBlock<T>* out) {
  constexpr int64_t W = kWidth<T>;
  double sum[ROWS][W] = {};
  T top[ROWS][W] = {};
  if constexpr (metric_t::kTop)
    for (int r = 0; r < ROWS; ++r) std::copy_n(out->top[row + r], W, top[r]);
  for (int64_t begin = 0; begin < dim; begin += kTerms) {
    T part[ROWS][W] = {};
    const int64_t end = std::min(begin + kTerms, dim);
    for (int64_t k = begin; k < end; ++k)
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const T xr = x[r * stride + k];
#pragma omp simd
        for (int64_t c = 0; c < W; ++c) part[r][c] += metric.term(xr, packed[k * W + c], top[r][c]);
      }
    for (int r = 0; r < ROWS; ++r)
#pragma omp simd
      for (int64_t c = 0; c < W; ++c) sum[r][c] += part[r][c];
  }
  for (int r = 0; r < ROWS; ++r)
#pragma omp simd
    for (int64_t c = 0; c < W; ++c) out->sum[row + r][c] = static_cast<T>(sum[r][c]);
}

// all that the metric asks of n <= kRows rows from x and the packed vectors
template <bool PLACE, typename metric_t, typename T>
void reduce(metric_t metric, const T* x, int64_t stride, int64_t n, const T* packed, int64_t dim, PairBlock<T>* out) {
  for (int64_t r = 0, step; r < n; r += step) {
    step = n - r < kStep ? 1 : kStep;
    const T* rows = x + r * stride;
    if constexpr (metric_t::kTop) (step == 1 ? reduce_top<1, PLACE, T> : reduce_top<kStep, PLACE, T>)(rows, stride, packed, dim, r, out);
    if constexpr (metric_t::kSum)
      (step == 1 ? reduce_sum<1, metric_t, T> : reduce_sum<kStep, metric_t, T>)(metric, rows, stride, packed, dim, r, out);
  }
}

template <typename metric_t, typename T>
NL_CLONES void values(metric_t metric, const PairBlock<T>& block, int64_t row, T* __restrict out) {
#pragma omp simd
  for (int64_t c = 0; c < kWidth<T>; ++c) out[c] = metric.value(block.pair(row, c));
}

// d_packed[k][c] += sum over n rows of coefficient[row][c] slope(packed[k][c], x[row][k]) for COUNT coordinates from k.
// A pair with coefficient 0 adds nothing, whatever its vectors hold.
template <int COUNT, typename metric_t, typename T>
NL_CLONES void add_slopes(metric_t metric, const T (*__restrict coefficient)[kWidth<T>], const T* __restrict x, int64_t stride, int64_t n,
                          const T* __restrict packed, int64_t k, const PairBlock<T>& block, T* __restrict d_packed) {
  constexpr int64_t W = kWidth<T>;
  T part[COUNT][W] = {};
  for (int64_t r = 0; r < n; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      const T xr = x[r * stride + k + i];
#pragma omp simd
      for (int64_t c = 0; c < W; ++c) {
        const T g = coefficient[r][c], slope = metric.slope(packed[(k + i) * W + c], xr, block.top[r][c]);
        part[i][c] += metric_t::kBounded || g != 0 ? g * slope : T(0);
      }
    }
  for (int i = 0; i < COUNT; ++i)
#pragma omp simd
    for (int64_t c = 0; c < W; ++c) d_packed[(k + i) * W + c] += part[i][c];
}

// the same where one coordinate of a pair has the whole slope
template <typename metric_t, typename T>
void add_slopes_at_places(metric_t metric, const T (*coefficient)[kWidth<T>], const T* x, int64_t stride, int64_t n, const T* packed,
                          const PairBlock<T>& block, T* d_packed) {
  constexpr int64_t W = kWidth<T>;
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c < W; ++c) {
      const int64_t k = block.place[r][c];
      d_packed[k * W + c] += coefficient[r][c] * metric.slope(packed[k * W + c], x[r * stride + k], block.top[r][c]);
    }
}

// coefficient = upstream scale(pair), d_moment += upstream moment_scale(pair), both 0 where upstream is, whatever the pair holds
template <typename metric_t, typename T>
NL_CLONES void scale_upstream(metric_t metric, const PairBlock<T>& block, int64_t n, T (*__restrict coefficient)[kWidth<T>],
                              T* __restrict d_moment) {
  for (int64_t r = 0; r < n; ++r)
#pragma omp simd
    for (int64_t c = 0; c < kWidth<T>; ++c) {
      const T g = coefficient[r][c];
      const Pair<T> pair = block.pair(r, c);
      coefficient[r][c] = g != 0 ? g * metric.scale(pair) : T(0);
      if constexpr (metric_t::kMoment) d_moment[c] += g != 0 ? g * metric.moment_scale(pair) : T(0);
    }
}

}  // namespace nearlinear
