// products of tiles that lie in cache: what the attention kernels do with their blocks between two loads from memory.
//
// C [M, N] (+)= A [M, K] B [K, N]. Rows of B and C are contiguous, 64-byte aligned and padded to whole vectors of 64 bytes; A is read one
// element at a time, from rows (element m, k at m * stride + k) or from columns (m + k * stride), so that neither operand is transposed.
// Six rows of C times one vector, 12 registers of AVX2, stay in registers over K: 8 loads feed 12 multiply-adds.
// What C holds is added last, to a sum of K terms: over many products its error grows with their number, not with that of the terms.
// A stride of B or C that is a multiple of 512 bytes maps the rows of a panel to the same few cache sets: callers pad it (padded_stride).
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>

#include "simd.h"

namespace nearlinear {

template <typename T>
constexpr int64_t kLanes = 64 / sizeof(T);  // of a vector: one cache line

// elements of a row of n: whole vectors, an odd number of them
template <typename T>
constexpr int64_t padded_stride(int64_t n) {
  return ((n + kLanes<T> - 1) / kLanes<T> | 1) * kLanes<T>;
}

// n elements that start at a cache line, not initialised
template <typename T>
class Lines {
 public:
  Lines() = default;
  explicit Lines(int64_t n) : lines_(std::make_unique_for_overwrite<Line[]>(static_cast<size_t>((n + kLanes<T> - 1) / kLanes<T>))) {}
  T* get() const { return reinterpret_cast<T*>(lines_.get()); }
  operator T*() const { return get(); }

 private:
  struct alignas(64) Line {
    T element[kLanes<T>];
  };
  std::unique_ptr<Line[]> lines_;
};

// n zeros
template <typename T>
Lines<T> lines(int64_t n) {
  Lines<T> made(n);
  std::fill_n(made.get(), (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>, T(0));
  return made;
}

enum class Layout { kRows, kColumns };

// half a line: a register of AVX2. Arrays of these stay in registers; of a loop over lanes GCC keeps a copy on the stack for each panel.
template <typename T>
struct HalfLine {
  typedef T Vector __attribute__((vector_size(32)));
};

template <int ROWS, Layout A, bool ADD, typename T>
NL_INLINE void matmul_panel(int64_t k_count, const T* __restrict a, int64_t a_stride, const T* __restrict b, int64_t b_stride,
                            T* __restrict c, int64_t c_stride) {
  using V = typename HalfLine<T>::Vector;
  V sum[ROWS][2];
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = V{};
  for (int64_t k = 0; k < k_count; ++k) {
    const V* row = reinterpret_cast<const V*>(b + k * b_stride);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
      const T x = A == Layout::kRows ? a[r * a_stride + k] : a[k * a_stride + r];
      sum[r][0] += x * row[0];
      sum[r][1] += x * row[1];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r) {
    V* row = reinterpret_cast<V*>(c + r * c_stride);
    row[0] = ADD ? row[0] + sum[r][0] : sum[r][0];
    row[1] = ADD ? row[1] + sum[r][1] : sum[r][1];
  }
}

// n counts padding: a multiple of kLanes. m may be anything.
template <Layout A, bool ADD, typename T>
NL_CLONES void matmul_tile(int64_t m, int64_t n, int64_t k, const T* __restrict a, int64_t a_stride, const T* __restrict b,
                           int64_t b_stride, T* __restrict c, int64_t c_stride) {
  const int64_t step = A == Layout::kRows ? a_stride : 1;
  for (int64_t j = 0; j < n; j += kLanes<T>) {
    int64_t i = 0;
    for (; i + 6 <= m; i += 6) matmul_panel<6, A, ADD>(k, a + i * step, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride);
    switch (m - i) {
      case 5:
        matmul_panel<5, A, ADD>(k, a + i * step, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride);
        break;
      case 4:
        matmul_panel<4, A, ADD>(k, a + i * step, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride);
        break;
      case 3:
        matmul_panel<3, A, ADD>(k, a + i * step, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride);
        break;
      case 2:
        matmul_panel<2, A, ADD>(k, a + i * step, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride);
        break;
      case 1:
        matmul_panel<1, A, ADD>(k, a + i * step, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride);
        break;
      default:
        break;
    }
  }
}

}  // namespace nearlinear
