// attention over pairs of keys: the weight of a pair as a function of its logit, in lanes, with its slope and what shifts and biases do.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../common/matmul_tile.h"
#include "../common/simd.h"

namespace nearlinear {

// e^(x + bias2 + row), row = bias1 - shift
template <typename T>
struct ExponentialWeight {
  static constexpr int64_t W = kLanes<T>;
  static constexpr bool kShifts = true;             // rows have a shift, so that nothing overflows
  static constexpr T kAbsent = -simd::infinity<T>;  // the bias that means no weight

  T bias(T added) const { return added; }
  // -inf is the shift of a query without pairs
  static T row(T bias1, T shift) { return bias1 - (shift == -simd::infinity<T> ? T(0) : shift); }

  NL_INLINE void operator()(const T* __restrict x, const T* __restrict bias2, T row, T* __restrict weight) const {
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) weight[l] = simd::exp(x[l] + (bias2[l] + row));  // large biases cancel before x is rounded
  }
  NL_INLINE void operator()(const T* __restrict x, const T* __restrict bias2, T row, T* __restrict weight, T* __restrict slope) const {
    (*this)(x, bias2, row, weight);
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) slope[l] = weight[l];
  }
};

// sum_m c_m x^m of two half lines, and its slope
template <typename T>
struct Polynomial {
  using V = typename HalfLine<T>::Vector;
  const T* coefficients;
  int64_t count;

  template <bool SLOPE>
  NL_INLINE void operator()(const V (&x)[2], V (&p)[2], V (&slope)[2]) const {
    const V x0 = x[0], x1 = x[1];
    V p0{}, p1{}, slope0{}, slope1{};
    for (int64_t m = count; m-- > 0;) {
      if (SLOPE) slope0 = slope0 * x0 + p0, slope1 = slope1 * x1 + p1;
      p0 = p0 * x0 + coefficients[m], p1 = p1 * x1 + coefficients[m];
    }
    p[0] = p0, p[1] = p1, slope[0] = slope0, slope[1] = slope1;
  }
};

// A weight w(x) e^bias2 row, row = e^bias1, without a shift: `function_t` gives w, and w' if it is asked for.
template <typename T, typename function_t>
struct PlainWeight {
  using V = typename HalfLine<T>::Vector;
  static constexpr bool kShifts = false;
  static constexpr T kAbsent = 0;

  function_t function;

  T bias(T added) const { return std::exp(added); }
  static T row(T bias1, T) { return bias1; }

  NL_INLINE void operator()(const T* __restrict x, const T* __restrict bias2, T row, T* __restrict weight) const {
    T* unused = nullptr;
    apply<false>(x, bias2, row, weight, unused);
  }
  NL_INLINE void operator()(const T* __restrict x, const T* __restrict bias2, T row, T* __restrict weight, T* __restrict slope) const {
    apply<true>(x, bias2, row, weight, slope);
  }

 private:
  template <bool SLOPE>
  NL_INLINE void apply(const T* __restrict x, const T* __restrict bias2, T row, T* __restrict weight, T* __restrict slope) const {
    constexpr int64_t half = kLanes<T> / 2;
    V at[2], factor[2], w[2], s[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      std::memcpy(&at[h], x + h * half, sizeof(V));  // rows that begin within a window are not aligned
      std::memcpy(&factor[h], bias2 + h * half, sizeof(V));
    }
    function.template operator()<SLOPE>(at, w, s);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      factor[h] *= row;
      w[h] *= factor[h], s[h] *= factor[h];
      std::memcpy(weight + h * half, &w[h], sizeof(V));
      if (SLOPE) std::memcpy(slope + h * half, &s[h], sizeof(V));
    }
  }
};

// e^x - p(x). Near 0 it is the rest of the series after degree g and what p lacks of the Taylor polynomial of that degree,
//   x^g / g! x (1 / (g + 1) + x / ((g + 1) (g + 2)) + ...) + sum_m (1 / m! - c_m) x^m,
// where nothing cancels; the rest has the slope of itself and its first factor.
template <typename T>
struct Excess {
  using V = typename HalfLine<T>::Vector;
  static constexpr int64_t kTerms = sizeof(T) == 4 ? 10 : 18;  // of the rest: 1 / 11! and 1 / 19! are below rounding for |x| < 1

  Polynomial<T> polynomial, lacking, rest;
  const T* inverses;  // 1 / m, 1 <= m <= g

  template <bool SLOPE>
  NL_INLINE void operator()(const V (&x)[2], V (&w)[2], V (&slope)[2]) const {
    V p[2], dp[2], far[2], tail[2], unused[2];
    polynomial.template operator()<SLOPE>(x, p, dp);
    lacking.template operator()<SLOPE>(x, w, slope);
    rest.template operator()<false>(x, tail, unused);
    alignas(64) T e[kLanes<T>];
    std::memcpy(e, x, sizeof(e));
#pragma omp simd
    for (int64_t l = 0; l < kLanes<T>; ++l)
      e[l] = sizeof(T) == 4 && e[l] > 88 ? simd::infinity<T> : simd::exp(e[l]);  // simd::exp ends there
    std::memcpy(far, e, sizeof(e));
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      V first = V{} + 1;
      for (int64_t m = 1; m < polynomial.count; ++m) first *= x[h] * inverses[m];
      const auto near = (x[h] > -1) & (x[h] < 1);
      if (polynomial.count == 0)
        tail[h] = far[h], first = V{};
      else
        tail[h] *= first * x[h];
      w[h] = near ? w[h] + tail[h] : far[h] - p[h];
      if (SLOPE) slope[h] = near ? slope[h] + tail[h] + first : far[h] - dp[h];
    }
  }
};

template <typename T>
using PolynomialWeight = PlainWeight<T, Polynomial<T>>;
template <typename T>
using ExcessWeight = PlainWeight<T, Excess<T>>;

// tables of e^x - sum_m coefficients[m] x^m
template <typename T>
class ExcessTables {
 public:
  explicit ExcessTables(const std::vector<double>& coefficients) : coefficients_(coefficients.begin(), coefficients.end()) {
    const int64_t count = static_cast<int64_t>(coefficients.size());
    double term = 1;  // 1 / m!
    bool taylor = true;
    for (int64_t m = 0; m < count; ++m) {
      if (m > 0) term /= m;
      inverses_.push_back(static_cast<T>(1.0 / std::max<int64_t>(m, 1)));
      lacking_.push_back(static_cast<T>(term - coefficients[m]));
      taylor = taylor && std::fabs(term - coefficients[m]) <= 1e-15 * term;
    }
    if (taylor) lacking_.clear();
    double part = 1;
    for (int64_t k = 0; k < Excess<T>::kTerms; ++k) rest_.push_back(static_cast<T>(part /= std::max<int64_t>(count + k, 1)));
  }
  ExcessWeight<T> weight() const { return {{of(coefficients_), of(lacking_), of(rest_), inverses_.data()}}; }

 private:
  static Polynomial<T> of(const std::vector<T>& c) { return {c.data(), static_cast<int64_t>(c.size())}; }

  std::vector<T> coefficients_, lacking_, rest_, inverses_;
};

}  // namespace nearlinear
