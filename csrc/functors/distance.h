// distances of two vectors x and w that need every coordinate of every pair, so that no matrix product gives them. Plain structs.
//
// A pair is reduced over the coordinates to a Pair: the sum of term(x, w), the largest |x - w| and its place, the sum of the moments of
// both vectors. A metric reads the members that its flags ask for:
//   value(pair)                  the distance
//   scale(pair) slope(x, w, top) its derivative by x; by w it is the same with the two exchanged, because every metric here is symmetric;
//                                a metric that asks for the place has it there only
//   moment_scale(pair) moment_slope(x)     added to that where the metric has moments
// A new metric is one struct and one arm of make_metric; its Triton twin is in triton_kernels/distance.py, its definition in
// nearlinear/distances.py.
#pragma once
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "../common/check.h"
#include "../common/simd.h"

namespace nearlinear {

// the signed integer of the width of T: |d| >= 0 is ordered as its bits are, and NaN, above infinity there, wins a maximum
template <typename T>
using bits_t = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <typename T>
struct Pair {
  T sum, top, moment;
  bits_t<T> place;
};

// sign of d; 0 for 0 and, as in torch, for NaN
template <typename T>
NL_INLINE T sign(T d) {
  return std::islessgreater(d, T(0)) ? std::copysign(T(1), d) : T(0);
}

struct Metric {
  static constexpr bool kSum = true, kTop = false, kPlace = false, kMoment = false;
  static constexpr bool kPair = true;      // whether scale, slope or moment_scale reads the pair
  static constexpr bool kBounded = false;  // whether the slope is finite whatever x and w hold
  template <typename T>
  NL_INLINE T scale(const Pair<T>&) const {
    return T(1);
  }
  template <typename T>
  NL_INLINE T moment(T) const {
    return T(0);
  }
  template <typename T>
  NL_INLINE T moment_scale(const Pair<T>&) const {
    return T(0);
  }
  template <typename T>
  NL_INLINE T moment_slope(T) const {
    return T(0);
  }
};

struct Manhattan : Metric {  // sum |x - w|
  static constexpr bool kPair = false, kBounded = true;
  template <typename T>
  NL_INLINE T term(T x, T w, T) const {
    return std::fabs(x - w);
  }
  template <typename T>
  NL_INLINE T value(const Pair<T>& s) const {
    return s.sum;
  }
  template <typename T>
  NL_INLINE T slope(T x, T w, T) const {
    return sign(x - w);
  }
};

// (sum |x - w|^p)^(1 / p). TWICE_P = 2 p where the power is products and a square root, 0 for any other p
template <int TWICE_P>
struct Minkowski : Metric {
  double p;
  explicit Minkowski(double power) : p(power) {}
  template <typename T>
  NL_INLINE T term(T x, T w, T) const {
    const T a = std::fabs(x - w);
    return a * power_less_one(a);
  }
  template <typename T>
  NL_INLINE T value(const Pair<T>& s) const {
    if constexpr (TWICE_P == 4) return std::sqrt(s.sum);
    return static_cast<T>(std::pow(static_cast<double>(s.sum), 1 / p));
  }
  template <typename T>
  NL_INLINE T scale(const Pair<T>& s) const {
    return s.sum > 0 ? value(s) / s.sum : T(0) * s.sum;  // 0 where x = w, NaN where a coordinate is
  }
  template <typename T>
  NL_INLINE T slope(T x, T w, T) const {
    const T d = x - w;
    if constexpr (TWICE_P == 4) return d;
    return sign(d) * power_less_one(std::fabs(d));
  }

 private:
  template <typename T>
  NL_INLINE T power_less_one(T a) const {  // a^(p - 1)
    if constexpr (TWICE_P == 3) return std::sqrt(a);
    if constexpr (TWICE_P == 4) return a;
    if constexpr (TWICE_P == 6) return a * a;
    return std::pow(a, static_cast<T>(p - 1));
  }
};

struct Chebyshev : Metric {  // max |x - w|; of equal largest coordinates the first has the gradient
  static constexpr bool kSum = false, kTop = true, kPlace = true, kBounded = true;
  template <typename T>
  NL_INLINE T term(T, T, T) const {
    return T(0);
  }
  template <typename T>
  NL_INLINE T value(const Pair<T>& s) const {
    return s.top;
  }
  template <typename T>
  NL_INLINE T slope(T x, T w, T) const {
    return sign(x - w);  // at the place
  }
};

struct SmoothChebyshev : Metric {  // log(sum e^(alpha |x - w|)) / alpha, shifted by the maximum
  static constexpr bool kTop = true;
  double alpha;
  explicit SmoothChebyshev(double sharpness) : alpha(sharpness) {}
  template <typename T>
  NL_INLINE T term(T x, T w, T top) const {
    return simd::exp(T(alpha) * (std::fabs(x - w) - top));
  }
  template <typename T>
  NL_INLINE T value(const Pair<T>& s) const {
    if (s.sum == 0) return -simd::infinity<T>;  // no coordinate
    return s.top == simd::infinity<T> ? s.top : s.top + simd::log1p(s.sum - 1) / T(alpha);
  }
  template <typename T>
  NL_INLINE T scale(const Pair<T>& s) const {
    return T(1) / s.sum;
  }
  template <typename T>
  NL_INLINE T slope(T x, T w, T top) const {
    return sign(x - w) * term(x, w, top);
  }
};

struct Canberra : Metric {  // sum |x - w| / (|x| + |w| + eps)
  static constexpr bool kPair = false;
  double eps;
  explicit Canberra(double floor) : eps(floor) {}
  template <typename T>
  NL_INLINE T term(T x, T w, T) const {
    return std::fabs(x - w) / (std::fabs(x) + std::fabs(w) + T(eps));
  }
  template <typename T>
  NL_INLINE T value(const Pair<T>& s) const {
    return s.sum;
  }
  template <typename T>
  NL_INLINE T slope(T x, T w, T) const {
    const T inverse = T(1) / (std::fabs(x) + std::fabs(w) + T(eps)), d = x - w;
    return (sign(d) - std::fabs(d) * inverse * sign(x)) * inverse;
  }
};

template <bool ABSOLUTE>
struct BrayCurtis : Metric {  // sum |x - w| / (|sum (x + w)| + eps), or ABSOLUTE: / (sum (|x| + |w|) + eps)
  static constexpr bool kMoment = true, kBounded = true;
  double eps;
  explicit BrayCurtis(double floor) : eps(floor) {}
  template <typename T>
  NL_INLINE T term(T x, T w, T) const {
    return std::fabs(x - w);
  }
  template <typename T>
  NL_INLINE T value(const Pair<T>& s) const {
    return s.sum * scale(s);
  }
  template <typename T>
  NL_INLINE T scale(const Pair<T>& s) const {
    return T(1) / (std::fabs(s.moment) + T(eps));
  }
  template <typename T>
  NL_INLINE T slope(T x, T w, T) const {
    return sign(x - w);
  }
  template <typename T>
  NL_INLINE T moment(T x) const {
    return ABSOLUTE ? std::fabs(x) : x;
  }
  template <typename T>
  NL_INLINE T moment_scale(const Pair<T>& s) const {
    return -s.sum * sign(s.moment) * scale(s) * scale(s);
  }
  template <typename T>
  NL_INLINE T moment_slope(T x) const {
    return ABSOLUTE ? sign(x) : T(1);
  }
};

using DistanceMetric = std::variant<Manhattan, Minkowski<3>, Minkowski<4>, Minkowski<6>, Minkowski<0>, Chebyshev, SmoothChebyshev, Canberra,
                                    BrayCurtis<false>, BrayCurtis<true>>;

inline DistanceMetric make_metric(std::string_view name, const std::vector<double>& params, const char* op) {
  const bool plain = name == "manhattan" || name == "chebyshev", bray_curtis = name == "bray_curtis" || name == "bray_curtis_abs";
  check(plain || bray_curtis || name == "minkowski" || name == "smooth_chebyshev" || name == "canberra", op,
        "metric must be manhattan, minkowski, chebyshev, smooth_chebyshev, canberra, bray_curtis or bray_curtis_abs, got ", name);
  check(params.size() == (plain ? 0u : 1u), op, "metric_params has the wrong length for metric=", name);
  if (name == "manhattan") return Manhattan{};
  if (name == "chebyshev") return Chebyshev{};
  if (name == "smooth_chebyshev") return SmoothChebyshev(params[0]);
  if (name == "canberra") return Canberra(params[0]);
  if (name == "bray_curtis") return BrayCurtis<false>(params[0]);
  if (name == "bray_curtis_abs") return BrayCurtis<true>(params[0]);
  if (params[0] == 1) return Manhattan{};
  if (params[0] == 1.5) return Minkowski<3>(params[0]);
  if (params[0] == 2) return Minkowski<4>(params[0]);
  if (params[0] == 3) return Minkowski<6>(params[0]);
  return Minkowski<0>(params[0]);
}

}  // namespace nearlinear
