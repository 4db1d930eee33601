// inner loops of taylor_scan: one run of features of one chunk of tokens, one panel of kLanes columns.
//
// phi [2 + HEADS, kScanRun, kRow]: features of key1 and key2 times e^bias, of the query heads times their weight.
#pragma once
#include "taylor_scan_tiles.h"

namespace nearlinear {

constexpr int64_t kScanRun = 32;  // features that are made at a time
template <typename T>
constexpr int64_t kDots = kScanRun * kChunk * kLanes<T> / 2;

template <typename T>
NL_INLINE const T* phi_row(const T* phi, int64_t set, int64_t row) {
  return phi + (set * kScanRun + row) * kRow<T>;
}

// sums [HEADS, kChunk, W] += phi(query) S1 * S2. Sums within the chunk start at 0 and are added to the totals of the chunks before, whose
// rounding errors so do not grow with the number of tokens. totals [rows, 2, W]. lanes: those that hold tokens.
template <int HEADS, typename T>
NL_CLONES void scan_panel(int64_t rows, int64_t lanes, const T* __restrict phi, const T* __restrict v1, const T* __restrict v2,
                          double* __restrict totals, T* __restrict sums) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t r = 0; r < rows; ++r) {
    double* __restrict total = totals + r * 2 * W;
    T base1[W], base2[W], s1[W] = {}, s2[W] = {};
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) base1[l] = static_cast<T>(total[l]), base2[l] = static_cast<T>(total[W + l]);
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t at = lane; at < kChunk; at += W) {
        const T f1 = phi_row(phi, 0, r)[at], f2 = phi_row(phi, 1, r)[at];
        T both[W];
#pragma omp simd
        for (int64_t l = 0; l < W; ++l) s1[l] += f1 * v1[at * W + l];
#pragma omp simd
        for (int64_t l = 0; l < W; ++l) s2[l] += f2 * v2[at * W + l];
#pragma omp simd
        for (int64_t l = 0; l < W; ++l) both[l] = (base1[l] + s1[l]) * (base2[l] + s2[l]);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
          const T q = phi_row(phi, 2 + h, r)[at];
#pragma omp simd
          for (int64_t l = 0; l < W; ++l) sums[(h * kChunk + at) * W + l] += q * both[l];
        }
      }
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) total[l] += s1[l], total[W + l] += s2[l];
  }
}

// out[t] = base + in of the tokens up to t; returns the sum of all. All lanes at once, then each gets what the lanes before it have.
template <typename T>
NL_INLINE T running_sums(const T* __restrict in, T base, T* __restrict out) {
  constexpr int64_t W = kLanes<T>;
  T run[W] = {}, before = 0;
  for (int64_t begin = 0; begin < kChunk; begin += W)
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) out[begin + l] = run[l] += in[begin + l];
  for (int64_t l = 0; l < W; ++l) {
    const T own = run[l];
    run[l] = base + before;
    before += own;
  }
  for (int64_t begin = 0; begin < kChunk; begin += W)
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) out[begin + l] += run[l];
  return before;
}

// the same over the tokens from t on
template <typename T>
NL_INLINE T running_sums_back(const T* __restrict in, T base, T* __restrict out) {
  constexpr int64_t W = kLanes<T>;
  T run[W] = {}, after = 0;
  for (int64_t begin = kChunk - W; begin >= 0; begin -= W)
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) out[begin + l] = run[l] += in[begin + l];
  for (int64_t l = W - 1; l >= 0; --l) {
    const T own = run[l];
    run[l] = base + after;
    after += own;
  }
  for (int64_t begin = 0; begin < kChunk; begin += W)
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) out[begin + l] += run[l];
  return after;
}

// the column of ones: tokens are lanes. totals [rows, 2], sums [HEADS, kChunk]
template <int HEADS, typename T>
NL_CLONES void scan_last(int64_t rows, const T* __restrict phi, double* __restrict totals, T* __restrict sums) {
  T z1[kChunk], z2[kChunk];
  for (int64_t r = 0; r < rows; ++r) {
    double* total = totals + 2 * r;
    total[0] += running_sums(phi_row(phi, 0, r), static_cast<T>(total[0]), z1);
    total[1] += running_sums(phi_row(phi, 1, r), static_cast<T>(total[1]), z2);
    for (int h = 0; h < HEADS; ++h) {
      const T* __restrict q = phi_row(phi, 2 + h, r);
#pragma omp simd
      for (int64_t t = 0; t < kChunk; ++t) sums[h * kChunk + t] += q[t] * (z1[t] * z2[t]);
    }
  }
}

// Backward, panel, one feature: two passes over the chunk.

// Forwards from the states at the chunk's start [2, W]: pulls [kChunk, 2, W], what reaches the states of a token from its own sums, and
// their sums, to totals [2, W]; dot [HEADS] at kDots += columns of the gradients of phi(query), to be added up.
template <int HEADS, bool KEYS, bool FIRST, typename T>
NL_INLINE void find_pulls(int64_t lanes, const T* __restrict phi, const T* __restrict v1, const T* __restrict v2, const T* __restrict up,
                          int64_t up_stride, const T* __restrict states, T* __restrict pulls, T* __restrict sums, T* __restrict dots) {
  constexpr int64_t W = kLanes<T>, V = W / 2;
  T s1[W], s2[W], p1[W] = {}, p2[W] = {};
#pragma omp simd
  for (int64_t l = 0; l < W; ++l) s1[l] = states[l], s2[l] = states[W + l];
  for (int64_t lane = 0; lane < lanes; ++lane)
    for (int64_t at = lane; at < kChunk; at += W) {
      const T f1 = phi_row(phi, 0, 0)[at], f2 = phi_row(phi, 1, 0)[at];
      T both[W], d[W] = {};
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) s1[l] += f1 * v1[at * W + l];
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) s2[l] += f2 * v2[at * W + l];
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) both[l] = s1[l] * s2[l];
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h) {
        const T q = phi_row(phi, 2 + h, 0)[at];
        const T* __restrict u = up + h * up_stride + at * W;
        T* __restrict dot = dots + h * kDots<T> + at * V;
#pragma omp simd
        for (int64_t l = 0; l < W; ++l) d[l] += q * u[l];
#pragma omp simd
        for (int64_t l = 0; l < V; ++l) dot[l] = (FIRST ? T(0) : dot[l]) + (both[l] * u[l] + both[V + l] * u[V + l]);
      }
      if constexpr (KEYS) {
        T* __restrict pull = pulls + at * 2 * W;
#pragma omp simd
        for (int64_t l = 0; l < W; ++l) p1[l] += pull[l] = d[l] * s2[l];
#pragma omp simd
        for (int64_t l = 0; l < W; ++l) p2[l] += pull[W + l] = d[l] * s1[l];
      }
    }
#pragma omp simd
  for (int64_t l = 0; l < W; ++l) sums[l] = p1[l], sums[W + l] = p2[l];
}

// Backwards, key1 or key2: the gradient of the state after the chunk, after [W], and the pulls give d_v [kChunk, W] and the columns of the
// gradient of phi(key).
template <bool FIRST, typename T>
NL_INLINE void follow_pulls(int64_t lanes, const T* __restrict phi, const T* __restrict v, const double* __restrict after,
                            const T* __restrict pulls, T* __restrict dots, T* __restrict d_v) {
  constexpr int64_t W = kLanes<T>, V = W / 2;
  T r[W];
#pragma omp simd
  for (int64_t l = 0; l < W; ++l) r[l] = static_cast<T>(after[l]);
  for (int64_t lane = lanes - 1; lane >= 0; --lane)
    for (int64_t at = kChunk - W + lane; at >= 0; at -= W) {
      const T f = phi[at];
      const T* __restrict u = v + at * W;
      T* __restrict dot = dots + at * V;
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) r[l] += pulls[at * 2 * W + l];
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) d_v[at * W + l] += f * r[l];
#pragma omp simd
      for (int64_t l = 0; l < V; ++l) dot[l] = (FIRST ? T(0) : dot[l]) + (u[l] * r[l] + u[V + l] * r[V + l]);
    }
}

// both passes. dots [2 + HEADS, kScanRun, kChunk, W / 2], states and totals [rows, 2, W]
template <int HEADS, bool KEYS, bool FIRST, typename T>
NL_INLINE void both_passes(int64_t rows, int64_t lanes, const T* __restrict phi, const T* __restrict v1, const T* __restrict v2,
                           const T* __restrict up, int64_t up_stride, const T* __restrict states, double* __restrict totals,
                           T* __restrict dots, T* __restrict d_v1, T* __restrict d_v2) {
  constexpr int64_t W = kLanes<T>, V = W / 2, kSide = kScanRun * kRow<T>;
  alignas(64) T pulls[kChunk * 2 * W], sums[2 * W];
  for (int64_t r = 0; r < rows; ++r) {
    const T* f = phi + r * kRow<T>;
    T* dot = dots + r * kChunk * V;
    double* total = totals + r * 2 * W;
    find_pulls<HEADS, KEYS, FIRST, T>(lanes, f, v1, v2, up, up_stride, states + r * 2 * W, pulls, sums, dot + 2 * kDots<T>);
    if constexpr (!KEYS) continue;
    follow_pulls<FIRST, T>(lanes, f, v1, total, pulls, dot, d_v1);
    follow_pulls<FIRST, T>(lanes, f + kSide, v2, total + W, pulls + W, dot + kDots<T>, d_v2);
    for (int64_t l = 0; l < 2 * W; ++l) total[l] += sums[l];
  }
}

// first: of the panels, whose dots are not added to what is there
template <int HEADS, bool KEYS, typename T>
NL_CLONES void scan_panel_back(bool first, int64_t rows, int64_t lanes, const T* __restrict phi, const T* __restrict v1,
                               const T* __restrict v2, const T* __restrict up, int64_t up_stride, const T* __restrict states,
                               double* __restrict totals, T* __restrict dots, T* __restrict d_v1, T* __restrict d_v2) {
  if (first) {
    both_passes<HEADS, KEYS, true, T>(rows, lanes, phi, v1, v2, up, up_stride, states, totals, dots, d_v1, d_v2);
  } else {
    both_passes<HEADS, KEYS, false, T>(rows, lanes, phi, v1, v2, up, up_stride, states, totals, dots, d_v1, d_v2);
  }
}

// totals [rows, 2, W] of one of the two += phi^T v of a chunk, after what they were is written to states
template <typename T>
void advance_panel(int64_t rows, const T* phi, const T* v, double* totals, T* states) {
  constexpr int64_t W = kLanes<T>;
  alignas(64) T sums[kScanRun * W];
  matmul_tile<Layout::kRows, false>(rows, W, kChunk, phi, kRow<T>, v, W, sums, W);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t l = 0; l < W; ++l) {
      double& total = totals[r * 2 * W + l];
      states[r * 2 * W + l] = static_cast<T>(total);
      total += sums[r * W + l];
    }
}

// the same for the column of ones, [rows, 2]
template <typename T>
NL_CLONES void advance_last(int64_t rows, const T* __restrict phi, double* __restrict totals, T* __restrict states) {
  for (int64_t r = 0; r < rows; ++r) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < kChunk; ++t) sum += phi[r * kRow<T> + t];
    states[2 * r] = static_cast<T>(totals[2 * r]);
    totals[2 * r] += sum;
  }
}

// d_phi rows = sums of the dots; tokens are lanes
template <typename T>
NL_CLONES void add_dots(int64_t rows, const T* __restrict dots, T* __restrict d_phi) {
  constexpr int64_t V = kLanes<T> / 2;
  static_assert(V == 8 || V == 4);
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict x = dots + r * kChunk * V;
    T* __restrict sum = d_phi + r * kRow<T>;
#pragma omp simd
    for (int64_t t = 0; t < kChunk; ++t) {
      const T four = (x[t * V] + x[t * V + 2]) + (x[t * V + 1] + x[t * V + 3]);
      if constexpr (V == 8) {
        sum[t] = four + ((x[t * V + 4] + x[t * V + 6]) + (x[t * V + 5] + x[t * V + 7]));
      } else {
        sum[t] = four;
      }
    }
  }
}

// d_phi += sums of d * z over the tokens from each on, and what comes after the chunk
template <typename T>
NL_INLINE void add_pull(const T* __restrict d, const T* __restrict z, double* after, T* __restrict d_phi) {
  T pull[kChunk], sums[kChunk];
#pragma omp simd
  for (int64_t t = 0; t < kChunk; ++t) pull[t] = d[t] * z[t];
  *after += running_sums_back(pull, static_cast<T>(*after), sums);
#pragma omp simd
  for (int64_t t = 0; t < kChunk; ++t) d_phi[t] += sums[t];
}

// the column of ones: adds to d_phi. states [rows, 2], after [rows, 2], up: [HEADS, kChunk] at stride
template <int HEADS, bool KEYS, typename T>
NL_CLONES void scan_last_back(int64_t rows, const T* __restrict phi, const T* __restrict up, int64_t up_stride, const T* __restrict states,
                              double* __restrict after, T* __restrict d_phi) {
  T z1[kChunk], z2[kChunk], d[kChunk];
  for (int64_t r = 0; r < rows; ++r) {
    running_sums(phi_row(phi, 0, r), states[2 * r], z1);
    running_sums(phi_row(phi, 1, r), states[2 * r + 1], z2);
    std::fill_n(d, kChunk, T(0));
    for (int h = 0; h < HEADS; ++h) {
      const T* __restrict q = phi_row(phi, 2 + h, r);
      const T* __restrict u = up + h * up_stride;
      T* __restrict out = d_phi + ((2 + h) * kScanRun + r) * kRow<T>;
#pragma omp simd
      for (int64_t t = 0; t < kChunk; ++t) out[t] += z1[t] * z2[t] * u[t], d[t] += q[t] * u[t];
    }
    if constexpr (KEYS) {
      add_pull(d, z2, after + 2 * r, d_phi + r * kRow<T>);
      add_pull(d, z1, after + 2 * r + 1, d_phi + (kScanRun + r) * kRow<T>);
    }
  }
}

}  // namespace nearlinear
